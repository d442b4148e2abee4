"""What an answer cost, counted the same way for every strategy."""

from __future__ import annotations

from dataclasses import dataclass

from twofold.types import Candidate


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens, and seconds of wall-clock time.

    ``prompt``: the question's own, once (n samples share it). ``generated``: drawn or forced, those of discarded branches
    included. ``verified``: read or written to judge, beyond what generation had read. ``discarded``: the part of
    ``generated`` that no candidate contains.
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
    """One problem's candidate solutions, however they were made, with one score each if making them gave one."""

    candidates: list[Candidate]
    scores: list[float] | None
    cost: Cost
