"""Intervals, a verifier's quality, and efficiency. Every bootstrap here resamples whole problems.

The samples of one problem tend to be right or wrong together, so the unit of a bootstrap is the problem (a cluster of
samples). An interval over single samples would be too narrow. P = problems, K = points of a curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

REACH = 1e-9
"""A curve that is below a target by no more than this has reached it: means of the same numbers differ by rounding."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems and its 95% interval. The bounds are NaN where fewer than two problems leave no interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of a - b over problems, its interval, and the two-sided bootstrap p-value of "no difference"."""

    mean: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class VerifierMetrics:
    """The three numbers of a verifier that are followed in training; see ``verifier_metrics``."""

    auroc: float
    balanced_accuracy: float
    ece: float


@dataclass(frozen=True, slots=True)
class Quality:
    """How well scores in [0, 1] separate correct solutions from wrong ones; see ``verifier_quality``.

    ``base_rate`` is the share of correct solutions. ``tpr`` is the share of correct solutions that are accepted, ``tnr`` the
    share of wrong ones that are rejected, ``says_yes`` the share of all that are accepted. ``alarm`` is None, or says in words
    that the verdict hardly ever changes.
    """

    n: int
    base_rate: float
    auroc: float
    auroc_interval: Interval
    balanced_accuracy: float
    balanced_accuracy_interval: Interval
    tpr: float
    tnr: float
    ece: float
    ece_interval: Interval
    brier: float
    brier_interval: Interval
    says_yes: float
    alarm: str | None


@dataclass(frozen=True, slots=True)
class Efficiency:
    """``ratio = base_k / ours_k`` at accuracy ``target``; see ``efficiency_ratio``. None: the target is never reached."""

    ratio: float | None
    low: float
    high: float
    base_k: float
    ours_k: float | None
    target: float


def resamples(problems: int, n: int, seed: int) -> NDArray[np.int64]:
    """Return [n, problems]: how often each problem appears in each bootstrap resample. Rows sum to ``problems``."""
    if problems < 2:
        raise ValueError(f"a bootstrap over problems needs at least 2 problems, got {problems}")
    if n < 1:
        raise ValueError(f"a bootstrap needs at least one resample, got n = {n}")
    return np.random.default_rng(seed).multinomial(problems, np.full(problems, 1 / problems), size=n)


