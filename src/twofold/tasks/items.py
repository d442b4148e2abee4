"""The items of procedural tasks.

Item ``i`` of a split is a pure function of (seed, split, i). Its id stands for its content: a small task repeats problems,
and ``stream.first`` leaves repetitions out. A hash of its content puts each question on the train or on
the test side, so no test question can be drawn for training, whatever the seeds. ``harder`` (one level up) and ``ood``
(numbers or words outside the trained range) are drawn from the test side, too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from typing import Literal, get_args

from twofold.types import Problem

Split = Literal["train", "test", "harder", "ood"]


def on_side(key: str, split: Split) -> bool:
    """Return whether a problem with this normal form is on the split's side: one in eight is for tests."""
    return (blake2b(key.encode(), digest_size=2).digest()[0] < 32) == (split != "train")


def draw(name: str, seed: int, split: Split, i: int, make: Callable[[random.Random], Problem]) -> Problem:
    """Draw problems until one is on the split's side, and return it.

    ``make`` puts into ``id`` what is hashed: a normal form of the problem, so that the same numbers in another order are on
    the same side. The id that is returned stands for it too: equal problems have equal ids, wherever they are drawn.
    """
    if split not in get_args(Split):
        raise ValueError(f"split {split!r} is not one of {', '.join(get_args(Split))}")
    rng = random.Random(f"{name}/{seed}/{split}/{i}")
    while True:
        problem = make(rng)
        if on_side(problem.id, split):
            return replace(problem, id=f"{name}-{blake2b(problem.id.encode(), digest_size=8).hexdigest()}")
