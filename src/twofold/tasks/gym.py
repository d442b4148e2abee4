"""The hundred procedural tasks of reasoning-gym, by name, with their own scorers (``pip install -e '.[envs]'``).

It uses ``create_dataset(name, seed=, size=)`` and ``data.score_answer(answer=, entry=)`` of reasoning-gym.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from twofold.text.extract import MAX_ANSWER, final_answer
from twofold.types import Grade, Problem

SPLIT_ITEMS = 1_000_000_000
"""The items of a split. Each item of each split has a seed of its own."""

_RUNS_CODE = re.compile(r"\b(?:eval|exec|parse_expr|sympify)\(")


@dataclass(frozen=True, slots=True)
class GymTask:
    """Task ``name`` of reasoning-gym. Item ``i`` of a split is a pure function of (seed, split, i).

    ``options`` go to the task's configuration (``{"min_terms": 3}``). An answer is correct if the task's scorer gives 1.0;
    an answer with partial credit is wrong. Some tasks have many right answers and no reference: their problems have the
    ``answer`` "". Scorers run in this process and without a deadline.

    Raises ImportError without reasoning-gym, and ValueError for a task that it does not have or whose scorer
    runs the model's answer as code.
    """

    name: str
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    _scorer: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        scorer = self._create(0)
        if _RUNS_CODE.search(inspect.getsource(type(scorer).score_answer)):
            raise ValueError(f"the scorer of {self.name!r} runs eval on the model's answer; it is refused")
        object.__setattr__(self, "_scorer", scorer)

    def _create(self, seed: int) -> Any:
        try:
            from reasoning_gym.factory import DATASETS, create_dataset
        except ImportError as e:
            raise ImportError(f"the task {self.name!r} comes from reasoning-gym: pip install -e '.[envs]'") from e
        if self.name not in DATASETS:
            raise ValueError(f"reasoning-gym has no task {self.name!r}; it has {', '.join(sorted(DATASETS))}")
        return create_dataset(self.name, seed=seed, size=1, **self.options)

    def problem(self, split: Literal["train", "test"], i: int) -> Problem:
        """Return item ``i``. It comes from a data set of one item, because some data sets make all their items when created."""
        if split not in ("train", "test"):
            raise ValueError(f"split {split!r} is not one of train, test")
        if not 0 <= i < SPLIT_ITEMS:
            raise IndexError(f"item {i} is not within 0 .. {SPLIT_ITEMS - 1}")
        entry = self._create((2 * self.seed + (split == "train")) * SPLIT_ITEMS + i)[0]
        content = blake2b(entry["question"].encode(), digest_size=8).hexdigest()
        return Problem(f"{self.name}-{content}", entry["question"], str(entry["answer"] or ""), {"entry": entry})

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        """Return the final answer and its grade. If the scorer raises, the grade is an ``error``, never a silent 0."""
        answer = final_answer(text)
        if answer is None:
            return None, Grade(0.0, "no_answer")
        if len(answer) > MAX_ANSWER:
            return answer, Grade(0.0, "wrong")
        try:
            score = self._scorer.score_answer(answer=answer, entry=problem.meta["entry"])
        except Exception:  # third-party code on model output may raise anything; the reward is unknown then
            return answer, Grade(None, "error")
        return answer, Grade(1.0, "correct") if score >= 1.0 else Grade(0.0, "wrong")
