"""A process of ``sandbox``: ``python -s -S -P sandbox_worker.py FD``. It runs a model's programs, each in a child of its own.

Every message on the socket FD is a new socket, with which the child answers one request, a JSON object of ``program``,
``function``, ``inputs`` (lists of arguments) and ``seconds``:

    +[[VALUE], [], ...]     isolated; a list per input, which is empty where the call raised or returned no JSON
    +                       isolated; the program raised at its top level
    !REASON                 it could not be isolated, and nothing was run

Then this process writes the child's exit status to FD. It never reads what the child got or wrote, so that a child, which
begins as a copy of this process, finds nothing of earlier programs.

A child can do no more than compute. Before it runs a line of the program it closes everything but its socket, limits its
memory and processor time, and installs a seccomp filter that refuses (EPERM) all system calls but those in ``CALLS``: it
cannot open a file, make a socket, start a process or a thread, send a signal, or wait for anything. It needs no rights for
this, and no program can lift it. Where the kernel allows, namespaces without a network stand behind it.

This file is started by its path and imports nothing of twofold: no task, and no test, is in its memory.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import platform
import random
import resource
import signal
import socket
import struct
import sys
from typing import Any, NoReturn

MODULES = (
    "abc array bisect calendar cmath collections contextlib copy dataclasses datetime decimal enum fractions functools heapq "
    "io itertools json math numbers operator random re statistics string textwrap time types typing"
)
"""What programs may import, beside what Python itself has loaded: files cannot be read later."""
MEMORY = 512 << 20
"""Bytes of address space."""
CALLS = {
    "x86_64": (0xC000003E, {
        "write": 1, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "mremap": 25, "exit": 60,
        "gettimeofday": 96, "time": 201, "clock_gettime": 228, "clock_getres": 229, "exit_group": 231, "getrandom": 318,
    }),
    "aarch64": (0xC00000B7, {
        "write": 64, "exit": 93, "exit_group": 94, "clock_gettime": 113, "clock_getres": 114, "gettimeofday": 169,
        "brk": 214, "munmap": 215, "mremap": 216, "mmap": 222, "mprotect": 226, "getrandom": 278,
    }),
}  # fmt: skip
"""Machine -> its number in audit.h, and the system calls that stay."""
LINK = 3
"""The file descriptor on which a child answers. The standard ones are /dev/null."""
NO_NEW_PRIVS, SET_SECCOMP, FILTER = 38, 22, 2  # of prctl(2)
CAPABILITIES = 0x20080522  # version 3 of capset(2)
UNSHARE = 0x10000000 | 0x40000000 | 0x08000000  # namespaces of users, network and System V IPC

libc = ctypes.CDLL(None, use_errno=True)
libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def bpf(machine: str) -> bytes:
    """Return the filter, in the kernel's classic BPF. A call through another ABI of the machine, such as int 0x80, kills."""
    audit, calls = CALLS[machine]
    load, equal, give = 0x20, 0x15, 0x06  # BPF_LD | W | ABS, BPF_JMP | JEQ | K, BPF_RET | K
    kill, refuse, allow = 0x80000000, 0x00050001, 0x7FFF0000  # RET_KILL_PROCESS, RET_ERRNO | EPERM, RET_ALLOW
    lines = [(load, 0, 0, 4), (equal, 1, 0, audit), (give, 0, 0, kill), (load, 0, 0, 0)]
    numbers = sorted(calls.values())
    lines += [(equal, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    return b"".join(struct.pack("=HBBI", *line) for line in [*lines, (give, 0, 0, refuse), (give, 0, 0, allow)])


def isolate(seconds: float) -> None:
    """Leave this process nothing but its first four file descriptors and computing. Raises OSError if that cannot be had."""
    if platform.machine() not in CALLS:
        raise OSError(f"system calls of {platform.machine()} are not known, only those of {', '.join(CALLS)}")
    program = bpf(platform.machine())
    os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    limits = {"AS": MEMORY, "CPU": int(seconds) + 1, "FSIZE": 0, "NOFILE": 0, "NPROC": 0, "CORE": 0}
    for name, most in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    code = ctypes.create_string_buffer(program)
    fprog = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    _must("capset", libc.capset(struct.pack("=Ii", CAPABILITIES, 0), bytes(24)))  # of root: a process without them
    _must("PR_SET_NO_NEW_PRIVS", libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0))
    _must("PR_SET_SECCOMP", libc.prctl(SET_SECCOMP, FILTER, ctypes.addressof(fprog), 0, 0))


def _must(name: str, result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"the kernel refuses {name}: {os.strerror(ctypes.get_errno())}")


def outputs(program: str, function: str, inputs: list[str]) -> str:
    """Return the text of the outputs. Raises whatever the program raises at its top level."""
    space: dict[str, Any] = {"__name__": "solution"}
    exec(compile(program, "solution", "exec"), space)
    texts = []
    for arguments in inputs:
        try:
            texts.append(json.dumps([space[function](*json.loads(arguments))]))
        except BaseException:  # whatever the program raises, SystemExit too
            texts.append("[]")
    return f"[{', '.join(texts)}]"


def child(link: int, null: int) -> NoReturn:
    """Answer the request on ``link``, and end."""
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.dup2(link, LINK)
    try:
        with open(LINK, "rb", closefd=False) as stream:
            request = json.load(stream)
        inputs = [json.dumps(arguments) for arguments in request["inputs"]]
        random.seed(0)  # a program that draws has the same outputs in every process
        isolate(request["seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        os.write(LINK, f"!{error}".encode())
        os._exit(1)
    try:
        os.write(LINK, b"+")
        reply = outputs(request["program"], request["function"], inputs).encode()
        while reply:
            reply = reply[os.write(LINK, reply) :]
    except BaseException:  # as above; the reply stays without outputs
        os._exit(1)
    os._exit(0)


def main(fd: int) -> None:
    for number in (signal.SIGPROF, signal.SIGCHLD):  # whatever the process that started this one does with them
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for name in MODULES.split():
        importlib.import_module(name)
    null = os.open(os.devnull, os.O_RDWR)
    gc.freeze()  # what a child does not touch stays shared
    libc.unshare(UNSHARE)  # where it is not allowed, the filter stands alone
    with socket.socket(fileno=fd) as control:
        while fds := socket.recv_fds(control, 1, 1)[1]:
            pid = os.fork()
            if pid == 0:
                child(fds[0], null)
            os.close(fds[0])
            control.sendall(struct.pack("=i", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))


if __name__ == "__main__":
    main(int(sys.argv[1]))
