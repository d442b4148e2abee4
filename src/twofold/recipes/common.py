"""What recipes share: the run that they are built from, the class that they extend, and functions for their samples.

A recipe is a function from rollouts to per-token credit. It sees no optimiser and no device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, get_args

from twofold.compute.judge import Judging
from twofold.engines.base import Engine, PolicyEngine
from twofold.maths.credit import grpo, mean
from twofold.text.chat import Chat
from twofold.types import Collected, Group, Label, Problem, Rollout, Sample, Sampling, Task

Stats = dict[str, float]


class Setup(Protocol):
    """A run, as a recipe sees it while it is built: what it can read, and what it can request.

    ``sampling`` has the run's temperature, token limit and seed; a recipe sets ``n`` and ``stop``. Every model that a recipe
    requests has the weights that training starts with.
    """

    @property
    def task(self) -> Task: ...
    @property
    def chat(self) -> Chat: ...
    @property
    def sampling(self) -> Sampling: ...
    @property
    def steps(self) -> int: ...
    @property
    def seed(self) -> int: ...

    def begin(self, model: object, tokenizer: object) -> None:
        """Train this new model in place of the one that the config names."""
        ...

    def second(self, role: str, model: str | None = None) -> Engine:
        """Train a second model in this role, loaded by its name (default: the config's model). Return its engine.

        Raises ValueError if its tokenizer is not the policy's.
        """
        ...

    def frozen(self, role: str = "policy") -> PolicyEngine:
        """Return an engine of a copy of this role's model as it is now. No update changes the copy."""
        ...

    def reference(self, role: str = "policy") -> PolicyEngine | None:
        """Return ``frozen(role)`` for the KL term, or None if ``loss.beta`` is 0, so that there is no KL term."""
        ...

    def head(self, kind: Literal["bce", "regression"]) -> None:
        """Put a scalar head on the policy, trained by the samples' ``values``."""
        ...

    def spare(self, step: int, draw: int) -> list[Problem]:
        """Return as many more problems as a step has; no step has them as its own.

        ``draw`` counts from 1 to ``tasks.stream.MAX_DRAWS`` - 1.
        """
        ...


class Recipe(ABC):
    """One recipe in one run. A subclass must write ``collect`` only.

    ``n`` is the number of rollouts per problem. ``reference``, if given, is the engine that gives the log-probs for the KL
    term. Raises ValueError if ``sampling`` leaves tokens out, because the learner scores the full distribution.
    """

    judging: Judging | None = None
    """How the recipe itself asks about its rollouts, for which the context must have room. None: as the log does."""

    def __init__(self, task: Task, chat: Chat, sampling: Sampling, n: int = 1, reference: Engine | None = None) -> None:
        if sampling.filtered:
            raise ValueError("top_p must be 1, top_k and min_p 0: the learner scores the full distribution")
        self.task, self.chat, self.reference = task, chat, reference
        self.sampling = replace(sampling, n=n, stop=chat.stop)

    @abstractmethod
    def collect(self, engine: Engine, problems: Sequence[Problem], step: int) -> Collected:
        """Return the samples that this step trains on, from these problems and the policy's ``engine``.

        The result depends on the arguments, the weights and ``state()`` only, so that a run can resume at any step.
        """

    def text(self, problem: Problem) -> str:
        """Return what stands in the context before anything is drawn, beside the chat template."""
        return problem.question

    def updates(self, steps: int) -> dict[str, int]:
        """Return how many of ``steps`` steps train each role; a role that is left out trains at every step.

        The learning-rate schedule of a role runs over its own updates.
        """
        return {}

    def state(self) -> dict[str, float]:
        """Return the numbers that later steps need from earlier ones. Every checkpoint saves them."""
        return {}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from the numbers that ``state`` returned when the checkpoint was written."""
        if state:
            raise ValueError(f"this recipe keeps no state, but the checkpoint has another recipe's: {', '.join(state)}")


class FromAttempts(Recipe):
    """A recipe that continues from earlier attempts: the current policy's, or with ``source = "start"`` the starting model's.

    ``start`` is an engine of the starting model. Raises ValueError if it is needed and missing. The options, ``config``, must
    have ``source`` and ``rollouts``.
    """

    def __init__(
        self,
        config: Any,
        task: Task,
        chat: Chat,
        sampling: Sampling,
        start: Engine | None = None,
        reference: Engine | None = None,
    ) -> None:
        if config.source == "start" and start is None:
            raise ValueError('source = "start" needs an engine of the starting model')
        super().__init__(task, chat, sampling, config.rollouts, reference)
        self.config, self.start = config, start


def rewards_of(group: Sequence[Rollout]) -> list[float]:
    """Return the rewards of rollouts that all have one."""
    return [r.grade.known for r in group]


def gradable(groups: Sequence[Group]) -> list[Group]:
    """Return the groups without the rollouts whose reward could not be computed. These are left out, not counted as wrong."""
    return [[r for r in g if r.grade.reward is not None] for g in groups]


def relative(rewards: Sequence[float], estimate: Callable[[Sequence[float]], list[float]] = grpo) -> list[float]:
    """Return the advantages of a group. A rollout that is alone in its group, as no other could be graded, has 0."""
    return estimate(rewards) if len(rewards) > 1 else [0.0] * len(rewards)


def whole(advantage: float, rollout: Rollout) -> list[float]:
    """Return one advantage for every token of a completion."""
    return [advantage] * len(rollout.completion.tokens)


def outcome_samples(groups: Sequence[Group], rewards: Callable[[Group], list[float]] = rewards_of) -> list[Sample]:
    """Return every rollout with its GRPO advantage on all its tokens."""
    return [
        policy_sample(r, whole(a, r)) for group in groups for r, a in zip(group, relative(rewards(group)), strict=True)
    ]


def policy_sample(rollout: Rollout, advantages: Sequence[float]) -> Sample:
    """Return prompt and completion with credit per token of the completion; tokens that were not drawn have none."""
    before, c = len(rollout.prompt), rollout.completion
    return Sample(
        tokens=[*rollout.prompt, *c.tokens],
        sampled=[False] * before + c.sampled,
        logprobs=[0.0] * before + c.logprobs,
        advantages=[0.0] * before + [a if s else 0.0 for a, s in zip(advantages, c.sampled, strict=True)],
        targets=[0.0] * (before + len(c.tokens)),
    )


def context_sample(rollout: Rollout) -> Sample:
    """Return prompt and completion, of which nothing is learnt."""
    sample = policy_sample(rollout, whole(0.0, rollout))
    return replace(sample, sampled=[False] * len(sample.tokens))


def target_sample(rollout: Rollout, weight: float = 1.0) -> Sample:
    """Return prompt and completion; every token of the completion is a target of this weight."""
    sample = context_sample(rollout)
    return replace(sample, targets=[0.0] * len(rollout.prompt) + [weight] * len(rollout.completion.tokens))


def extended_sample(sample: Sample, tokens: list[int]) -> Sample:
    """Return the sample extended to ``tokens``; the new tokens are neither sampled nor targets."""
    zeros = [0.0] * (len(tokens) - len(sample.tokens))
    logprobs, advantages, targets = (x + zeros for x in (sample.logprobs, sample.advantages, sample.targets))
    return Sample(tokens, sample.sampled + [False] * len(zeros), logprobs, advantages, targets)


def refer(samples: Sequence[Sample], reference: Engine, temperature: float) -> None:
    """Set ``reference`` of each sample: its log-probs under the reference policy, from the first sampled token on."""
    starts = [s.sampled.index(True) if any(s.sampled) else len(s.tokens) for s in samples]
    heads = [s.tokens[:a] for s, a in zip(samples, starts, strict=True)]
    tails = [s.tokens[a:] for s, a in zip(samples, starts, strict=True)]
    for s, a, logp in zip(samples, starts, reference.logprobs(heads, tails, temperature), strict=True):
        s.reference = [0.0] * a + logp


def describe(groups: Sequence[Group]) -> Stats:
    """Return a step's statistics for the log: rewards, lengths and labels of its rollouts, named as in TRL."""
    everyone = [r for g in groups for r in g]
    rewards = [r.grade.reward for r in everyone if r.grade.reward is not None]
    flat = [g for g in groups if len({r.grade.reward for r in g} - {None}) < 2]
    labels = Counter(r.grade.label for r in everyone)
    average = mean(rewards)  # NaN where none is known
    return {
        "reward": average,
        "reward_std": math.sqrt(mean([(r - average) ** 2 for r in rewards])),
        "frac_reward_zero_std": len(flat) / len(groups),
        "completions/mean_length": sum(len(r.completion.tokens) for r in everyone) / len(everyone),
        "completions/clipped_ratio": sum(r.completion.finish == "length" for r in everyone) / len(everyone),
        **{f"labels/{name}": labels[name] / len(everyone) for name in get_args(Label)},
    }
