"""RL^V: value-free RL and a generative verifier in one model, from the same rollouts, in the same forward pass.

Paper: "Putting the Value Back in RL" (arXiv:2505.04842). Objective: L = L_RL + lambda * CE(verdict token).
The judgement question and its verdict are appended to the solution that is in the batch anyway; causal
attention leaves the solution's log-probs untouched.

What the paper leaves open is a field here, with our choice: verdict only (no end token) is trained; the loss is a
mean over judged rollouts; every rollout is judged once (``balance``); lambda may warm up; one optimiser
step serves both terms; truncated rollouts count as wrong (``truncated``).
Deviation: rollouts whose reward could not be computed (grader timeout or error) are left out of both terms.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from twofold.compute.judge import p_yes, question
from twofold.compute.rollout import Task, continue_graded, rollouts, value
from twofold.engines.base import Engine
from twofold.maths.credit import differences, grpo, rloo, spread
from twofold.maths.stats import verifier_quality
from twofold.text.chat import Chat
from twofold.text.segments import sentence_ends
from twofold.types import Grade, Group, Problem, Rollout, Sample, Sampling


@dataclass(frozen=True, slots=True)
class RLV:
    """Options of the recipe. ``verify = "none"`` is the plain RL baseline; the other three are the paper's ablations."""

    name: Literal["rlv"] = "rlv"
    estimator: Literal["rloo", "grpo", "dr_grpo", "vineppo"] = "rloo"
    verify: Literal["generative", "bce", "regression", "separate", "none"] = "generative"
    lam: float = 1.0
    lam_warmup: int = 0
    """Steps over which lambda rises linearly to ``lam``."""
    balance: Literal["all", "balanced"] = "all"
    """Judge every rollout, or min(#correct, #wrong) of each per step."""
    truncated: Literal["wrong", "exclude"] = "wrong"
    """A rollout cut by the token limit: graded as it is (no answer: wrong), or left out of both terms."""
    rollouts: int = 8
    """Per problem."""
    vine_k: int = 9
    """VinePPO: continuations per step boundary."""
    score_every: int = 5
    """Every how many steps the rollouts are scored, for the log only (0: never)."""


class Recipe:
    """``collect`` turns problems into samples per role; ``reference`` is asked for the KL stream if given."""

    def __init__(
        self, config: RLV, task: Task, chat: Chat, sampling: Sampling, reference: Engine | None = None
    ) -> None:
        if sampling.top_p != 1:
            raise ValueError("top_p must be 1 while training: the learner scores the full distribution")
        self.config, self.task, self.chat, self.reference = config, task, chat, reference
        self.sampling = replace(sampling, n=config.rollouts, stop=chat.stop)

    def collect(
        self, engine: Engine, problems: Sequence[Problem], step: int
    ) -> tuple[dict[str, list[Sample]], dict[str, float]]:
        sampling = replace(self.sampling, seed=hash_seed(self.sampling.seed, step))
        groups = [[self._as_counted(r) for r in g] for g in rollouts(engine, self.chat, self.task, problems, sampling)]
        stats = describe(groups)
        usable = [[r for r in g if r.grade.reward is not None] for g in groups]
        everyone = [r for g in usable for r in g]
        if self.config.score_every and step % self.config.score_every == 0:
            stats |= self._score(engine, everyone)
        credit = self._vine(engine, usable, sampling) if self.config.estimator == "vineppo" else self._outcome(usable)
        judged = self._judged(everyone, step)
        lam = (
            self.config.lam * min(1.0, (step + 1) / self.config.lam_warmup)
            if self.config.lam_warmup
            else self.config.lam
        )
        samples: dict[str, list[Sample]] = {"policy": []}
        for i, (rollout, advantages) in enumerate(zip(everyone, credit, strict=True)):
            sample = policy_sample(rollout, advantages)
            if i in judged:
                if self.config.verify == "separate":
                    samples.setdefault("verifier", []).append(
                        self._with_verdict(policy_sample(rollout, None), rollout, lam)
                    )
                else:
                    sample = self._with_verdict(sample, rollout, lam)
            samples["policy"].append(sample)
        if self.reference is not None:
            refer(samples["policy"], self.reference, self.sampling.temperature)
        return samples, stats if self.config.verify == "none" else stats | {"lambda": lam}

    def _as_counted(self, rollout: Rollout) -> Rollout:
        excluded = self.config.truncated == "exclude" and rollout.completion.finish == "length"
        return replace(rollout, grade=Grade(None, rollout.grade.label)) if excluded else rollout

    def _outcome(self, groups: list[Group]) -> list[list[float]]:
        """One advantage per rollout, on all its tokens; a group of one has none."""
        out = []
        for group in groups:
            rewards = [r.grade.reward or 0.0 for r in group]
            if len(group) < 2:
                numbers = [0.0] * len(group)
            elif self.config.estimator == "rloo":
                numbers = rloo(rewards)
            else:
                numbers = grpo(rewards, std=self.config.estimator == "grpo")
            out += [[a] * len(r.completion.tokens) for a, r in zip(numbers, group, strict=True)]
        return out

    def _vine(self, engine: Engine, groups: list[Group], sampling: Sampling) -> list[list[float]]:
        """VinePPO: the value of every step boundary from ``vine_k`` continuations, all in one engine call."""
        everyone = [r for g in groups for r in g]
        ends = [sentence_ends(self.chat.pieces(r.completion.tokens)) for r in everyone]
        # a seed of its own: with the rollouts' the continuations of a bare prompt would be the rollouts over again
        more = replace(sampling, n=self.config.vine_k, seed=sampling.seed + 1)
        starts = [[0, *es[:-1]] for es in ends]
        groups_at = continue_graded(engine, self.chat, self.task, everyone, starts, more)
        values = [[value(group) for group in own] for own in groups_at]
        out = []
        for r, es, row in zip(everyone, ends, values, strict=True):
            steps = differences([0.0 if math.isnan(v) else v for v in row], final=r.grade.reward or 0.0)
            out.append(spread(steps, es, len(r.completion.tokens)))
        return out

    def _judged(self, everyone: list[Rollout], step: int) -> set[int]:
        """Indices of the rollouts whose verdict is a target this step."""
        if self.config.verify == "none":
            return set()
        if self.config.balance == "all":
            return set(range(len(everyone)))
        right = [i for i, r in enumerate(everyone) if r.grade.correct]
        wrong = [i for i, r in enumerate(everyone) if not r.grade.correct]
        rng, few = random.Random(f"{self.sampling.seed}/{step}"), min(len(right), len(wrong))
        return {*rng.sample(right, few), *rng.sample(wrong, few)}

    def _with_verdict(self, sample: Sample, rollout: Rollout, lam: float) -> Sample:
        """Append the question, and the verdict token as a target (or the label for a scalar head)."""
        tokens = question(self.chat, rollout)
        correct = rollout.grade.correct
        if self.config.verify in ("bce", "regression"):
            return replace(_padded(sample, tokens), values=[(len(tokens) - 1, float(correct), lam)])
        sample = _padded(sample, [*tokens, self.chat.yes_no_ids[0 if correct else 1]])
        sample.targets[-1] = lam
        return sample

    def _score(self, engine: Engine, everyone: list[Rollout]) -> dict[str, float]:
        if self.config.verify != "generative" or len(everyone) < 2:
            return {}
        labels = [r.grade.correct for r in everyone]
        # problems matter to the intervals only, which are not logged: one problem per step is fine
        quality = verifier_quality(p_yes(engine, self.chat, everyone), labels, [str(i) for i in range(len(labels))])
        return {
            "verifier/auroc": quality.auroc,
            "verifier/balanced_accuracy": quality.balanced_accuracy,
            "verifier/ece": quality.ece,
        }


