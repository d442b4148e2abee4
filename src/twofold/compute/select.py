"""Choose an answer from what is known of a problem's samples. This needs no model, so saved pools are replayed with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twofold.compute.plan import Plan
from twofold.compute.rules import Seen, rule_named
from twofold.maths.stopping import Lengths, should_stop
from twofold.maths.votes import Vote, choose, tally
from twofold.text.notation import canonical

Same = Callable[[str, str], bool]
"""Whether two answers in normal form are mathematically equal."""


def classes(
    answers: Sequence[str | None], same: Same | None = None, form: Callable[[str], str] = canonical
) -> list[str | None]:
    """Return the answers as voting classes: those of one normal ``form`` are one class, and so are those that are the ``same``.

    A form joins the first class whose members are all the same as it; shorter forms come first, and the first names its class.
    So the classes do not depend on the order of the samples, and two answers of one class are never different.

    >>> classes(["x=5", "0.5", "5", "1/2", None], same=lambda a, b: {a, b} == {"5", "x=5"})
    ['5', '1/2', '5', '1/2', None]
    """
    forms = [None if a is None else form(a) for a in answers]
    if same is None:
        return forms
    groups: list[list[str]] = []
    for new in sorted({f for f in forms if f is not None}, key=lambda f: (len(f), f)):
        for group in groups:
            if all(same(member, new) for member in group):
                group.append(new)
                break
        else:
            groups.append([new])
    name = {member: group[0] for group in groups for member in group}
    return [None if f is None else name[f] for f in forms]


def settled(plan: Plan, seen: Seen) -> int | None:
    """Return what the plan's stopping rule says (see ``maths.stopping.should_stop``): how many samples vote, or None."""
    if isinstance(plan.stop, Lengths):
        return None
    weights: list[float | None] = [*_weights(plan, seen)] if plan.stop.name == "consensus" else seen.scores
    return should_stop(plan.stop, seen.answers, weights, plan.calibration)


def select(plan: Plan, seen: Seen) -> tuple[str | None, float, dict[str, float]]:
    """Return (answer, confidence, votes, largest first) by the plan's rule; the answer is None if no sample has one.

    Confidence is the answer's share of all votes, or its probability where the rule knows it.
    """
    rule = rule_named(plan.rule)
    if rule.probabilities is not None:
        votes = rule.probabilities(seen, plan)
        answer = max(votes, key=votes.__getitem__, default=None)
        total = 1.0
    else:
        weights = _weights(plan, seen)
        last = slice(-(settled(plan, seen) or len(seen.answers)), None)
        how: Vote = "best" if rule.follow == "sample" else "weighted"
        answer = choose(seen.answers[last], weights[last], how, plan.seed)
        votes = tally(seen.answers, weights)
        total = sum(votes.values())
    confidence = votes[answer] / total if answer is not None and total else 0.0
    return answer, confidence, dict(sorted(votes.items(), key=lambda v: -v[1]))


def _weights(plan: Plan, seen: Seen) -> list[float]:
    return list(rule_named(plan.rule).weights(seen, plan))
