"""Grading runs beside sampling: it starts when a completion ends, delays no other, and changes no result."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

import twofold
from twofold.compute.rollout import continue_graded, graded, rollouts, value
from twofold.engines.base import Finished, ignore_finished
from twofold.engines.native import NativeEngine
from twofold.run import Model
from twofold.tasks.grading import grade
from twofold.tasks.procedural import Sums
from twofold.types import Completion, Grade, Problem, Sampling

PROBLEMS = [Sums().problem("train", i) for i in range(4)]
SECONDS = 20.0
"""The longest wait for an event that should come."""


@pytest.fixture(scope="module")
def model() -> Model:
    return twofold.load("tiny")


@dataclass(frozen=True)
class Patient(Sums):
    """A task whose first grade lasts until all completions have been sampled."""

    begun: threading.Event = field(default_factory=threading.Event)
    sampled: threading.Event = field(default_factory=threading.Event)

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        if not self.begun.is_set():
            self.begun.set()
            assert self.sampled.wait(SECONDS), "sampling waits for a grade"
        return super().grade(problem, text)


@dataclass
class Watched:
    """The real engine, which waits at the first finished completion until ``task`` has begun to grade it."""

    engine: NativeEngine
    task: Patient

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished = ignore_finished
    ) -> list[list[Completion]]:
        def one(i: int, j: int, completion: Completion) -> None:
            finished(i, j, completion)
            assert self.task.begun.wait(SECONDS), "nothing is graded while the others are sampled"

        groups = self.engine.generate(prompts, sampling, one)
        self.task.sampled.set()
        return groups


def test_grading_begins_while_the_others_are_sampled_and_holds_up_none(model: Model) -> None:
    task, sampling = Patient(), Sampling(n=4, max_tokens=48, stop=model.chat.stop)
    prompts = [model.chat.prompt(p.question) for p in PROBLEMS]
    model.engine.load({})  # caches that other tests left would change roundings
    drawn = model.engine.generate(prompts, sampling)
    model.engine.load({})
    assert len({len(c.tokens) for group in drawn for c in group}) > 1  # some end before others
    groups = rollouts(Watched(model.engine, task), model.chat, task, PROBLEMS, sampling)
    assert task.begun.is_set()
    for problem, prompt, completions, group in zip(PROBLEMS, prompts, drawn, groups, strict=True):
        assert group == graded(model.chat, Sums(), [(problem, prompt, c) for c in completions])


class Maths(Sums):
    """A task in which about every second answer takes as long as the grader's deadline."""

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        answer = r"9^{9^{9^{9}}}" if len(text) % 2 else "1+x"
        return answer, grade("x+1", rf"\boxed{{{answer}}}", deadline=0.5)


def test_slow_grades_come_back_in_order(model: Model) -> None:
    sampling = Sampling(n=4, max_tokens=48, stop=model.chat.stop, seed=1)
    model.engine.load({})
    groups = rollouts(model.engine, model.chat, Maths(), PROBLEMS, sampling)
    everyone = [r for group in groups for r in group]
    assert {r.grade.label for r in everyone} == {"correct", "timeout"}
    for r in everyone:
        assert r.grade.label == ("timeout" if len(r.text) % 2 else "correct")
    model.engine.load({})
    drawn = model.engine.generate([model.chat.prompt(p.question) for p in PROBLEMS], sampling)
    assert [[r.completion for r in group] for group in groups] == drawn


def test_a_grader_that_fails_is_heard_of(model: Model) -> None:
    class Broken(Sums):
        def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
            raise LookupError(problem.id)

    with pytest.raises(LookupError):
        rollouts(model.engine, model.chat, Broken(), PROBLEMS, Sampling(max_tokens=4, stop=model.chat.stop))


def test_continuations_are_graded_as_a_whole(model: Model) -> None:
    """Each begins with the prefix that it continues, and belongs to that prefix's problem."""
    chat, sampling = model.chat, Sampling(n=3, max_tokens=48, stop=model.chat.stop)
    first = [r for (r,) in rollouts(model.engine, chat, Sums(), PROBLEMS, Sampling(max_tokens=48, stop=chat.stop))]
    ends = [[0, len(r.completion.tokens) // 2] for r in first]
    model.engine.load({})
    found = continue_graded(model.engine, chat, Sums(), first, ends, sampling)
    for begun, own, groups in zip(first, ends, found, strict=True):
        for end, group in zip(own, groups, strict=True):
            for r in group:
                assert (r.problem, r.prompt) == (begun.problem, begun.prompt)
                assert r.completion.tokens[:end] == begun.completion.tokens[:end]
                assert (r.answer, r.grade) == Sums().grade(r.problem, chat.decode(r.completion.tokens))
            assert len(group) == 3 and value(group) == sum(r.grade.reward or 0.0 for r in group) / 3
    assert continue_graded(model.engine, chat, Sums(), first, [[]] * 4, sampling) == [[]] * 4
