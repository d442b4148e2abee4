"""Which problems a step of training gets."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from twofold.maths.seeds import derive
from twofold.tasks.user import inner
from twofold.types import Problem, Task

log = logging.getLogger(__name__)

ENDLESS = 10_000_000
"""Problems that a seed may use of an endless task."""
MAX_DRAWS = 16
"""How often a step may draw problems."""


class Problems:
    """The problems of every step: a pure function of (seed, step), so that it needs no checkpoint.

    A task with a length is shuffled again for every epoch. Procedural tasks are endless, and another seed draws at other
    places: its own problems count up from the start of its ten million, spare ones down from the end. Where few problems
    are possible, such as a countdown of two numbers, the same one stands at many places.
    """

    def __init__(self, task: Any, per_step: int, seed: int) -> None:
        self.task, self.n, self.seed = task, per_step, seed
        self.size = length(task)
        self._kept: Sequence[int] = range(self.size or 0)
        if self.size == 0:
            raise ValueError(f"the task {task.name} has no problems")

    def __call__(self, step: int) -> list[Problem]:
        places = range(step * self.n, (step + 1) * self.n)
        if self.size is not None:
            return [self._at(_shuffled(self.seed, self.size, place)) for place in places]
        return [self._at(self.seed * ENDLESS + place) for place in places]

    def spare(self, step: int, draw: int) -> list[Problem]:
        """Return as many problems as a step has, which are no step's own; ``draw`` counts from 1 to ``MAX_DRAWS`` - 1."""
        first = (step * MAX_DRAWS + draw) * self.n
        places = range(first, first + self.n)
        if self.size is not None:
            seed = derive(self.seed, "spare")
            return [self._at(_shuffled(seed, self.size, place)) for place in places]
        return [self._at((self.seed + 1) * ENDLESS - 1 - place) for place in places]

    def known(self) -> Iterator[Problem]:
        """Yield every problem of a task with a length, and the first step's problems of an endless one."""
        yield from self(0) if self.size is None else map(self._at, range(self.size))

    def leave_out(self, long: Collection[str]) -> None:
        """Leave out these problems of a task with a length, by their ids, and log it (see ``tell_left_out``)."""
        kept = [i for i in self._kept if self.task.problem("train", i).id not in long]
        tell_left_out(self.task.name, len(self._kept), len(kept), long)
        self._kept, self.size = kept, len(kept)

    def _at(self, i: int) -> Problem:
        return self.task.problem("train", i if self.size is None else self._kept[i])


def tell_left_out(name: str, before: int, kept: int, long: Collection[str]) -> None:
    """Log how many problems of a set are too long, if any are. Raises ValueError if none is left."""
    if not kept:
        raise ValueError(f"{name}: all {before} problems are too long for the model's context")
    if long:
        said = "%d of %d problems of %s are too long for the model's context and left out, such as %s"
        log.warning(said, before - kept, before, name, min(long))


def first(task: Task, split: Any, n: int) -> list[Problem]:
    """Return the first ``n`` problems of a split that differ in content, which their ids stand for.

    An interval over problems counts each of them once. Raises ValueError if the task has fewer.
    """
    return [task.problem(split, i) for i in places(task, split, n)]


def places(task: Task, split: Any, n: int) -> list[int]:
    """Return where ``first`` finds its problems."""
    found: dict[str, int] = {}
    i = 0
    while len(found) < n:
        found.setdefault(task.problem(split, i).id, i)
        i += 1
        if i > 20 * len(found) + 200:  # as good as all have been seen
            raise ValueError(
                f"{task.name} has {len(found)} different problems in its {split} split, fewer than {n}: lower problems"
            )
    return list(found.values())


def check_gradable(problems: Iterable[Problem]) -> None:
    """Raise ValueError for a problem that has a worked solution to learn, and no answer to grade by."""
    for problem in problems:
        if not problem.answer and "solution" in problem.meta:
            raise ValueError(f"problem {problem.id} has no answer to grade by: the set can be learnt by SFT only")


def length(task: Any) -> int | None:
    """Return how many problems a task has; None where they are endless."""
    found = inner(task)
    return len(found) if hasattr(found, "__len__") else None


def _shuffled(seed: int, size: int, place: int) -> int:
    """Index at a place of an endless stream that passes over ``size`` items in a new order each epoch."""
    epoch, i = divmod(place, size)
    return _order(seed, size, epoch)[i]


@lru_cache(maxsize=4)
def _order(seed: int, size: int, epoch: int) -> Sequence[int]:
    order = list(range(size))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order
