"""Call users' code under a deadline: in processes that can be killed (``Workers``), or in a thread (``in_time``).

A call that gives no result raises ``Failed``, whose label is ``timeout`` or ``error``.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from twofold.tasks import grading
from twofold.types import Label, Problem

PROCESSES = min(8, max(2, os.cpu_count() or 2))
DEADLINE = 1.0
"""Seconds of processor time that a call may take. What the file imports at its top is not counted."""
WALL = 30.0
"""Seconds on the clock after which a call that waits for something is given up."""


class Failed(Exception):
    """A user's code gave no result. ``label`` is the label of its rollout; failures of one ``kind`` are logged once."""

    def __init__(self, label: Label, report: str, kind: str = "") -> None:
        super().__init__(report)
        self.label, self.kind = label, kind or report


class Workers:
    """Processes that have loaded one source, as a task or as a reward. ``call`` may be used from many threads."""

    def __init__(self, role: Literal["task", "reward"], source: str) -> None:
        self.role, self.source = role, source
        self.broken = ""  # why the source cannot be loaded in a worker, once that is known
        self.idle: queue.Queue[Worker | None] = queue.Queue()
        for _ in range(PROCESSES):
            self.idle.put(None)  # started when it is first needed

    def call(self, problem: Problem, text: str) -> Any:
        """Return the source's result for this solution (see ``user_worker``). Raises Failed if there is none."""
        request = self._request(problem, text)
        worker = self.idle.get()
        try:
            worker = worker or self._start()
            reply = worker.ask(request, WALL)
        except BaseException:
            if worker is not None:
                worker.end()
            worker = None
            raise
        finally:
            self.idle.put(worker)
        if "error" in reply:
            raise Failed("error", f"{self.source} failed:\n{reply['error']}", f"{self.source} {reply['kind']}")
        return reply["result"]

    def _request(self, problem: Problem, text: str) -> bytes:
        """Return the line that asks for a call. Raises Failed for a problem that is no JSON, and names the entry of its meta."""
        try:
            return _line([[problem.id, problem.question, problem.answer, dict(problem.meta)], text, DEADLINE])
        except (TypeError, ValueError) as error:
            key = next((k for k, v in problem.meta.items() if not _is_json({k: v})), None)
            where = f"{self.source} runs in another process, to which problem.meta[{key!r}] cannot be sent as JSON"
            raise Failed("error", f"{where}: {error}", where) from error

    def _start(self) -> Worker:
        """Return a new worker. Raises Failed if it cannot load the source; nothing tries that again."""
        if not self.broken:
            worker = Worker(self.source)
            try:
                loaded = worker.ask(_line([self.role, self.source]), grading.START)
            except Failed as failed:
                loaded = {"error": str(failed)}
            if "error" not in loaded:
                return worker
            worker.end()
            self.broken = f"{self.source} cannot be loaded in a process of its own:\n{loaded['error']}"
        raise Failed("error", self.broken, f"{self.source} cannot be loaded")


class Worker:
    """A process of ``user_worker``. It ends when its socket is closed."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.link, theirs = socket.socketpair()
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-P", "-m", "twofold.tasks.user_worker", str(theirs.fileno())]
        with theirs:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=2,  # what the code prints goes to stderr
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": path},
            )

    def ask(self, request: bytes, seconds: float) -> dict[str, Any]:
        """Return the reply to a request, a line. Raises Failed if none comes within these seconds on the clock."""
        line = b""
        self.link.settimeout(seconds)
        try:
            # the process may have ended since the last request
            with suppress(ConnectionError), self.link.makefile("rb") as replies:
                self.link.sendall(request)
                line = replies.readline()
            if line.endswith(b"\n"):
                return json.loads(line)
            status = self.process.wait(seconds)
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            raise Failed("timeout", f"{self.source} waited more than {seconds:g} s and was stopped") from error
        if status == -signal.SIGPROF:
            late = f"took more than {DEADLINE:g} s of a processor and was stopped"
            raise Failed("timeout", f"{self.source} {late}; what its file imports at the top has no deadline")
        raise Failed("error", f"{self.source} ended its process (exit status {status})")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.link.close()


def _line(request: Any) -> bytes:
    return json.dumps(request).encode() + b"\n"


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def in_time(name: str, function: Callable[[], Any]) -> Any:
    """Return what a function returns. Raises Failed if it raises or takes more than ``WALL`` seconds."""
    results: list[Any] = []
    failures: list[Failed] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # whatever users' code raises, sys.exit() too
            report, kind = described(error)
            failures.append(Failed("error", f"{name} failed:\n{report}", f"{name} {kind}"))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(WALL)
    if failures:
        raise failures[0]
    if not results:
        raise Failed("timeout", f"{name} took more than {WALL:g} s")
    return results[0]


def described(error: BaseException) -> tuple[str, str]:
    """Return an exception's traceback, and its kind: its type and the line that raised it, without its text."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return "".join(
        traceback.format_exception(error)
    ).rstrip(), f"{type(error).__name__} at {last.filename}:{last.lineno}"
