"""The nouns of twofold. Everything else is a function over these.

Alignment, written once: entry ``t`` of any per-token list is about ``tokens[t]``;
``logprobs[t] = log p(tokens[t] | tokens[:t])``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Label = Literal["correct", "wrong", "no_answer", "timeout", "error"]
Finish = Literal["stop", "length"]
Precision = Literal["float32", "bfloat16"]
"""In what type matrix products run. Weights are fp32 masters in both."""
Backend = Literal["auto", "decoder", "module"]
"""What runs a model: the written-out forward pass of Llama's family, or the model's own; ``auto``: the first where it suits."""
LogTo = Literal["wandb", "tensorboard", "trackio"]


class Stopped(Exception):
    """Training was asked to stop before its last step, and has saved."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its reference answer. ``meta`` is what the task's grader needs (e.g. countdown numbers)."""

    id: str
    question: str
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)


COLDEST = 1e-3
"""The lowest temperature above 0."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. ``stop`` holds token ids; the stop token is kept in the completion.

    ``temperature = 0`` is greedy. ``min_p`` leaves out tokens less likely than this share of the likeliest one's probability,
    ``top_k`` all but the k likeliest tokens (0: none), and ``top_p`` then all but the likeliest that together have at least
    this share of what is left. A policy in training is sampled without these filters.

    Raises ValueError for a temperature between 0 and ``COLDEST``, or a ``top_p`` below the square of ``COLDEST``: single
    precision cannot represent them. Every random draw is a pure function of (seed, prompt, sample index, position), so the
    other rows of a batch cannot change it.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[int, ...] = ()
    seed: int = 0
    trace_top: int = 0
    """Number k of most likely tokens that the per-token confidence is computed from; 0 records neither it nor the certainty."""
    top_k: int = 0
    min_p: float = 0.0

    @property
    def filtered(self) -> bool:
        """Whether some tokens of the model's distribution cannot be drawn."""
        return (self.top_p, self.top_k, self.min_p) != (1, 0, 0)

    def __post_init__(self) -> None:
        if self.n < 1 or self.max_tokens < 1 or not self.temperature >= 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                "n and max_tokens must be at least 1, temperature at least 0, top_p in (0, 1]; got "
                f"n={self.n}, max_tokens={self.max_tokens}, temperature={self.temperature}, top_p={self.top_p}"
            )
        if self.top_k < 0 or not 0 <= self.min_p <= 1:
            raise ValueError(
                f"top_k must be at least 0 and min_p in [0, 1]; got top_k={self.top_k}, min_p={self.min_p}"
            )
        if 0 < self.temperature < COLDEST or self.top_p < COLDEST**2:
            raise ValueError(
                f"temperature must be 0 or at least {COLDEST}, top_p at least {COLDEST**2}, the least that single precision "
                f"can represent; got temperature={self.temperature}, top_p={self.top_p}"
            )


