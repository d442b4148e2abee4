"""Choose: from what is known of the samples of one problem to an answer. Needs no model: pools are replayed with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from twofold.compute.plan import Plan
from twofold.maths.confidence import borda, keep_top
from twofold.maths.posterior import posterior
from twofold.maths.stopping import Lengths, should_stop
from twofold.maths.votes import choose, tally
from twofold.text.extract import canonical

Same = Callable[[str, str], bool]
"""Whether two answers in normal form are mathematically equal."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a problem's samples, in the order they came.

    ``answers`` are voting classes (see ``classes``), None where a sample has none. ``scores`` are P(Yes), None where the
    model was not asked. ``certainty`` is the mean token certainty, and ``traces`` the DeepConf score of the token
    confidences; both are empty unless the rule needs them.
    """

    answers: list[str | None]
    scores: list[float | None]
    certainty: list[float] = field(default_factory=list)
    traces: list[float] = field(default_factory=list)


def classes(answers: Sequence[str | None], same: Same | None = None) -> list[str | None]:
    """Answers as voting classes: those of one normal form are one class, and those that are the ``same``."""
    forms = [None if a is None else canonical(a) for a in answers]
    if same is None:
        return forms
    first: dict[str | None, str] = {}
    for form in dict.fromkeys(f for f in forms if f is not None):
        first[form] = next((kept for kept in dict.fromkeys(first.values()) if same(kept, form)), form)
    return [None if f is None else first[f] for f in forms]


def settled(plan: Plan, seen: Seen) -> int | None:
    """The verdict of the plan's stopping rule on how many (see ``maths.stopping.verdict``)."""
    if isinstance(plan.stop, Lengths):
        return None
    weights: list[float | None] = [*_weights(plan, seen)] if plan.stop.name == "consensus" else seen.scores
    return should_stop(plan.stop, seen.answers, weights, plan.calibration)


def select(plan: Plan, seen: Seen) -> tuple[str | None, float, dict[str, float]]:
    """(answer, confidence, votes, largest first). Confidence is the answer's share of all votes or, by the rule
    ``posterior``, its posterior; the answer is None if there is none at all."""
    if plan.rule == "posterior":
        votes = posterior(seen.answers, seen.scores, plan.calibration)
        answer = max(votes, key=votes.__getitem__, default=None)
        total = 1.0
    else:
        weights = _weights(plan, seen)
        last = slice(-(settled(plan, seen) or len(seen.answers)), None)
        by_best = plan.rule in ("best", "certain")
        answer = choose(seen.answers[last], weights[last], "best" if by_best else "weighted", plan.seed)
        votes = tally(seen.answers, weights)
        total = sum(votes.values())
    confidence = votes[answer] / total if answer is not None and total else 0.0
    return answer, confidence, dict(sorted(votes.items(), key=lambda v: -v[1]))


def _weights(plan: Plan, seen: Seen) -> list[float]:
    """What each sample's vote weighs."""
    match plan.rule:
        case "majority":
            return [1.0] * len(seen.answers)
        case "certain":
            return seen.certainty
        case "borda":
            return borda(seen.answers, seen.certainty, plan.traces.power)
        case "deepconf":
            return keep_top(seen.answers, seen.traces, plan.traces.keep)
        case _:
            return [s or 0.0 for s in seen.scores]
