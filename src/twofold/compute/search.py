"""Search over steps, led by a value of partial solutions: beam, DVTS, REBASE, particles. (``mcts`` has a file of its own.)

Each is a generator about one question; ``tree.maker`` does the rest. ``n`` is the budget: about the tokens of n solutions.
"""

from __future__ import annotations

import random
from dataclasses import field
from typing import Literal

from twofold.compute.tree import Node, Search, Start, Steps, best, maker, unique
from twofold.compute.value import ValueName
from twofold.maths.search import particle_probabilities, rebase_allocation
from twofold.ranges import Count, Positive, checked


@checked
class Beam:
    """``width``: the best n / width partial solutions are kept, and each is extended ``width`` times."""

    name: Literal["beam"] = "beam"
    width: Count = 4
    value: ValueName = "p_yes"
    steps: Steps = field(default_factory=Steps)


@maker
def beam(n: int, config: Beam) -> Start:
    """Beam search as in search-and-learn: finished solutions leave the beam, and do not compete with unfinished ones.

    Returns at most n candidates, the best first, without copies; equal partial solutions are kept once.
    Raises ValueError if ``config.width`` does not divide ``n``.
    """
    kept = _groups(n, config.width)

    def search(root: Node, rng: random.Random) -> Search:
        active, done = [root], []
        while active:
            children = yield [active[i % len(active)] for i in range(n)]
            done += [c for c in children if c.done]
            active = best(unique(c for c in children if not c.done), kept)
        return best(done, n)

    return search


@checked
class DVTS:
    """``width``: steps tried at each point of each of the n / width trees."""

    name: Literal["dvts"] = "dvts"
    width: Count = 4
    value: ValueName = "p_yes"
    steps: Steps = field(default_factory=Steps)


@maker
def dvts(n: int, config: DVTS) -> Start:
    """Diverse verifier tree search as in search-and-learn: n / width greedy searches, independent of each other.

    Returns n candidates: all ``width`` ends of each tree's last step, including unfinished ones, which have no answer.
    Raises ValueError if ``config.width`` does not divide ``n``.
    """
    trees = _groups(n, config.width)

    def search(root: Node, rng: random.Random) -> Search:
        heads, tried = [root] * trees, [[root]] * trees
        while going := [t for t in range(trees) if not heads[t].done]:
            children = iter((yield [heads[t] for t in going for _ in range(config.width)]))
            for t in going:
                tried[t] = [next(children) for _ in range(config.width)]
                (heads[t],) = best(tried[t], 1)
        return [c for group in tried for c in group]

    return search


@checked
class Rebase:
    """``temperature``: the lower it is, the more children go to the best partial solutions."""

    name: Literal["rebase"] = "rebase"
    temperature: Positive = 0.2
    value: ValueName = "p_yes"
    steps: Steps = field(default_factory=lambda: Steps(depth=25))


@maker
def rebase(n: int, config: Rebase) -> Start:
    """Reward-balanced search (arXiv:2408.00724): children in proportion to exp(value / temperature), n leaves in all.

    Returns exactly n candidates; each finished one takes one from the width that is left. Raises ValueError unless
    ``config.temperature`` > 0.
    """

    def search(root: Node, rng: random.Random) -> Search:
        level, counts, done = [root], [n], []
        while level:
            children = yield [leaf for leaf, k in zip(level, counts, strict=True) for _ in range(k)]
            done += [c for c in children if c.done]
            level = [c for c in children if not c.done]
            counts = rebase_allocation([c.value for c in level], n - len(done), config.temperature)
        return done

    return search


@checked
class Particles:
    """``temperature``: of the weights softmax(logit(value) / temperature)."""

    name: Literal["particles"] = "particles"
    temperature: Positive = 1.0
    value: ValueName = "p_yes"
    steps: Steps = field(default_factory=Steps)


@maker
def particles(n: int, config: Particles) -> Start:
    """Particle filter (arXiv:2502.01618): extend all particles by a step, then draw n of them by weight, and repeat.

    Finished particles take part in the drawing, with their value. Returns n candidates, with copies: how many there are of a
    solution is part of the filter's verdict on it. Nothing is drawn after the last step, since the scores are known then.
    Raises ValueError unless ``config.temperature`` > 0.
    """

    def search(root: Node, rng: random.Random) -> Search:
        cloud = [root] * n
        while active := [p for p in cloud if not p.done]:
            children = iter((yield active))
            cloud = [p if p.done else next(children) for p in cloud]
            if not all(p.done for p in cloud):
                weights = particle_probabilities([p.value for p in cloud], config.temperature)
                cloud = rng.choices(cloud, weights, k=n)
        return cloud

    return search


def _groups(n: int, width: int) -> int:
    if width < 1 or n < width or n % width:
        raise ValueError(f"n = {n} must be a multiple of the width, {width}")
    return n // width
