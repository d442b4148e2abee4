"""A recipe of your own: rejection sampling, which learns by imitation the solutions that turned out right.

    twofold train configs/rlv-sums.toml --recipe.name python --recipe.source examples/recipe.py:Rejection --out runs/rejection

A recipe is called with the run's ``Setup`` and returns, for every step, samples with credit or targets per token. It sees
no optimiser and no device. From Python it may take options of its own:
``tf.train(config, out, recipe=partial(Rejection, rollouts=8))``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import twofold as tf
from twofold.compute.rollout import rollouts
from twofold.engines.base import Engine
from twofold.maths.seeds import derive
from twofold.recipes.common import Setup, describe, target_sample
from twofold.types import Collected


class Rejection(tf.Recipe):
    def __init__(self, setup: Setup, rollouts: int = 4) -> None:
        super().__init__(setup.task, setup.chat, setup.sampling, rollouts)

    def collect(self, engine: Engine, problems: Sequence[tf.Problem], step: int) -> Collected:
        sampling = replace(self.sampling, seed=derive(self.sampling.seed, step))  # other draws at every step
        groups = rollouts(engine, self.chat, self.task, problems, sampling)
        right = [r for group in groups for r in group if r.grade.correct]
        return Collected({"policy": [target_sample(r) for r in right]}, describe(groups), groups)
