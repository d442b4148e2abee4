"""Thoughts probed behind each of their episodes, and at budgets; saved; does every further token help (MRT, arXiv:2503.07572)?

``probes.jsonl`` holds one line per problem beside the pools, ``probes.json`` how they were made; a report needs no model.
A prefix costs what a model that stops there reads and writes: prompt, thought so far and closing (``tokens``), and one
forced answer after the other (``lengths``).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.compute.probe import Probe, Prover, boundaries, probe, thought_length
from twofold.compute.rollout import Task, rollouts, split
from twofold.compute.think import continue_thoughts
from twofold.engines.base import Engine
from twofold.evals.pools import Header, PoolError, read_header, read_lines
from twofold.maths import regret, stats
from twofold.maths.credit import mean
from twofold.text.chat import Chat
from twofold.text.extract import canonical
from twofold.text.prompts import EXTRAPOLATION
from twofold.text.segments import Episodes
from twofold.types import Problem, Sampling

Floats = NDArray[np.float64]
Record = dict[str, Any]

HOW, PROBES = "probes.json", "probes.jsonl"
VOTES = (1, 2, 4, 8)
"""Answers that are forced at one prefix and vote, where there are so many."""
GRID = 16
"""Budgets per evaluation's token limit; they go up to twice the limit."""
PANELS = 4


@dataclass(frozen=True, slots=True)
class Probing:
    """``thoughts`` of every problem (0: none), ``answers`` forced from each of their prefixes.

    ``waits``: how often a thought is made to go on behind its end, by MRT's strings and up to ``each`` tokens (published: 8
    and 2048), to see beyond the budget. Published for the others: 4 to 16 thoughts, 8 answers. ``budgets``, in tokens of
    the thought: where it is stopped besides.
    """

    thoughts: int = 0
    answers: int = 8
    waits: int = 0
    each: int = 64
    budgets: tuple[int, ...] = ()
    prover: Prover = field(default_factory=Prover)
    episodes: Episodes = field(default_factory=Episodes)

    def __post_init__(self) -> None:
        if self.thoughts < 0 or self.waits < 0 or min(self.answers, self.each, *self.budgets, 1) < 1:
            raise ValueError(f"thoughts and waits must be at least 0, answers, each and budgets at least 1, got {self}")


@dataclass(frozen=True, slots=True)
class Prefix:
    """The forced answers of one prefix: in normal form, their labels, mean log-probs per token, and lengths.

    ``end``: tokens of the thought so far; ``tokens``: with prompt and closing. ``waits``: how often the thought had been
    made to go on. ``within``: an episode, at a budget.
    """

    end: int
    tokens: int
    waits: int
    answers: list[str | None]
    labels: list[str]
    logprobs: list[float]
    lengths: list[int]
    within: bool

    @property
    def correct(self) -> list[bool]:
        return [label == "correct" for label in self.labels]

    @property
    def value(self) -> float:
        """J: share that is right of the answers that could be graded; NaN if none could."""
        known = [label == "correct" for label in self.labels if label not in ("timeout", "error")]
        return mean(known)

    @property
    def length(self) -> float:
        """Mean tokens of an answer."""
        return sum(self.lengths) / len(self.lengths)


@dataclass(frozen=True, slots=True)
class Thought:
    """A thought's prefixes, the empty one first, and how the rollout itself ended: label and tokens, prompt included."""

    prefixes: list[Prefix]
    label: str
    tokens: int
    prompt: int

    @property
    def own(self) -> list[Prefix]:
        """Behind 0, 1, ... episodes of the thought as it was."""
        return [p for p in self.prefixes if p.waits == 0 and not p.within]

    def at(self, budget: int) -> Prefix:
        """Where it is stopped if it may have ``budget`` tokens, one of those it was probed at: a shorter one ended by itself."""
        mine = {p.end: p for p in self.prefixes if p.waits == 0}
        return mine[min(budget, max(mine))]

    def points(self, waits: int = 0) -> list[tuple[float, float]]:
        """(tokens, J) by rising tokens, made to go on so often at most; of equally many tokens the later.

        Prefixes without a value are passed over.
        """
        known = [p for p in self.prefixes if p.waits <= waits and not math.isnan(p.value)]
        return sorted({p.tokens + p.length: p.value for p in known}.items())


