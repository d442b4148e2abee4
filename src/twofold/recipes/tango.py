"""Tango: a generator and a verifier of its steps, trained in turns by RL, with one model in both roles or with two.

Paper: "RL Tango" (arXiv:2505.15034). The generator writes a solution in steps. It is paid for a right answer and, with a
weight alpha that decays, for the verifier's verdict on each step; the two credits are normalised separately, then mixed. The
verifier writes a verdict on each step and one on the whole solution. It is paid if the verdict on the whole agrees with the
graded answer, and for its format. It never sees the reference answer or a label of a step.

The published setting is ``share = False`` with the defaults below. Deviations from the paper and its released code:

* The question to the verifier follows the solution in the same conversation, through the chat template. The paper gives the
  verifier a prompt of its own.
* The reward of a step belongs to the token with the step's last character (the paper's I(k); the code pays one token later).
* Verdicts count only if every step block has one and there is one for each step.
* REINFORCE++ has its step term (in the released code an indexing defect makes it 0).
* Several verifications of one solution are averaged before they are normalised.
* A group that has only one judged step in all has no step credit.
* Rollouts that could not be graded are left out.
* There is no entropy bonus.
* ``loss.beta`` (published: 0.001) is the weight of the KL to each role's starting model, estimated by k3 for every estimator
  (the released code has half the squared log-ratio for REINFORCE++).
* The generator learns the format in a run of its own before this one, with the ``sft`` recipe.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Literal

from twofold.compute.rollout import continue_graded, rollouts, success
from twofold.compute.verify import Verification, mean_verdicts, step_ends, verify
from twofold.engines.base import Engine
from twofold.maths.credit import grpo, mean, rloo, spread, standardise, to_go
from twofold.maths.seeds import derive
from twofold.maths.step_credit import StepCredit, class_weights, decayed, grpo_steps, pooled, rloo_steps, step_rewards
from twofold.ranges import Count, NonNegative, PositiveShare, Range, Share, Whole, checked
from twofold.recipes import common
from twofold.recipes.common import Setup, Stats, policy_sample, relative, rewards_of, target_sample, whole
from twofold.text.chat import Chat
from twofold.text.prompts import VERIFY
from twofold.text.steps import Critique, Cut, solution_format
from twofold.types import Collected, Completion, Group, Problem, Rollout, Sample, Sampling, Task

Role = Literal["generator", "verifier"]

COUNTABLE = 0.6
"""A verifier must write one verdict per step if the solution's ``solution_format`` is at least this, as in the released code."""


