"""Ask the model whether its own solution is right: P(Yes) in one token, or a written judgement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from twofold.engines.base import Engine
from twofold.text.chat import CRITIQUE, JUDGE, Chat
from twofold.text.extract import last_boxed
from twofold.types import Rollout, Sampling

Judge = Literal["p_yes", "normalised", "written"]
"""How the model judges: P(Yes) as published, P(Yes) / (P(Yes) + P(No)), or a written critique."""


def question(chat: Chat, rollout: Rollout) -> list[int]:
    """The judgement prompt: the rollout's own tokens, the end of its turn, the question. Nothing is re-tokenised."""
    return chat.ask([*rollout.prompt, *rollout.completion.tokens], JUDGE)


def p_yes(engine: Engine, chat: Chat, rollouts: Sequence[Rollout], normalised: bool = False) -> list[float]:
    """P(Yes) per rollout (RL^V's score). ``normalised`` divides by P(Yes) + P(No); the published score does not.

    On an engine that kept the rollouts' caches this computes the question's tokens only.
    """
    yes, no = chat.verdicts
    prompts = [question(chat, r) for r in rollouts]
    scores = [math.exp(lp) for (lp,) in engine.logprobs(prompts, [[yes]] * len(prompts))]
    if not normalised:
        return scores
    against = [math.exp(lp) for (lp,) in engine.logprobs(prompts, [[no]] * len(prompts))]
    return [y / (y + n) for y, n in zip(scores, against, strict=True)]


def by_head(engine: Any, chat: Chat, rollouts: Sequence[Rollout], kind: Literal["bce", "regression"]) -> list[float]:
    """Scores of a trained scalar head (an ablation of RL^V), as probabilities. Needs the native engine."""
    outputs = engine.values([question(chat, r) for r in rollouts])
    if kind == "bce":
        return [1 / (1 + math.exp(-x)) for x in outputs]
    return [min(1.0, max(0.0, x)) for x in outputs]


def judge_cost(chat: Chat, rollout: Rollout) -> int:
    """Tokens that a one-token judgement reads beyond the rollout's own: the question and the verdict."""
    return len(question(chat, rollout)) - len(rollout.prompt) - len(rollout.completion.tokens) + 1


def written(
    engine: Engine, chat: Chat, rollouts: Sequence[Rollout], sampling: Sampling
) -> list[tuple[float | None, int]]:
    """LLM-as-a-judge: (share of ``sampling.n`` written critiques that end in CORRECT, tokens written) per rollout.

    The share is None where no verdict could be read.
    """
    prompts = [chat.ask([*r.prompt, *r.completion.tokens], CRITIQUE) for r in rollouts]
    judged: list[tuple[float | None, int]] = []
    for critiques in engine.generate(prompts, sampling):
        votes = [v for c in critiques if (v := verdict(chat.decode(c.tokens))) is not None]
        judged.append((sum(votes) / len(votes) if votes else None, sum(len(c.tokens) for c in critiques)))
    return judged


def verdicts(
    engine: Engine, chat: Chat, rollouts: Sequence[Rollout], judge: Judge, tokens: int = 128, seed: int = 0
) -> list[tuple[float, int]]:
    """(score, tokens read and written for it) of every rollout. ``tokens`` limits a written critique; one without a
    readable verdict is not an acceptance: 0."""
    if judge == "written":
        sampling = Sampling(temperature=0, max_tokens=tokens, stop=chat.stop, seed=seed)
        asked = len(chat.follow_up(CRITIQUE))
        return [(score or 0.0, asked + length) for score, length in written(engine, chat, rollouts, sampling)]
    scores = p_yes(engine, chat, rollouts, normalised=judge == "normalised")
    reads = 1 + (judge == "normalised")  # Yes and No are asked for apart
    return [(s, reads * judge_cost(chat, r)) for s, r in zip(scores, rollouts, strict=True)]


def verdict(text: str) -> bool | None:
    """The verdict a critique ends with: True, False, or None if it ends with neither.

    >>> verdict(r"<step>\\boxed{INCORRECT}</step> <final_verification>\\boxed{CORRECT}</final_verification>")
    True
    """
    return {"CORRECT": True, "YES": True, "INCORRECT": False, "NO": False}.get((last_boxed(text) or "").upper())
