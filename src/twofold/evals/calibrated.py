"""The posterior as a voting rule of a report: its six numbers are fitted on the other half of an evaluation's problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from twofold.compute.plan import Plan
from twofold.evals.plans import Replay, replay
from twofold.maths.posterior import Calibration, fit
from twofold.types import Pool

LEAST = 20
"""Problems from which on the rule is measured: half of them have to carry a fit."""


def halves(pools: Sequence[Pool]) -> tuple[Calibration, Calibration] | None:
    """Return the calibrations of the problems at even places and at odd places, each fitted on the other half.

    So no problem is answered by numbers that were fitted on it. None with fewer than ``LEAST`` problems, or if one half has
    no answer at all.
    """
    parts = pools[1::2], pools[0::2]
    answered = all(any(a is not None for pool in part for a in pool.answers) for part in parts)
    if len(pools) < LEAST or not answered:
        return None
    even, odd = (fit([(p.answers, [g.label == "correct" for g in p.grades], p.scores) for p in part]) for part in parts)
    return even, odd


def replay_halves(pools: Sequence[Pool], plan: Plan, calibrations: tuple[Calibration, Calibration]) -> Replay:
    """Replay a plan on the pools (``plans.replay``), each half with its own calibration."""
    even, odd = (
        replay(pools[i::2], replace(plan, calibration=calibration)) for i, calibration in enumerate(calibrations)
    )
    columns = np.empty((len(fields(Replay)) - 1, len(pools), len(even.ks)))
    for column, field in zip(columns, fields(Replay)[1:], strict=True):  # the first are the ks
        column[0::2], column[1::2] = getattr(even, field.name), getattr(odd, field.name)
    return Replay(even.ks, *columns)


def posterior_curve(pools: Sequence[Pool]) -> NDArray[np.float64] | None:
    """Return the accuracy [P, K] of the posterior's answer per problem and number of samples; None where ``halves`` is None."""
    calibrations = halves(pools)
    if calibrations is None:
        return None
    return replay_halves(pools, Plan(len(pools[0].answers), "posterior"), calibrations).correct_P_K
