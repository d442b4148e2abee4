"""The numbers of probed thoughts: does every further token help (MRT, arXiv:2503.07572)?

They come from ``probes.jsonl`` (see ``probes``) and need no model. J is the share of right answers among those forced from
a prefix. An average is over a problem's thoughts first; intervals resample problems.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twofold.evals.pools import Header, PoolError
from twofold.evals.probes import PROBES, SETTINGS, Prefix, Thought, read_thoughts
from twofold.maths import regret
from twofold.maths.stats import Efficiency, Estimate, efficiency_ratio, estimate, estimates

Floats = NDArray[np.float64]

VOTES = (1, 2, 4, 8)
"""Numbers of the answers forced at one prefix that vote; those above the number of answers are left out."""
BUDGETS_PER_LIMIT = 16
"""Budgets up to the evaluation's token limit; they continue in the same steps up to twice the limit."""
PANELS = 4
"""Buckets of thoughts with similar numbers of episodes."""


@dataclass(frozen=True, slots=True)
class ThoughtCurves:
    """All saved thoughts of an evaluation, by problem, and their curves at the budgets, averaged per problem.

    ``beyond`` holds the budget after 0, 1, ... waits; the first is the evaluation's token limit.
    """

    thoughts: dict[str, list[Thought]]
    beyond: list[int]
    budgets: list[int]
    accuracy_P_B: Floats
    regret_P_B: Floats


@dataclass(frozen=True, slots=True)
class Progress(Estimate):
    """The change of J by an episode: its mean, the shares of ``negative`` and ``positive`` ones, and a histogram."""

    negative: float
    positive: float
    edges: list[float]
    counts: list[int]


@dataclass(frozen=True, slots=True)
class VotePoint:
    """``p`` answers forced at one prefix that vote: mean tokens and accuracy ([maj@p]_j)."""

    p: int
    tokens: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Bucket:
    """Thoughts of ``low`` to ``high`` episodes. ``points`` has a branch of votes for each stop; the last is the whole thought."""

    low: int
    high: int
    thoughts: int
    points: list[list[VotePoint]]


@dataclass(frozen=True, slots=True)
class StopRegret:
    """Episode-budget regret over ``budget`` episodes (see ``regret.stop_regret``), the mean of this many thoughts."""

    budget: int
    value: float
    thoughts: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """Whole thoughts that were made to continue ``waits`` times: mean tokens, J, and the regret at a budget of its own."""

    waits: int
    tokens: float
    budget: int
    accuracy: Estimate
    regret: Estimate


@dataclass(frozen=True, slots=True)
class Thinking:
    """The numbers of one evaluation's probes.

    ``accuracy`` and ``regret`` are given at each of ``budgets``. ``first`` and ``last`` are J without a thought and after
    the whole one, ``natural`` is the accuracy of thoughts left alone. ``unanswered`` is the share of forced answers that
    are none.
    """

    problems: int
    thoughts: int
    tokens: float
    episodes: float
    budgets: list[int]
    accuracy: list[Estimate]
    regret: list[Estimate]
    first: Estimate
    last: Estimate
    natural: Estimate
    unanswered: float
    progress: Progress
    buckets: list[Bucket]
    stopping: list[StopRegret]
    waits: list[Waiting]


def read_curves(directory: Path, header: Header) -> ThoughtCurves | None:
    """Read the probes of an evaluation; None if it has none.

    Raises PoolError for a file that is cut off or holds fewer than 2 problems.
    """
    if not (directory / SETTINGS).exists():
        return None
    every = {name: [t for t in mine if t.points()] for name, mine in read_thoughts(directory / PROBES).items()}
    thoughts = {name: mine for name, mine in every.items() if mine}
    if len(thoughts) < 2:
        raise PoolError(f"{directory / PROBES}: {len(thoughts)} problems; an interval over problems needs at least 2")
    steps = range(1, 2 * BUDGETS_PER_LIMIT + 1)
    budgets = sorted({max(1, round(header.max_tokens * i / BUDGETS_PER_LIMIT)) for i in steps})

    def curves(of: Callable[[regret.Points, float], float]) -> Floats:
        return np.array([[np.mean([of(t.points(), b) for t in mine]) for b in budgets] for mine in thoughts.values()])

    how = json.loads((directory / SETTINGS).read_text())
    beyond = [header.max_tokens + waits * how["each"] for waits in range(how["waits"] + 1)]
    return ThoughtCurves(thoughts, beyond, budgets, curves(regret.accuracy_at), curves(regret.normalised_regret))


