"""Tasks and rewards that users bring. Their code runs under the grader's deadline, and its failures have a label.

Code from a file (``mine.py:Name``) runs in processes that can be killed, as the grader's does. If a function raises or
returns something else than it should, its rollout is an ``error``; if it takes too long, a ``timeout``. In both cases the
reward is unknown, not 0. Each kind of failure is logged once, with its traceback.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from numbers import Real
from typing import Any, get_args

from twofold import source as sources
from twofold.tasks import grading
from twofold.tasks.workers import Failed, Workers, described, in_time
from twofold.text.extract import final_answer
from twofold.text.notation import canonical
from twofold.types import Grade, Label, Problem

log = logging.getLogger(__name__)

CORRECT = "correct"
"""The task's own reward, where rewards are named."""

logged: set[str] = set()  # kinds of failures


class Wrapper:
    """A task with another ``grade``."""

    def __init__(self, task: Any) -> None:
        self.task, self.name = task, task.name

    @property
    def code(self) -> list[str]:
        """The user's code that poses and grades, pinned: two evaluations with other code are not the same."""
        return self.task.code if isinstance(self.task, Wrapper) else []

    def problem(self, split: Any, i: int) -> Problem:
        return self.task.problem(split, i)


def inner(task: Any) -> Any:
    """Return the task itself, without the wrappers of its ``grade``."""
    return inner(task.task) if isinstance(task, Wrapper) else task


def form_of(task: Any) -> Callable[[str], str] | None:
    """Return the normal form that tells a task's answers apart in a vote; None where they are compared as mathematics.

    It is the task's own ``form``, if it has one. A user's task with a grader of its own and no ``form`` has ``canonical``.
    """
    found = inner(task)
    return getattr(found, "form", canonical if hasattr(found, "grade") else None)


class Guarded(Wrapper):
    """A user's task. It has ``name``, ``problem(split, i)`` and, if it grades in its own way, ``grade(problem, text)``.

    Without ``grade`` the final answer is compared with the problem's, as for any data set. ``grade`` runs in a thread; as a
    thread cannot be killed, one that hangs is abandoned after ``workers.WALL`` seconds. Raises ValueError for what is no task.
    """

    def __init__(self, task: Any, source: str = "") -> None:
        self.source = source or getattr(task, "__qualname__", type(task).__qualname__)
        super().__init__(instance(task, self.source))

    def problem(self, split: Any, i: int) -> Problem:
        """Return a problem. Raises ValueError if the user's ``problem`` raises or returns something else."""
        call = f"{self.source}: problem({split!r}, {i})"
        try:
            found = self.task.problem(split, i)
        except Exception as error:
            raise ValueError(f"{call} failed: {described(error)[1]}: {error}") from error
        texts = (found.id, found.question, found.answer) if isinstance(found, Problem) else (None,)
        if not all(isinstance(text, str) for text in texts) or not isinstance(found.meta, Mapping):
            raise ValueError(f"{call} must return a Problem, made of three texts and a dict, not {found!r:.200}")
        return found

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        if not hasattr(self.task, "grade"):
            return final_answer(text), grading.grade(problem.answer, text)
        try:
            return self._grade(problem, text)
        except Failed as failed:
            return None, unknown(failed)

    @property
    def code(self) -> list[str]:
        return [sources.describe(self.task)]

    def _grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        return in_time(f"{self.source}.grade", lambda: answer_and_grade(self.task.grade(problem, text)))


class FromSource(Guarded):
    """A user's task from a file. Its ``grade`` runs in processes that can be killed. Raises what ``source.load`` raises, too."""

    def __init__(self, source: str) -> None:
        super().__init__(sources.load(source), source)
        self.workers = Workers("task", sources.pin(source))

    @property
    def code(self) -> list[str]:
        return [self.workers.source]

    def _grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        answer, reward, label = self.workers.call(problem, text)
        return answer, Grade(reward, label)


