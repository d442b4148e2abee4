"""Ask a model to check a solution in writing, step by step (Tango's verifier, arXiv:2505.15034)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from twofold.engines.base import Engine
from twofold.text.chat import Chat
from twofold.text.steps import Critique, Cut, read, span_ends
from twofold.types import Candidate, Completion, Sampling

Of = Literal["steps", "final"]
"""Which part of a verification counts: its verdicts on the steps, or the final one, on the whole."""


@dataclass(frozen=True, slots=True)
class Verification:
    """One verification: its prompt, its completion, and the verdicts in it."""

    prompt: list[int]
    completion: Completion
    critique: Critique


def step_ends(chat: Chat, rollout: Candidate, cut: Cut) -> list[int]:
    """Return how many tokens of the completion there are up to the end of each of its steps."""
    return span_ends(chat.pieces(rollout.completion.tokens), cut)


def asked(chat: Chat, tokens: Sequence[int], question: str, steps: int) -> list[int]:
    """Return the verifier's prompt: ``tokens`` (prompt and solution) as they are, then the question with ``{steps}`` filled in."""
    return chat.ask(tokens, question.replace("{steps}", str(steps)))


def verify(
    engine: Engine, chat: Chat, rollouts: Sequence[Candidate], steps: Sequence[int], question: str, sampling: Sampling
) -> list[list[Verification]]:
    """Draw ``sampling.n`` verifications of each rollout, in one engine call. ``steps[i]`` is rollout i's number of steps.

    An engine that kept the rollouts' caches reads only the question.
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
    """Return each step's mean verdict (+1 right, -1 wrong) over the verifications that judge each step once; None if none does."""
    known = [v for x in verifications if (v := x.critique.step_verdicts(steps)) is not None]
    return [sum(2.0 * ok - 1 for ok in column) / len(known) for column in zip(*known, strict=True)] if known else None


def verification_scores(
    engine: Engine,
    chat: Chat,
    rollouts: Sequence[Candidate],
    question: str,
    sampling: Sampling,
    cut: Cut,
    of: Of = "steps",
) -> list[tuple[float, int]]:
    """Return (score, tokens of the request and of the verifications) per rollout, by ``sampling.n`` written verifications.

    ``of = "steps"``: the least share, over the rollout's steps, of verifications that call the step right, among those that
    judge each step once (0 if none does). ``of = "final"``: the share that calls the whole right. For two steps and the
    verdicts + + | + - | (unreadable), that is 1/2.
    """
    counts = [len(step_ends(chat, r, cut)) for r in rollouts]
    found = verify(engine, chat, rollouts, counts, question, sampling)
    scores = []
    for r, k, drawn in zip(rollouts, counts, found, strict=True):
        if of == "steps":
            score = (1 + min(mean_verdicts(drawn, k) or [-1.0])) / 2
        else:
            score = sum(v.critique.final is True for v in drawn) / len(drawn)
        read = len(drawn[0].prompt) - len(r.prompt) - len(r.completion.tokens)
        scores.append((score, read + sum(len(v.completion.tokens) for v in drawn)))
    return scores
