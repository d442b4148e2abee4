"""Tasks and rewards that users bring. Their code runs under the grader's deadline, and its failures have a label.

Code from a file (``mine.py:Name``) runs in processes that can be killed, as the grader's does. If a function raises, its
rollout is an ``error``; if it takes too long, a ``timeout``. In both cases the reward is unknown, not 0. Each kind of
failure is logged once, with its traceback.
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from twofold import source as sources
from twofold.tasks import grading
from twofold.text.extract import final_answer
from twofold.types import Grade, Label, Problem

log = logging.getLogger(__name__)

DEADLINE = 1.0
"""Seconds of processor time that a call may take, as for the grader. What the file imports at its top is not counted."""
WALL = 30.0
"""Seconds on the clock after which a call that waits for something is given up."""
CORRECT = "correct"
"""The task's own reward, where rewards are named."""


class Failed(Exception):
    """A user's code gave no result. ``label`` is the label of its rollout."""

    def __init__(self, label: Label, report: str) -> None:
        super().__init__(report)
        self.label = label


class Once:
    """Logs each message the first time."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def __call__(self, message: str) -> None:
        if message not in self.seen:
            self.seen.add(message)
            log.error(message)


once = Once()


class Workers:
    """Processes that have loaded one source. ``call`` may be used from many threads."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.idle: queue.Queue[subprocess.Popen[bytes] | None] = queue.Queue()
        self.sockets: dict[int, socket.socket] = {}
        for _ in range(grading.WORKERS):
            self.idle.put(None)  # started when it is first needed

    def call(self, problem: Problem, text: str) -> Any:
        """Return the source's reply about this solution (``user_worker``). Raises Failed if there is none."""
        request = json.dumps([asdict(problem), text, DEADLINE]).encode() + b"\n"
        process = self.idle.get()
        try:
            process = process or self._start()
            reply = self._ask(process, request)
        except BaseException:
            self._end(process)
            process = None
            raise
        finally:
            self.idle.put(process)
        if "error" in reply:
            raise Failed("error", f"{self.source} failed:\n{reply['error']}")
        return reply

    def _start(self) -> subprocess.Popen[bytes]:
        ours, theirs = socket.socketpair()
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-P", "-m", "twofold.tasks.user_worker", self.source, str(theirs.fileno())]
        with theirs:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=2,  # what the code prints goes to stderr
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": path},
            )
        self.sockets[process.pid] = ours
        ours.settimeout(grading.START)
        if not ours.recv(1):  # ready, or it died of the file and has said why
            raise Failed("error", f"{self.source} cannot be loaded; its own message is above")
        return process

    def _ask(self, process: subprocess.Popen[bytes], request: bytes) -> dict[str, Any]:
        link = self.sockets[process.pid]
        link.settimeout(WALL)
        try:
            link.sendall(request)
            with link.makefile("rb") as replies:
                line = replies.readline()
        except TimeoutError as error:
            raise Failed("timeout", f"{self.source} waited more than {WALL:g} s and was stopped") from error
        if line:
            return json.loads(line)
        status = process.wait()
        if status == -signal.SIGPROF:
            raise Failed(
                "timeout",
                f"{self.source} took more than {DEADLINE:g} s of a processor and was stopped; import what it needs at the "
                f"top of its file, where no deadline runs",
            )
        raise Failed("error", f"{self.source} ended its process (exit status {status})")

    def _end(self, process: subprocess.Popen[bytes] | None) -> None:
        if process is not None:
            process.kill()
            process.wait()
            self.sockets.pop(process.pid).close()

    def close(self) -> None:
        for _ in range(grading.WORKERS):
            self._end(self.idle.get())
            self.idle.put(None)

    def __del__(self) -> None:
        for link in self.sockets.values():  # a worker ends when its socket is closed
            with suppress(OSError):
                link.close()


class Wrapper:
    """A task with another ``grade``."""

    def __init__(self, task: Any) -> None:
        self.task, self.name = task, task.name

    def problem(self, split: Any, i: int) -> Problem:
        return self.task.problem(split, i)


def inner(task: Any) -> Any:
    """Return the task itself, without the wrappers of its ``grade``."""
    return inner(task.task) if isinstance(task, Wrapper) else task


