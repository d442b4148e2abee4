"""Ask the model which of two of its solutions is right, and rank a problem's solutions by a tournament of such questions.

Source: V1-Infer (arXiv:2603.04304); ``maths.pairs`` has the tournament. The paper's judge writes its reasoning and two ratings from
1 to 10. Deviation (ours): one token. Solution A is the model's own turn, B is quoted in the next one, and the margin is 2 p - 1
with p = P(A) / (P(A) + P(B)), by default the mean over both orders. A's cache is the one its generation left, so a comparison reads
B and the question.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from twofold.compute.stated import probabilities
from twofold.compute.verify import asked, unshared
from twofold.engines.base import Engine
from twofold.maths.pairs import Game, Tournament, next_round, standings
from twofold.text.chat import Chat
from twofold.text.prompts import PAIR
from twofold.types import Candidate


def question(chat: Chat, first: Candidate, second: Candidate, words: str = PAIR) -> list[int]:
    """Return the prompt that asks which is right: ``first`` with its own tokens, then ``words`` with the text of ``second``, without
    its thoughts."""
    return asked(chat, first, words.replace("{solution}", second.text.rpartition(chat.think_end or "\0")[2].strip()))


def first_right(
    engine: Engine, chat: Chat, pairs: Sequence[tuple[Candidate, Candidate]], words: str = PAIR, *, both: bool = True
) -> list[tuple[float, int]]:
    """Return (P(the first one is right rather than the second), tokens read beyond the solutions' own) of each pair.

    With ``both`` the mean over both orders: two solutions with the same text have 1/2.
    """
    orders = [pair for a, b in pairs for pair in (((a, b), (b, a)) if both else ((a, b),))]
    prompts = [question(chat, a, b, words) for a, b in orders]
    found = [a / (a + b) for a, b in probabilities(engine, prompts, chat.a_b_ids)]
    spent = [unshared(prompt, a) + 1 for prompt, (a, _) in zip(prompts, orders, strict=True)]
    if not both:
        return [*zip(found, spent, strict=True)]
    return [((found[i] + 1 - found[i + 1]) / 2, spent[i] + spent[i + 1]) for i in range(0, len(found), 2)]


def ranked(
    engine: Engine,
    chat: Chat,
    groups: Sequence[Sequence[Candidate]],
    kinds: Sequence[Sequence[object]],
    how: Tournament,
    words: str = PAIR,
    seed: int = 0,
) -> list[tuple[list[float], int]]:
    """Return (mu of each candidate, tokens read) of each problem's candidates; ``kinds`` are the classes of their answers.

    A round is one engine call for all problems.
    """
    entrants = [_entrants(own, how.answers, seed) for own in kinds]
    entered = [[own[i] for i in order] for own, order in zip(kinds, entrants, strict=True)]
    games: list[list[Game]] = [[] for _ in groups]
    spent = [0] * len(groups)
    while meeting := [(k, i, j) for k, own in enumerate(entered) for i, j in next_round(own, games[k], how)]:
        facing = [(groups[k][entrants[k][i]], groups[k][entrants[k][j]]) for k, i, j in meeting]
        results = first_right(engine, chat, facing, words, both=how.both)
        for (k, i, j), (p, tokens) in zip(meeting, results, strict=True):
            games[k].append((i, j, 2 * p - 1))
            spent[k] += tokens
    found = []
    for own, order, met, tokens in zip(kinds, entrants, games, spent, strict=True):
        mu = dict(zip(order, standings(len(order), met, how.floor), strict=True))
        of = {own[i]: mu[i] for i in order}
        found.append(([of[kind] if how.answers else mu[i] for i, kind in enumerate(own)], tokens))
    return found


def _entrants(kinds: Sequence[object], answers: bool, seed: int) -> list[int]:
    """Return the indices of the candidates that enter, shuffled: all, or the first of each kind."""
    first = [i for i, kind in enumerate(kinds) if not answers or kinds.index(kind) == i]
    return random.Random(seed).sample(first, len(first))
