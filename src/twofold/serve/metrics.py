"""Counters in the text format of Prometheus."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter

from twofold.compute.cost import Cost

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Metrics:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._tokens: Counter[str] = Counter()
        self._buckets = [0] * (len(SECONDS) + 1)
        self._seconds = 0.0

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request was answered, or left (499)."""
        with self._lock:
            self._requests[path, status] += 1
            self._buckets[bisect_left(SECONDS, seconds)] += 1
            self._seconds += seconds

    def spent(self, cost: Cost) -> None:
        with self._lock:
            self._tokens.update(prompt=cost.prompt, generated=cost.generated, verified=cost.verified)

    def text(self, gauges: dict[str, float]) -> str:
        with self._lock:
            lines = ["# TYPE twofold_requests_total counter"]
            for (path, status), n in sorted(self._requests.items()):
                lines.append(f'twofold_requests_total{{path="{path}",status="{status}"}} {n}')
            lines.append("# TYPE twofold_tokens_total counter")
            lines += [f'twofold_tokens_total{{kind="{kind}"}} {n}' for kind, n in sorted(self._tokens.items())]
            lines.append("# TYPE twofold_request_seconds histogram")
            total = 0
            for edge, n in zip((*SECONDS, "+Inf"), self._buckets, strict=True):
                total += n
                lines.append(f'twofold_request_seconds_bucket{{le="{edge}"}} {total}')
            lines += [f"twofold_request_seconds_sum {self._seconds:.6f}", f"twofold_request_seconds_count {total}"]
        for name, value in gauges.items():
            lines += [f"# TYPE twofold_{name} gauge", f"twofold_{name} {value}"]
        return "\n".join(lines) + "\n"
