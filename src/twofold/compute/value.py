"""The value of a partial solution: the model's own verdict on it, on its steps, or on the answers that it leads to.

Any function of the type ``Value`` will do, for instance one that asks another model's process verifier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from twofold.compute.judge import judge_cost, p_yes
from twofold.compute.rollout import candidate, forced, join
from twofold.compute.verify import Of, verification_scores
from twofold.engines.base import Engine
from twofold.text.chat import Chat
from twofold.text.notation import canonical
from twofold.text.prompts import ANSWER, CRITIQUE, VERIFY
from twofold.text.steps import Cut
from twofold.types import Candidate, Sampling

Value = Callable[[Engine, Chat, Sequence[Candidate]], list[tuple[float, int]]]
"""(engine, chat, partial solutions) -> (value in [0, 1], tokens read or written to find it, beyond the solution's own) of each."""

ValueName = Literal["p_yes", "outlook", "agreement", "steps", "tagged_steps"]


def p_yes_value(engine: Engine, chat: Chat, partials: Sequence[Candidate]) -> list[tuple[float, int]]:
    """Return P(Yes) of the solution as it stands, finished or not. This is the cheapest value: no token is written."""
    return [(p, judge_cost(chat, r)) for p, r in zip(p_yes(engine, chat, partials), partials, strict=True)]


def outlook(engine: Engine, chat: Chat, partials: Sequence[Candidate], k: int = 4) -> list[tuple[float, int]]:
    """Return the mean P(Yes) of ``k`` solutions whose answer is forced here; for a finished solution, its own P(Yes)."""
    probes, spent = answers_here(engine, chat, partials, k)
    everyone = [r for group in probes for r in group]
    scores = iter(p_yes_value(engine, chat, everyone))
    values = []
    for group, tokens in zip(probes, spent, strict=True):
        mine = [next(scores) for _ in group]
        values.append((sum(p for p, _ in mine) / len(mine), tokens + sum(read for _, read in mine)))
    return values


def agreement(engine: Engine, chat: Chat, partials: Sequence[Candidate], k: int = 4) -> list[tuple[float, int]]:
    """Return the share of the most frequent among ``k`` forced answers; for a finished solution, 1 with an answer, else 0."""
    values = []
    for group, tokens in zip(*answers_here(engine, chat, partials, k), strict=True):
        counts = Counter(canonical(r.answer) for r in group if r.answer is not None)
        values.append((max(counts.values(), default=0) / len(group), tokens))
    return values


def verification_value(question: str, sampling: Sampling, cut: Cut = "tags", of: Of = "steps") -> Value:
    """Return a value by ``sampling.n`` written verifications, asked for with ``question`` (see ``verification_scores``)."""

    def value(engine: Engine, chat: Chat, partials: Sequence[Candidate]) -> list[tuple[float, int]]:
        return verification_scores(engine, chat, partials, question, replace(sampling, stop=chat.stop), cut, of)

    return value


def answers_here(
    engine: Engine, chat: Chat, partials: Sequence[Candidate], k: int, closing: str = ANSWER, limit: int = 32
) -> tuple[list[list[Candidate]], list[int]]:
    """Force ``k`` answers from each partial solution; return (solutions, tokens forced and drawn) per partial solution.

    A new line, ``closing`` and at most ``limit`` tokens of one line are added. A finished solution is returned as it is.
    """
    still = [i for i, r in enumerate(partials) if r.completion.finish == "length"]
    ends = {
        i: forced(chat.encode(("" if partials[i].text.endswith("\n") else "\n") + closing, tags=True)) for i in still
    }
    prompts = [[*partials[i].prompt, *partials[i].completion.tokens, *ends[i].tokens] for i in still]
    sampling = Sampling(n=k, max_tokens=limit, stop=(*chat.stop, *chat.line_ends))
    groups, spent = [[r] for r in partials], [0] * len(partials)
    for i, completions in zip(still, engine.generate(prompts, sampling) if still else [], strict=True):
        r = partials[i]
        groups[i] = [candidate(chat, r.prompt, join(r.completion, ends[i], c)) for c in completions]
        spent[i] = sum(len(ends[i].tokens) + len(c.tokens) for c in completions)
    return groups, spent


VALUES: dict[ValueName, Value] = {
    "p_yes": p_yes_value,
    "outlook": outlook,
    "agreement": agreement,
    "steps": verification_value(CRITIQUE, Sampling(n=4, max_tokens=128), "lines"),
    "tagged_steps": verification_value(VERIFY, Sampling(n=4, max_tokens=128), "tags"),
}
"""``steps`` and ``tagged_steps``: the least share, over the steps so far, of four verifications that call the step right; steps
are lines, or stand between tags."""
