r"""Exact arithmetic on short written numbers: a string in, a Fraction or None out; nothing is ever executed.

It reads what most answers consist of (``-1,234``, ``0.50``, ``\frac12``, ``2\frac34``, ``1.2e-8``, ``3\cdot 10^{5}``,
``(2^{2005}+1)/3``, ``8!/4!``, ``\binom{5}{2}``, ``42_5``) and gives up on everything else. Every intermediate number stays
below ``MAX_BITS`` bits, so hostile towers of powers cost microseconds.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

MAX_LENGTH = 300
MAX_BITS = 32_768
MAX_DEPTH = 20

THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_NUMERAL = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3}(?!\d))?")
_BASE = re.compile(r"([0-9A-Z]*[0-9][0-9A-Za-z]*)_(?:\{(\d{1,2})\}|(\d))")
_TIMES = re.compile(r"\\(?:cdot|times)(?![A-Za-z])|\*(?!\*)|×|·")
_DIVIDE = re.compile(r"\\div(?![A-Za-z])|/|÷")
_POWER = re.compile(r"\*\*|\^")
_CLOSING = {"(": ")", "{": "}"}


def exact(text: str) -> Fraction | None:
    r"""Return the value of ``text``, or None if it is not plain arithmetic or is too large.

    >>> exact(r"\frac12"), exact("0.50"), exact("1,234"), exact("42_5"), exact("9^{9^9}"), exact("x")
    (Fraction(1, 2), Fraction(1, 2), Fraction(1234, 1), Fraction(22, 1), None, None)
    """
    if len(text) > MAX_LENGTH:
        return None
    text = text.strip()
    if THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    try:
        if base := _BASE.fullmatch(text):
            return Fraction(int(base[1], int(base[2] or base[3])))
        reader = _Reader(text)
        value = reader.sum()
        return value if reader.rest() == "" else None
    except (ValueError, ZeroDivisionError):  # not arithmetic, too large, 1/0
        return None


class _Reader:
    """Recursive descent over one string: sum > product > signed > power > postfix > atom. Raises ValueError."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def rest(self) -> str:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at :]

    def take(self, pattern: re.Pattern[str]) -> str | None:
        """Return the token at the current place and step over it, if it matches; else None."""
        found = pattern.match(self.rest())
        if found is None:
            return None
        self.at += found.end()
        return found[0]

    def sum(self) -> Fraction:
        value = self.product()
        while (sign := self.rest()[:1]) in ("+", "-") and sign:
            self.at += 1
            term = self.product()
            value = _bounded(value + term if sign == "+" else value - term)
        return value

    def product(self) -> Fraction:
        value = self.signed()
        while True:
            if self.take(_TIMES):
                value = _bounded(value * self.signed())
            elif self.take(_DIVIDE):
                value = _bounded(value / self.signed())
            else:
                return value

    def signed(self) -> Fraction:
        sign = self.rest()[:1]
        if sign not in ("+", "-") or not sign:
            return self.power()
        self.at += 1
        value = self.power()  # one sign only: "--1" is a typo, not a number
        return -value if sign == "-" else value

    def power(self) -> Fraction:
        base = self.postfix()
        if not self.take(_POWER):
            return base
        exponent = self.signed()  # right-associative: 2^3^2 = 2^9
        if exponent.denominator != 1:
            raise ValueError("a root")
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(exponent.numerator) * bits > MAX_BITS:
            raise ValueError("too large")
        return base**exponent.numerator

    def postfix(self) -> Fraction:
        value = self.atom()
        if self.rest().startswith("!") and not self.rest().startswith("!!"):  # n!! is another function
            self.at += 1
            if value.denominator != 1 or not 0 <= value <= 3000:
                raise ValueError("too large")
            value = _bounded(Fraction(math.factorial(value.numerator)))
        return value

    def atom(self) -> Fraction:
        rest = self.rest()
        if rest[:1] in _CLOSING:
            return self.group()
        for command in ("\\frac", "\\binom"):
            if rest.startswith(command):
                self.at += len(command)
                over, under = self.argument(), self.argument()
                return over / under if command == "\\frac" else _binomial(over, under)
        numeral = self.take(_NUMERAL)
        if numeral is None:
            raise ValueError("not a number")
        value = _bounded(Fraction(numeral))
        if self.rest().startswith("\\frac"):  # a mixed number
            part = self.atom()
            if not numeral.isdecimal() or not 0 < part < 1:
                raise ValueError("a product, or a mixed number")
            value += part
        return value

    def argument(self) -> Fraction:
        r"""Read a command's argument: a group or, as in ``\frac12``, one digit."""
        if (digit := self.rest()[:1]).isdecimal():
            self.at += 1
            return Fraction(int(digit))
        return self.group()

    def group(self) -> Fraction:
        closing = _CLOSING.get(self.rest()[:1])
        if closing is None or self.depth >= MAX_DEPTH:
            raise ValueError("no group, or too deep")
        self.at += 1
        self.depth += 1
        value = self.sum()
        self.depth -= 1
        if self.rest()[:1] != closing:
            raise ValueError("unbalanced")
        self.at += 1
        return value


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise ValueError("too large")
    return value


def _binomial(n: Fraction, k: Fraction) -> Fraction:
    if n.denominator != 1 or k.denominator != 1 or not 0 <= k <= n <= 3000:
        raise ValueError("too large, or not defined")
    return Fraction(math.comb(n.numerator, k.numerator))
