"""The joint grid of RL^V (arXiv:2505.04842, Fig. 1 left): accuracy for every token cap and every number of samples.

One saved pool gives all of it. What is drawn does not depend on how much may follow, so a sample under a lower cap is the
beginning of itself: one that ends within the cap stays as it is, verdict included, and one that does not has no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.compute.select import classes
from twofold.evals.pools import Header
from twofold.maths import stats, votes
from twofold.maths.stopping import Lengths
from twofold.types import Pool

Floats = NDArray[np.float64]
Record = dict[str, Any]


def check(caps: Sequence[int], max_tokens: int) -> None:
    """Raises ValueError for caps that do not increase, and for one that no sample of ``max_tokens`` could reach."""
    Lengths(caps=tuple(caps))
    if caps[-1] > max_tokens:
        raise ValueError(f"caps reach {caps[-1]} tokens, samples were cut at {max_tokens}: lower the caps or raise it")


def measure(pools: Sequence[Pool], header: Header, caps: Sequence[int], rule: str) -> Record:
    """``cells``, by cap and then by k: accuracy of a ``majority`` or ``weighted`` vote, and its tokens per problem.

    Both ways to count a length: ``generated`` and ``verified`` are what k samples at this cap cost; ``cumulated`` has
    both of every shorter cap of the list in it as well, as if each length had been drawn afresh. ``ended``: share of
    the samples that end within each cap. Raises ValueError as ``check``.

    One problem, samples of 3, 5 and 9 tokens and verdicts of 2, caps 4 and 10, k = 3: generated 11, then 17; verified 2,
    then 6; cumulated 13, then 36.
    """
    check(caps, header.max_tokens)
    ks, cumulated, ended = votes.ks(header.n), 0.0, []
    cells: list[Record] = []
    for cap in caps:
        correct_P_K, generated, verified = under(pools, cap, rule, ks)
        cumulated += generated + verified
        ended.append(float(np.mean([[t <= cap for t in pool.tokens] for pool in pools])))
        for k, *point in zip(ks, *stats.cluster_bootstrap(correct_P_K), strict=True):
            accuracy = dict(zip(("mean", "low", "high"), point, strict=True))
            cost = {"generated": k * generated, "verified": k * verified, "cumulated": k * cumulated}
            cells.append({"cap": cap, "k": k, "accuracy": accuracy, **cost})
    return {"rule": rule, "caps": [*caps], "ks": ks, "ended": ended, "cells": cells}


def under(pools: Sequence[Pool], cap: int, rule: str, ks: Sequence[int]) -> tuple[Floats, float, float]:
    """(correctness per problem and k, tokens generated per sample, tokens to judge per sample) under one cap.

    Correctness is the mean over random k of a problem's samples; a verdict is asked for if a sample ends with an answer
    and the vote is ``weighted``.
    """
    rows, generated, verified = [], [], []
    for pool in pools:
        within = [t <= cap for t in pool.tokens]
        answers = [a if w else None for a, w in zip(classes(pool.answers), within, strict=True)]
        correct = [w and g.label == "correct" for w, g in zip(within, pool.grades, strict=True)]
        rows.append(votes.curves(answers, correct, [s or 0.0 for s in pool.scores], ks)[rule])
        generated += [min(t, cap) for t in pool.tokens]
        read = zip(pool.judge_tokens, answers, strict=True)
        verified += [tokens if rule == "weighted" and a is not None else 0 for tokens, a in read]
    return np.array(rows), float(np.mean(generated)), float(np.mean(verified))