def thinking(curves: ThoughtCurves) -> Thinking:
    """Return the numbers of one evaluation's probes: by budget, by episode, by votes at each prefix, and by waits."""
    problems = list(curves.thoughts.values())
    everyone = [t for mine in problems for t in mine]

    def over(of: Callable[[Thought], float]) -> Estimate:
        return _estimate([[of(t) for t in mine] for mine in problems])

    def waiting(waits: int, budget: int) -> Waiting:
        return Waiting(
            waits,
            float(np.mean([_after_waits(t, waits).tokens for t in everyone])),
            budget,
            over(lambda t: _after_waits(t, waits).value),
            over(lambda t: regret.normalised_regret(t.points(waits), budget)),
        )

    return Thinking(
        problems=len(problems),
        thoughts=len(everyone),
        tokens=float(np.mean([t.tokens for t in everyone])),
        episodes=float(np.mean([len(t.own) - 1 for t in everyone])),
        budgets=curves.budgets,
        accuracy=estimates(curves.accuracy_P_B),
        regret=estimates(curves.regret_P_B),
        first=over(lambda t: t.own[0].value),
        last=over(lambda t: t.own[-1].value),
        natural=over(lambda t: float(t.label == "correct")),
        unanswered=float(np.mean([a is None for t in everyone for p in t.prefixes for a in p.answers])),
        progress=_progress(problems),
        buckets=_buckets(everyone),
        stopping=_stopping(everyone),
        waits=[waiting(waits, budget) for waits, budget in enumerate(curves.beyond)],
    )


def thought_efficiency(base: ThoughtCurves, ours: ThoughtCurves) -> Efficiency | None:
    """Return tokens the baseline's thoughts need / tokens ours need, for the same accuracy, on the problems both have.

    This is ``stats.efficiency_ratio`` with budgets in place of samples. None if too few problems or other budgets are
    shared, or if the baseline is right on next to nothing.
    """
    shared = [name for name in base.thoughts if name in ours.thoughts]
    if len(shared) < 2 or base.budgets != ours.budgets:
        return None

    def curve(found: ThoughtCurves) -> Floats:
        return found.accuracy_P_B[[[*found.thoughts].index(name) for name in shared]]

    ratio = efficiency_ratio(curve(base), curve(ours), base.budgets)
    return ratio if ratio.target > 0 else None


def _after_waits(thought: Thought, waits: int) -> Prefix:
    """Return the whole thought after it was made to continue this many times."""
    return next(p for p in reversed(thought.prefixes) if p.waits == waits)


def _estimate(rows: Iterable[Iterable[float]]) -> Estimate:
    """Return the mean of each problem's row, NaN left out, then of the problems."""
    return estimate([np.mean(row) for values in rows if (row := [x for x in values if not math.isnan(x)])])


def _progress(problems: Sequence[Sequence[Thought]]) -> Progress:
    gains = [[g for t in mine for g in regret.progress([p.value for p in t.own])] for mine in problems]
    known = [g for mine in gains for g in mine if not math.isnan(g)]
    edges = np.linspace(-1.0625, 1.0625, 18)  # of width 1/8, around the eighths that 8 answers give
    whole = _estimate(gains)
    return Progress(
        whole.mean,
        whole.low,
        whole.high,
        negative=float(np.mean([g < 0 for g in known])),
        positive=float(np.mean([g > 0 for g in known])),
        edges=edges.tolist(),
        counts=np.histogram(known, edges)[0].tolist(),
    )


def _votes(prefix: Prefix) -> dict[int, float]:
    """Return [maj@p] for every p that there are answers for."""
    ps = [p for p in VOTES if p <= len(prefix.answers)]
    return dict(zip(ps, regret.maj_at_prefix(prefix.answers, prefix.correct, prefix.logprobs, ps), strict=True))


def _buckets(thoughts: Sequence[Thought]) -> list[Bucket]:
    """Group thoughts by quarters of their numbers of episodes, equal numbers together, and measure each stop.

    A bucket's stops are the prefixes that all of its thoughts have, and the whole thoughts. A branch of p votes costs p
    answers.
    """
    sizes = sorted(len(t.own) - 1 for t in thoughts)
    highs = sorted({sizes[max(0, len(sizes) * i // PANELS - 1)] for i in range(1, PANELS + 1)})
    found = []
    for before, high in zip([-1, *highs], highs, strict=False):
        mine = [t for t in thoughts if before < len(t.own) - 1 <= high]
        low = min(len(t.own) - 1 for t in mine)
        points = []
        for j in [*range(low), -1]:
            here = [t.own[j] for t in mine]
            votes = [_votes(p) for p in here]
            tokens, length = np.mean([(p.tokens, p.length) for p in here], axis=0).tolist()
            points.append([VotePoint(p, tokens + p * length, float(np.mean([v[p] for v in votes]))) for p in votes[0]])
        found.append(Bucket(low, high, len(mine), points))
    return found


def _stopping(thoughts: Sequence[Thought]) -> list[StopRegret]:
    """Return the episode-budget regret (appendix E) over 1, 2, ... episodes.

    Each is a mean over the thoughts that have this many episodes and are ever right.
    """
    rows = [[[*_votes(p).values()] for p in t.own] for t in thoughts]
    if len(rows[0][0]) < len(VOTES):
        return []
    found = []
    for budget in range(1, max(map(len, rows))):
        lost = [regret.stop_regret(row, budget) for row in rows if len(row) > budget]
        known = [x for x in lost if not math.isnan(x)]
        if known:
            found.append(StopRegret(budget, float(np.mean(known)), len(known)))
    return found
