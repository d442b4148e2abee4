"""Compute-optimal choice (arXiv:2408.03314): the best plan per difficulty and budget, from one saved pool.

The difficulty of a problem is estimated without its answer: by the mean P(Yes) of a pilot, its first few samples. The
pilot is paid for: every plan uses its samples first and spends at least as many, and its verdicts are counted even where
the chosen plan reads none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twofold.compute.plan import Plan
from twofold.compute.select import select
from twofold.evals.plans import check_pool, noted, replayable, seen
from twofold.evals.pools import Header
from twofold.maths import votes
from twofold.maths.stats import Difference, Estimate, estimate, paired_bootstrap
from twofold.maths.stopping import Fixed
from twofold.types import Pool

Floats = NDArray[np.float64]

BINS = 3
"""Bins of difficulty."""
DEFAULT_RULES = ("majority", "best", "weighted", "posterior")


@dataclass(frozen=True, slots=True)
class Optimal:
    """The choice by difficulty and the choice without, per budget.

    ``best[bin][budget]`` is the index of the plan that is best on all problems of the bin (bin 0 is the hardest),
    ``single[budget]`` that of the plan that is best without bins. ``adaptive_P_B_2`` and ``single_P_B_2`` are (correctness,
    tokens generated and read to judge) per problem and budget, for the plan of the problem's bin and for the single plan,
    both cross-validated.
    """

    best: list[list[int]]
    single: list[int]
    adaptive_P_B_2: Floats
    single_P_B_2: Floats


def compute_optimal(
    pools: Sequence[Pool],
    plans: Sequence[Plan],
    budgets: Sequence[int],
    pilot: int = 4,
    bins: int = BINS,
    orders: int = 8,
    seed: int = 0,
) -> Optimal:
    """Choose on one half of the problems and measure on the other, then with the halves exchanged.

    ``budgets`` are numbers of samples, the pilot's included; the plans draw fixed numbers of samples and differ in how
    they choose an answer. Raises ValueError for a plan with a stopping rule, a budget below the pilot, fewer than four
    problems per bin (two in each half), and pools that were not judged or lack what a plan reads.
    """
    if any(not isinstance(plan.stop, Fixed) for plan in plans):
        raise ValueError("plans are compared at equal budgets: without a stopping rule")
    if min(budgets) < pilot:
        raise ValueError(f"budgets must be at least the pilot's {pilot}, got {min(budgets)}")
    check_problems(len(pools), bins)
    if any(s is None and a is not None for p in pools for s, a in zip(p.scores, p.answers, strict=True)):
        raise ValueError("the pilot reads verdicts, and these pools were not judged: evaluate with a judge")
    for pool in pools:
        for plan in plans:
            check_pool(pool, plan)
    rows = [row for pool in pools for row in _outcomes(pool, plans, budgets, pilot, orders, seed)]
    score_R, pilot_R, alone_R_S_B_2 = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    right_R_S_B, piloted_R_S_B_2 = alone_R_S_B_2[..., 0], alone_R_S_B_2.copy()
    piloted_R_S_B_2[..., 1] += (pilot_R[:, None] * [not plan.judged for plan in plans])[..., None]
    fold_R = np.repeat(np.random.default_rng(seed).permutation(len(pools)) % 2, orders)
    adaptive, single = np.empty((2, len(rows), len(budgets), 2))
    for fold in (0, 1):
        train, test = fold_R != fold, fold_R == fold
        edges, table = _choose(score_R[train], right_R_S_B[train], bins)
        chosen_B = right_R_S_B[train].mean(axis=0).argmax(axis=0)
        where = np.searchsorted(edges, score_R[test], side="right")
        for b in range(len(budgets)):
            adaptive[test, b] = piloted_R_S_B_2[test, table[where, b], b]
            single[test, b] = alone_R_S_B_2[test, chosen_B[b], b]
    per_problem = [x.reshape(len(pools), orders, -1, 2).mean(axis=1) for x in (adaptive, single)]
    best = _choose(score_R, right_R_S_B, bins)[1]
    return Optimal(best.tolist(), right_R_S_B.mean(axis=0).argmax(axis=0).tolist(), *per_problem)


def candidates(directory: Path, header: Header) -> list[Plan]:
    """Return those of an evaluation's saved plans that draw a fixed number of samples as it did.

    If there are none, return ``DEFAULT_RULES`` on all its samples.
    """
    found = [plan for plan in noted(directory) if replayable(plan, header) and isinstance(plan.stop, Fixed)]
    return found or [Plan(header.n, rule) for rule in DEFAULT_RULES]


def check_problems(problems: int, bins: int = BINS) -> None:
    """Raise ValueError if there are too few problems to choose by difficulty."""
    if problems < 4 * bins:
        raise ValueError(
            f"choosing by difficulty takes at least {4 * bins} problems ({bins} bins), there are {problems}"
        )


@dataclass(frozen=True, slots=True)
class OptimalRow:
    """The choice by difficulty (``adaptive``) and the one plan for all problems (``single``), at a budget of samples.

    ``_tokens`` are generated and read to judge, per problem. ``best`` names the plans from the hardest bin to the easiest,
    ``best_single`` the one that is best without bins, both chosen on all problems. The rest is cross-validated.
    """

    budget: int
    adaptive: Estimate
    adaptive_tokens: float
    single: Estimate
    single_tokens: float
    difference: Difference
    best: list[str]
    best_single: str


@dataclass(frozen=True, slots=True)
class OptimalTable:
    """A row for every budget: the powers of two from the pilot's samples up."""

    pilot: int
    bins: int
    plans: list[str]
    rows: list[OptimalRow]


