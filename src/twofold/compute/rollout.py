"""Problems in, rollouts out, graded by a task or not at all: one engine call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from twofold.engines.base import Engine
from twofold.text.chat import Chat
from twofold.text.extract import final_answer
from twofold.types import Completion, Grade, Group, Problem, Rollout, Sampling


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


def draw(engine: Engine, chat: Chat, questions: Sequence[str], sampling: Sampling) -> list[Group]:
    """``sampling.n`` solutions of every question, not graded."""
    prompts = [chat.prompt(q) for q in questions]
    drawn = zip(questions, prompts, engine.generate(prompts, sampling), strict=True)
    return [[ungraded(chat, Problem("", q, ""), prompt, c) for c in completions] for q, prompt, completions in drawn]


def ungraded(chat: Chat, problem: Problem, prompt: list[int], completion: Completion) -> Rollout:
    """A rollout that nobody graded, with the answer its text commits to."""
    text = chat.decode(completion.tokens)
    return Rollout(problem, prompt, completion, text, final_answer(text), Grade(None, "no_answer"))


def extend(engine: Engine, chat: Chat, cut: Sequence[Rollout], sampling: Sampling) -> list[Rollout]:
    """Each of these by up to ``sampling.max_tokens`` more tokens, from its cache where the engine has kept it."""
    prompts = [[*r.prompt, *r.completion.tokens] for r in cut]
    more = engine.generate(prompts, replace(sampling, n=1))
    return [ungraded(chat, r.problem, r.prompt, join(r.completion, m)) for r, (m,) in zip(cut, more, strict=True)]


def join(first: Completion, more: Completion) -> Completion:
    """A completion and what was drawn behind it."""
    return Completion(
        first.tokens + more.tokens,
        first.logprobs + more.logprobs,
        first.sampled + more.sampled,
        more.finish,
        None if first.confidence is None or more.confidence is None else first.confidence + more.confidence,
        None if first.certainty is None or more.certainty is None else first.certainty + more.certainty,
    )
