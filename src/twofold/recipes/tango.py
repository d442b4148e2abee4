"""Tango: a generator and a verifier of its steps, trained in turns by RL, with one model in both roles or with two.

Paper: "RL Tango" (arXiv:2505.15034). The generator writes a solution in steps and is paid for a right answer and, with a
weight alpha that decays, for the verifier's verdict on each step; the two are normalised apart, then mixed. The verifier
writes a verdict on each step and on the whole, and is paid if the last agrees with the graded answer, and for its form. It
never sees the reference answer or a label of a step.

The published setting is ``share = False`` with the defaults below. Deviations from paper and released code: the question to the
verifier follows the solution in one conversation, through the chat template, instead of a prompt of its own; a step's
reward belongs to the token with its last character (the paper's I(k); the code pays one token later); verdicts count only if
every step block has one and there is one for each step; REINFORCE++ has its step term (in the released code an indexing
defect makes it 0); verifications of the same solution are averaged before they are normalised; a group with one judged step in
all has no step credit; rollouts that could not be graded are left out; no entropy bonus. ``loss.beta`` (published: 0.001) weighs
the KL to each role's starting model, by k3 for every estimator (the code has half the squared log-ratio for REINFORCE++). The
generator's warm-up on the form is a run of its own, of the ``sft`` recipe.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from twofold.compute.rollout import Task, continue_graded, rollouts, value
from twofold.compute.verify import Verification, mean_verdicts, step_ends, verify
from twofold.engines.base import Engine
from twofold.maths.credit import grpo, mean, rloo, spread, standardise, to_go
from twofold.maths.seeds import derive
from twofold.maths.step_credit import StepCredit, class_weights, decayed, grpo_steps, pooled, rloo_steps, step_rewards
from twofold.recipes import common
from twofold.recipes.common import Setup, Stats, policy_sample, rewards_of, target_sample, whole
from twofold.text.chat import Chat
from twofold.text.prompts import VERIFY
from twofold.text.steps import Critique, Cut, solution_format
from twofold.types import Collected, Completion, Group, Problem, Rollout, Sample, Sampling

Role = Literal["generator", "verifier"]

COUNTABLE = 0.6
"""From this form of a solution on (``solution_format``) a verifier is held to its number of steps, as in the released code."""


@dataclass(frozen=True, slots=True)
class Tango:
    """Options of the recipe. ``alpha = 0`` is the plain RL baseline, ``verifier_updates = 0`` a frozen verifier (set
    ``verifier_warmup`` too), ``generator_updates = 0`` a frozen generator."""

    name: Literal["tango"] = "tango"
    share: bool = True
    """One model in both roles; else two."""
    verifier: str | None = None
    """Two models: where the verifier starts from, with the generator's tokenizer; none: from the same model."""
    estimator: Literal["grpo", "rloo", "reinforce++"] = "grpo"
    rollouts: int = 5
    """Of a question: solutions in a generator's update; in a verifier's, verifications of one solution."""
    generator_updates: int = 3
    """Of each turn. The generator's come first."""
    verifier_updates: int = 1
    verifier_warmup: int = 40
    """Updates of the verifier before the first turn."""
    alpha: float = 0.1
    """Share of the step credit at first (published for ``reinforce++``: 0.5); decays exponentially over all generator's updates."""
    alpha_min: float = 0.001
    credit: StepCredit = "pooled"
    """How verdicts become credit, see ``maths.step_credit``. Only ``grpo`` has others than the published."""
    verifications: int = 1
    """Of each solution in a generator's update; their verdicts are averaged."""
    verifier_learns: Literal["rl", "sft"] = "rl"
    """How: from the rewards of all its verifications, or by cross-entropy on those that were right (rejection sampling)."""
    format: float = 0.8
    """Weight of the verifier's format score; being right has 1."""
    class_weights: bool = True
    """Weigh right and wrong solutions by 1 / sqrt(count), so that the rarer kind is heard."""
    ema: float = 0.8
    """Decay of the moving averages of these counts."""
    consistency: float = 0.0
    """Reward of a final verdict that says of the whole what the verdicts on its steps do."""
    step_labels: float = 0.0
    """Weight of the share of steps whose verdict agrees with a label from continuations, see ``monte_carlo``."""
    continuations: int = 4
    """From every step, for these labels."""
    label_ratio: float = 0.0
    """A step is right if the value behind it is more than this share of the value before it."""
    cut: Cut = "tags"
    """Where the generator's steps are: between tags, or one on a line."""
    question: str = VERIFY
    """To the verifier; ``{steps}`` becomes the number of steps."""
    verifier_tokens: int = 1024
    """Limit of a verification."""

    def __post_init__(self) -> None:
        if self.rollouts < 2:
            raise ValueError(f"rollouts must be at least 2, a group of one has no baseline, got {self.rollouts}")
        if min(self.verifications, self.continuations, self.verifier_tokens) < 1:
            raise ValueError(f"verifications, continuations and verifier_tokens must be at least 1, got {self}")
        counts = (self.generator_updates, self.verifier_updates, self.verifier_warmup)
        if min(counts) < 0 or not any(counts[:2]):
            raise ValueError(f"updates must not be negative, and a turn needs at least one, got {counts}")
        if not 0 <= self.alpha <= 1 or not 0 < self.alpha_min <= 1 or 0 < self.alpha < self.alpha_min:
            raise ValueError(f"alpha must be in [0, 1] and alpha_min in (0, alpha], got {self.alpha}, {self.alpha_min}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        if self.credit != "pooled" and self.estimator != "grpo":
            raise ValueError(f'credit = "{self.credit}" goes with estimator = "grpo" only, got "{self.estimator}"')
        if self.share and self.verifier is not None:
            raise ValueError("share = true has one model in both roles: leave out verifier, or set share = false")

    def build(self, setup: Setup) -> Recipe:
        verifier = None if self.share else setup.second("verifier", self.verifier)
        roles = ("policy",) if self.share else ("policy", "verifier")
        found = {role: reference for role in roles if (reference := setup.reference(role)) is not None}
        return Recipe(self, setup.task, setup.chat, setup.sampling, setup.steps, verifier, found)


def turn(config: Tango, step: int) -> tuple[Role, int]:
    """Whose update a step is, and how many of that role came before it.

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
    """``verifier`` is the engine of the second model, None where one model has both roles; ``references`` are asked for the KL
    stream, by role. ``steps`` of the run set the pace of alpha."""

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
            raise ValueError("share = false needs an engine of the second model, share = true has none")
        super().__init__(task, chat, sampling)
        self.config, self.verifier = config, verifier
        self.references = references or {}
        self.counts: dict[str, float] = {}
        self.planned = sum(turn(config, step)[0] == "generator" for step in range(steps))

    def updates(self, steps: int) -> dict[str, int]:
        verifier = sum(turn(self.config, step)[0] == "verifier" for step in range(steps))
        return {} if self.config.share else {"policy": steps - verifier, "verifier": verifier}

    def state(self) -> dict[str, float]:
        """The moving averages of right and wrong solutions, for the class weights."""
        return dict(self.counts)

    def restore(self, state: Mapping[str, float]) -> None:
        self.counts = dict(state)

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
        alpha = decayed(config.alpha, config.alpha_min, done, self.planned)
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
        """Mean verdict on every step of each solution; None where there are no steps or no verification can be used."""
        config = self.config
        asked = [i for i, e in enumerate(ends) if e]
        rated, counts = [everyone[i] for i in asked], [len(ends[i]) for i in asked]
        limit = replace(
            sampling,
            n=config.verifications,
            max_tokens=config.verifier_tokens,
            seed=derive(sampling.seed, "verifications"),
        )
        found = verify(self.verifier or engine, self.chat, rated, counts, config.question, limit)
        verdicts: list[list[float] | None] = [None] * len(everyone)
        for i, k, drawn in zip(asked, counts, found, strict=True):
            verdicts[i] = mean_verdicts(drawn, k)
        known = [v for v in verdicts if v is not None]
        return verdicts, verifier_stats(rated, counts, found) | {
            "tango/judged": len(known) / max(1, len(everyone)),
            "tango/accepted": mean([(1 + j) / 2 for v in known for j in v]),
        }

    def _outcome_credit(self, groups: list[Group]) -> list[list[float]]:
        """Per rollout and token: normalised in its group, or, with REINFORCE++, over all tokens of the step."""
        everyone = [r for g in groups for r in g]
        if self.config.estimator == "reinforce++":
            return pooled(standardise, [whole(r.grade.reward or 0.0, r) for r in everyone])
        estimate = grpo if self.config.estimator == "grpo" else rloo
        numbers = [a for g in groups for a in (estimate(rewards_of(g)) if len(g) > 1 else [0.0] * len(g))]
        return [whole(a, r) for a, r in zip(numbers, everyone, strict=True)]

    def _step_credit(
        self, groups: list[Group], ends: Sequence[Sequence[int]], verdicts: Sequence[Sequence[float] | None]
    ) -> list[list[float]]:
        """Per rollout and token: a step's credit on all its tokens, none behind the last step or without verdicts."""
        sizes = [len(r.completion.tokens) for g in groups for r in g]
        out = [[0.0] * n for n in sizes]
        known = [i for i, v in enumerate(verdicts) if v is not None]

        def per_token(i: int, credit: Sequence[float]) -> list[float]:
            return spread([*credit, 0.0], [*ends[i], sizes[i]], sizes[i])

        if self.config.estimator == "reinforce++":
            rows = pooled(standardise, [per_token(i, to_go(step_rewards(verdicts[i] or []))) for i in known])
            for i, row in zip(known, rows, strict=True):
                out[i] = row
            return out
        first = 0
        for group in groups:
            mine = [i for i in known if first <= i < first + len(group)]
            judged = [verdicts[i] or [] for i in mine]
            steps = grpo_steps(judged, self.config.credit) if self.config.estimator == "grpo" else rloo_steps(judged)
            for i, row in zip(mine, steps, strict=True):
                out[i] = per_token(i, row)
            first += len(group)
        return out

    # ------------------------------------------------------------ the verifier's update

    def _verifier(
        self, engine: Engine, problems: Sequence[Problem], sampling: Sampling
    ) -> tuple[list[Sample], Stats, list[Group]]:
        config = self.config
        groups = rollouts(engine, self.chat, self.task, problems, replace(sampling, n=1))
        stats = common.describe(groups) | {"tango/tokens": _tokens(r.completion for (r,) in groups)}
        everyone = [r for (r,) in groups if r.grade.reward is not None]
        ends = [step_ends(self.chat, r, config.cut) for r in everyone]
        labels: list[list[bool | None]] = [[None] * len(e) for e in ends]
        if config.step_labels:
            labels, more = self._labels(engine, everyone, ends, sampling)
            stats["tango/tokens"] += more
        counts = [len(e) for e in ends]
        seed = derive(sampling.seed, "verifications")
        limit = replace(sampling, n=config.rollouts, max_tokens=config.verifier_tokens, seed=seed)
        found = verify(self.verifier or engine, self.chat, everyone, counts, config.question, limit)
        weights = self._weights([r.grade.correct for r in everyone])
        samples: list[Sample] = []
        rewards: list[float] = []
        for r, k, drawn, label, weight in zip(everyone, counts, found, labels, weights, strict=True):
            counted = solution_format(r.text, config.cut) >= COUNTABLE
            right = r.grade.correct
            paid = [self.reward(v.critique, right, k, counted, label) for v in drawn]
            rewards += paid
            for v, a in zip(drawn, grpo(paid), strict=True):
                written = replace(r, prompt=v.prompt, completion=v.completion)
                if config.verifier_learns == "rl":
                    samples.append(policy_sample(written, whole(weight * a, written)))
                elif v.critique.final == right and v.critique.format(k, counted) == 1:
                    samples.append(target_sample(written, weight))
        flat = [len({*rewards[i : i + config.rollouts]}) < 2 for i in range(0, len(rewards), config.rollouts)]
        stats |= verifier_stats(everyone, counts, found) | {
            "verifier/reward": mean(rewards),
            "verifier/frac_reward_zero_std": mean(flat),
            "verifier/learnt": len(samples) / max(1, len(rewards)),
            "tango/steps": mean(counts),
        }
        return samples, stats, groups

    def _labels(
        self, engine: Engine, everyone: Sequence[Rollout], ends: Sequence[Sequence[int]], sampling: Sampling
    ) -> tuple[list[list[bool | None]], float]:
        """Of every step, by continuations from its two ends; and how many tokens those wrote."""
        n, ratio = self.config.continuations, self.config.label_ratio
        more = replace(sampling, n=n, seed=derive(sampling.seed, "labels"))
        groups = continue_graded(engine, self.chat, self.task, everyone, [[0, *own] for own in ends], more)
        written = _tokens(r.completion for own in groups for g in own for r in g) - n * sum(map(sum, ends))
        return [monte_carlo([value(g) for g in own], ratio) for own in groups], written

    def reward(
        self, critique: Critique, right: bool, steps: int, counted: bool, labels: Sequence[bool | None]
    ) -> float:
        """Of a verification (eq. 8): 1 for the right final verdict + ``format`` * its form, 0 without a final verdict; and
        what the options add where there is a verdict for each step."""
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
        """Weight of each solution's advantages, by its class; the moving averages take in this step first."""
        if not self.config.class_weights:
            return [1.0] * len(right)
        counts = {"right": sum(right), "wrong": len(right) - sum(right)}
        for name, n in counts.items():
            before = self.counts.get(name, float(n))
            self.counts[name] = self.config.ema * before + (1 - self.config.ema) * n
        yes, no = class_weights(counts["right"], counts["wrong"], self.counts["right"], self.counts["wrong"])
        return [yes if ok else no for ok in right]


def monte_carlo(values: Sequence[float], ratio: float = 0.0) -> list[bool | None]:
    """Labels of K steps from the values at their K + 1 ends (StepWiser, arXiv:2508.19229, with VinePPO's values): a step is
    right if the value behind it is more than ``ratio`` times the value before it; with 0, if anything right followed at all.
    None where a value is NaN.

    >>> monte_carlo([0.5, 0.5, 0.25, 0.0]), monte_carlo([0.5, 0.5, 0.25, 0.0], ratio=0.75)
    ([True, True, False], [True, False, False])
    """
    return [None if math.isnan(a + b) else b > ratio * a for a, b in pairwise(values)]


def verifier_stats(rated: Sequence[Rollout], counts: Sequence[int], found: Sequence[Sequence[Verification]]) -> Stats:
    """How final verdicts agree with the grades, over all verifications; one that cannot be read agrees with nothing."""
    everything = [(r.grade.correct, k, v) for r, k, drawn in zip(rated, counts, found, strict=True) for v in drawn]
    finals = [(right, v.critique.final) for right, _, v in everything]
    right = [final is True for ok, final in finals if ok]
    wrong = [final is False for ok, final in finals if not ok]
    named = sum(final is False for _, final in finals)
    return {
        "verifier/recall_right": mean(right),
        "verifier/recall_wrong": mean(wrong),
        "verifier/balanced_accuracy": (mean(right) + mean(wrong)) / 2,
        "verifier/f1": 2 * sum(wrong) / (named + len(wrong)) if wrong else math.nan,
        "verifier/readable": mean([final is not None for _, final in finals]),
        "verifier/matched": mean([v.critique.step_verdicts(k) is not None for _, k, v in everything]),
        "verifier/tokens": _tokens(v.completion for _, _, v in everything),
        "verifier/mean_length": mean([len(v.completion.tokens) for _, _, v in everything]),
        "verifier/clipped_ratio": mean([v.completion.finish == "length" for _, _, v in everything]),
    }


def _tokens(completions: Iterable[Completion]) -> float:
    return float(sum(len(c.tokens) for c in completions))
