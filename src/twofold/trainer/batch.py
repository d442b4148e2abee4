"""Samples laid out for a forward pass: micro-batches of whole samples, end to end, without padding between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, chain, groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from twofold.maths.losses import Loss
from twofold.maths.packing import micro_batches, rounded
from twofold.maths.weights import policy_weights, target_weights
from twofold.models.attention import Packing
from twofold.types import Sample

Row = tuple[Sample, list[float], list[float], tuple[int, ...]]
"""A sample, the weights of its tokens in the policy stream and as targets, and its prefix."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch of N tokens. The loss reads M log-probs, P of them of tokens that were sampled from the policy."""

    tokens: Tensor  # [1, N]; a prefix that samples share is there once
    layout: Packing

    before: Tensor  # [M] where the token before is laid, whose hidden state predicts this one
    ids: Tensor  # [M]
    targets: Tensor  # [M] weight of the NLL

    drawn: Tensor  # [P] which of the M were sampled; the tensors below have an entry for each of these
    behaviour: Tensor  # log-prob when it was sampled
    reference: Tensor  # log-prob under the reference policy
    advantages: Tensor
    policy: Tensor  # weight of the policy loss
    shares: Tensor  # the same weight, scaled to a sum of 1 over the whole update: metrics are means per token
    sample: Tensor  # index of the token's sample in the micro-batch

    valued: Tensor  # [V] tokens whose hidden state the scalar head reads
    labels: Tensor  # [2, V] their labels, and the weights of these

    fitted: Tensor  # [F] which of the M log-probs are regressed on a label
    aims: Tensor  # [2, F] these labels, and their weights

    def to(self, device: torch.device) -> Batch:
        """Move to a device, at once: making it there would wait for every pass before it."""
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def batches(
    samples: Sequence[Sample], loss: Loss, budget: int, device: torch.device, mine: Sequence[int]
) -> Iterator[Batch]:
    """Micro-batches of at most ``budget`` tokens, of the samples with the indices ``mine``.

    Their weights are shares of all ``samples``, so their losses add up.
    """
    policy = policy_weights([s.sampled for s in samples], loss.normalise, loss.constant)
    targets = target_weights([s.targets for s in samples])
    prefixes = [shared_prefix(s) for s in samples]
    rows = list(zip(samples, policy, targets, prefixes, strict=True))
    mass = sum(map(sum, policy)) or 1.0
    valued, fitted = (sum(len(getattr(s, name)) for s in samples) for name in ("values", "fits"))
    for chosen in micro_batches([len(samples[i].tokens) for i in mine], [prefixes[i] for i in mine], budget):
        yield _laid([rows[mine[i]] for i in chosen], mass, valued, fitted).to(device)


def _laid(rows: Sequence[Row], mass: float, valued: int, fitted: int) -> Batch:
    def flat(rows: Iterable[Iterable[Any]], dtype: Any = np.float32) -> Tensor:
        return torch.from_numpy(np.fromiter(chain.from_iterable(rows), dtype))

    samples, policy, targets, prefixes = zip(*rows, strict=True)
    lengths = [len(s.tokens) for s in samples]
    families = list(_families(lengths, prefixes))
    size = sum(prefix + sum(own) for prefix, own in families)
    layout = Packing(families, padding=rounded(size) - size)
    # All tensors but the last of these have the samples one after another; place[i] is where token i of that order is laid.
    place = torch.cat([row[:n] for row, n in zip(layout.index, lengths, strict=True)])
    ids, policy_weight, target_weight = flat((s.tokens for s in samples), np.int64), flat(policy), flat(targets)
    tokens = ids.new_zeros(layout.positions.shape).index_copy_(1, place, ids[None])
    read = ((policy_weight != 0) | (target_weight != 0)).nonzero()[:, 0]
    drawn = policy_weight[read].nonzero()[:, 0]
    mine = read[drawn]
    starts = [*accumulate(lengths[:-1], initial=0)]
    values = [(start + i, y, w / valued) for s, start in zip(samples, starts, strict=True) for i, y, w in s.values]
    fits = [(start + i, t, y, w / fitted) for s, start in zip(samples, starts, strict=True) for i, t, y, w in s.fits]
    before = torch.cat([place[read - 1], place[[i for i, *_ in fits]]])
    wanted = torch.cat([ids[read], flat(([t] for _, t, *_ in fits), np.int64)])
    padding = rounded(len(before)) - len(before)  # the first of them again, without weight
    return Batch(
        tokens=tokens,
        layout=layout,
        before=torch.cat([before, before[:1].expand(padding)]),
        ids=torch.cat([wanted, wanted[:1].expand(padding)]),
        targets=pad(target_weight[read], (0, len(fits) + padding)),
        drawn=drawn,
        behaviour=flat(s.logprobs for s in samples)[mine],
        reference=flat(s.reference or [0.0] * len(s.tokens) for s in samples)[mine],
        advantages=flat(s.advantages for s in samples)[mine],
        policy=policy_weight[mine],
        shares=policy_weight[mine] / mass,
        sample=flat(([i] * n for i, n in enumerate(lengths)), np.int64)[mine],
        valued=place[[i for i, _, _ in values]],
        labels=flat((y, w) for _, y, w in values).view(-1, 2).T,
        fitted=torch.arange(len(read), len(before)),
        aims=flat((y, w) for *_, y, w in fits).view(-1, 2).T,
    )


def shared_prefix(sample: Sample) -> tuple[int, ...]:
    """The tokens before the first that is learnt from. Samples of one prompt have them in common."""
    learnt = (i for i, (s, t) in enumerate(zip(sample.sampled, sample.targets, strict=True)) if s or t)
    return tuple(sample.tokens[: next(learnt, len(sample.tokens) - 1)])


def _families(lengths: Sequence[int], prefixes: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, list[int]]]:
    """(tokens of the shared prefix, tokens of each sample's own) of neighbours with one prefix.

    Neighbours that share nothing are one family with an empty prefix.
    """
    alone: list[int] = []
    for prefix, group in groupby(zip(prefixes, lengths, strict=True), key=lambda pair: pair[0]):
        sizes = [length for _, length in group]
        if prefix and len(sizes) > 1:
            if alone:
                yield 0, alone
                alone = []
            yield len(prefix), [size - len(prefix) for size in sizes]
        else:
            alone += sizes
    if alone:
        yield 0, alone
