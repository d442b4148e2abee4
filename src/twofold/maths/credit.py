"""Credit in three steps: cut a rollout into segments, give each segment a number, spread the number over its tokens.

Six pure functions express every paper here. They take and return numbers; they know no tensors and no models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

EPS = 1e-6


def standardise(values: Sequence[float]) -> list[float]:
    """Return (x - mean) / (std + 1e-6) with the unbiased (n - 1) std: zeros for fewer than two values or for equal ones.

    >>> [round(a, 4) for a in standardise([0, 1, 0])]
    [-0.5773, 1.1547, -0.5773]
    """
    if len(values) < 2:
        return [0.0] * len(values)
    x = np.asarray(values, dtype=float)
    return ((x - x.mean()) / (x.std(ddof=1) + EPS)).tolist()


def grpo(rewards_G: Sequence[float], std: bool = True) -> list[float]:
    """Return group-relative advantages (DeepSeekMath, arXiv:2402.03300). ``std=False`` is Dr. GRPO (arXiv:2503.20783).

    Raises ValueError for a group of one, which has no baseline.

    >>> grpo([1, 0, 0, 0], std=False)
    [0.75, -0.25, -0.25, -0.25]
    """
    _check_group(rewards_G)
    if std:
        return standardise(rewards_G)
    return (np.asarray(rewards_G, dtype=float) - np.mean(rewards_G)).tolist()


def rloo(rewards_G: Sequence[float]) -> list[float]:
    """Return leave-one-out advantages: r_k minus the mean of the others (LOOP, arXiv:2502.01600).

    Raises ValueError for a group of one.

    >>> [round(a, 4) for a in rloo([1, 0, 0, 1])]
    [0.6667, -0.6667, -0.6667, 0.6667]
    """
    _check_group(rewards_G)
    r = np.asarray(rewards_G, dtype=float)
    return (r - (r.sum() - r) / (len(r) - 1)).tolist()


def differences(values: Sequence[float], final: float) -> list[float]:
    """Return what each segment changed: V(next) - V(this), for the last segment ``final`` - V(this) (VinePPO, MRT).

    >>> differences([0.5, 0.75, 0.25], final=1.0)
    [0.25, -0.5, 0.75]
    """
    ends = [*values[1:], final]
    return [float(end - start) for start, end in zip(values, ends, strict=True)]


def to_go(values: Sequence[float]) -> list[float]:
    """Return, for each value, the undiscounted sum of it and all later values.

    >>> to_go([1, -2, 3])
    [2.0, 1.0, 3.0]
    """
    return np.asarray(values, dtype=float)[::-1].cumsum()[::-1].tolist()


def spread(values: Sequence[float], ends: Sequence[int], length: int) -> list[float]:
    """Turn one number per segment into one per token. Segment k covers tokens [ends[k-1], ends[k]); the last covers the rest.

    >>> spread([0.5, -1.0], ends=[2, 3], length=4)
    [0.5, 0.5, -1.0, -1.0]
    """
    if not values or len(values) != len(ends):
        raise ValueError(f"{len(values)} values for {len(ends)} segments")
    starts = [0, *ends[:-1]]
    out = [0.0] * length
    for value, start, end in zip(values, starts, [*ends[:-1], length], strict=True):
        out[start:end] = [float(value)] * (end - start)
    return out


def mean(values: Sequence[float]) -> float:
    """Return the mean, and NaN if there are no values: an unknown number is not 0."""
    return sum(values) / len(values) if values else math.nan


def _check_group(rewards_G: Sequence[float]) -> None:
    if len(rewards_G) < 2:
        raise ValueError("a group of one has no baseline: sample at least 2 rollouts per problem")