def run(
    engine: Engine,
    chat: Chat,
    task: Task,
    problems: Sequence[Problem],
    config: Probing,
    out: Path,
    *,
    batch: int = 8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Probe thoughts about ``problems`` and keep what is found in ``out``, an evaluation that says how they are sampled.

    Problems that are done already are not done again. Raises ValueError if ``out`` holds probes made otherwise.
    """
    header = read_header(out)
    how = json.loads(json.dumps(asdict(config)))
    if (out / HOW).exists() and json.loads((out / HOW).read_text()) != how:
        raise ValueError(f"{out} holds probes of other settings (see its {HOW}): choose another --out")
    (out / HOW).write_text(json.dumps(how, indent=2) + "\n")
    done = {row["id"] for row in read_lines(out / PROBES)}
    waiting = [p for p in problems if p.id not in done]
    sampling = Sampling(config.thoughts, header.temperature, header.top_p, header.max_tokens, chat.stop, header.seed)
    with (out / PROBES).open("a") as file:
        for i in range(0, len(waiting), batch):
            part = waiting[i : i + batch]
            began = time.monotonic()
            thoughts = probed(engine, chat, task, part, config, sampling)
            share = (time.monotonic() - began) / len(part)
            for j, p in enumerate(part):
                mine = thoughts[j * config.thoughts : (j + 1) * config.thoughts]
                file.write(json.dumps({"id": p.id, "thoughts": list(map(asdict, mine)), "seconds": share}) + "\n")
                file.flush()
            progress(min(i + batch, len(waiting)), len(waiting))


def probed(
    engine: Engine, chat: Chat, task: Task, problems: Sequence[Problem], config: Probing, sampling: Sampling
) -> list[Thought]:
    """``sampling.n`` thoughts of every problem with their probes: two engine calls, and two more for each wait."""
    groups = rollouts(engine, chat, task, problems, sampling, config.prover.opening)
    thoughts = [r for g in groups for r in g]
    forced = replace(sampling, n=config.answers, seed=sampling.seed + 1)
    marks = [boundaries(chat, r, config.prover, config.episodes) for r in thoughts]
    ends = [sorted([*m, *(b for b in {*config.budgets} - {*m} if b < m[-1])]) for m in marks]
    rows = probe(engine, chat, task, thoughts, ends, config.prover, forced)
    found = [
        [_prefix(p, len(r.prompt), 0, p.end not in m) for p in row]
        for r, row, m in zip(thoughts, rows, marks, strict=True)
    ]
    going = [
        replace(r, completion=split(r.completion, thought_length(chat, r.completion, config.prover))[0])
        for r in thoughts
    ]
    stop = (*chat.encode(config.prover.end, tags=True), *chat.stop)
    for w in range(1, config.waits + 1):
        words = EXTRAPOLATION[(w - 1) % len(EXTRAPOLATION)]
        more = replace(sampling, max_tokens=config.each, stop=stop, seed=sampling.seed + 1 + w)
        going = continue_thoughts(engine, chat, going, words, more)
        whole = [[len(r.completion.tokens)] for r in going]
        for r, prefixes, (p,) in zip(
            going, found, probe(engine, chat, task, going, whole, config.prover, forced), strict=True
        ):
            prefixes.append(_prefix(p, len(r.prompt), w))
    return [
        Thought(prefixes, r.grade.label, len(r.prompt) + len(r.completion.tokens), len(r.prompt))
        for r, prefixes in zip(thoughts, found, strict=True)
    ]


def _prefix(found: Probe, prompt: int, waits: int, within: bool = False) -> Prefix:
    drawn = [r.completion.sampled[::-1].index(False) for r in found.answers]  # tokens behind the closing
    return Prefix(
        end=found.end,
        tokens=prompt + len(found.answers[0].completion.tokens) - drawn[0],
        waits=waits,
        answers=[None if r.answer is None else canonical(r.answer) for r in found.answers],
        labels=[r.grade.label for r in found.answers],
        logprobs=[sum(r.completion.logprobs[-n:]) / n for r, n in zip(found.answers, drawn, strict=True)],
        lengths=drawn,
        within=within,
    )


# ---------------------------------------------------------------- from the files to numbers


@dataclass(frozen=True, slots=True)
class Probed:
    """All saved thoughts of an evaluation, by problem, and their curves at the budgets, averaged per problem.

    ``beyond``: the budget after each wait, the evaluation's token limit first.
    """

    thoughts: dict[str, list[Thought]]
    beyond: list[int]
    budgets: list[int]
    accuracy_P_B: Floats
    regret_P_B: Floats


def read(directory: Path, header: Header) -> Probed | None:
    """The probes of an evaluation; None if it has none. Raises PoolError for a file cut off, or with fewer than 2 problems."""
    if not (directory / HOW).exists():
        return None
    every = {name: [t for t in mine if t.points()] for name, mine in read_thoughts(directory / PROBES).items()}
    thoughts = {name: mine for name, mine in every.items() if mine}
    if len(thoughts) < 2:
        raise PoolError(f"{directory / PROBES}: {len(thoughts)} problems; an interval over problems needs at least 2")
    budgets = sorted({max(1, round(header.max_tokens * i / GRID)) for i in range(1, 2 * GRID + 1)})

    def curves(of: Callable[[regret.Points, float], float]) -> Floats:
        return np.array([[np.mean([of(t.points(), b) for t in mine]) for b in budgets] for mine in thoughts.values()])

    how = json.loads((directory / HOW).read_text())
    beyond = [header.max_tokens + waits * how["each"] for waits in range(how["waits"] + 1)]
    return Probed(thoughts, beyond, budgets, curves(regret.accuracy_at), curves(regret.normalised_regret))


def read_thoughts(path: Path) -> dict[str, list[Thought]]:
    """By problem. A line is ``{"id": problem, "thoughts": [asdict(thought), ...]}``."""
    return {
        row["id"]: [Thought(**t | {"prefixes": [Prefix(**p) for p in t["prefixes"]]}) for t in row["thoughts"]]
        for row in read_lines(path)
    }


def measure(found: Probed) -> Record:
    """The numbers of one evaluation's probes: curves against the budget, progress, votes at each prefix, what waiting gave.

    Averages are of a problem's thoughts first; intervals resample problems.
    """
    problems = list(found.thoughts.values())
    everyone = [t for mine in problems for t in mine]
    gains = [[g for t in mine for g in regret.progress([p.value for p in t.own])] for mine in problems]
    known = [g for mine in gains for g in mine if not math.isnan(g)]
    edges = np.linspace(-1.0625, 1.0625, 18)  # of width 1/8, around the eighths that 8 answers give

    def over(of: Callable[[Thought], float]) -> Record:
        return _interval([[of(t) for t in mine] for mine in problems])

    def beyond(waits: int, budget: int) -> Record:
        return {
            "waits": waits,
            "tokens": np.mean([_behind(t, waits).tokens for t in everyone]),
            "budget": budget,
            "accuracy": over(lambda t: _behind(t, waits).value),
            "regret": over(lambda t: regret.normalised_regret(t.points(waits), budget)),
        }

    return {
        "problems": len(problems),
        "thoughts": len(everyone),
        "tokens": np.mean([t.tokens for t in everyone]),
        "episodes": np.mean([len(t.own) - 1 for t in everyone]),
        "budgets": found.budgets,
        "accuracy": [_interval(column[:, None]) for column in found.accuracy_P_B.T],
        "regret": [_interval(column[:, None]) for column in found.regret_P_B.T],
        "first": over(lambda t: t.own[0].value),
        "last": over(lambda t: t.own[-1].value),
        "natural": over(lambda t: float(t.label == "correct")),
        "unanswered": np.mean([a is None for t in everyone for p in t.prefixes for a in p.answers]),
        "progress": {
            **_interval(gains),
            "negative": np.mean([g < 0 for g in known]),
            "positive": np.mean([g > 0 for g in known]),
            "edges": edges,
            "counts": np.histogram(known, edges)[0],
        },
        "buckets": _buckets(everyone),
        "stopping": _stopping(everyone),
        "waits": [beyond(waits, budget) for waits, budget in enumerate(found.beyond)],
    }


def _behind(thought: Thought, waits: int) -> Prefix:
    """The whole thought, made to go on so often."""
    return next(p for p in reversed(thought.prefixes) if p.waits == waits)


def _interval(rows: Iterable[Iterable[float]]) -> Record:
    """Mean of each problem's row without NaN, then of the problems; no interval with fewer than two."""
    means = [np.mean(row) for values in rows if (row := [x for x in values if not math.isnan(x)])]
    if len(means) < 2:
        return {"mean": means[0] if means else math.nan, "low": None, "high": None}
    return dict(zip(("mean", "low", "high"), stats.cluster_bootstrap(means), strict=True))


def _votes(prefix: Prefix) -> dict[int, float]:
    """[maj@p] for every p that there are answers for."""
    ps = [p for p in VOTES if p <= len(prefix.answers)]
    return dict(zip(ps, regret.maj_at_prefix(prefix.answers, prefix.correct, prefix.logprobs, ps), strict=True))


def _buckets(thoughts: Sequence[Thought]) -> list[Record]:
    """Thoughts by quarters of their numbers of episodes, equal numbers together: accuracy behind each episode.

    A bucket's points are the prefixes that all of its thoughts have, and the whole thoughts; a branch of p votes costs p answers.
    """
    sizes = sorted(len(t.own) - 1 for t in thoughts)
    highs = sorted({sizes[max(0, len(sizes) * i // PANELS - 1)] for i in range(1, PANELS + 1)})
    found = []
    for before, high in zip([-1, *highs], highs, strict=False):
        mine = [t for t in thoughts if before < len(t.own) - 1 <= high]
        low = min(len(t.own) - 1 for t in mine)
        points = []
        for j in [*range(low), -1]:
            here = [t.own[j] for t in mine]
            votes = [_votes(p) for p in here]
            tokens, length = np.mean([(p.tokens, p.length) for p in here], axis=0)
            points.append(
                [{"p": p, "tokens": tokens + p * length, "accuracy": np.mean([v[p] for v in votes])} for p in votes[0]]
            )
        found.append({"low": low, "high": high, "thoughts": len(mine), "points": points})
    return found


def _stopping(thoughts: Sequence[Thought]) -> list[Record]:
    """Episode-budget regret (appendix E) over 1, 2, ... episodes, of the thoughts that have so many and are ever right."""
    rows = [[[*_votes(p).values()] for p in t.own] for t in thoughts]
    if len(rows[0][0]) < len(VOTES):
        return []
    found = []
    for budget in range(1, max(map(len, rows))):
        lost = [regret.stop_regret(row, budget) for row in rows if len(row) > budget]
        known = [x for x in lost if not math.isnan(x)]
        if known:
            found.append({"budget": budget, "value": np.mean(known), "thoughts": len(known)})
    return found


def efficiency(base: Probed, ours: Probed) -> Record | None:
    """Tokens the baseline's thoughts need / tokens ours need, for the same accuracy, on the problems both have.

    See ``stats.efficiency_ratio``, with budgets for samples; None if too few problems or budgets are shared, or the
    baseline is right on next to nothing.
    """
    shared = [name for name in base.thoughts if name in ours.thoughts]
    if len(shared) < 2 or base.budgets != ours.budgets:
        return None

    def curve(p: Probed) -> Floats:
        return p.accuracy_P_B[[[*p.thoughts].index(name) for name in shared]]

    ratio = stats.efficiency_ratio(curve(base), curve(ours), base.budgets)
    return asdict(ratio) if ratio.target > 0 else None
