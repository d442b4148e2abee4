"""Numbers about steps: credit from verdicts on them (Tango, arXiv:2505.15034), class weights, ProcessBench's F1.

A row is one solution's steps; verdicts are +1 (right) and -1 (wrong), or means of several verifiers' between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from twofold.maths.credit import EPS, rloo, standardise, to_go

Rows = list[list[float]]
StepCredit = Literal["pooled", "response", "first_error"]

RLOO_SCALE = 10.0
"""By how much the released code multiplies leave-one-out step credit, so that it is of the outcome's size."""


def decayed(first: float, last: float, done: int, planned: int) -> float:
    """``first`` after 0 of ``planned`` updates, exponentially down to ``last`` after all: first * (last / first) ** (done / planned).

    >>> [round(decayed(0.1, 0.001, s, 300), 4) for s in (0, 50, 100, 150, 199, 300, 400)]
    [0.1, 0.0464, 0.0215, 0.01, 0.0047, 0.001, 0.001]
    """
    return first * (last / first) ** min(1.0, done / planned) if first else 0.0


def step_rewards(verdicts: Sequence[float]) -> list[float]:
    """r_k = j_k / K (eq. 3)."""
    return [v / len(verdicts) for v in verdicts]


def pooled(normalise: Callable[[Sequence[float]], list[float]], rows: Sequence[Sequence[float]]) -> Rows:
    """All rows normalised as one, and cut as they were.

    >>> pooled(lambda x: [v - min(x) for v in x], [[1.0], [0.5, 2.0]])
    [[0.5], [0.0, 1.5]]
    """
    values = iter(normalise([x for row in rows for x in row]))
    return [[next(values) for _ in row] for row in rows]


def grpo_steps(verdicts: Sequence[Sequence[float]], credit: StepCredit = "pooled") -> Rows:
    """Advantages of the steps of a group's solutions; a step's own tokens have them all.

    * ``pooled``, as published (eq. 5, 6): z-scores of all step rewards of the group, summed over this and later steps.
      Although r_k = j_k / K, the sum favours few steps where most verdicts are CORRECT, and many where they are not.
    * ``response``: deviations from the mean sum of rewards of a solution, in its standard deviations, so that a solution's
      whole credit is the z-score of its mean verdict, however many steps it has; summed likewise.
    * ``first_error``: +1 before the first step judged wrong and -1 from it on, z-scored over the group and not summed
      (in the spirit of VPPO, arXiv:2601.18984).

    Verdicts + - | + + + + | -: ``pooled`` 0, -.93 | 1.85, 1.39, .93, .46 | -1.85; ``response`` 0, -.5 | 1, .75, .5, .25 | -1.
    """
    if credit == "first_error":
        return pooled(standardise, [until_error(row) for row in verdicts])
    rewards = [step_rewards(row) for row in verdicts]
    if credit == "pooled":
        return [to_go(row) for row in pooled(standardise, rewards)]
    sums = [sum(row) for row in rewards]
    mean = float(np.mean(sums)) if sums else 0.0
    scale = float(np.std(sums, ddof=1)) + EPS if len(sums) > 1 else math.inf  # nothing to compare one with
    return [to_go([(r - mean / len(row)) / scale for r in row]) for row in rewards]


def rloo_steps(verdicts: Sequence[Sequence[float]]) -> Rows:
    """Leave-one-out step credit: each step reward less the mean of the group's others, times 10, summed to go."""
    rewards = [step_rewards(row) for row in verdicts]
    if sum(map(len, rewards)) < 2:
        return [[0.0] * len(row) for row in rewards]
    return [[RLOO_SCALE * a for a in to_go(row)] for row in pooled(rloo, rewards)]


def until_error(verdicts: Sequence[float]) -> list[float]:
    """+1 for steps before the first negative verdict, -1 from there on.

    >>> until_error([1, 1, -1, 1])
    [1.0, 1.0, -1.0, -1.0]
    """
    first = first_error([v >= 0 for v in verdicts])
    return [1.0 if first < 0 or k < first else -1.0 for k in range(len(verdicts))]


def first_error(right: Sequence[bool]) -> int:
    """Index of the first step that is not right, from 0; -1 if all are: ProcessBench's label.

    >>> first_error([True, False, True]), first_error([True])
    (1, -1)
    """
    return next((k for k, ok in enumerate(right) if not ok), -1)


