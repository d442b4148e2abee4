"""The engine protocol: tokens in, tokens and log-probs out. No text, template or tool inside.

Whoever spends inference needs two verbs (``Engine``); the trainer two more (``PolicyEngine``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from twofold.types import Completion, Sampling

Scored = tuple[list[float], list[dict[int, float]]]
"""Per token of a continuation: its log-prob, and the likeliest tokens in its place with theirs, likeliest first."""

Finished = Callable[[int, int, Completion], None]
"""Told that sample j of prompt i has ended: (i, j, completion)."""


def unheard(i: int, j: int, completion: Completion) -> None:
    """For those who wait for the whole result."""


def told(groups: list[list[Completion]], finished: Finished) -> list[list[Completion]]:
    """``groups``, when ``finished`` has been told of them: for an engine that hears of all at once."""
    for i, group in enumerate(groups):
        for j, completion in enumerate(group):
            finished(i, j, completion)
    return groups


class Engine(Protocol):
    """What callers may rely on. They make one call per phase, never one per rollout."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished = unheard
    ) -> list[list[Completion]]:
        """``sampling.n`` completions for each prompt (token ids). ``logprobs`` are those of the distribution
        sampled from (temperature and top-p included; greedy: of the untempered softmax).

        ``finished`` is told of every completion once, in any order and thread, before the call returns; as soon as it has
        ended where the engine knows. What it does holds up the others.
        """
        ...

    def logprobs(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> list[list[float]]:
        """log p(continuation[t] | prompt, continuation[:t]) of each pair, at ``temperature``, in nats.

        Raises ValueError, as ``generate`` does, for a prompt without tokens.
        """
        ...


class PolicyEngine(Engine, Protocol):
    """An engine of the policy in training."""

    def load(self, weights: Mapping[str, Any]) -> None:
        """Take a new policy; whatever was cached under the old one is dropped."""
        ...

    def rest(self) -> None:
        """Give memory back to the trainer until the next call."""
        ...


class UpstreamError(OSError):
    """A server that an engine stands for cannot be reached, is too busy, or gave no answer that can be read.

    ``status``: its HTTP status, or a gateway's for it (502 bad answer, 503 not reached, 504 too late).
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def check_prompts(prompts: Sequence[Sequence[int]]) -> None:
    """Raises ValueError for a prompt without tokens: there is nothing to predict its first token from."""
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {i} of {len(prompts)} has no tokens: begin it with at least one")
