"""A task whose right answers are easy to see, and a view of its samples' credit."""

from __future__ import annotations

from twofold.text.chat import Chat
from twofold.types import Grade, Problem, Sample


class Words:
    """Texts that end in "yes" are right; texts that end in "late" cannot be graded in time."""

    name = "words"

    def problem(self, split: str, i: int) -> Problem:
        return Problem(f"{split}-{i}", f"Q{i}", "yes")

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        if text.endswith("late"):
            return text, Grade(None, "timeout")
        return text, Grade(1.0, "correct") if text.endswith("yes") else Grade(0.0, "wrong")


def credit(chat: Chat, sample: Sample) -> list[tuple[str, float]]:
    """Return the runs of sampled tokens with the same advantage, as (text, advantage)."""
    assert not any(a for a, s in zip(sample.advantages, sample.sampled, strict=True) if not s)
    runs: list[tuple[list[int], float]] = []
    for t, a, s in zip(sample.tokens, sample.advantages, sample.sampled, strict=True):
        if s and (not runs or runs[-1][1] != a):
            runs.append(([], a))
        if s:
            runs[-1][0].append(t)
    return [(chat.decode(tokens), a) for tokens, a in runs]
