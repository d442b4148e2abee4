"""The confidence that a model states about its own solution, in one digit behind it (RLCR, arXiv:2507.16806)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from twofold.compute.verify import asked, unshared
from twofold.engines.base import Engine
from twofold.text.chat import Chat
from twofold.text.prompts import CONFIDENCE
from twofold.types import Candidate, Completion, Sampling

DIGITS = "0123456789"


def parse_confidence(text: str) -> float | None:
    """Return the confidence that a digit d states, (d + 1/2) / 10, which is the middle of its tenth; None for other texts.

    >>> parse_confidence("7"), parse_confidence(" 0"), parse_confidence("Yes"), parse_confidence("12")
    (0.75, 0.05, None, None)
    """
    said = text.strip()
    return (int(said) + 0.5) / 10 if len(said) == 1 and said in DIGITS else None


def state(
    engine: Engine, chat: Chat, solutions: Sequence[Candidate], sampling: Sampling
) -> list[tuple[list[int], Completion]]:
    """Make the model state its confidence in each solution. Return (prompt, what it wrote: one token), in one engine call."""
    prompts = [asked(chat, s, CONFIDENCE) for s in solutions]
    drawn = engine.generate(prompts, replace(sampling, n=1, max_tokens=1)) if prompts else []
    return [(prompt, said) for prompt, (said,) in zip(prompts, drawn, strict=True)]


def probabilities(engine: Engine, prompts: Sequence[list[int]], tokens: Sequence[int]) -> list[list[float]]:
    """Return, for each prompt, the probability of each of ``tokens`` behind it. The engine reads a prompt once."""
    contexts = [prompt for prompt in prompts for _ in tokens]
    found = engine.logprobs(contexts, [[token] for _ in prompts for token in tokens])
    flat, n = [math.exp(logp) for (logp,) in found], len(tokens)
    return [flat[i * n : (i + 1) * n] for i in range(len(prompts))]


def stated_scores(engine: Engine, chat: Chat, solutions: Sequence[Candidate]) -> list[tuple[float, int]]:
    """Return (score, tokens read for it beyond the solution's own) of each solution.

    The score is the mean of the confidences that the model would state, over the digits it may write. Half of the digits'
    probability on 9 and half on 4: (0.95 + 0.45) / 2 = 0.7. Raises ValueError if the tokenizer has no single token for a digit.
    """
    prompts = [asked(chat, s, CONFIDENCE) for s in solutions]
    rows = probabilities(engine, prompts, chat.single_tokens(DIGITS))
    means = [sum(p * (parse_confidence(d) or 0.0) for p, d in zip(row, DIGITS, strict=True)) / sum(row) for row in rows]
    return [(q, unshared(prompt, s) + 1) for q, prompt, s in zip(means, prompts, solutions, strict=True)]