class Rewarded(Wrapper):
    """A task whose reward is the weighted sum of users' functions, among which ``CORRECT`` is the task's own reward.

    A function takes (problem, text) and returns a number or a ``Grade``. The task decides whether a solution is correct,
    unless a function returns a ``Grade``: then the first such label counts. Raises ValueError for what is no such function.
    """

    def __init__(self, task: Any, functions: Sequence[str], weights: Sequence[float] = ()) -> None:
        check_weights(functions, weights)
        super().__init__(task)
        self.functions = [None if name == CORRECT else Workers("reward", function(name)) for name in functions]
        self.weights = list(weights) or [1.0] * len(functions)

    @property
    def code(self) -> list[str]:
        names = [CORRECT if workers is None else workers.source for workers in self.functions]
        return [*super().code, *(f"{weight:g} * {name}" for weight, name in zip(self.weights, names, strict=True))]

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        answer, own = self.task.grade(problem, text)
        total, label = 0.0, None
        for workers, weight in zip(self.functions, self.weights, strict=True):
            reward = own.reward
            if workers is not None:
                try:
                    _, reward, says = workers.call(problem, text)
                except Failed as failed:
                    return answer, unknown(failed)
                label = label or says
            if reward is None:
                return answer, Grade(None, label or own.label)
            total += weight * reward
        return answer, Grade(total, label or own.label)


def check_weights(functions: Sequence[str], weights: Sequence[float]) -> None:
    """Raise ValueError unless there is a weight for each function, or none at all."""
    if weights and len(weights) != len(functions):
        raise ValueError(f"reward names {len(functions)} functions, and reward_weights has {len(weights)} numbers")


def unknown(failed: Failed) -> Grade:
    """Return the grade of a solution on which a user's code failed. The first failure of each kind is logged."""
    if failed.kind not in logged:
        logged.add(failed.kind)
        left_out = f"Rollouts that fail like this are labelled {failed.label} and left out of training. Logged once."
        log.error("%s\n%s", failed, left_out)
    return Grade(None, failed.label)


def instance(found: Any, source: str) -> Any:
    """Return the task that a source names by its class or as an object. Raises ValueError for something else."""
    task = found() if isinstance(found, type) else found
    if missing := [name for name in ("name", "problem") if not hasattr(task, name)]:
        raise ValueError(f"{source} is no task: it has no {' and no '.join(missing)}")
    return task


def function(source: str) -> str:
    """Return the pinned source of a reward. Raises ValueError if it is a class or cannot be called with (problem, text)."""
    found = sources.load(source)
    try:
        if isinstance(found, type):
            raise TypeError("it is a class")
        with suppress(ValueError):  # a function of C may not tell its arguments
            inspect.signature(found).bind("problem", "text")
    except TypeError as error:
        raise ValueError(f"{source} is no reward, a function (problem, text) -> float | Grade: {error}") from error
    return sources.pin(source)


# What users' functions return. All three raise TypeError or ValueError for a result that cannot be used.


def answer_and_grade(result: Any) -> tuple[str | None, Grade]:
    """Return the result of a task's ``grade``, its reward as a float."""
    match result:
        case (None | str() as answer, Grade() as grade):
            return answer, Grade(*reward_and_label(grade))
    raise TypeError(f"grade must return (answer, Grade), with the answer as a str or None; it returned {result!r:.200}")


def reward_and_label(result: Any) -> tuple[float | None, Any]:
    """Return the result of a reward function, a number or a ``Grade``, as its reward and its label."""
    if not isinstance(result, Grade):
        return number(result), None
    if result.label not in get_args(Label):
        raise ValueError(f"a Grade's label is one of {', '.join(get_args(Label))}, not {result.label!r}")
    return None if result.reward is None else number(result.reward), result.label


def number(value: Any) -> float:
    """Return a real number, which may be a scalar of numpy or torch, as a float."""
    found = value.item() if hasattr(value, "item") else value
    if not isinstance(found, Real):
        raise TypeError(f"a reward is a number or a Grade, not {value!r:.200}")
    if not math.isfinite(found):
        raise ValueError(f"a reward must be finite, not {value}")
    return float(found)
