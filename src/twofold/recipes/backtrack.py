"""MRT-B: a stream of attempts; each attempt after the first takes back a part of the one before it (backtracking search).

Paper: "Optimizing Test-Time Compute via Meta Reinforcement Fine-Tuning" (arXiv:2503.07572). z0 is a full attempt,
z1 says "Backtrack to line n", z2 continues from the lines before n; and so on, until the model ends its turn. Every attempt
ends in an answer, so the meta-prover is the policy itself: the value of stopping after z0 is z0's own reward. Methods, in
the order in which they are run:

* ``warm`` is supervised, because a model does not backtrack by itself. After every line of a failed z0, ``continuations``
  are drawn, and their mean reward estimates the success of the prefix up to that line. z1 names the line after the best
  prefix; z2 is a right continuation of that prefix. The two alternatives: ``rise`` joins a failed attempt and a random right
  attempt at the same problem, from the first line on; ``star`` learns right attempts only.
* ``rl``: z0 is context, ``branches`` streams continue after it, and their rewards are compared with z0's as in
  ``recipes/mrt.py``. Progress is the reward of z2 less the reward of z0. ``grpo``: the outcome of whole streams only.

What the paper leaves open is an option here. Deviations from the paper:

* Of prefixes of equal success the longest is kept. Its continuation is drawn, not searched for with a beam.
* ``warm`` and ``rise`` also learn right first attempts, each followed by the end of the turn, because the model itself has to
  know when to stop.
* In ``rl`` a stream may also end after z0, or backtrack more than once.
* ``alpha`` multiplies the normalised bonus. The outcome term is a term of its own, over ``rollouts`` streams.
* Under ``mixed`` half of the group are copies of z0's reward. They cost nothing, as z0 has been graded already.
* Rollouts whose reward could not be computed are left out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from twofold.compute.backtrack import tried
from twofold.compute.rollout import continue_graded, forced, graded, join, rollouts, split, success
from twofold.engines.base import Engine
from twofold.maths.seeds import derive
from twofold.ranges import Count, NonNegative, checked
from twofold.recipes import common
from twofold.recipes.common import Setup, Stats, policy_sample, rewards_of, whole
from twofold.recipes.mrt import branch_advantages
from twofold.text.prompts import BACKTRACK
from twofold.text.segments import line_starts
from twofold.types import Collected, Completion, Group, Problem, Rollout, Sample, Sampling


@checked
class MRTB:
    """Options of the recipe. Options that name a method concern that method only."""

    name: Literal["mrt_b"] = "mrt_b"
    method: Literal["rl", "grpo", "warm", "rise", "star"] = "rl"
    rollouts: Count = 4
    """Number per problem of streams (``rl``, ``grpo``) or of first attempts (the other methods)."""
    alpha: NonNegative = 1.0
    """``rl``: weight of the bonus; 0 is plain GRPO."""
    bonus: Literal["mixed", "termination"] = "mixed"
    """``rl``: how rewards become credit, see ``recipes/mrt.py``."""
    branches: Count = 4
    """``rl``: number of streams that continue after one first attempt."""
    source: Literal["policy", "start"] = "policy"
    """The model that writes the first attempts: the current policy, or the starting model."""
    continuations: Count = 4
    """``warm``: number of continuations after every line of a failed attempt."""
    learn: Literal["suffix", "turn"] = "suffix"
    """``warm``, ``rise``: the targets are what follows the first attempt, or the whole turn."""

    def __post_init__(self) -> None:
        if self.rollouts < 2 and self.method in ("rl", "grpo"):
            raise ValueError(f"rollouts must be at least 2 for {self.method}: a group of one has no baseline")

    def build(self, setup: Setup) -> Recipe:
        start = setup.frozen() if self.source == "start" else None
        return Recipe(self, setup.task, setup.chat, setup.sampling, start, setup.reference())


class Recipe(common.FromAttempts):
    """MRT-B in one run. Its methods are described at the top of this file."""

    config: MRTB

    def collect(self, engine: Engine, problems: Sequence[Problem], step: int) -> Collected:
        config = self.config
        sampling = replace(self.sampling, seed=derive(self.sampling.seed, step))
        if config.method in ("warm", "rise", "star"):
            return self._supervised(self.start or engine, problems, sampling)
        groups = rollouts(engine, self.chat, self.task, problems, sampling)
        stats = common.describe(groups) | self._backtracking(groups)
        graded_groups = common.gradable(groups)
        samples = common.outcome_samples(graded_groups)
        if config.method == "rl" and config.alpha:
            attempts = graded_groups
            if config.source == "start":
                attempts = rollouts(self.start or engine, self.chat, self.task, problems, replace(sampling, n=1))
            branched, more = self._branched(engine, [self._first(g[0]) for g in attempts if g], sampling)
            samples += branched
            stats |= more
        if self.reference is not None:
            common.refer(samples, self.reference, self.sampling.temperature)
        return Collected({"policy": samples}, stats, groups)

    def _first(self, rollout: Rollout) -> Rollout:
        """Return the first attempt of a stream alone, graded.

        The token that ended it is removed: the line break before the mark, or the end of the turn.
        """
        first = tried(self.chat, rollout.completion)[0]
        if first.finish == "stop":
            first, _ = split(first, len(first.tokens) - 1)
        return graded(self.chat, self.task, [(rollout.problem, rollout.prompt, first)])[0]

    def _backtracking(self, groups: Sequence[Group]) -> Stats:
        """Return numbers for the log: how the streams backtrack. Progress is the reward of the last attempt less the first's."""
        everyone = [r for g in groups for r in g]
        sizes = [len(tried(self.chat, r.completion)) for r in everyone]
        firsts = [self._first(r) if n > 1 else r for r, n in zip(everyone, sizes, strict=True)]
        both = [
            (z0.grade.reward, r.grade.reward)
            for z0, r in zip(firsts, everyone, strict=True)
            if z0.grade.reward is not None and r.grade.reward is not None
        ]
        return {
            "backtrack/share": sum(n > 1 for n in sizes) / len(sizes),
            "backtrack/attempts": sum(sizes) / len(sizes),
            "backtrack/first": sum(a for a, _ in both) / max(1, len(both)),
            "backtrack/progress": sum(b - a for a, b in both) / max(1, len(both)),
            "backtrack/progress_negative": sum(b < a for a, b in both) / max(1, len(both)),
        }

    # ------------------------------------------------------------ RL

    def _branched(self, engine: Engine, firsts: Sequence[Rollout], sampling: Sampling) -> tuple[list[Sample], Stats]:
        """Return the samples of the streams that continue after each first attempt that has an answer, all in one engine call.

        ``branches`` streams continue after each of them. The attempt itself is context.
        """
        config = self.config
        firsts = [r for r in firsts if r.answer is not None and r.grade.reward is not None]
        begun = [replace(r, completion=forced(r.completion.tokens)) for r in firsts]
        # another seed than the rollouts': theirs would draw the stream of this attempt again
        limit = replace(sampling, n=config.branches, seed=derive(sampling.seed, "branches"))
        ends = [[len(r.completion.tokens)] for r in begun]
        drawn = continue_graded(engine, self.chat, self.task, begun, ends, limit)
        samples: list[Sample] = []
        gains: list[float] = []
        for attempt, groups in zip(begun, drawn, strict=True):
            (streams,) = common.gradable(groups)
            direct, rewards = attempt.grade.known, rewards_of(streams)
            advantages = (
                branch_advantages([direct] * len(rewards), rewards, config.bonus)[len(rewards) :] if rewards else []
            )
            samples += [policy_sample(s, whole(config.alpha * a, s)) for s, a in zip(streams, advantages, strict=True)]
            gains += [reward - direct for reward in rewards]
        return samples, {"backtrack/branch_progress": sum(gains) / max(1, len(gains))}

    # ------------------------------------------------------------ supervised

    def _supervised(self, engine: Engine, problems: Sequence[Problem], sampling: Sampling) -> Collected:
        """Return right first attempts, each with the end of the turn, and failed ones with what follows them (not ``star``)."""
        method = self.config.method
        groups = rollouts(engine, self.chat, self.task, problems, sampling)
        firsts = [[self._first(r) for r in g] for g in groups]
        right = [[r for r in g if r.grade.correct and r.answer is not None] for g in firsts]
        failed = [[r for r in g if r.grade.label == "wrong" and r.answer is not None] for g in firsts]
        learn_all = self.config.learn == "turn" or method == "star"
        end = forced([self.chat.stop[0]])
        samples = [target(r, end, learn_all) for g in right for r in g]
        stats = common.describe(groups)
        if method == "rise":
            mended = self._stitched(failed, right, sampling.seed)
        elif method == "warm":
            mended, more = self._mended(engine, [r for g in failed for r in g], sampling)
            stats |= more
        else:
            mended = []
        samples += [target(r, suffix, learn_all) for r, suffix in mended]
        tries = max(1, sum(map(len, failed)))
        return Collected({"policy": samples}, stats | {"backtrack/kept": len(mended) / tries}, groups)

    def _stitched(self, failed: Sequence[Group], right: Sequence[Group], seed: int) -> list[tuple[Rollout, Completion]]:
        """Return RISE's pairs: every failed attempt, and a random right one at its problem, from the first line on."""
        end = [self.chat.stop[0]]
        pairs = []
        for bad, good in zip(failed, right, strict=True):
            for i, r in enumerate(bad if good else []):
                other = random.Random(f"{seed}/{r.problem.id}/{i}").choice(good)
                pairs.append((r, forced([*self._mark(r, 1), *other.completion.tokens, *end])))
        return pairs

    def _mended(
        self, engine: Engine, failed: Sequence[Rollout], sampling: Sampling
    ) -> tuple[list[tuple[Rollout, Completion]], Stats]:
        """Return failed attempts, each with the backtrack to its best prefix and a right continuation of that prefix.

        The best prefix is the one of highest success; the longest wins a tie. An attempt is left out if none of its
        continuations is right and complete. All continuations are drawn in one engine call.
        """
        cuts = [line_starts(self.chat.pieces(r.completion.tokens)) for r in failed]
        limit = replace(sampling, n=self.config.continuations, seed=derive(sampling.seed, "continuations"))
        drawn = continue_graded(engine, self.chat, self.task, failed, cuts, limit)
        pairs, chosen = [], []
        for r, own, groups in zip(failed, cuts, drawn, strict=True):
            highest, best = 0.0, None
            for line, (end, tries) in enumerate(zip(own, groups, strict=True), 1):
                share = success(tries)  # NaN is never the best
                right = (t.completion for t in tries if t.grade.correct and t.completion.finish == "stop")
                finished = next(right, None)
                if finished is not None and share >= highest:
                    highest, best = share, (line, split(finished, end)[1])
            if best is not None:
                line, continuation = best
                pairs.append((r, forced([*self._mark(r, line), *continuation.tokens])))
                chosen.append((highest, line))
        count = max(1, len(chosen))
        return pairs, {
            "backtrack/success": sum(s for s, _ in chosen) / count,
            "backtrack/line": sum(line for _, line in chosen) / count,
        }

    def _mark(self, attempt: Rollout, line: int) -> list[int]:
        """Return the tokens of "Backtrack to line n", on a line of their own after the attempt."""
        return self.chat.encode(("" if attempt.text.endswith("\n") else "\n") + BACKTRACK.format(line), tags=True)


def target(attempt: Rollout, suffix: Completion, learn_all: bool) -> Sample:
    """Return the attempt followed by the suffix. The suffix is the target; with ``learn_all`` so is the attempt."""
    joined = replace(attempt, completion=join(attempt.completion, suffix))
    sample = common.context_sample(joined)
    start = len(attempt.prompt) + (0 if learn_all else len(attempt.completion.tokens))
    return replace(sample, targets=[0.0] * start + [1.0] * (len(sample.tokens) - start))
