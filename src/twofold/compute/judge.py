"""Ask the model whether its own solution is right: P(Yes) in one token, or in writing, of the whole or of every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from twofold.compute.verify import scored
from twofold.engines.base import Engine
from twofold.text.chat import Chat
from twofold.text.extract import last_boxed
from twofold.text.prompts import CRITIQUE, JUDGE, VERIFY
from twofold.text.steps import Cut
from twofold.types import Candidate, Sampling

Judge = Literal["p_yes", "normalised", "written", "steps"]
"""How the model judges: P(Yes) as published, P(Yes) / (P(Yes) + P(No)), or written critiques, by their verdict on the whole
(``written``) or by the least of those on the steps (``steps``)."""
Head = Literal["head"]
"""A trained scalar head that judges in the words' place."""


def question(chat: Chat, rollout: Candidate) -> list[int]:
    """The judgement prompt: the rollout's own tokens, the end of its turn, the question. Nothing is re-tokenised."""
    return chat.ask([*rollout.prompt, *rollout.completion.tokens], JUDGE)


def p_yes(engine: Engine, chat: Chat, rollouts: Sequence[Candidate], normalised: bool = False) -> list[float]:
    """P(Yes) per rollout (RL^V's score). ``normalised`` divides by P(Yes) + P(No); the published score does not.

    On an engine that kept the rollouts' caches this computes the question's tokens only, once for both words.
    """
    words = chat.yes_no_ids if normalised else chat.yes_no_ids[:1]
    prompts = [question(chat, r) for r in rollouts for _ in words]
    scores = [math.exp(lp) for (lp,) in engine.logprobs(prompts, [[word] for _ in rollouts for word in words])]
    if not normalised:
        return scores
    return [yes / (yes + no) for yes, no in zip(scores[::2], scores[1::2], strict=True)]


def by_head(engine: Any, chat: Chat, rollouts: Sequence[Candidate]) -> list[float]:
    """P(right) by a trained scalar head (an ablation of RL^V). Needs the native engine."""
    return engine.values([question(chat, r) for r in rollouts])


def judge_cost(chat: Chat, rollout: Candidate) -> int:
    """Tokens that a one-token judgement reads beyond the rollout's own: the question and the verdict."""
    return len(question(chat, rollout)) - len(rollout.prompt) - len(rollout.completion.tokens) + 1


def written(
    engine: Engine, chat: Chat, rollouts: Sequence[Candidate], sampling: Sampling
) -> list[tuple[float | None, int]]:
    """LLM-as-a-judge: (share of ``sampling.n`` written critiques that end in CORRECT, tokens of the request and of the
    critiques) per rollout. The share is None where no verdict could be read.
    """
    own = [[*r.prompt, *r.completion.tokens] for r in rollouts]
    prompts = [chat.ask(tokens, CRITIQUE) for tokens in own]
    judged: list[tuple[float | None, int]] = []
    for tokens, prompt, critiques in zip(own, prompts, engine.generate(prompts, sampling), strict=True):
        votes = [v for c in critiques if (v := parse_verdict(chat.decode(c.tokens))) is not None]
        spent = len(prompt) - len(tokens) + sum(len(c.tokens) for c in critiques)
        judged.append((sum(votes) / len(votes) if votes else None, spent))
    return judged


def by_steps(engine: Engine, chat: Chat, rollouts: Sequence[Candidate], sampling: Sampling) -> list[tuple[float, int]]:
    """(least share, over a solution's steps, of ``sampling.n`` verifications that call the step right; their tokens).

    Steps between tags are asked about with ``text.steps.VERIFY``, steps on lines, as the shipped model writes them, with its own
    question: what Tango's verifiers and the shipped model know. One engine call for either.
    """
    found: dict[int, tuple[float, int]] = {}
    forms: list[tuple[Cut, str]] = [("tags", VERIFY), ("lines", CRITIQUE)]
    for cut, question in forms:
        mine = [i for i, r in enumerate(rollouts) if ("<step>" in r.text) == (cut == "tags")]
        scores = scored(engine, chat, [rollouts[i] for i in mine], question, sampling, cut)
        found |= dict(zip(mine, scores, strict=True))
    return [found[i] for i in range(len(rollouts))]


def verdicts(
    engine: Engine,
    chat: Chat,
    rollouts: Sequence[Candidate],
    judge: Judge | Head,
    tokens: int = 128,
    seed: int = 0,
    votes: int = 1,
) -> list[tuple[float, int]]:
    """(score, tokens read and written for it beyond the rollout's own) of every rollout. ``tokens`` limits a written
    critique; one without a readable verdict is not an acceptance: 0. One is greedy, several ``votes`` are drawn at
    temperature 1. A head needs the native engine."""
    sampling = Sampling(votes, float(votes > 1), max_tokens=tokens, stop=chat.stop, seed=seed)
    if judge == "written":
        return [(score or 0.0, spent) for score, spent in written(engine, chat, rollouts, sampling)]
    if judge == "steps":
        return by_steps(engine, chat, rollouts, sampling)
    normalised = judge == "normalised"
    scores = by_head(engine, chat, rollouts) if judge == "head" else p_yes(engine, chat, rollouts, normalised)
    return [(s, judge_cost(chat, r)) for s, r in zip(scores, rollouts, strict=True)]


def parse_verdict(text: str) -> bool | None:
    """The verdict a critique ends with: True, False, or None if it ends with neither.

    >>> parse_verdict(r"<step>\\boxed{INCORRECT}</step> <final_verification>\\boxed{CORRECT}</final_verification>")
    True
    """
    return {"CORRECT": True, "YES": True, "INCORRECT": False, "NO": False}.get((last_boxed(text) or "").upper())
