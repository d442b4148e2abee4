"""How many adversarial solutions a verifier accepts: the measure, and the short form that every evaluation carries.

A solution is accepted if its score, P(Yes), is at least 1/2. The adversarial ones are made by ``text.adversarial``; the task's
grader has the last word that they are wrong.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from twofold.compute.adversary import wrong
from twofold.compute.judge import Judging, judge_all
from twofold.durable import write_text
from twofold.engines.base import Engine
from twofold.maths.credit import mean
from twofold.maths.stats import clopper_pearson
from twofold.text.adversarial import KINDS, Attack, alone
from twofold.text.chat import Chat
from twofold.types import Problem, Rollout, Task

FILE = "attacks.json"
ALL = "all"
THRESHOLD = 0.5
SHORT = 64
"""Judgements of the short form."""

Judged = tuple[Rollout, float]
"""A solution and its score."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """How many of ``judged`` adversarial solutions were accepted. ``at_most`` is the 95% upper bound of the rate.

    ``held_out``: these wordings are kept out of every training. ``worst`` is the wording that was accepted most often, at
    ``worst_rate``; None if none was accepted.
    """

    kind: str
    held_out: bool
    accepted: int
    judged: int
    at_most: float
    worst: str | None
    worst_rate: float


def accepted(attacked: Sequence[tuple[Attack, float]]) -> list[Accepted]:
    """Return the rate for each kind and half that was judged, and for all of a half (kind ``all``)."""
    rows = []
    for kind in (*KINDS, ALL):
        for held_out in (False, True):
            found = [(a.text, s >= THRESHOLD) for a, s in attacked if kind in (a.kind, ALL) and a.held_out == held_out]
            if found:
                rows.append(_row(kind, held_out, found))
    return rows


def _row(kind: str, held_out: bool, found: Sequence[tuple[str, bool]]) -> Accepted:
    texts: dict[str, list[bool]] = {}
    for text, yes in found:
        texts.setdefault(text, []).append(yes)
    text, verdicts = max(texts.items(), key=lambda item: (mean(item[1]), len(item[1])))
    count = sum(yes for _, yes in found)
    bound = clopper_pearson(count, len(found))
    return Accepted(kind, held_out, count, len(found), bound, text if count else None, mean(verdicts))


def judged(engine: Engine, chat: Chat, solutions: Sequence[Rollout], judging: Judging) -> list[Judged]:
    scores = judge_all(engine, chat, solutions, judging) if solutions else []
    return [(r, score) for r, (score, _) in zip(solutions, scores, strict=True)]


def short_form(
    engine: Engine, chat: Chat, task: Task, problems: Sequence[Problem], judging: Judging, max_tokens: int
) -> Accepted | None:
    """Return how many of about ``SHORT`` held-out attacks that need only the problem are accepted, on the first problems.

    None is longer than the longest prompt with ``max_tokens`` more. Return None if no attack is left to judge.
    """
    rng = random.Random(0)
    held_out = [[a for a in alone(p.question) if a.held_out] for p in problems[:SHORT]]
    turns = [i % len(held_out) for i in range(SHORT)]
    room = max(len(chat.prompt(p.question)) for p in problems[:SHORT]) + max_tokens
    probes = wrong(chat, task, [(problems[i], rng.choice(held_out[i])) for i in turns], room)
    scores = judged(engine, chat, [r for r, _ in probes], judging)
    return _row(ALL, True, [(r.text, score >= THRESHOLD) for r, score in scores]) if scores else None


def save(found: Accepted, directory: Path) -> None:
    """Write the short form into an evaluation's directory."""
    write_text(directory / FILE, json.dumps(asdict(found), indent=1) + "\n")


def read(directory: Path) -> Accepted | None:
    """Return an evaluation's short form; None if it has none."""
    path = directory / FILE
    return Accepted(**json.loads(path.read_text())) if path.is_file() else None
