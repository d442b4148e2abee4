"""What recipes share: what a run gives them, what they give back, and the small functions between.

A recipe is a function from rollouts to per-token credit. It sees no optimiser and no device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol, get_args

from twofold.compute.rollout import Task
from twofold.engines.base import Engine
from twofold.maths.credit import grpo, mean
from twofold.text.chat import Chat
from twofold.types import Collected, Group, Label, Problem, Rollout, Sample, Sampling

Stats = dict[str, float]


class Setup(Protocol):
    """A run, as a recipe sees it while it is built: what is there, and what it may ask for.

    ``sampling`` has the run's temperature, token limit and seed; a recipe sets ``n`` and ``stop``. Everything asked for is
    made from the weights that training starts with.
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
        """Train this new model instead of the one that the config names."""
        ...

    def second(self, role: str, model: str | None = None) -> Engine:
        """Train another model as well, in this role: the one of this name, or a copy of the policy's start.

        Raises ValueError if its tokenizer is not the policy's.
        """
        ...

    def frozen(self, role: str = "policy") -> Engine:
        """An engine of this role's model as it is now, which no update changes."""
        ...

    def reference(self, role: str = "policy") -> Engine | None:
        """``frozen`` for the KL term, or None where ``loss.beta`` is 0 and there is none."""
        ...

    def head(self, kind: Literal["bce", "regression"]) -> None:
        """Put a scalar head on the policy, trained by the samples' ``values``."""
        ...

    def spare(self, step: int, draw: int) -> list[Problem]:
        """As many problems as a step has, which are no step's own; ``draw`` counts from 1 to ``tasks.stream.MAX_DRAWS`` - 1."""
        ...


class Recipe(ABC):
    """One recipe in one run. Only ``collect`` must be written.

    ``n`` is the number of rollouts per problem; ``reference`` is asked for the KL stream if given. Raises ValueError unless
    the run draws from the full distribution, which the learner scores.
    """

    def __init__(self, task: Task, chat: Chat, sampling: Sampling, n: int = 1, reference: Engine | None = None) -> None:
        if sampling.top_p != 1:
            raise ValueError("top_p must be 1 while training: the learner scores the full distribution")
        self.task, self.chat, self.reference = task, chat, reference
        self.sampling = replace(sampling, n=n, stop=chat.stop)

    @abstractmethod
    def collect(self, engine: Engine, problems: Sequence[Problem], step: int) -> Collected:
        """Return the samples that this step trains on, from these problems and the policy's ``engine``.

        A pure function of its arguments, the weights and ``state()``: so a run can be resumed at any step.
        """

    def updates(self, steps: int) -> dict[str, int]:
        """Return how many of ``steps`` steps train each role, where it is not all of them: its learning rate runs over these."""
        return {}

    def state(self) -> dict[str, float]:
        """Return what later steps must know of this one; it is saved in every checkpoint."""
        return {}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from what ``state`` returned when the checkpoint was written."""
        if state:
            raise ValueError(f"this recipe keeps no state, and the checkpoint has {', '.join(state)} of another one")


def rewards_of(group: Sequence[Rollout]) -> list[float]:
    """Rewards of rollouts that all have one."""
    return [r.grade.reward or 0.0 for r in group]


def gradable(groups: Sequence[Group]) -> list[Group]:
    """The groups without the rollouts whose reward could not be computed: they are left out, not wrong."""
    return [[r for r in g if r.grade.reward is not None] for g in groups]


def relative(rewards: Sequence[float]) -> list[float]:
    """GRPO's advantages; where only one rollout of a group could be graded, it has nothing to be compared with: 0."""
    return grpo(rewards) if len(rewards) > 1 else [0.0] * len(rewards)


def whole(advantage: float, rollout: Rollout) -> list[float]:
    """One advantage for every token of a completion."""
    return [advantage] * len(rollout.completion.tokens)


def policy_sample(rollout: Rollout, advantages: Sequence[float]) -> Sample:
    """Prompt and completion with credit per token of the completion; tokens that were not drawn have none."""
    before, c = len(rollout.prompt), rollout.completion
    return Sample(
        tokens=[*rollout.prompt, *c.tokens],
        sampled=[False] * before + c.sampled,
        logprobs=[0.0] * before + c.logprobs,
        advantages=[0.0] * before + [a if s else 0.0 for a, s in zip(advantages, c.sampled, strict=True)],
        targets=[0.0] * (before + len(c.tokens)),
    )


def context_sample(rollout: Rollout) -> Sample:
    """Prompt and completion, of which nothing is learnt."""
    sample = policy_sample(rollout, whole(0.0, rollout))
    return replace(sample, sampled=[False] * len(sample.tokens))


def target_sample(rollout: Rollout, weight: float = 1.0) -> Sample:
    """Prompt and completion; every token of the completion is a target of this weight."""
    sample = context_sample(rollout)
    return replace(sample, targets=[0.0] * len(rollout.prompt) + [weight] * len(rollout.completion.tokens))


def extended_sample(sample: Sample, tokens: list[int]) -> Sample:
    """The sample continued to ``tokens``, of which the new ones are neither sampled nor targets."""
    more = len(tokens) - len(sample.tokens)
    zeros = [0.0] * more
    return Sample(
        tokens,
        sample.sampled + [False] * more,
        sample.logprobs + zeros,
        sample.advantages + zeros,
        sample.targets + zeros,
    )


def refer(samples: Sequence[Sample], reference: Engine, temperature: float) -> None:
    """Set the samples' log-probs under the reference policy, from the first sampled token on."""
    starts = [s.sampled.index(True) if any(s.sampled) else len(s.tokens) for s in samples]
    heads = [s.tokens[:a] for s, a in zip(samples, starts, strict=True)]
    tails = [s.tokens[a:] for s, a in zip(samples, starts, strict=True)]
    for s, a, logp in zip(samples, starts, reference.logprobs(heads, tails, temperature), strict=True):
        s.reference = [0.0] * a + logp


def describe(groups: Sequence[Group]) -> Stats:
    """Return what a step's rollouts look like, under the names that users of other libraries know."""
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
