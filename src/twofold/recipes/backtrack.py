"""MRT-B: a stream of attempts, each but the first begun by taking back part of the one before (backtracking search).

Paper: "Optimizing Test-Time Compute via Meta Reinforcement Fine-Tuning" (arXiv:2503.07572). z0 is a full attempt,
z1 says "Backtrack to line n", z2 goes on from the lines before n; and so on, until the model ends its turn. Every attempt
ends in an answer, so the meta-prover is the policy itself: stopping after z0 is worth z0's own reward. Methods, in the
order in which they are run:

* ``warm``: supervised, as a model does not backtrack by itself. Behind every line of a failed z0 ``continuations`` are drawn;
  their mean reward estimates the success of that prefix. z1 names the line behind the best prefix, z2 is a right
  continuation of it. ``rise`` instead stitches a failed and a right attempt of one problem together at random, from the first
  line on; ``star`` learns right attempts alone.
* ``rl``: z0 is context, ``branches`` streams go on behind it, and their rewards are set against z0's own as in
  ``recipes/mrt.py``: progress is what z2 has over z0. ``grpo``: the outcome of whole streams only.

What the paper leaves open is a field here. Deviations: of prefixes of equal success the longest is kept, and its attempt
is drawn, not searched for with a beam; right first attempts are learnt too (what follows one is the end), as the model
itself has to know when to stop; in ``rl`` a stream may also end behind z0, or backtrack more than once, and ``alpha`` times
the normalised bonus stands next to the outcome term of ``rollouts`` streams. The copies of z0's reward, "half" of the group
under ``mixed``, cost nothing: z0 has been graded. Rollouts whose reward could not be computed are left out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from twofold.compute.backtrack import tried
from twofold.compute.rollout import Task, continue_graded, forced, graded, join, rollouts, split, value
from twofold.engines.base import Engine
from twofold.maths.seeds import derive
from twofold.recipes import common
from twofold.recipes.common import Setup, Stats, policy_sample, relative, rewards_of, whole
from twofold.recipes.mrt import branch_advantages
from twofold.text.chat import Chat
from twofold.text.prompts import BACKTRACK
from twofold.text.segments import line_starts
from twofold.types import Collected, Completion, Group, Problem, Rollout, Sample, Sampling


@dataclass(frozen=True, slots=True)
class MRTB:
    """Options of the recipe. Each method reads what concerns it."""

    name: Literal["mrt_b"] = "mrt_b"
    method: Literal["rl", "grpo", "warm", "rise", "star"] = "rl"
    rollouts: int = 4
    """Streams (``rl``, ``grpo``) or first attempts (the others) per problem."""
    alpha: float = 1.0
    """``rl``: weight of the bonus; 0 leaves GRPO."""
    bonus: Literal["mixed", "termination"] = "mixed"
    branches: int = 4
    """``rl``: streams that go on behind one first attempt."""
    source: Literal["policy", "start"] = "policy"
    """Who made the first attempts: the policy of this step, or the starting model."""
    continuations: int = 4
    """``warm``: behind every line of a failed attempt."""
    learn: Literal["suffix", "turn"] = "suffix"
    """``warm``, ``rise``: what follows the first attempt is a target, or the whole turn."""

    def __post_init__(self) -> None:
        if self.rollouts < 1 or self.branches < 1 or self.continuations < 1:
            raise ValueError(f"rollouts, branches and continuations must be at least 1, got {self}")
        if self.rollouts < 2 and self.method in ("rl", "grpo"):
            raise ValueError(f"rollouts must be at least 2 for {self.method}: a group of one has no baseline")

    def build(self, setup: Setup) -> Recipe:
        start = setup.frozen() if self.source == "start" else None
        return Recipe(self, setup.task, setup.chat, setup.sampling, start, setup.reference())


class Recipe(common.Recipe):
    """``start`` is the starting model, for ``source = "start"``; ``reference`` is asked for the KL stream if given."""

    def __init__(
        self,
        config: MRTB,
        task: Task,
        chat: Chat,
        sampling: Sampling,
        start: Engine | None = None,
        reference: Engine | None = None,
    ) -> None:
        if config.source == "start" and start is None:
            raise ValueError('source = "start" needs an engine of the starting model')
        super().__init__(task, chat, sampling, config.rollouts, reference)
        self.config, self.start = config, start

    def collect(self, engine: Engine, problems: Sequence[Problem], step: int) -> Collected:
        config = self.config
        sampling = replace(self.sampling, seed=derive(self.sampling.seed, step))
        source = self.start or engine
        if config.method in ("warm", "rise", "star"):
            return self._supervised(source, problems, sampling)
        groups = rollouts(engine, self.chat, self.task, problems, sampling)
        stats = common.describe(groups) | self._described(groups)
        known = common.gradable(groups)
        samples = [
            policy_sample(r, whole(a, r)) for g in known for r, a in zip(g, relative(rewards_of(g)), strict=True)
        ]
        if config.method == "rl" and config.alpha:
            if source is not engine:
                known = rollouts(source, self.chat, self.task, problems, replace(sampling, n=1))
            branched, more = self._branched(engine, [self._first(g[0]) for g in known if g], sampling)
            samples += branched
            stats |= more
        if self.reference is not None:
            common.refer(samples, self.reference, self.sampling.temperature)
        return Collected({"policy": samples}, stats, groups)

    def _first(self, rollout: Rollout) -> Rollout:
        """Its first attempt alone, graded, without what ended it: a line break before the mark, or the turn's end."""
        first = tried(self.chat, rollout.completion)[0]
        if first.finish == "stop":
            first, _ = split(first, len(first.tokens) - 1)
        return graded(self.chat, self.task, [(rollout.problem, rollout.prompt, first)])[0]

    def _described(self, groups: Sequence[Group]) -> Stats:
        """How the streams of a step backtrack; progress is the last attempt's reward less the first one's."""
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
        """Behind each first attempt that has an answer ``branches`` streams go on, in one engine call; the attempt is context."""
        config = self.config
        firsts = [r for r in firsts if r.answer is not None and r.grade.reward is not None]
        begun = [replace(r, completion=forced(r.completion.tokens)) for r in firsts]
        # a seed of its own: with the rollouts' the stream that the attempt began would be the same again
        limit = replace(sampling, n=config.branches, seed=derive(sampling.seed, "branches"))
        ends = [[len(r.completion.tokens)] for r in begun]
        drawn = continue_graded(engine, self.chat, self.task, begun, ends, limit)
        samples: list[Sample] = []
        gains: list[float] = []
        for r, (group,) in zip(begun, drawn, strict=True):
            on = [o for o in group if o.grade.reward is not None]
            direct, rewards = r.grade.reward or 0.0, [o.grade.reward or 0.0 for o in on]
            numbers = branch_advantages([direct] * len(on), rewards, config.bonus)[len(on) :] if on else []
            samples += [policy_sample(o, whole(config.alpha * a, o)) for o, a in zip(on, numbers, strict=True)]
            gains += [reward - direct for reward in rewards]
        return samples, {"backtrack/branch_progress": sum(gains) / max(1, len(gains))}

    # ------------------------------------------------------------ supervised

    def _supervised(self, engine: Engine, problems: Sequence[Problem], sampling: Sampling) -> Collected:
        """Right first attempts and their end; failed ones with what was found for them (not ``star``)."""
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
        """RISE: every failed attempt with a random right one of its problem, from the first line on."""
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
        """Of every failed attempt the prefix of highest success, and a right continuation, in one engine call.

        The last of equals, so the longest; attempts of which no continuation is right and whole are left out.
        """
        cuts = [line_starts(self.chat.pieces(r.completion.tokens)) for r in failed]
        limit = replace(sampling, n=self.config.continuations, seed=derive(sampling.seed, "continuations"))
        drawn = continue_graded(engine, self.chat, self.task, failed, cuts, limit)
        pairs, chosen = [], []
        for r, own, groups in zip(failed, cuts, drawn, strict=True):
            best, found = 0.0, None
            for line, (end, tries) in enumerate(zip(own, groups, strict=True), 1):
                success = value(tries)  # NaN is never the best
                right = (on.completion for on in tries if on.grade.correct and on.completion.finish == "stop")
                finished = next(right, None)
                if finished is not None and success >= best:
                    best, found = success, (line, split(finished, end)[1])
            if found is not None:
                pairs.append((r, forced([*self._mark(r, found[0]), *found[1].tokens])))
                chosen.append((best, found[0]))
        count = max(1, len(chosen))
        return pairs, {
            "backtrack/success": sum(s for s, _ in chosen) / count,
            "backtrack/line": sum(line for _, line in chosen) / count,
        }

    def _mark(self, attempt: Rollout, line: int) -> list[int]:
        """The mark, on a line of its own."""
        return self.chat.encode(("" if attempt.text.endswith("\n") else "\n") + BACKTRACK.format(line), tags=True)


def target(attempt: Rollout, suffix: Completion, learn_all: bool) -> Sample:
    """The attempt with the suffix behind, which is the target; with ``learn_all`` the attempt is one too."""
    joined = replace(attempt, completion=join(attempt.completion, suffix))
    sample = common.context_sample(joined)
    start = len(attempt.prompt) + (0 if learn_all else len(attempt.completion.tokens))
    return replace(sample, targets=[0.0] * start + [1.0] * (len(sample.tokens) - start))
