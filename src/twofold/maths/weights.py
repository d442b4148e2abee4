"""The weights by which per-token losses are averaged.

The denominator is data: it is fixed for the whole update before the first forward pass, so micro-batches, packing and ranks
cannot change the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Normalise = Literal["token", "sequence", "constant"]


def policy_weights(sampled: Sequence[Sequence[bool]], how: Normalise, constant: int = 1) -> list[list[float]]:
    """Return the weight of every token's policy loss. Rows are samples, and entries follow ``sampled``.

    * ``token``: 1 / all sampled tokens (DAPO, VinePPO): long samples weigh more.
    * ``sequence``: 1 / (samples * own tokens) (GRPO as published): every sample weighs the same.
    * ``constant``: 1 / (samples * ``constant``) (Dr. GRPO): no length enters.

    Samples without a sampled token take no part and are not counted.

    >>> policy_weights([[True, True, False], [True]], "sequence")
    [[0.25, 0.25, 0.0], [0.5]]
    """
    counts = [sum(row) for row in sampled]
    live = sum(c > 0 for c in counts)
    total = sum(counts)
    out = []
    for row, count in zip(sampled, counts, strict=True):
        if not count:
            out.append([0.0] * len(row))
            continue
        weight = {"token": 1 / total, "sequence": 1 / (live * count), "constant": 1 / (live * constant)}[how]
        out.append([weight if s else 0.0 for s in row])
    return out


def target_weights(targets: Sequence[Sequence[float]]) -> list[list[float]]:
    """Divide targets by the number of tokens that are targets, so that a weight multiplies a mean per-token NLL in nats.

    >>> target_weights([[0.0, 1.0], [0.0, 0.5]])
    [[0.0, 0.5], [0.0, 0.25]]
    """
    count = sum(t != 0 for row in targets for t in row) or 1
    return [[t / count for t in row] for row in targets]
