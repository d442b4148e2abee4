r"""Grade an answer against a reference: ``grade``, ``grade_many``, ``grade_choice``.

There are three steps, cheapest first. (1) Extract the final answer; a text without one gets ``no_answer``. (2) Compare
exactly, in this process: equal normal forms, numbers as fractions, times and words. This settles most answers in
microseconds.
(3) Ask math-verify, in a worker process that the kernel kills at the deadline (see ``equality``). Only a label comes
back. A parsed expression never enters this process, where merely printing it could evaluate it and never end.

    correct     1.0
    wrong       0.0    also an answer over MAX_ANSWER characters, or one that cannot be read
    no_answer   0.0
    timeout     None   not decided within the deadline, which counts the worker's processor time
    error       None   the reference cannot be read, or the worker died (memory)

Policy. Numbers of any size are compared exactly, never to an absolute tolerance: 1/2^99 is not 1/2^98 and 7.4e-12 is
not 7.5e-12. There is one leniency: a decimal of at least six significant digits stands for a fraction with no finite
decimal (0.333333 for 1/3). ``42_5`` is the number 22. An answer with an ellipsis is right only if it is written as the
reference is. Unevaluated arithmetic counts (``3+4`` for 7), as in every public grader. Where writing down the sum must
not earn the point, compare the numeral as well.

50% equals 50 and 0.5. A word of three or more letters is a text, no product of letters.

Known limits: units are dropped (10 cm equals 10 m and 10); and, kept from math-verify, ``(1,2)`` equals ``\{1,2\}`` and the
open interval, 90 degrees is not pi/2, ``i^2`` is not -1, capital and small letters are one variable.

Every function may be called from any thread; nothing touches this process's signals.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import math
import os
import queue
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

from twofold.text.extract import choice_letter, final_answer
from twofold.text.notation import MAX_ANSWER, canonical, for_parser, number, same_time, words
from twofold.types import Grade, Label

WORKERS = min(8, max(2, os.cpu_count() or 2))
NICE = 10
"""The niceness of the workers: answers are graded while others are sampled, and sampling needs all processors."""
START = 120.0
"""Seconds that the workers may take to start. No deadline runs during that time."""
LOOK = 0.1
"""Seconds between two looks at whether a caller that waits for a worker still has time."""
SHORTEST = 0.001
"""The shortest deadline."""
GRACE = 120.0
"""Seconds on the clock, beyond the deadline, after which a silent worker counts as broken. A deadline counts processor time,
so it may expire late on a busy machine, where the workers give way to other processes."""


def grade(gold: str, text: str, *, deadline: float = 1.0) -> Grade:
    r"""Grade the final answer of ``text`` against ``gold``. ``deadline`` is in seconds of processor time.

    >>> grade("1/2", r"so it is \boxed{0.50}")
    Grade(reward=1.0, label='correct')
    >>> grade("1/2", "it is 1/2")
    Grade(reward=0.0, label='no_answer')
    """
    answer = final_answer(text)
    return as_grade("no_answer" if answer is None else equal(gold, answer, deadline=deadline))


def grade_many(pairs: Sequence[tuple[str, str]], *, deadline: float = 1.0) -> list[Grade]:
    """Return ``grade`` of each (gold, text), in order. The workers decide each distinct answer once, in parallel."""
    asked = [(gold, final_answer(text)) for gold, text in pairs]
    labels: dict[tuple[str, str | None], Label] = {}
    slow: list[tuple[str, str]] = []
    for gold, answer in dict.fromkeys(asked):
        label = "no_answer" if answer is None else equal_exactly(gold, answer)
        if label is not None:
            labels[gold, answer] = label
        elif answer is not None:
            slow.append((gold, answer))
    if slow:
        with ThreadPoolExecutor(WORKERS) as threads:
            labels |= zip(slow, threads.map(lambda pair: ask_worker(pair[0], pair[1], deadline), slow), strict=True)
    return [as_grade(labels[pair]) for pair in asked]


def grade_choice(gold: str, text: str) -> Grade:
    r"""Grade a multiple-choice solution: ``gold`` is a letter, "A".

    >>> grade_choice("C", "... so the answer is (C).")
    Grade(reward=1.0, label='correct')
    """
    letter = choice_letter(text)
    return as_grade("no_answer" if letter is None else "correct" if letter == gold else "wrong")


def unreadable(references: Iterable[str], *, deadline: float = 1.0) -> set[str]:
    """Return the references that cannot be read, so that no other text than they themselves can be graded."""
    asked = [r for r in dict.fromkeys(references) if equal_exactly(r, "0") is None]
    if not asked:
        return set()
    with ThreadPoolExecutor(WORKERS) as threads:
        labels = threads.map(lambda r: ask_worker(r, "0", deadline), asked)
        return {r for r, label in zip(asked, labels, strict=True) if label == "error"}


def as_grade(label: Label) -> Grade:
    return Grade({"correct": 1.0, "wrong": 0.0, "no_answer": 0.0}.get(label), label)


def equal(gold: str, answer: str, *, deadline: float = 1.0, left: Callable[[], float] = lambda: math.inf) -> Label:
    """Return the label of an answer that has been extracted already.

    ``left`` returns the seconds that the caller still has. When they are over, also while this waits for a free worker, the
    label is ``timeout``, unless the answer is decided exactly.
    """
    return equal_exactly(gold, answer) or ask_worker(gold, answer, deadline, left)


# --- in this process --------------------------------------------------------------------------------------------------

_DECIMAL = re.compile(r"[-+]?(\d*)\.(\d+)")
_ELLIPSIS = re.compile(r"\\[lcd]?dots|\.\.\.|…")


def equal_exactly(gold: str, answer: str) -> Label | None:
    """Return the label if fractions are all the mathematics it needs, else None."""
    gold_form, form = canonical(gold), canonical(answer)
    if not form:
        return "no_answer"
    if form == gold_form:
        return "correct"
    if not gold_form:
        return "error"
    if len(answer) > MAX_ANSWER:
        return "wrong"
    if len(gold) > MAX_ANSWER:
        return "error"
    gold_value, value = number(gold), number(answer)
    if gold_value is not None and value is not None:
        percent = form.endswith("%") - gold_form.endswith("%")  # 50% is 50, and also 0.5
        hundredth = percent != 0 and gold_value * Fraction(100) ** percent == value
        close = hundredth or stands_for(answer, gold_value) or stands_for(gold, value)
        return "correct" if gold_value == value or close else "wrong"
    if (same := same_time(gold_form, form)) is not None:
        return "correct" if same else "wrong"
    gold_words, answer_words = words(gold), words(answer)
    if gold_words is not None and answer_words is not None:
        return "correct" if gold_words == answer_words else "wrong"
    if _ELLIPSIS.search(gold) or _ELLIPSIS.search(answer):
        return "wrong"
    return None


def stands_for(text: str, value: Fraction) -> bool:
    """Return whether ``text`` is a rounded or cut decimal of a ``value`` that has no finite decimal.

    0.333333 stands for 1/3. 0.500001 does not stand for 1/2, which has a finite decimal.
    """
    decimal = _DECIMAL.fullmatch(text.strip().strip("$"))
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if decimal is None or rest == 1 or len((decimal[1] + decimal[2]).lstrip("0")) < 6:
        return False
    return abs(Fraction(decimal[0]) - value) < Fraction(1, 10 ** len(decimal[2]))


# --- in the workers ---------------------------------------------------------------------------------------------------


class Workers:
    """Sockets to the worker processes. ``ask`` raises OSError when they are gone."""

    def __init__(self, count: int) -> None:
        pairs = [socket.socketpair() for _ in range(count)]
        fds = [theirs.fileno() for _, theirs in pairs]
        # with -P no file of this folder hides a library; by its path the script runs without twofold being installed
        command = [sys.executable, "-P", str(Path(__file__).with_name("equality.py")), str(NICE), *map(str, fds)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=fds)
        self.sockets = [ours for ours, _ in pairs]
        self.idle: queue.Queue[socket.socket] = queue.Queue()
        self.tickets = itertools.count()
        for ours, theirs in pairs:
            theirs.close()
            self.idle.put(ours)

    def ask(
        self,
        gold: str,
        answer: str,
        deadline: float,
        grace: float = GRACE,
        left: Callable[[], float] = lambda: math.inf,
    ) -> Label:
        """Return a worker's label. Callers get the free workers in the order in which they ask.

        A caller that has no time ``left`` gets no worker. One that has little gets it for no longer.

        The worker itself keeps the ``deadline``. After ``grace`` more seconds of silence it counts as broken.
        """
        worker = self._free(left)
        if worker is None:
            return "timeout"
        deadline = min(deadline, max(left(), SHORTEST))
        try:
            drain(worker)
            ticket = str(next(self.tickets))
            worker.settimeout(deadline + grace)
            worker.sendall(json.dumps([ticket, gold, answer, deadline]).encode() + b"\n")
            while reply := worker.recv(4096).decode():
                for line in reply.splitlines():
                    *about, label = line.split()
                    if about in ([], [ticket]):
                        return label  # type: ignore[return-value]
            raise ConnectionResetError("the grading workers are gone")
        finally:
            self.idle.put(worker)

    def _free(self, left: Callable[[], float]) -> socket.socket | None:
        """Wait for a free worker; return None if no time is ``left``, which is looked at every ``LOOK`` seconds."""
        while left() > 0:
            with contextlib.suppress(queue.Empty):
                return self.idle.get(timeout=None if left() == math.inf else LOOK)
        return None

    def close(self) -> None:
        """End the processes. A worker that is busy ends at its deadline."""
        for ours in self.sockets:
            with contextlib.suppress(OSError):  # wakes a thread that waits on it; may be disconnected already
                ours.shutdown(socket.SHUT_RDWR)
            ours.close()
        self.process.kill()
        self.process.wait()


def drain(worker: socket.socket) -> None:
    """Discard what has arrived: the report on a worker that was killed while idle is not about the next request."""
    worker.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while worker.recv(4096):
            pass


_lock = threading.Lock()
_workers: Workers | None = None


def warm() -> None:
    """Start the workers, if they are not running, and wait until they answer. Raises RuntimeError if they cannot start.

    ``grade`` calls this itself. Call it early so that loading sympy, which takes seconds, delays nothing.
    """
    global _workers
    with _lock:
        if _workers is not None:
            return
        workers = Workers(WORKERS)
        try:
            workers.ask("x+1", "1+x", 10.0, grace=START)
        except OSError as e:
            workers.close()
            raise RuntimeError(
                f"the grading workers did not start ({e}); their own message is above. "
                f"Try: {sys.executable} -c 'import math_verify'"
            ) from e
        _workers = workers


def shutdown() -> None:
    """End the workers. The next grade that needs them starts new ones. This is also done at exit."""
    global _workers
    with _lock:
        workers, _workers = _workers, None
    if workers is not None:
        workers.close()


def ask_worker(gold: str, answer: str, deadline: float, left: Callable[[], float] = lambda: math.inf) -> Label:
    if deadline <= 0:
        raise ValueError(f"deadline must be a positive number of seconds, got {deadline}")
    warm()
    workers = _workers
    if workers is None:  # shut down by another thread since
        return "error"
    try:
        return workers.ask(for_parser(gold), for_parser(answer), deadline, left=left)
    except OSError:  # killed, or silent long after the deadline: the next grade starts new workers
        shutdown()
        return "error"


def _forget_after_fork() -> None:
    """Close the parent's sockets in a forked child (a data loader): it must neither use them nor keep them open."""
    global _lock, _workers
    _lock = threading.Lock()
    if _workers is not None:
        for ours in _workers.sockets:
            ours.close()
        _workers.process.returncode = 0  # not our child: nothing to wait for
    _workers = None


atexit.register(shutdown)
os.register_at_fork(after_in_child=_forget_after_fork)
