"""Backtracking search as one stream of attempts, of which only the latest is kept in context (MRT-B, arXiv:2503.07572)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from twofold.compute.cost import Made, account, in_groups
from twofold.compute.rollout import candidate, forced, join, split
from twofold.engines.base import Engine
from twofold.ranges import Whole, checked
from twofold.text.chat import Chat
from twofold.text.segments import attempts
from twofold.types import Completion, Finish, Sampling


@checked
class Backtracking:
    """``windows``: how often a stream may continue after its first ``Sampling.max_tokens`` with its latest attempt alone.

    Each attempt depends on the one before it only. So the window, which never holds more than the prompt and ``max_tokens``,
    slides along a stream that may be longer than the model's context.
    """

    name: Literal["backtracking"] = "backtracking"
    windows: Whole = 4


def backtracking(
    engine: Engine, chat: Chat, questions: Sequence[str], n: int, sampling: Sampling, config: Backtracking
) -> list[Made]:
    """Draw ``n`` streams, until the model ends its turn or an attempt fills the window; one engine call per window.

    A stream's candidate is its last attempt that has an answer, as a solution of its own, with the lines that it shares
    with earlier attempts. Each token keeps the log-prob it was drawn with. Candidates have no scores. Tokens that are in no
    candidate count as discarded.
    """
    began = time.monotonic()
    owners = [q for q in questions for _ in range(n)]
    prompts = [chat.prompt(q) for q in owners]
    latest, generated = [forced([]) for _ in owners], [0] * len(owners)
    candidates = [candidate(chat, p, c) for p, c in zip(prompts, latest, strict=True)]
    going = list(range(len(owners)))
    for _ in range(config.windows + 1):
        rooms = [sampling.max_tokens - len(latest[i].tokens) for i in going]
        limit = replace(sampling, n=1, max_tokens=max(rooms, default=1))
        drawn = engine.generate([[*prompts[i], *latest[i].tokens] for i in going], limit) if going else []
        for i, room, (c,) in zip(going, rooms, drawn, strict=True):
            generated[i] += len(c.tokens)
            found = tried(chat, join(latest[i], split(c, room)[0]))
            latest[i] = found[-1]
            for attempt in found:
                rollout = candidate(chat, prompts[i], attempt)
                if rollout.answer is not None or not candidates[i].completion.tokens:
                    candidates[i] = rollout
        going = [i for i in going if latest[i].finish == "length" and len(latest[i].tokens) < sampling.max_tokens]
    # a stream may be nothing but marks
    groups = [[r for r in group if r.completion.tokens] for group in in_groups(candidates, n)]
    return account(prompts[::n], groups, [sum(g) for g in in_groups(generated, n)], began)


def tried(chat: Chat, stream: Completion) -> list[Completion]:
    """Return every attempt of a stream as a completion of its own, all but the last without the line break before the mark."""
    pieces = chat.pieces(stream.tokens)
    *earlier, last = attempts(pieces)
    for attempt in earlier:
        while attempt and pieces[attempt[-1]].isspace():
            attempt.pop()
    return [*(_picked(stream, attempt, "length") for attempt in earlier), _picked(stream, last, stream.finish)]


def _picked(c: Completion, places: Sequence[int], finish: Finish) -> Completion:
    """Return the tokens at these places as a completion."""
    confidence, certainty = (
        None if x is None else [x[t] for t in places] for x in (c.token_confidence, c.token_certainty)
    )
    tokens, logprobs = [c.tokens[t] for t in places], [c.logprobs[t] for t in places]
    return Completion(tokens, logprobs, [c.sampled[t] for t in places], finish, confidence, certainty)
