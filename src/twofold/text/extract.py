r"""Find the final answer in a text and bring it to a normal form: strings in, strings out, linear time.

All of this runs on model output, which may be anything: a megabyte of ``\boxed{`` is read in one pass, and no number of more
than ``MAX_DIGITS`` digits is ever written out.
"""

from __future__ import annotations

import re

from twofold.text.exact import exact

MAX_ANSWER = 2_000
"""The most characters of an answer. No reference answer is longer; ``grading`` refuses longer ones by name."""
MAX_DIGITS = 100

MAX_TAIL = 200_000
"""Characters from the end of a text that are searched for an answer."""

_BOX = re.compile(r"\\boxed\s*\{")
_BRACES = re.compile(r"\\{1,3}boxed\s*\{|\\.|[{}]", re.DOTALL)  # the {1,3} forgives escaped backslashes


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last complete ``\boxed{...}`` (any brace depth, ``\{`` is no brace), or None.

    >>> last_boxed(r"so \boxed{1} or rather \boxed{\frac{1}{2}}, that is \boxed{0.5")
    '\\frac{1}{2}'
    """
    text = text[-MAX_TAIL:]
    first = _BOX.search(text)
    if first is None:
        return None
    best_start = best_end = -1
    open_braces: list[int] = []  # where the content of each open box starts, -1 for a plain brace
    for token in _BRACES.finditer(text, max(first.start() - 2, 0)):
        match token[0]:
            case "{":
                open_braces.append(-1)
            case "}":
                start = open_braces.pop() if open_braces else -1
                if start > best_start:
                    best_start, best_end = start, token.start()
            case box if len(box) > 2:
                open_braces.append(token.end())
    return None if best_start < 0 else text[best_start:best_end].strip()


def final_answer(text: str) -> str | None:
    r"""Return the answer that a solution commits to: its last ``\boxed{}``, else its last ``####`` line, else None.

    A number named somewhere in the prose is not an answer.

    >>> final_answer("6*7=42\n#### 42"), final_answer("The answer is 42.")
    ('42', None)
    """
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed or None
    _, marker, rest = text[-MAX_TAIL:].rpartition("####")
    return rest.split("\n", 1)[0].strip() or None if marker else None


_LETTER = re.compile(r"\(?([A-J])\)?[.:]?(?:\s(?!\s*(?:or|and|[A-J])\b).*)?", re.DOTALL)
_ANSWER_IS = re.compile(
    r"(?i:\banswer(?: is)?)[:\s*]{0,5}(?i:option |choice )?\(?([A-J])\b(?!\)?[\s,]{1,3}(?:or|and|[A-J])\b)"
)


def choice_letter(text: str) -> str | None:
    r"""Return the option that a multiple-choice solution commits to: its last ``\boxed{}``, else its last "answer is (C)".

    >>> choice_letter(r"\boxed{\text{(C)}}"), choice_letter("**Answer: B**"), choice_letter(r"\boxed{A or B}")
    ('C', 'B', None)
    """
    boxed = last_boxed(text)
    if boxed is not None:
        found = _LETTER.fullmatch(_unwrap(boxed[:MAX_ANSWER]))
        return found[1] if found else None
    letters = _ANSWER_IS.findall(text[-MAX_TAIL:])
    return letters[-1] if letters else None


_DELIMITERS = (("\\(", "\\)"), ("\\[", "\\]"))
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\[,;:! ]|\\q?quad(?![A-Za-z])|\\(?:left|right|displaystyle)(?![A-Za-z])|~")
_PLAIN = str.maketrans({"−": "-", "–": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " "})
_INNER_SPACE = re.compile(r"\s+")
_LOOSE_SPACE = re.compile(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])")


def _unwrap(answer: str) -> str:
    r"""Remove mathematics delimiters, ``\text{}``, spacing commands, currency signs and a trailing full stop."""
    answer = answer.translate(_PLAIN).replace("\\$", "").replace("$", "").strip()
    for opening, closing in _DELIMITERS:
        answer = answer.removeprefix(opening).removesuffix(closing)
    answer = answer.replace("{,}", ",").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\%", "%")
    answer = _WRAPPER.sub(r"\1", _SPACING.sub(" ", answer))
    return answer.strip().removesuffix(".").strip()


def canonical(answer: str) -> str:
    r"""Return a cheap normal form: equal strings mean equal answers, but unequal ones may still be equal.

    Numbers become reduced fractions, however they were written; other text keeps its case and loses its decoration. The
    form groups answers in a vote and is the fast path of grading. Different things stay different: "50%" is not "50",
    "10 cm" is not "10 m". Answers over ``MAX_ANSWER`` characters are returned as they are.

    >>> [canonical(a) for a in ("0.50", r"$\frac12$", "1,234.", r"\text{ Evelyn }", "( 1 , 2 )", "50\\%")]
    ['1/2', '1/2', '1234', 'Evelyn', '(1,2)', '50%']
    """
    if len(answer) > MAX_ANSWER:
        return answer.strip()
    text = _unwrap(answer)
    value = exact(text)
    if value is not None and max(abs(value.numerator), value.denominator) < 10**MAX_DIGITS:
        return str(value)
    return _LOOSE_SPACE.sub("", _INNER_SPACE.sub(" ", text))
