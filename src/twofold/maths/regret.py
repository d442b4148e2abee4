"""Progress and regret of a thought: does every further token help (MRT, arXiv:2503.07572)?

``values`` are J_0 .. J_k: the chance of a right answer if the thought is stopped after 0 .. k episodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from twofold.maths.credit import differences
from twofold.maths.votes import curves

Points = Sequence[tuple[float, float]]
"""(tokens, accuracy) by rising tokens."""


def progress(values: Sequence[float]) -> list[float]:
    """Return the change of J by each episode, J_j - J_(j-1) (Def. 6.1). It may be negative; the sum telescopes.

    >>> progress([0.25, 0.75, 0.5])
    [0.5, -0.25]
    """
    return differences(values[:-1], final=values[-1])


def cumulative_regret(values: Sequence[float], best: float = 1.0) -> list[float]:
    """Return Delta_k for k = 1, 2, ...: the sum of ``best`` - J_j over the first k values (Def. 4.1).

    The paper compares with the best budget-agnostic policy but never computes it: it uses 1, which is the default here.

    >>> cumulative_regret([0.25, 0.75, 1.0])
    [0.75, 1.0, 1.0]
    """
    return np.cumsum(best - np.asarray(values, dtype=float)).tolist()


def normalised_regret(points: Points, budget: float) -> float:
    """Return 1 - (1/C0) * integral of a(n) from 0 to C0 = ``budget`` (Fig. 9): 0 is right at once, 1 is never right.

    a(n) is linear from (0, 0) through ``points``, and constant after the last one.

    >>> normalised_regret([(1000, 0), (3000, 0.5), (6000, 1)], 8000)
    0.40625

    Raises ValueError for a budget that is not positive, and for points whose tokens do not rise or are not positive.
    """
    if budget <= 0:
        raise ValueError(f"the budget must be positive, got {budget}")
    tokens, accuracy = _line(points)
    inside = tokens < budget
    x = np.append(tokens[inside], budget)
    y = np.append(accuracy[inside], np.interp(budget, tokens, accuracy))
    return float(1 - np.trapezoid(y, x) / budget)


def stop_regret(maj_J_4: Sequence[Sequence[float]], budget: int) -> float:
    """Return the share of accuracy lost by further thinking where stopping to vote was better (appendix E).

    It is taken over ``budget`` groups. Row j holds maj@1, maj@2, maj@4 and maj@8 after j groups of five episodes. Stopping
    there to vote gives G = (maj@1, maj@2, maj@4, (maj@4 + maj@8) / 2) for the cost of 1, 2, 4 and 6 answers. Further
    thinking gives B, the straight line to the next row's maj@1. The oracle O takes the better one at each point. The result
    is sum_j (area O - area B) / sum_j area O; NaN where the oracle is never right.

    Raises ValueError unless there are ``budget`` + 1 rows of four, ``budget`` at least 1.
    """
    rows = np.asarray(maj_J_4, dtype=float)
    if budget < 1 or rows.ndim != 2 or rows.shape[1] != 4 or len(rows) <= budget:
        raise ValueError(f"{budget} groups need at least {budget + 1} rows of maj@1, 2, 4, 8; got shape {rows.shape}")
    at = np.array([1.0, 2.0, 4.0, 6.0])
    now, following = rows[:budget], rows[1 : budget + 1, :1]
    stop = np.column_stack([now[:, :3], now[:, 2:].mean(axis=1)])
    think = now[:, :1] + (at - 1) / 5 * (following - now[:, :1])
    oracle = np.trapezoid(np.maximum(stop, think), at).sum()
    return float((oracle - np.trapezoid(think, at).sum()) / oracle) if oracle > 0 else math.nan


def maj_at_prefix(
    answers: Sequence[str | None], correct: Sequence[bool], logprobs: Sequence[float], ps: Sequence[int] = (1, 2, 4, 8)
) -> list[float]:
    """Return [maj@p]_j for each p: how often a vote of p of the answers forced at one prefix is right.

    All subsets of size p count, or 200 random ones where there are more. The weight of an answer is exp(``logprobs``), of
    the mean log-prob of its tokens (the authors' code has 2 for e). Answers graded correct vote as one; None is no vote.

    >>> maj_at_prefix(["7", "8", "8", None], [True, False, False, False], [0.0, 0.0, 0.0, 0.0], (1, 2))
    [0.25, 0.3333333333333333]
    """
    right = next((a for a, ok in zip(answers, correct, strict=True) if ok), None)
    voted = [right if ok else a for a, ok in zip(answers, correct, strict=True)]
    return curves(voted, correct, np.exp(logprobs).tolist(), ps)["weighted"]


def accuracy_at(points: Points, budget: float) -> float:
    """Return a(``budget``), the accuracy if the thought is stopped to spend this many tokens.

    >>> accuracy_at([(100, 0.4), (200, 0.6)], 150)
    0.5

    Raises ValueError as ``normalised_regret`` does.
    """
    return float(np.interp(budget, *_line(points)))


def tokens_to_reach(points: Points, accuracy: float) -> float:
    """Return the tokens at which the line from (0, 0) through ``points`` first reaches ``accuracy``; infinity if never.

    >>> tokens_to_reach([(100, 0.4), (200, 0.6)], 0.5)
    150.0
    """
    tokens, reached = _line(points)
    for i in range(len(tokens)):
        if reached[i] >= accuracy:
            if i == 0:
                return 0.0
            share = (accuracy - reached[i - 1]) / (reached[i] - reached[i - 1])
            return float(tokens[i - 1] + share * (tokens[i] - tokens[i - 1]))
    return math.inf


def token_efficiency(ours: Points, theirs: Points, accuracy: float) -> float:
    """Return how many times fewer tokens we need for ``accuracy``; NaN where one of the two does not reach it.

    >>> token_efficiency([(100, 0.5)], [(100, 0.25), (200, 0.5)], 0.5)
    2.0
    """
    needed, given = tokens_to_reach(ours, accuracy), tokens_to_reach(theirs, accuracy)
    return given / needed if math.isfinite(needed) and math.isfinite(given) and needed > 0 else math.nan


def _line(points: Points) -> tuple[np.ndarray, np.ndarray]:
    tokens, accuracy = np.array([(0.0, 0.0), *points], dtype=float).T
    if len(tokens) < 2 or not (np.diff(tokens) > 0).all():
        raise ValueError(f"points must have positive tokens that rise, got {list(points)[:8]}")
    return tokens, accuracy