def cluster_bootstrap(
    values: ArrayLike, n: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[Floats, Floats, Floats]:
    """Return (mean, low, high) over problems, by the percentile bootstrap.

    ``values`` is [problems], one number each, or [problems, columns], for example accuracy at every k. Each column gets
    its own interval from the same resamples. The results have shape [] or [columns]. Average several samples of a
    problem first; the resampled problems then carry their samples along.

    >>> mean, low, high = cluster_bootstrap([0.0, 1.0] * 50)  # normal theory: .5 +- 1.96 * .05
    >>> float(mean), round(float(low), 1), round(float(high), 1)
    (0.5, 0.4, 0.6)

    Raises ValueError for fewer than 2 problems (no interval exists) and for NaN values.
    """
    values_P_ = _finite("values", values)
    if values_P_.ndim not in (1, 2):
        raise ValueError(f"values must be [problems] or [problems, columns], got shape {values_P_.shape}")
    low, high = _interval(resamples(len(values_P_), n, seed) @ values_P_ / len(values_P_), level)
    return values_P_.mean(axis=0), low, high


def estimate(values_P: ArrayLike) -> Estimate:
    """Return the mean of one number per problem, with its interval if there are two problems or more; NaN of none.

    >>> estimate([0.25])
    Estimate(mean=0.25, low=nan, high=nan)
    """
    values = np.asarray(values_P, dtype=float)
    if len(values) < 2:
        return Estimate(float(values[0]) if len(values) else math.nan, math.nan, math.nan)
    mean, low, high = cluster_bootstrap(values)
    return Estimate(float(mean), float(low), float(high))


def estimates(values_P_K: ArrayLike) -> list[Estimate]:
    """Return an estimate for each column, all from the same resamples of the problems (see ``cluster_bootstrap``)."""
    return [Estimate(*point) for point in zip(*(x.tolist() for x in cluster_bootstrap(values_P_K)), strict=True)]


def paired_bootstrap(a_P: ArrayLike, b_P: ArrayLike, n: int = 4000, seed: int = 0, level: float = 0.95) -> Difference:
    """Test whether a is better than b on the same problems: a bootstrap of the mean of ``a_P - b_P`` over problems.

    ``p = 2 min(1 + #{resampled mean <= 0}, 1 + #{>= 0}) / (n + 1)``, at most 1. It is never 0, since n resamples cannot
    show less than 1/(n+1). Raises ValueError as ``cluster_bootstrap`` does, and if the lengths differ.
    """
    a, b = _finite("a_P", a_P), _finite("b_P", b_P)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"a_P and b_P must be one number per problem, the same problems, got {a.shape} and {b.shape}")
    means_n = resamples(len(a), n, seed) @ (a - b) / len(a)
    low, high = _interval(means_n, level)
    p = 2 * (1 + min(np.sum(means_n <= 0), np.sum(means_n >= 0))) / (n + 1)
    return Difference(float(np.mean(a - b)), float(low), float(high), min(float(p), 1.0))


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the chance that a correct solution scores above a wrong one, ties counting 1/2; NaN if one class is missing.

    Scores (.9, .5, .5, .1), labels (1, 1, 0, 0): of the 4 pairs 3 are in order and 1 is tied, so 3.5 / 4.
    """
    score, label = np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool)
    positives, negatives = int(label.sum()), int((~label).sum())
    if not positives or not negatives:
        return float("nan")
    _, tie, size = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(size) - (size - 1) / 2)[tie]  # 1-based, tied scores share their mean rank
    return float((ranks[label].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_bins(scores: ArrayLike, labels: ArrayLike, bins: int = 15) -> list[tuple[float, float, int]]:
    """Return (mean score, accuracy, count) of equal-mass bins, lowest scores first: the reliability diagram.

    Bin sizes differ by at most one; with fewer samples than bins every sample is its own bin. Samples of equal score
    enter with their common accuracy, so that their order does not matter where a bin's edge cuts a tie.

    >>> calibration_bins([0.125, 0.375, 0.75, 1.0], [0, 1, 1, 1], bins=2)
    [(0.25, 0.5, 2), (0.875, 1.0, 2)]
    """
    return list(zip(*(x.tolist() for x in _bins(scores, labels, bins)), strict=True))


def _bins(scores: ArrayLike, labels: ArrayLike, bins: int) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Return the columns of ``calibration_bins``."""
    score, label = _scores_and_labels(scores, labels)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    _, tie, size = np.unique(score, return_inverse=True, return_counts=True)
    accuracy = np.repeat(np.bincount(tie, weights=label) / size, size)
    bins = min(bins, len(score))
    count_B = len(score) // bins + (np.arange(bins) < len(score) % bins)
    first_B = np.cumsum(count_B) - count_B
    return np.add.reduceat(np.sort(score), first_B) / count_B, np.add.reduceat(accuracy, first_B) / count_B, count_B


