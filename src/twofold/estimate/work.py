"""What one step of a training run asks for: the texts that are drawn, the tokens that are read and learnt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from twofold.config import Config
from twofold.estimate.shapes import Shape
from twofold.ranges import Count, checked
from twofold.recipes.mrt import MRT
from twofold.recipes.rlcr import RLCR
from twofold.recipes.rlv import RLV
from twofold.recipes.sft import SFT
from twofold.recipes.tango import Tango

JUDGEMENT = 24
"""Tokens of the question about a solution, with the chat's marks and the verdict."""
INSTRUCTION = 200
"""Tokens of the question that Tango's verifier answers."""
FORCED = 32
"""Tokens of a forced answer (MRT)."""


@checked
class Lengths:
    """What a config does not say about its texts, in tokens."""

    prompt: Count = 128
    """Mean length of a prompt."""
    completion: Count | None = None
    """Mean length of a rollout. None: half of ``rollout.max_tokens``."""
    parts: Count = 8
    """Steps of a solution (VinePPO) or episodes of a thought (MRT), in the mean."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One call of the engine: ``texts`` of ``length`` tokens in the mean and ``longest`` at most, which continue ``prompts`` prompts.

    A prompt has ``context`` tokens, of which ``fresh`` are not in the cache. The call is made ``times`` times a step.
    """

    prompts: float
    context: float
    fresh: float
    texts: float
    length: float
    longest: float
    times: float = 1.0

    @property
    def tokens(self) -> float:
        """Tokens that are drawn in a step."""
        return self.times * self.texts * self.length


@dataclass(frozen=True, slots=True)
class Learnt:
    """The samples of a step as the learner lays them out, over all epochs."""

    laid: float
    """Tokens in forward and backward passes. A prompt that samples of a mini-batch share counts once."""
    read: float
    """Tokens whose log-probs are computed."""
    seen: float
    """Tokens that a token attends to, summed over the tokens."""

    def __add__(self, other: Learnt) -> Learnt:
        return Learnt(self.laid + other.laid, self.read + other.read, self.seen + other.seen)

    def scaled(self, times: float) -> Learnt:
        return Learnt(self.laid * times, self.read * times, self.seen * times)

    def flops(self, shape: Shape, *, frozen_head: bool = False) -> float:
        """Return the FLOPs of forward and backward passes: 2 and 4 for each weight and token."""
        head = (4 if frozen_head else 6) * shape.head * self.read
        return 6 * shape.layer_matrices * self.laid + head + 12 * shape.layers * shape.query_width * self.seen


@dataclass(frozen=True, slots=True)
class Work:
    """What one step asks for. ``prefilled`` are tokens that are read to score texts, beyond those of draws."""

    draws: tuple[Draw, ...]
    judged: float
    """Tokens that are read or written to judge."""
    prefilled: float
    learnt: Learnt
    updates: float
    """Steps of the optimiser."""
    streams: int
    """2 if there are verdicts to learn beside the policy. Their gradients are separated in every tenth step."""

    @property
    def sampled(self) -> float:
        return sum(draw.tokens for draw in self.draws)


def laid_out(
    families: float, prefix: float, n: float, own: float, read: float, epochs: int, minibatches: int
) -> Learnt:
    """Return what is learnt from ``families`` prompts with ``n`` samples each, of ``own`` tokens behind ``prefix`` tokens.

    ``read`` of a sample's own tokens have a log-prob. Mini-batches are drawn at random: a prompt is laid in each that has one of
    its samples.

    >>> laid_out(2, 10, 4, 5, 5, 1, 1).laid, laid_out(2, 10, 4, 5, 5, 1, 2).laid
    (60, 77.5)
    """
    copies = minibatches * (1 - (1 - 1 / minibatches) ** n) if minibatches > 1 else 1
    samples, prefixes = epochs * families * n, epochs * families * copies
    seen = samples * own * (prefix + own / 2) + prefixes * prefix**2 / 2
    return Learnt(prefixes * prefix + samples * own, samples * read, seen)


def work_of(config: Config, lengths: Lengths) -> Work:
    """Return the work of a mean step. Raises ValueError for a recipe whose work is not modelled."""
    known: dict[type, Callable[..., Work]] = {RLV: _rlv, RLCR: _rlcr, Tango: _tango, MRT: _mrt, SFT: _sft}
    recipe = config.recipe
    if type(recipe) not in known:
        names = ", ".join(kind().name for kind in known)
        raise ValueError(f"twofold plan cannot estimate recipe {recipe.name!r}, only {names}")
    length = lengths.completion or config.rollout.max_tokens / 2
    if length > config.rollout.max_tokens:
        raise ValueError(f"--completion: {length} is more than rollout.max_tokens, {config.rollout.max_tokens}")
    work = known[type(recipe)](config, recipe, lengths, length)
    if config.loss.beta:  # every sample is read by the reference policy, too
        work = replace(work, prefilled=work.prefilled + work.learnt.laid / config.train.epochs)
    return work


