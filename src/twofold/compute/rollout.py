"""Problems in, graded rollouts out: one engine call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from twofold.engines.base import Engine
from twofold.text.chat import Chat
from twofold.types import Grade, Group, Problem, Rollout, Sampling


class Task(Protocol):
    """Where problems come from and who grades them. ``problem`` is a pure function of its arguments."""

    @property
    def name(self) -> str: ...

    def problem(self, split: Any, i: int) -> Problem: ...

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        """(extracted answer, grade) of a solution's text."""
        ...


def rollouts(engine: Engine, chat: Chat, task: Task, problems: Sequence[Problem], sampling: Sampling) -> list[Group]:
    """``sampling.n`` graded rollouts of every problem."""
    prompts = [chat.prompt(p.question) for p in problems]
    groups = []
    for problem, prompt, completions in zip(problems, prompts, engine.generate(prompts, sampling), strict=True):
        group = []
        for completion in completions:
            text = chat.decode(completion.tokens)
            answer, grade = task.grade(problem, text)
            group.append(Rollout(problem, prompt, completion, text, answer, grade))
        groups.append(group)
    return groups
