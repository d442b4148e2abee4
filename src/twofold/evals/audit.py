"""An audit of a verifier: what it says to solutions that are made to fool it, and to changes that should not matter to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from twofold.compute.adversary import wrong
from twofold.compute.judge import Judging
from twofold.compute.rollout import forced, rollouts
from twofold.durable import write_text
from twofold.engines.base import Engine
from twofold.evals.attacks import THRESHOLD, Accepted, Judged, accepted, judged
from twofold.evals.records import as_json
from twofold.maths.credit import mean
from twofold.maths.stats import Quality, verifier_quality
from twofold.ranges import Count, NonNegative, Seed, checked
from twofold.text.adversarial import Attack, added, alone, longer, off_topic, truncated
from twofold.text.chat import Chat
from twofold.types import Group, Problem, Sampling, Task

FILE = "audit.json"
ADDED = 8
"""Claims that are added to each wrong solution; they take turns."""


@checked
class Audit:
    """Options of an audit: so many problems with ``n`` own solutions of each, and every attack on each problem."""

    problems: Count = 100
    n: Count = 4
    temperature: NonNegative = 1.0
    max_tokens: Count = 256
    split: Literal["train", "test", "harder", "ood"] = "test"
    judge: Judging = field(default_factory=Judging)
    batch: Count = 8
    """Problems per engine call."""
    seed: Seed = 0


@dataclass(frozen=True, slots=True)
class Change:
    """What a change does to verdicts about ``judged`` solutions: shares accepted before and after, and verdicts that differ."""

    change: str
    judged: int
    before: float
    after: float
    flipped: float


@dataclass(frozen=True, slots=True)
class Audited:
    """Everything an audit found. ``verifier`` is about the model's own solutions, None if they lack a kind."""

    model: str
    task: str
    split: str
    problems: int
    judge: str
    accepted: list[Accepted]
    changes: list[Change]
    verifier: Quality | None


def audit(
    engine: Engine,
    chat: Chat,
    task: Task,
    problems: Sequence[Problem],
    config: Audit,
    *,
    model: str,
    room: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Audited:
    """Judge own solutions of the problems, attacks on these, and changed solutions.

    ``room`` is the most tokens that a prompt and its solution may have. Longer attacks are left out.
    """
    sampling = Sampling(config.n, config.temperature, max_tokens=config.max_tokens, stop=chat.stop, seed=config.seed)
    own: list[Judged] = []
    attacked: list[tuple[Attack, float]] = []
    changed: list[tuple[str, float, float]] = []
    for i in range(0, len(problems), config.batch):
        progress(i, len(problems))
        groups = rollouts(engine, chat, task, problems[i : i + config.batch], sampling)
        solutions = [r for group in groups for r in group if r.answer is not None and r.grade.decided]
        own += (scored := judged(engine, chat, solutions, config.judge))
        firsts = _firsts(scored)
        probes = wrong(chat, task, list(_attacks(groups, firsts, i)), room)
        scores = [score for _, score in judged(engine, chat, [r for r, _ in probes], config.judge)]
        attacked += [(a, score) for (_, a), score in zip(probes, scores, strict=True) if not a.added]
        before = {r.problem.id: score for r, score in firsts if not r.grade.correct}
        for (r, a), score in zip(probes, scores, strict=True):
            if a.added:
                name = f"claim added to a wrong solution{' (held out)' if a.held_out else ''}"
                changed.append((name, before[r.problem.id], score))
        changed += _changes(engine, chat, firsts, config.judge, room)
    progress(len(problems), len(problems))
    return Audited(
        model,
        task.name,
        config.split,
        len(problems),
        config.judge.name,
        accepted(attacked),
        _summed(changed),
        _quality(own),
    )


def _firsts(scored: Sequence[Judged]) -> list[Judged]:
    """Return the first right and the first wrong solution of each problem."""
    found: dict[tuple[str, bool], Judged] = {}
    for r, score in scored:
        found.setdefault((r.problem.id, r.grade.correct), (r, score))
    return list(found.values())


def _attacks(groups: Sequence[Group], firsts: Sequence[Judged], start: int) -> Iterator[tuple[Problem, Attack]]:
    """Yield the attacks on each problem: all that stand alone, and those that are made from first solutions.

    Claims take turns, as there are many; ``start`` is the number of problems before these.
    """
    for i, group in enumerate(groups):
        problem = group[0].problem
        own = {r.grade.correct: r.text for r, _ in firsts if r.problem.id == problem.id}
        others = [r.text for r, _ in firsts if r.problem.id != problem.id]
        found = alone(problem.question)
        found += truncated(own[True]) if True in own else []
        claims = added(own[False]) if False in own else []
        found += [claims[((start + i) * ADDED + j) % len(claims)] for j in range(ADDED if claims else 0)]
        found += [off_topic(others[i % len(others)])] if others else []
        yield from ((problem, attack) for attack in found)


def _changes(
    engine: Engine, chat: Chat, firsts: Sequence[Judged], judging: Judging, room: int | None
) -> list[tuple[str, float, float]]:
    """Return (change, score before, score after) of changes that leave a solution as right or wrong as it was."""
    found = []
    long = [(replace(r, completion=forced(chat.reply(longer(r.text)))), score) for r, score in firsts]
    fit = [(r, score) for r, score in long if room is None or len(r.prompt) + len(r.completion.tokens) <= room]
    for (r, before), (_, after) in zip(fit, judged(engine, chat, [r for r, _ in fit], judging), strict=True):
        found.append((f"{'right' if r.grade.correct else 'wrong'} solution made 4 times as long", before, after))
    words = judging.words(chat)
    if (swapped := words.replace("Yes or No", "No or Yes")) != words:
        scores = judged(engine, chat, [r for r, _ in firsts], replace(judging, question=swapped))
        pairs = zip(firsts, scores, strict=True)
        found += [('the question says "No or Yes"', before, after) for (_, before), (_, after) in pairs]
    return found


def _summed(changed: Sequence[tuple[str, float, float]]) -> list[Change]:
    rows = []
    for name in dict.fromkeys(name for name, _, _ in changed):
        pairs = [(before >= THRESHOLD, after >= THRESHOLD) for other, before, after in changed if other == name]
        before, after = (mean([pair[side] for pair in pairs]) for side in (0, 1))
        rows.append(Change(name, len(pairs), before, after, mean([b != a for b, a in pairs])))
    return rows


def _quality(own: Sequence[Judged]) -> Quality | None:
    ids = [r.problem.id for r, _ in own]
    if len(set(ids)) < 2:
        return None
    return verifier_quality([score for _, score in own], [r.grade.correct for r, _ in own], ids)


def save(found: Audited, directory: Path) -> Path:
    """Write ``audit.json`` into the directory and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / FILE, json.dumps(as_json(found), indent=1, allow_nan=False) + "\n")
    return directory / FILE
