"""Sample, grade and score every problem once, and save the pool. Answers are selected later, from the file."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from twofold import __version__
from twofold.compute.judge import WRITING, Judging, judge_all, resolved
from twofold.compute.rollout import rollouts
from twofold.durable import Lines
from twofold.engines.base import Engine
from twofold.evals import attacks, texts
from twofold.evals.pools import (
    HEADER,
    POOLS,
    Header,
    check_problem,
    finished_ids,
    read_header,
    write_header,
    write_pool,
)
from twofold.evals.probes import Probing
from twofold.maths.confidence import Trace, trace
from twofold.ranges import Count, NonNegative, PositiveShare, Seed, Share, Whole, checked
from twofold.tasks.doubts import doubts
from twofold.tasks.stream import first
from twofold.tasks.user import Wrapper, form_of, inner
from twofold.text.chat import Chat
from twofold.text.notation import canonical
from twofold.types import Group, Pool, Problem, Rollout, Sampling, Task

log = logging.getLogger(__name__)


@checked
class Eval:
    """Options of an evaluation. ``judge`` is how samples are scored (see ``compute.judge.Judging``)."""

    problems: Count = 200
    n: Count = 64
    temperature: NonNegative = 1.0
    top_p: PositiveShare = 1.0
    top_k: Whole = 0
    min_p: Share = 0.0
    max_tokens: Count = 256
    split: Literal["train", "test", "harder", "ood"] = "test"
    judge: Judging = field(default_factory=Judging)
    trace_top: Whole = 0
    """Record the samples' certainty, with the confidence of this many likeliest tokens, for the rules that read it; 0: do not."""
    trace_window: Count = 64
    """Tokens of a group of DeepConf's scores."""
    batch: Count = 8
    """Problems per engine call. Their pools are written to disk after it."""
    seed: Seed = 0
    probe: Probing = field(default_factory=Probing)
    """Thoughts, besides the samples, that are stopped after each episode and made to answer (see ``evals.probes``)."""

    def __post_init__(self) -> None:
        Sampling(self.n, self.temperature, self.top_p, self.max_tokens)
        if self.judge.name == "pairs":
            raise ValueError(
                "judge=pairs compares the samples of a plan, and gives none a score of its own: name it in a plan, such as "
                "--plan best-16:judge=pairs"
            )


RENAMED = {
    "confidence": "trace_top", "window": "trace_window", "judge_tokens": "judge.tokens", "judge_votes": "judge.votes"
}  # fmt: skip
"""Options of before -> what they are called now, for the error message."""


