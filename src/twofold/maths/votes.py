"""Selection: which of N sampled answers to give, and how good each rule is at every k.

``choose`` selects an answer. Everything else measures rules on one saved pool of N samples per problem, for every k <= N,
without sampling again: exactly where a closed form exists (pass@k, best-of-k), and over random subsets where none does
(votes). Throughout:

* a sample without an answer (None, class -1) never wins while another has one; a subset of such samples counts 0;
* a tie is broken at random when an answer is given; when a rule is measured, it counts its expected value.

Sources: Chen et al. 2021 (pass@k), V-STaR (best-of-k), Wang et al. 2022 (majority), RL^V (weighted vote).
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vote = Literal["majority", "best", "weighted"]

TIE = 1e-9
"""Vote totals closer than this (relative) are a tie, so that .1 + .2 ties with .3 in any order of summation."""


def choose(answers: Sequence[str | None], scores: Sequence[float] | None, rule: Vote, seed: int = 0) -> str | None:
    """Return the selected answer; None only if there is no answer at all.

    * ``majority``: the most frequent answer (``scores`` are not read);
    * ``best``: the answer of the sample with the highest score;
    * ``weighted``: the answer with the highest sum of scores.

    Ties are broken at random from ``seed``: between answers for the votes, between samples for ``best``.

    Examples:
        >>> answers, scores = ["7", "8", "8", "9", "9", None], [0.8, 0.3, 0.3, 0.5, 0.4, 1.0]
        >>> choose(answers, scores, "best"), choose(answers, scores, "weighted")  # weighted: 7 .8, 8 .6, 9 .9
        ('7', '9')

    Raises ValueError for an unknown rule, scores that are missing, NaN or not one per answer, and negative weights.
    """
    if rule not in get_args(Vote):
        near = difflib.get_close_matches(str(rule), get_args(Vote), n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown selection rule {rule!r}, expected one of {', '.join(get_args(Vote))}{hint}")
    if rule != "majority" and scores is None:
        raise ValueError(f"rule {rule!r} needs one score per answer, got none: score the answers or use 'majority'")
    if rule == "best":
        values = _checked_scores(scores, len(answers))
        score_of = [(a, s) for a, s in zip(answers, values, strict=True) if a is not None]
        top = max((s for _, s in score_of), default=0.0)
        leaders = [a for a, s in score_of if s == top]
    else:
        votes = tally(answers, scores if rule == "weighted" else None)
        top = max(votes.values(), default=0.0)
        leaders = [a for a, v in votes.items() if v >= top * (1 - TIE)]
    if len(leaders) <= 1:
        return leaders[0] if leaders else None
    return leaders[np.random.default_rng(seed).integers(len(leaders))]


def tally(answers: Sequence[str | None], weights: Sequence[float] | None = None) -> dict[str, float]:
    """Return the votes per answer in order of first appearance. A sample counts 1 or its weight; None is dropped.

    >>> tally(["7", "8", None, "7"], [0.5, 0.25, 1.0, 0.25])
    {'7': 0.75, '8': 0.25}
    """
    values = np.ones(len(answers)) if weights is None else _checked_weights(weights, len(answers))
    votes: dict[str, float] = {}
    for answer, value in zip(answers, values.tolist(), strict=True):
        if answer is not None:
            votes[answer] = votes.get(answer, 0.0) + value
    return votes


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return P(k of n samples, drawn without replacement, include one of the c correct) = 1 - C(n-c, k) / C(n, k).

    The unbiased estimator of Chen et al. 2021. ``pass_at_k(4, 2, 2) = 1 - 1/6``.
    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not 0 <= c <= n:
        raise ValueError(f"pass@k: the number correct must be in 0..n = {n}, got {c}")
    return float(1 - _none_of_first(n, k)[c])


def best_of_k(scores_N: ArrayLike, correct_N: ArrayLike, valid_N: ArrayLike, k: int) -> float:
    """Return the expected correctness of the best-scored of k samples, exactly, over all size-k subsets of the N.

    The best of the subset lies in the tie group of samples ranked b+1 .. b+m with probability
    ``[C(N-b, k) - C(N-b-m, k)] / C(N, k)`` and is then each member equally likely, so the group earns its mean
    correctness. Without ties this is V-STaR's ``sum_i C(N-i-1, k-1) alpha_i / C(N, k)``. Samples that are not valid
    (no answer) rank below all others and earn 0.

    Scores (.9, .5, .5), correct (0, 1, 0), k = 2: the first wins 2 of 3 subsets, the tied pair the third and earns
    1/2: result 1/6.
    """
    valid = np.asarray(valid_N, dtype=bool)
    correct = np.asarray(correct_N, dtype=float)
    scores = _checked_scores(scores_N, len(valid))
    _same_length("correct", correct, len(valid))
    _, group, size = np.unique(-scores[valid], return_inverse=True, return_counts=True)
    mean_correct = np.bincount(group, weights=correct[valid]) / size
    end = np.cumsum(size)
    missed = _none_of_first(len(valid), k)
    return float((missed[end - size] - missed[end]) @ mean_correct)


def vote_at_k(
    classes_N: ArrayLike,
    correct_N: ArrayLike,
    weights_N: ArrayLike | None,
    k: int,
    draws: int = 200,
    seed: int = 0,
) -> float:
    """Return the expected accuracy of a (weighted) vote among k of the N samples.

    ``classes_N`` are answer classes (equal integers = same answer, -1 = no answer); ``weights_N`` None is a majority
    vote. The mean is over all size-k subsets if k = 1 or there are at most ``draws`` of them (so k = N is exact), else
    over ``draws`` random ones. For one seed these are the same for every rule, and nested in k. A tie counts the share of
    the tied classes that is correct. Samples of one class that were graded differently (a grader timed out) give the class
    their mean correctness.

    Classes (0, 0, 1), correct (1, 1, 0): k = 1 gives 2/3; k = 2 gives (1 + 1/2 + 1/2) / 3 = 2/3; k = 3 gives 1.
    """
    classes, correct = np.asarray(classes_N), np.asarray(correct_N, dtype=float)
    n = len(classes)
    _same_length("correct", correct, n)
    weights = np.ones(n) if weights_N is None else _checked_weights(weights_N, n)
    inside_S_N = _subsets(n, k, draws, seed)
    valid = classes >= 0
    if not valid.any():
        return 0.0
    index = np.unique(classes[valid], return_inverse=True)[1]
    member_V_C = np.eye(index.max() + 1)[index]
    correct_C = correct[valid] @ member_V_C / member_V_C.sum(axis=0)
    inside_S_V = inside_S_N[:, valid].astype(float)
    present_S_C = inside_S_V @ member_V_C > 0  # a class of weight 0 still beats a class that is not there
    votes_S_C = np.where(present_S_C, inside_S_V @ (weights[valid, None] * member_V_C), -1.0)
    leading_S_C = votes_S_C >= votes_S_C.max(axis=1, keepdims=True) * (1 - TIE)
    leaders_S = np.maximum(leading_S_C.sum(axis=1), 1)  # all -1, no leader: nothing here has an answer, credit 0
    return float(np.mean(leading_S_C @ correct_C / leaders_S))


def ks(n: int) -> list[int]:
    """Return the k at which a curve over n samples is measured: powers of two, then n. ``ks(12) = [1, 2, 4, 8, 12]``."""
    if n < 1:
        raise ValueError(f"a curve needs at least one sample, got n = {n}")
    return [*(2**i for i in range((n - 1).bit_length())), n]


def curves(
    answers: Sequence[str | None],
    correct: Sequence[bool],
    scores: Sequence[float] | None,
    ks: Sequence[int],
    draws: int = 200,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Return the expected accuracy of every rule at every k, for one problem: "pass@k", "majority", and with scores "best"
    and "weighted".

    Answers are canonical strings: equal strings are one class. ``correct`` is what the grader said; only samples with an
    answer vote.
    """
    n = len(answers)
    codes = {answer: i for i, answer in enumerate(dict.fromkeys(a for a in answers if a is not None))}
    classes_N = np.array([-1 if a is None else codes[a] for a in answers], dtype=int)
    correct_N = np.asarray(correct, dtype=bool)
    _same_length("correct", correct_N, n)
    c = int(correct_N.sum())
    result = {
        "pass@k": [pass_at_k(n, c, k) for k in ks],
        "majority": [vote_at_k(classes_N, correct_N, None, k, draws, seed) for k in ks],
    }
    if scores is not None:
        result["best"] = [best_of_k(scores, correct_N, classes_N >= 0, k) for k in ks]
        result["weighted"] = [vote_at_k(classes_N, correct_N, scores, k, draws, seed) for k in ks]
    return result


