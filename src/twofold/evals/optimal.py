"""Compute-optimal choice (arXiv:2408.03314): the best plan per difficulty and budget, from one saved pool.

The difficulty of a problem is what can be had without its answer: the mean P(Yes) of a pilot, its first few samples. The
pilot is charged: its samples are the first that every plan uses, and no plan spends fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from twofold.compute.plan import Plan
from twofold.compute.select import Seen, classes, select
from twofold.maths.stopping import Fixed
from twofold.types import Pool

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Optimal:
    """``best[bin][budget]``: index of the plan that is best on all problems (bin 0 is the hardest). ``adaptive_P_B`` and
    ``single_P_B``: correctness per problem and budget, cross-validated, of the plan of the problem's bin and of the one
    plan that is best without bins."""

    best: list[list[int]]
    adaptive_P_B: Floats
    single_P_B: Floats


def compute_optimal(
    pools: Sequence[Pool],
    plans: Sequence[Plan],
    budgets: Sequence[int],
    pilot: int = 4,
    bins: int = 3,
    orders: int = 8,
    seed: int = 0,
) -> Optimal:
    """Choose on one half of the problems, measure on the other, and the other way round.

    ``budgets`` are samples, the pilot's among them; plans differ in how they choose an answer (fixed numbers only).
    Raises ValueError for a plan with a stopping rule, a budget below the pilot, or fewer problems than two per bin.
    """
    if any(not isinstance(plan.stop, Fixed) for plan in plans):
        raise ValueError("plans are compared at equal budgets: without a stopping rule")
    if min(budgets) < pilot or len(pools) < 4 * bins:
        raise ValueError(f"budgets must be at least the pilot's {pilot}, and problems at least {4 * bins}")
    rows = [_outcomes(pool, plans, budgets, pilot, orders, seed) for pool in pools]
    score_PO = np.array([score for scores, _ in rows for score in scores])
    right_PO_S_B = np.array([right for _, outcomes in rows for right in outcomes])
    fold_PO = np.repeat(np.random.default_rng(seed).permutation(len(pools)) % 2, orders)
    adaptive, single = np.empty((2, len(score_PO), len(budgets)))
    for fold in (0, 1):
        train, test = fold_PO != fold, fold_PO == fold
        edges, table = _choose(score_PO[train], right_PO_S_B[train], bins)
        chosen_B = right_PO_S_B[train].mean(axis=0).argmax(axis=0)
        where = np.searchsorted(edges, score_PO[test], side="right")
        for b in range(len(budgets)):
            adaptive[test, b] = right_PO_S_B[test, table[where, b], b]
            single[test, b] = right_PO_S_B[test, chosen_B[b], b]
    per_problem = [x.reshape(len(pools), orders, -1).mean(axis=1) for x in (adaptive, single)]
    return Optimal(_choose(score_PO, right_PO_S_B, bins)[1].tolist(), *per_problem)


def _choose(score_R: Floats, right_R_S_B: Floats, bins: int) -> tuple[Floats, NDArray[np.intp]]:
    """(inner edges of equal-mass bins of the pilot's score, best plan per bin and budget); ties go to the first plan."""
    edges = np.quantile(score_R, np.arange(1, bins) / bins)
    where = np.searchsorted(edges, score_R, side="right")
    overall = right_R_S_B.mean(axis=0)  # of a bin that ties left empty
    means = [right_R_S_B[where == i].mean(axis=0) if (where == i).any() else overall for i in range(bins)]
    return edges, np.array([mean.argmax(axis=0) for mean in means])


def _outcomes(
    pool: Pool, plans: Sequence[Plan], budgets: Sequence[int], pilot: int, orders: int, seed: int
) -> tuple[list[float], list[list[list[bool]]]]:
    """Of random orders of a pool: the pilot's mean score, and whether each plan is right at each budget."""
    forms = classes(pool.answers)
    right = {a for a, g in zip(forms, pool.grades, strict=True) if g.label == "correct"}
    rng = np.random.default_rng(seed)
    scores, outcomes = [], []
    for _ in range(orders):
        order = rng.permutation(len(forms)).tolist()
        scores.append(float(np.mean([pool.scores[i] or 0.0 for i in order[:pilot]])))
        seen = [Seen([forms[i] for i in order[:n]], [pool.scores[i] for i in order[:n]]) for n in budgets]
        outcomes.append(
            [[select(replace(p, n=n), s)[0] in right for n, s in zip(budgets, seen, strict=True)] for p in plans]
        )
    return scores, outcomes
