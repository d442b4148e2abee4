"""Counters in the text format of Prometheus."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter

from twofold.compute.cost import Cost

BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Upper bounds of the histogram of seconds per request."""


class Metrics:
    """Counts of what the server has done so far. Any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._tokens: Counter[str] = Counter()
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._seconds = 0.0

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that was answered, or whose client left (status 499)."""
        with self._lock:
            self._requests[path, status] += 1
            self._buckets[bisect_left(BUCKETS, seconds)] += 1
            self._seconds += seconds

    def count_tokens(self, cost: Cost) -> None:
        """Count the tokens that a request cost."""
        with self._lock:
            self._tokens.update(prompt=cost.prompt, generated=cost.generated, verified=cost.verified)

    def text(self, gauges: dict[str, float]) -> str:
        """Return all counters and these gauges, one sample a line."""
        with self._lock:
            lines = ["# TYPE twofold_requests_total counter"]
            for (path, status), n in sorted(self._requests.items()):
                lines.append(f'twofold_requests_total{{path="{path}",status="{status}"}} {n}')
            lines.append("# TYPE twofold_tokens_total counter")
            lines += [f'twofold_tokens_total{{kind="{kind}"}} {n}' for kind, n in sorted(self._tokens.items())]
            lines.append("# TYPE twofold_request_seconds histogram")
            total = 0
            for bound, n in zip((*BUCKETS, "+Inf"), self._buckets, strict=True):
                total += n
                lines.append(f'twofold_request_seconds_bucket{{le="{bound}"}} {total}')
            lines += [f"twofold_request_seconds_sum {self._seconds:.6f}", f"twofold_request_seconds_count {total}"]
        for name, value in gauges.items():
            lines += [f"# TYPE twofold_{name} gauge", f"twofold_{name} {value}"]
        return "\n".join(lines) + "\n"