@checked
class Tango:
    """Options of the recipe.

    Baselines: ``alpha = 0`` is plain RL; ``verifier_updates = 0`` with ``verifier_warmup = 0`` and ``share = false`` freezes
    the verifier; ``generator_updates = 0`` freezes the generator.
    """

    name: Literal["tango"] = "tango"
    share: bool = True
    """Train one model in both roles; false: train two models."""
    verifier: str | None = None
    """``share = false``: the model that the verifier starts from, which must have the generator's tokenizer. None: ``model``."""
    estimator: Literal["grpo", "rloo", "reinforce++"] = "grpo"
    rollouts: Annotated[int, Range(ge=2)] = 5
    """Group size: solutions of a problem in a generator's update, verifications of a solution in a verifier's update."""
    generator_updates: Whole = 3
    """Updates of the generator in each turn. They come first."""
    verifier_updates: Whole = 1
    """Updates of the verifier in each turn."""
    verifier_warmup: Whole = 40
    """Updates of the verifier before the first turn."""
    alpha: Share = 0.1
    """Weight of the step credit at the start (published for ``reinforce++``: 0.5). It decays exponentially over the generator's
    updates, towards ``alpha_min``."""
    alpha_min: PositiveShare = 0.001
    credit: StepCredit = "pooled"
    """How verdicts become credit, see ``maths.step_credit``. Values other than the published ``pooled`` need ``grpo``."""
    verifications: Count = 1
    """Verifications of each solution in a generator's update; their verdicts are averaged."""
    verifier_learns: Literal["rl", "sft"] = "rl"
    """How the verifier learns: from the rewards of all its verifications (``rl``), or by cross-entropy on the right ones
    (``sft``: rejection sampling)."""
    format: NonNegative = 0.8
    """Weight of the verifier's format score; a right final verdict has weight 1."""
    class_weights: bool = True
    """Weight the verifications of right and of wrong solutions by 1 / sqrt(count), so that the rarer class counts more."""
    ema: Annotated[float, Range(ge=0, lt=1)] = 0.8
    """Decay of the moving averages of these counts."""
    consistency: NonNegative = 0.0
    """Reward of a final verdict that agrees with the verdicts on the steps."""
    step_labels: NonNegative = 0.0
    """Weight of the share of steps whose verdict agrees with a label from continuations, see ``monte_carlo``."""
    continuations: Count = 4
    """Continuations from every step, for these labels."""
    label_ratio: Share = 0.0
    """A step is labelled right if the value after it is more than this share of the value before it."""
    cut: Cut = "tags"
    """Where the generator's steps are: between tags, or one on each line."""
    question: str = VERIFY
    """Question to the verifier; ``{steps}`` becomes the number of steps."""
    verifier_tokens: Count = 1024
    """Token limit of a verification."""

    def __post_init__(self) -> None:
        if not self.generator_updates and not self.verifier_updates:
            raise ValueError("a turn needs an update: generator_updates and verifier_updates are both 0")
        if 0 < self.alpha < self.alpha_min:
            raise ValueError(f"alpha decays to alpha_min, which must be at most {self.alpha}, got {self.alpha_min}")
        if self.credit != "pooled" and self.estimator != "grpo":
            raise ValueError(f'credit = "{self.credit}" goes with estimator = "grpo" only, got "{self.estimator}"')
        if self.share and self.verifier is not None:
            raise ValueError("share = true has one model in both roles: leave out verifier, or set share = false")

    def build(self, setup: Setup) -> Recipe:
        verifier = None if self.share else setup.second("verifier", self.verifier)
        roles = ("policy",) if self.share else ("policy", "verifier")
        references = {role: reference for role in roles if (reference := setup.reference(role)) is not None}
        return Recipe(self, setup.task, setup.chat, setup.sampling, setup.steps, verifier, references)


def turn(config: Tango, step: int) -> tuple[Role, int]:
    """Return whose update a step is, and how many updates of that role come before it.

    >>> [turn(Tango(verifier_warmup=1), s) for s in range(6)]
    [('verifier', 0), ('generator', 0), ('generator', 1), ('generator', 2), ('verifier', 1), ('generator', 3)]
    """
    if step < config.verifier_warmup:
        return "verifier", step
    g, v = config.generator_updates, config.verifier_updates
    turns, place = divmod(step - config.verifier_warmup, g + v)
    if place < g:
        return "generator", turns * g + place
    return "verifier", config.verifier_warmup + turns * v + place - g


