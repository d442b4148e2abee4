"""Ask the model whether its own solution is right: P(Yes) in one token, or in writing, of the whole or of every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Literal

from twofold.compute.last_token import last_token_scores
from twofold.compute.stated import probabilities, stated_scores
from twofold.compute.verify import asked, critique_scores, unshared, verification_scores
from twofold.engines.base import Engine
from twofold.ranges import Count, checked
from twofold.text.chat import Chat
from twofold.text.prompts import CONFIDENCE, CRITIQUE, JUDGE, PAIR, VERIFY
from twofold.text.steps import Cut
from twofold.types import Candidate, Sampling

ASKED = ("p_yes", "normalised", "written", "steps", "last_token", "stated", "pairs")
"""The judgements that a plan may name. Any model can give them, but for ``last_token``. The other names read a trained scalar
head (``head``), or mean none."""
WRITING = ("written", "steps")
"""The judgements that are written, by ``tokens`` and ``votes``. The others read one token and write nothing."""


@checked
class Judging:
    """How a model is asked for its judgement of a solution, which is a score in [0, 1].

    * ``p_yes``: the probability of Yes after the verdict question, as RL^V publishes it; ``normalised``: divided by
      P(Yes) + P(No).
    * ``written``: of ``votes`` written critiques with a readable verdict, the share that calls the whole solution right.
    * ``steps``: the least share, over the solution's steps, of ``votes`` written verifications that call the step right.
    * ``last_token``: the last-token score of a model that was trained with it. It asks nothing, and a solution that the token limit
      cut scores 0.
    * ``pairs``: the standing in a tournament of the problem's samples (see ``compute.pairs``). Only plans may use it.
    * ``stated``: the mean of the confidences that the model would state in one digit (RLCR), 0.05 to 0.95.
    * ``head``: a trained scalar head, read after the verdict question. ``none``: no judgement.
      Evaluations may use these; plans may not.

    Raises ValueError for an option that the judgement does not read.
    """

    name: Literal["p_yes", "normalised", "written", "steps", "last_token", "stated", "pairs", "head", "none"] = "p_yes"
    question: str | None = None
    """What is asked. None: the model's own verdict question; for ``written``, ``steps`` and ``pairs`` the
    question that ``text.prompts`` has for them."""
    cut: Cut = "lines"
    """Where a solution's steps are, for ``steps``."""
    tokens: Count = 128
    """Token limit of what is written."""
    votes: Count = 1
    """How much is written per solution; the verdicts are averaged. One is greedy, several are drawn at temperature 1."""

    def __post_init__(self) -> None:
        unread = [] if self.name in WRITING else ["tokens", "votes"]
        unread += [] if self.name == "steps" else ["cut"]
        unread += ["question"] if self.name in ("last_token", "stated") else []
        if changed := [f.name for f in fields(self) if f.name in unread and getattr(self, f.name) != f.default]:
            raise ValueError(f"judge={self.name} does not read {', '.join(changed)}: leave it out")

    def words(self, chat: Chat) -> str:
        """Return the question that is asked."""
        steps = VERIFY if self.cut == "tags" else CRITIQUE
        own = {"pairs": PAIR, "stated": CONFIDENCE, "written": CRITIQUE, "steps": steps}
        return own.get(self.name, chat.question) if self.question is None else self.question

    def asking(self, chat: Chat) -> Chat:
        """Return ``chat`` with the verdict question that is asked, for a judgement of one token.

        Raises ValueError for the last-token score of a model that has none.
        """
        if self.name == "last_token" and chat.last_token is None:
            raise ValueError('judge=last_token: no last-token score: train it with recipe.verify = "last_token"')
        return chat if self.name in (*WRITING, "stated", "pairs") else chat.asking(self.words(chat))


def resolved(judging: Judging, chat: Chat) -> Judging:
    """Return ``judging`` with the model's own verdict question written out, where that is not the standard one.

    Two models of one tokenizer are asked the same if what this returns is equal.
    """
    own = judging.question is None and judging.name in ("p_yes", "normalised", "head")
    return replace(judging, question=chat.question) if own and chat.question != JUDGE else judging


def question(chat: Chat, rollout: Candidate) -> list[int]:
    """Return the judgement prompt: the rollout's own tokens (see ``as_read``), the end of its turn, the question."""
    return asked(chat, rollout, chat.question)


def p_yes(engine: Engine, chat: Chat, rollouts: Sequence[Candidate], normalised: bool = False) -> list[float]:
    """Return P(Yes) per rollout (RL^V's score). ``normalised`` divides by P(Yes) + P(No); the published score does not.

    An engine that kept the rollouts' caches computes the question's tokens only, once for both words.
    """
    words = chat.yes_no_ids if normalised else chat.yes_no_ids[:1]
    found = probabilities(engine, [question(chat, r) for r in rollouts], words)
    return [row[0] / sum(row) if normalised else row[0] for row in found]


def judge_cost(chat: Chat, rollout: Candidate) -> int:
    """Return how many tokens a one-token judgement reads beyond the rollout's own: the question and the verdict."""
    return unshared(question(chat, rollout), rollout) + 1


def judge_all(
    engine: Any, chat: Chat, rollouts: Sequence[Candidate], judging: Judging, seed: int = 0
) -> list[tuple[float, int]]:
    """Return (score, tokens read and written for it beyond the rollout's own) of every rollout.

    A solution whose written critiques have no readable verdict scores 0. Raises ValueError for the judges ``none`` and
    ``pairs``.
    """
    words = judging.words(chat)
    sampling = Sampling(judging.votes, float(judging.votes > 1), max_tokens=judging.tokens, stop=chat.stop, seed=seed)
    asking = judging.asking(chat)
    match judging.name:
        case "written":
            return [(s or 0.0, spent) for s, spent in critique_scores(engine, chat, rollouts, words, sampling)]
        case "steps":
            return verification_scores(engine, chat, rollouts, words, sampling, judging.cut)
        case "last_token":
            assert asking.last_token is not None
            return last_token_scores(engine, chat, rollouts, asking.last_token)
        case "stated":
            return stated_scores(engine, chat, rollouts)
        case "none" | "pairs":
            raise ValueError(f"judge={judging.name} scores no single solution: judge by {', '.join(ASKED[:-1])}")
        case "p_yes" | "normalised":
            scores = p_yes(engine, asking, rollouts, normalised=judging.name == "normalised")
        case "head":
            scores = engine.values([question(asking, r) for r in rollouts])  # the native engine's
    return [(s, judge_cost(asking, r)) for s, r in zip(scores, rollouts, strict=True)]