def ece(scores: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Return the expected calibration error: the mean over samples of |accuracy - mean score| of their equal-mass bin.

    For the example of ``calibration_bins``: (2 |.5 - .25| + 2 |1 - .875|) / 4 = .1875.
    """
    score_B, accuracy_B, count_B = _bins(scores, labels, bins)
    return float(count_B @ np.abs(accuracy_B - score_B) / count_B.sum())


def verifier_metrics(scores: ArrayLike, labels: ArrayLike, threshold: float = 0.5) -> VerifierMetrics:
    """Return AUROC, balanced accuracy and ECE of P(Yes) ``scores`` against correctness ``labels``, without intervals.

    A verdict is Yes where score >= threshold. Scores (.9, .5, .5, .1), labels (1, 1, 0, 0): AUROC 3.5 / 4, tpr 1, tnr
    1/2, so balanced accuracy 3/4, and ECE (.1 + 0 + 0 + .1) / 4 = .05 (a bin each, the tied pair at its accuracy 1/2).
    AUROC and balanced accuracy are NaN if one class is missing.

    Raises ValueError for scores outside [0, 1], labels other than 0/1, and differing lengths.
    """
    score, label = _scores_and_labels(scores, labels)
    return VerifierMetrics(auroc(score, label), _rates(score, label, threshold)[0], ece(score, label))


def verifier_quality(
    scores: ArrayLike, labels: ArrayLike, problem_ids: Sequence[str], threshold: float = 0.5
) -> Quality:
    """Measure P(Yes) ``scores`` against correctness ``labels``, with 95% intervals that resample problems.

    A verdict is Yes where score >= threshold. Balanced accuracy is (tpr + tnr) / 2, which is 1/2 for a verifier that always
    says the same. ``alarm`` is set when it says Yes, or No, to more than 98% of the solutions. If only one class is
    present, AUROC, balanced accuracy and the rate of the missing class are NaN, and so are their intervals.

    The intervals are percentiles of 300 resamples of whole problems. Resamples that lack a class are left out of those of
    AUROC and balanced accuracy. The ECE has the basic (reflected) interval ``[2 ece - q97.5, 2 ece - q2.5]``, at least 0:
    sampling noise biases the ECE upwards and a resample adds that noise once more, so its percentiles would be too high.

    Raises ValueError for scores outside [0, 1], labels other than 0/1, differing lengths, or fewer than 2 problems.
    """
    score, label = _scores_and_labels(scores, labels)
    if len(problem_ids) != len(score):
        raise ValueError(f"one problem id per score: got {len(problem_ids)} ids for {len(score)} scores")
    order = np.argsort(score, kind="stable")
    score, label = score[order], label[order]
    problem = np.unique(np.asarray(problem_ids), return_inverse=True)[1][order]

    def resampled(counts: NDArray[np.int64]) -> tuple[float, float, float, float]:
        s, y = np.repeat(score, counts), np.repeat(label, counts)
        metrics = verifier_metrics(s, y, threshold)
        return metrics.auroc, metrics.balanced_accuracy, metrics.ece, float(np.mean((s - y) ** 2))

    whole = verifier_metrics(score, label, threshold)
    counts_n_P = resamples(int(problem.max()) + 1, 300, seed=0)
    boot_n_4 = np.array([resampled(counts_P[problem]) for counts_P in counts_n_P])
    low, high = (2 * whole.ece - q for q in _percentiles(boot_n_4[:, 2])[::-1])
    _, tpr, tnr = _rates(score, label, threshold)
    says_yes = float(np.mean(score >= threshold))
    return Quality(
        n=len(score),
        base_rate=float(label.mean()),
        auroc=whole.auroc,
        auroc_interval=_percentiles(boot_n_4[:, 0]),
        balanced_accuracy=whole.balanced_accuracy,
        balanced_accuracy_interval=_percentiles(boot_n_4[:, 1]),
        tpr=tpr,
        tnr=tnr,
        ece=whole.ece,
        ece_interval=(max(low, 0.0), high),
        brier=float(np.mean((score - label) ** 2)),
        brier_interval=_percentiles(boot_n_4[:, 3]),
        says_yes=says_yes,
        alarm=_alarm(says_yes),
    )


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> float:
    """Return the one-sided upper bound of a rate: the exact one of Clopper and Pearson. The trials are independent.

    It is the rate at which so few successes, or fewer, have probability 1 - ``level``. Without a success it is about
    3 / trials, the rule of three: 1 - .05 ^ (1/300) = .00994 for 0 of 300.

    >>> round(clopper_pearson(0, 300), 5), round(clopper_pearson(1, 10), 4), clopper_pearson(10, 10)
    (0.00994, 0.3942, 1.0)
    """
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"successes must be 0 to trials, and trials at least 1; got {successes} of {trials}")
    if successes == trials:
        return 1.0
    j = np.arange(1, successes + 1)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log((trials - j + 1) / j))])
    low, high = successes / trials, 1.0
    for _ in range(60):
        p = (low + high) / 2
        log_terms = (
            log_choose + np.arange(successes + 1) * math.log(p) + (trials - np.arange(successes + 1)) * math.log1p(-p)
        )
        low, high = (p, high) if np.exp(log_terms).sum() > 1 - level else (low, p)
    return high


def efficiency_ratio(
    curve_base_PxK: ArrayLike,
    curve_ours_PxK: ArrayLike,
    ks: Sequence[int],
    n: int = 2000,
    seed: int = 0,
    tolerance: float = 0.005,
) -> Efficiency:
    """Return samples the baseline needs / samples we need, for the same accuracy (the "8-32x" of RL^V).

    The curves are accuracies [problems, len(ks)] on the same problems. ``target`` is the baseline's best mean accuracy
    minus ``tolerance`` (half a point), for both sides: on a noisy plateau the very best point is a matter of luck and
    would inflate ``base_k``. ``base_k`` and ``ours_k`` are where the mean curves first reach the target, linear in
    log2 k between measured points. Two equal curves give exactly 1.

    Baseline .50 .60 .70 at k = 1, 2, 4 and ours .60 .70 .80, tolerance 0: target .70, base_k 4, ours_k 2, ratio 2.

    Reading it: when ``ours_k`` is the first of the ks, the ratio is a lower bound ("at least"). When ours never
    reaches the target, ``ratio`` and ``ours_k`` are None: report "not reached within max(ks) samples", not a number.
    The 95% interval resamples problems, the same ones for both curves; a resample where ours never reaches the
    target counts as though it took twice the largest k, ``base_k / (2 max(ks))``: a convention, so a ``low`` that
    rests on it says no more than "not reached in at least 2.5% of resamples".

    Raises ValueError for curves of other shapes, NaN, ks that do not increase, or fewer than 2 problems.
    """
    base, ours = _finite("curve_base", curve_base_PxK), _finite("curve_ours", curve_ours_PxK)
    if base.shape != ours.shape or base.ndim != 2 or base.shape[1] != len(ks):
        raise ValueError(f"curves must both be [problems, {len(ks)} ks], got {base.shape} and {ours.shape}")
    if not len(ks) or ks[0] < 1 or list(ks) != sorted(set(ks)):
        raise ValueError(f"ks must be increasing sample counts from 1 up, got {list(ks)}")
    if tolerance < 0:
        raise ValueError(f"tolerance must be >= 0, got {tolerance}")

    def needed(base_n_K: Floats, ours_n_K: Floats) -> tuple[Floats, Floats, Floats]:
        target_n = base_n_K.max(axis=1) - tolerance
        return _first_reach(base_n_K, ks, target_n), _first_reach(ours_n_K, ks, target_n), target_n

    base_k, ours_k, target = (x.item() for x in needed(base.mean(axis=0)[None], ours.mean(axis=0)[None]))
    counts_n_P = resamples(len(base), n, seed)
    base_n, ours_n, _ = needed(counts_n_P @ base / len(base), counts_n_P @ ours / len(ours))
    low, high = _interval(base_n / np.where(np.isnan(ours_n), 2 * ks[-1], ours_n), 0.95)
    reached = not math.isnan(ours_k)
    return Efficiency(
        base_k / ours_k if reached else None, float(low), float(high), base_k, ours_k if reached else None, target
    )


def _first_reach(curve_n_K: Floats, ks: Sequence[int], target_n: Floats) -> Floats:
    """Return the smallest k at which each curve is at its target, linear in log2 k between the ks; NaN if it never is."""
    reached_n_K = curve_n_K >= target_n[:, None] - REACH
    j_n, k_K = reached_n_K.argmax(axis=1), np.array(ks, dtype=float)
    above_n, below_n = (np.take_along_axis(curve_n_K, i[:, None], 1)[:, 0] for i in (j_n, np.maximum(j_n - 1, 0)))
    with np.errstate(divide="ignore", invalid="ignore"):  # where the first k is enough, or none is
        part_n = np.minimum((target_n - below_n) / (above_n - below_n), 1.0)
    k_n = np.where(j_n > 0, k_K[j_n - 1] * (k_K[j_n] / k_K[j_n - 1]) ** part_n, k_K[0])
    return np.where(reached_n_K.any(axis=1), k_n, np.nan)


def _interval(boot_n_: Floats, level: float) -> tuple[Floats, Floats]:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    low, high = np.quantile(boot_n_, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def _percentiles(boot_n: Floats) -> Interval:
    """Return the 95% percentile interval of the resamples that have a value."""
    kept = boot_n[~np.isnan(boot_n)]
    if not len(kept):
        return float("nan"), float("nan")
    low, high = _interval(kept, 0.95)
    return float(low), float(high)


def _rates(score: Floats, label: Floats, threshold: float) -> tuple[float, float, float]:
    """Return (balanced accuracy, tpr, tnr); NaN where a class is missing."""
    yes, positive = score >= threshold, label == 1
    tpr = float(yes[positive].mean()) if positive.any() else float("nan")
    tnr = float((~yes)[~positive].mean()) if not positive.all() else float("nan")
    return (tpr + tnr) / 2, tpr, tnr


def _alarm(says_yes: float) -> str | None:
    for verdict, share in (("Yes", says_yes), ("No", 1 - says_yes)):
        if share > 0.98:
            return f"the verifier says {verdict} to {share:.1%} of the solutions"
    return None


def _finite(name: str, values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=float)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise ValueError(f"{name} must be finite, entry {bad[0].tolist()} is {array[tuple(bad[0])]}")
    return array


def _scores_and_labels(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats]:
    score, label = _finite("scores", scores), _finite("labels", labels)
    if score.shape != label.shape or score.ndim != 1 or not len(score):
        raise ValueError(f"scores and labels must be one each per solution, got shapes {score.shape} and {label.shape}")
    if score.min() < 0 or score.max() > 1:
        raise ValueError(f"scores must be probabilities in [0, 1], got {score.min()} to {score.max()}")
    if not np.isin(label, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, got {np.setdiff1d(label, (0, 1)).tolist()}")
    return score, label
