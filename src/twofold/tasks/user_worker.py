"""One process of ``tasks.user.Workers``: ``python -m twofold.tasks.user_worker SOURCE FD``.

It loads the source, reports that with one byte, and then answers requests on the socket, each a line of JSON:

    ->  [problem, text, seconds]
    <-  {"answer": ..., "reward": ..., "label": ...}   or   {"error": TRACEBACK}

The kernel kills the process in a call that takes more than its seconds of processor time, even inside C code.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

from twofold import source
from twofold.tasks.user import instance, said
from twofold.types import Problem


def answered(name: str) -> Callable[[Problem, str], dict[str, Any]]:
    """Return the function to call: a reward, or the ``grade`` of a task."""
    found = source.load(name)
    if not isinstance(found, type) and not hasattr(found, "grade"):
        return lambda problem, text: said(found(problem, text))
    task = instance(found, name)

    def grade(problem: Problem, text: str) -> dict[str, Any]:
        answer, result = task.grade(problem, text)
        return {"answer": answer} | said(result)

    return grade


def main(name: str, fd: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    call = answered(name)
    with socket.socket(fileno=fd) as link, link.makefile("rb") as requests:
        link.sendall(b".")
        for line in requests:
            problem, text, seconds = json.loads(line)
            try:
                signal.setitimer(signal.ITIMER_PROF, seconds)
                reply = call(Problem(**problem), text)
            except Exception:  # whatever users' code raises; the caller logs it
                reply = {"error": traceback.format_exc()}
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            link.sendall(json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