def _work(config: Config, draws: list[Draw], learnt: Learnt, judged: float = 0, streams: int = 1) -> Work:
    return Work(tuple(draws), judged, 0.0, learnt, config.train.epochs * config.train.minibatches, streams)


def _solutions(config: Config, lengths: Lengths, n: int, length: float, times: float = 1) -> Draw:
    problems = config.rollout.problems
    return Draw(
        problems,
        lengths.prompt,
        lengths.prompt,
        problems * n,
        length,
        min(config.rollout.max_tokens, 2 * length),
        times,
    )


def _learnt(config: Config, families: float, prefix: float, n: float, own: float, read: float) -> Learnt:
    return laid_out(families, prefix, n, own, read, config.train.epochs, config.train.minibatches)


def _rlv(config: Config, recipe: RLV, lengths: Lengths, length: float) -> Work:
    problems, n = config.rollout.problems, recipe.rollouts
    draws = [_solutions(config, lengths, n, length)]
    if recipe.estimator == "vineppo":
        ends = problems * n * lengths.parts
        middle = length / 2
        longest = min(config.rollout.max_tokens, 2 * middle)
        draws.append(Draw(ends, lengths.prompt + middle, 1, ends * recipe.vine_k, middle, longest))
    learnt = _learnt(config, problems, lengths.prompt, n, length, length)
    if recipe.verify == "none":
        return _work(config, draws, learnt)
    if recipe.verify == "separate":  # a second model learns nothing but the verdicts
        return _work(
            config, draws, learnt + _learnt(config, problems * n, 0, 1, length + JUDGEMENT, 1), problems * n * JUDGEMENT
        )
    asked = {"last_token": 0, "pairs": JUDGEMENT + length}.get(recipe.verify, JUDGEMENT)
    learnt = _learnt(config, problems, lengths.prompt, n, length + asked, length + 1)
    return _work(config, draws, learnt, problems * n * max(1, asked), streams=2)


def _rlcr(config: Config, recipe: RLCR, lengths: Lengths, length: float) -> Work:
    problems, n = config.rollout.problems, recipe.rollouts
    stated = Draw(problems * n, lengths.prompt + length + JUDGEMENT, JUDGEMENT, problems * n, 1, 1)
    learnt = _learnt(config, problems, lengths.prompt, n, length + JUDGEMENT, length + 1)
    return _work(config, [_solutions(config, lengths, n, length), stated], learnt)


def _tango(config: Config, recipe: Tango, lengths: Lengths, length: float) -> Work:
    """The mean over the updates of a turn: some of the generator, some of the verifier."""
    problems, n, written = config.rollout.problems, recipe.rollouts, recipe.verifier_tokens / 2
    whole = lengths.prompt + length
    turn = recipe.generator_updates + recipe.verifier_updates
    mine, theirs = recipe.generator_updates / turn, recipe.verifier_updates / turn

    def verdicts(solutions: float, each: int, times: float) -> Draw:
        asked = whole + INSTRUCTION
        return Draw(solutions, asked, INSTRUCTION, solutions * each, written, recipe.verifier_tokens, times)

    draws = [_solutions(config, lengths, n, length, mine), _solutions(config, lengths, 1, length, theirs)]
    draws += [verdicts(problems * n, recipe.verifications, mine), verdicts(problems, n, theirs)]
    judged = sum(d.tokens + d.times * d.prompts * INSTRUCTION for d in draws[2:])
    generator = _learnt(config, problems, lengths.prompt, n, length, length).scaled(mine)
    verifier = _learnt(config, problems, whole + INSTRUCTION, n, written, written).scaled(theirs)
    return _work(config, [d for d in draws if d.times], generator + verifier, judged)


def _mrt(config: Config, recipe: MRT, lengths: Lengths, length: float) -> Work:
    problems, n = config.rollout.problems, recipe.rollouts
    draws, learnt = (
        [_solutions(config, lengths, n, length)],
        _learnt(config, problems, lengths.prompt, n, length, length),
    )
    half = lengths.prompt + length / 2
    if recipe.method == "rl":
        each = (length / 2 + FORCED) / 2  # half of the branches are stopped at once
        draws.append(Draw(problems, half, 1, problems * recipe.branches, each, config.rollout.max_tokens / 2))
        learnt = learnt + _learnt(config, problems, half, recipe.branches, each, each)
    if recipe.method in ("online", "mrt_star"):
        cuts = problems * n * lengths.parts
        if recipe.progress == "likelihood":  # the closing and the answer are read, nothing is drawn
            return replace(_work(config, draws, learnt), prefilled=cuts * 2 * FORCED)
        draws.append(Draw(cuts, half, FORCED, cuts * recipe.answers, FORCED, FORCED))
    return _work(config, draws, learnt)


def _sft(config: Config, recipe: Any, lengths: Lengths, length: float) -> Work:
    return _work(config, [], _learnt(config, config.rollout.problems, lengths.prompt, 1, length, length))