def class_weights(right: int, wrong: int, ema_right: float, ema_wrong: float) -> tuple[float, float]:
    """(weight of the right solutions, of the wrong ones) in a batch with so many of each: 1 / sqrt of the class's moving
    average count, scaled to a mean of 1 over the batch (eq. 9 and the released code). A class that never came has none.

    >>> [round(w, 2) for w in class_weights(1, 9, 1.0, 9.0)]
    [2.5, 0.83]
    """
    raw = [1 / math.sqrt(n) if n else 0.0 for n in (ema_right, ema_wrong)]
    mass = right * raw[0] + wrong * raw[1]
    return (raw[0] * (right + wrong) / mass, raw[1] * (right + wrong) / mass) if mass else (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class ProcessScore:
    """ProcessBench (arXiv:2412.06559), all shares 0 to 1. ``f1`` is the harmonic mean of ``on_wrong`` (cases with an error:
    its step found exactly) and ``on_right`` (cases without: none found); NaN where there are no cases of a kind.
    ``unreadable``: share of predictions that could not be read, which count as wrong. ``low``, ``high``: 95% interval of ``f1``.
    """

    f1: float
    low: float
    high: float
    on_wrong: float
    on_right: float
    unreadable: float
    cases: int


def process_score(
    labels: Sequence[int], predictions: Sequence[int | None], n: int = 2000, seed: int = 0
) -> ProcessScore:
    """The score of predicted first wrong steps (-1: none, None: unreadable), its interval by ``n`` resamples of the cases.

    Of labels 0, 1, -1, -1 predicted as 0, 2, -1, 0: 1/2 and 1/2, F1 1/2. Raises ValueError if the lengths differ.
    """
    if len(labels) != len(predictions) or not labels:
        raise ValueError(
            f"{len(predictions)} predictions for {len(labels)} cases: one for each is needed, and a case at least"
        )
    cells = _cells(labels, predictions)
    drawn_n_4 = np.random.default_rng(seed).multinomial(len(labels), cells / len(labels), size=n)
    f1_n, _, _ = _f1(drawn_n_4)
    known = f1_n[~np.isnan(f1_n)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (math.nan, math.nan)
    f1, on_wrong, on_right = (float(x[0]) for x in _f1(cells[None]))
    unreadable = sum(p is None for p in predictions) / len(predictions)
    return ProcessScore(f1, float(low), float(high), on_wrong, on_right, unreadable, len(labels))


def _cells(labels: Sequence[int], predictions: Sequence[int | None]) -> np.ndarray:
    """Cases with an error that were hit, and missed; cases without one that were hit, and missed."""
    cells = np.zeros(4)
    for label, predicted in zip(labels, predictions, strict=True):
        cells[2 * (label < 0) + (predicted != label)] += 1
    return cells


def _f1(cells_n_4: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F1 and its two accuracies of every row of ``_cells``; NaN without cases of a kind, 0 where both accuracies are."""
    hit_n_2, missed_n_2 = cells_n_4[:, ::2], cells_n_4[:, 1::2]
    with np.errstate(invalid="ignore"):
        on_wrong, on_right = (hit_n_2 / (hit_n_2 + missed_n_2)).T
        f1 = np.where(on_wrong + on_right == 0, 0.0, 2 * on_wrong * on_right / (on_wrong + on_right))
    return f1, on_wrong, on_right


def best_threshold(values: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    """The threshold under which a step counts as wrong that has the best F1 on these cases; use it on others.

    ``values[i]``: the score of each step of case i. Between two neighbouring scores; the lowest of equals.
    Raises ValueError for cases of one kind only, on which no F1 exists.
    """
    if len({label < 0 for label in labels}) < 2:
        raise ValueError("a threshold is chosen on cases with an error and cases without, these are of one kind")
    seen = sorted({v for row in values for v in row})
    middles = [(a + b) / 2 for a, b in pairwise(seen)]
    thresholds = [seen[0], *middles]  # under the first of them nothing is wrong
    if len(thresholds) > 200:
        thresholds = [float(t) for t in np.quantile(thresholds, np.linspace(0, 1, 200))]

    def f1(t: float) -> float:
        found = [first_error([v >= t for v in row]) for row in values]
        return float(_f1(_cells(labels, found)[None])[0][0])

    return max(thresholds, key=f1)
