"""Work that data from outside asks for (a chat template is a program), in a child process with little time and memory."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path

SECONDS, MEMORY, TEXT = 2, 1 << 30, 1 << 20
"""What the work may take: seconds of processor time, bytes beyond what this process has, and characters of its result."""
WAIT = 60
"""Seconds until a child is given up that takes no processor time either."""


def confined(work: Callable[[], str]) -> str:
    """Return the text that ``work`` returns in a child process. Raises ValueError if it fails there, or takes too much."""
    here, there = socket.socketpair()
    child = os.fork()
    if child == 0:
        _answer(work, there)
    there.close()
    try:
        answer = _all(here)
    finally:
        here.close()
        os.kill(child, signal.SIGKILL)  # it has answered, or never will
        os.waitpid(child, 0)
    if not answer:
        raise ValueError(f"it takes more than {SECONDS} s of a processor or {MEMORY >> 20:,} MB")
    found = json.loads(answer)
    if "error" in found:
        raise ValueError(found["error"])
    return found["text"]


def _answer(work: Callable[[], str], to: socket.socket) -> None:
    """Do the work in the child, send what comes of it as JSON, and end the child."""
    try:
        limits = {resource.RLIMIT_CPU: SECONDS, resource.RLIMIT_CORE: 0}
        if (used := Path("/proc/self/statm")).exists():
            limits[resource.RLIMIT_AS] = int(used.read_text().split()[0]) * resource.getpagesize() + MEMORY
        for kind, most in limits.items():
            hard = resource.getrlimit(kind)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (most, most))
        try:
            text = work()
            found = {"text": text} if len(text) <= TEXT else {"error": f"it writes more than {TEXT:,} characters"}
        except Exception as error:  # whatever the data make the work do
            found = {"error": " ".join(str(error).split())[:400] or type(error).__name__}
        to.sendall(json.dumps(found).encode())
    finally:
        os._exit(0)


def _all(here: socket.socket) -> bytes:
    """Return what a child sends; nothing if it is not done in time."""
    here.settimeout(WAIT)
    data = b""
    try:
        while part := here.recv(1 << 16):
            data += part
    except TimeoutError:
        return b""
    return data
