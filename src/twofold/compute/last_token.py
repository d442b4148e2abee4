"""The last-token score of a solution (LaSeR, arXiv:2510.14943): no question is asked, and nothing is written.

A model that is trained with ``verify = "last_token"`` has its verdict in the log-prob of one token that no solution is followed by,
read behind the solution's end token. So a judgement runs one token, the end token, which generation had drawn but not run.
"""

from __future__ import annotations

from collections.abc import Sequence

from twofold.compute.rollout import as_read
from twofold.compute.verify import unshared
from twofold.engines.base import Engine
from twofold.text.chat import Chat
from twofold.types import Candidate, LastToken


def ended(chat: Chat, solution: Candidate) -> bool:
    """Return whether the model ended the solution itself. One that the token limit cut has no end token to read behind."""
    return solution.completion.tokens[-1:] != [] and solution.completion.tokens[-1] in chat.stop


def log_probs(engine: Engine, chat: Chat, solutions: Sequence[Candidate], token: int) -> list[float]:
    """Return log p(token | problem, solution), at temperature 1 and in nats, of solutions that have ended."""
    texts = [[*r.prompt, *r.completion.tokens] for r in (as_read(chat, s) for s in solutions)]
    return [logp for (logp,) in engine.logprobs(texts, [[token]] * len(texts))]


def last_token_scores(
    engine: Engine, chat: Chat, solutions: Sequence[Candidate], how: LastToken
) -> list[tuple[float, int]]:
    """Return (score, cut to 0 .. 1; tokens read for it beyond the solution's own) of each solution.

    A solution that was cut scores 0 and costs nothing. Scale 0.1, reference -23: log-probs -13, -18, -20, -23 score 1, 0.5,
    0.3, 0.
    """
    whole = [i for i, s in enumerate(solutions) if ended(chat, s)]
    found = [(0.0, 0)] * len(solutions)
    logps = log_probs(engine, chat, [solutions[i] for i in whole], how.token) if whole else []
    for i, logp in zip(whole, logps, strict=True):
        s, r = solutions[i], as_read(chat, solutions[i])
        found[i] = clipped(how, logp), unshared([*r.prompt, *r.completion.tokens], s) + 1
    return found


def clipped(how: LastToken, logp: float) -> float:
    """Return the score of a log-prob, cut to 0 .. 1.

    >>> [round(clipped(LastToken(0, 0.1, -23.0), x), 3) for x in (-13, -18, -20, -23, -40, 0)]
    [1.0, 0.5, 0.3, 0.0, 0.0, 1.0]
    """
    return min(1.0, max(0.0, how.scale * (logp - how.reference)))