@dataclass(frozen=True, slots=True)
class Context:
    """The most tokens of a text that a model is right for (None: not known), and the option of its config that says so."""

    tokens: int | None
    by: str

    def check(self, text: int, more: int = 0, after: int = 0) -> None:
        """Raise ValueError if a text of so many tokens, ``more`` generated ones and ``after`` of a question are too many."""
        if self.tokens is None or text + more + after <= self.tokens:
            return
        parts = [f"a text of {text} tokens"] + [f"up to {more} generated ones (max_tokens)"] * (more > 0)
        parts += [f"{after} to ask and give a verdict"] * (after > 0)
        room = self.tokens - text - after
        do = (
            f"lower max_tokens to {room}, or leave out long prompts"
            if more and room > 0
            else "leave it out or shorten it"
        )
        raise ValueError(
            f"the model's context is {self.tokens} tokens ({self.by}), which is less than {' and '.join(parts)}: {do}"
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """Tokens after a prompt. ``sampled[t]`` is False where the token was forced, not drawn from the policy.

    With ``Sampling.trace_top`` = k > 0 two numbers per token are recorded. They are computed from the model's distribution p
    before temperature and top-p. ``token_confidence`` is minus the mean of ln p over the k most likely tokens (DeepConf,
    arXiv:2508.15260). ``token_certainty`` is KL(uniform || p) over the vocabulary (self-certainty, arXiv:2502.18581). Both
    are larger where the model is more certain.
    """

    tokens: list[int]
    logprobs: list[float]
    sampled: list[bool]
    finish: Finish
    token_confidence: list[float] | None = None
    token_certainty: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Grade:
    """The reward of a solution, and whether it is right.

    ``reward`` is what the policy is paid. It is None where it could not be computed (an ``error``, a grader's ``timeout``), never
    a silent 0. ``label`` says what the solution is. A verifier learns ``correct``, which a shaped reward does not change.
    """

    reward: float | None
    label: Label

    @property
    def correct(self) -> bool:
        return self.label == "correct"

    @property
    def decided(self) -> bool:
        """Whether the label says if the solution is right."""
        return self.label not in ("timeout", "error")

    @property
    def known(self) -> float:
        """The reward. Raises ValueError if it is unknown: it must have been left out before."""
        if self.reward is None:
            raise ValueError(f"this reward is unknown (label {self.label}), which is not 0")
        return self.reward


@dataclass(frozen=True, slots=True)
class Candidate:
    """A solution or a part of one: token ids as they were sampled, the text, and the answer extracted from it."""

    prompt: list[int]
    completion: Completion
    text: str
    answer: str | None


@dataclass(frozen=True, slots=True)
class Rollout(Candidate):
    """A candidate for a known problem, graded."""

    problem: Problem
    grade: Grade


class Task(Protocol):
    """Gives problems and grades solutions. ``problem`` is a pure function of its arguments."""

    @property
    def name(self) -> str: ...

    def problem(self, split: Any, i: int) -> Problem: ...

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        """Return (extracted answer, grade) of a solution's text. Called from several threads at once.

        A task that calls answers of equal value different has a method ``form(answer)`` too (see ``tasks.user.form_of``).
        """
        ...


@dataclass(slots=True)
class LastToken:
    """How the last-token score is read (LaSeR, arXiv:2510.14943): scale * (log p(token | problem, solution) - reference).

    Nothing is asked: the token is one that no solution is followed by, and the log-prob is read behind the solution's end
    token. The reference is what it was before training. It is NaN until the run has measured it; then all who share this see it.
    """

    token: int
    scale: float
    reference: float = math.nan


Group = list[Rollout]
"""All rollouts of one problem in one step."""


@dataclass(slots=True)
class Sample:
    """What the learner sees: lists of one length ``T``, and nothing about rewards, prompts or algorithms.

    * ``sampled``: whether the token was drawn from the policy; only drawn tokens are in the policy stream.
    * ``logprobs``: log-probs under the policy that drew the tokens (0 where ``sampled`` is False).
    * ``advantages``: credit per token.
    * ``targets``: weight of the negative log-likelihood of this token (0 where it is not a target).
    * ``reference``: log-probs under a frozen reference policy, for a KL term.
    * ``values``: (token index, label, weight) of each target of a scalar head; empty unless a recipe trains one.
    * ``fits``: (token index, token id, label, weight): regress log p(id | tokens up to the index), at temperature 1, on the
      label. The id need not be in ``tokens``.
    """

    tokens: list[int]
    sampled: list[bool]
    logprobs: list[float]
    advantages: list[float]
    targets: list[float]
    reference: list[float] | None = None
    values: list[tuple[int, float, float]] = field(default_factory=list)
    fits: list[tuple[int, int, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        lists: list[list[Any]] = [self.sampled, self.logprobs, self.advantages, self.targets]
        if self.reference is not None:
            lists.append(self.reference)
        if any(len(x) != len(self.tokens) for x in lists):
            raise ValueError(f"a Sample's lists must have one length, got {[len(self.tokens), *map(len, lists)]}")


@dataclass(frozen=True, slots=True)
class Collected:
    """What a recipe returns for one step.

    ``samples`` are for the learner of each role ("policy", and another where there is one), ``stats`` are numbers for the log,
    and ``groups`` are the rollouts that a person may want to read.
    """

    samples: dict[str, list[Sample]]
    stats: dict[str, float]
    groups: list[Group] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pool:
    """All samples of one problem in an evaluation. Every voting rule and every k is computed from it.

    * ``answers[i]``: the answer of sample i in its task's normal form, None if it has none. Equal forms are one class of votes.
    * ``scores[i]``: its P(Yes), None if nothing judged it.
    * ``tokens[i]``: number of its generated tokens; ``judge_tokens[i]``: number of tokens read in addition to judge it.
    * ``seconds``: this problem's share of the batch's wall-clock time.
    * ``certainty[i]``: its self-certainty, and ``traces[name][i]``: its DeepConf scores (``maths.confidence``), if recorded.
    """

    problem: Problem
    answers: list[str | None]
    grades: list[Grade]
    scores: list[float | None]
    tokens: list[int]
    judge_tokens: list[int]
    seconds: float
    certainty: list[float] | None = None
    traces: Mapping[str, list[float]] | None = None
