"""Let the model read several of its solutions and write a better one: in rounds over a population (RSA), or once (AggLM)."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from twofold.compute.cost import Made, account
from twofold.compute.rollout import candidate, draw
from twofold.engines.base import Engine
from twofold.maths.seeds import derive
from twofold.ranges import Count, checked
from twofold.text.chat import Chat
from twofold.text.prompts import AGGREGATE, ATTEMPT
from twofold.types import Candidate, Sampling


@checked
class RSA:
    """Recursive self-aggregation (arXiv:2509.26626): a population of solutions is rewritten in rounds.

    Each member of the next population is written by a model that reads ``k`` members of this one, drawn without replacement and in
    random order. With ``k`` = 1 it refines one solution. Published: 16 members, ``k`` 4, 9 rounds.
    """

    name: Literal["rsa"] = "rsa"
    k: Count = 4
    rounds: Count = 1
    request: str = AGGREGATE
    """What is said to the model; ``{problem}`` and ``{attempts}`` stand for the problem and for what is read."""


@checked
class AggLM:
    """A vote that the model writes (AggLM, arXiv:2509.06870): it reads all samples and writes the answer.

    ``votes`` answers are written, each of which is a candidate; the samples themselves are none. Published: one vote on 8 samples,
    by a model that was trained to write it (no recipe here trains it).
    """

    name: Literal["agglm"] = "agglm"
    votes: Count = 1
    request: str = AGGREGATE
    """As for ``RSA``."""


def rsa(engine: Engine, chat: Chat, questions: Sequence[str], n: int, sampling: Sampling, config: RSA) -> list[Made]:
    """Return the last population of each question, without scores. Earlier ones count as discarded.

    Members read each other's solutions whole, thoughts included. Raises ValueError if there are fewer than ``k`` members.
    """
    if config.k > n:
        raise ValueError(f"make=rsa reads k = {config.k} of {n} solutions: lower k or raise n")
    began = time.monotonic()
    populations = draw(engine, chat, questions, replace(sampling, n=n))
    made, read = [_tokens(p) for p in populations], [0] * len(questions)
    for i in range(config.rounds):
        seed = derive(sampling.seed, f"aggregate {i}")
        groups = []
        for question, population in zip(questions, populations, strict=True):
            rng = random.Random(f"{seed}/{question}")
            groups.append([[c.text for c in rng.sample(population, config.k)] for _ in range(n)])
        populations = _written(engine, chat, questions, groups, config.request, replace(sampling, seed=seed), read)
        made = [spent + _tokens(p) for spent, p in zip(made, populations, strict=True)]
    return account([chat.prompt(q) for q in questions], populations, made, began, read)


def agglm(
    engine: Engine, chat: Chat, questions: Sequence[str], n: int, sampling: Sampling, config: AggLM
) -> list[Made]:
    """Return the written votes on ``n`` samples of each question, without scores. The samples count as discarded.

    They are read in random order, and without their thoughts.
    """
    began = time.monotonic()
    samples, seed = draw(engine, chat, questions, replace(sampling, n=n)), derive(sampling.seed, "aggregate")
    groups, read = [], [0] * len(questions)
    for question, drawn in zip(questions, samples, strict=True):
        texts = [c.text.rpartition(chat.think_end or "\0")[2].lstrip() for c in drawn]
        groups.append([random.Random(f"{seed}/{question}").sample(texts, n)] * config.votes)
    votes = _written(engine, chat, questions, groups, config.request, replace(sampling, seed=seed), read)
    made = [_tokens(a) + _tokens(b) for a, b in zip(samples, votes, strict=True)]
    return account([chat.prompt(q) for q in questions], votes, made, began, read)


def asked(question: str, attempts: Sequence[str], request: str = AGGREGATE) -> str:
    """Return what is said to the model that aggregates. Nothing is replaced within the question and the attempts.

    >>> asked("1+1?", ["2", "{problem}"], "{problem}|{attempts}")
    '1+1?|Attempt 1:\\n2\\n\\nAttempt 2:\\n{problem}'
    """
    told = "\n\n".join(ATTEMPT.format(i, text.strip()) for i, text in enumerate(attempts, 1))
    parts = {"{problem}": question, "{attempts}": told}
    return re.sub(r"\{problem\}|\{attempts\}", lambda found: parts[found[0]], request)


def _written(
    engine: Engine,
    chat: Chat,
    questions: Sequence[str],
    groups: Sequence[Sequence[Sequence[str]]],
    request: str,
    sampling: Sampling,
    read: list[int],
) -> list[list[Candidate]]:
    """Return one candidate for every group of attempts of every question, and add the tokens that are read to ``read``.

    Members of one question that read the same are samples of one prompt, which is read once. There is one engine call for all
    prompts with equally many members.
    """
    members: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for i, (question, own) in enumerate(zip(questions, groups, strict=True)):
        for j, attempts in enumerate(own):
            members.setdefault((i, tuple(chat.prompt(asked(question, attempts, request)))), []).append(j)
    written: list[list[Candidate]] = [[None] * len(own) for own in groups]  # type: ignore[list-item]
    for size in sorted({len(places) for places in members.values()}):
        alike = {key: places for key, places in members.items() if len(places) == size}
        drawn = engine.generate([list(prompt) for _, prompt in alike], replace(sampling, n=size))
        for ((i, prompt), places), completions in zip(alike.items(), drawn, strict=True):
            read[i] += len(prompt)
            for j, completion in zip(places, completions, strict=True):
                written[i][j] = candidate(chat, list(prompt), completion)
    return written


def _tokens(group: Sequence[Candidate]) -> int:
    return sum(len(c.completion.tokens) for c in group)
