"""A task whose right answers anybody can see."""

from __future__ import annotations

from twofold.types import Grade, Problem


class Words:
    """Right is what ends in "yes"; what ends in "late" cannot be graded in time."""

    name = "words"

    def problem(self, split: str, i: int) -> Problem:
        return Problem(f"{split}-{i}", f"Q{i}", "yes")

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        if text.endswith("late"):
            return text, Grade(None, "timeout")
        return text, Grade(1.0, "correct") if text.endswith("yes") else Grade(0.0, "wrong")
