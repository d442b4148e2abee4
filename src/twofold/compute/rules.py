"""Selection rules: what the vote of each sample weighs, given what is known of a problem's samples.

A rule of your own is a ``Rule`` in a file of yours. A plan names it as ``FILE.py:NAME``, in ``Plan(rule="mine.py:best")`` or in
the short form ``mine.py:best-16``. See ``examples/rule.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from twofold import source
from twofold.maths.confidence import Traces, borda, keep_top
from twofold.maths.posterior import Calibration, posterior


class Settings(Protocol):
    """What a rule may read of the ``Plan`` that it serves."""

    @property
    def n(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def calibration(self) -> Calibration: ...
    @property
    def traces(self) -> Traces: ...


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a problem's samples, in the order they came.

    ``answers`` are voting classes (see ``select.classes``), None where a sample has none. ``scores`` are P(Yes), None where
    the model was not asked. ``certainty`` is the mean token certainty, and ``traces`` the DeepConf score of the token
    confidences; both are empty unless the rule needs them.
    """

    answers: list[str | None]
    scores: list[float | None]
    certainty: list[float] = field(default_factory=list)
    traces: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Rule:
    """A way to choose one of the sampled answers.

    ``weights(seen, plan)`` returns what the vote of each sample weighs, at least 0; samples without an answer do not vote.
    The answer with the largest sum of weights wins, and ties are broken at random from ``plan.seed``. To give an answer that
    n samples have the number v, give each of them the weight v / n.
    """

    weights: Callable[[Seen, Settings], Sequence[float]]
    needs: Literal["answers", "verdicts", "traces"] = "answers"
    """What the rule reads: answers alone, the model's verdicts (``Seen.scores``), or its token confidences
    (``Seen.certainty``, ``Seen.traces``). Verdicts are asked for, and confidences recorded, only if they are needed."""
    follow: Literal["votes", "sample"] = "votes"
    """``sample``: the answer of the one sample of largest weight wins, whatever the sums."""
    bounded: bool = False
    """No weight is above 1, so that votes / n is a share."""
    probabilities: Callable[[Seen, Settings], dict[str, float]] | None = None
    """P(this is the right answer) of every answer, for a rule that knows it: it takes the place of the votes."""


def _verdicts(seen: Seen, plan: Settings) -> list[float]:
    return [score or 0.0 for score in seen.scores]


RULES = {
    "majority": Rule(lambda seen, plan: [1.0] * len(seen.answers), bounded=True),
    "best": Rule(_verdicts, "verdicts", follow="sample", bounded=True),
    "weighted": Rule(_verdicts, "verdicts", bounded=True),
    "posterior": Rule(
        _verdicts, "verdicts", probabilities=lambda seen, plan: posterior(seen.answers, seen.scores, plan.calibration)
    ),
    "certain": Rule(lambda seen, plan: seen.certainty, "traces", follow="sample"),
    "borda": Rule(lambda seen, plan: borda(seen.answers, seen.certainty, plan.traces.power), "traces"),
    "deepconf": Rule(lambda seen, plan: keep_top(seen.answers, seen.traces, plan.traces.keep), "traces"),
}
"""The rules by name. ``posterior`` weighs by verdicts where a stopping rule counts votes."""


def rule_named(name: str) -> Rule:
    """Return a rule of ``RULES``, or the one that ``FILE.py:NAME`` names, whose file is run.

    Raises ValueError for a name that is neither, and what ``source.load`` raises.
    """
    if name in RULES:
        return RULES[name]
    check_name(name)
    found = source.load(name)
    if not isinstance(found, Rule):
        raise ValueError(f"{name} must be a Rule, such as Rule(weights, needs='verdicts'), not {type(found).__name__}")
    return found


def check_name(name: str) -> None:
    """Raise ValueError for the name of a rule that is neither in ``RULES`` nor of the form ``FILE.py:NAME``."""
    if name not in RULES and not source.is_source(name):
        known = ", ".join(map(repr, RULES))
        raise ValueError(f"rule must be one of {known}, or FILE.py:NAME for a rule of your own, got {name!r}")
