"""One step off: the rollouts of the next step are drawn and graded while the learner is at this one.

The engine samples with the weights from before the update that runs beside it, so the learner is one update further than its
samples (asynchronous RLHF, arXiv:2410.18252). A step then takes as long as the slower of the two, not as long as both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from threading import Thread

from twofold.types import Collected


def check_ahead(engine: str, ranks: int) -> None:
    """Raise ValueError if an engine of this name, in a run of so many learners, cannot sample beside them."""
    if engine == "native":
        raise ValueError(
            'train.ahead = 1, but the native engine samples from the very module that learns: set engine.name = "fleet", '
            '"vllm" or "vllm-server"'
        )
    if ranks > 1 and engine == "python":
        raise ValueError(
            'train.ahead = 1, but your engine runs in the learners: set engine.name = "fleet" or "vllm-server"'
        )


class Ahead:
    """Collects the samples of steps, each when it is needed or, after ``begin``, in a thread before that.

    ``collect`` returns the samples of a step. No other call may use its engines between ``begin`` and ``wait``.
    """

    def __init__(self, collect: Callable[[int], Collected]) -> None:
        self._collect = collect
        self._next: Future[Collected] | None = None

    @property
    def begun(self) -> bool:
        """Return whether samples are there, or on their way, that nobody has taken."""
        return self._next is not None

    def begin(self, step: int) -> None:
        """Begin to collect a step's samples."""
        found = self._next = Future[Collected]()

        def work() -> None:
            try:
                began = time.monotonic()
                collected = self._collect(step)
                stale = {"staleness": 1.0, "ahead_time": time.monotonic() - began}
                found.set_result(replace(collected, stats=collected.stats | stale))
            except BaseException as error:  # the caller raises it
                found.set_exception(error)

        Thread(target=work, name="twofold-ahead", daemon=True).start()  # a second Ctrl-C does not wait for it

    def wait(self) -> float:
        """Wait until nothing is being collected, and return for how many seconds. Raises what collecting raised."""
        began = time.monotonic()
        if self._next:
            self._next.result()
        return time.monotonic() - began

    def take(self, step: int) -> Collected:
        """Return the samples of a step: those that ``begin`` was told of, or else new ones.

        The numbers for the log then have ``staleness``, the updates between sampling and learning, and ``ahead_time``, the
        seconds that collecting took.
        """
        found, self._next = self._next, None
        return found.result() if found else self._collect(step)
