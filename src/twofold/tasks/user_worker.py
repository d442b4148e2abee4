"""A process of ``workers.Workers``: ``python -m twofold.tasks.user_worker FD``.

It answers requests on the socket, each a line of JSON. The first names the source, the others are calls:

    ->  ["task" or "reward", source]                            <-  {"result": null}
    ->  [[id, question, answer, meta], text, seconds]           <-  {"result": [answer, reward, label]}
                                                          or either <-  {"error": TRACEBACK, "kind": TYPE at FILE:LINE}

A reward function has no answer, and no label if it returns a number. The kernel kills the process in a call that takes more
than its seconds of processor time, even inside C code.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from twofold import source
from twofold.tasks.user import answer_and_grade, instance, reward_and_label
from twofold.tasks.workers import described
from twofold.types import Problem


def load(role: str, name: str) -> Callable[[Problem, str], list[Any]]:
    """Return the function that answers calls: with a reward function, or with a task's ``grade``."""
    found = source.load(name)
    if role == "reward":
        return lambda problem, text: [None, *reward_and_label(found(problem, text))]
    task = instance(found, name)

    def grade(problem: Problem, text: str) -> list[Any]:
        answer, result = answer_and_grade(task.grade(problem, text))
        return [answer, result.reward, result.label]

    return grade


def main(fd: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with socket.socket(fileno=fd) as link, link.makefile("rb") as requests:
        call = None
        for line in requests:
            request = json.loads(line)
            try:
                if call is None:
                    call, result = load(*request), None
                else:
                    problem, text, seconds = request
                    signal.setitimer(signal.ITIMER_PROF, seconds)
                    result = call(Problem(*problem), text)
                reply: dict[str, Any] = {"result": result}
            except Exception as error:  # whatever users' code raises; the asking process logs it
                report, kind = described(error)
                reply = {"error": report, "kind": kind}
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            link.sendall(json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
