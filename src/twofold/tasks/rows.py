r"""From a row of a data set to a problem: which columns it takes, and what they must hold.

All of a question goes into the prompt: the text that comes before it and the options to choose from, too. A row whose
question has a part that cannot be posed is malformed.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from twofold.tasks.known import Named, Row
from twofold.tasks.reading import MAX_ROW
from twofold.text.extract import last_boxed, only_answer
from twofold.types import Problem

PROMPTS = ("problem", "question", "prompt", "messages")
VERL, SKYRL = "reward_model.ground_truth", "reward_spec.ground_truth"
ANSWERS = (
    "answer", "final_answer", "ground_truth", VERL, SKYRL, "correct answer", "label", "answerKey", "answer_idx", "solution",
)  # fmt: skip
SOLUTION = "solution"
BEFORE = ("context", "body", "passage", "article", "story", "premise", "background")
"""Columns with a text that comes before the question."""
OPTIONS = ("choices", "options")
UNPOSED = ("image", "images", "table")
"""Columns with a part of the question that cannot be posed."""
IDS = ("id", "unique_id", "idx", "record id")
NO_NUMBERS = ("nan", "inf", "-inf")
"""What a number that is not finite looks like as text. (Infinity is an answer: ``\\infty``.)"""
WRONG_OPTIONS = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that a set's question, answer and worked solution are taken from.

    ``answer`` is None in a set that has solutions only. ``solution`` is None unless it was asked for: each row may have one.
    ``named`` says that the question's column was asked for.
    """

    prompt: str
    answer: str | None
    solution: str | None = None
    named: bool = False


def choose_columns(
    row: Row, prompt: str | None, answer: str | None, solution: str | None, named: Named, where: str, hint: str
) -> Columns:
    """Return the columns that were asked for, or else those of the usual names that this row has.

    The columns of a known set come first; one that is posed from several columns has no others, and its error ends in
    ``hint``. An answer is not needed where there is a worked solution.
    """
    found: list[str | None] = []
    columns = ("prompt", prompt, named.prompt, PROMPTS), ("answer", answer, named.answer, ANSWERS)
    for kind, asked, known, usual in columns:
        own = asked or known
        names = ([own] if own else []) + ([] if asked or named.pose else [*usual])
        name = next((here for name in names if (here := held(row, name)) is not None), None)
        if kind == "answer" and not asked:
            if name == solution:
                name = None  # a solution that is asked for need not have an answer
            if name is None and (solution or said(field(row, found[0] or ""), "assistant")):
                found.append(None)
                continue
        if name is None:
            missing = f"no {names[0]!r}" if len(names) == 1 else f"none of {', '.join(names)}"
            do = hint if named.pose else f" Name it with --{kind}-column (task.{kind}_column)."
            raise ValueError(f"{where} has {missing}; it has {', '.join(row)}.{do}")
        found.append(name)
    assert found[0] is not None
    if solution and field(row, solution) is None:
        raise ValueError(f"{where} has no {solution!r}; it has {', '.join(row)}. Name it with task.solution_column.")
    return Columns(found[0], found[1], solution, named=prompt is not None)


