r"""Find the answer that a text commits to: strings in, strings out, linear time.

This runs on model output, which may be anything: a megabyte of ``\boxed{`` is read in one pass.
"""

from __future__ import annotations

import re
from typing import Literal

from twofold.text.notation import MAX_ANSWER, canonical, unwrap

MAX_TAIL = 200_000
"""Characters from the end of a text that are searched for an answer."""

Extract = Literal["boxed", "stated", "number"]
r"""Where a solution's answer may stand: ``boxed`` in a ``\boxed{}`` or on a ``####`` line; ``stated`` there, or else in
``<answer>`` tags or behind "Answer:" or "the answer is"; ``number`` there, or else it is the last number of the text."""

_BOX = re.compile(r"\\boxed\s*\{")
_BRACES = re.compile(r"\\{1,3}boxed\s*\{|\\.|[{}]", re.DOTALL)  # the {1,3} forgives escaped backslashes


def _boxes(text: str) -> list[tuple[int, int, int]]:
    r"""Return (start, start of the content, its end) of each complete ``\boxed{...}``, in the order in which they end."""
    first = _BOX.search(text)
    if first is None:
        return []
    found: list[tuple[int, int, int]] = []
    open_braces: list[tuple[int, int]] = []  # where each open box and its content start, (-1, -1) for a plain brace
    for token in _BRACES.finditer(text, max(first.start() - 2, 0)):
        match token[0]:
            case "{":
                open_braces.append((-1, -1))
            case "}":
                start, content = open_braces.pop() if open_braces else (-1, -1)
                if start >= 0:
                    found.append((start, content, token.start()))
            case box if len(box) > 2:
                open_braces.append((token.start(), token.end()))
    return found


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last complete ``\boxed{...}`` (any brace depth, ``\{`` is no brace), or None.

    >>> last_boxed(r"so \boxed{1} or rather \boxed{\frac{1}{2}}, that is \boxed{0.5")
    '\\frac{1}{2}'
    """
    text = text[-MAX_TAIL:]
    boxes = _boxes(text)
    if not boxes:
        return None
    _, content, end = max(boxes)
    return text[content:end].strip()


_SEPARATOR = re.compile(
    r"(?:[ $.]|\\[()])*(?:(?:,|;|&|\\[,; ]|\\q?quad|\\(?:text|mbox)\s*\{\s*,?\s*(?:and|or)\s*\}|and|or)(?:[\s$]|\\[(\[])*)*"
)


def _boxed_answers(text: str) -> list[list[str]]:
    r"""Return the answers in boxes; boxes that stand side by side, with at most a comma, "and" or "or" between, are one list.

    An answer that is repeated in its list stands there once. Of boxes within one another, the inner one counts.
    """
    text = text[-MAX_TAIL:]
    groups: list[list[str]] = []
    forms: set[str] = set()  # of the last group
    last = inner = -1
    for start, content, end in sorted(_boxes(text), key=lambda box: box[2]):
        if start < inner:  # it holds the one before it
            last = end
            continue
        answer = text[content:end].strip()
        if groups and start - last < 50 and _SEPARATOR.fullmatch(text, last + 1, start):
            if canonical(answer) not in forms:
                groups[-1].append(answer)
        else:
            groups.append([answer])
            forms = set()
        forms.add(canonical(answer))
        last, inner = end, content
    return groups


def final_answer(text: str, how: Extract = "boxed") -> str | None:
    r"""Return the answer that a solution commits to: its last ``\boxed{}``, else its last ``####`` line, else None.

    Boxes side by side are one answer, a list. A number named somewhere in the prose is not an answer, unless ``how`` says so.

    >>> final_answer("6*7=42\n#### 42"), final_answer(r"$x=\boxed{2}$ or $\boxed{3}$"), final_answer("The answer is 42.")
    ('42', '2, 3', None)
    >>> final_answer("The answer is 42.", "stated"), final_answer("That makes 1,042 in all.", "number")
    ('42', '1,042')
    """
    boxed = _boxed_answers(text)
    if boxed:
        return ", ".join(filter(None, boxed[-1])) or None
    text = text[-MAX_TAIL:]
    _, marker, rest = text.rpartition("####")
    if marker:
        return rest.split("\n", 1)[0].strip() or None
    answer = _stated(text) if how != "boxed" else None
    if answer is None and how == "number":
        numbers = _LAST_NUMBER.findall(text)
        answer = numbers[-1] if numbers else None
    return answer


_FENCE = re.compile(r"^```(.*)$", re.MULTILINE)


def last_program(text: str) -> tuple[str, int] | None:
    """Return the last complete block of Python between lines of three backticks, and where it begins; None if there is none.

    A block without a name counts as Python. One that is never closed is none.

    >>> last_program("So:\\n```python\\ndef f(xs):\\n    return 1\\n```\\nDone.")
    ('def f(xs):\\n    return 1\\n', 4)
    """
    found = opened = None
    for fence in _FENCE.finditer(text, max(0, len(text) - MAX_TAIL)):
        name = fence[1].strip().lower()
        if opened is None or name:  # one within another shows that the first was not closed
            opened = fence.start(), fence.end() + 1, name in ("", "python", "python3", "py")
        else:
            start, content, python = opened
            found = (text[content : fence.start()], start) if python else found
            opened = None
    return found


def only_answer(worked: str) -> str:
    r"""Return the answer of a worked solution, its ``\boxed{}`` or ``####``; "" if it has none.

    Raises ValueError if its boxes have different answers in several places: which one is the answer is not known.
    """
    answers = {canonical(answer): answer for answer in (", ".join(group) for group in _boxed_answers(worked))}
    if len(answers) > 1:
        raise ValueError(f"{len(answers)} different boxed answers: {'; '.join(answers.values())[:200]}")
    return final_answer(worked) or ""


_TAGS = re.compile(r"<answer>\s*([^<]{1,2000}?)\s*</answer>")
_SAYS = re.compile(r"(?i:\banswer\b\**(?:\s*:|\s+is\b\s*:?))[ \t*]*")
_MATHS = re.compile(r"\$+([^$]+)\$+|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_SENTENCE = re.compile(r"\.(?=\s|$)|\*\*|\n")
_LAST_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")


def _stated(text: str) -> str | None:
    """Return what stands in the last ``<answer>`` tags, or else what stands behind the last "answer:" or "answer is": the
    formula that begins there, or else the rest of the sentence, from its last "is"."""
    if tagged := _TAGS.findall(text):
        return tagged[-1]
    said = list(_SAYS.finditer(text))
    if not said:
        return None
    rest = text[said[-1].end() :][:MAX_ANSWER].lstrip()
    if formula := _MATHS.match(rest):
        return next(filter(None, formula.groups())).strip()
    return _SENTENCE.split(rest, maxsplit=1)[0].rpartition(" is ")[2].strip().removeprefix(": ") or None


# An A or I before a small letter is a word ("A large number"), unless a reason follows.
_NOT_A_WORD = r"(?!(?<=[AI])\s+(?!(?:because|since|as|which|by|from|so|and|or)\b)[a-z])"
_LETTER = re.compile(
    rf"(?:(?i:option|choice|answer)\s*:?\s*)?\(?([A-J])\b{_NOT_A_WORD}\)?[.:]?(?:\s(?!\s*(?:or|and|[A-J])\b).*)?",
    re.DOTALL,
)
_SMALL_LETTER = re.compile(r"(?:(?i:option|choice|answer)\s*:?\s*)?\(?([a-j])\)?[.:]?")
_ANSWER_IS = re.compile(
    r"(?i:\banswer(?: is)?)[:\s*]{0,5}(?i:option |choice )?(?:[$({\\]|text|mathrm|textbf|boxed){0,6}([A-J])\b"
    + _NOT_A_WORD
    + r"(?!\)?[\s,]{1,3}(?:or|and|[A-J])\b)"
)
_BARE = re.compile(r"(?:(?i:option|choice)\s+)?\(?([A-J])\)?\.?")


def choice_letter(text: str) -> str | None:
    r"""Return the option that a multiple-choice solution commits to: its last ``\boxed{}``, else its last "answer is (C)", else
    a last line that is nothing but an option.

    >>> choice_letter(r"\boxed{\text{(C)}}"), choice_letter("**Answer: $B$**"), choice_letter(r"\boxed{A or B}")
    ('C', 'B', None)
    >>> choice_letter("It is the third.\n\n(C)"), choice_letter("The answer is A large number")
    ('C', None)
    """
    boxed = last_boxed(text)
    if boxed is not None:
        answer = unwrap(boxed[:MAX_ANSWER])
        found = _LETTER.fullmatch(answer) or _SMALL_LETTER.fullmatch(answer)
        return found[1].upper() if found else None
    text = text[-MAX_TAIL:]
    if letters := _ANSWER_IS.findall(text):
        return letters[-1]
    bare = _BARE.fullmatch(
        unwrap(text.strip().rpartition("\n")[2][:100].strip("*").replace("<answer>", "").replace("</answer>", ""))
    )
    return bare[1] if bare else None
