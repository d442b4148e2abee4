"""The joint grid of RL^V (arXiv:2505.04842, Fig. 1 left): accuracy for every token cap and every number of samples.

One saved pool gives all of it. What is drawn does not depend on how much may follow, so a sample under a lower cap is the
beginning of the saved one. A sample that ends within the cap stays as it is, verdict included; one that does not has no
answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twofold.evals.pools import Header
from twofold.maths import votes
from twofold.maths.stats import Estimate, estimates
from twofold.maths.stopping import Lengths
from twofold.types import Pool

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cell:
    """The vote of ``k`` samples of at most ``cap`` tokens each: its accuracy, and its tokens per problem.

    ``generated`` and ``verified`` are what k samples at this cap cost. ``cumulated`` adds both for every shorter cap of
    the list, as if the samples had been drawn afresh at each of them.
    """

    cap: int
    k: int
    accuracy: Estimate
    generated: float
    verified: float
    cumulated: float


@dataclass(frozen=True, slots=True)
class Grid:
    """The ``cells`` by cap and then by k, for a ``majority`` or ``weighted`` vote (``rule``).

    ``ended`` is the share of the samples that end within each cap.
    """

    rule: str
    caps: list[int]
    ks: list[int]
    ended: list[float]
    cells: list[Cell]


def check_caps(caps: Sequence[int], max_tokens: int) -> None:
    """Raise ValueError if the caps do not increase, or reach beyond ``max_tokens``, where the samples were cut."""
    Lengths(caps=tuple(caps))
    if caps[-1] > max_tokens:
        raise ValueError(f"caps reach {caps[-1]} tokens, samples were cut at {max_tokens}: lower the caps or raise it")


def accuracy_grid(pools: Sequence[Pool], header: Header, caps: Sequence[int], rule: str) -> Grid:
    """Return the grid of these caps and of 1, 2, 4 ... samples. Raises ValueError as ``check_caps`` does.

    One problem, samples of 3, 5 and 9 tokens and verdicts of 2, caps 4 and 10, k = 3: generated 11, then 17; verified 2,
    then 6; cumulated 13, then 36.
    """
    check_caps(caps, header.max_tokens)
    ks, cumulated, ended = votes.ks(header.n), 0.0, []
    cells: list[Cell] = []
    for cap in caps:
        correct_P_K, generated, verified = under_cap(pools, cap, rule, ks)
        cumulated += generated + verified
        ended.append(float(np.mean([[t <= cap for t in pool.tokens] for pool in pools])))
        for k, accuracy in zip(ks, estimates(correct_P_K), strict=True):
            cells.append(Cell(cap, k, accuracy, k * generated, k * verified, k * cumulated))
    return Grid(rule, [*caps], ks, ended, cells)


def under_cap(pools: Sequence[Pool], cap: int, rule: str, ks: Sequence[int]) -> tuple[Floats, float, float]:
    """Return (correctness per problem and k, tokens generated per sample, tokens to judge per sample) under one cap.

    Correctness is the mean over random choices of k of a problem's samples. A verdict is asked for if the sample ends
    with an answer and the vote is ``weighted``.
    """
    rows, generated, verified = [], [], []
    for pool in pools:
        within = [t <= cap for t in pool.tokens]
        answers = [a if w else None for a, w in zip(pool.answers, within, strict=True)]
        correct = [w and g.label == "correct" for w, g in zip(within, pool.grades, strict=True)]
        rows.append(votes.curves(answers, correct, [s or 0.0 for s in pool.scores], ks)[rule])
        generated += [min(t, cap) for t in pool.tokens]
        read = zip(pool.judge_tokens, answers, strict=True)
        verified += [tokens if rule == "weighted" and a is not None else 0 for tokens, a in read]
    return np.array(rows), float(np.mean(generated)), float(np.mean(verified))
