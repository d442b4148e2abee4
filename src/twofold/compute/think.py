"""Think longer: budget forcing (s1), extrapolation strings (MRT), and rounds of self-correction.

Forced tokens are ``sampled = False`` in the completion.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from twofold.compute.cost import Made, account, in_groups
from twofold.compute.judge import judge_cost, p_yes, question
from twofold.compute.rollout import candidate, continue_from, forced, join, split
from twofold.engines.base import Engine
from twofold.ranges import Count, Share, Whole, checked
from twofold.text.chat import Chat
from twofold.text.prompts import ANSWER, RETRY, WAIT
from twofold.text.segments import whole_paragraphs
from twofold.types import Candidate, Completion, Rollout, Sampling


@checked
class Forcing:
    """How long to think, in the terms of s1 (arXiv:2501.19393). ``Sampling.max_tokens`` is the limit of the thought.

    * ``opening``: forced at the thought's beginning (``<think>``, if the chat template does not add it).
    * ``end``: the token that ends a thought, such as ``</think>``. If empty, the thought is the whole solution, up to the end
      of its turn.
    * ``answer``: forced after ``end`` where a thought was cut; at most ``answer_tokens`` tokens follow.
    * ``times``: how often the end is replaced by one of ``waits``, in turn, so that the thought continues.
    * ``each``: token limit of every continuation, cut back to whole paragraphs (MRT). None: all share one limit (s1).
    """

    name: Literal["forcing"] = "forcing"
    opening: str = ""
    end: str = ""
    answer: str = ANSWER
    waits: tuple[str, ...] = WAIT
    times: Whole = 0
    each: Count | None = None
    answer_tokens: Count = 64

    def __post_init__(self) -> None:
        if self.times and not self.waits:
            raise ValueError("to continue, a thought needs a string in waits, such as 'Wait'")


@dataclass(slots=True)
class Draft:
    """An unfinished solution. The token that ended its thought is in ``ended``, not in ``text``, until it is used.

    ``start`` is where its latest continuation begins. ``used`` counts the thought's drawn tokens; ``generated`` counts all
    tokens, including forced and dropped ones.
    """

    prompt: list[int]
    text: Completion
    ended: Completion | None = None
    start: int = 0
    used: int = 0
    generated: int = 0

    def say(self, chat: Chat, words: str) -> None:
        """Force ``words``, on a line of their own."""
        self.force(_on_a_line(chat, self.text, words).tokens)

    def force(self, tokens: list[int]) -> None:
        self.text = join(self.text, forced(tokens))
        self.generated += len(tokens)


def forcing(
    engine: Engine, chat: Chat, questions: Sequence[str], n: int, sampling: Sampling, config: Forcing
) -> list[Made]:
    """Draw ``n`` solutions by budget forcing, without scores; one engine call per continuation, and one for the answers.

    A thought that overruns its own share of a common limit is cut after the call, as in s1's evaluation. What was cut off
    counts as generated and discarded. Raises ValueError if ``config.end`` is not a single token.
    """
    began = time.monotonic()
    end = chat.encode(config.end, tags=True)
    if len(end) > 1:
        raise ValueError(f"end {config.end!r} must be a single token to stop at; this tokenizer makes {len(end)} of it")
    drafts = [Draft(chat.prompt(q), forced([])) for q in questions for _ in range(n)]
    for d in drafts:
        d.force(chat.encode(config.opening, tags=True))
    thinking = drafts
    for i in range(config.times + 1):
        for d in thinking if i else []:
            d.start, d.ended = len(d.text.tokens), None
            d.say(chat, config.waits[(i - 1) % len(config.waits)])
        own = config.each if i else None
        rooms = [own or max(1, sampling.max_tokens - d.used) for d in thinking]
        _continue_drafts(engine, thinking, rooms, replace(sampling, n=1, stop=(*end, *chat.stop)))
        thinking = [d for d in thinking if d.ended or own]
        for d in thinking:
            if not d.ended:
                d.text, _ = split(d.text, d.start + whole_paragraphs(chat.pieces(d.text.tokens[d.start :])))
    finished = _answered(engine, chat, drafts, sampling, config, end)
    candidates = [candidate(chat, d.prompt, c) for d, c in zip(drafts, finished, strict=True)]
    spent = [sum(g) for g in in_groups([d.generated for d in drafts], n)]
    return account([d.prompt for d in drafts[::n]], in_groups(candidates, n), spent, began)


def continue_thoughts(
    engine: Engine, chat: Chat, thoughts: Sequence[Rollout], words: str, sampling: Sampling
) -> list[Rollout]:
    """Continue thoughts that had ended, given without their end, after ``words``; one engine call.

    A continuation that ``sampling.max_tokens`` cuts goes back to its last whole paragraph, which may leave the thought as it
    was.
    """
    begun = [replace(r, completion=join(r.completion, _on_a_line(chat, r.completion, words))) for r in thoughts]
    found = []
    for r, longer in zip(thoughts, continue_from(engine, chat, begun, sampling), strict=True):
        c, start = longer.completion, len(r.completion.tokens)
        end = len(c.tokens) - 1 if c.finish == "stop" else start + whole_paragraphs(chat.pieces(c.tokens[start:]))
        thought, _ = split(c, end)
        found.append(replace(r, completion=thought, text=chat.decode(thought.tokens)))
    return found


def _on_a_line(chat: Chat, before: Completion, words: str) -> Completion:
    """Return ``words`` as forced tokens that begin on a new line after ``before``."""
    text = chat.decode(before.tokens)
    line = "" if not text or text.endswith("\n") else "\n"
    return forced(chat.encode(line + words, tags=True))


def _continue_drafts(engine: Engine, drafts: Sequence[Draft], rooms: Sequence[int], sampling: Sampling) -> None:
    """Continue every draft by up to its number of ``rooms`` tokens or to a stop token, which is set apart; one engine call."""
    if not drafts:
        return
    prompts = [[*d.prompt, *d.text.tokens] for d in drafts]
    drawn = engine.generate(prompts, replace(sampling, max_tokens=max(rooms)))
    for d, room, (c,) in zip(drafts, rooms, drawn, strict=True):
        thought, _ = split(c, room)
        d.generated += len(c.tokens)
        d.used += len(thought.tokens)
        if thought.finish == "stop":
            thought, d.ended = split(thought, len(thought.tokens) - 1)
        d.text = join(d.text, thought)


def _answered(
    engine: Engine, chat: Chat, drafts: Sequence[Draft], sampling: Sampling, config: Forcing, end: list[int]
) -> list[Completion]:
    """Return every draft with its answer. A thought that was cut is closed and made to answer, in one engine call."""
    open_ = []
    for d in drafts:
        if d.ended and d.ended.tokens == end:
            d.text = join(d.text, d.ended)
        elif d.ended and not end:
            d.text = join(d.text, d.ended)
            continue
        else:
            for words in filter(None, (config.end, config.answer)):
                d.say(chat, words)
        open_.append(d)
    if open_:
        prompts = [[*d.prompt, *d.text.tokens] for d in open_]
        limit = replace(sampling, n=1, max_tokens=config.answer_tokens, stop=chat.stop)
        for d, (c,) in zip(open_, engine.generate(prompts, limit), strict=True):
            d.generated += len(c.tokens)
            d.text = join(d.text, c)
    return [d.text for d in drafts]


@checked
class Correction:
    """At most ``rounds`` retries. A solution whose P(Yes) is at least ``accept`` is not tried again.

    ``keep``: which attempt of a chain becomes the candidate, the ``last`` or the one of ``best`` P(Yes). ``retry`` is said
    after the verdict No; ``{question}`` in it stands for the question.
    """

    name: Literal["correction"] = "correction"
    rounds: Whole = 1
    accept: Share = 0.5
    keep: Literal["last", "best"] = "last"
    retry: str = RETRY


def correction(
    engine: Engine, chat: Chat, questions: Sequence[str], n: int, sampling: Sampling, config: Correction
) -> list[Made]:
    """Draw ``n`` chains of attempts: solve, verify, and after the verdict No solve again with all of it in context.

    A candidate's prompt holds everything that it was drawn from, earlier attempts included. Its score is P(Yes), asked
    there. Other attempts count as discarded. A round is one engine call and one judging call.
    """
    began = time.monotonic()
    prompts = [chat.prompt(q) for q in questions]
    sampling = replace(sampling, stop=chat.stop)
    drawn = engine.generate(prompts, replace(sampling, n=n))
    latest = [candidate(chat, p, c) for p, cs in zip(prompts, drawn, strict=True) for c in cs]
    chains: list[list[tuple[float, Candidate]]] = [[] for _ in latest]
    generated, verified = [len(r.completion.tokens) for r in latest], [0] * len(latest)
    trying = list(range(len(latest)))
    for i in range(config.rounds + 1):
        now = [latest[j] for j in trying]
        for j, rollout, p in zip(trying, now, p_yes(engine, chat, now), strict=True):
            chains[j].append((p, rollout))
            verified[j] += judge_cost(chat, rollout)
        trying = [j for j in trying if chains[j][-1][0] < config.accept]
        if i == config.rounds or not trying:
            break
        judged = [[*question(chat, latest[j]), chat.yes_no_ids[1]] for j in trying]
        asked = [config.retry.replace("{question}", questions[j // n]) for j in trying]
        again = [chat.ask(tokens, words, again=True) for tokens, words in zip(judged, asked, strict=True)]
        drawn = engine.generate(again, replace(sampling, n=1))
        for j, before, prompt, (c,) in zip(trying, judged, again, drawn, strict=True):
            generated[j] += len(prompt) - len(before) + len(c.tokens)
            latest[j] = candidate(chat, prompt, c)
    kept = in_groups([max(c, key=lambda a: a[0]) if config.keep == "best" else c[-1] for c in chains], n)
    spent, read = ([sum(g) for g in in_groups(tokens, n)] for tokens in (generated, verified))
    groups, scores = [[r for _, r in g] for g in kept], [[p for p, _ in g] for g in kept]
    return account(prompts, groups, spent, began, read, scores)
