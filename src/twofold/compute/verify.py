"""Ask a model to check a solution in writing: the whole, or step by step (Tango's verifier, arXiv:2505.15034)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from twofold.compute.rollout import as_read
from twofold.engines.base import Engine
from twofold.text.chat import Chat
from twofold.text.extract import last_boxed
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


def asked(chat: Chat, rollout: Candidate, question: str) -> list[int]:
    """Return the prompt of a judgement: the rollout as a reader has it (see ``as_read``), the end of its turn, the question."""
    read = as_read(chat, rollout)
    return chat.ask([*read.prompt, *read.completion.tokens], question)


def unshared(prompt: Sequence[int], rollout: Candidate) -> int:
    """Return how many tokens of a prompt about a rollout come after those that are the rollout's own."""
    own = [*rollout.prompt, *rollout.completion.tokens]
    return len(prompt) - next((i for i, (a, b) in enumerate(zip(prompt, own, strict=False)) if a != b), len(own))


def verify(
    engine: Engine, chat: Chat, rollouts: Sequence[Candidate], steps: Sequence[int], question: str, sampling: Sampling
) -> list[list[Verification]]:
    """Draw ``sampling.n`` verifications of each rollout, in one engine call. ``steps[i]`` is rollout i's number of steps.

    An engine that kept the rollouts' caches reads only the question.
    """
    prompts = [asked(chat, r, question.replace("{steps}", str(k))) for r, k in zip(rollouts, steps, strict=True)]
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
        scores.append((score, unshared(drawn[0].prompt, r) + sum(len(v.completion.tokens) for v in drawn)))
    return scores


def critique_scores(
    engine: Engine, chat: Chat, rollouts: Sequence[Candidate], question: str, sampling: Sampling
) -> list[tuple[float | None, int]]:
    """LLM-as-a-judge: return (score, tokens of the request and of the critiques) per rollout.

    The score is the share of ``sampling.n`` written critiques that end in CORRECT, among those whose verdict can be read;
    None where none can.
    """
    prompts = [asked(chat, r, question) for r in rollouts]
    judged: list[tuple[float | None, int]] = []
    for rollout, prompt, critiques in zip(rollouts, prompts, engine.generate(prompts, sampling), strict=True):
        votes = [v for c in critiques if (v := parse_verdict(chat.decode(c.tokens))) is not None]
        spent = unshared(prompt, rollout) + sum(len(c.tokens) for c in critiques)
        judged.append((sum(votes) / len(votes) if votes else None, spent))
    return judged


def parse_verdict(text: str) -> bool | None:
    """Return the verdict a critique ends with: True, False, or None if it ends with neither.

    >>> parse_verdict(r"<step>\\boxed{INCORRECT}</step> <final_verification>\\boxed{CORRECT}</final_verification>")
    True
    """
    return {"CORRECT": True, "YES": True, "INCORRECT": False, "NO": False}.get((last_boxed(text) or "").upper())
