"""RL^V: value-free RL and a generative verifier in one model, from the same rollouts, in the same forward pass.

Paper: "Putting the Value Back in RL" (arXiv:2505.04842). Objective: L = L_RL + lambda * CE(verdict token).
The judgement question and its verdict are appended to the solution, which is in the batch anyway. Attention is causal, so
the solution's log-probs do not change.

What the paper leaves open is an option here or one of these choices:

* Only the verdict token is trained, not the token that ends the turn.
* The verification loss is a mean over the judged rollouts. By default every rollout is judged once (``balance``).
* lambda may warm up (``lam_warmup``), and the verdict may be learnt before the policy changes (``verify_warmup``). One
  optimiser step serves both terms.
* By default a truncated rollout counts as wrong (``truncated``).
* ``refills`` is not in the paper: it is DAPO's dynamic sampling (arXiv:2503.14476).

Deviations: a rollout whose reward could not be computed (the grader ran out of time or failed) is left out of both terms.
With VinePPO a step whose value could not be computed is joined to the step before it, and the tokens before the first known
value have no credit.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, field, replace
from functools import partial
from itertools import chain
from typing import Annotated, Literal

from twofold.compute.adversary import negatives
from twofold.compute.judge import Judging, p_yes, question
from twofold.compute.last_token import ended
from twofold.compute.rollout import as_read, continue_graded, rollouts, value
from twofold.engines.base import Engine, PolicyEngine
from twofold.maths.credit import differences, grpo, mean, rloo, spread
from twofold.maths.seeds import derive
from twofold.maths.stats import verifier_metrics
from twofold.maths.step_credit import class_weights
from twofold.ranges import Count, NonNegative, Range, Whole, checked
from twofold.recipes import common
from twofold.recipes.last_token import LastTokenOptions, Score
from twofold.recipes.pairs import Pairs
from twofold.tasks.stream import MAX_DRAWS
from twofold.text.chat import Chat
from twofold.text.segments import sentence_ends
from twofold.types import Collected, Grade, Group, Problem, Rollout, Sample, Sampling, Task


@checked
class RLV:
    """Options of the recipe.

    ``verify = "none"`` is plain RL, the baseline. The paper's ablations are ``bce`` and ``regression`` (a scalar head), and
    ``separate`` (a second model). ``last_token`` asks nothing (see ``recipes.last_token``), ``pairs`` which of two rollouts is right
    (see ``recipes.pairs``).
    """

    name: Literal["rlv"] = "rlv"
    estimator: Literal["rloo", "grpo", "dr_grpo", "vineppo"] = "rloo"
    verify: Literal["generative", "bce", "regression", "separate", "last_token", "pairs", "none"] = "generative"
    lam: NonNegative = 1.0
    lam_warmup: Whole = 0
    """Steps over which lambda rises linearly to ``lam``."""
    verify_warmup: Whole = 0
    """The first N steps learn the verdict on rollouts of the starting model, whose own tokens are targets too: they keep the
    policy as it is, which an unfamiliar verdict would change."""
    balance: Literal["all", "balanced", "weights"] = "all"
    """Judge every rollout, or as many correct as wrong ones: all of the rarer kind in a step. With ``weights`` every rollout is
    judged, and both kinds weigh the same in a step."""
    truncated: Literal["wrong", "exclude"] = "wrong"
    """A rollout that the token limit cut is graded as it is (no answer: wrong), or left out of both terms (``exclude``)."""
    adversarial: Annotated[float, Range(ge=0, le=0.5)] = 0.0
    """Share of the verdicts that are about adversarial solutions (see ``text.adversarial``), all No. With ``balanced`` they take
    the places of wrong rollouts."""
    rollouts: Count = 8
    """Rollouts per problem."""
    refills: Annotated[int, Range(ge=0, lt=MAX_DRAWS)] = 0
    """How many times a step may draw as many problems again, to replace groups whose rewards are all equal. With ``refills``
    such groups are not in the policy's term; their verdicts are still learnt."""
    vine_k: Count = 9
    """VinePPO: continuations per step boundary."""
    last_token: LastTokenOptions = field(default_factory=LastTokenOptions)
    score_every: Whole = 5
    """Score the rollouts every N steps, for the log only (0: never)."""

    def __post_init__(self) -> None:
        if self.rollouts < 2 and self.estimator != "vineppo":
            raise ValueError(f"rollouts must be at least 2 for {self.estimator}: a group of one has no baseline")
        if self.verify_warmup and self.verify not in ("generative", "pairs", "last_token"):
            raise ValueError(f"verify_warmup teaches the verdict as a token, but verify is {self.verify!r}")
        self.last_token.check(self.verify, self.estimator)
        if self.adversarial and (self.verify in ("last_token", "pairs") or self.balance == "weights"):
            raise ValueError("adversarial does not go with last_token, pairs or weights: set recipe.adversarial=0")
        if self.verify == "pairs" and self.balance != "all":
            raise ValueError("pairs have as many right solutions as wrong ones: leave out balance")
        if self.refills and self.estimator == "vineppo":
            raise ValueError("refills replaces groups of equal rewards, which VinePPO learns from: set refills = 0")

    def build(self, setup: common.Setup) -> Recipe:
        if self.verify == "separate":
            setup.second("verifier")
        if self.verify in ("bce", "regression"):
            setup.head(self.verify)
        reference = setup.reference()
        start = (reference or setup.frozen()) if self.verify_warmup else None
        return Recipe(self, setup.task, setup.chat, setup.sampling, reference, setup.spare, start)


