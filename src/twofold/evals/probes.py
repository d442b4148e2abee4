"""Thoughts probed after each of their episodes and at budgets, as MRT does (arXiv:2503.07572), and saved.

In the pools' directory ``probes.jsonl`` has one line per problem and ``probes.json`` the settings. ``thinking`` makes the numbers
of a report from them. A prefix costs what a model that stops there reads and writes: prompt, thought so far and closing
(``tokens``), and the forced answers (``lengths``).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from twofold import durable
from twofold.compute.probe import Probe, Prover, boundaries, probe, thought_length
from twofold.compute.rollout import rollouts, split
from twofold.compute.think import continue_thoughts
from twofold.engines.base import Engine
from twofold.evals.pools import read_header, read_lines
from twofold.maths.credit import mean
from twofold.maths.seeds import derive
from twofold.ranges import Count, Whole, checked
from twofold.tasks.user import form_of
from twofold.text.chat import Chat
from twofold.text.notation import canonical
from twofold.text.prompts import EXTRAPOLATION
from twofold.text.segments import Episodes
from twofold.types import Problem, Sampling, Task

SETTINGS, PROBES = "probes.json", "probes.jsonl"


@checked
class Probing:
    """``thoughts`` per problem (0: none), and ``answers`` forced from each of their prefixes.

    ``waits`` is how often a thought is made to continue after its end, by MRT's strings and up to ``each`` tokens at a
    time, to see beyond the token limit. ``budgets``, in tokens of the thought, are further places where it is stopped.
    Published: 4 to 16 thoughts, 8 answers, 8 waits of 2048 tokens.
    """

    thoughts: Whole = 0
    answers: Count = 8
    waits: Whole = 0
    each: Count = 64
    budgets: tuple[Count, ...] = ()
    prover: Prover = field(default_factory=Prover)
    episodes: Episodes = field(default_factory=Episodes)


@dataclass(frozen=True, slots=True)
class Prefix:
    """One prefix of a thought and its forced answers: in normal form, with labels, mean log-probs per token, and lengths.

    ``end`` counts the tokens of the thought so far, ``tokens`` those of prompt and closing too. ``waits`` is how often the
    thought had been made to continue. ``within`` says that the prefix ends within an episode, at a budget.
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
        """J: the share of right answers among those that could be graded; NaN if none could."""
        known = [label == "correct" for label in self.labels if label not in ("timeout", "error")]
        return mean(known)

    @property
    def length(self) -> float:
        """Mean tokens of an answer."""
        return sum(self.lengths) / len(self.lengths)


@dataclass(frozen=True, slots=True)
class Thought:
    """A thought's prefixes, the empty one first, and how the rollout ended when left alone.

    ``label`` and ``tokens`` (prompt included) are the rollout's. ``prompt`` counts the prompt's tokens.
    """

    prefixes: list[Prefix]
    label: str
    tokens: int
    prompt: int

    @property
    def own(self) -> list[Prefix]:
        """The prefixes after 0, 1, ... episodes of the thought before any wait."""
        return [p for p in self.prefixes if p.waits == 0 and not p.within]

    def at(self, budget: int) -> Prefix:
        """Return the prefix at ``budget`` tokens, one of the budgets probed; a shorter thought ended by itself."""
        mine = {p.end: p for p in self.prefixes if p.waits == 0}
        return mine[min(budget, max(mine))]

    def points(self, waits: int = 0) -> list[tuple[float, float]]:
        """Return (tokens, J) by rising tokens, of the prefixes with at most this many waits.

        Of two prefixes with equally many tokens the later one counts. Prefixes without a value are left out.
        """
        known = [p for p in self.prefixes if p.waits <= waits and not math.isnan(p.value)]
        return sorted({p.tokens + p.length: p.value for p in known}.items())


