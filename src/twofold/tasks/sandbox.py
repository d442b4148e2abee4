"""Run a model's programs where they can do nothing but compute: ``call``. See ``sandbox_worker`` for how they are isolated.

What a program is to return never enters its process. Only its outputs come back, as JSON, to be compared here: so whatever
a program writes, a result is right only if it knew the result.

``check`` tries out that nothing gets through. Where programs cannot be isolated it raises ``Unsafe``, and so does ``call``:
there is no weaker mode.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from twofold.tasks import grading

DEADLINE = 1.0
"""Seconds of processor time that a program may take, for all its inputs together."""
WALL = 120.0
"""Seconds on the clock after which a silent process counts as broken. A program cannot wait, so only a busy machine does."""
MAX_PROGRAM = 20_000
"""Characters of a program. A longer one is not run."""
MAX_REPLY = 1 << 20
"""Bytes of outputs. More are not read."""
WORKER = Path(__file__).with_name("sandbox_worker.py")

PROBE = """
import ctypes, os, socket
def probe(pid):
    def refused(action):
        try:
            action()
        except PermissionError:
            return True
        except Exception:
            return False
        return False
    actions = {
        "read files": lambda: os.open("/", os.O_RDONLY),
        "make a socket": lambda: socket.socket(),
        "start a process": lambda: os.fork() or os._exit(0),
        "send a signal": lambda: os.kill(pid, 0),
        "wait": lambda: os.read(0, 1),
    }
    return [name for name, action in actions.items() if not refused(action)]
"""


class Unsafe(OSError):
    """Programs cannot be isolated on this machine, so none is run."""


class Broken(Exception):
    """A process of the sandbox is gone; nothing is known of the program that it ran."""


def call(program: str, function: str, inputs: Sequence[Sequence[Any]], *, seconds: float = DEADLINE) -> list[list[Any]]:
    """Return the outputs of a program's function: for each list of arguments [value], or [] if the call gave none.

    A value is JSON (a tuple becomes a list). The list is empty if the program has no such outputs at all. May be called from
    many threads. Raises TimeoutError if the program took more than ``seconds`` of processor time, Broken if its process was
    ended from outside, and Unsafe if it could not be isolated.
    """
    if len(program) > MAX_PROGRAM:
        return []
    asked = {"program": program, "function": function, "inputs": inputs, "seconds": seconds}
    reply, status = _answered(json.dumps(asked).encode())
    if status == -signal.SIGPROF:
        raise TimeoutError(f"the program took more than {seconds:g} s of a processor")
    if reply[:1] == b"!":
        raise Unsafe(f"{_WHY}: {reply[1:].decode(errors='replace')}")
    if status == -signal.SIGKILL or not reply:
        raise Broken(f"the process that ran the program ended (exit status {status})")
    if len(reply) > MAX_REPLY:
        return []
    try:
        found = json.loads(reply[1:])
    except (ValueError, RecursionError):  # nothing, or what the program itself wrote
        return []
    return found if isinstance(found, list) else []


@cache
def check() -> None:
    """Raise Unsafe unless programs are isolated here: a program that tries to get out must be refused every time."""
    if sys.platform != "linux":
        raise Unsafe(f"{_WHY}: this is {sys.platform}")
    try:
        if possible := call(PROBE, "probe", [[os.getpid()]], seconds=10.0)[0][0]:
            raise Unsafe(f"{_WHY}: a program could {', '.join(possible)}")
        call("while True: pass", "f", [], seconds=0.01)
    except TimeoutError:
        return
    except (Broken, IndexError) as error:
        raise Unsafe(f"{_WHY}: its process does not answer as it should ({error}) on {platform.machine()}") from error
    raise Unsafe(f"{_WHY}: an endless program was not stopped")


_WHY = (
    "model-written programs run only where they can be isolated, which needs Linux on x86_64 or aarch64 and a kernel that "
    "lets a process install a seccomp filter (CONFIG_SECCOMP_FILTER)"
)


class _Process:
    """A ``sandbox_worker``. It ends when its socket is closed."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                # -P, -S and -s: no file of this folder or of a user can hide a module; the environment has no secrets
                [sys.executable, "-P", "-S", "-s", str(WORKER), str(theirs.fileno())],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()], cwd="/",
                env={"PYTHONHASHSEED": "0"}, start_new_session=True,
            )  # fmt: skip
        self.control.settimeout(WALL)

    def ask(self, request: bytes) -> tuple[bytes, int]:
        """Return the reply and the exit status of the child. Raises OSError if this process is gone or silent."""
        ours, theirs = socket.socketpair()
        with ours:
            ours.settimeout(WALL)
            with theirs:
                socket.send_fds(self.control, [b"."], [theirs.fileno()])
            reply = b""
            with suppress(ConnectionError):  # the child may end early
                ours.sendall(request)
                ours.shutdown(socket.SHUT_WR)
                while len(reply) <= MAX_REPLY and (part := ours.recv(1 << 16)):
                    reply += part
        status = self.control.recv(4, socket.MSG_WAITALL)
        if len(status) < 4:
            raise ConnectionResetError("it ended")
        return reply, struct.unpack("=i", status)[0]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.control.close()


@cache
def _idle(pid: int) -> queue.Queue[_Process | None]:
    """Return the queue of this process's workers; None stands for one that is not started yet. A fork has its own."""
    idle: queue.Queue[_Process | None] = queue.Queue()
    for _ in range(grading.WORKERS):
        idle.put(None)
    return idle


def _answered(request: bytes) -> tuple[bytes, int]:
    idle = _idle(os.getpid())
    process = idle.get()
    try:
        process = process or _Process()
        return process.ask(request)
    except BaseException as error:
        if process is not None:
            process.end()
            process = None
        if isinstance(error, OSError):
            raise Broken(f"a process of the sandbox is gone: {error}") from error
        raise
    finally:
        idle.put(process)
