"""Monte Carlo tree search over steps, which asks for the value of a partial solution instead of playing it out."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from twofold.compute.tree import Node, Search, Start, Steps, maker, unique
from twofold.compute.value import ValueName
from twofold.maths.search import puct
from twofold.ranges import Count, NonNegative, Positive, checked
from twofold.types import Completion


@checked
class MCTS:
    """``children``: steps drawn at each expansion; ``simulations``: the most descents per candidate wanted."""

    name: Literal["mcts"] = "mcts"
    children: Count = 4
    simulations: Count = 16
    c_init: NonNegative = 1.25
    c_base: Positive = 19652.0
    value: ValueName = "p_yes"
    steps: Steps = field(default_factory=Steps)


@dataclass(slots=True, eq=False)
class Branch:
    """A node with what the search knows about it. ``q`` is the mean of the values found below it; unvisited, its own value."""

    node: Node
    prior: float = 1.0
    visits: int = 0
    total: float = 0.0
    children: list[Branch] = field(default_factory=list)

    @property
    def q(self) -> float:
        return self.total / self.visits if self.visits else self.node.value


@maker
def mcts(n: int, config: MCTS) -> Start:
    """PUCT descents from the root until n finished solutions were visited (TS-LLM, arXiv:2309.17179, MCTS-Rollout).

    A branch is expanded on its second visit, by ``children`` steps; equal steps count once. Their priors are
    exp(mean log-prob), normalised. The descent ends at the best of them, and its value is added to every branch on the way.
    Returns at most n candidates in the order of their first visits, fewer when the descents are spent.
    """

    def search(root: Node, rng: random.Random) -> Search:
        top, done = Branch(root), []
        for _ in range(n * config.simulations):
            way = [top]
            while way[-1].children:
                way.append(_select(way[-1], config))
            leaf = way[-1]
            if not leaf.node.done and (leaf.visits or leaf is top):
                leaf.children = _branches(unique((yield [leaf.node] * config.children)))
                leaf = _select(leaf, config)
                way.append(leaf)
            if leaf.node.done and not leaf.visits:
                done.append(leaf.node)
            for branch in way:
                branch.visits += 1
                branch.total += leaf.node.value
            if len(done) == n:
                break
        return done

    return search


def _select(parent: Branch, config: MCTS) -> Branch:
    return max(
        parent.children,
        key=lambda b: puct(b.q, b.prior, parent.visits, b.visits, config.c_init, config.c_base),
    )


def _branches(nodes: Sequence[Node]) -> list[Branch]:
    priors = [_prior(n.step) for n in nodes]
    return [Branch(n, p / sum(priors)) for n, p in zip(nodes, priors, strict=True)]


def _prior(step: Completion) -> float:
    return math.exp(sum(step.logprobs) / len(step.logprobs))