def run_probes(
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
    """Probe thoughts about ``problems`` and save them in ``out``, an evaluation, whose header says how they are sampled.

    Problems that are done are not done again. Raises ValueError if ``out`` holds probes made with other settings.
    """
    header = read_header(out)
    how = json.loads(json.dumps(asdict(config)))
    if (out / SETTINGS).exists() and json.loads((out / SETTINGS).read_text()) != how:
        raise ValueError(f"{out} holds probes of other settings (see its {SETTINGS}): choose another --out")
    durable.write_text(out / SETTINGS, json.dumps(how, indent=2) + "\n")
    done = {row["id"] for row in durable.read_lines(out / PROBES)}
    waiting = [p for p in problems if p.id not in done]
    drawn = (config.thoughts, header.temperature, header.top_p, header.max_tokens, chat.stop, header.seed)
    sampling = Sampling(*drawn, top_k=header.top_k, min_p=header.min_p)
    with durable.Lines(out / PROBES) as file:
        for i in range(0, len(waiting), batch):
            part = waiting[i : i + batch]
            began = time.monotonic()
            thoughts = probed(engine, chat, task, part, config, sampling)
            share = (time.monotonic() - began) / len(part)
            for j, p in enumerate(part):
                mine = thoughts[j * config.thoughts : (j + 1) * config.thoughts]
                file.write(json.dumps({"id": p.id, "thoughts": list(map(asdict, mine)), "seconds": share}))
            progress(min(i + batch, len(waiting)), len(waiting))


def probed(
    engine: Engine, chat: Chat, task: Task, problems: Sequence[Problem], config: Probing, sampling: Sampling
) -> list[Thought]:
    """Return ``sampling.n`` thoughts of every problem, with their probes: two engine calls, and two more for each wait."""
    form = form_of(task) or canonical
    groups = rollouts(engine, chat, task, problems, sampling, config.prover.opening)
    thoughts = [r for g in groups for r in g]
    forced = replace(sampling, n=config.answers, seed=derive(sampling.seed, "answers"))
    marks = [boundaries(chat, r, config.prover, config.episodes) for r in thoughts]
    ends = [sorted([*m, *(b for b in {*config.budgets} - {*m} if b < m[-1])]) for m in marks]
    rows = probe(engine, chat, task, thoughts, ends, config.prover, forced)
    found = [
        [_prefix(p, form, len(r.prompt), 0, p.end not in m) for p in row]
        for r, row, m in zip(thoughts, rows, marks, strict=True)
    ]
    going = [
        replace(r, completion=split(r.completion, thought_length(chat, r.completion, config.prover))[0])
        for r in thoughts
    ]
    stop = (*chat.encode(config.prover.end, tags=True), *chat.stop)
    for w in range(1, config.waits + 1):
        words = EXTRAPOLATION[(w - 1) % len(EXTRAPOLATION)]
        more = replace(sampling, max_tokens=config.each, stop=stop, seed=derive(sampling.seed, f"wait {w}"))
        going = continue_thoughts(engine, chat, going, words, more)
        whole = [[len(r.completion.tokens)] for r in going]
        for r, prefixes, (p,) in zip(
            going, found, probe(engine, chat, task, going, whole, config.prover, forced), strict=True
        ):
            prefixes.append(_prefix(p, form, len(r.prompt), w))
    return [
        Thought(prefixes, r.grade.label, len(r.prompt) + len(r.completion.tokens), len(r.prompt))
        for r, prefixes in zip(thoughts, found, strict=True)
    ]


def _prefix(found: Probe, form: Callable[[str], str], prompt: int, waits: int, within: bool = False) -> Prefix:
    drawn = [r.completion.sampled[::-1].index(False) for r in found.answers]  # tokens after the closing
    return Prefix(
        end=found.end,
        tokens=prompt + len(found.answers[0].completion.tokens) - drawn[0],
        waits=waits,
        answers=[None if r.answer is None else form(r.answer) for r in found.answers],
        labels=[r.grade.label for r in found.answers],
        logprobs=[sum(r.completion.logprobs[-n:]) / n for r, n in zip(found.answers, drawn, strict=True)],
        lengths=drawn,
        within=within,
    )


def read_thoughts(path: Path) -> dict[str, list[Thought]]:
    """Return the thoughts by problem. A line is ``{"id": problem, "thoughts": [asdict(thought), ...]}``."""
    return {
        row["id"]: [Thought(**t | {"prefixes": [Prefix(**p) for p in t["prefixes"]]}) for t in row["thoughts"]]
        for row in read_lines(path)
    }