def _none_of_first(n: int, k: int) -> NDArray[np.float64]:
    """Return C(n-b, k) / C(n, k) for b = 0..n: the chance that a size-k subset of n misses b given samples.

    A running product of factors in [0, 1] (k draws miss the next one too), so nothing overflows or cancels.
    """
    _check_k(n, k)
    left = np.arange(n, 0, -1)
    return np.concatenate([[1.0], np.cumprod(np.maximum(left - k, 0) / left)])


@lru_cache(maxsize=16)  # every problem of an evaluation asks for the same ones
def _subsets(n: int, k: int, draws: int, seed: int) -> NDArray[np.bool_]:
    """Return membership [subset, sample] of all size-k subsets of n, or of ``draws`` random ones if there are more."""
    _check_k(n, k)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    if k == 1 or math.comb(n, k) <= draws:
        members_S_k = np.array(list(itertools.combinations(range(n), k)))
    else:
        members_S_k = np.random.default_rng(seed).random((draws, n)).argsort(axis=1)[:, :k]
    inside_S_N = np.zeros((len(members_S_k), n), dtype=bool)
    np.put_along_axis(inside_S_N, members_S_k, True, axis=1)
    inside_S_N.flags.writeable = False
    return inside_S_N


def _check_k(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k must be in 1..{n} (the number of samples), got {k}")


def _same_length(name: str, values: NDArray[Any], n: int) -> None:
    if values.shape != (n,):
        raise ValueError(f"{name} must have one entry per sample, shape ({n},), got shape {values.shape}")


def _checked_scores(scores: ArrayLike | None, n: int) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=float)  # None inside becomes NaN
    _same_length("scores", values, n)
    if np.isnan(values).any():
        raise ValueError(f"scores of samples {np.flatnonzero(np.isnan(values)).tolist()} are NaN or missing")
    return values


def _checked_weights(weights: ArrayLike, n: int) -> NDArray[np.float64]:
    values = _checked_scores(weights, n)
    bad = np.flatnonzero(~np.isfinite(values) | (values < 0))
    if len(bad):
        raise ValueError(
            f"weights must be finite and >= 0, sample {bad[0]} has {values[bad[0]]}: vote with probabilities, not logs"
        )
    return values
