r"""Decide whether two answers are mathematically equal, by math-verify, in processes that can be killed.

``grading`` runs this file as a script, one socket per worker: ``python equality.py FD FD ...``. The script loads
math-verify once and forks one worker per socket. It imports nothing of twofold, and a worker is never the child of a
process that holds a model. A socket has one request at a time, JSON in and words out, with no pickle in either direction:

    ->  [ticket, gold, answer, until, limit]    until: a time of the system's monotonic clock; limit: processor seconds
    <-  ticket label seconds                    label: correct | wrong | error; seconds: processor time that it took
    <-  timeout seconds | error seconds         the worker died of this request; a new one takes its place

The kernel keeps the deadline. A worker sets two timers, of the clock and of its processor time. Nobody handles their signals,
so they kill it even inside a big-integer power that never returns to Python. Its parent sees that, reports it on the socket
and forks the next worker (milliseconds). Closing the sockets ends everything, however the other side died.
"""

from __future__ import annotations

import importlib
import json
import logging
import mmap
import os
import pkgutil
import re
import resource
import signal
import sys
import time
from dataclasses import replace
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import QQ, Eq, Expr, Float, Integer, Intersection, Number, Rational, Set, Symbol, Union, ring, simplify, symbols
from sympy.parsing import sympy_parser

MEMORY = 1 << 30  # bytes of address space a worker may have
LIFETIME = 1_000  # requests that a worker answers before a new one replaces it, because sympy's caches grow
TIMERS = {signal.SIGALRM, signal.SIGPROF}
RECYCLE = 10  # exit status of a worker that reached its LIFETIME
# Units are gone (``text.notation``): those of math-verify take the h of a cylinder's volume for one.
NORMAL = replace(LatexExtractionConfig().normalization_config, units=False)
CONFIG = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=NORMAL)]  # plain text would be run by eval
JOINED = (
    (
        re.compile(r"\\(?:text|mbox|textrm|mathrm)\s*\{\s*,?\s*or\s*\}|(?<![A-Za-z\\])or(?![A-Za-z])|\\(?:lor|vee)\b"),
        Union,
    ),
    (
        re.compile(
            r"\\(?:text|mbox|textrm|mathrm)\s*\{\s*,?\s*and\s*\}|(?<![A-Za-z\\])and(?![A-Za-z])|\\(?:land|wedge)\b"
        ),
        Intersection,
    ),
)
NUMERAL = re.compile(r"\d+|-?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")
INEQUALITY = re.compile(r"[<>]|\\(?:leq?|geq?|neq?|lt|gt)(?![A-Za-z])|!=")


def numeral(text: str, **_: Any) -> Number:
    """Return a numeral's value. In the workers it takes the place of sympy's ``parse_expr``, which runs the text as Python code."""
    if not NUMERAL.fullmatch(digits := text.replace(",", "")):
        raise SyntaxError(f"no numeral: {text[:100]}")
    return Integer(int(digits)) if digits.isdecimal() else Float(digits)


def read(answer: str) -> list[Any]:
    """Return the parsed answer, or [] if it cannot be read. Inequalities that "or" or "and" joins are read as one set."""
    for word, join in JOINED:
        parts = word.split(answer)
        if len(parts) > 1 and INEQUALITY.search(answer):
            sets = [as_set(found[0]) if (found := read(part.strip(" ,"))) else None for part in parts]
            if None not in sets:
                return [join(*sets)]
    boxed = "\\boxed{" + answer + "}"
    return parse(boxed, extraction_config=CONFIG, fallback_mode="no_fallback", parsing_timeout=None)


def as_set(found: Any) -> Any:
    """Return the numbers that a relation in one unknown admits, as a set, or a set as it is; None if it is neither."""
    if isinstance(found, Eq) and isinstance(found.rhs, Set):
        found = found.rhs
    try:
        return found if isinstance(found, Set) else found.as_set()
    except (AttributeError, NotImplementedError, TypeError, ValueError):  # no relation, or one that sympy cannot solve
        return None


def judge(gold: str, answer: str) -> str:
    """Return the label. A reference that cannot be read is an ``error``; an answer that cannot be read is wrong."""
    golds = read(gold)
    if not golds:
        return "error"
    answers = read(answer)
    percent = "%" in gold + answer  # 50% may stand for 50 and for 0.5
    if not percent and all(differ_somewhere(g, a) for g in golds for a in answers):
        return "wrong"
    equal = verify(golds, answers, timeout_seconds=None, allow_set_relation_comp=True)
    if equal and not percent:
        equal = any(confirmed(g, a) for g in golds for a in answers)
    return "correct" if equal else "wrong"


POINTS = (
    [Rational(k * k + 3, 7 * k + 5) for k in range(1, 40)],
    [Rational(5 * k + 3, 2 * k * k + 9) for k in range(1, 40)],
)


def differ_somewhere(gold: Any, answer: Any) -> bool:
    """Return whether two formulas have different values at a point. It takes milliseconds; simplifying their difference, seconds.

    False where the values decide nothing: relations, sets, words (single symbols), unknown functions, no finite value.
    """
    if not all(isinstance(e, Expr) and not isinstance(e, Symbol) for e in (gold, answer)):
        return False
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=lambda symbol: symbol.name)
    for point in POINTS:
        values = dict(zip(symbols, point, strict=False))  # more than 39 symbols: some keep no value, so not a number
        a, b = gold.evalf(15, subs=values), answer.evalf(15, subs=values)
        if not (is_finite(a) and is_finite(b)):
            return False
        if abs(a - b) > 1e-5 * max(abs(a), abs(b)):
            return True
    return False


