"""How much of a gradient is signal: the mean cosine of the gradients of two batches, for the parts of MRT-online's credit.

    python studies/mrt_gradients.py configs/mrt-sums.toml --batches 6

Every part is computed on the same rollouts of the config's model, on training problems that no run sees. ``sampled`` values an
episode by forced answers, ``likelihood`` by the probability of the known answer. Two more lines compare these values, J, with J
from MANY forced answers. Nothing is trained.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from shared import FIRST

from twofold import run, toml
from twofold.compute.probe import probe
from twofold.config import Config
from twofold.engines.base import Engine
from twofold.recipes.mrt import MRT, Recipe
from twofold.trainer.learner import Learner
from twofold.types import Group, Sample, Sampling

MANY = 64
PARTS: dict[str, dict[str, Any]] = {
    "sampled": {},
    "sampled, 16 answers": {"answers": 16},
    "sampled, to go": {"reward_to_go": True},
    "likelihood": {"progress": "likelihood"},
    "likelihood, to go": {"progress": "likelihood", "reward_to_go": True},
}


def credited(recipe: Recipe, engine: Engine, groups: list[Group], sampling: Sampling, **options: Any) -> list[Sample]:
    """Return the samples of MRT-online with these options."""
    recipe.config = replace(recipe.config, method="online", **options)
    return recipe._online(engine, groups, sampling)[0]


def without(samples: list[Sample], outcome: list[Sample]) -> list[Sample]:
    """Return the samples with the bonus alone as credit."""
    return [
        replace(s, advantages=[a - b for a, b in zip(s.advantages, o.advantages, strict=True)])
        for s, o in zip(samples, outcome, strict=True)
    ]


def gradient(learner: Learner, samples: list[Sample]) -> np.ndarray:
    learner.optimizer.zero_grad(set_to_none=True)
    learner.accumulate(samples)
    return torch.cat([p.grad.flatten() for p in learner.model.parameters() if p.grad is not None]).double().numpy()


def cosines(a: list[np.ndarray], b: list[np.ndarray]) -> str:
    """Return the mean cosine of the gradients of different batches, with the standard error over batches left out."""
    n = len(a)
    table = np.array([[x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) for y in b] for x in a])
    pairs = ~np.eye(n, dtype=bool)
    less = [table[np.ix_(k, k)][~np.eye(n - 1, dtype=bool)].mean() for k in itertools.combinations(range(n), n - 1)]
    error = np.sqrt((n - 1) / n * np.sum((np.array(less) - np.mean(less)) ** 2))
    return f"{table[pairs].mean():.2f} ± {error:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--set", nargs="*", default=[])
    args = parser.parse_args()
    config = toml.override(toml.load(Config, args.config), args.set)
    model, task = run.load(config.model), run.make_task(config.task)
    assert isinstance(config.recipe, MRT)
    rollout = config.rollout
    sampling = Sampling(temperature=rollout.temperature, max_tokens=rollout.max_tokens, stop=model.chat.stop)
    recipe = Recipe(config.recipe, task, model.chat, sampling)
    learner = Learner(model.engine.model, config.optim, config.loss, steps=1)  # type: ignore[attr-defined]
    gradients: dict[str, list[np.ndarray]] = {}
    seconds = dict.fromkeys(PARTS, 0.0)
    values: list[tuple[float, float, float]] = []
    for batch in range(args.batches):
        first = FIRST + 10**6 + batch * rollout.problems
        problems = [task.problem("train", first + i) for i in range(rollout.problems)]
        drawn = replace(recipe.sampling, seed=batch)
        groups = recipe._rollouts(model.engine, problems, drawn)
        outcome = credited(recipe, model.engine, groups, drawn, alpha=0.0, progress="likelihood")
        gradients.setdefault("outcome", []).append(gradient(learner, outcome))
        for name, options in PARTS.items():
            plain = {"alpha": 1.0, "progress": "sampled", "reward_to_go": False, "answers": config.recipe.answers}
            began = time.monotonic()
            samples = credited(recipe, model.engine, groups, drawn, **(plain | options))
            seconds[name] += time.monotonic() - began
            gradients.setdefault(name, []).append(gradient(learner, without(samples, outcome)))
        if batch == 0:
            everyone = [r for g in groups for r in g]
            likely, few = (
                [b.value for row in rows for b in row]
                for rows in (recipe._believed(model.engine, everyone), recipe._probed(model.engine, everyone, drawn))
            )
            limit = replace(drawn, n=MANY, seed=99)
            many = probe(model.engine, model.chat, task, everyone, recipe._ends(everyone), recipe.config.prover, limit)
            values = list(zip(likely, few, [p.value for row in many for p in row], strict=True))
    print(
        "| part | norm | cosine of two batches | with the outcome's of other batches | seconds a batch |\n|---|---|---|---|---|"
    )
    for name, found in gradients.items():
        norm = np.mean([np.linalg.norm(g) for g in found])
        took = f"{seconds[name] / args.batches:.1f}" if name in seconds else ""
        print(f"| {name} | {norm:.3f} | {cosines(found, found)} | {cosines(found, gradients['outcome'])} | {took} |")
    likely, few, many = np.array(values).T
    for name, column in (("likelihood", likely), (f"{config.recipe.answers} answers", few)):
        off, r = column - many, np.corrcoef(column, many)[0, 1]
        print(
            f"J by {name} minus J by {MANY} answers: bias {off.mean():+.3f}, rms {np.sqrt((off**2).mean()):.3f}, r {r:.3f}"
        )


if __name__ == "__main__":
    main()
