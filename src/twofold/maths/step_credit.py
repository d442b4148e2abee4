"""Credit for the steps of a solution from verdicts on them, and the weights of the two classes (Tango, arXiv:2505.15034).

A row holds the steps of one solution. A verdict is +1 (right), -1 (wrong) or the mean of several verifications.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from twofold.maths.credit import EPS, rloo, standardise, to_go
from twofold.maths.processbench import first_error

Rows = list[list[float]]
StepCredit = Literal["pooled", "response", "first_error"]

RLOO_SCALE = 10.0
"""The released code multiplies leave-one-out step credit by this, so that it is about as large as the outcome's."""


def decayed(first: float, last: float, done: int, planned: int) -> float:
    """Return a number that decays exponentially from ``first``, after 0 updates, to ``last``, after ``planned`` of them.

    It is first * (last / first) ** (done / planned), and ``last`` from then on.

    >>> [round(decayed(0.1, 0.001, s, 300), 4) for s in (0, 50, 100, 150, 199, 300, 400)]
    [0.1, 0.0464, 0.0215, 0.01, 0.0047, 0.001, 0.001]
    """
    return first * (last / first) ** min(1.0, done / planned) if first else 0.0


def step_rewards(verdicts: Sequence[float]) -> list[float]:
    """Return r_k = j_k / K (eq. 3)."""
    return [v / len(verdicts) for v in verdicts]


def pooled(normalise: Callable[[Sequence[float]], list[float]], rows: Sequence[Sequence[float]]) -> Rows:
    """Normalise all rows as one list, and cut the result into rows again.

    >>> pooled(lambda x: [v - min(x) for v in x], [[1.0], [0.5, 2.0]])
    [[0.5], [0.0, 1.5]]
    """
    values = iter(normalise([x for row in rows for x in row]))
    return [[next(values) for _ in row] for row in rows]


def grpo_steps(verdicts: Sequence[Sequence[float]], credit: StepCredit = "pooled") -> Rows:
    """Return the advantage of every step of a group's solutions. All tokens of a step have its advantage.

    * ``pooled``, as published (eq. 5, 6): z-scores of all step rewards of the group, summed over this and later steps.
      Although r_k = j_k / K, the sum favours few steps where most verdicts are CORRECT, and many steps where they are not.
    * ``response``: each step reward minus an even share of the mean sum of rewards of a solution, in standard deviations of
      these sums; summed over this and later steps. So a solution's whole credit is the z-score of its mean verdict, whatever
      its number of steps.
    * ``first_error``: +1 before the first step judged wrong and -1 from that step on, z-scored over the group and not
      summed (in the spirit of VPPO, arXiv:2601.18984).

    Verdicts + - | + + + + | -: ``pooled`` 0, -.93 | 1.85, 1.39, .93, .46 | -1.85; ``response`` 0, -.5 | 1, .75, .5, .25 | -1.
    """
    if credit == "first_error":
        return pooled(standardise, [until_error(row) for row in verdicts])
    rewards = [step_rewards(row) for row in verdicts]
    if credit == "pooled":
        return [to_go(row) for row in pooled(standardise, rewards)]
    sums = [sum(row) for row in rewards]
    mean = float(np.mean(sums)) if sums else 0.0
    scale = (
        float(np.std(sums, ddof=1)) + EPS if len(sums) > 1 else math.inf
    )  # one solution has nothing to be compared with
    return [to_go([(r - mean / len(row)) / scale for r in row]) for row in rewards]


def rloo_steps(verdicts: Sequence[Sequence[float]]) -> Rows:
    """Return leave-one-out step credit: each step reward minus the mean of the group's others, times 10, summed ``to_go``."""
    rewards = [step_rewards(row) for row in verdicts]
    if sum(map(len, rewards)) < 2:
        return [[0.0] * len(row) for row in rewards]
    return [[RLOO_SCALE * a for a in to_go(row)] for row in pooled(rloo, rewards)]


def until_error(verdicts: Sequence[float]) -> list[float]:
    """Return +1 for each step before the first negative verdict, and -1 from that step on.

    >>> until_error([1, 1, -1, 1])
    [1.0, 1.0, -1.0, -1.0]
    """
    first = first_error([v >= 0 for v in verdicts])
    return [1.0 if first < 0 or k < first else -1.0 for k in range(len(verdicts))]


def class_weights(right: int, wrong: int, ema_right: float, ema_wrong: float) -> tuple[float, float]:
    """Return the weights of the right and of the wrong solutions, in a batch with ``right`` and ``wrong`` of them.

    A weight is 1 / sqrt of the class's moving average count, scaled to a mean of 1 over the batch (eq. 9 and the released
    code). A class that has never occurred has weight 0.

    >>> [round(w, 2) for w in class_weights(1, 9, 1.0, 9.0)]
    [2.5, 0.83]
    """
    raw = [1 / math.sqrt(n) if n else 0.0 for n in (ema_right, ema_wrong)]
    mass = right * raw[0] + wrong * raw[1]
    return (raw[0] * (right + wrong) / mass, raw[1] * (right + wrong) / mass) if mass else (0.0, 0.0)
