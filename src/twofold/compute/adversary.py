"""Adversarial solutions in a training: negatives for the verifier. (``evals.audit`` measures with them.)"""

from __future__ import annotations

import random
from collections.abc import Sequence

from twofold.compute.rollout import forced, graded
from twofold.text.adversarial import Attack, added, alone, off_topic, truncated
from twofold.text.chat import Chat
from twofold.types import Problem, Rollout, Task

OFTEN = {"off-topic": 3, "truncated": 2}
"""How much more often a verifier in training meets the kinds that look like a solution. The others are learnt at once."""


def negatives(
    chat: Chat, task: Task, drawn: Sequence[Rollout], judged: int, share: float, seed: int, max_tokens: int
) -> list[Rollout]:
    """Return adversarial solutions of the problems of ``drawn``, made from these rollouts, for a verifier to reject.

    They are ``share`` of all verdicts, of which ``judged`` more are about rollouts. None is of the held-out half (see
    ``text.adversarial``). The kinds are drawn equally often but for those in ``OFTEN``. Left out are those that the task does
    not grade as wrong, and those that are longer than the longest prompt with ``max_tokens`` more.
    """
    rng, chosen = random.Random(seed), []
    for _ in range(round(judged * share / (1 - share))):
        rollout, other = rng.choice(drawn), rng.choice(drawn)
        kinds = of_kinds([a for a in attacks(rollout, other) if not a.held_out])
        (kind,) = rng.choices([*kinds], [OFTEN.get(kind, 1) for kind in kinds])
        chosen.append((rollout.problem, rng.choice(kinds[kind])))
    room = max((len(r.prompt) for r in drawn), default=0) + max_tokens
    return [rollout for rollout, _ in wrong(chat, task, chosen, room)]


def attacks(rollout: Rollout, other: Rollout) -> list[Attack]:
    """Return the attacks on a rollout's problem, some made from its solution and that of an ``other`` one."""
    found = alone(rollout.problem.question)
    if rollout.answer is not None:
        found += truncated(rollout.text) if rollout.grade.correct else added(rollout.text)
    if other.answer is not None and other.problem.id != rollout.problem.id:
        found.append(off_topic(other.text))
    return found


def of_kinds(found: Sequence[Attack]) -> dict[str, list[Attack]]:
    """Return attacks by their kind; those that add to a wrong solution are a kind of their own."""
    kinds: dict[str, list[Attack]] = {}
    for attack in found:
        kinds.setdefault("added" if attack.added else attack.kind, []).append(attack)
    return kinds


def wrong(
    chat: Chat, task: Task, chosen: Sequence[tuple[Problem, Attack]], room: int | None = None
) -> list[tuple[Rollout, Attack]]:
    """Return the attacks as solutions, without those that the task does not grade as wrong: a bare answer may be right.

    With ``room`` those are left out whose prompt and solution have more tokens.
    """
    solutions = [(p, chat.prompt(p.question), forced(chat.reply(a.text))) for p, a in chosen]
    fit = [room is None or len(prompt) + len(c.tokens) <= room for _, prompt, c in solutions]
    rollouts = graded(chat, task, [s for s, fits in zip(solutions, fit, strict=True) if fits])
    pairs = zip(rollouts, (a for (_, a), fits in zip(chosen, fit, strict=True) if fits), strict=True)
    return [(r, a) for r, a in pairs if r.grade.decided and not r.grade.correct]
