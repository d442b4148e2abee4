"""Every loss in float64 against central differences: relative error at most 1e-6.

The learner's own objective, with its micro-batches and weights, is differentiated over a small network in double precision.
"""

from __future__ import annotations

import random
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twofold.maths.losses import Loss
from twofold.models.head import Head
from twofold.models.logprobs import token_logprobs
from twofold.trainer.batch import Batch, batches
from twofold.trainer.learner import Learner
from twofold.trainer.optim import Optim
from twofold.types import Sample

WIDTH, VOCABULARY = 5, 9
KINDS = [
    Loss(clip_low=0.1, clip_high=0.3), Loss(normalise="sequence", beta=0.3), Loss(normalise="constant", constant=7),
    Loss("gspo", clip_low=0.05, clip_high=0.08, normalise="sequence"),
]  # fmt: skip


class Tiny(nn.Module):
    """Hidden states that mix a token with the one before it; a head over the vocabulary, and one for P(right)."""

    vocabulary = VOCABULARY

    def __init__(self, kind: Any) -> None:
        super().__init__()
        make = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(VOCABULARY, WIDTH, generator=make, dtype=torch.float64))
        self.mix = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=make, dtype=torch.float64))
        self.out = nn.Parameter(torch.randn(VOCABULARY, WIDTH, generator=make, dtype=torch.float64))
        self.value_head = Head(WIDTH, kind).double()
        nn.init.normal_(self.value_head.weight, generator=make)

    device = torch.device("cpu")

    def forward(self, ids: Tensor, positions: Tensor, layout: Any) -> Tensor:
        before = ids.roll(1, 1).where(positions > 0, 0)
        return (self.table[ids] + (self.table[before] @ self.mix).tanh()).tanh()

    def head(self, hidden: Tensor) -> Tensor:
        return hidden @ self.out.T


def double(batch: Batch) -> Batch:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(
        batch, **{k: v.double() for k, v in values.items() if isinstance(v, Tensor) and v.is_floating_point()}
    )


def samples(kind: str) -> list[Sample]:
    """Policy tokens off the policy with credit, a verdict with its weight, labels for the head; GSPO has one advantage a sample."""
    rng, found = random.Random(0), []
    for i in range(6):
        size = rng.randint(4, 9)
        sampled = [False, False] + [rng.random() < 0.8 for _ in range(size - 3)] + [False]
        advantage = rng.gauss(0, 1)
        found.append(
            Sample(
                [rng.randrange(1, VOCABULARY) for _ in range(size)],
                sampled,
                [-rng.uniform(1, 4) * s for s in sampled],
                [(advantage if kind == "gspo" else rng.gauss(0, 1)) * s for s in sampled],
                [0.0] * (size - 1) + [0.5 + i % 2],
                reference=[-rng.uniform(1, 4) for _ in sampled],
                values=[(size - 1, float(i % 2), 0.7)],
                fits=[(size - 1, 0, -8.0 + i, 0.2), (1, i, -3.0, 0.1 * i)],
            )
        )
    return found


def learner(model: Tiny, loss: Loss, temperature: float) -> Learner:
    found = object.__new__(Learner)  # its optimiser wants a model of transformers
    found.model, found.loss, found.temperature, found.optim = model, loss, temperature, Optim()
    found.precision, found.checkpointing, found.exact = "float32", False, False
    return found


def objective(model: Tiny, loss: Loss, budget: int, temperature: float) -> Tensor:
    """Return the sum of the learner's losses over its micro-batches."""
    of = learner(model, loss, temperature)
    parts = batches(samples(loss.kind), loss, budget, model.device, range(len(samples(loss.kind))))
    return torch.stack([of._losses(model, double(batch), True)[0] for batch in parts]).sum()


def relative_error(model: Tiny, loss: Loss, budget: int, temperature: float, h: float = 1e-5) -> float:
    """Return |gradient - central differences| / |gradient| over all parameters."""
    objective(model, loss, budget, temperature).backward()
    exact, numeric = [], []
    for p in model.parameters():
        grad = torch.zeros_like(p) if p.grad is None else p.grad
        exact.append(grad.flatten())
        flat = p.data.view(-1)
        for i in range(len(flat)):
            ends = []
            for step in (h, -2 * h):
                flat[i] += step
                ends.append(float(objective(model, loss, budget, temperature).detach()))
            flat[i] += h
            numeric.append((ends[0] - ends[1]) / (2 * h))
    a, b = torch.cat(exact), torch.tensor(numeric, dtype=torch.float64)
    assert a.norm() > 0.1
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("loss", KINDS, ids=lambda x: f"{x.kind}-{x.normalise}")
def test_the_learner_s_objective_equals_finite_differences(loss: Loss) -> None:
    """The policy's loss, its KL, the verdict's cross-entropy, the head's loss and the regression of log-probs, in one
    micro-batch and in several."""
    for kind, budget, temperature in (("bce", 1000, 1.0), ("regression", 12, 0.7)):
        assert relative_error(Tiny(kind), loss, budget, temperature) < 1e-6


def test_cispo_s_gradient_is_that_of_its_weighted_log_probs() -> None:
    """Its weights carry no gradient, so it is the weighted sum with fixed weights that is compared."""
    loss, model = Loss("cispo", cap=1.2, normalise="sequence"), Tiny("bce")
    (batch,) = (double(b) for b in batches(samples("cispo"), loss, 1000, model.device, range(len(samples("cispo")))))

    def logps() -> Tensor:
        hidden = model(batch.tokens, batch.layout.positions, batch.layout)[0]
        ones = torch.ones_like(batch.targets)
        return token_logprobs(model.head, VOCABULARY, hidden[batch.before], batch.ids, ones)[0]

    weights = batch.policy * batch.advantages * (logps()[batch.drawn] - batch.behaviour).exp().clamp(max=1.2).detach()
    assert 0 < int((weights.abs() > 1.19 * (batch.policy * batch.advantages).abs()).sum()) < len(weights)
    labels = batch.labels

    def surrogate() -> Tensor:
        logp = logps()
        hidden = model(batch.tokens, batch.layout.positions, batch.layout)[0]
        head = model.value_head.loss(hidden[batch.valued], *labels)
        fits = (batch.aims[1] * (logp[batch.fitted] - batch.aims[0]) ** 2).sum()
        return head + fits - (weights * logp[batch.drawn]).sum() - (batch.targets * logp).sum()

    learner(model, loss, 1.0)._losses(model, batch, True)[0].backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    numeric = []
    for p in model.parameters():
        for i in range(p.numel()):
            flat, ends = p.data.view(-1), []
            for step in (1e-5, -2e-5):
                flat[i] += step
                ends.append(float(surrogate().detach()))
            flat[i] += 1e-5
            numeric.append((ends[0] - ends[1]) / 2e-5)
    assert float((found - torch.tensor(numeric, dtype=torch.float64)).norm() / found.norm()) < 1e-6