def confirmed(gold: Any, answer: Any) -> bool:
    """Return whether two answers that math-verify calls equal are equal on a second look.

    Numbers must agree relatively, because math-verify rounds to 6 places and takes all tiny numbers for equal. Two equations
    must be multiples of one another, because math-verify compares only what it can solve for.
    """
    if gold == answer:
        return True
    if isinstance(gold, Eq) and isinstance(answer, Eq):
        ratio = simplify((gold.lhs - gold.rhs) / (answer.lhs - answer.rhs))
        return bool(ratio.is_number and ratio.is_finite and ratio.is_zero is False)
    if all(isinstance(e, Expr) and e.is_number for e in (gold, answer)):
        a, b = gold.evalf(20), answer.evalf(20)
        return not (is_finite(a) and is_finite(b)) or bool(abs(a - b) <= 1e-6 * max(abs(a), abs(b)))
    return True


def is_finite(value: Any) -> bool:
    """Return whether this is a number, real or complex: not nan, zoo or a formula that kept a symbol."""
    return bool(value.is_number and value.is_finite)


def refuse(event: str, args: tuple[Any, ...]) -> None:
    """Refuse whatever Python reports to audit hooks: to open a file, import, compile or run code, start a process, use a socket.

    Mathematics needs none of it. The audit hook of a worker.
    """
    if event not in ("builtins.id", "object.__getattr__", "sys._getframe"):
        raise PermissionError(f"a grading worker tried {event}")


def work(fd: int, start: memoryview) -> int:
    """Answer the requests on one socket; return the exit status. ``start[0]``: this process's seconds when a request begins."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with open(fd, encoding="utf-8", closefd=False) as requests:
        sys.addaudithook(refuse)
        for _ in range(LIFETIME):
            line = requests.readline()
            if not line:
                return 0
            ticket, gold, answer, until, limit = json.loads(line)
            start[0] = time.process_time()
            signal.setitimer(signal.ITIMER_REAL, max(until - time.monotonic(), 1e-6))
            signal.setitimer(signal.ITIMER_PROF, limit)
            label = judge(gold, answer)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            os.write(fd, f"{ticket} {label} {time.process_time() - start[0]}\n".encode())
    return RECYCLE


def fork(fd: int, others: list[int], start: memoryview) -> int:
    """Start a worker on ``fd`` and return its pid. It closes the other workers' sockets, so that each sees its own one close."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        for other in others:
            os.close(other)
        status = work(fd, start)
    finally:  # also after an exception, which the parent reports by the status
        os._exit(status)


# sympy imports parts of itself late, which a worker may not do: all of these packages is imported at the start.
LATE = ("calculus", "concrete", "functions", "integrals", "matrices", "ntheory", "physics.units", "polys", "series", "sets", "simplify", "solvers")
# It also compiles its own functions for polynomials when it meets the first one in so many variables.
VARIABLES = 12
# The first formula of a kind takes the LaTeX parser half a second where later ones take milliseconds. These pairs are judged
# once, before the workers are forked, which inherit the result.
WARM = (
    (r"\frac{a_{1} M^{1/3}}{G \cdot M^{2/3}+b}", r"\left(1+r/r_{0}\right)^{3/2} \times \frac12"),
    (r"\sqrt{4 \pi G \rho_{0} r^2} - \sqrt[3]{x}", r"A e^{-2t} + C_{1} \cos(\omega t) - \sin^{2} \theta"),
    (r"\log_{10} 2 + \ln 3 - \log(x)", r"\binom{2n}{n} + n! - |x-1|"),
    (r"x^2+1 \leq 3", r"(-\infty, 5) \cup [6, 7]"),
    (r"x<5", r"(-\infty, 5)"),
    (r"3x-y+13=0", r"6x-2y+26=0"),
    (r"\{1, \frac{1}{2}\}", r"1, 2 \text{ and } 3"),
    (r"(1, -2)", r"\begin{pmatrix} 1 \\ -2 \end{pmatrix}"),
    (r"\pm 2", r"90^{\circ}"),
    (r"50\%", r"10 \text{ cm}"),
    (r"\frac{d v}{d t}", r"\sum_{k=1}^{n} k"),
)


def prepare() -> None:
    """Load and compile all that the workers will need."""
    for package in (importlib.import_module(f"sympy.{name}") for name in LATE):
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    for n in range(1, VARIABLES + 1):
        ring(symbols(f"x:{n}"), QQ)
    sympy_parser.parse_expr = numeral  # sympify reads all strings by it, those of the LaTeX parser too
    for gold, answer in WARM:
        judge(gold, answer)


def main(fds: list[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    for timer in TIMERS:
        signal.signal(timer, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TIMERS)
    sys.dont_write_bytecode = True
    sys.stdin.close()
    logging.disable(logging.CRITICAL)
    prepare()
    starts = {fd: memoryview(mmap.mmap(-1, 8)).cast("d") for fd in fds}  # shared with the workers
    workers = {fork(fd, [other for other in fds if other != fd], starts[fd]): fd for fd in fds}
    while workers:
        pid, status, usage = os.wait4(-1, 0)
        fd = workers.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        seconds = usage.ru_utime + usage.ru_stime - starts[fd][0]
        try:
            if -code in TIMERS:
                os.write(fd, f"timeout {seconds}\n".encode())
            elif code not in (0, RECYCLE):
                os.write(fd, f"error {seconds}\n".encode())
        except OSError:  # nobody is listening any more
            code = 0
        if code == 0:
            os.close(fd)
        else:
            starts[fd][0] = 0.0
            workers[fork(fd, list(workers.values()), starts[fd])] = fd


if __name__ == "__main__":
    main([int(fd) for fd in sys.argv[1:]])
