"""The posterior of the right answer, given samples and the model's verdicts on them, in closed form.

For one problem there are N samples: answers a_i with verdicts s_i = P(Yes). The model of how they came about:

* each sample is right with an unknown chance theta ~ Beta(alpha, beta): problems differ in difficulty;
* wrong samples fall into answers as in a Chinese restaurant process of concentration ``spread``: the smaller it is, the
  more often wrong answers repeat;
* a verdict is worth the likelihood ratio ln p(s | right) / p(s | wrong) = slope * logit(s) + intercept (Platt's map);
* verdicts on one answer err together, so n_a of them count as n_a ** (1 - overlap).

With theta and the restaurant integrated out, "the right answer is a" has the weight

    w_a = B(alpha + n_a, beta + N - n_a) / [spread Gamma(n_a) Gamma(spread + N - n_a)] exp(e_a)
    e_a = n_a ** -overlap * sum_{i: a_i = a} (slope * logit(s_i) + intercept)
    w_0 = B(alpha, beta + N) / Gamma(spread + N)             the right answer has not been seen yet

and the posterior is w / sum(w). The six numbers are fitted on problems that are used for nothing else. The combination is
ours; its parts are Platt scaling (1999), the Beta-binomial and the Ewens-Pitman sampling formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twofold.ranges import Finite, NonNegative, Positive, Share, checked

Floats = NDArray[np.float64]
CLIP = 1e-6
"""Verdicts are clipped to [CLIP, 1 - CLIP]."""


@checked
class Calibration:
    """The six numbers of the model above. The defaults are round numbers near the fit for RL^V on ``sums``; fit your own
    model's with ``twofold calibrate``.

    Raises ValueError for numbers outside their range.
    """

    slope: NonNegative = 1.0
    intercept: Finite = 0.0
    alpha: Positive = 1.0
    beta: Positive = 1.0
    spread: Positive = 0.5
    overlap: Share = 0.5


def posterior(
    answers: Sequence[str | None], scores: Sequence[float | None], calibration: Calibration
) -> dict[str, float]:
    """Return P(this is the right answer) for every answer seen; the rest to 1 is P(none of them is right).

    ``scores[i]`` is P(Yes) of sample i. It is not read where there is no answer, since such a sample says nothing. A single
    verdict, without correction, is itself the posterior:

    >>> one = Calibration(slope=1, intercept=0, alpha=1, beta=1, spread=1, overlap=0)
    >>> {a: round(p, 3) for a, p in posterior(["7"], [0.9], one).items()}
    {'7': 0.9}
    >>> {a: round(p, 3) for a, p in posterior(["7", "7", "8"], [0.5, 0.5, 0.5], one).items()}
    {'7': 0.5, '8': 0.25}

    Raises ValueError for an answer without a score in [0, 1].
    """
    counts: dict[str, int] = {}
    sums: dict[str, float] = {}
    for i, (answer, score) in enumerate(zip(answers, scores, strict=True)):
        if answer is not None:
            if score is None or not 0 <= score <= 1:
                raise ValueError(f"sample {i} has an answer but not a P(Yes) in [0, 1]: {score}")
            counts[answer] = counts.get(answer, 0) + 1
            sums[answer] = sums.get(answer, 0.0) + _logit(score)
    if not counts:
        return {}
    n_K = np.array([[*counts.values()]], dtype=float)
    logs = _log_weights(n_K, np.array([[*sums.values()]]), _vector(calibration))[0]
    weights = np.exp(logs - logs.max())
    return dict(zip(counts, (weights[:-1] / weights.sum()).tolist(), strict=True))


def fit(
    problems: Sequence[tuple[Sequence[str | None], Sequence[bool], Sequence[float | None]]],
    sizes: Sequence[int] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256),
    draws: int = 4,
    seed: int = 0,
) -> Calibration:
    """Return the calibration of highest likelihood on held-out problems, each as (answers, correct, scores).

    For every problem, ``draws`` random orders are cut at each of ``sizes`` that it has samples for, because that is what a
    stopping rule sees. For many more samples than that the fit does not hold: verdicts count for more with each sample, and how
    often an answer occurs does not.
    Raises ValueError if not one sample has an answer.
    """
    from scipy.optimize import minimize

    rng = np.random.default_rng(seed)
    rows = [row for p in problems for _ in range(draws) for row in _prefixes(*p, sizes, rng.permutation(len(p[0])))]
    if not rows:
        raise ValueError("no sample has an answer: there is nothing to calibrate on")
    widest = max(len(n) for n, _, _ in rows)
    n_M_K, sum_M_K = np.zeros((2, len(rows), widest))
    right_M_K = np.zeros((len(rows), widest + 1), dtype=bool)
    for m, (n, total, right) in enumerate(rows):
        n_M_K[m, : len(n)], sum_M_K[m, : len(n)], right_M_K[m, : len(n)] = n, total, right
        right_M_K[m, -1] = not any(right)

    def loss(x: Floats) -> float:
        logs = _log_weights(n_M_K, sum_M_K, x)
        return float(np.mean(_log_sum(logs) - _log_sum(np.where(right_M_K, logs, -np.inf))))

    bounds = [(0, 10), (-5, 5), (-4, 4), (-4, 4), (-4, 4), (0, 1)]
    found = minimize(loss, _vector(Calibration()), method="L-BFGS-B", bounds=bounds).x
    slope, intercept, alpha, beta, spread, overlap = (
        float(v) for v in (*found[:2], *np.exp(found[2:5]), min(max(found[5], 0.0), 1.0))
    )
    return Calibration(max(slope, 0.0), intercept, alpha, beta, spread, overlap)


def _vector(c: Calibration) -> Floats:
    return np.array([c.slope, c.intercept, math.log(c.alpha), math.log(c.beta), math.log(c.spread), c.overlap])


def _log_weights(n_M_K: Floats, sum_M_K: Floats, x: Floats) -> Floats:
    """Return ln w of every answer (-inf where n = 0) and, in the last column, of "none of these"; shape [M, K + 1]."""
    slope, intercept, alpha, beta, spread, overlap = *x[:2], *np.exp(x[2:5]), x[5]
    N_M = n_M_K.sum(axis=1, keepdims=True)
    n, others = np.maximum(n_M_K, 1), np.maximum(N_M - n_M_K, 0)
    both = _log_gamma(alpha + beta, N_M)  # of the two Beta functions
    evidence = (slope * sum_M_K + intercept * n) * n**-overlap
    partition = math.log(spread) + _log_gamma(1, n - 1) + _log_gamma(spread, others)
    seen = _log_gamma(alpha, n) + _log_gamma(beta, others) - both - partition + evidence
    unseen = math.lgamma(alpha) + _log_gamma(beta, N_M) - both - _log_gamma(spread, N_M)
    return np.hstack([np.where(n_M_K > 0, seen, -np.inf), unseen])


def _log_gamma(base: float, counts: Floats) -> Floats:
    """Return ln Gamma(base + count) from a table, since counts are small whole numbers."""
    table = np.array([math.lgamma(base + k) for k in range(int(counts.max()) + 1)])
    return table[counts.astype(int)]


def _log_sum(logs_M_K: Floats) -> Floats:
    top_M = logs_M_K.max(axis=1, keepdims=True)
    return (top_M + np.log(np.exp(logs_M_K - top_M).sum(axis=1, keepdims=True)))[:, 0]


def _prefixes(
    answers: Sequence[str | None],
    correct: Sequence[bool],
    scores: Sequence[float | None],
    sizes: Sequence[int],
    order: NDArray[np.intp],
) -> list[tuple[list[int], list[float], list[bool]]]:
    """Return (count, sum of logits, right) per answer among the first k samples of this order, for each k of ``sizes``."""
    rows = []
    counts: dict[str, int] = {}
    sums: dict[str, float] = {}
    right = {a for a, c in zip(answers, correct, strict=True) if c and a is not None}
    for k, i in enumerate(order.tolist(), 1):
        answer, score = answers[i], scores[i]
        if answer is not None:
            if score is None:
                raise ValueError(f"sample {i} has an answer but no score: judge the samples that are to calibrate")
            counts[answer] = counts.get(answer, 0) + 1
            sums[answer] = sums.get(answer, 0.0) + _logit(score)
        if k in sizes and counts:
            rows.append(([*counts.values()], [*sums.values()], [a in right for a in counts]))
    return rows


def _logit(p: float) -> float:
    p = min(max(p, CLIP), 1 - CLIP)
    return math.log(p / (1 - p))
