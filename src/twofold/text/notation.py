r"""Bring an answer, as people and models write it, into one notation: strings in, strings out, nothing is evaluated.

``latex`` writes an answer in plain LaTeX: without Unicode, currency signs and spacing commands, numbers in one form.
``canonical`` is a normal form of that, by which answers are grouped in a vote. ``for_parser`` is what the LaTeX parser of
``tasks.equality`` is given: without units, and without notation that it cannot read.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from typing import Any

from twofold.text.exact import THOUSANDS, exact

MAX_ANSWER = 2_000
"""The most characters of an answer. No reference answer is longer; ``grading`` refuses longer ones by name."""
MAX_DIGITS = 100
"""The most digits of a number that is written out."""

# --- plain LaTeX ------------------------------------------------------------------------------------------------------

_GREEK = {c: unicodedata.name(c).split()[-1].replace("LAMDA", "LAMBDA") for c in "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ"}
_SYMBOLS = {c: name.title() if c.isupper() else name.lower() for c, name in _GREEK.items()} | {
    "∞": "infty", "×": "times", "·": "cdot", "⋅": "cdot", "÷": "div", "±": "pm", "≤": "leq", "⩽": "leq", "≥": "geq",
    "⩾": "geq", "≠": "neq", "∪": "cup", "∩": "cap", "∈": "in", "∅": "emptyset", "∖": "setminus", "≈": "approx",
    "ℝ": "mathbb{R}", "ℤ": "mathbb{Z}", "ℕ": "mathbb{N}", "ℚ": "mathbb{Q}", "ℂ": "mathbb{C}",
}  # fmt: skip
_UNICODE = str.maketrans(
    {c: f"\\{name} " for c, name in _SYMBOLS.items()}
    | dict.fromkeys("−–‒﹣", "-")
    | dict.fromkeys("°º˚", "^\\circ ")
    | dict.fromkeys("\u00a0\u2009\u202f", "\\,")  # spaces that may join thousands
    | {"⟨": "(", "⟩": ")", "∣": "|", "′": "'", "’": "'", "，": ", "}
)
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴-⁹⁺⁻⁽⁾ⁿⁱ]+")
_SUBSCRIPTS = re.compile("[₀-₉₊₋]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_ROOT = re.compile(r"([√∛])\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|\\?[A-Za-z]+))")


def _ascii(text: str) -> str:
    r"""Write Unicode mathematics as LaTeX: ``√2`` is ``\sqrt{2}``, ``x²`` is ``x^{2}``, ``½`` is ``\frac{1}{2}``."""
    text = _SUPERSCRIPTS.sub(lambda m: f"^{{{unicodedata.normalize('NFKC', m[0])}}}", text)
    text = _SUBSCRIPTS.sub(lambda m: f"_{{{unicodedata.normalize('NFKC', m[0])}}}", text)
    text = _VULGAR.sub(lambda m: "\\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", m[0]).split("⁄")), text)
    text = text.translate(_UNICODE)
    text = "".join(" " if unicodedata.category(c) in ("Sc", "Zs", "Cf") and c != "$" else c for c in text)  # 29 €
    text = unicodedata.normalize("NFKC", text).translate(_UNICODE)
    return _ROOT.sub(lambda m: ("\\sqrt[3]{" if m[1] == "∛" else "\\sqrt{") + (m[2] or m[3] or m[4]) + "}", text)


_UPRIGHT = r"\\(?:text|textnormal|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|operatorname)"
_FUNCTIONS = "arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|ln|log|exp|pi"
_NONE = r"(?:there (?:is|are) )?no (?:real )?(?:solutions?|roots?)(?: exists?)?|(?:the )?empty set"
_WRAPPER = re.compile(rf"{_UPRIGHT} ?\{{([^{{}}]*)\}}")
_DIGIT = re.compile(r"\d")
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}


def _compiled(*rules: tuple[str, Any]) -> list[tuple[re.Pattern[str], Any]]:
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


_SPACING = _compiled(
    (r"\\\$|\$|\\(?:euro|pounds)(?![A-Za-z])|(?<!\\)\\[()\[\]]", " "),
    (r"\\(?:left|right)\s*\.|\\(?:left|right|[bB]igg?[lr]?|(?:display|text)style|limits)(?![A-Za-z])", " "),
    (r"(?<=\d)(?:\{,\}|\\[,; :!]|~|,\\!) ?(?=\d{3}(?!\d))", ","),  # thousands
    (r"(?<!\\)\\[,;:! ]|\\q?quad(?![A-Za-z])|\\hspace\{[^{}]*\}|~", " "),
)
_NOTATION = _compiled(
    (r"\{,\}", ","),
    (r"(?<!\\)\{(\d{1,3}(?:,\d{3})+)\}", lambda m: m[0].replace(",", "")),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\leqslant(?![A-Za-z])|<=", r"\\leq "),
    (r"\\geqslant(?![A-Za-z])|>=", r"\\geq "),
    (r"\\langle(?![A-Za-z])", "("),
    (r"\\rangle(?![A-Za-z])", ")"),
    (r"\\%", "%"),
    (r"\^ ?\{ ?\\(?:circ|degree) ?\}|\\degree(?![A-Za-z])|\^ ?\\circ(?![A-Za-z])", r"^\\circ "),
    (r"([\^_])\{(\w)\}(?!\w)", r"\1\2"),
    (rf"_ ?\{{ ?(?:{_UPRIGHT} ?\{{ ?(\w+) ?\}}|\\(max|min|odot)) ?\}}", r"_{\1\2}"),  # m_{\max}
    (r"\{ ?\\rm ([^{}]*)\}|\\(?:mathrm|rm) ([A-Za-z])(?![A-Za-z])", r"\\mathrm{\1\2}"),
    (rf" ?(?:{_UPRIGHT} ?\{{ ?(?:per ?cent|percentage|pct) ?\}}|\b(?:per ?cent|percentage|pct)\b)", "%"),
    (r"(?<![\d./^_}{])(\d+) (\d+)/(\d+)(?![\d./])", r"\1\\frac{\2}{\3}"),  # 2 3/4
    (
        rf"(?i){_UPRIGHT} ?\{{ ?(?:{_NONE})\.? ?\}}|\b(?:{_NONE})\b|\\\{{ ?\\\}}|\\varnothing(?![A-Za-z])",
        r"\\emptyset ",
    ),
    (r"(?<![A-Za-z\\])infinity(?![A-Za-z])", r"\\infty "),
    (rf"(?:(?<![A-Za-z\\])(?:np|math)\.)?(?<![A-Za-z\\])({_FUNCTIONS})(?![A-Za-z])", r"\\\1 "),
    (r"(?<![A-Za-z\\])sqrt ?\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"(\\sqrt(?: ?\[\w+\])?) ?(\d+)", r"\1{\2}"),
    (r"\*\*", "^"),
)
_POWER = re.compile(rf"(?<=\d) ?({_UPRIGHT} ?\{{)? ?\b({'|'.join(_POWERS)})\b")
_REPEATING = re.compile(
    r"(?<![\d.…])(\d*)\.(\d*)(?:\\(?:overline|bar)\s*\{?(\d+)\}?|\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?)"
)
_GROUPED = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_SPACED = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?")


def latex(answer: str) -> str:
    r"""Return an answer in plain LaTeX. Words keep their ``\text{}``.

    >>> [latex(a) for a in ("−½√2", r"$(1,\,2)$.", "70°", r"10\,000~\mathrm{m}", "2 3/4", "0.1\\overline{6}", "29 €")]
    ['-\\frac{1}{2}\\sqrt{2}', '(1, 2)', '70^\\circ', '10,000 \\mathrm{m}', '2\\frac{3}{4}', '\\frac{15}{90}', '29']
    """
    text = answer if answer.isascii() else _ascii(answer)
    for rules in (_SPACING, _NOTATION):
        text = " ".join(text.split())
        for pattern, replacement in rules:
            text = pattern.sub(replacement, text)
    text = _POWER.sub(lambda m: rf"\cdot 10^{_POWERS[m[2]]} " + (m[1] or ""), text)
    text = _REPEATING.sub(_repeating, text)
    text = " ".join(text.split())
    if not text.endswith(".."):
        text = text.removesuffix(".").strip()
    if (whole := _WRAPPER.fullmatch(text)) and _DIGIT.search(text):  # \text{10 cm}
        text = whole[1].strip()
    if _SPACED.fullmatch(text):
        return text.replace(" ", "")
    if ", " in text and not any(c in text for c in "([{"):  # the commas without a space join thousands
        text = _GROUPED.sub(lambda m: m[0].replace(",", ""), text)
    return text


def _repeating(found: re.Match[str]) -> str:
    r"""Return a repeating decimal as a fraction: ``0.1\overline{6}`` = (16 - 1) / 90."""
    fixed, decimals = found[1] + found[2], found[2]
    period = found[3] or found[4] + (found[5] + found[6] if found[6] else "")
    over = int(fixed + period) - int(fixed or "0")
    return rf"\frac{{{over}}}{{{'9' * len(period)}{'0' * len(decimals)}}}"


# --- the normal form --------------------------------------------------------------------------------------------------

_EULER = re.compile(rf"(?<=\d)\s*{_UPRIGHT}\s*\{{\s*e\s*\}}(?=\s*[-+]?\s*\d)")
_OPTION = re.compile(r"(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s*:?\s*)?\(?([A-J])\)?[.:]?")
_CLOCK = re.compile(r"(\d{1,2})(?::(\d\d))?(:\d\d)? ?([aApP])\.? ?[mM]\.?")
_TIME = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?(?: ([ap])m)?")
_LOOSE_SPACE = re.compile(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])")


def unwrap(answer: str) -> str:
    r"""Return an answer in plain LaTeX without ``\text{}`` and the like. An upright e never becomes a power of ten."""
    text = _EULER.sub(r"\\cdot e", latex(answer))
    text = " ".join(_WRAPPER.sub(r"\1", text).split())
    return text if text.endswith("..") else text.removesuffix(".").strip()


def canonical(answer: str) -> str:
    r"""Return a cheap normal form: equal strings mean equal answers, but unequal ones may still be equal.

    Numbers become reduced fractions, however they were written; the letter of an option loses its brackets, and a time has
    one form; other text keeps its case and loses its decoration. The form groups answers in a vote and is the fast path of
    grading. Different things stay different: "50%" is not "50", "10 cm" is not "10 m", "3, 104" is not "3,104". The form of a
    form is itself. Answers over ``MAX_ANSWER`` characters are returned as they are.

    >>> [canonical(a) for a in ("0.50", r"$\frac12$", "1,234.", r"\text{ Evelyn }", "( 1 , 2 )", "50\\%", "2 3/4")]
    ['1/2', '1/2', '1234', 'Evelyn', '(1,2)', '50%', '11/4']
    >>> [canonical(a) for a in ("3, 104", r"5:15 \text{ p.m.}", r"\text{(C)}")]
    ['3, 104', '5:15 pm', 'C']
    """
    return answer.strip() if len(answer) > MAX_ANSWER else _canonical(answer)


@lru_cache(maxsize=20_000)  # the same few answers come thousands of times
def _canonical(answer: str) -> str:
    value = exact(answer)
    text = answer if value is not None else unwrap(answer)
    value = exact(text) if value is None else value
    if value is not None and max(abs(value.numerator), value.denominator) < 10**MAX_DIGITS:
        return str(value)
    if option := _OPTION.fullmatch(text):
        return option[1]
    if time := _CLOCK.fullmatch(text):
        return f"{int(time[1])}:{time[2] or '00'}{time[3] or ''} {time[4].lower()}m"
    text = _LOOSE_SPACE.sub("", text)
    return text.replace(",", ", ") if THOUSANDS.fullmatch(text) else text


def same_time(a: str, b: str) -> bool | None:
    """Return whether two normal forms are one time of the day; None unless at least one of them says a.m. or p.m.

    A time without it may be either half of the day, or be counted to 24 hours.

    >>> same_time("5:15 pm", "5:15 am"), same_time("5:15 pm", "17:15"), same_time("5:15 pm", "5:15"), same_time("5:15", "5:15")
    (False, True, True, None)
    """
    times = [_TIME.fullmatch(form) for form in (a, b)]
    if not any(time and time[4] for time in times):
        return None
    clocks = []
    for time in times:
        if time is None:
            return False
        hour, rest = int(time[1]), (time[2], time[3] or "00")
        half = {"a": [0], "p": [12], None: [0, 12] if hour <= 12 else [0]}[time[4]]
        clocks.append({((hour % 12 + start) if hour <= 12 else hour, *rest) for start in half})
    return bool(clocks[0] & clocks[1])


# --- what the parser is given -----------------------------------------------------------------------------------------

_SI = (
    r"(?:[pnumckMG]|\\mu ?)?(?:m|s|g|L|l|A|K|N|J|W|C|V|F|T|H|Hz|Pa|mol|eV|cal|bar|\\Omega|ohm)"
    r"|ft|in|lb|lbs|oz|mi|mph|kmh|kph|yd|h|hr|hrs|min|sec|deg|rad|rpm|cc|\^\\circ(?: ?[CF])?"
)
_UNIT = rf"(?:{_SI})(?: ?\^ ?(?:-?\d|\{{-?\d+\}}))?"
_SYMBOL_UNIT = re.compile(rf"{_UNIT}(?:(?: ?/ ?| ?\\cdot | ?\* ?| ){_UNIT})*")
_WORDS_UNIT = re.compile(r"\(?[A-Za-z][A-Za-z .'/-]*\)?(?: ?\^ ?\{?-?\d\}?)?")
_MATH = re.compile(
    r"(?<![A-Za-z])(?:and|or|mod|pi|sqrt|sin|cos|tan|cot|sec|csc|arc\w+|log|ln|exp|if|where|for|is|to|base|dozen|pairs?|e|i)(?![A-Za-z])"
)
_UPRIGHT_UNIT = re.compile(r"(?:[A-Za-z \d.,/*^{}()'°-]|\\(?:cdot|mu|Omega|circ|times)(?![A-Za-z]))+")
_QUOTIENT = re.compile(
    rf"\\frac\s*\{{\s*({_UPRIGHT}\s*\{{[^{{}}]*\}})\s*\}}\s*\{{\s*({_UPRIGHT}\s*\{{[^{{}}]*\}}(?:\^\S+)?)\s*\}}"
)
_OPERATOR = re.compile(
    r"(?:[-+*/=<>,;:^_(\[{&]|\\(?:cdot|times|div|in|cup|cap|pm|leq?|geq?|neq?|to|approx)(?![A-Za-z]))\s*$"
)
_MICRO = re.compile(r"(?<=[\d} ])\\mu$")
_NUMERAL = re.compile(r"(?:[\d)}!%\]]|\\(?:pi|circ|mu))$")
_NUMBER = re.compile(r"((?:[\d.,{}()^/*+ -]|\\(?:frac|sqrt|pi|cdot|times)(?![A-Za-z]))*[\d)}])(\s*)(\S.*)", re.DOTALL)
_ONE_LETTER = re.compile(rf"{_UPRIGHT}\s*\{{\s*([A-Za-z])\s*\}}")
_SCRIPT = re.compile(r"([\^_])\{ (\w) \}(?!\w)")
_EULER_INDEX = re.compile(r"(?<![A-Za-z\\])([Ee])\s*(?=_)")
_BUILDER = re.compile(
    r"(?:[A-Za-z]\s*(?:=|\\in\b)\s*)?\\\{\s*([A-Za-z])\s*(?:\\in\s*\\mathbb\s*\{?\s*R\s*\}?\s*)?(?:\\mid|\\vert|\||:)\s*(.*\S)\s*\\\}"
)
_CONDITION = re.compile(
    rf"^[a-z]\s*\\in\s*\\mathbb\s*\{{?[ZNQR]\}}?\s*[,;]\s*|,?\s*(?:{_UPRIGHT}\s*\{{\s*,?\s*)?\b(?:where|with|for)\b.*|(?:,|\(|\s)\s*[a-z]\s*\\in\s*\\mathbb\s*\{{?[ZNQR]\}}?\)?$",
    re.DOTALL,
)
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_DEGREES = re.compile(r"\{?(\d+(?:\.\d+)?)\}? ?\^ ?\\circ(?![A-Za-z])")
_WORD = re.compile(r"[A-Za-z][A-Za-z .,'!?-]*")
_LONG = re.compile(r"[A-Za-z]{3}")


def words(answer: str) -> str | None:
    r"""Return an answer that consists of words, without case and punctuation; None if it may be mathematics.

    A run of one or two letters may be a product, and so may what names a function.

    >>> words(r"\text{Mrs. Hilt}"), words("Evelyn"), words("xy"), words("2 cm"), words("sin x")
    ('mrshilt', 'evelyn', None, None, None)
    """
    text = unwrap(answer)
    if not _WORD.fullmatch(text) or not _LONG.search(text) or _MATH.search(text):
        return None
    return "".join(c for c in text.lower() if c.isalpha())


def without_unit(text: str) -> str:
    r"""Return an answer in plain LaTeX without the unit that stands behind its value.

    An upright group behind a value is a unit, unless it is a letter that is none (``2\mathrm{e}``). Plain letters behind a
    number are one if they are a known symbol (``10 m/s``, with a space if it is a single letter) or words.

    >>> [without_unit(a) for a in (r"10 \mathrm{V}", r"3\cdot 10^8 \mathrm{m}/\mathrm{s}", "29 euros", "51 (trucks)", "10 m/s^2")]
    ['10', '3\\cdot 10^8', '29', '51', '10']
    >>> [without_unit(a) for a in (r"2\mathrm{e}", "7x", "2m", r"1-\mathrm{e}", "5 or 6", r"x=\text{even}")]
    ['2\\mathrm{e}', '7x', '2m', '1-\\mathrm{e}', '5 or 6', 'x=\\text{even}']
    """
    text = _QUOTIENT.sub(r" \1/\2", text)
    for group in _WRAPPER.finditer(text):
        value = text[: group.start()].rstrip()
        unit = _WRAPPER.sub(r"\1", text[group.start() :]).strip()
        if not value or _OPERATOR.search(value[-12:]) or not _UPRIGHT_UNIT.fullmatch(unit or "m") or _MATH.search(unit):
            continue
        if len(unit) != 1 or (_SYMBOL_UNIT.fullmatch(unit) and _NUMERAL.search(value)):
            return _MICRO.sub("", text[: group.start()]).rstrip()
    if found := _NUMBER.fullmatch(text):
        value, space, unit = found.groups()
        symbol = _SYMBOL_UNIT.fullmatch(unit) and (space or len(unit) > 1)
        word = space and _WORDS_UNIT.fullmatch(unit) and _LONG.search(unit)
        if (symbol or word) and not _MATH.search(unit):
            return value
    return text


_OPEN = re.compile(r"^[^(]*\)|\([^)]*$|^[^\[]*\]|\[[^\]]*$|^[^{]*\}|\{[^}]*$")
"""A bracket without its partner: part of a pair or of a set."""
_GREATER = re.compile(r"(>|\\geq?(?![A-Za-z])|\\gt(?![A-Za-z]))")
_LESS = re.compile(r"<|\\leq?(?![A-Za-z])|\\lt(?![A-Za-z])")


def _ascending(chain: str) -> str:
    """Return a chain of two or more "greater than" from its other end, which the parser can read: c < a < b for b > a > c."""
    parts = _GREATER.split(chain)
    if len(parts) < 5 or _LESS.search(chain):
        return chain
    flipped = {">": "<", "\\gt": "<", "\\geq": r"\leq", "\\ge": r"\leq"}
    return " ".join(flipped.get(part, part.strip()) for part in reversed(parts))


def number(answer: str) -> Fraction | None:
    """Return the value of an answer that is plain arithmetic, without its unit or per cent sign, exactly; None for any other."""
    value = exact(canonical(answer).removesuffix("%"))
    return exact(without_unit(latex(answer))) if value is None else value


def for_parser(answer: str) -> str:
    r"""Return an answer as the parser can read it: without its unit, words as one symbol, a set by its condition.

    >>> [for_parser(a) for a in (r"\{x \mid -2 \le x < 1\}", "b > a > c", r"1-\mathrm{e}", "Mrs. Hilt", r"10~\mathrm{m}")]
    ['-2 \\le x < 1', 'c < a < b', '1- e', '\\text{mrshilt}', '10']
    """
    if (word := words(answer)) is not None:
        return rf"\text{{{word}}}"
    text = latex(answer)
    text = _CONDITION.sub("", text) or text
    text = ", ".join(part if _OPEN.search(part) else without_unit(part) for part in text.split(", "))
    text = _SCRIPT.sub(r"\1\2", _ONE_LETTER.sub(r" \1 ", text))
    text = " ".join(_EULER_INDEX.sub(r"\\mathrm{\1}", text).split())
    if _TRIGONOMETRIC.search(text):
        text = _DEGREES.sub(r"(\\frac{\1}{180} \\pi)", text)
    if found := _BUILDER.fullmatch(text):
        text = found[2]
    return ", ".join(_ascending(part.strip()) for part in text.split(", "))
