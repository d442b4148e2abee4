"""Texts of an evaluation that are worth reading: where the verdict and the grade differ, and where there is no answer.

``pools.jsonl`` has the numbers of all samples and no text. ``texts.jsonl`` has, of each problem, at most one text of each kind: the
one whose verdict is the furthest off.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twofold.durable import Lines, read_lines
from twofold.types import Group, Label, Pool

FILE = "texts.jsonl"
KINDS = {"believed": "wrong, but believed", "doubted": "right, but doubted", "no_answer": "no answer"}
BELIEVED = 0.5
"""A sample with at least this P(Yes) is believed."""
SHOWN = 12
"""Texts of each kind in a report."""
CHARACTERS = 1500
"""Characters of a text in a report, and half as many of its question."""


@dataclass(frozen=True, slots=True)
class Text:
    """A sample to read. ``score`` is its P(Yes), None if nothing judged it; long texts have lost their middle."""

    problem: str
    question: str
    reference: str
    sample: int
    text: str
    answer: str | None
    label: Label
    score: float | None
    tokens: int


@dataclass(frozen=True, slots=True)
class Texts:
    """How many samples there are of each kind, and some of them; ``saved`` is False if there are such samples but no text."""

    counts: dict[str, int]
    shown: dict[str, list[Text]]
    saved: bool


def kind_of(label: str, score: float | None) -> str | None:
    """Return which of ``KINDS`` a sample with this grade and P(Yes) is, None if the two agree or nothing judged it.

    >>> kind_of("wrong", 0.5), kind_of("correct", 0.49), kind_of("correct", 0.5), kind_of("no_answer", None), kind_of("wrong", None)
    ('believed', 'doubted', None, 'no_answer', None)
    """
    if label == "no_answer":
        return "no_answer"
    if score is None or label not in ("wrong", "correct") or (label == "correct") == (score >= BELIEVED):
        return None
    return "believed" if label == "wrong" else "doubted"


def write_texts(file: Lines, group: Group, scores: Sequence[float | None]) -> None:
    """Append the text of one sample of each kind that a problem's group has."""
    for kind in KINDS:
        mine = [i for i, r in enumerate(group) if kind_of(r.grade.label, scores[i]) == kind]
        if mine:
            i = min(mine, key=lambda i: _order(kind, scores[i]))
            file.write(json.dumps({"problem": group[0].problem.id, "sample": i, "text": group[i].text}))


def read_texts(directory: Path, pools: Sequence[Pool]) -> Texts:
    """Count the samples of each kind, and return ``SHOWN`` saved texts of each, those first whose verdict is the furthest off."""
    counts = dict.fromkeys(KINDS, 0)
    for pool in pools:
        for grade, score in zip(pool.grades, pool.scores, strict=True):
            if kind := kind_of(grade.label, score):
                counts[kind] += 1
    saved = {(row["problem"], row["sample"]): row["text"] for row in read_lines(directory / FILE)}
    found: dict[str, list[Text]] = {kind: [] for kind in KINDS}
    for pool in pools:
        for i, (grade, score) in enumerate(zip(pool.grades, pool.scores, strict=True)):
            kind, p = kind_of(grade.label, score), pool.problem
            if kind and (p.id, i) in saved:
                question, text = shortened(p.question, CHARACTERS // 2), shortened(saved[p.id, i], CHARACTERS)
                row = Text(p.id, question, p.answer, i, text, pool.answers[i], grade.label, score, pool.tokens[i])
                found[kind].append(row)
    shown = {kind: sorted(rows, key=lambda r: _order(kind, r.score))[:SHOWN] for kind, rows in found.items()}
    return Texts(counts, shown, bool(saved) or not any(counts.values()))


def _order(kind: str, score: float | None) -> float:
    """Return a number that is lower the further off a verdict is."""
    return 0.0 if score is None else score if kind == "doubted" else -score


def shortened(text: str, most: int) -> str:
    """Return a text without its middle if it has more than ``most`` characters: it begins with the idea and ends with the answer.

    >>> shortened("abcdefghij", 4)
    'ab\\n[... 6 characters left out ...]\\nij'
    """
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out ...]\n{text[-half:]}"
