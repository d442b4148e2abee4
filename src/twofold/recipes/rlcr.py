"""RLCR: the model states how sure it is of its own solution, and is paid for being right and for being calibrated.

Paper: "Beyond Binary Rewards: Training LMs to Reason About Their Uncertainty" (arXiv:2507.16806). The reward of a solution
that is right (c = 1) or wrong (c = 0), with the stated confidence q, is

    R = reward - lam * (q - c)^2                published: lam = 1, and the reward is c

A solution that is right with probability p earns most if q = p. For lam <= 1 the likeliest answer with its true confidence is the
best of all, so that calibration does not compete with accuracy.

The paper's choices, kept: GRPO without the standard deviation (``dr_grpo``; our default, ``rloo``, is G / (G - 1) times it), and one
advantage on all tokens (``credit = "joint"``). What it leaves open or we do otherwise:

* The confidence is asked for in a turn of its own behind the solution, as RL^V asks for its verdict, so that it has no share in
  what is graded, and any solution can be judged. The paper asks for it in the prompt, in tags, by default after an analysis of the
  solution; there is no analysis here (its "bare" form).
* It is one digit d, for q = (d + 1/2) / 10. The paper has decimals from 0 to 1.
* A confidence that cannot be read counts as the worst, (q - c)^2 = 1. In the published code such a rollout also loses what it
  earns for being right, and there is a reward for the format.
* ``credit = "split"`` pays the solution for its reward alone, and the confidence for its calibration alone (ours).
* A rollout whose reward could not be computed is left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Literal

from twofold.compute.judge import Judging
from twofold.compute.rollout import rollouts
from twofold.compute.stated import DIGITS, parse_confidence, state
from twofold.engines.base import Engine
from twofold.maths.credit import grpo, mean, rloo
from twofold.maths.seeds import derive
from twofold.maths.stats import verifier_metrics
from twofold.ranges import Count, NonNegative, checked
from twofold.recipes import common
from twofold.recipes.common import Setup, Stats, policy_sample, relative, rewards_of, whole
from twofold.text.chat import Chat
from twofold.types import Collected, Completion, Problem, Rollout, Sample, Sampling, Task

ESTIMATORS: dict[str, Callable[[Sequence[float]], list[float]]] = {
    "rloo": rloo, "grpo": grpo, "dr_grpo": partial(grpo, std=False)
}  # fmt: skip


@checked
class RLCR:
    """Options of the recipe."""

    name: Literal["rlcr"] = "rlcr"
    estimator: Literal["rloo", "grpo", "dr_grpo"] = "rloo"
    rollouts: Count = 8
    """Rollouts per problem."""
    lam: NonNegative = 1.0
    """Weight of the Brier score (q - c)^2 (published: 1)."""
    credit: Literal["joint", "split"] = "joint"
    """``joint``: the solution and its confidence have one advantage, that of R. ``split``: the solution has that of the reward, the
    confidence that of minus lam times its Brier score."""

    def __post_init__(self) -> None:
        if self.rollouts < 2:
            raise ValueError("rollouts must be at least 2: a group of one has no baseline")

    def build(self, setup: Setup) -> Recipe:
        setup.chat.single_tokens(DIGITS)  # raises for a tokenizer in which no confidence is one token
        return Recipe(self, setup.task, setup.chat, setup.sampling, setup.reference())


class Recipe(common.Recipe):
    """RLCR in one run."""

    def __init__(
        self, config: RLCR, task: Task, chat: Chat, sampling: Sampling, reference: Engine | None = None
    ) -> None:
        super().__init__(task, chat, sampling, config.rollouts, reference)
        self.config, self.judging = config, Judging("stated")

    def collect(self, engine: Engine, problems: Sequence[Problem], step: int) -> Collected:
        config, sampling = self.config, replace(self.sampling, seed=derive(self.sampling.seed, step))
        groups = rollouts(engine, self.chat, self.task, problems, sampling)
        graded = common.gradable(groups)
        everyone = [r for g in graded for r in g]
        stated = state(engine, self.chat, everyone, replace(sampling, seed=derive(sampling.seed, "confidence")))
        found = [parse_confidence(self.chat.decode(said.tokens)) for _, said in stated]
        loss = [brier(q, r.grade.correct) for q, r in zip(found, everyone, strict=True)]
        estimate, samples, i = ESTIMATORS[config.estimator], list[Sample](), 0
        for group in graded:
            costs = [-config.lam * x for x in loss[i : i + len(group)]]
            solving, stating = relative(rewards_of(group), estimate), relative(costs, estimate)
            if config.credit == "joint":
                paid = [reward + cost for reward, cost in zip(rewards_of(group), costs, strict=True)]
                solving = stating = relative(paid, estimate)
            for rollout, a, b, (prompt, said) in zip(group, solving, stating, stated[i:], strict=False):
                samples += with_confidence(policy_sample(rollout, whole(a, rollout)), prompt, said, b)
            i += len(group)
        if self.reference is not None:
            common.refer(samples, self.reference, self.sampling.temperature)
        return Collected({"policy": samples}, common.describe(groups) | describe(found, loss, everyone), groups)


def brier(q: float | None, correct: bool) -> float:
    """Return (q - c)^2, the Brier score of a stated confidence; 1, the worst, for one that could not be read."""
    return 1.0 if q is None else (q - correct) ** 2


def with_confidence(sample: Sample, prompt: list[int], said: Completion, advantage: float) -> list[Sample]:
    """Return the sample continued by the question and the stated confidence, which has this advantage.

    They are a sample of their own where the question follows other tokens than the solution's (see ``compute.rollout.as_read``).
    """
    follows = prompt[: len(sample.tokens)] == sample.tokens
    zeros = [0.0] * len(prompt)
    before = sample if follows else Sample(prompt, [False] * len(prompt), zeros, zeros, zeros)
    longer = common.extended_sample(before, [*prompt, *said.tokens])
    longer.sampled[-1], longer.logprobs[-1], longer.advantages[-1] = True, said.logprobs[-1], advantage
    return [longer] if follows else [sample, longer]


def describe(found: Sequence[float | None], loss: Sequence[float], everyone: Sequence[Rollout]) -> Stats:
    """Return numbers of the stated confidences for the log: how varied, how calibrated, and how well they rank solutions."""
    known = [(q, r.grade.correct) for q, r in zip(found, everyone, strict=True) if q is not None]
    counts = Counter(q for q, _ in known)
    stats = {
        "rlcr/brier": mean(loss),
        "rlcr/confidence": mean([q for q, _ in known]),
        "rlcr/entropy": -sum(n / len(known) * math.log(n / len(known)) for n in counts.values()),
        "rlcr/unreadable": 1 - len(known) / max(1, len(found)),
    }
    if len(known) < 2:
        return stats
    measured = asdict(verifier_metrics([q for q, _ in known], [correct for _, correct in known]))
    return stats | {f"verifier/{name}": value for name, value in measured.items()}
