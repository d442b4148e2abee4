"""Ctrl-C and SIGTERM: the first one lets a run finish its step, the second one ends it at once."""

from __future__ import annotations

import signal
from threading import Thread
from types import FrameType

from twofold.trainer.log import Log

FINISHING = "finishing the step, then saving; a second Ctrl-C leaves now and loses what was not saved"


class Stop:
    """Sets ``asked`` at the first SIGINT or SIGTERM, and restores the previous handlers for the second."""

    def __init__(self, log: Log) -> None:
        self.log, self.asked = log, False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()
        # in a thread, because the signal may have come in the middle of another print
        Thread(target=self.log.say, args=(FINISHING,)).start()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __enter__(self) -> Stop:
        try:
            self._before = {n: signal.signal(n, self._ask) for n in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread, which alone may handle signals
            self._before = {}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