class Recipe(common.Recipe):
    """RL^V in one run. ``spare`` gives more problems for a step, as ``Setup.spare`` does, for ``refills``; ``start`` is an
    engine of the starting model, for ``verify_warmup``."""

    def __init__(
        self,
        config: RLV,
        task: Task,
        chat: Chat,
        sampling: Sampling,
        reference: Engine | None = None,
        spare: Callable[[int, int], list[Problem]] = lambda step, draw: [],
        start: PolicyEngine | None = None,
    ) -> None:
        super().__init__(task, chat, sampling, config.rollouts, reference)
        self.config, self.spare, self.start = config, spare, start
        self.last = Score(config.last_token, chat) if config.verify == "last_token" else None
        self.pairs = Pairs(chat, sampling.seed) if config.verify == "pairs" else None
        self.judging = Judging("pairs") if self.pairs else None

    def collect(self, engine: Engine, problems: Sequence[Problem], step: int) -> Collected:
        sampling = replace(self.sampling, seed=derive(self.sampling.seed, step))
        if self.start is not None and step < self.config.verify_warmup:
            groups = self._drawn(self.start, problems, sampling)
            self.start.rest()
            return self._warm(engine, groups, step)
        groups = self._groups(engine, problems, sampling, step)
        stats = common.describe(groups)
        usable = common.gradable(groups)
        everyone = [r for g in usable for r in g]
        if self.last:
            stats |= self.last.begin(engine, everyone)
        judged, lam = self._judged(everyone, step), self._lambda(step)
        if self.config.score_every and step % self.config.score_every == 0:
            stats |= self.pairs.scores(engine) if self.pairs else self._score(engine, everyone)
        vine = self.config.estimator == "vineppo"
        credit = self._vine(engine, usable, sampling) if vine else self._outcome(engine, usable, step)
        if self.config.refills:
            credit, stats["refills"] = self._informative(usable, credit, len(problems)), len(groups) / len(problems) - 1
        policy, apart = list[Sample](), list[Sample]()
        for i, (rollout, advantages) in enumerate(zip(everyone, credit, strict=True)):
            sample = common.context_sample(rollout) if advantages is None else common.policy_sample(rollout, advantages)
            if i in judged:
                sample = self._judge(sample, rollout, lam * judged[i], apart)
            if advantages is not None or any(sample.targets) or sample.values or sample.fits:
                policy.append(sample)
        if self.reference is not None:
            common.refer(policy, self.reference, self.sampling.temperature)
        apart += [self._verdict(r, lam) for r in self._negatives(everyone, len(judged), step)]
        separate = self.config.verify == "separate"
        samples = {"policy": policy, "verifier": apart} if separate else {"policy": policy + apart}
        stats |= {} if self.config.verify == "none" else {"lambda": lam}
        return Collected(samples, stats, groups)

    def _warm(self, engine: Engine, groups: list[Group], step: int) -> Collected:
        """Return samples of the starting model's rollouts: lambda times the verdict's mean loss, and the mean NLL of the rollouts'
        tokens. A score's loss is a mean by itself; a verdict token is one target among a rollout's many."""
        everyone, samples = [r for g in common.gradable(groups) for r in g], []
        stats = common.describe(groups) | (self.last.begin(engine, everyone) if self.last else {})
        judged, lam, apart = self._judged(everyone, step), self._lambda(step), list[Sample]()
        for i, rollout in enumerate(everyone):
            sample, weight = common.target_sample(rollout), lam * (1 if self.last else len(rollout.completion.tokens))
            samples.append(self._judge(sample, rollout, weight * judged[i], apart) if i in judged else sample)
        weight = lam * mean([len(r.completion.tokens) for r in everyone])
        apart += [self._verdict(r, weight) for r in self._negatives(everyone, len(judged), step)]
        return Collected({"policy": samples + apart}, stats, groups)

    def _groups(self, engine: Engine, problems: Sequence[Problem], sampling: Sampling, step: int) -> list[Group]:
        """Return the rollouts of the problems, and of spare problems while too few groups have different rewards."""
        groups: list[Group] = []
        for draw in range(self.config.refills + 1):
            if draw:
                problems, sampling = self.spare(step, draw), replace(sampling, seed=derive(sampling.seed, "refill"))
            groups += self._drawn(engine, problems, sampling)
            if sum(map(_differ, groups)) >= len(problems):
                break
        return groups

    def _drawn(self, engine: Engine, problems: Sequence[Problem], sampling: Sampling) -> list[Group]:
        """Return a group of rollouts for each problem, without the reward of those that ``truncated`` excludes."""
        return [[self._as_counted(r) for r in g] for g in rollouts(engine, self.chat, self.task, problems, sampling)]

    def _as_counted(self, rollout: Rollout) -> Rollout:
        excluded = self.config.truncated == "exclude" and rollout.completion.finish == "length"
        return replace(rollout, grade=Grade(None, rollout.grade.label)) if excluded else rollout

    def _informative(
        self, groups: list[Group], credit: Sequence[list[float] | None], most: int
    ) -> list[list[float] | None]:
        """Return the credit of the first ``most`` groups whose rewards differ; the rollouts of all other groups have None."""
        rows, kept = iter(credit), 0
        out: list[list[float] | None] = []
        for group in groups:
            own = [next(rows) for _ in group]
            keep = _differ(group) and kept < most
            kept += keep
            out += own if keep else [None] * len(group)
        return out

    def _outcome(self, engine: Engine, groups: list[Group], step: int) -> list[list[float] | None]:
        """Return the credit per token of every rollout: one advantage on all its tokens."""
        estimate = rloo if self.config.estimator == "rloo" else partial(grpo, std=self.config.estimator == "grpo")
        advantages = [common.relative(common.rewards_of(group), estimate) for group in groups]
        if self.last:
            advantages = self.last.mixed(engine, groups, advantages, step, estimate)
        return [common.whole(a, r) for a, r in zip(chain(*advantages), chain(*groups), strict=True)]

    def _vine(self, engine: Engine, groups: list[Group], sampling: Sampling) -> list[list[float] | None]:
        """Return VinePPO's credit: the change of value in each step. Values are means of ``vine_k`` continuations.

        All continuations are drawn in one engine call.
        """
        everyone = [r for g in groups for r in g]
        ends = [sentence_ends(self.chat.pieces(r.completion.tokens)) for r in everyone]
        more = replace(sampling, n=self.config.vine_k, seed=derive(sampling.seed, "values"))
        starts = [[0, *es[:-1]] for es in ends]
        groups_at = continue_graded(engine, self.chat, self.task, everyone, starts, more)
        values = [[value(group) for group in own] for own in groups_at]
        return [vine_credit(*row) for row in zip(everyone, starts, values, strict=True)]

    def _judged(self, everyone: list[Rollout], step: int) -> dict[int, float]:
        """Return index -> weight of the rollouts whose verdict is a target in this step; the grader must have decided them."""
        if self.pairs:
            return self.pairs.drawn(everyone, step)
        if self.config.verify == "none" or (self.last and not self.last.learns(step)):
            return {}
        can = [i for i, r in enumerate(everyone) if r.grade.decided and (not self.last or ended(self.chat, r))]
        right, wrong = ([i for i in can if everyone[i].grade.correct == is_right] for is_right in (True, False))
        if self.config.balance != "balanced":
            n, m = len(right), len(wrong)
            a, b = class_weights(n, m, n**2, m**2) if self.config.balance == "weights" else (1.0, 1.0)
            return dict.fromkeys(right, a) | dict.fromkeys(wrong, b)
        rng, few = random.Random(f"{self.sampling.seed}/{step}"), min(len(right), len(wrong))
        chosen = [*rng.sample(right, few), *rng.sample(wrong, few - round(2 * few * self.config.adversarial))]
        return dict.fromkeys(chosen, 1.0)

    def _negatives(self, everyone: list[Rollout], judged: int, step: int) -> list[Rollout]:
        """Return the adversarial solutions of a step in which ``judged`` rollouts are judged."""
        seed, most = derive(self.sampling.seed, f"adversarial {step}"), self.sampling.max_tokens
        return negatives(self.chat, self.task, everyone, judged, self.config.adversarial, seed, most)

    def _lambda(self, step: int) -> float:
        return self.config.lam * min(1.0, (step + 1) / (self.config.lam_warmup or 1))

    def _judge(self, sample: Sample, rollout: Rollout, lam: float, apart: list[Sample]) -> Sample:
        """Return the sample with the verdict. What can only be asked about in a sample of its own is added to ``apart``: a
        separate verifier's question, and that about a solution with control tokens inside, which the judge does not read."""
        if self.config.verify == "separate" or as_read(self.chat, rollout) is not rollout:
            apart.append(self._verdict(rollout, lam))
            return sample
        return self._with_verdict(sample, rollout, lam)

    def _verdict(self, rollout: Rollout, lam: float) -> Sample:
        """Return a sample of which only the verdict is learnt."""
        return self._with_verdict(common.context_sample(as_read(self.chat, rollout)), rollout, lam)

    def _with_verdict(self, sample: Sample, rollout: Rollout, lam: float) -> Sample:
        """Append the question, and the verdict token as a target (for a scalar head: the label instead of the token)."""
        correct = rollout.grade.correct
        if self.last:
            return self.last.judged(sample, correct, lam)
        tokens = self.pairs.asked(rollout) if self.pairs else question(self.chat, rollout)
        if self.config.verify in ("bce", "regression"):
            return replace(common.extended_sample(sample, tokens), values=[(len(tokens) - 1, float(correct), lam)])
        verdict = (self.chat.a_b_ids if self.pairs else self.chat.yes_no_ids)[0 if correct else 1]
        asked = common.extended_sample(sample, [*tokens, verdict])
        asked.targets[-1] = lam
        return asked

    def _score(self, engine: Engine, everyone: list[Rollout]) -> common.Stats:
        if self.config.verify not in ("generative", "last_token") or len(everyone) < 2:
            return {}
        scores = self.last.scores(engine, everyone) if self.last else p_yes(engine, self.chat, everyone)
        found = verifier_metrics(scores, [r.grade.correct for r in everyone])
        return {f"verifier/{name}": value for name, value in asdict(found).items()}

    def state(self) -> dict[str, float]:
        return self.last.state() if self.last else {}

    def restore(self, state: Mapping[str, float]) -> None:
        if self.last:
            self.last.restore(state)
        else:
            super().restore(state)


def vine_credit(rollout: Rollout, starts: Sequence[int], values: Sequence[float]) -> list[float]:
    """Return the credit per token from the values at ``starts``, the token indices where a rollout's steps begin.

    A value that is NaN is left out. Starts 0, 2, 3 of 4 tokens, values 0.5, NaN, 0.25, reward 1: the first two steps are
    one, with credit 0.25 - 0.5 on each of its three tokens; the last token has 1 - 0.25.
    """
    known = [(start, value) for start, value in zip(starts, values, strict=True) if not math.isnan(value)]
    length = len(rollout.completion.tokens)
    if not known:
        return [0.0] * length
    first = known[0][0]
    steps = differences([value for _, value in known], final=rollout.grade.known)
    ends = [start - first for start, _ in known[1:]] + [length - first]
    return [0.0] * first + spread(steps, ends, length - first)


def _differ(group: Group) -> bool:
    """Return whether a group has at least two different known rewards."""
    return len({r.grade.reward for r in group} - {None}) > 1
