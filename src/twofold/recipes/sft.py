"""Supervised fine-tuning (SFT): targets only, no policy stream. Pretraining uses the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from twofold.engines.base import Engine
from twofold.ranges import checked
from twofold.recipes import common
from twofold.recipes.common import Setup
from twofold.text.chat import Chat, Turn
from twofold.types import Collected, Problem, Sample


@checked
class SFT:
    """Learn the worked solutions of a data set."""

    name: Literal["sft"] = "sft"

    def build(self, setup: Setup) -> Recipe:
        return Recipe(setup.chat)


class Recipe(common.Recipe):
    """SFT in one run: every token of a reply is a target of weight 1, and the loss is the mean per token."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    def collect(self, engine: Engine, problems: Sequence[Problem], step: int) -> Collected:
        """Return a sample per problem. Raises ValueError for a problem without a worked solution."""
        return Collected({"policy": [sample(self.chat, [Turn(p.question, solution(p))]) for p in problems]}, {})

    def text(self, problem: Problem) -> str:
        return f"{problem.question}{solution(problem)}"


def solution(problem: Problem) -> str:
    """Return the worked solution. Raises ValueError if there is none."""
    if "solution" not in problem.meta:
        raise ValueError(
            f"problem {problem.id} has no worked solution: name its column with --task.solution_column, or learn from "
            "chat messages or from answers that end in #### or \\boxed{}"
        )
    return problem.meta["solution"]


def sample(chat: Chat, turns: Sequence[Turn]) -> Sample:
    """Return a conversation as a sample. A reply's tokens are targets with the weight ``learn`` of its turn."""
    tokens, targets = chat.conversation(turns)
    zeros: list[Any] = [0.0] * len(tokens)
    return Sample(tokens, [False] * len(tokens), zeros, list(zeros), targets)