class FromSource(Wrapper):
    """A task from a user's file. It has ``name``, ``problem(split, i)`` and, if it grades in its own way, ``grade(problem, text)``.

    Without ``grade`` the final answer is compared with the problem's, as for any data set. Raises what ``source.load``
    raises, and TypeError for a class that is no task.
    """

    def __init__(self, source: str) -> None:
        super().__init__(instance(sources.load(source), source))
        self.workers = Workers(sources.pin(source)) if hasattr(self.task, "grade") else None

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        if self.workers is None:
            return final_answer(text), grading.grade(problem.answer, text)
        try:
            reply = self.workers.call(problem, text)
        except Failed as failed:
            once(str(failed))
            return None, Grade(None, failed.label)
        return reply["answer"], Grade(reply["reward"], reply["label"])


class Guarded(Wrapper):
    """A task that was given as a Python object. Its ``grade`` runs in a thread; as a thread cannot be killed, one that hangs
    is abandoned after ``WALL`` seconds."""

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        try:
            return in_time(self.task.grade, problem, text)
        except Failed as failed:
            once(str(failed))
            return None, Grade(None, failed.label)


class Rewarded(Wrapper):
    """A task whose reward is the weighted sum of users' functions, among which ``CORRECT`` is the task's own reward.

    A function takes (problem, text) and returns a number or a ``Grade``. The task decides whether a solution is correct,
    unless a function returns a ``Grade``: then the first such label counts.
    """

    def __init__(self, task: Any, functions: Sequence[str], weights: Sequence[float] = ()) -> None:
        if weights and len(weights) != len(functions):
            raise ValueError(f"reward names {len(functions)} functions, and reward_weights has {len(weights)} numbers")
        super().__init__(task)
        self.functions: list[Workers | None] = []
        for function in functions:
            if function != CORRECT:
                sources.load(function)  # says what is wrong with it before anything is sampled
            self.functions.append(None if function == CORRECT else Workers(sources.pin(function)))
        self.weights = list(weights) or [1.0] * len(functions)

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        answer, own = self.task.grade(problem, text)
        total, label = 0.0, None
        for workers, weight in zip(self.functions, self.weights, strict=True):
            reward = own.reward
            if workers is not None:
                try:
                    reply = workers.call(problem, text)
                except Failed as failed:
                    once(str(failed))
                    return answer, Grade(None, failed.label)
                reward, label = reply["reward"], label or reply["label"]
            if reward is None:
                return answer, Grade(None, label or own.label)
            total += weight * reward
        return answer, Grade(total, label or own.label)


def in_time(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns. Raises Failed if it raises or takes more than ``WALL`` seconds."""
    results: list[Any] = []
    errors: list[str] = []

    def run() -> None:
        try:
            results.append(function(*arguments))
        except Exception:  # whatever users' code raises
            errors.append(traceback.format_exc())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(WALL)
    name = getattr(function, "__qualname__", str(function))
    if errors:
        raise Failed("error", f"{name} failed:\n{errors[0]}")
    if not results:
        raise Failed("timeout", f"{name} took more than {WALL:g} s")
    return results[0]


def instance(found: Any, source: str) -> Any:
    """Return the task that a source names by its class or as an object. Raises TypeError for something else."""
    task = found() if isinstance(found, type) else found
    if missing := [name for name in ("name", "problem") if not hasattr(task, name)]:
        raise TypeError(f"{source} is no task: it has no {' and no '.join(missing)}")
    return task


def said(result: Any) -> dict[str, Any]:
    """Return a reward function's result as plain values. Raises TypeError or ValueError for a result that is no reward."""
    if isinstance(result, Grade):
        if result.label not in get_args(Label):
            raise ValueError(f"a Grade's label is one of {', '.join(get_args(Label))}, not {result.label!r}")
        reward, label = result.reward, result.label
    else:
        reward, label = result, None
    if reward is not None or label is None:
        if not isinstance(reward, int | float):
            raise TypeError(f"a reward is a number or a Grade, not {reward!r}")
        if not math.isfinite(reward):
            raise ValueError(f"a reward must be finite, not {reward}")
        reward = float(reward)
    return {"reward": reward, "label": label}
