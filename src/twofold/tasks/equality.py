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
from sympy import (
    QQ,
    And,
    Basic,
    Eq,
    Expr,
    Float,
    I,
    Integer,
    Intersection,
    MatrixBase,
    Number,
    Rational,
    Set,
    Symbol,
    Union,
    ring,
    simplify,
    symbols,
)
from sympy.core.relational import Relational
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
APPROXIMATELY = re.compile(r"\\approx(?![A-Za-z])")
DECIMAL = re.compile(r"-?\d*(?:\.(\d+))?")
INEQUALITY = re.compile(r"[<>]|\\(?:leq?|geq?|neq?|lt|gt)(?![A-Za-z])|!=")


def numeral(text: str, **_: Any) -> Number:
    """Return a numeral's value. In the workers it takes the place of sympy's ``parse_expr``, which runs the text as Python code."""
    if not NUMERAL.fullmatch(digits := text.replace(",", "")):
        raise SyntaxError(f"no numeral: {text[:100]}")
    return Integer(int(digits)) if digits.isdecimal() else Float(digits)


def read(answer: str) -> list[Any]:
    """Return the readings of an answer, or [] if it cannot be read. Inequalities that "or" or "and" joins are read as one set."""
    for word, join in JOINED:
        parts = word.split(answer)
        if len(parts) > 1 and INEQUALITY.search(answer):
            sets = [as_set(found[0]) if (found := read(part.strip(" ,"))) else None for part in parts]
            if None not in sets:
                return [join(*sets)]
    if APPROXIMATELY.search(answer):
        return rounded(*(part.strip() for part in APPROXIMATELY.split(answer)))
    boxed = "\\boxed{" + answer + "}"
    found = parse(boxed, extraction_config=CONFIG, fallback_mode="no_fallback", parsing_timeout=None)
    return [value for one in found if (value := settled(named(one))) is not None]


def named(found: Any) -> Any:
    """Return what was read with one symbol for each name, and with the imaginary unit for i. The parser's depend on the text."""
    symbols = found.free_symbols if isinstance(found, Basic | MatrixBase) else set()
    names = {s: I if s.name == "i" else Symbol(s.name, real=True) for s in symbols if isinstance(s, Symbol)}
    if all(symbol == name for symbol, name in names.items()):
        return found
    if isinstance(found, Relational):  # as it was read: nothing may decide that it is true or false
        return found.func(named(found.lhs), named(found.rhs), evaluate=False)
    if found.has(Relational):
        return found.func(*map(named, getattr(found, "_unsorted_args", found.args)))
    return found.xreplace(names)


def rounded(*parts: str) -> list[Any]:
    r"""Return the readings of "value \approx decimal", or [] if the decimal is not the rounded value: 5 \approx 6."""
    found = [(part, values[0]) for part in parts if (values := read(part)) and not isinstance(values[0], Symbol)]
    if not found or len(found) < len(parts) - 1:  # the name of the value may stand first
        return []
    exact = found[0][1]
    for part, value in found[1:]:
        decimal = DECIMAL.fullmatch(part)
        distance = (value - exact).evalf(20) if isinstance(value, Expr) and isinstance(exact, Expr) else None
        half = Rational(1, 2 * 10 ** len(decimal[1] or "")) if decimal else 0
        if not (distance is not None and distance.is_comparable and abs(distance) <= half):
            return []
    return [value for _, value in found]


def settled(found: Any) -> Any:
    """Return what an equation or a chain of them says: 5 for 2+3=5, x=5 for 5=x and for x=2+3=5; None for 5=6, as it is not so."""
    equations = getattr(found, "_unsorted_args", found.args) if isinstance(found, And) else (found,)
    if not all(isinstance(equation, Eq) for equation in equations):
        return found
    sides = [equations[0].lhs, *(equation.rhs for equation in equations)]
    numbers = [side for side in sides if isinstance(side, Expr) and side.is_number]
    if not all(agree(numbers[0], number, *DIGITS[False]) in (True, None) for number in numbers[1:]):
        return None
    others = [side for side in sides if side not in numbers]
    if not others:
        return numbers[-1]
    return Eq(others[0], numbers[-1], evaluate=False) if numbers and len(others) == 1 else found


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
    percent = "%" in gold + answer  # 50% may stand for 50 and for 0.5
    return "correct" if any(same(g, a, percent) for g in golds for a in read(answer)) else "wrong"


