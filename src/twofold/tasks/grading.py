r"""Grade an answer against a reference: ``grade``, ``grade_many``, ``grade_choice``.

There are three steps, cheapest first. (1) Extract the final answer; a text without one gets ``no_answer``. (2) Compare
exactly, in this process: equal normal forms, numbers as fractions, times and words. This settles most answers in
microseconds.
(3) Ask math-verify, in a worker process that the kernel kills at the deadline (see ``equality``). Only a label comes
back. A parsed expression never enters this process, where merely printing it could evaluate it and never end.

The deadline runs on the clock from the moment when a worker gets the answer. There are more workers than processors, which
they share: hostile answers end after the same time as one alone, and short ones beside them hardly wait. A worker that got
too little of a processor (``SHARE``) decides nothing; the answer is tried again, up to ``PATIENCE`` deadlines in all.

    correct     1.0
    wrong       0.0    also an answer over MAX_ANSWER characters, or one that cannot be read
    no_answer   0.0
    timeout     None   not decided within the deadline, on the clock, from the moment when a worker has the answer
    error       None   the reference cannot be read, or the worker died (memory)

Policy. Numbers of any size are compared exactly, never to an absolute tolerance: 1/2^99 is not 1/2^98 and 7.4e-12 is
not 7.5e-12. There is one leniency: a decimal of at least six significant digits stands for a fraction with no finite
decimal (0.333333 for 1/3). ``42_5`` is the number 22. An answer with an ellipsis is right only if it is written as the
reference is. Unevaluated arithmetic counts (``3+4`` for 7), as in every public grader. Where writing down the sum must
not earn the point, compare the numeral as well.

A true equation between numbers stands for its value, 2+3=5 for 5; a false one, or a false rounding, is no answer: 5=6.
50% equals 50 and 0.5. A word of three or more letters is a text, no product of letters.

Known limits: units are dropped (10 cm equals 10 m and 10); and, kept from math-verify, ``(1,2)`` equals ``\{1,2\}`` and the
open interval, 90 degrees is not pi/2 (but sin 90 degrees is 1), capital and small letters are one variable.

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
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

from twofold.text.extract import choice_letter, final_answer
from twofold.text.notation import MAX_ANSWER, canonical, for_parser, number, same_time, words
from twofold.types import Grade, Label

WORKERS = 8
"""More than many machines have processors: short answers share one with hostile answers, and do not queue behind them."""
START = 120.0
"""Seconds that the workers may take to start. No other deadline runs during that time."""
SHARE = 1 / 8
"""Share of the deadline that a worker must have had on a processor before its answer counts as undecided."""
PATIENCE = 4
"""Deadlines after which it does in any case."""
LATE = 0.2
"""Seconds behind the deadline after which a caller no longer waits to hear that its worker was killed."""
LOOK = 0.1
"""Seconds between two looks at whether a caller that waits for a worker still has time."""
SHORTEST = 0.001
"""The shortest deadline."""
GRACE = 120.0
"""Seconds behind the deadline after which a worker that is still silent counts as broken."""


def grade(gold: str, text: str, *, deadline: float = 1.0) -> Grade:
    r"""Grade the final answer of ``text`` against ``gold``. ``deadline`` is in seconds, from when a worker has the answer.

    Examples:
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
    """The worker processes, each with a socket and a thread of this process that hands it one answer after another."""

    def __init__(self, count: int) -> None:
        pairs = [socket.socketpair() for _ in range(count)]
        fds = [theirs.fileno() for _, theirs in pairs]
        # with -P no file of this folder hides a library; by its path the script runs without twofold being installed
        command = [sys.executable, "-P", str(Path(__file__).with_name("equality.py")), *map(str, fds)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=fds)
        self.sockets = [ours for ours, _ in pairs]
        self.requests: queue.SimpleQueue[tuple[str, str, float, Callable[[], float], Future[Label]] | None] = (
            queue.SimpleQueue()
        )
        self.lock = threading.Lock()
        self.closed = False
        for ours, theirs in pairs:
            theirs.close()
            threading.Thread(target=self._serve, args=(ours,), daemon=True).start()

    def ask(self, gold: str, answer: str, deadline: float, left: Callable[[], float] = lambda: math.inf) -> Label:
        """Return a worker's label. Answers are taken in the order in which they come, with a deadline of at most the seconds that
        are ``left`` then. A caller that has none left gets ``timeout``. Raises OSError if the workers are gone."""
        label: Future[Label] = Future()
        with self.lock:
            if self.closed:
                raise ConnectionResetError("the grading workers were shut down")
            self.requests.put((gold, answer, deadline, left, label))
        while left() > 0:
            with contextlib.suppress(TimeoutError):
                return label.result(None if left() == math.inf else LOOK)
        label.cancel()
        return "timeout"

    def _serve(self, worker: socket.socket) -> None:
        """Hand one request after another to a worker."""
        tickets = map(str, itertools.count())
        with worker:
            while self._answer_next(worker, tickets):
                pass

    def _answer_next(self, worker: socket.socket, tickets: Iterator[str]) -> bool:
        """Wait for a request, hand it over and return True, or False when there will be none. Nothing of it is kept.

        If the machine is so busy that even killing a worker takes more than ``LATE`` seconds, the caller is told ``timeout``,
        and this thread waits until the worker has been heard of.
        """
        request = self.requests.get()
        if request is None:
            return False
        *asked, deadline, left, label = request
        if not label.set_running_or_notify_cancel():
            return True
        deadline = min(deadline, max(left(), SHORTEST))
        end = time.monotonic() + PATIENCE * deadline
        try:
            try:
                label.set_result(decide(worker, tickets, asked, deadline, end))
            except TimeoutError:
                label.set_result("timeout")
                worker.settimeout(GRACE)
                worker.recv(4096)
        except OSError as error:
            worker.close()  # whoever asks it next is told, and starts new workers
            if not label.done():
                label.set_exception(error)
        return True

    def close(self) -> None:
        """End the processes and the threads. What waits for an answer gets OSError."""
        with self.lock:
            self.closed = True
            for _ in self.sockets:
                self.requests.put(None)
        for ours in self.sockets:
            with contextlib.suppress(OSError):  # wakes the thread that waits on it; may be disconnected already
                ours.shutdown(socket.SHUT_RDWR)
        self.process.kill()
        self.process.wait()


