"""The learner: per-token credit and targets in, updated weights out. It knows no algorithm and sees no reward."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding
from torch.nn.utils import get_total_norm

from twofold.maths.losses import Loss as Loss
from twofold.maths.losses import corrected, k3, policy_loss
from twofold.maths.schedule import Optim, learning_rate
from twofold.models import lora
from twofold.models.context import context
from twofold.models.decoder import Decoder, Module, network, recomputing
from twofold.models.logprobs import token_logprobs
from twofold.trainer.batch import Batch, batches
from twofold.trainer.optim import make, moments
from twofold.types import Precision, Sample

log = logging.getLogger(__name__)


class Diverged(ArithmeticError):
    """Three updates in a row were not finite."""


class Learner:
    """Owns a model's optimiser. ``temperature`` is the one at which the policy's tokens were sampled.

    Where samples carry ``values``, the model must have a scalar head (see ``models.head``). With ``exact``, the log-probs of
    tokens that an exact engine sampled have the bits that it gave them (see ``models.exact``).
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
        exact: bool = False,
        norms_every: int = 10,
    ) -> None:
        if loss.correction != "none" and epochs * minibatches > 1:
            raise ValueError("loss.correction needs one update per step: set train.epochs and train.minibatches to 1")
        self.model, self.optim, self.loss, self.temperature = model, optim, loss, temperature
        self.steps, self.epochs, self.minibatches, self.micro_tokens = steps, epochs, minibatches, micro_tokens
        self.precision, self.checkpointing, self.exact, self.norms_every = precision, checkpointing, exact, norms_every
        self.optimizer = make(optim, model)
        self.step = self.skipped = 0

    def weights(self) -> Mapping[str, Tensor]:
        return lora.weights(self.model)

    def batches(self, samples: Sequence[Sample]) -> Iterable[Batch]:
        """Return the micro-batches whose gradients are computed in this process."""
        return batches(samples, self.loss, self.micro_tokens, self.model.device, range(len(samples)))

    def saved(self) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Return what a checkpoint saves, by name: the weights that are trained, and the optimiser's moments."""
        return lora.trained(self.model), moments(self.optimizer, self.model)

    def update(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Pass ``epochs`` times over the samples, in ``minibatches`` optimiser steps each, and return metrics by name.

        An update whose loss, gradient or sampled log-probs are not finite is skipped and logged. Raises Diverged after three
        of them in a row, and ValueError if there is a KL term and a sample has no ``reference``, or a sample is longer than
        the model's context.
        """
        if not samples:
            return {}
        if self.loss.beta and any(s.reference is None and any(s.sampled) for s in samples):
            raise ValueError("loss.beta is not 0, so every sample needs log-probs of the reference policy")
        context(self.model.config).check(max(len(s.tokens) for s in samples))
        lr = learning_rate(self.optim, self.step, self.steps)
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
        names = dict.fromkeys(name for part in parts for name in part)
        found = {name: [part[name] for part in parts if name in part] for name in names}
        means = {name: sum(values) / len(values) for name, values in found.items()}
        return means | {"lr": lr, "num_tokens": float(sum(len(s.tokens) for s in samples))}

    def _optimise(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Take one optimiser step on all of ``samples``."""
        stats = self.accumulate(samples)
        stats |= self._clip(samples)
        finite = all(map(math.isfinite, (stats["loss"], stats["mismatch"], stats["grad_norm"])))
        self.skipped = 0 if finite else self.skipped + 1
        if finite:
            self.optimizer.step()
        else:
            log.warning("update skipped, not finite: %s", [k for k, v in stats.items() if not math.isfinite(v)])
        self.optimizer.zero_grad(set_to_none=True)
        if self.skipped >= 3:
            raise Diverged(
                "three updates in a row were not finite: lower the learning rate or look at the last batch's rewards"
            )
        return stats | {"skipped": float(not finite)}

    def accumulate(self, samples: Sequence[Sample], policy: bool = True) -> dict[str, float]:
        """Add up the objective's gradients over micro-batches; without ``policy``, those of the other streams only."""
        stats: dict[str, Tensor] = {}
        with recomputing(self.model, self.checkpointing):
            run = network(self.model, getattr(torch, self.precision), self.checkpointing, self.exact)
            for batch in self.batches(samples):
                loss, part = self._losses(run, batch, policy)
                loss.backward()
                for name, value in part.items():
                    stats[name] = stats.get(name, torch.zeros(())) + value.detach()
        return {name: float(value) for name, value in stats.items()}

    def _losses(self, run: Decoder | Module, batch: Batch, policy: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the objective on one micro-batch (without ``policy``, its other streams only), and its parts by name."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            hidden = run(batch.tokens, batch.layout.positions, batch.layout).squeeze(0)
            # what is sampled is what is scored: policy tokens at the run's temperature, targets at 1
            temperature = torch.ones_like(batch.targets).index_fill_(0, batch.drawn, self.temperature)
            before = embedding(batch.before, hidden)  # unlike that of hidden[...], its gradient is summed in one order
            how = self.checkpointing, self.exact
            logp, entropy = token_logprobs(run.head, run.vocabulary, before, batch.ids, temperature, *how)
        new = logp[batch.drawn]  # ratios are formed at the policy's tokens alone: at a target 1 / p may overflow
        old, weight, capped = corrected(self.loss, new, batch.behaviour, batch.sample)
        each, cut = policy_loss(self.loss, new, old, batch.advantages, batch.sample)
        stats = {
            "policy_loss": (batch.policy * weight * each).sum(),
            "target_loss": -(batch.targets * logp).sum(),
            "entropy": (batch.shares * entropy[batch.drawn]).sum(),
            "clip_ratio": (batch.shares * cut).sum(),
            "mismatch": (batch.shares * (new - batch.behaviour).abs()).sum(),
        }
        if self.loss.correction != "none":
            stats["correction"] = (batch.shares * weight).sum()
            stats["correction_capped"] = (batch.shares * capped).sum()
        loss = stats["policy_loss"] + stats["target_loss"] if policy else stats["target_loss"]
        if self.loss.beta:
            divergence = k3(new, batch.reference)
            stats["kl"] = (batch.shares * divergence).sum()
            if policy:
                loss = loss + self.loss.beta * (batch.policy * divergence).sum()
        if len(batch.valued):
            stats["value_loss"] = self.model.value_head.loss(hidden[batch.valued], *batch.labels)
            loss = loss + stats["value_loss"]
        if len(batch.fitted):
            stats["score_loss"] = (batch.aims[1] * (logp[batch.fitted] - batch.aims[0]) ** 2).sum()
            loss = loss + stats["score_loss"]
        return loss, {"loss": loss, **stats}

    def _clip(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Bound the gradient norm of each stream on its own, so that a strange verdict cannot drown the policy.

        One more backward pass, over the targets, separates the streams. It is made where the joint norm exceeds the bound,
        and every ``norms_every`` steps for the log, which changes nothing.
        """
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        whole = [p.grad for p in parameters]
        norms = {"grad_norm": float(get_total_norm(whole))}
        over = norms["grad_norm"] > self.optim.clip
        due = self.step % self.norms_every == 0
        if not math.isfinite(norms["grad_norm"]) or not (over or due):
            return norms
        if not self._both(samples):
            _scale(whole, self.optim.clip)
            return norms
        self.optimizer.zero_grad(set_to_none=True)
        self.accumulate(samples, policy=False)
        targets = [torch.zeros_like(g) if p.grad is None else p.grad for p, g in zip(parameters, whole, strict=True)]
        policy = [g - t for g, t in zip(whole, targets, strict=True)]
        streams = {"policy": policy, "targets": targets}
        norms |= {f"grad_norm/{name}": float(get_total_norm(gradients)) for name, gradients in streams.items()}
        if over:
            for gradients in streams.values():
                _scale(gradients, self.optim.clip)
            whole = [a + b for a, b in zip(policy, targets, strict=True)]
        for p, g in zip(parameters, whole, strict=True):
            p.grad = g
        return norms

    def _both(self, samples: Sequence[Sample]) -> bool:
        """Return whether there is credit and a target. The loss cannot show it: on policy it is minus the mean advantage."""
        policy = any(p and (a or self.loss.beta) for s in samples for p, a in zip(s.sampled, s.advantages, strict=True))
        return policy and any(any(s.targets) or s.values or s.fits for s in samples)


def _scale(gradients: Sequence[Tensor], bound: float) -> None:
    """Scale gradients down in place to a joint norm of at most ``bound``."""
    norm = get_total_norm(gradients)
    if norm > bound:
        for g in gradients:
            g.mul_(bound / norm)
