"""The posterior as a voting rule of a report: its six numbers are fitted on the other half of an evaluation's problems."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twofold.compute.plan import Plan
from twofold.evals.plans import replay
from twofold.maths.posterior import fit
from twofold.types import Pool

LEAST = 20
"""Problems from which on the rule is measured: half of them have to carry a fit."""


def posterior_curve(pools: Sequence[Pool]) -> NDArray[np.float64] | None:
    """Return the accuracy [P, K] of the posterior's answer per problem and number of samples, as ``plans.replay`` measures it.

    Problems at even places have the calibration of those at odd places, and the other way round, so that no problem is
    answered by numbers that were fitted on it. None with fewer than ``LEAST`` problems, or if one half has no answer at all.
    """
    halves = [pools[0::2], pools[1::2]]
    answered = all(any(a is not None for pool in half for a in pool.answers) for half in halves)
    if len(pools) < LEAST or not answered:
        return None
    n = len(pools[0].answers)
    curves = []
    for half, other in (halves, halves[::-1]):
        calibration = fit([(p.answers, [g.label == "correct" for g in p.grades], p.scores) for p in other])
        curves.append(replay(half, Plan(n, "posterior", calibration=calibration)).correct_P_K)
    found = np.empty((len(pools), curves[0].shape[1]))
    found[0::2], found[1::2] = curves
    return found