def refer(samples: Sequence[Sample], reference: Engine, temperature: float) -> None:
    """Set the samples' log-probs under the reference policy, from the first sampled token on."""
    starts = [s.sampled.index(True) if any(s.sampled) else len(s.tokens) for s in samples]
    heads = [s.tokens[:a] for s, a in zip(samples, starts, strict=True)]
    tails = [s.tokens[a:] for s, a in zip(samples, starts, strict=True)]
    for s, a, logp in zip(samples, starts, reference.logprobs(heads, tails, temperature), strict=True):
        s.reference = [0.0] * a + logp


def hash_seed(seed: int, step: int) -> int:
    """A seed of its own for every step."""
    return random.Random(f"{seed}/{step}").getrandbits(62)


def policy_sample(rollout: Rollout, advantages: Sequence[float] | None) -> Sample:
    """Prompt and completion; without ``advantages`` nothing in it is the policy's."""
    before, c = len(rollout.prompt), rollout.completion
    return Sample(
        tokens=[*rollout.prompt, *c.tokens],
        sampled=[False] * before + (c.sampled if advantages is not None else [False] * len(c.tokens)),
        logprobs=[0.0] * before + c.logprobs,
        advantages=[0.0] * before + (list(advantages) if advantages is not None else [0.0] * len(c.tokens)),
        targets=[0.0] * (before + len(c.tokens)),
    )


def target_sample(rollout: Rollout, weight: float = 1.0) -> Sample:
    """Prompt and completion, whose every token is a target of this weight."""
    sample = policy_sample(rollout, None)
    return replace(sample, targets=[0.0] * len(rollout.prompt) + [weight] * len(rollout.completion.tokens))


def _padded(sample: Sample, tokens: list[int]) -> Sample:
    """The sample with its tokens continued to ``tokens``, none of the new ones sampled or targets."""
    more = len(tokens) - len(sample.tokens)
    zeros = [0.0] * more
    return Sample(
        tokens,
        sample.sampled + [False] * more,
        sample.logprobs + zeros,
        sample.advantages + zeros,
        sample.targets + zeros,
    )


def describe(groups: list[Group]) -> dict[str, float]:
    """What a step's rollouts look like, under the names users of other libraries know."""
    everyone = [r for g in groups for r in g]
    rewards = [r.grade.reward for r in everyone if r.grade.reward is not None]
    flat = [g for g in groups if len({r.grade.reward for r in g} - {None}) < 2]
    labels = Counter(r.grade.label for r in everyone)
    mean = sum(rewards) / max(1, len(rewards))
    return {
        "reward": mean,
        "reward_std": (sum((r - mean) ** 2 for r in rewards) / max(1, len(rewards))) ** 0.5,
        "frac_reward_zero_std": len(flat) / len(groups),
        "completions/mean_length": sum(len(r.completion.tokens) for r in everyone) / len(everyone),
        "completions/clipped_ratio": sum(r.completion.finish == "length" for r in everyone) / len(everyone),
        **{
            f"labels/{name}": labels[name] / len(everyone)
            for name in ("correct", "wrong", "no_answer", "timeout", "error")
        },
    }
