"""Drop a sample while it is being written: by the model's verdict on what there is so far, or by its token confidence.

Both draw all samples in chunks of tokens; the survivors of a chunk continue from their caches.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np

from twofold.compute.cost import Made, account
from twofold.compute.judge import judge_cost, p_yes
from twofold.compute.rollout import continue_from, draw
from twofold.engines.base import Engine
from twofold.maths.confidence import Traces, trace
from twofold.maths.seeds import derive
from twofold.maths.votes import tally
from twofold.ranges import Count, PositiveShare, Share, checked
from twofold.text.chat import Chat
from twofold.text.extract import canonical
from twofold.types import Candidate, Sampling


@checked
class Prune:
    """Ask for P(Yes) of every unfinished sample after each ``chunk`` tokens, and drop the samples below ``floor``.

    A problem without a finished sample keeps its best one.
    """

    name: Literal["prune"] = "prune"
    chunk: Count = 16
    floor: Share = 0.1


@checked
class DeepConfOnline:
    """DeepConf online (arXiv:2508.15260, section 3.3): drop a sample while it is written, once its confidence is too low.

    The first ``warmup`` samples run to their ends and set the bar: the lowest group confidence that the top ``keep`` of
    them reach. Later samples are dropped when they fall below it. They are drawn ``step`` at a time until the leading answer
    holds the share ``consensus`` of the votes. Confidence is read every ``chunk`` tokens. ``top``, ``window`` and ``keep``
    are the plan's ``traces``; ``keep`` 0.1 is published as "low" (it drops most), 0.9 as "high".
    """

    name: Literal["deepconf_online"] = "deepconf_online"
    warmup: Count = 16
    chunk: Count = 16
    step: Count = 16
    consensus: PositiveShare = 0.95


def prune(
    engine: Engine, chat: Chat, questions: Sequence[str], n: int, sampling: Sampling, config: Prune
) -> list[Made]:
    """Return at most ``n`` finished (or full-length) samples per question; the dropped ones count as discarded."""
    began = time.monotonic()
    cut = replace(sampling, n=n, max_tokens=min(config.chunk, sampling.max_tokens))
    groups = draw(engine, chat, questions, cut)
    done: list[list[Candidate]] = [[] for _ in groups]
    dropped, read = [0] * len(groups), [0] * len(groups)
    while True:
        going = []
        for finished, group in zip(done, groups, strict=True):
            finished += [r for r in group if _finished(r, sampling)]
            going.append([r for r in group if not _finished(r, sampling)])
        if not any(going):
            break
        values = iter(p_yes(engine, chat, [r for group in going for r in group]))
        for i, group in enumerate(going):
            value = {id(r): next(values) for r in group}
            read[i] += sum(judge_cost(chat, r) for r in group)
            bar = config.floor if done[i] else min(config.floor, max(value.values(), default=0.0))
            dropped[i] += sum(len(r.completion.tokens) for r in group if value[id(r)] < bar)
            going[i] = [r for r in group if value[id(r)] >= bar]
        groups = _continue_groups(engine, chat, going, sampling, config.chunk)
    spent = [_tokens(group) + lost for group, lost in zip(done, dropped, strict=True)]
    return account([chat.prompt(q) for q in questions], done, spent, began, read)


def deepconf_online(
    engine: Engine,
    chat: Chat,
    questions: Sequence[str],
    n: int,
    sampling: Sampling,
    config: DeepConfOnline,
    traces: Traces,
) -> list[Made]:
    """Return the samples that hold the bar, each with its lowest group confidence as its score."""
    began = time.monotonic()
    sampling = replace(sampling, trace_top=traces.top)
    lowest = partial(_lowest, window=traces.window)
    warm = draw(engine, chat, questions, replace(sampling, n=min(config.warmup, n)))
    bars = [float(np.quantile([lowest(r) for r in g], 1 - traces.keep)) for g in warm]
    kept = [[r for r in g if lowest(r) >= bar] for g, bar in zip(warm, bars, strict=True)]
    dropped = [_tokens(g) - _tokens(k) for g, k in zip(warm, kept, strict=True)]
    drawn, i = min(config.warmup, n), 1
    while drawn < n and (
        open_ := [q for q, k in enumerate(kept) if not _agreed(k, [lowest(r) for r in k], config.consensus)]
    ):
        batch = min(config.step, n - drawn)
        more = replace(sampling, n=batch, seed=derive(sampling.seed, f"round {i}"))
        asked = [questions[q] for q in open_]
        held = _above(engine, chat, asked, more, config.chunk, traces.window, [bars[q] for q in open_])
        for q, (good, lost) in zip(open_, held, strict=True):
            kept[q] += good
            dropped[q] += lost
        drawn, i = drawn + batch, i + 1
    spent = [_tokens(group) + lost for group, lost in zip(kept, dropped, strict=True)]
    scores = [[lowest(r) for r in group] for group in kept]
    return account([chat.prompt(q) for q in questions], kept, spent, began, scores=scores)


def _above(
    engine: Engine,
    chat: Chat,
    questions: Sequence[str],
    sampling: Sampling,
    chunk: int,
    window: int,
    bars: Sequence[float],
) -> list[tuple[list[Candidate], int]]:
    """Draw samples; return (those that finished above their question's bar, tokens of the others) per question."""
    cut = replace(sampling, max_tokens=min(chunk, sampling.max_tokens))
    going = draw(engine, chat, questions, cut)
    done: list[list[Candidate]] = [[] for _ in going]
    dropped = [0] * len(going)
    while any(going):
        for i, group in enumerate(going):
            # a group that is not full yet decides nothing about an unfinished sample
            full = [len(r.completion.tokens) >= window or _finished(r, sampling) for r in group]
            low = [f and _lowest(r, window) < bars[i] for r, f in zip(group, full, strict=True)]
            dropped[i] += _tokens([r for r, bad in zip(group, low, strict=True) if bad])
            good = [r for r, bad in zip(group, low, strict=True) if not bad]
            done[i] += [r for r in good if _finished(r, sampling)]
            going[i] = [r for r in good if not _finished(r, sampling)]
        going = _continue_groups(engine, chat, going, sampling, chunk)
    return list(zip(done, dropped, strict=True))


def _continue_groups(
    engine: Engine, chat: Chat, groups: Sequence[list[Candidate]], sampling: Sampling, chunk: int
) -> list[list[Candidate]]:
    """Continue every candidate of every group, which are all equally long, by another chunk; one engine call."""
    everyone = [r for group in groups for r in group]
    if not everyone:
        return [[] for _ in groups]
    left = sampling.max_tokens - len(everyone[0].completion.tokens)
    longer = iter(continue_from(engine, chat, everyone, replace(sampling, max_tokens=min(chunk, left))))
    return [[next(longer) for _ in group] for group in groups]


def _finished(rollout: Candidate, sampling: Sampling) -> bool:
    return rollout.completion.finish == "stop" or len(rollout.completion.tokens) >= sampling.max_tokens


def _tokens(group: list[Candidate]) -> int:
    return sum(len(r.completion.tokens) for r in group)


def _lowest(rollout: Candidate, window: int) -> float:
    assert rollout.completion.token_confidence is not None
    return trace(rollout.completion.token_confidence, "lowest", window)


def _agreed(group: list[Candidate], weights: list[float], consensus: float) -> bool:
    votes = tally([None if r.answer is None else canonical(r.answer) for r in group], weights)
    return bool(votes) and max(votes.values()) >= consensus * sum(votes.values())
