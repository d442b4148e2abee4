"""LaSeR in RL^V (arXiv:2510.14943): ``verify = "last_token"``, the verdict without a question.

With log p the log-prob of an unused token right behind a solution's end token, s = scale * (log p - reference) is the solution's
score, and the verdict term is the mean of (s - r)^2 over the judged rollouts, r = 1 for a right one and 0 for a wrong one. The
log-prob is predicted at the end token, which is in the batch anyway: the learner reads no token more, and one more row of logits.

The paper's balance is ``balance = "weights"``, its alpha is ``lam``. Deviations: where a step has right rollouts only, or wrong
ones only, they weigh 1 (the code halves them); a cut solution is left out of the term's mean, as it has no score (the code
counts it there); the reference is measured in the run unless it is given (the paper: -23 for Qwen2.5).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from twofold.compute.last_token import ended, last_token_scores, log_probs
from twofold.engines.base import Engine
from twofold.ranges import Finite, Positive, Share, Whole, checked
from twofold.recipes.common import Stats, relative
from twofold.text.chat import Chat
from twofold.types import Group, LastToken, Rollout, Sample

LEAST = -4.0
"""The log-prob that a score of 1 may need at most: a likelier token would compete with what the model writes."""
VARIED = 0.1
"""The scores of a group enter its advantages if their standard deviation is above this, as in the released code."""


@checked
class LastTokenOptions:
    """Options of ``verify = "last_token"``."""

    token: str | None = None
    """The token whose log-prob is the score, by its text: an added token that nothing else uses. None: the pad token."""
    scale: Positive = 0.1
    """The paper's beta_v. A right solution's log-prob is to be 1 / ``scale`` nats above the reference."""
    reference: Finite | None = None
    """The log-prob whose score is 0. None: the mean over the finished rollouts of the first step."""
    after: Whole = 0
    """The first N steps learn no score (the paper: 200 for base models)."""
    mix: Share = 0.0
    """Share of the score in the policy's advantage, the paper's tau (0.1). 0: the reward alone."""
    mix_after: Whole = 0
    """The first N steps have the reward's advantage alone (the paper: 200 after the score began)."""

    def check(self, verify: str, estimator: str) -> None:
        """Raise ValueError for options that a recipe with this ``verify`` and ``estimator`` would not read."""
        if verify != "last_token" and self != LastTokenOptions():
            raise ValueError(f'only verify = "last_token" reads last_token, but verify is {verify!r}')
        if self.mix and estimator == "vineppo":
            raise ValueError(
                "last_token.mix needs advantages of whole rollouts, and vineppo's are of steps: set mix = 0"
            )
        if self.mix_after and not self.mix:
            raise ValueError("last_token.mix_after without a mix changes nothing: set mix, or leave it out")


class Score:
    """The last-token score in one run. Whoever reads ``chat.last_token`` sees the reference as soon as it is known."""

    def __init__(self, options: LastTokenOptions, chat: Chat) -> None:
        self.options, self.chat = options, chat
        reference = math.nan if options.reference is None else options.reference
        self.how = chat.last_token = LastToken(chat.unused(options.token), options.scale, reference)

    def begin(self, engine: Engine, everyone: Sequence[Rollout]) -> Stats:
        """Measure the reference on these rollouts, unless it is known; return what was found, for the log.

        Raises ValueError if a score of 1 would need a log-prob above ``LEAST``.
        """
        whole = [r for r in everyone if ended(self.chat, r)]
        if not math.isnan(self.how.reference) or not whole:
            return {}
        found = log_probs(engine, self.chat, whole, self.how.token)
        reference = sum(found) / len(found)
        if (top := reference + 1 / self.how.scale) > LEAST:
            raise ValueError(
                f"recipe.last_token.scale = {self.how.scale:g} puts the score 1 at a log-prob of {top:.1f}, above {LEAST:g} (before "
                f"training it is {reference:.1f}): raise the scale, or name another token"
            )
        self.how.reference = reference
        return {"last_token/reference": reference, "last_token/reference_std": _std(found)}

    def learns(self, step: int) -> bool:
        """Return whether the score is learnt in this step."""
        return step >= self.options.after and not math.isnan(self.how.reference)

    def judged(self, sample: Sample, correct: bool, weight: float) -> Sample:
        """Return the sample of a finished solution with its score as a target: weight * (s - correct)^2."""
        label, how = self.how.reference + correct / self.how.scale, self.how
        return replace(sample, fits=[(len(sample.tokens) - 1, how.token, label, weight * how.scale**2)])

    def scores(self, engine: Engine, everyone: Sequence[Rollout]) -> list[float]:
        """Return the score of each rollout, cut to 0 .. 1."""
        return [score for score, _ in last_token_scores(engine, self.chat, everyone, self.how)]

    def mixed(
        self, engine: Engine, groups: list[Group], advantages: list[list[float]], step: int,
        estimate: Callable[[Sequence[float]], list[float]],
    ) -> list[list[float]]:  # fmt: skip
        """Return the advantages of each group, with the share of the scores' own in them that ``mix`` says."""
        if not self.options.mix or step < self.options.mix_after or math.isnan(self.how.reference):
            return advantages
        scores = iter(self.scores(engine, [*chain(*groups)]))
        own = [[next(scores) for _ in group] for group in groups]
        return [mixed(a, s, estimate, self.options.mix) for a, s in zip(advantages, own, strict=True)]

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps: a resumed run needs the reference, and whoever loads the model all three."""
        how = self.how
        known = not math.isnan(how.reference)
        return {"last_token": how.token, "scale": how.scale, "reference": how.reference} if known else {}

    def restore(self, state: Mapping[str, float]) -> None:
        self.how.reference = state.get("reference", self.how.reference)


def mixed(
    advantages: Sequence[float],
    scores: Sequence[float],
    estimate: Callable[[Sequence[float]], list[float]],
    share: float,
) -> list[float]:
    """Return (1 - share) of a group's advantages plus ``share`` of its scores' own; scores that hardly vary leave them as they are.

    >>> from twofold.maths.credit import grpo
    >>> [round(a, 4) for a in mixed(grpo([1, 0, 0, 0]), [0.9, 0.5, 0.1, 0.1], grpo, 0.1)]
    [1.4806, -0.4239, -0.5283, -0.5283]
    """
    if _std(scores) <= VARIED:
        return [*advantages]
    pairs = zip(advantages, relative(scores, estimate), strict=True)
    return [(1 - share) * a + share * s for a, s in pairs]


def _std(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
