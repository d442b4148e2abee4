"""Pairs in RL^V (V1-PairRL, arXiv:2603.04304): ``verify = "pairs"``, which of two rollouts of a problem is right.

A step's rollouts of each problem are drawn into disjoint pairs of a right and a wrong one. Both orders are learnt: the question that
shows the wrong one is appended to the right one, with the answer A, and the other way round, with the answer B. So the rollouts' own
tokens are read once for the policy and for the question, and neither place is right more often. Test time asks the same words
(``compute.pairs``). The verdict term is the mean over these questions, times lambda.

Deviations (ours, except where the paper is silent): the answer is one token and its loss cross-entropy. The paper's judge writes its
reasoning and two ratings, and is paid 1 - |rating - label| where that is at least 0.8. Labels are supervised here, so that the
paper's pairs of two right solutions, whose answer would be a coin, are left out; it leaves out pairs of two wrong ones as well.
The policy learns from all rollouts, the paper's from half as many beside as many judgements.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from twofold.compute.pairs import first_right, question
from twofold.engines.base import Engine
from twofold.maths.credit import mean
from twofold.maths.seeds import derive
from twofold.recipes.common import Stats
from twofold.text.chat import Chat
from twofold.types import Rollout


class Pairs:
    """The pairs of one run; those of the current step are kept until the next one is drawn."""

    def __init__(self, chat: Chat, seed: int) -> None:
        self.chat, self.seed = chat, seed
        self.met: list[tuple[Rollout, Rollout]] = []
        """(right, wrong), in both orders the questions of this step."""
        self._rivals: dict[int, Rollout] = {}

    def drawn(self, everyone: Sequence[Rollout], step: int) -> dict[int, float]:
        """Draw this step's pairs. Return index -> weight 1 of the rollouts behind which there is a question."""
        rng = random.Random(derive(self.seed, f"pairs {step}"))
        kinds: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for i, r in enumerate(everyone):
            if r.grade.decided:
                kinds[r.problem.id][r.grade.correct].append(i)
        met: list[tuple[int, int]] = []
        for wrong, right in kinds.values():
            few = min(len(wrong), len(right))
            met += zip(rng.sample(right, few), rng.sample(wrong, few), strict=True)
        self.met = [(everyone[i], everyone[j]) for i, j in met]
        self._rivals = {id(a): b for pair in self.met for a, b in (pair, pair[::-1])}
        return {i: 1.0 for pair in met for i in pair}

    def asked(self, rollout: Rollout) -> list[int]:
        """Return the question behind a rollout of a pair. Its answer is A if this rollout is right, B if the other is."""
        return question(self.chat, rollout, self._rivals[id(rollout)])

    def scores(self, engine: Engine) -> Stats:
        """Return how often both orders together name the right one, and the mean P(A): 1/2 if the place plays no part."""
        if not self.met:
            return {}
        orders = [order for pair in self.met for order in (pair, pair[::-1])]
        found = [p for p, _ in first_right(engine, self.chat, orders, both=False)]
        told = [(p > q) + 0.5 * (p == q) for p, q in zip(found[::2], found[1::2], strict=True)]
        return {"pairs/accuracy": mean(told), "pairs/first": mean(found)}