class Recipe(common.Recipe):
    """Tango in one run of ``steps`` steps, over which alpha decays.

    ``verifier`` is the engine of the second model, None where one model has both roles. ``references`` are the engines, by
    role, that give the log-probs for the KL term.
    """

    def __init__(
        self,
        config: Tango,
        task: Task,
        chat: Chat,
        sampling: Sampling,
        steps: int,
        verifier: Engine | None = None,
        references: Mapping[str, Engine] | None = None,
    ) -> None:
        if config.share != (verifier is None):
            raise ValueError("share = false needs an engine of the second model, share = true must not have one")
        super().__init__(task, chat, sampling)
        self.config, self.verifier = config, verifier
        self.references = references or {}
        self.averages: dict[str, float] = {}
        self.generator_steps = sum(turn(config, step)[0] == "generator" for step in range(steps))

    def updates(self, steps: int) -> dict[str, int]:
        verifier = sum(turn(self.config, step)[0] == "verifier" for step in range(steps))
        return {} if self.config.share else {"policy": steps - verifier, "verifier": verifier}

    def state(self) -> dict[str, float]:
        """Return the moving averages of the numbers of right and wrong solutions, which the class weights need."""
        return dict(self.averages)

    def restore(self, state: Mapping[str, float]) -> None:
        self.averages = dict(state)

    def collect(self, engine: Engine, problems: Sequence[Problem], step: int) -> Collected:
        sampling = replace(self.sampling, seed=derive(self.sampling.seed, step))
        role, done = turn(self.config, step)
        if role == "generator":
            samples, stats, groups = self._generator(engine, problems, sampling, done)
        else:
            samples, stats, groups = self._verifier(engine, problems, sampling)
        model = "policy" if role == "generator" or self.config.share else "verifier"
        if model in self.references:
            common.refer(samples, self.references[model], self.sampling.temperature)
        return Collected({model: samples}, stats | {"tango/verifier_turn": float(role == "verifier")}, groups)

    # ------------------------------------------------------------ the generator's update

    def _generator(
        self, engine: Engine, problems: Sequence[Problem], sampling: Sampling, done: int
    ) -> tuple[list[Sample], Stats, list[Group]]:
        config = self.config
        drawn = rollouts(engine, self.chat, self.task, problems, replace(sampling, n=config.rollouts))
        stats = common.describe(drawn) | {"tango/tokens": _tokens(r.completion for g in drawn for r in g)}
        groups = common.gradable(drawn)
        everyone = [r for g in groups for r in g]
        ends = [step_ends(self.chat, r, config.cut) for r in everyone]
        alpha = decayed(config.alpha, config.alpha_min, done, self.generator_steps)
        verdicts: list[list[float] | None] = [None] * len(everyone)
        if alpha:
            verdicts, more = self._verdicts(engine, everyone, ends, sampling)
            stats |= more
        steps = self._step_credit(groups, ends, verdicts)
        credit = [
            [(1 - alpha) * a + alpha * s for a, s in zip(*both, strict=True)]
            for both in zip(self._outcome_credit(groups), steps, strict=True)
        ]
        samples = [policy_sample(r, a) for r, a in zip(everyone, credit, strict=True)]
        return samples, stats | {"tango/alpha": alpha, "tango/steps": mean([len(e) for e in ends])}, drawn

    def _verdicts(
        self, engine: Engine, everyone: list[Rollout], ends: Sequence[Sequence[int]], sampling: Sampling
    ) -> tuple[list[list[float] | None], Stats]:
        """Return the mean verdict on every step of each solution, and numbers for the log.

        A solution has None if it has no steps or none of its verifications can be used.
        """
        config = self.config
        asked = [i for i, e in enumerate(ends) if e]
        solutions, counts = [everyone[i] for i in asked], [len(ends[i]) for i in asked]
        limit = replace(
            sampling,
            n=config.verifications,
            max_tokens=config.verifier_tokens,
            seed=derive(sampling.seed, "verifications"),
        )
        verifications = verify(self.verifier or engine, self.chat, solutions, counts, config.question, limit)
        verdicts: list[list[float] | None] = [None] * len(everyone)
        for i, k, drawn in zip(asked, counts, verifications, strict=True):
            verdicts[i] = mean_verdicts(drawn, k)
        usable = [v for v in verdicts if v is not None]
        return verdicts, verifier_stats(solutions, counts, verifications) | {
            "tango/judged": len(usable) / max(1, len(everyone)),
            "tango/accepted": mean([(1 + j) / 2 for v in usable for j in v]),
        }

    def _outcome_credit(self, groups: list[Group]) -> list[list[float]]:
        """Return the outcome credit per rollout and token.

        It is normalised within each group; with REINFORCE++ it is normalised over all tokens of this update.
        """
        everyone = [r for g in groups for r in g]
        if self.config.estimator == "reinforce++":
            return pooled(standardise, [whole(r.grade.known, r) for r in everyone])
        estimate = grpo if self.config.estimator == "grpo" else rloo
        advantages = [a for g in groups for a in relative(rewards_of(g), estimate)]
        return [whole(a, r) for a, r in zip(advantages, everyone, strict=True)]

    def _step_credit(
        self, groups: list[Group], ends: Sequence[Sequence[int]], verdicts: Sequence[Sequence[float] | None]
    ) -> list[list[float]]:
        """Return the step credit per rollout and token: all tokens of a step have the step's credit.

        Tokens after the last step have none, nor has a rollout without verdicts.
        """
        sizes = [len(r.completion.tokens) for g in groups for r in g]
        credit = [[0.0] * n for n in sizes]
        judged = [i for i, v in enumerate(verdicts) if v is not None]

        def per_token(i: int, steps: Sequence[float]) -> list[float]:
            return spread([*steps, 0.0], [*ends[i], sizes[i]], sizes[i])

        if self.config.estimator == "reinforce++":
            rows = pooled(standardise, [per_token(i, to_go(step_rewards(verdicts[i] or []))) for i in judged])
            for i, row in zip(judged, rows, strict=True):
                credit[i] = row
            return credit
        first = 0
        for group in groups:
            members = [i for i in judged if first <= i < first + len(group)]
            group_verdicts = [verdicts[i] or [] for i in members]
            steps = (
                grpo_steps(group_verdicts, self.config.credit)
                if self.config.estimator == "grpo"
                else rloo_steps(group_verdicts)
            )
            for i, row in zip(members, steps, strict=True):
                credit[i] = per_token(i, row)
            first += len(group)
        return credit

    # ------------------------------------------------------------ the verifier's update

    def _verifier(
        self, engine: Engine, problems: Sequence[Problem], sampling: Sampling
    ) -> tuple[list[Sample], Stats, list[Group]]:
        config = self.config
        groups = rollouts(engine, self.chat, self.task, problems, replace(sampling, n=1))
        stats = common.describe(groups) | {"tango/tokens": _tokens(r.completion for (r,) in groups)}
        everyone = [r for (r,) in groups if r.grade.decided]
        ends = [step_ends(self.chat, r, config.cut) for r in everyone]
        labels: list[list[bool | None]] = [[None] * len(e) for e in ends]
        if config.step_labels:
            labels, more = self._labels(engine, everyone, ends, sampling)
            stats["tango/tokens"] += more
        counts = [len(e) for e in ends]
        seed = derive(sampling.seed, "verifications")
        limit = replace(sampling, n=config.rollouts, max_tokens=config.verifier_tokens, seed=seed)
        verifications = verify(self.verifier or engine, self.chat, everyone, counts, config.question, limit)
        weights = self._weights([r.grade.correct for r in everyone])
        samples: list[Sample] = []
        rewards: list[float] = []
        for r, k, drawn, label, weight in zip(everyone, counts, verifications, labels, weights, strict=True):
            counted = solution_format(r.text, config.cut) >= COUNTABLE
            right = r.grade.correct
            group_rewards = [self.reward(v.critique, right, k, counted, label) for v in drawn]
            rewards += group_rewards
            for v, a in zip(drawn, grpo(group_rewards), strict=True):
                written = replace(r, prompt=v.prompt, completion=v.completion)
                if config.verifier_learns == "rl":
                    samples.append(policy_sample(written, whole(weight * a, written)))
                elif v.critique.final == right and v.critique.format(k, counted) == 1:
                    samples.append(target_sample(written, weight))
        flat = [len({*rewards[i : i + config.rollouts]}) < 2 for i in range(0, len(rewards), config.rollouts)]
        stats |= verifier_stats(everyone, counts, verifications) | {
            "verifier/reward": mean(rewards),
            "verifier/frac_reward_zero_std": mean(flat),
            "verifier/learnt": len(samples) / max(1, len(rewards)),
            "tango/steps": mean(counts),
        }
        return samples, stats, groups

    def _labels(
        self, engine: Engine, everyone: Sequence[Rollout], ends: Sequence[Sequence[int]], sampling: Sampling
    ) -> tuple[list[list[bool | None]], float]:
        """Return a label for every step, from continuations before and after it, and the number of tokens that they wrote."""
        n, ratio = self.config.continuations, self.config.label_ratio
        more = replace(sampling, n=n, seed=derive(sampling.seed, "labels"))
        groups = continue_graded(engine, self.chat, self.task, everyone, [[0, *own] for own in ends], more)
        written = _tokens(r.completion for own in groups for g in own for r in g) - n * sum(map(sum, ends))
        return [monte_carlo([success(g) for g in own], ratio) for own in groups], written

    def reward(
        self, critique: Critique, right: bool, steps: int, counted: bool, labels: Sequence[bool | None]
    ) -> float:
        """Return the reward of a verification (eq. 8): 1 for a right final verdict + ``format`` * its format score.

        Without a final verdict the reward is 0. ``consistency`` and ``step_labels`` add to it if there is a verdict for each
        step. ``counted`` says that the format score depends on the number of verdicts (see ``COUNTABLE``).
        """
        config = self.config
        if critique.final is None:
            return 0.0
        reward = float(critique.final == right) + config.format * critique.format(steps, counted)
        verdicts = critique.step_verdicts(steps)
        if verdicts is None:
            return reward
        agrees = [v == label for v, label in zip(verdicts, labels, strict=True) if label is not None]
        reward += config.consistency * (critique.final == all(verdicts))
        return reward + (config.step_labels * mean(agrees) if agrees else 0.0)

    def _weights(self, right: Sequence[bool]) -> list[float]:
        """Return the weight of each solution's advantages, by its class; this step updates the moving averages first."""
        if not self.config.class_weights:
            return [1.0] * len(right)
        counts, averages = {"right": sum(right), "wrong": len(right) - sum(right)}, self.averages
        for name, n in counts.items():
            averages[name] = self.config.ema * averages.get(name, float(n)) + (1 - self.config.ema) * n
        if_right, if_wrong = class_weights(counts["right"], counts["wrong"], averages["right"], averages["wrong"])
        return [if_right if ok else if_wrong for ok in right]


