"""Comparisons of evaluations of one task: differences on the same problems, and the samples and tokens saved."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from twofold.evals.pools import PoolError
from twofold.evals.saved import Saved
from twofold.evals.thinking import thought_efficiency
from twofold.maths.stats import efficiency_ratio, paired_bootstrap


@dataclass(frozen=True, slots=True)
class Comparison:
    """Accuracy of ``run`` by ``rule`` minus that of ``against`` by ``against_rule``, both at ``k`` samples (paired bootstrap)."""

    run: str
    rule: str
    against: str
    against_rule: str
    k: int
    problems: int
    mean: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class SamplesSaved:
    """Samples another run or rule needs / samples this run needs, for the other's accuracy (see ``stats.Efficiency``).

    ``is_best_rule``: it is the best rule of all other runs. ``at_least``: this run is there with its first sample, so the ratio
    is a lower bound. ``max_k`` is the largest number of samples measured.
    """

    run: str
    rule: str
    baseline: str
    baseline_rule: str
    is_best_rule: bool
    at_least: bool
    max_k: int
    ratio: float | None
    low: float
    high: float
    base_k: float
    ours_k: float | None
    target: float


@dataclass(frozen=True, slots=True)
class TokensSaved:
    """Tokens the baseline's probed thoughts need / tokens this run's need; ``base_k`` and ``ours_k`` are token budgets."""

    run: str
    baseline: str
    ratio: float | None
    low: float
    high: float
    base_k: float
    ours_k: float | None
    target: float


def comparisons(ordered: Sequence[Saved], at: int) -> list[Comparison]:
    """Return each run's rules against its own majority vote, then the rules of every pair of runs, at ``at`` samples.

    The earlier run of a pair is the one that is subtracted. The rules are weighted and majority vote, and best-of-n or the
    posterior where it comes out highest.
    """
    rows = []
    for e in ordered:
        ids = [pool.problem.id for pool in e.pools]
        rows += [_compare(e, rule, e, "maj", at, ids) for rule in _rules(e, at) if rule != "maj"]
    for a, b in itertools.combinations(ordered, 2):
        ids = _common(a, b)
        if len(ids) >= 2:
            pairs = itertools.product(_rules(b, at), _rules(a, at))
            rows += [_compare(b, of_b, a, of_a, at, ids) for of_b, of_a in pairs]
    return rows


def samples_saved(e: Saved, rivals: Sequence[tuple[Saved, str]], best: tuple[str, str]) -> list[SamplesSaved]:
    """Return samples that each rival, a run by a rule, needs / samples this run needs. ``best`` names the best rule of all
    other runs."""
    rows = []
    for rival, rule in rivals:
        ids, ks = _common(rival, e), [k for k in e.ks if k in rival.ks]
        if len(ids) < 2 or (rival is e and rule == e.rule):
            continue
        ratio = efficiency_ratio(rival.curve(rule, ks, ids), e.curve(e.rule, ks, ids), ks)
        if ratio.target > 0:  # else the rival is right on next to nothing: there is no accuracy to reach sooner
            at_least = ratio.ours_k == ks[0]
            names = (e.label, e.rule, rival.label, rule)
            rows.append(SamplesSaved(*names, (rival.label, rule) == best, at_least, ks[-1], **asdict(ratio)))
    return rows


def tokens_saved(base: Saved, e: Saved) -> list[TokensSaved]:
    """Return tokens the baseline's probed thoughts need / tokens this run's need, if both have been probed."""
    ratio = thought_efficiency(base.probed, e.probed) if base.probed and e.probed else None
    return [TokensSaved(e.label, base.label, **asdict(ratio))] if ratio else []


def _rules(e: Saved, at: int) -> list[str]:
    mean = {
        rule: e.curves_P_K[rule][:, e.ks.index(at)].mean()
        for rule in ("weighted", "maj", "best", "posterior")
        if rule in e.curves_P_K
    }
    return [rule for rule in mean if rule in ("weighted", "maj") or mean[rule] == max(mean.values())]


def _compare(b: Saved, rule_b: str, a: Saved, rule_a: str, k: int, ids: Sequence[str]) -> Comparison:
    difference = paired_bootstrap(b.curve(rule_b, [k], ids)[:, 0], a.curve(rule_a, [k], ids)[:, 0])
    return Comparison(b.label, rule_b, a.label, rule_a, k, len(ids), **asdict(difference))


def _common(a: Saved, b: Saved) -> list[str]:
    """Return the ids of the problems both have. Raises PoolError if one id stands for two different questions."""
    question = {pool.problem.id: pool.problem.question for pool in b.pools}
    shared = [pool.problem for pool in a.pools if pool.problem.id in question]
    for problem in shared:
        if question[problem.id] != problem.question:
            raise PoolError(f"problem {problem.id!r} is a different question in {a.directory} and {b.directory}")
    return [problem.id for problem in shared]
