"""What a request's thread does: sample, solve by a plan, or score a text. Engine calls only, no HTTP."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from twofold.compute.cost import Cost
from twofold.compute.plan import Plan
from twofold.compute.select import Same
from twofold.compute.solve import solve
from twofold.serve.scheduler import Client
from twofold.serve.schema import Refused
from twofold.text.chat import Chat
from twofold.types import Sampling


@dataclass(frozen=True, slots=True)
class Choice:
    """``tokens`` with ``logprobs`` (None for a first token of a prompt) and the likeliest tokens of each place (none if they
    were not asked for), if these can be told."""

    text: str
    finish: Literal["stop", "length"]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    tops: list[dict[int, float]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    choices: list[Choice]
    cost: Cost
    timed_out: bool


def sample(
    client: Client, chat: Chat, prompts: Sequence[Sequence[int]], sampling: Sampling, echo: bool = False, top: int = 0
) -> Answer:
    """``sampling.n`` choices for each prompt; ``echo`` puts the prompt, with its log-probs, in front. With ``top``, the
    completions are scored once they are there, so that a token's log-prob is the one it has among the likeliest."""
    began = time.monotonic()
    choices = []
    heads = _scored(client, prompts, sampling.temperature, top) if echo else [([], []) for _ in prompts]
    groups = client.generate(prompts, sampling)
    rows = [(prompt, head, c) for prompt, head, group in zip(prompts, heads, groups, strict=True) for c in group]
    if top:
        heat = sampling.temperature or 1.0
        tails = client.scored([p for p, _, _ in rows], [c.tokens for _, _, c in rows], heat, top)
    else:
        tails = [(c.logprobs, [{} for _ in c.tokens]) for _, _, c in rows]
    for (prompt, head, c), tail in zip(rows, tails, strict=True):
        text, tokens = client.ticket.stops.cut(chat.decode(c.tokens)), c.tokens
        if echo:
            text, tokens = chat.decode(prompt) + text, [*prompt, *c.tokens]
        choices.append(Choice(text, c.finish, tokens, [*head[0], *tail[0]], [*head[1], *tail[1]]))
    generated = sum(len(row) for batch in client.batches for row in batch.rows)
    cost = Cost(sum(map(len, prompts)), generated, 0, client.dropped, time.monotonic() - began)
    return Answer(choices, cost, time.monotonic() >= client.ticket.deadline)


def score(client: Client, chat: Chat, prompts: Sequence[Sequence[int]], temperature: float, top: int) -> Answer:
    """The prompts themselves with their log-probs: nothing is generated."""
    began = time.monotonic()
    heads = _scored(client, prompts, temperature, top)
    choices = [Choice(chat.decode(p), "length", list(p), *head) for p, head in zip(prompts, heads, strict=True)]
    return Answer(choices, Cost(prompt=sum(map(len, prompts)), seconds=time.monotonic() - began), False)


def plan(client: Client, chat: Chat, question: str, chosen: Plan, same: Same) -> Answer:
    """One choice, which carries its answer, confidence, votes and candidates. Raises Refused for a plan that cannot run."""
    try:
        s = solve(client, chat, [question], chosen, same)[0]
    except ValueError as error:
        raise Refused(400, f"this plan cannot be carried out: {error}"[:400], "invalid_plan", "plan") from error
    beyond = client.dropped  # drawn behind stop strings: no strategy knows of them
    cost = replace(s.cost, generated=s.cost.generated + beyond, discarded=s.cost.discarded + beyond)
    late = time.monotonic() >= client.ticket.deadline
    candidates = [{"answer": a, "score": x} for a, x in zip(s.answers, s.scores, strict=True)]
    details = {"answer": s.answer, "confidence": s.confidence, "votes": s.votes, "candidates": candidates}
    return Answer([Choice(client.ticket.stops.cut(s.text), "length" if late else "stop", details=details)], cost, late)


def _scored(
    client: Client, prompts: Sequence[Sequence[int]], temperature: float, top: int
) -> list[tuple[list[float | None], list[dict[int, float]]]]:
    """Log-prob and likeliest of every token of a text but the first, which nothing predicts."""
    try:
        found = client.scored([p[:1] for p in prompts], [p[1:] for p in prompts], temperature or 1.0, top)
    except ValueError as error:
        raise Refused(400, str(error), param="temperature") from error
    return [([None, *values], [{}, *tops]) for values, tops in found]
