"""Evaluations found on disk and read, with the accuracy of every rule at every k."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twofold.evals import attacks
from twofold.evals.attacks import Accepted
from twofold.evals.calibrated import posterior_curve
from twofold.evals.pools import HEADER, POOLS, Header, PoolError, read_header, read_pools
from twofold.evals.thinking import ThoughtCurves, read_curves
from twofold.maths import votes
from twofold.types import Pool

Floats = NDArray[np.float64]

PATTERNS = (HEADER, f"evals/*/{HEADER}", f"*/evals/*/{HEADER}")
"""Where the header of an evaluation is in an evaluation's directory, in a run, and in a folder of runs."""
VOTING_RULE = {"pass": "pass@k", "maj": "majority", "best": "best", "weighted": "weighted"}
"""The rules of a report that ``votes.curves`` measures: name of the metric, name there. The ``posterior`` is one more."""


@dataclass(frozen=True, slots=True)
class Saved:
    """One evaluation, read from its directory. ``curves_P_K[rule]`` is the accuracy per problem and k of ``ks``.

    ``run`` is the run directory it stands in, or the evaluation's own; ``probed`` is None if no thoughts were probed, and
    ``attacks`` if no attacks were judged.
    """

    label: str
    run: Path
    directory: Path
    header: Header
    pools: list[Pool]
    ks: list[int]
    curves_P_K: dict[str, Floats]
    probed: ThoughtCurves | None
    attacks: Accepted | None

    @property
    def rule(self) -> str:
        """The rule that the run answers with, fixed before looking at results: weighted vote if it is judged, else majority."""
        return "weighted" if "weighted" in self.curves_P_K else "maj"

    def curve(self, rule: str, ks: Sequence[int], ids: Sequence[str]) -> Floats:
        """Return the accuracies [len(ids), len(ks)] of these problems at these k."""
        row = {pool.problem.id: i for i, pool in enumerate(self.pools)}
        return self.curves_P_K[rule][np.ix_([row[i] for i in ids], [self.ks.index(k) for k in ks])]


def load_evaluations(paths: Sequence[Path]) -> list[Saved]:
    """Find and read evaluations. Each path is an evaluation, a run with some under ``evals/*/``, or a folder of runs.

    Equal names within one task are told apart by the run's directory. Raises PoolError for a path without an
    evaluation, for two that cannot be told apart, and for missing or malformed files.
    """
    directories = [found for path in paths for found in evaluations_in(path)]
    headers = {directory.resolve(): read_header(directory) for directory in directories}
    run_of = {d: d.parent.parent if d.parent.name == "evals" else d for d in headers}
    names = Counter((h.task, h.split, h.name) for h in headers.values())
    labels = {
        d: h.name if names[h.task, h.split, h.name] == 1 else f"{run_of[d].name}/{h.name}" for d, h in headers.items()
    }
    seen: dict[tuple[str, str, str], Path] = {}
    for d, h in headers.items():
        if (other := seen.setdefault((h.task, h.split, labels[d]), d)) != d:
            raise PoolError(f"{d} and {other} are both named {labels[d]!r}: change `name` in one {HEADER}")
    return [_read(labels[d], run_of[d], d, header) for d, header in headers.items()]


def evaluations_in(path: Path) -> list[Path]:
    """Return the directories of the evaluations in a path, which is an evaluation, a run or a folder of runs.

    Raises PoolError if there are none.
    """
    for pattern in PATTERNS:
        if found := sorted(header.parent for header in path.glob(pattern)):
            return found
    raise PoolError(f"{path}: no evaluation here: none of {', '.join(PATTERNS)}")


def holds_evaluations(path: Path) -> bool:
    """Return whether ``evaluations_in`` finds any."""
    return any(next(path.glob(pattern), None) for pattern in PATTERNS)


def _read(label: str, run: Path, directory: Path, header: Header) -> Saved:
    pools = read_pools(directory / POOLS)
    if len(pools) < 2:
        raise PoolError(f"{directory / POOLS}: {len(pools)} problems; an interval over problems needs at least 2")
    judged = any(score is not None for pool in pools for score in pool.scores)
    ks = votes.ks(header.n)
    rows = []
    for pool in pools:
        where = f"{directory / POOLS}: problem {pool.problem.id!r}"
        if len(pool.answers) != header.n:
            raise PoolError(f"{where} has {len(pool.answers)} samples, {HEADER} says n = {header.n}")
        if judged and any(s is None and a is not None for s, a in zip(pool.scores, pool.answers, strict=True)):
            raise PoolError(f"{where} has an answer without a score, though others were judged: judge all or none")
        scores = [0.0 if score is None else score for score in pool.scores] if judged else None
        rows.append(votes.curves(pool.answers, [g.label == "correct" for g in pool.grades], scores, ks))
    curves = {rule: np.array([row[name] for row in rows]) for rule, name in VOTING_RULE.items() if name in rows[0]}
    if judged and (calibrated := posterior_curve(pools)) is not None:
        curves["posterior"] = calibrated
    return Saved(
        label, run, directory, header, pools, ks, curves, read_curves(directory, header), attacks.read(directory)
    )
