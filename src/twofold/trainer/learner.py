"""The learner: per-token credit and targets in, updated weights out. It knows no algorithm and sees no reward."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from twofold.maths.losses import Loss as Loss
from twofold.maths.losses import k3, policy_loss
from twofold.maths.packing import micro_batches, rounded
from twofold.maths.weights import policy_weights, target_weights
from twofold.models.attention import Packing
from twofold.models.decoder import Decoder, network
from twofold.models.io import Precision
from twofold.models.logprobs import token_logprobs
from twofold.trainer.optim import Optim, make, rate
from twofold.types import Sample

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch laid end to end, shared prompts once: N tokens; M log-probs are needed (``at``: the token before)."""

    tokens: Tensor  # [1, N]
    layout: Packing
    at: Tensor  # [M], and all below
    ids: Tensor
    sample: Tensor  # which sample of the micro-batch the token is of
    logprobs: Tensor
    advantages: Tensor
    policy: Tensor  # weight of the policy loss
    mass: float  # sum of these weights over the whole update: policy / mass averages a metric over sampled tokens
    targets: Tensor  # weight of the NLL
    reference: Tensor
    value_at: Tensor  # [V] tokens whose hidden state the scalar head reads
    values: Tensor  # [V]
    value_weights: Tensor  # [V]


class Diverged(ArithmeticError):
    """Three updates in a row were not finite."""


