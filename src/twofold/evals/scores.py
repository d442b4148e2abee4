"""The quality of the scores of an evaluation's samples: the verifier's metrics, its curves, and the votes it changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twofold.maths import votes
from twofold.maths.stats import Quality, calibration_bins, verifier_quality
from twofold.types import Pool

Floats = NDArray[np.float64]

EXAMPLES = 4
"""Changed votes of each kind that are shown."""


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """A bin of samples with similar scores: their mean score, the share that is correct, and their number."""

    score: float
    accuracy: float
    count: int


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of the scores of correct and wrong samples between neighbouring ``edges``."""

    edges: list[float]
    correct: list[int]
    wrong: list[int]


@dataclass(frozen=True, slots=True)
class ROC:
    """Shares of wrong (``false_yes``) and of correct samples (``true_yes``) accepted at falling thresholds; empty without both."""

    false_yes: list[float]
    true_yes: list[float]


@dataclass(frozen=True, slots=True)
class MeanScore:
    """Mean score of the samples by their label; NaN where there are none."""

    correct: float
    wrong: float
    no_answer: float


@dataclass(frozen=True, slots=True)
class ChangedVote:
    """A problem on which the majority and the weighted vote of all samples differ in being right.

    ``solved`` is the share of its samples that is correct.
    """

    id: str
    question: str
    answer: str
    majority: str | None
    weighted: str | None
    solved: float


@dataclass(frozen=True, slots=True)
class Changed:
    """Numbers of votes that the scores turned right (``fixed``) and wrong (``broken``), and examples of each kind."""

    fixed: int
    broken: int
    examples: dict[str, list[ChangedVote]]


@dataclass(frozen=True, slots=True)
class Scores:
    """Everything a report says about the scores of one evaluation."""

    verifier: Quality
    calibration: list[CalibrationBin]
    histogram: Histogram
    roc: ROC
    mean_score: MeanScore
    changed: Changed


def judged_scores(pools: Sequence[Pool]) -> Scores | None:
    """Measure the scores on samples that have an answer (only they can win a vote) and could be graded.

    None if such samples exist for fewer than two problems.
    """
    judged = [
        (score, grade.label == "correct", pool.problem.id)
        for pool in pools
        for answer, score, grade in zip(pool.answers, pool.scores, pool.grades, strict=True)
        if answer is not None and score is not None and grade.label in ("correct", "wrong")
    ]
    problems = [problem for _, _, problem in judged]
    if len(set(problems)) < 2:
        return None
    score_S = np.array([score for score, _, _ in judged])
    correct_S = np.array([correct for _, correct, _ in judged])
    edges = np.linspace(0, 1, 21)
    return Scores(
        verifier=verifier_quality(score_S, correct_S, problems),
        calibration=[CalibrationBin(*row) for row in calibration_bins(score_S, correct_S, bins=15)],
        histogram=Histogram(
            edges.tolist(),
            np.histogram(score_S[correct_S], edges)[0].tolist(),
            np.histogram(score_S[~correct_S], edges)[0].tolist(),
        ),
        roc=_roc(score_S, correct_S),
        mean_score=MeanScore(*(_mean_score(pools, label) for label in ("correct", "wrong", "no_answer"))),
        changed=_changed(pools),
    )


def _roc(score_S: Floats, correct_S: NDArray[np.bool_]) -> ROC:
    if correct_S.all() or not correct_S.any():
        return ROC([], [])
    thresholds = [np.inf, *np.unique(np.quantile(score_S, np.linspace(0, 1, 201)))[::-1]]
    false_yes, true_yes = (
        [float(np.mean(of_class >= t)) for t in thresholds] for of_class in (score_S[~correct_S], score_S[correct_S])
    )
    return ROC(false_yes, true_yes)


def _mean_score(pools: Sequence[Pool], label: str) -> float:
    pairs = ((s, g) for pool in pools for s, g in zip(pool.scores, pool.grades, strict=True))
    found = [score for score, grade in pairs if score is not None and grade.label == label]
    return float(np.mean(found)) if found else math.nan


def _changed(pools: Sequence[Pool]) -> Changed:
    examples: dict[str, list[ChangedVote]] = {"fixed": [], "broken": []}
    for pool in pools:
        right = {a for a, g in zip(pool.answers, pool.grades, strict=True) if g.label == "correct"}
        scores = [score or 0.0 for score in pool.scores]
        majority, weighted = (
            votes.choose(pool.answers, None, "majority"),
            votes.choose(pool.answers, scores, "weighted"),
        )
        if (majority in right) != (weighted in right):
            solved = sum(grade.label == "correct" for grade in pool.grades) / len(pool.grades)
            p = pool.problem
            row = ChangedVote(p.id, p.question[:600], p.answer, majority, weighted, solved)
            examples["fixed" if weighted in right else "broken"].append(row)
    shown = {kind: rows[:EXAMPLES] for kind, rows in examples.items()}
    return Changed(len(examples["fixed"]), len(examples["broken"]), shown)
