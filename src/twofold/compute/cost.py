"""The cost of an answer, counted in the same way for every strategy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from twofold.types import Candidate

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens, and seconds of wall-clock time.

    ``prompt``: tokens of the question, counted once (n samples share it). ``generated``: tokens drawn or forced, including
    discarded ones. ``verified``: tokens read or written to judge, beyond those that generation had read. ``discarded``: the
    part of ``generated`` that no candidate contains.
    """

    prompt: int = 0
    generated: int = 0
    verified: int = 0
    discarded: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.prompt + other.prompt,
            self.generated + other.generated,
            self.verified + other.verified,
            self.discarded + other.discarded,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True, slots=True)
class Made:
    """One problem's candidate solutions, with a score each if the way they were made gives one, and what they cost."""

    candidates: list[Candidate]
    scores: list[float] | None
    cost: Cost


def in_groups(items: Sequence[T], n: int) -> list[Sequence[T]]:
    """Cut a flat list into groups of ``n``, one per question."""
    return [items[i : i + n] for i in range(0, len(items), n)]


def account(
    prompts: Sequence[Sequence[int]],
    groups: Sequence[Sequence[Candidate]],
    generated: Sequence[int],
    began: float,
    verified: Sequence[int] | None = None,
    scores: Sequence[list[float]] | None = None,
) -> list[Made]:
    """Return one ``Made`` per question, for ways of making whose candidates share no drawn token.

    ``generated`` and ``verified`` are tokens per question. What was generated and is in no candidate counts as discarded.
    Every question has an equal share of the seconds since ``began``.
    """
    seconds = (time.monotonic() - began) / max(1, len(prompts))
    made = []
    for i, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
        kept = sum(len(c.completion.tokens) for c in group)
        cost = Cost(len(prompt), generated[i], verified[i] if verified else 0, generated[i] - kept, seconds)
        made.append(Made(list(group), scores[i] if scores else None, cost))
    return made