class Learner:
    """Owns a model's optimiser. ``temperature`` is the one the policy's tokens were sampled at.

    Where samples carry ``values``, the model has a scalar head (see ``models.head``).
    """

    def __init__(
        self,
        model: Any,
        optim: Optim,
        loss: Loss,
        *,
        steps: int,
        temperature: float = 1.0,
        epochs: int = 1,
        minibatches: int = 1,
        micro_tokens: int = 8192,
        precision: Precision = "float32",
        checkpointing: bool = False,
        norms_every: int = 10,
    ) -> None:
        self.model = model
        self.optim, self.loss, self.steps = optim, loss, steps
        self.temperature, self.epochs, self.minibatches, self.micro_tokens = (
            temperature,
            epochs,
            minibatches,
            micro_tokens,
        )
        self.precision, self.norms_every = precision, norms_every
        self.optimizer = make(optim, model)
        self.step = 0
        self.skipped = 0
        self.recompute = checkpointing
        if checkpointing and not Decoder.suits(model):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.recomputed = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]

    def weights(self) -> Mapping[str, Tensor]:
        return self.model.state_dict()

    def update(self, samples: Sequence[Sample]) -> dict[str, float]:
        """``epochs`` passes over the samples in ``minibatches`` optimiser steps each; returns metrics by name.

        Raises Diverged after three updates in a row whose loss or gradient was not finite (each is skipped and logged),
        ValueError if there is a KL term and a sample without ``reference``.
        """
        if not samples:
            return {}
        if self.loss.beta and any(s.reference is None and any(s.sampled) for s in samples):
            raise ValueError("loss.beta is not 0, so every sample needs log-probs of the reference policy")
        lr = rate(self.optim, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        parts: list[dict[str, float]] = []
        order = list(range(len(samples)))
        for epoch in range(self.epochs):
            if self.minibatches > 1:
                random.Random(f"{self.step}/{epoch}").shuffle(order)
            for part in range(self.minibatches):
                if chosen := [samples[i] for i in order[part :: self.minibatches]]:
                    parts.append(self._optimise(chosen))
        self.step += 1
        found = {name: [part[name] for part in parts if name in part] for name in dict.fromkeys(chain(*parts))}
        means = {name: sum(values) / len(values) for name, values in found.items()}
        return means | {"lr": lr, "num_tokens": float(sum(len(s.tokens) for s in samples))}

    def _optimise(self, samples: Sequence[Sample]) -> dict[str, float]:
        """One optimiser step on all of ``samples``."""
        stats = self._accumulate(samples)
        norms = self._clip(samples)
        finite = all(map(_finite, (stats["loss"], norms["grad_norm"])))
        if finite:
            self.optimizer.step()
            self.skipped = 0
        else:
            self.skipped += 1
            log.warning("update skipped: loss %s, gradient norm %s are not finite", stats["loss"], norms["grad_norm"])
        self.optimizer.zero_grad(set_to_none=True)
        if self.skipped >= 3:
            raise Diverged(
                "three updates in a row were not finite: lower the learning rate or look at the last batch's rewards"
            )
        return stats | norms | {"skipped": float(not finite)}

    def _accumulate(self, samples: Sequence[Sample], policy: bool = True) -> dict[str, float]:
        """Gradients of the whole objective over micro-batches; without ``policy``, of the other streams only."""
        stats: dict[str, Tensor] = {}
        for layer in self.recomputed:  # transformers heeds checkpointing in training mode only; dropout stays off
            layer.training = True
        for batch in self._batches(samples):
            loss, part = self._losses(batch, policy)
            loss.backward()
            for name, value in part.items():
                stats[name] = stats.get(name, torch.zeros(())) + value.detach()
        for layer in self.recomputed:
            layer.training = False
        return {name: float(value) for name, value in stats.items()}

    def _losses(self, batch: Batch, policy: bool) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            run = network(self.model, getattr(torch, self.precision), self.recompute)
            hidden = run(batch.tokens, batch.layout.positions, batch.layout)[0]
            # what is sampled is what is scored: policy tokens at the run's temperature, targets at 1
            temperature = torch.where(batch.policy > 0, self.temperature, 1.0)
            logp, entropy = token_logprobs(run.head, run.vocabulary, hidden[batch.at], batch.ids, temperature)
        mine = batch.policy > 0  # ratios are formed at the policy's tokens alone: at a target 1 / p may overflow
        weights, advantages = batch.policy[mine], batch.advantages[mine]
        new, old = logp[mine], batch.logprobs[mine]
        each, cut = policy_loss(self.loss, new, old, advantages, batch.sample[mine])
        surrogate = (weights * each).sum()
        nll = -(batch.targets * logp).sum()
        loss = surrogate + nll if policy else nll
        shares = weights / batch.mass
        stats = {
            "policy_loss": surrogate,
            "target_loss": nll,
            "entropy": (shares * entropy[mine]).sum(),
            "clip_ratio": (shares * cut).sum(),
            "mismatch": (shares * (new - old).abs()).sum(),
        }
        if self.loss.beta:
            divergence = k3(new, batch.reference[mine])
            stats["kl"] = (shares * divergence).sum()
            if policy:
                loss = loss + self.loss.beta * (weights * divergence).sum()
        if len(batch.value_at):
            read = hidden[batch.value_at]
            stats["value_loss"] = self.model.value_head.loss(read, batch.values, batch.value_weights)
            loss = loss + stats["value_loss"]
        return loss, {"loss": loss, **stats}

    def _clip(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Bound the gradient norm of each stream on its own, so that a strange verdict cannot drown the policy.

        Only when the joint norm is over the bound are the streams taken apart, by one more backward pass over the
        targets. When their norms are due in the log they are measured too, but nothing changes.
        """
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        joint = _norm([p.grad for p in parameters])
        norms = {"grad_norm": float(joint)}
        over = bool(joint > self.optim.clip)
        due = self.step % self.norms_every == 0
        if not _finite(float(joint)) or not (over or due):
            return norms
        if not self._both(samples):
            _scale([p.grad for p in parameters], joint, self.optim.clip)
            return norms
        whole = [p.grad.clone() for p in parameters]
        self.optimizer.zero_grad(set_to_none=True)
        self._accumulate(samples, policy=False)
        targets = [torch.zeros_like(g) if p.grad is None else p.grad for p, g in zip(parameters, whole, strict=True)]
        policy = [g - t for g, t in zip(whole, targets, strict=True)]
        norms |= {"grad_norm/policy": float(_norm(policy)), "grad_norm/targets": float(_norm(targets))}
        if over:
            for gradients in (policy, targets):
                _scale(gradients, _norm(gradients), self.optim.clip)
            whole = [a + b for a, b in zip(policy, targets, strict=True)]
        for p, g in zip(parameters, whole, strict=True):
            p.grad = g
        return norms

    def _both(self, samples: Sequence[Sample]) -> bool:
        """Whether there is credit and a target. A loss of 0 says nothing: on policy it is minus the mean advantage."""
        policy = any(p and (a or self.loss.beta) for s in samples for p, a in zip(s.sampled, s.advantages, strict=True))
        return policy and any(any(s.targets) or s.values for s in samples)

    def _batches(self, samples: Sequence[Sample]) -> Iterator[Batch]:
        """Micro-batches with weights from the whole of ``samples``."""
        policy = policy_weights([s.sampled for s in samples], self.loss.normalise, self.loss.constant)
        targets = target_weights([s.targets for s in samples])
        mass = sum(map(sum, policy)) or 1.0
        valued = sum(len(s.values) for s in samples)
        heads = [_head(s) for s in samples]
        for chosen in micro_batches([len(s.tokens) for s in samples], heads, self.micro_tokens):
            rows = [policy[i] for i in chosen], [targets[i] for i in chosen], [heads[i] for i in chosen]
            yield self._pack([samples[i] for i in chosen], *rows, mass=mass, valued=valued)

    def _pack(
        self,
        samples: list[Sample],
        policy: list[list[float]],
        targets: list[list[float]],
        heads: list[tuple[int, ...]],
        *,
        mass: float,
        valued: int,
    ) -> Batch:
        device = self.model.device

        def flat(rows: list[list[Any]], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor([x for row in rows for x in row], dtype=dtype, device=device)

        lengths = [len(s.tokens) for s in samples]
        families = list(_families(lengths, heads))
        laid_tokens = sum(head + sum(sizes) for head, sizes in families)
        layout = Packing(families, device, padding=rounded(laid_tokens) - laid_tokens)
        # place[i] is where token i of the samples, one after another, is laid: in one place for all that share it
        place = torch.cat([row[:n] for row, n in zip(layout.index, lengths, strict=True)])
        tokens, p, t = flat([s.tokens for s in samples], torch.long), flat(policy), flat(targets)
        laid = tokens.new_zeros(layout.positions.shape).index_copy_(1, place, tokens[None])
        ends = accumulate(lengths)
        needed = (p != 0) | (t != 0)
        index = needed.nonzero()[:, 0]
        padding = rounded(len(index)) - len(index)  # once more the first of them, of no weight
        chosen = torch.cat([index, index[:1].expand(padding)])

        def weighted(x: Tensor) -> Tensor:
            return pad(x[index], (0, padding))

        reference = flat([s.reference or [0.0] * len(s.tokens) for s in samples])
        valued_at = [
            (end - len(s.tokens) + i, label, weight / valued)
            for s, end in zip(samples, ends, strict=True)
            for i, label, weight in s.values
        ]
        return Batch(
            tokens=laid,
            layout=layout,
            at=place[chosen - 1],
            ids=tokens[chosen],
            sample=flat([[i] * n for i, n in enumerate(lengths)], torch.long)[chosen],
            logprobs=flat([s.logprobs for s in samples])[chosen],
            advantages=flat([s.advantages for s in samples])[chosen],
            policy=weighted(p),
            mass=mass,
            targets=weighted(t),
            reference=reference[chosen],
            value_at=place[[i for i, _, _ in valued_at]],
            values=torch.tensor([label for _, label, _ in valued_at], dtype=torch.float32, device=device),
            value_weights=torch.tensor([weight for _, _, weight in valued_at], dtype=torch.float32, device=device),
        )


def _head(sample: Sample) -> tuple[int, ...]:
    """The tokens before the first that is learnt from: samples of one prompt have them in common."""
    learnt = (i for i, (s, t) in enumerate(zip(sample.sampled, sample.targets, strict=True)) if s or t)
    return tuple(sample.tokens[: next(learnt, len(sample.tokens) - 1)])


def _families(lengths: Sequence[int], heads: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, list[int]]]:
    """(shared tokens, tokens of each sample's own) of neighbours with one head; samples that share nothing are one family."""
    alone: list[int] = []
    for head, group in groupby(zip(heads, lengths, strict=True), key=lambda pair: pair[0]):
        sizes = [length for _, length in group]
        if head and len(sizes) > 1:
            if alone:
                yield 0, alone
                alone = []
            yield len(head), [size - len(head) for size in sizes]
        else:
            alone += sizes
    if alone:
        yield 0, alone


def _finite(x: float) -> bool:
    return x == x and abs(x) != float("inf")


def _norm(gradients: Sequence[Tensor | None]) -> Tensor:
    return torch.nn.utils.get_total_norm([g for g in gradients if g is not None])


def _scale(gradients: Sequence[Tensor | None], norm: Tensor, bound: float) -> None:
    if norm > bound:
        for g in gradients:
            if g is not None:
                g.mul_(bound / norm)
