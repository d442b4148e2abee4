r"""Pairs of answers with the label that a person gives them, kind by kind: the measure of the grader's errors.

    python tests/labelled.py        # the whole set: errors by kind, both ways round

Each ``kind`` yields families. A family is a list of ways to write one answer, and a list of ways to write something else that
is close to it: the last digit, a sign, an exponent or a factor is another, or one part is left out. Numbers are drawn from a
fixed seed, and Python's own fractions say that what should differ does.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import combinations
from random import Random
from typing import NamedTuple

from twofold.tasks.grading import WORKERS, equal

Family = tuple[list[str], list[str]]
"""Ways to write one answer, and other answers."""


class Pair(NamedTuple):
    kind: str
    gold: str
    answer: str
    same: bool


def integers(r: Random) -> Iterator[Family]:
    for _ in range(12):
        n = r.randint(1_000, 9_999_999) * r.choice((1, -1))
        same = [
            str(n),
            f"{n:,}",
            f"{n:,}".replace(",", "{,}"),
            f"{n}.0",
            f"${n}$",
            f"\\text{{{n}}}",
            f"x = {n}",
            f"{n}.",
        ]
        yield same, [str(n + 1), str(n - 1), str(-n), f"{n}0", str(n)[:-1], f"{n + 10:,}", f"x={n + 1}", f"{n}.1"]


def fractions(r: Random) -> Iterator[Family]:
    for _ in range(12):
        f = Fraction(r.randint(2, 60), r.randint(3, 40))
        a, b = f.numerator, f.denominator
        if b == 1 or a == 1:
            continue
        k = r.randint(2, 5)
        same = [f"\\frac{{{a}}}{{{b}}}", f"{a}/{b}", f"\\dfrac{{{a * k}}}{{{b * k}}}", f"{a} \\div {b}", f"({a})/({b})"]
        if a > b:
            same.append(f"{a // b}\\frac{{{a % b}}}{{{b}}}")
        yield (
            same,
            [
                f"{b}/{a}",
                f"{a + 1}/{b}",
                f"\\frac{{{a}}}{{{b + 1}}}",
                f"-\\frac{{{a}}}{{{b}}}",
                str(a),
                f"{float(f):.2f}0001",
            ],
        )
        yield (
            [f"-{s}" for s in same[:2]] + [f"\\frac{{-{a}}}{{{b}}}", f"\\frac{{{a}}}{{-{b}}}"],
            [same[0], f"-\\frac{{{b}}}{{{a}}}"],
        )


def decimals(r: Random) -> Iterator[Family]:
    for _ in range(12):
        n, places = 2 * r.randint(50, 49_999) + 1, r.randint(1, 5)
        f = Fraction(n, 10**places)
        text = f"{n / 10**places:.{places}f}"
        same = [
            text,
            text + "0",
            f"\\frac{{{n}}}{{{10**places}}}",
            f"{f.numerator}/{f.denominator}",
            f"{n} \\times 10^{{-{places}}}",
        ]
        yield same, [text + "1", f"-{text}", f"{n}e-{places + 1}", f"{(n + 1) / 10**places:.{places}f}", str(n)]


def powers_of_ten(r: Random) -> Iterator[Family]:
    for _ in range(10):
        n, e = r.randint(11, 99), r.randint(6, 14) * r.choice((1, -1))
        m = f"{n / 10:.1f}"
        same = [
            f"{m} \\times 10^{{{e}}}",
            f"{m}\\cdot 10^{{{e}}}",
            f"{m}e{e}",
            f"{n} \\times 10^{{{e - 1}}}",
            f"{m}*10^{{{e}}}",
        ]
        yield same, [f"{m} \\times 10^{{{e + 1}}}", f"{m}\\cdot 10^{{{-e}}}", f"{n / 10 + 0.1:.1f}e{e}", m, f"-{m}e{e}"]


def roots(r: Random) -> Iterator[Family]:
    for _ in range(12):
        a, b, c = r.randint(2, 9), r.choice((2, 3, 5, 6, 7, 10, 11)), r.randint(2, 9)
        same = [
            f"{a}\\sqrt{{{b}}}",
            f"\\sqrt{{{a * a * b}}}",
            f"{a} \\cdot {b}^{{1/2}}",
            f"{a}√{b}",
            f"\\frac{{{a * b}}}{{\\sqrt{{{b}}}}}",
        ]
        yield (
            same,
            [
                f"{a + 1}\\sqrt{{{b}}}",
                f"{a}\\sqrt{{{b + 1}}}",
                f"\\sqrt{{{b}}}",
                f"-{a}\\sqrt{{{b}}}",
                f"{a}\\sqrt[3]{{{b}}}",
                str(a * b),
            ],
        )
        same = [f"{c}+{a}\\sqrt{{{b}}}", f"{a}\\sqrt{b}+{c}", f"\\frac{{{2 * c}+{2 * a}\\sqrt{{{b}}}}}{{2}}"]
        yield same, [f"{c}-{a}\\sqrt{{{b}}}", f"{c + 1}+{a}\\sqrt{{{b}}}", f"{c}+\\sqrt{{{b}}}", f"{a}\\sqrt{{{b}}}"]


def multiples_of_pi(r: Random) -> Iterator[Family]:
    for _ in range(10):
        a, b = r.randint(2, 30), r.choice((1, 3, 7, 11))
        bottom = f"\\frac{{{a}\\pi}}{{{b}}}" if b > 1 else f"{a} \\pi"
        same = [
            bottom,
            f"\\frac{{{a}}}{{{b}}}\\pi",
            f"\\pi \\cdot \\frac{{{a}}}{{{b}}}",
            f"{a}π/{b}" if b > 1 else f"{a}π",
        ]
        yield (
            same,
            [
                f"\\frac{{{a + 1}\\pi}}{{{b}}}",
                f"\\frac{{{a}}}{{{b}}}",
                f"-{bottom}",
                f"\\frac{{{a}\\pi}}{{{b + 1}}}",
                f"{a}\\pi^2/{b}",
            ],
        )


def polynomials(r: Random) -> Iterator[Family]:
    for _ in range(12):
        a, b, c = r.randint(2, 9), r.randint(1, 9), r.randint(10, 19)
        middle = f"{a * b - c:+}x"
        same = [f"(x+{b})({a}x-{c})", f"{a}x^2{middle}-{b * c}", f"-{b * c}{middle}+{a}x^{{2}}", f"({a}x-{c})(x+{b})"]
        yield same, [f"(x+{b})({a}x+{c})", f"(x-{b})({a}x-{c})", f"(x+{b + 1})({a}x-{c})", f"(x+{b})({a}x)",
                     f"{a}x^3{middle}-{b * c}", f"(y+{b})({a}y-{c})"]  # fmt: skip


def formulas(r: Random) -> Iterator[Family]:
    for _ in range(6):
        a, n = r.randint(2, 9), r.randint(2, 6)
        yield (
            [f"\\frac{{{a}x}}{{x+{n}}}", f"{a} - \\frac{{{a * n}}}{{x+{n}}}", f"\\frac{{{a}}}{{1+{n}/x}}"],
            [f"\\frac{{{a}x}}{{x-{n}}}", f"\\frac{{x}}{{x+{n}}}"],
        )
        yield (
            [f"{a}e^{{-{n}t}}", f"\\frac{{{a}}}{{e^{{{n}t}}}}", f"{a}\\exp(-{n}t)"],
            [f"{a}e^{{{n}t}}", f"e^{{-{n}t}}", f"{a}e^{{-{n + 1}t}}"],
        )
        yield (
            [f"\\frac{{n(n+{a})}}{{{n}}}", f"\\frac{{n^2+{a}n}}{{{n}}}"],
            [f"\\frac{{n(n-{a})}}{{{n}}}", f"n(n+{a})", f"\\frac{{n(n+{a})}}{{{n + 1}}}"],
        )
        yield (
            [f"{n}\\ln {a}", f"\\ln {a**n}", f"\\ln({a}^{n})"],
            [f"\\ln {a}", f"{n + 1}\\ln {a}", f"{n}\\ln {a + 1}", f"\\ln {a * n + 1}"],
        )
        yield (
            [f"\\sqrt{{\\frac{{{a}GM}}{{R}}}}", f"\\left(\\frac{{{a} G M}}{{R}}\\right)^{{1/2}}"],
            ["\\sqrt{\\frac{GM}{R}}", f"\\frac{{{a}GM}}{{R}}"],
        )
        yield (
            [f"{a}^{{n+{n}}}", f"{a**n} \\cdot {a}^n"],
            [f"{a}^{{n+{n + 1}}}", f"{a}^n", f"{a}^{{n-{n}}}", f"{a + 1}^{{n+{n}}}"],
        )


def points(r: Random) -> Iterator[Family]:
    for _ in range(10):
        a, b, c = r.randint(1, 9), r.randint(11, 29), r.randint(30, 60)
        same = [
            f"({a}, {b}, -{c})",
            f"({a},{b},-{c})",
            f"\\left({a}, \\frac{{{2 * b}}}{{2}}, -{c}\\right)",
            f"({a}.0, {b}, -{c})",
        ]
        yield (
            same,
            [f"({b}, {a}, -{c})", f"({a}, {b}, {c})", f"({a}, {b})", f"({a}, {b}, -{c + 1})", f"({a + 1},{b},-{c})"],
        )
        yield (
            [f"(\\frac{{{a}}}{{{c}}}, {b})", f"({a}/{c},{b})"],
            [f"({b}, \\frac{{{a}}}{{{c}}})", f"(\\frac{{{a}}}{{{c}}}, -{b})", str(b)],
        )


def sets(r: Random) -> Iterator[Family]:
    for _ in range(10):
        a, b, c = sorted(r.sample(range(-30, 60), 3))
        same = [
            f"{a}, {b}, {c}",
            f"{c}, {a}, {b}",
            f"\\{{{b}, {c}, {a}\\}}",
            f"{a}, {b} \\text{{ and }} {c}",
            f"$ {b} $, $ {a} $, $ {c} $",
        ]
        yield (
            same,
            [
                f"{a}, {b}",
                f"{a}, {b}, {c + 1}",
                f"{a}, {b}, {c}, {c + 1}",
                str(a),
                f"\\{{{a}, {b}, {b}\\}}",
                f"{-a or 99}, {b}, {c}",
            ],
        )
        d = r.randint(1, 9)
        yield (
            [f"\\pm {d}", f"{d}, -{d}", f"\\{{-{d}, {d}\\}}", f"x = \\pm {d}"],
            [str(d), f"-{d}", f"\\pm {d + 1}", f"{d}, -{d + 1}"],
        )


def intervals(r: Random) -> Iterator[Family]:
    for _ in range(8):
        a, b = r.randint(-20, 0), r.randint(1, 30)
        yield (
            [f"[{a}, {b})", f"{a} \\le x < {b}", f"x \\in [{a},{b})", f"{b} > x \\geq {a}"],
            [f"[{a}, {b}]", f"({a}, {b})", f"[{a}, {b + 1})", f"[{a - 1},{b})"],
        )
        yield (
            [f"(-\\infty, {a}]", f"x \\leq {a}", f"x\\le{a}", f"{a} \\ge x"],
            [f"(-\\infty, {a})", f"x<{a}", f"x \\ge {a}", f"(-\\infty, {a + 1}]"],
        )
        same = [
            f"(-\\infty,{a})\\cup({b},\\infty)",
            f"x<{a} \\text{{ or }} x>{b}",
            f"({b},\\infty) \\cup (-\\infty,{a})",
        ]
        yield (
            same,
            [f"(-\\infty,{a}]\\cup({b},\\infty)", f"(-\\infty,{a})", f"({a},{b})", f"x<{a} \\text{{ or }} x>{b + 1}"],
        )


def equations(r: Random) -> Iterator[Family]:
    for _ in range(10):
        a, b, c = r.randint(2, 9), r.randint(2, 9), r.randint(11, 30)
        same = [
            f"{a}x-{b}y+{c}=0",
            f"{2 * a}x-{2 * b}y+{2 * c}=0",
            f"{b}y = {a}x+{c}",
            f"y = \\frac{{{a}}}{{{b}}}x+\\frac{{{c}}}{{{b}}}",
        ]
        yield same, [f"{a}x+{b}y+{c}=0", f"{a}x-{b}y-{c}=0", f"{a + 1}x-{b}y+{c}=0", f"{a}x-{b}y=0", f"{a}x-{b}y+{c}=1"]
        yield (
            [f"x^2+{a}y^2={c}", f"{c} = x^2+{a}y^2", f"2x^2+{2 * a}y^2={2 * c}"],
            [f"x^2-{a}y^2={c}", f"x^2+{a}y^2={c + 1}", f"x^2+y^2={c}", f"x^3+{a}y^2={c}"],
        )


def values_of_equations(r: Random) -> Iterator[Family]:
    for _ in range(8):
        n, m = r.randint(5, 40), r.randint(41, 90)
        yield (
            [str(n), f"x={n}", f"{n}=x", f"{n - 2}+2={n}", f"{n}={n}", f"x={n - 1}+1={n}"],
            [f"{n}={m}", f"{m}={n}", f"x={m}", f"{m}=x", f"x={n}={m}", f"{n} \\neq {m}"],
        )
        yield [str(n)], [f"{n} \\approx {m}", f"{m} \\approx {n}", f"{n} < {m}", f"{n} \\equiv {m}", f"{m} > {n}"]


def units(r: Random) -> Iterator[Family]:
    for _ in range(10):
        n, u = r.randint(3, 900), r.choice(("cm", "kg", "m/s", "km", "J", "Hz", "mol", "s"))
        same = [str(n), f"{n} \\text{{ {u}}}", f"{n}\\,\\mathrm{{{u}}}", f"{n}~\\mathrm{{{u}}}", f"{n} {u}"]
        yield same, [f"{n + 1} \\text{{ {u}}}", f"-{n} {u}", f"{n}0\\,\\mathrm{{{u}}}", f"\\text{{{u}}}", f"{n}x"]
    for w in ("apples", "square units", "days", "people", "dollars"):
        n = r.randint(3, 900)
        yield (
            [str(n), f"{n} {w}", f"{n} \\text{{ {w}}}", f"{n}\\ \\text{{{w}}}"],
            [f"{n + 1} {w}", f"{n} or {n + 1} {w}", w],
        )


def percent_and_money(r: Random) -> Iterator[Family]:
    for _ in range(8):
        n = r.randint(3, 99)
        yield (
            [f"{n}\\%", f"{n}%", f"{n} percent", f"{n}\\text{{ percent}}"],
            [f"{n + 1}\\%", f"-{n}%", f"{n}0%", f"{n}.5\\%"],
        )
        yield (
            [f"\\${n}.50", f"{n}.5", f"${n}.50", f"{n}.50 dollars", f"{n}.50 €"],
            [f"\\${n}.05", f"\\${n + 1}.50", f"{n}", f"{n}.55"],
        )


def matrices(r: Random) -> Iterator[Family]:
    for _ in range(6):
        a, b, c, d = (r.randint(1, 40) for _ in range(4))
        if len({a, b, c, d}) < 4:
            continue
        m = "\\begin{{{0}}} {1} & {2} \\\\ {3} & {4} \\end{{{0}}}"
        same = [
            m.format("pmatrix", a, b, c, d),
            m.format("bmatrix", a, b, c, d),
            m.format("pmatrix", f"{2 * a}/2", b, c, d),
        ]
        yield (
            same,
            [
                m.format("pmatrix", a, c, b, d),
                m.format("pmatrix", a, b, c, d + 1),
                m.format("pmatrix", -a, b, c, d),
                str(a),
            ],
        )


def complex_numbers(r: Random) -> Iterator[Family]:
    for _ in range(8):
        a, b = r.randint(2, 20), r.randint(21, 40)
        yield (
            [f"{a}+{b}i", f"{b}i+{a}", f"{a} + {b} i", f"\\frac{{{2 * a}+{2 * b}i}}{{2}}"],
            [f"{a}-{b}i", f"{b}+{a}i", f"{a}", f"{b}i", f"{a}+{b + 1}i", f"-{a}+{b}i"],
        )


def exact_values(r: Random) -> Iterator[Family]:
    yield (
        ["\\sin(\\pi/3)", "\\frac{\\sqrt{3}}{2}", "\\cos\\frac{\\pi}{6}"],
        ["\\frac{\\sqrt{2}}{2}", "\\frac12", "-\\frac{\\sqrt3}{2}", "\\sqrt{3}"],
    )
    yield ["\\sqrt{3+2\\sqrt{2}}", "1+\\sqrt{2}"], ["1-\\sqrt2", "\\sqrt{3-2\\sqrt2}", "2+\\sqrt2"]
    yield ["\\log_2 8", "3", "\\log_{10} 1000"], ["\\log_2 9", "\\log_3 8"]
    yield ["\\tan^{-1}(1)", "\\frac{\\pi}{4}", "\\arctan 1"], ["\\frac{\\pi}{3}", "1", "\\frac{1}{\\tan 1}"]
    yield (
        ["\\cos\\frac{2\\pi}{7}+\\cos\\frac{4\\pi}{7}+\\cos\\frac{6\\pi}{7}", "-\\frac12", "-0.5"],
        ["\\frac12", "-\\frac13"],
    )
    yield ["\\cos 20^\\circ \\cos 40^\\circ \\cos 80^\\circ", "\\frac18"], ["\\frac19", "-\\frac18"]
    yield ["\\frac{1}{\\sqrt{2}-1}", "\\sqrt2+1"], ["\\sqrt2-1", "-\\sqrt2-1"]
    for _ in range(6):
        n, k = r.randint(6, 15), r.randint(2, 4)
        yield (
            [f"\\binom{{{n}}}{{{k}}}", f"\\frac{{{n}!}}{{{k}!{n - k}!}}", f"\\binom{{{n}}}{{{n - k}}}"],
            [f"\\binom{{{n + 1}}}{{{k}}}", f"\\binom{{{n}}}{{{k + 1}}}" if n != 2 * k + 1 else f"{n}", f"{n}!"],
        )
        yield [f"{n}!", f"{n} \\cdot {n - 1}!"], [f"{n + 1}!", f"{n - 1}!", f"{n}"]
        yield (
            [f"2^{{{n * 30}}}-1", f"-1+4^{{{n * 15}}}"],
            [f"2^{{{n * 30}}}+1", f"2^{{{n * 30 + 1}}}-1", f"2^{{{n * 30}}}", f"3^{{{n * 30}}}-1"],
        )
        yield [f"\\frac{{1}}{{{n}^{{99}}}}", f"{n}^{{-99}}"], [f"{n}^{{-98}}", f"{n}^{{99}}", "0", f"{n + 1}^{{-99}}"]


def words(r: Random) -> Iterator[Family]:
    names = [
        "Evelyn",
        "Saturday",
        "Mrs. Hilt",
        "parabola",
        "isosceles",
        "north west",
        "ellipse",
        "decreasing",
        "the red car",
    ]
    for name in names:
        other = r.choice([n for n in names if n != name])
        yield (
            [name, f"\\text{{{name}}}", name.lower(), f" {name}. ", f"\\text{{ {name} }}"],
            [other, f"\\text{{{other}}}", f"not {name}", "5"],
        )
    for letter in "ABCDE":
        other = r.choice([x for x in "ABCDE" if x != letter])
        yield (
            [letter, f"({letter})", f"\\text{{({letter})}}", f"\\textbf{{({letter})}}"],
            [other, f"({other})", f"{letter} or {other}"],
        )
    yield ["\\text{even}", "even"], ["odd", "\\text{odd}"]
    yield ["\\text{Yes}", "yes"], ["no", "\\text{No}"]
    yield ["5:15 p.m.", "5:15 PM", "17:15"], ["5:15 a.m.", "5:16 p.m.", "17:16"]


def other_notation(r: Random) -> Iterator[Family]:
    for _ in range(6):
        n = r.randint(10, 60)
        digits = "".join(r.choice("01234") for _ in range(3)).lstrip("0") + "3"
        yield (
            [f"{digits}_5", str(int(digits, 5)), f"{digits}_{{5}}"],
            [f"{digits}_6", f"{digits}", str(int(digits, 5) + 1)],
        )
        yield (
            [f"{n}^\\circ", f"{n}°", f"{n} degrees", f"{n}^{{\\circ}}"],
            [f"{n + 1}^\\circ", f"-{n}°", f"\\frac{{\\pi}}{{{n}}}"],
        )
        p = r.choice((3, 7, 9))
        yield (
            [f"\\frac{{{p - 1}}}{{{p}}}", f"{(p - 1) / p:.8f}"],
            [f"{(p - 1) / p:.3f}", f"{1 / p:.8f}", f"{(p - 2) / p:.8f}"],
        )
        a, b = r.randint(2, 9), r.randint(11, 20)
        yield [f"{a}:{b}", f"{a} : {b}", f"\\frac{{{a}}}{{{b}}}"], [f"{b}:{a}", f"{a + 1}:{b}", f"{a}:{b + 1}"]
        yield [f"|x-{a}|<{b}", f"{a - b}<x<{a + b}"], [f"|x-{a}|>{b}", f"|x+{a}|<{b}", f"|x-{a}|\\le{b}"]
        yield [f"f(x)={a}x+{b}", f"{a}x+{b}", f"f(x)={b}+{a}x"], [f"f(x)={a}x-{b}", f"{a + 1}x+{b}", f"f(x)={b}x+{a}"]
        yield (
            [f"x_{{1}}={a}, x_{{2}}={b}", f"x_1={a},x_2={b}"],
            [f"x_1={a}, x_2={b + 1}", f"x_1={b}, x_2={a}", f"x_1={a}"],
        )


KINDS: tuple[Callable[[Random], Iterator[Family]], ...] = (
    integers, fractions, decimals, powers_of_ten, roots, multiples_of_pi, polynomials, formulas, points, sets, intervals, equations,
    values_of_equations, units, percent_and_money, matrices, complex_numbers, exact_values, words, other_notation,
)  # fmt: skip


def pairs(seed: int = 0) -> list[Pair]:
    """Return all pairs: two ways to write an answer, and one way with another answer."""
    found: dict[Pair, None] = {}
    for kind in KINDS:
        r = Random(f"{kind.__name__} {seed}")
        name = kind.__name__.replace("_", " ")
        for same, other in kind(r):
            found |= dict.fromkeys(Pair(name, a, b, True) for a, b in combinations(dict.fromkeys(same), 2))
            found |= dict.fromkeys(Pair(name, same[i % len(same)], b, False) for i, b in enumerate(other))
            found |= dict.fromkeys(Pair(name, same[0], b, False) for b in other)
    return list(found)


def labels(asked: list[Pair], deadline: float = 10.0) -> list[tuple[str, str]]:
    """Return the label of each pair, and of the pair the other way round."""
    with ThreadPoolExecutor(WORKERS) as threads:
        return list(
            threads.map(
                lambda p: (equal(p.gold, p.answer, deadline=deadline), equal(p.answer, p.gold, deadline=deadline)),
                asked,
            )
        )


def main(seed: int) -> None:
    asked = pairs(seed)
    errors: Counter[tuple[str, bool]] = Counter()
    for pair, both in zip(asked, labels(asked), strict=True):
        if any((label == "correct") != pair.same for label in both):
            errors[pair.kind, pair.same] += 1
            print(f"{pair.kind}: {pair.gold!r} {'=' if pair.same else '#'} {pair.answer!r}: {' / '.join(both)}")
    total = Counter((p.kind, p.same) for p in asked)
    for kind in dict.fromkeys(p.kind for p in asked):
        accepted, rejected = (f"{errors[kind, same]:3} of {total[kind, same]:4}" for same in (False, True))
        print(f"{kind:22} {accepted} accepted, {rejected} rejected")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