def field(row: Row, name: str) -> Any:
    """Return ``row[name]``, or the nested field that a dotted ``name`` leads to; None if there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def held(row: Row, name: str) -> str | None:
    """Return the name as this row spells it ("Question" for "question"), if there is something in that column."""
    if field(row, name) is not None:
        return name
    return next((key for key in row if key.lower() == name.lower() and row[key] is not None), None)


def to_problem(
    name: str, i: int, row: Row, columns: Columns, pose: Callable[[Row], tuple[str, str]] | None = None
) -> Problem:
    """Return row ``i`` as a problem, with its worked solution, if it has one, in ``meta``.

    Raises ValueError that says what is missing. Without an answer's column the answer is that of the solution, or "".
    """
    solution = solution_of(row, columns)
    own = [column for column in (columns.prompt, columns.answer) if column]
    taken = {*own, *(key for name in (*BEFORE, *OPTIONS) if (key := held(row, name)))}
    meta = {key: value for key, value in row.items() if key not in taken and is_small(value)}
    options: list[str] = []
    if pose:
        question, reference = (clean(column, text) for column, text in zip(own, pose(row), strict=True))
    else:
        question = clean(columns.prompt, posed(row, columns))
        reference = "" if columns.answer is None else field(row, columns.answer)
        if (found := options_of(row)) is not None:
            options, labels = found
            reference = letter_of(reference, options, labels)
        elif columns.answer is None:
            reference = only_answer(solution or "")
        else:
            reference = clean(columns.answer, as_answer(reference))
        if reference.strip("\\$+- ").lower() in NO_NUMBERS:
            raise ValueError(f"the answer is {reference}, not a number")
        if all(isinstance(row.get(key), str) for key in WRONG_OPTIONS):
            options = [reference, *(clean(key, row[key]) for key in WRONG_OPTIONS)]
            random.Random(question).shuffle(options)  # seeded by the question, so that it is the same in every run
            reference = LETTERS[options.index(reference)]
    if options:
        question = with_options(question, options)
        meta = {key: value for key, value in meta.items() if key not in WRONG_OPTIONS} | {"options": options}
    if solution is not None:
        meta[SOLUTION] = clean(columns.solution or SOLUTION, solution)
    number = next((row[key] for name in IDS if (key := held(row, name))), i)
    return Problem(clean("id", f"{name}-{number}"), question, reference, meta)


def described(name: str, columns: Columns, row: Row) -> str:
    """Return a line that says which columns of a row were taken."""
    before = [repr(key) for label in BEFORE if (key := held(row, label)) and key != columns.prompt and row[key]]
    parts = [f"question from {' and '.join([*before, repr(columns.prompt)])}"]
    parts += [f"options from {key!r}" for label in OPTIONS if (key := held(row, label)) and row[key]]
    parts += [f"answer from {columns.answer!r}"] if columns.answer else ["worked solutions only, for SFT"]
    parts += [f"solution from {columns.solution!r}"] if columns.solution else []
    system = said(field(row, columns.prompt), "system")
    return f"{name}: {', '.join(parts)}" + ("; system turns are left out" if system else "")


def is_small(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) or (isinstance(value, str) and len(value) <= 100 and is_text(value))


def is_text(text: str) -> bool:
    """Return whether a text has no NUL and no half of a surrogate pair, which not every file can hold."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def clean(column: str, text: str) -> str:
    if not text.strip():
        raise ValueError(f"empty {column!r}")
    if len(text) > MAX_ROW:
        raise ValueError(f"{column!r} has {len(text):,} characters, more than {MAX_ROW:,}")
    if "\0" in text:
        raise ValueError(f"a NUL character in {column!r}")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(f"bytes that are not UTF-8, or half a surrogate pair, in {column!r}")
    return text.strip()


# --- the question -----------------------------------------------------------------------------------------------------


def posed(row: Row, columns: Columns) -> str:
    """Return the question after the text that comes before it. Raises ValueError if a part of it cannot be posed."""
    if not columns.named and (part := next((key for name in UNPOSED if (key := held(row, name)) and row[key]), None)):
        raise ValueError(f"{part!r} is a part of the question that cannot be posed")
    texts = []
    for name in BEFORE:
        key = held(row, name)
        if key is None or key == columns.prompt or row[key] in ("", []):
            continue
        if not isinstance(row[key], str):
            raise ValueError(f"{key!r} comes before the question and is no text")
        texts.append(row[key].strip())
    return "\n".join([*texts, as_question(field(row, columns.prompt))])


def as_question(value: Any) -> str:
    """Return the question in a cell: a string, or the only user turn of a list of chat messages."""
    if isinstance(value, list):
        turns = said(value, "user")
        if len(turns) > 1:
            raise ValueError(f"a conversation of {len(turns)} user turns; a question has one")
        value = turns[0] if turns else None
    if not isinstance(value, str):
        raise ValueError("no question: neither text nor chat messages with a user turn")
    return value


def said(messages: Any, role: str) -> list[str]:
    """Return what a list of chat messages says in a role, nothing for another value. Raises ValueError for one that is no text."""
    if not isinstance(messages, list):
        return []
    return [_text(m.get("content")) for m in messages if isinstance(m, Mapping) and m.get("role") == role]


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(_text(part.get("text") if isinstance(part, Mapping) else part) for part in content)
    if not isinstance(content, str):
        raise ValueError("a chat message that is no text")
    return content


# --- options to choose from -------------------------------------------------------------------------------------------

_OWN_LETTER = re.compile(r"\s*\(?([A-J])[).:]\s*")