def evaluate(
    engine: Engine,
    chat: Chat,
    task: Task,
    config: Eval,
    out: Path,
    *,
    name: str,
    model: str,
    verifier: Engine | None = None,
    verified_by: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write ``out/pools.jsonl`` (one line per problem, appended), ``out/texts.jsonl`` (a few texts to read), ``out/eval.json`` and,
    if samples are judged by one token, ``out/attacks.json`` (see ``attacks.short_form``), which the last-token score has none of;
    return ``out``.

    Problems that are already there are not done again. ``verifier`` scores in the model's place (another engine, the same
    tokenizer); ``verified_by`` is its name. Raises ValueError if ``out`` was begun with other settings.
    """
    problems = first(task, config.split, config.problems)
    for problem in problems:
        check_problem(problem)
    header = _header(engine, chat, task, config, name, model, verified_by)
    if (out / HEADER).exists():
        before = read_header(out)
        if replace(before, seconds=0.0, load=None) != header:
            raise ValueError(f"{out} holds another evaluation (see its {HEADER}): choose another --out")
        header = before
    done = finished_ids(out / POOLS, problems)
    write_header(out, header)
    waiting = [p for p in problems if p.id not in done]
    progress(len(problems) - len(waiting), len(problems))
    with Lines(out / POOLS) as file, Lines(out / texts.FILE) as readable:
        for i in range(0, len(waiting), config.batch):
            began = time.monotonic()
            groups, pools = _pools(engine, chat, task, waiting[i : i + config.batch], config, verifier)
            for pool in pools:
                write_pool(file, pool)
            file.sync()
            for group, pool in zip(groups, pools, strict=True):
                texts.write_texts(readable, group, pool.scores)
            for doubt in doubts(pools) if i == 0 else []:
                log.warning("of the first problems, %s", doubt)
            header = _after(header, time.monotonic() - began)
            write_header(out, header)
            progress(len(problems) - len(waiting) + min(i + config.batch, len(waiting)), len(problems))
    if config.judge.name not in (*WRITING, "last_token", "none") and not (out / attacks.FILE).exists():
        found = attacks.short_form(verifier or engine, chat, task, problems, config.judge, config.max_tokens)
        if found is not None:
            attacks.save(found, out)
    return out


def _after(header: Header, seconds: float) -> Header:
    """Return the header after a batch that took so long, during which the machine was as busy as it is now."""
    total, now = header.seconds + seconds, os.getloadavg()[0] / (os.cpu_count() or 1)
    before = now if header.load is None else header.load
    return replace(header, seconds=total, load=round((before * header.seconds + now * seconds) / total, 2))


def _header(
    engine: Engine, chat: Chat, task: Task, config: Eval, name: str, model: str, verified_by: str | None
) -> Header:
    judge = resolved(config.judge, chat)
    return Header(
        name=name,
        model=model,
        task=task.name,
        split=config.split,
        n=config.n,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        max_tokens=config.max_tokens,
        seed=config.seed,
        engine=type(getattr(engine, "own", engine)).__name__,
        versions={"twofold": __version__} | {library: version(library) for library in ("torch", "transformers")},
        judge=None if judge.name == "none" else f"{judge.name} of {verified_by}" if verified_by else judge.name,
        seconds=0.0,
        trace_top=config.trace_top,
        trace_window=config.trace_window if config.trace_top else 0,
        judge_votes=judge.votes,
        judge_question=judge.question,
        judge_cut=judge.cut if judge.name == "steps" else None,
        code=(" + ".join(task.code) or None) if isinstance(task, Wrapper) else None,
        system=chat.system,
        enable_thinking=chat.enable_thinking,
        opening=chat.opening or None,
        extract=getattr(inner(task), "extract", "boxed"),
    )


def _pools(
    engine: Engine, chat: Chat, task: Task, problems: Sequence[Problem], config: Eval, verifier: Engine | None
) -> tuple[list[Group], list[Pool]]:
    began = time.monotonic()
    sampling = Sampling(
        config.n, config.temperature, config.top_p, config.max_tokens, chat.stop, config.seed, config.trace_top,
        top_k=config.top_k, min_p=config.min_p,
    )  # fmt: skip
    groups = rollouts(engine, chat, task, problems, sampling)
    scores, cost = _scores(verifier or engine, chat, [r for g in groups for r in g], config)
    share = (time.monotonic() - began) / len(problems)
    pools, form = [], form_of(task) or canonical
    for i, group in enumerate(groups):
        mine = slice(i * config.n, (i + 1) * config.n)
        pools.append(
            Pool(
                problem=group[0].problem,
                answers=[None if r.answer is None else form(r.answer) for r in group],
                grades=[r.grade for r in group],
                scores=scores[mine],
                tokens=[len(r.completion.tokens) for r in group],
                judge_tokens=cost[mine],
                seconds=share,
                **_certainty(group, config),
            )
        )
    return groups, pools


def _certainty(group: Group, config: Eval) -> dict[str, Any]:
    """Return the samples' self-certainty and all their DeepConf scores, or nothing if they were not recorded."""
    if not config.trace_top:
        return {}
    confidences = [r.completion.token_confidence or [] for r in group]
    return {
        "certainty": [float(np.mean(r.completion.token_certainty or [])) for r in group],
        "traces": {kind: [trace(c, kind, config.trace_window) for c in confidences] for kind in get_args(Trace)},
    }


def _scores(engine: Engine, chat: Chat, rollouts: list[Rollout], config: Eval) -> tuple[list[float | None], list[int]]:
    """Return the score of every rollout, and the tokens read or written to judge it, beyond its own."""
    if config.judge.name == "none":
        return [None] * len(rollouts), [0] * len(rollouts)
    judged = judge_all(engine, chat, rollouts, config.judge, config.seed)
    return [score for score, _ in judged], [tokens for _, tokens in judged]
