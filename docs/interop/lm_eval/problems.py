"""The problems of the two tasks beside this file: `sums`, made when they are asked for and graded as twofold grades."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from twofold.tasks.grading import grade
from twofold.tasks.procedural import Sums

PROBLEMS = 40


def questions(**_: Any) -> dict[str, Dataset]:
    made = [Sums().problem("test", i) for i in range(PROBLEMS)]
    return {"test": Dataset.from_list([{"question": p.question, "answer": p.answer} for p in made])}


def choices(**_: Any) -> dict[str, Dataset]:
    """Problems that offer a choice of starts, as multiple choice: the answer is given without a solution."""
    made = [Sums(choice=1.0).problem("test", i) for i in range(PROBLEMS)]
    rows = [
        {
            "question": p.question,
            "choices": [rf"\boxed{{{start}}}" for start in p.meta["starts"]],
            "label": p.meta["starts"].index(p.meta["start"]),
        }
        for p in made
    ]
    return {"test": Dataset.from_list(rows)}


def graded(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"acc": float(grade(doc["answer"], results[0]).label == "correct")}