def options_of(row: Row) -> tuple[list[str], list[str]] | None:
    """Return the options of a multiple-choice question and their labels, or None if it has none.

    They stand in a list ["4", "6"], in a mapping {"A": "4", "B": "6"} or {"label": ["A", "B"], "text": ["4", "6"]}, or in
    columns A, B, C ... Raises ValueError for anything else.
    """
    name = next((key for option in OPTIONS if (key := held(row, option)) and row[key]), None)
    value = {letter: row[letter] for letter in LETTERS if held(row, letter) == letter} if name is None else row[name]
    if name is None and not {"A", "B"} <= value.keys():
        return None
    labels: list[Any] = [*LETTERS]
    if isinstance(value, Mapping) and value.keys() == {"label", "text"}:
        labels, value = value["label"], value["text"]
    elif isinstance(value, Mapping):
        labels, value = [*value], [*value.values()]
    if not isinstance(value, list) or not all(isinstance(option, str | int | float) for option in value):
        raise ValueError(f"{name!r} holds no list of options")
    if not 2 <= len(value) <= min(len(labels), len(LETTERS)):
        raise ValueError(f"{len(value)} options; a question has 2 to {len(LETTERS)}")
    texts = [str(option) for option in value]
    own = [_OWN_LETTER.match(text) for text in texts]
    if all(found and found[1] == letter for found, letter in zip(own, LETTERS, strict=False)):
        texts = [text[found.end() :] for text, found in zip(texts, own, strict=True) if found]
    return [clean("an option", text) for text in texts], [str(label) for label in labels[: len(texts)]]


def letter_of(answer: Any, options: list[str], labels: list[str]) -> str:
    """Return the letter of the right option. The answer is its number from 0, its label or letter, or its text."""
    wanted = "" if answer is None else str(answer).strip()
    own = _OWN_LETTER.match(wanted)
    if isinstance(answer, int | float) and not isinstance(answer, bool) and labels == [*LETTERS][: len(labels)]:
        matches = [int(answer)] if answer in range(len(options)) else []
    elif isinstance(answer, str) and (bare := wanted.strip("().")) in labels:
        matches = [labels.index(bare)]
    else:
        matches = [i for i, option in enumerate(options) if option in (wanted, wanted[own.end() :] if own else wanted)]
    if len(matches) != 1:
        raise ValueError(
            f"the answer {answer!r} is none of the {len(options)} options: neither number, letter nor text"
        )
    return LETTERS[matches[0]]


def with_options(question: str, options: list[str]) -> str:
    return f"{question}\n\n" + "\n".join(f"({a}) {text}" for a, text in zip(LETTERS, options, strict=False))


# --- the answer and the solution --------------------------------------------------------------------------------------


def as_answer(value: Any) -> str:
    r"""Return the reference in a cell: 27.0 -> "27", ["2", "3"] -> "2, 3", a worked solution -> its ``####`` or ``\boxed{}``.

    Raises ValueError for a worked solution that has neither, or boxes with different answers in several places, and for a
    number that is not finite.
    """
    if isinstance(value, list):
        return ", ".join(clean("answer", as_answer(v)) for v in value)
    if str(value).strip().lower() in NO_NUMBERS:
        raise ValueError(f"the answer is {value}, not a number")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise ValueError("no answer")
    if not is_worked(value):
        if "\n" in value.strip() or len(value) > 500:
            raise ValueError("the answer is a worked solution without \\boxed{} or ####")
        return value
    return only_answer(value)


def is_worked(text: str) -> bool:
    return last_boxed(text) is not None or "####" in text


def solution_of(row: Row, columns: Columns) -> str | None:
    """Return the worked solution: of its column, of the assistant's turn after the question, or the answer if it is worked.

    Raises ValueError if there is none, and it was asked for or there is no answer.
    """
    if columns.solution:
        cell = field(row, columns.solution)
        turns = [cell] if isinstance(cell, str) else said(cell, "assistant")
    else:
        cell = field(row, held(row, SOLUTION) or SOLUTION)
        turns = [cell] if isinstance(cell, str) and cell.strip() else said(field(row, columns.prompt), "assistant")
        answer = field(row, columns.answer) if columns.answer else None
        if not turns and isinstance(answer, str) and is_worked(answer):
            turns = [answer]
    if not turns and (columns.solution or columns.answer is None):
        raise ValueError("no worked solution: neither text nor chat messages with an assistant's turn")
    return turns[-1] if turns else None