def decide(worker: socket.socket, tickets: Iterator[str], asked: list[str], deadline: float, end: float) -> Label:
    """Return a worker's label. It is killed at the deadline, which begins now.

    A worker that had less than ``SHARE`` of that time on a processor says more about the machine than about the answer: the
    next one tries again, until it has had twice that, or until the ``end``. Raises TimeoutError if nothing comes by then.
    """
    drain(worker)
    until, limit = time.monotonic() + deadline, deadline
    for ticket in tickets:
        worker.settimeout(max(end + LATE - time.monotonic(), 1e-3))
        worker.sendall(json.dumps([ticket, *asked, until, limit]).encode() + b"\n")
        label, seconds = receive(worker, ticket, end + LATE)
        if label != "timeout" or seconds >= SHARE * deadline or until == end:
            return label
        until, limit = end, 2 * SHARE * deadline
    raise AssertionError("tickets have no end")


def receive(worker: socket.socket, ticket: str, until: float) -> tuple[Label, float]:
    """Return the label of a request, and the processor time it took. Raises TimeoutError if there is none at that time."""
    while True:
        worker.settimeout(max(until - time.monotonic(), 1e-3))
        reply = worker.recv(4096).decode()
        if not reply:
            raise ConnectionResetError("the grading workers are gone")
        for line in reply.splitlines():
            *about, label, seconds = line.split()
            if about in ([], [ticket]):
                return label, float(seconds)  # type: ignore[return-value]


def drain(worker: socket.socket) -> None:
    """Discard what has arrived: the report on a worker that was killed while idle is not about the next request."""
    worker.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while worker.recv(4096):
            pass


_lock = threading.Lock()
_workers: Workers | None = None


def warm() -> Workers:
    """Start the workers, if they are not running, and wait until they answer. Raises RuntimeError if they cannot start.

    ``grade`` calls this itself. Call it early so that loading sympy, which takes seconds, delays nothing.
    """
    global _workers
    with _lock:
        if _workers is None:
            workers = Workers(WORKERS)
            try:
                failure = None if workers.ask("x+1", "1+x", START) == "correct" else f"no answer in {START:g} s"
            except OSError as error:
                failure = str(error)
            if failure:
                workers.close()
                raise RuntimeError(
                    f"the grading workers did not start ({failure}); their own message is above. "
                    f"Try: {sys.executable} -c 'import math_verify'"
                )
            _workers = workers
        return _workers


def shutdown(which: Workers | None = None) -> None:
    """End the workers, or these if they are still in use. The next grade starts new ones. This is also done at exit."""
    global _workers
    with _lock:
        workers = _workers if which in (None, _workers) else None
        if workers is not None:
            _workers = None
    if workers is not None:
        workers.close()


def ask_worker(gold: str, answer: str, deadline: float, left: Callable[[], float] = lambda: math.inf) -> Label:
    if deadline <= 0:
        raise ValueError(f"deadline must be a positive number of seconds, got {deadline}")
    for _ in range(2):  # once more if the workers were killed or shut down, which says nothing about this answer
        workers = warm()
        try:
            return workers.ask(for_parser(gold), for_parser(answer), deadline, left)
        except OSError:
            shutdown(workers)
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
