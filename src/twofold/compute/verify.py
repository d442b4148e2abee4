"""Ask a model to check a solution in writing, step by step (Tango's verifier, arXiv:2505.15034)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twofold.engines.base import Engine
from twofold.text.chat import Chat
from twofold.text.steps import Critique, Cut, read, token_ends
from twofold.types import Completion, Rollout, Sampling


@dataclass(frozen=True, slots=True)
class Verification:
    """One verification as it was drawn, and what it says."""

    prompt: list[int]
    completion: Completion
    critique: Critique


def step_ends(chat: Chat, rollout: Rollout, cut: Cut) -> list[int]:
    """Tokens of the completion up to the end of each of its steps."""
    return token_ends([chat.decode([t]) for t in rollout.completion.tokens], cut)


def asked(chat: Chat, tokens: Sequence[int], question: str, steps: int) -> list[int]:
    """The verifier's prompt: prompt and solution as they are, then the question, with ``{steps}`` in it filled in."""
    return chat.ask(tokens, question.replace("{steps}", str(steps)))


def verify(
    engine: Engine, chat: Chat, rollouts: Sequence[Rollout], steps: Sequence[int], question: str, sampling: Sampling
) -> list[list[Verification]]:
    """``sampling.n`` verifications of each rollout, whose number of steps is in ``steps``; all in one engine call.

    An engine that kept the rollouts' caches reads only the question and writes.
    """
    prompts = [
        asked(chat, [*r.prompt, *r.completion.tokens], question, k) for r, k in zip(rollouts, steps, strict=True)
    ]
    drawn = engine.generate(prompts, sampling) if prompts else []
    return [
        [Verification(p, c, read(chat.decode(c.tokens))) for c in completions]
        for p, completions in zip(prompts, drawn, strict=True)
    ]


def mean_verdicts(verifications: Sequence[Verification], steps: int) -> list[float] | None:
    """Mean verdict of each step, +1 right, -1 wrong, over the verifications that judge each step once; None if none does."""
    known = [v for x in verifications if (v := x.critique.verdicts(steps)) is not None]
    return [sum(2.0 * ok - 1 for ok in column) / len(known) for column in zip(*known, strict=True)] if known else None
