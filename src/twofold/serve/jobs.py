"""The work of a request's thread: sample, run a plan, or score a text. It calls the engine and knows no HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol

from twofold.compute.cost import Cost
from twofold.compute.plan import Plan
from twofold.compute.solve import solve
from twofold.serve.scheduler import RequestEngine
from twofold.serve.schema import Refused
from twofold.text.chat import Chat
from twofold.types import Sampling


class Same(Protocol):
    """Whether two answers in normal form are mathematically equal, as far as that can be decided in time.

    ``left`` returns the seconds that are left, 0 or less when the result is no longer wanted.
    """

    def __call__(self, a: str, b: str, left: Callable[[], float]) -> bool: ...


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice of a reply. A plan's has no tokens; its ``details`` are the answer, confidence, votes and candidates."""

    text: str
    finish: Literal["stop", "length"]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    """None at a prompt's first token, which nothing predicts."""
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    """The likeliest tokens of each place with their log-probs; empty if they were not asked for."""
    details: dict[str, Any] = field(default_factory=dict)
    start: int = 0
    """Where the first token's text begins, in characters from the beginning of the prompt."""


@dataclass(frozen=True, slots=True)
class Job:
    """The work of a request, done by ``run``. ``tokens`` is the size of its prompts."""

    run: Callable[[RequestEngine], Answer]
    tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    choices: list[Choice]
    cost: Cost
    timed_out: bool


def sample(
    engine: RequestEngine,
    chat: Chat,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    echo: bool = False,
    top: int = 0,
) -> Answer:
    """Return ``sampling.n`` choices for each prompt. ``echo`` puts the prompt with its log-probs before each choice.

    With ``top``, the completions are scored again when they are complete, so that a token's log-prob is the number it also has
    among the likeliest.
    """
    began = time.monotonic()
    choices = []
    echoed = _score_prompts(engine, prompts, sampling.temperature, top) if echo else [([], []) for _ in prompts]
    groups = engine.generate(prompts, sampling)
    rows = [(prompt, head, c) for prompt, head, group in zip(prompts, echoed, groups, strict=True) for c in group]
    if top:
        temperature = sampling.temperature or 1.0
        scored = engine.scored([p for p, _, _ in rows], [c.tokens for _, _, c in rows], temperature, top)
    else:
        scored = [(c.logprobs, [{} for _ in c.tokens]) for _, _, c in rows]
    for (prompt, head, c), tail in zip(rows, scored, strict=True):
        before, stops = chat.decode(prompt), engine.state.stops
        if echo:
            tokens, text = [*prompt, *c.tokens], before + stops.cut(chat.decode([*prompt, *c.tokens])[len(before) :])
        else:
            tokens, text = c.tokens, stops.cut(stops.decode(c.tokens))
        scores = ([*head[0], *tail[0]], [*head[1], *tail[1]])
        choices.append(Choice(text, c.finish, tokens, *scores, start=0 if echo else len(before)))
    cost = Cost(sum(map(len, prompts)), engine.generated, 0, engine.discarded, time.monotonic() - began)
    return Answer(choices, cost, time.monotonic() >= engine.state.deadline)


def score(engine: RequestEngine, chat: Chat, prompts: Sequence[Sequence[int]], temperature: float, top: int) -> Answer:
    """Return the prompts themselves with their log-probs; nothing is generated."""
    began = time.monotonic()
    scored = _score_prompts(engine, prompts, temperature, top)
    choices = [Choice(chat.decode(p), "length", list(p), *found) for p, found in zip(prompts, scored, strict=True)]
    return Answer(choices, Cost(prompt=sum(map(len, prompts)), seconds=time.monotonic() - began), False)


def run_plan(engine: RequestEngine, chat: Chat, question: str, plan: Plan, same: Same) -> Answer:
    """Return the plan's one choice. Raises Refused if the plan cannot run."""
    try:
        s = solve(engine, chat, [question], plan, partial(same, left=engine.state.seconds_left))[0]
    except ValueError as error:
        raise Refused(400, f"this plan cannot run: {error}"[:400], "invalid_plan", "plan") from error
    beyond = engine.discarded  # drawn after stop strings, which no strategy sees
    cost = replace(s.cost, generated=s.cost.generated + beyond, discarded=s.cost.discarded + beyond)
    late = time.monotonic() >= engine.state.deadline
    candidates = [{"answer": a, "score": x} for a, x in zip(s.answers, s.scores, strict=True)]
    details = {"answer": s.answer, "confidence": s.confidence, "votes": s.votes, "candidates": candidates}
    choice = Choice(engine.state.stops.cut(s.text), "length" if late else s.finish, details=details)
    return Answer([choice], cost, late)


def _score_prompts(
    engine: RequestEngine, prompts: Sequence[Sequence[int]], temperature: float, top: int
) -> list[tuple[list[float | None], list[dict[int, float]]]]:
    """Return the log-probs and the likeliest tokens of each prompt, with None and nothing at its first token."""
    try:
        scored = engine.scored([p[:1] for p in prompts], [p[1:] for p in prompts], temperature or 1.0, top)
    except ValueError as error:
        raise Refused(400, str(error), param="temperature") from error
    return [([None, *logprobs], [{}, *likeliest]) for logprobs, likeliest in scored]