def monte_carlo(values: Sequence[float], ratio: float = 0.0) -> list[bool | None]:
    """Return labels of K steps from the values at their K + 1 boundaries (StepWiser, arXiv:2508.19229, with VinePPO's values).

    A step is right if the value after it is more than ``ratio`` times the value before it; with ratio 0, if any continuation
    after it is right. The label is None where a value is NaN.

    >>> monte_carlo([0.5, 0.5, 0.25, 0.0]), monte_carlo([0.5, 0.5, 0.25, 0.0], ratio=0.75)
    ([True, True, False], [True, False, False])
    """
    return [None if math.isnan(a + b) else b > ratio * a for a, b in pairwise(values)]


def verifier_stats(
    solutions: Sequence[Rollout], counts: Sequence[int], verifications: Sequence[Sequence[Verification]]
) -> Stats:
    """Return numbers for the log: how final verdicts agree with the grades, over all verifications.

    ``counts`` are the solutions' numbers of steps. A final verdict that cannot be read agrees with no grade.
    """
    rows = [(r.grade.correct, k, v) for r, k, vs in zip(solutions, counts, verifications, strict=True) for v in vs]
    finals = [(correct, v.critique.final) for correct, _, v in rows]
    accepted = [final is True for correct, final in finals if correct]
    refused = [final is False for correct, final in finals if not correct]
    said_wrong = sum(final is False for _, final in finals)
    return {
        "verifier/recall_right": mean(accepted),
        "verifier/recall_wrong": mean(refused),
        "verifier/balanced_accuracy": (mean(accepted) + mean(refused)) / 2,
        "verifier/f1": 2 * sum(refused) / (said_wrong + len(refused)) if refused else math.nan,
        "verifier/readable": mean([final is not None for _, final in finals]),
        "verifier/matched": mean([v.critique.step_verdicts(k) is not None for _, k, v in rows]),
        "verifier/tokens": _tokens(v.completion for _, _, v in rows),
        "verifier/mean_length": mean([len(v.completion.tokens) for _, _, v in rows]),
        "verifier/clipped_ratio": mean([v.completion.finish == "length" for _, _, v in rows]),
    }


def _tokens(completions: Iterable[Completion]) -> float:
    return float(sum(len(c.tokens) for c in completions))
