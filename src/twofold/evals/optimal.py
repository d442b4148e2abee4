"""Compute-optimal choice (arXiv:2408.03314): the best plan per difficulty and budget, from one saved pool.

The difficulty of a problem is what can be had without its answer: the mean P(Yes) of a pilot, its first few samples. The
pilot is charged: its samples are the first that every plan uses, no plan spends fewer, and its verdicts are paid even
where the plan that it leads to reads none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.compute.plan import Plan
from twofold.compute.select import classes, select
from twofold.evals.plans import check, noted, replayable, seen
from twofold.evals.pools import Header
from twofold.maths import stats, votes
from twofold.maths.stopping import Fixed
from twofold.types import Pool

Floats = NDArray[np.float64]
Record = dict[str, Any]

BINS = 3
"""Of difficulty."""
RULES = ("majority", "best", "weighted", "posterior")


@dataclass(frozen=True, slots=True)
class Optimal:
    """``best[bin][budget]``: index of the plan that is best on all problems (bin 0 is the hardest), ``single[budget]``: of
    the one that is best without bins. ``adaptive_P_B_2`` and ``single_P_B_2``: (correctness, tokens generated and read
    to judge) per problem and budget, cross-validated, of the plan of the problem's bin and of the single plan."""

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
    """Choose on one half of the problems, measure on the other, and the other way round.

    ``budgets`` are samples, the pilot's among them; plans differ in how they choose an answer (fixed numbers only).
    Raises ValueError for a plan with a stopping rule, a budget below the pilot, fewer problems than four per bin (two in
    each half), and pools that were not judged or lack what a plan reads.
    """
    if any(not isinstance(plan.stop, Fixed) for plan in plans):
        raise ValueError("plans are compared at equal budgets: without a stopping rule")
    if min(budgets) < pilot:
        raise ValueError(f"budgets must be at least the pilot's {pilot}, got {min(budgets)}")
    enough(len(pools), bins)
    if any(s is None and a is not None for p in pools for s, a in zip(p.scores, p.answers, strict=True)):
        raise ValueError("the pilot reads verdicts, and these pools were not judged: evaluate with a judge")
    for pool in pools:
        for plan in plans:
            check(pool, plan)
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
    """The plans noted beside an evaluation that draw a fixed number of samples as it did; if none does, the votes by
    count and by verdict of all its samples."""
    found = [plan for plan in noted(directory) if replayable(plan, header) and isinstance(plan.stop, Fixed)]
    return found or [Plan(header.n, rule) for rule in RULES]


def enough(problems: int, bins: int = BINS) -> None:
    """Raises ValueError for too few problems."""
    if problems < 4 * bins:
        raise ValueError(
            f"choosing by difficulty takes at least {4 * bins} problems ({bins} bins), there are {problems}"
        )


def measure(pools: Sequence[Pool], plans: Sequence[Plan], pilot: int = 4, bins: int = BINS) -> Record:
    """The table and what it is worth, as a report shows it; budgets are the powers of two from the pilot up.

    Raises ValueError as ``compute_optimal``, for a single plan, and for one of fewer samples than the pilot.
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
        row: Record = {"budget": budget}
        for side, values_P_2 in (("adaptive", found.adaptive_P_B_2[:, b]), ("single", found.single_P_B_2[:, b])):
            point = zip(("mean", "low", "high"), stats.cluster_bootstrap(values_P_2[:, 0]), strict=True)
            row |= {side: dict(point), f"{side}_tokens": values_P_2[:, 1].mean()}
        difference = stats.paired_bootstrap(found.adaptive_P_B_2[:, b, 0], found.single_P_B_2[:, b, 0])
        best = [names[of_bin[b]] for of_bin in found.best]
        rows.append(row | {"difference": asdict(difference), "best": best, "best_single": names[found.single[b]]})
    return {"pilot": pilot, "bins": bins, "plans": [str(plan) for plan in plans], "rows": rows}


def _choose(score_R: Floats, right_R_S_B: Floats, bins: int) -> tuple[Floats, NDArray[np.intp]]:
    """(inner edges of equal-mass bins of the pilot's score, best plan per bin and budget); ties go to the first plan."""
    edges = np.quantile(score_R, np.arange(1, bins) / bins)
    where = np.searchsorted(edges, score_R, side="right")
    overall = right_R_S_B.mean(axis=0)  # of a bin that ties left empty
    means = [right_R_S_B[where == i].mean(axis=0) if (where == i).any() else overall for i in range(bins)]
    return edges, np.array([mean.argmax(axis=0) for mean in means])


def _outcomes(
    pool: Pool, plans: Sequence[Plan], budgets: Sequence[int], pilot: int, orders: int, seed: int
) -> Iterator[tuple[float, int, list[list[tuple[bool, int]]]]]:
    """Of random orders of a pool: the pilot's mean score and the tokens of its verdicts (a sample without an answer is not
    asked about, and counts 0), and of every plan at every budget whether it is right and its tokens."""
    forms = classes(pool.answers)
    right = {a for a, g in zip(forms, pool.grades, strict=True) if g.label == "correct"}
    rng = np.random.default_rng(seed)
    for _ in range(orders):
        order = rng.permutation(len(forms)).tolist()
        asked = [(pool.scores[i] or 0.0, pool.judge_tokens[i]) if forms[i] is not None else (0.0, 0) for i in order]
        drawn = [0, *accumulate(pool.tokens[i] for i in order)]
        read = [0, *accumulate(tokens for _, tokens in asked)]
        outcomes = []
        for plan in plans:
            won = [select(replace(plan, n=n), seen(pool, forms, plan, order[:n]))[0] in right for n in budgets]
            outcomes.append([(w, drawn[n] + plan.judged * read[n]) for w, n in zip(won, budgets, strict=True)])
        yield float(np.mean([score for score, _ in asked[:pilot]])), read[pilot], outcomes
