"""Which problems a step of training gets."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from twofold.maths.seeds import derive
from twofold.tasks.user import inner
from twofold.types import Problem

ENDLESS = 10_000_000
"""Problems that a seed may use of an endless task."""
MAX_DRAWS = 16
"""How often a step may draw problems."""


class Problems:
    """The problems of every step: a pure function of (seed, step), so that it needs no checkpoint.

    A task with a length is shuffled again for every epoch. Procedural tasks are endless, and another seed never repeats a
    problem: its own ones count up from the start of its ten million, spare ones down from the end.
    """

    def __init__(self, task: Any, per_step: int, seed: int) -> None:
        self.task, self.n, self.seed = task, per_step, seed
        self.size = length(task)
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

    def _at(self, i: int) -> Problem:
        return self.task.problem("train", i)


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
