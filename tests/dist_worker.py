"""What the tests of many processes run in each of them: gradients, whole runs one after another, and one whose rank 1 dies."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from twofold import toml, training
from twofold.config import Config
from twofold.engines.base import check_one_learner
from twofold.engines.native import NativeEngine
from twofold.models import sharding
from twofold.models.head import attach
from twofold.models.io import load_model
from twofold.trainer.dist import SharedLearner, Team, team
from twofold.trainer.learner import Learner, Loss
from twofold.trainer.optim import Optim
from twofold.types import Sample


class Dying:
    """The native engine; that of rank 1 kills its process when it is to sample for the second time."""

    def __init__(self, model: Any) -> None:
        self.engine, self.calls = NativeEngine(model), 0
        self.logprobs, self.load, self.rest = self.engine.logprobs, self.engine.load, self.engine.rest

    def generate(self, *args: Any) -> Any:
        self.calls += 1
        if self.calls == 2 and os.environ["RANK"] == "1":
            os._exit(7)
        return self.engine.generate(*args)


def samples() -> list[Sample]:
    """Samples of both streams and of the scalar head, of many lengths, with prompts that are shared."""
    rng = torch.Generator().manual_seed(0)
    made = []
    for i in range(12):
        length = 6 + 5 * (i % 4)
        tokens = torch.randint(20, 500, (length,), generator=rng).tolist()
        tokens[:4] = [30 + i // 3, 31, 32, 33]
        advantages, old = torch.randn(2, length, generator=rng).tolist()
        targets = [0.0] * (length - 1) + [float(i % 2)]
        values = [(length - 1, 1.0, 0.5)] if i == 5 else []
        drawn = [4 <= t < length - 1 for t in range(length)]
        made.append(Sample(tokens, drawn, [o / 9 - 6 for o in old], advantages, targets, values=values))
    return made


def gradient(
    make: Any, model: str, micro_tokens: int, head: bool = True, **options: Any
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Return the gradient of the samples by name, and the parts of the objective; both empty in other ranks than 0."""
    policy, _ = load_model(model)
    if head:
        attach(policy, "bce")
    loss = Loss(normalise="token", **options)
    learner = make(policy, Optim(), loss, steps=1, micro_tokens=micro_tokens)
    if isinstance(learner, SharedLearner) and not learner.team.leads:
        learner.team.work({"policy": learner})
        return {}, {}
    parts = learner.accumulate(samples() if head else [replace(s, values=()) for s in samples()])
    if isinstance(learner, SharedLearner):
        learner.team.tell(["end", None])
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}, parts


def sharded_gradient(ranks: Team, model: str, micro_tokens: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the gradient of the samples without the scalar head's, and the parts of the objective, with ``held``: the numbers in
    the weights, gradients and moments of each rank, as a share of all, and ``refused``: what an engine for one learner says."""
    policy, _ = load_model(model)
    ranks.engine(NativeEngine)(policy)
    ranks.shard()
    learner = ranks.learner("policy", policy, Optim(), Loss(normalise="token"), steps=1, micro_tokens=micro_tokens)
    parts: dict[str, Any] = learner.accumulate([replace(s, values=()) for s in samples()])
    found = {name: sharding.whole(p.grad) for name, p in policy.named_parameters()}
    learner.optimizer.step()
    tensors = [*policy.parameters(), *(p.grad for p in policy.parameters())]
    tensors += [value for state in learner.optimizer.state.values() for value in state.values() if value.ndim]
    held = sum(t.to_local().numel() for t in tensors) / sum(t.numel() for t in tensors)
    try:
        check_one_learner("vLLM")
    except ValueError as error:
        parts["refused"] = str(error)
    return found, parts | {"held": ranks.agree(ranks.gather(held))}


def without_last_step(whole: Path, out: Path) -> None:
    """Copy a run of two steps as if it had been killed in the second."""
    shutil.copytree(whole, out)
    shutil.rmtree(out / "checkpoints" / "step-2")


def main(jobs: Path) -> None:
    told = json.loads(jobs.read_text())
    ranks = team()
    for model, micro_tokens, out in told.get("gradients", []):
        make = Learner if ranks.size == 1 else partial(SharedLearner, ranks, "policy")
        found, parts = gradient(make, model, micro_tokens)
        if ranks.leads:
            save_file(found, out)
            Path(out).with_suffix(".json").write_text(json.dumps(parts))
    for model, micro_tokens, out in told.get("sharded", []):
        found, parts = sharded_gradient(ranks, model, micro_tokens)
        if ranks.leads:
            save_file(found, out)
            Path(out).with_suffix(".json").write_text(json.dumps(parts))
    for config, out in told.get("runs", []):
        training.train(toml.from_dict(Config, config), out)
    os.environ["CALLS"] += "-resumed"
    for config, whole, out in told.get("resumed", []):
        if ranks.leads:
            without_last_step(Path(whole), Path(out))
        training.train(toml.from_dict(Config, config), out, resume=True)
    for config, out in told.get("dying", []):
        training.train(toml.from_dict(Config, config), out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