def optimal_table(pools: Sequence[Pool], plans: Sequence[Plan], pilot: int = 4, bins: int = BINS) -> OptimalTable:
    """Return the table of a report: what is chosen at each budget, and what the choice is worth.

    Raises ValueError as ``compute_optimal`` does, for a single plan, and for a plan of fewer samples than the pilot.
    """
    n = min(plan.n for plan in plans)
    if len(plans) < 2 or n < pilot:
        raise ValueError(
            f"the choice is among at least two plans of at least {pilot} samples, got {', '.join(map(str, plans))}"
        )
    budgets = [k for k in votes.ks(n) if k >= pilot]
    found = compute_optimal(pools, plans, budgets, pilot, bins)
    distinct = len({plan.rule for plan in plans}) == len(plans)
    names = [plan.rule if distinct else str(plan) for plan in plans]
    rows = []
    for b, budget in enumerate(budgets):
        adaptive_P_2, single_P_2 = found.adaptive_P_B_2[:, b], found.single_P_B_2[:, b]
        rows.append(
            OptimalRow(
                budget,
                estimate(adaptive_P_2[:, 0]),
                float(adaptive_P_2[:, 1].mean()),
                estimate(single_P_2[:, 0]),
                float(single_P_2[:, 1].mean()),
                paired_bootstrap(adaptive_P_2[:, 0], single_P_2[:, 0]),
                [names[of_bin[b]] for of_bin in found.best],
                names[found.single[b]],
            )
        )
    return OptimalTable(pilot, bins, [str(plan) for plan in plans], rows)


def _choose(score_R: Floats, right_R_S_B: Floats, bins: int) -> tuple[Floats, NDArray[np.intp]]:
    """Return (inner edges of equal-mass bins of the pilot's score, best plan per bin and budget); the first of equals."""
    edges = np.quantile(score_R, np.arange(1, bins) / bins)
    where = np.searchsorted(edges, score_R, side="right")
    overall = right_R_S_B.mean(axis=0)  # for a bin that ties left empty
    means = [right_R_S_B[where == i].mean(axis=0) if (where == i).any() else overall for i in range(bins)]
    return edges, np.array([mean.argmax(axis=0) for mean in means])


def _outcomes(
    pool: Pool, plans: Sequence[Plan], budgets: Sequence[int], pilot: int, orders: int, seed: int
) -> Iterator[tuple[float, int, list[list[tuple[bool, int]]]]]:
    """Yield, for each random order of a pool, (pilot's mean score, tokens of its verdicts, outcomes).

    A sample without an answer is not judged, and counts 0. The outcomes are (right, tokens) of every plan at every budget.
    """
    right = {a for a, g in zip(pool.answers, pool.grades, strict=True) if g.label == "correct"}
    rng = np.random.default_rng(seed)
    for _ in range(orders):
        order = rng.permutation(len(pool.answers)).tolist()
        asked = [
            (pool.scores[i] or 0.0, pool.judge_tokens[i]) if pool.answers[i] is not None else (0.0, 0) for i in order
        ]
        drawn = [0, *accumulate(pool.tokens[i] for i in order)]
        read = [0, *accumulate(tokens for _, tokens in asked)]
        outcomes = []
        for plan in plans:
            won = [select(replace(plan, n=n), seen(pool, plan, order[:n]))[0] in right for n in budgets]
            outcomes.append([(w, drawn[n] + plan.judged * read[n]) for w, n in zip(won, budgets, strict=True)])
        yield float(np.mean([score for score, _ in asked[:pilot]])), read[pilot], outcomes
