"""The score of ProcessBench (arXiv:2412.06559): how often the first wrong step of a solution is found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


def first_error(right: Sequence[bool]) -> int:
    """Return ProcessBench's label: the index of the first step that is not right, from 0; -1 if all are.

    >>> first_error([True, False, True]), first_error([True])
    (1, -1)
    """
    return next((k for k, ok in enumerate(right) if not ok), -1)


@dataclass(frozen=True, slots=True)
class ProcessScore:
    """A critic's score, in shares from 0 to 1.

    ``f1`` is the harmonic mean of ``on_wrong`` (cases with an error whose step was found exactly) and ``on_right`` (cases
    without an error where none was found); NaN where one kind of case is missing. ``low`` and ``high`` are its 95% interval.
    ``unreadable`` is the share of predictions that could not be read; they count as wrong.
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
    """Score predicted first wrong steps (-1: none, None: unreadable); the interval is by ``n`` resamples of the cases.

    Labels 0, 1, -1, -1 predicted as 0, 2, -1, 0 give 1/2 on wrong and 1/2 on right, so F1 is 1/2. Raises ValueError if the
    lengths differ or there is no case.
    """
    if len(labels) != len(predictions) or not labels:
        raise ValueError(
            f"{len(predictions)} predictions for {len(labels)} cases: one for each is needed, and at least one case"
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
    """Count the cases with an error that were hit and missed, then the cases without one that were hit and missed."""
    cells = np.zeros(4)
    for label, predicted in zip(labels, predictions, strict=True):
        cells[2 * (label < 0) + (predicted != label)] += 1
    return cells


def _f1(cells_n_4: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return F1 and its two accuracies for every row of ``_cells``: NaN if one kind is missing, 0 if both accuracies are 0."""
    hit_n_2, missed_n_2 = cells_n_4[:, ::2], cells_n_4[:, 1::2]
    with np.errstate(invalid="ignore"):
        on_wrong, on_right = (hit_n_2 / (hit_n_2 + missed_n_2)).T
        f1 = np.where(on_wrong + on_right == 0, 0.0, 2 * on_wrong * on_right / (on_wrong + on_right))
    return f1, on_wrong, on_right


def best_threshold(values: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    """Return the threshold with the best F1 on these cases: a step that scores below it counts as wrong. Use it on others.

    ``values[i]`` are the scores of the steps of case i. The threshold lies between two neighbouring scores; the lowest of
    equals wins. Raises ValueError for cases of one kind only, on which no F1 exists.
    """
    if len({label < 0 for label in labels}) < 2:
        raise ValueError("a threshold is chosen on cases with an error and cases without, these are of one kind")
    seen = sorted({v for row in values for v in row})
    middles = [(a + b) / 2 for a, b in pairwise(seen)]
    thresholds = [seen[0], *middles]  # at the first of them nothing is wrong
    if len(thresholds) > 200:
        thresholds = [float(t) for t in np.quantile(thresholds, np.linspace(0, 1, 200))]

    def f1(t: float) -> float:
        found = [first_error([v >= t for v in row]) for row in values]
        return float(_f1(_cells(labels, found)[None])[0][0])

    return max(thresholds, key=f1)