def same(gold: Any, answer: Any, percent: bool) -> bool:
    """Return whether two readings are equal: by values at points where they have any, else by math-verify and a second look."""
    if isinstance(gold, Eq) and isinstance(answer, Eq):
        if gold.lhs == answer.lhs:
            return same(gold.rhs, answer.rhs, percent)
        return multiples(gold.lhs - gold.rhs, answer.lhs - answer.rhs)
    if not percent and differ_somewhere(gold, answer):
        return False
    numbers = not percent and all(isinstance(e, Expr) and e.is_number for e in (gold, answer))
    if numbers and exact(gold, answer) and (alike := agree(gold, answer, *DIGITS[True])) is not None:
        return alike
    equal = verify([gold], [answer], timeout_seconds=None, allow_set_relation_comp=True)
    if equal and numbers:  # math-verify rounds to 6 places, and takes all tiny numbers for equal
        return gold == answer or agree(gold, answer, *DIGITS[False]) in (True, None)
    return equal or bool(isinstance(gold, Relational) != isinstance(answer, Relational) and same_set(gold, answer))


DIGITS = {True: (1e-50, 60), False: (1e-5, 15)}
"""Relative tolerance, and digits that are computed, for exact formulas and for those with a decimal."""


def exact(gold: Any, answer: Any) -> bool:
    return not (gold.has(Float) or answer.has(Float))


def same_set(gold: Any, answer: Any) -> bool:
    """Return whether a relation and a chain of relations admit the same numbers: |x-1| < 2 and -1 < x < 3."""
    relations = (
        all(isinstance(e, Relational | And) for e in (gold, answer)) and gold.free_symbols == answer.free_symbols
    )
    found = as_set(gold) if relations else None
    return found is not None and found == as_set(answer)


def multiples(gold: Any, answer: Any) -> bool:
    """Return whether two formulas that are set equal to 0 are one equation: the one is a number times the other."""
    ratios = [ratio for point in POINTS if (ratio := at(point, 20, gold / answer, gold, answer)) is not None]
    if len(ratios) == len(POINTS) and agree(ratios[0], ratios[1], 1e-9) is False:
        return False
    ratio = simplify(gold / answer)
    return bool(ratio.is_number and ratio.is_finite and ratio.is_zero is False)


POINTS = (
    [Rational(k * k + 3, 7 * k + 5) for k in range(1, 40)],
    [Rational(5 * k + 3, 2 * k * k + 9) for k in range(1, 40)],
)


def at(point: list[Any], digits: int, formula: Any, *others: Any) -> Any:
    """Return the value of a formula where its symbols, and those of the others, are the numbers of a point; None if it has none."""
    symbols = sorted(set().union(*(f.free_symbols for f in (formula, *others))), key=lambda symbol: symbol.name)
    # more than 39 symbols: some keep no value, so not a number
    value = formula.evalf(digits, subs=dict(zip(symbols, point, strict=False)))
    return value if value.is_number and value.is_finite else None


def differ_somewhere(gold: Any, answer: Any) -> bool:
    """Return whether two formulas have different values at a point. It takes milliseconds; simplifying their difference, seconds.

    False where the values decide nothing: relations, sets, words (single symbols), unknown functions, no finite value.
    """
    if not all(isinstance(e, Expr) and not isinstance(e, Symbol) for e in (gold, answer)):
        return False
    tolerance, digits = DIGITS[exact(gold, answer)]
    for point in POINTS:
        a, b = at(point, digits, gold, answer), at(point, digits, answer, gold)
        alike = None if a is None or b is None else agree(a, b, tolerance, digits)
        if alike is not True:
            return alike is False
    return False


def agree(a: Any, b: Any, tolerance: float, digits: int = 20) -> bool | None:
    """Return whether two numbers differ by no more than this share of the larger one; None if they have no finite values."""
    if not (a.is_number and b.is_number):
        return None
    a, b = a.evalf(digits), b.evalf(digits)
    try:
        return bool(abs(a - b) <= tolerance * max(abs(a), abs(b))) if is_finite(a) and is_finite(b) else None
    except TypeError:  # one of them keeps an unknown function
        return None


def is_finite(value: Any) -> bool:
    """Return whether this is a number, real or complex: not nan, zoo or a formula that kept a symbol."""
    return bool(value.is_number and value.is_finite)


def refuse(event: str, args: tuple[Any, ...]) -> None:
    """Refuse whatever Python reports to audit hooks: to open a file, import, compile or run code, start a process, use a socket.

    Mathematics needs none of it. The audit hook of a worker.
    """
    if event not in ("builtins.id", "object.__getattr__", "sys._getframe"):
        raise PermissionError(f"a grading worker tried {event}")


def work(fd: int, start: memoryview[float]) -> int:
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


def fork(fd: int, others: list[int], start: memoryview[float]) -> int:
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
LATE = (
    "calculus",
    "concrete",
    "functions",
    "integrals",
    "matrices",
    "ntheory",
    "physics.units",
    "polys",
    "series",
    "sets",
    "simplify",
    "solvers",
)
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
    sys.stdin.close()
    logging.disable(logging.CRITICAL)
    prepare()  # as everywhere, what it compiles is kept for the next start
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
