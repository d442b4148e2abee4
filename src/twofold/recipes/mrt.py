"""MRT: reward the progress that each part of a thought makes, so that every further token helps.

Paper: "Optimizing Test-Time Compute via Meta Reinforcement Fine-Tuning" (arXiv:2503.07572). A thought is cut into
episodes; J_j is the chance of a right answer if it is stopped after episode j and made to answer (the meta-prover);
progress is J_j - J_(j-1). Objective: outcome + alpha * progress. Methods, baselines among them:

* ``rl`` is MRT (RL) of section 6.2. A thought is cut after a random episode, and ``branches`` rollouts start from there:
  half are stopped at once and made to answer, half continue. ``bonus`` says how their rewards become credit:
  ``"mixed"`` (the paper's words) normalises all of them together; ``"termination"`` (the authors' README) subtracts the
  mean reward T of the stopped half from every reward; ``"baseline"`` does the same and learns from the continued half only.
  (Adding a bonus to the reward y, as y + alpha (y - T), *inside* one GRPO group is plain GRPO: T and alpha cancel.)
* ``online`` is the authors' MRT-online of 2026: each episode of a fresh rollout is credited with its own progress. With
  ``progress = "likelihood"`` J is the probability of the known answer, which is read and not drawn (PACR's measure,
  arXiv:2510.22255; our use of it).
* ``mrt_star`` is MRT (STaR): supervised learning on thoughts that are cut where their value is highest, each with a right
  answer that was forced there.
* ``star`` is supervised learning on all right rollouts. ``grpo`` uses the outcome only. ``length`` multiplies the outcome of
  a right rollout by 1 - penalty * sigmoid((length - mean) / std), with mean and std over the right rollouts of its group.

What the paper leaves open is an option here. Deviations from the paper:

* ``alpha`` multiplies the normalised bonus. The outcome term is a term of its own, over ``rollouts`` full rollouts per
  problem; the published recipe computes both terms from the same rollouts.
* One thought per problem and step is cut.
* The STaR methods draw and learn at every step, from the current model, or with ``source = "start"`` from the starting
  model, as published. They learn the thought, its closing without ``hurry``, and the answer.
* A rollout is left out if its reward or one of its values could not be computed.
* Context tokens and forced tokens carry no credit.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import field, replace
from functools import partial
from typing import Annotated, Literal

from twofold.compute.believe import Belief, believed
from twofold.compute.probe import Probe, Prover, boundaries, closing, probe, stopped
from twofold.compute.rollout import forced, grade_continuations, join, rollouts, split
from twofold.engines.base import Engine
from twofold.maths.credit import grpo, mean, spread, to_go
from twofold.maths.regret import progress
from twofold.maths.seeds import derive
from twofold.ranges import Count, NonNegative, Range, Share, checked
from twofold.recipes import common
from twofold.recipes.common import Setup, Stats, policy_sample, relative, rewards_of, target_sample, whole
from twofold.text.segments import Episodes
from twofold.types import Collected, Group, Problem, Rollout, Sample, Sampling

Bonus = Literal["mixed", "termination", "baseline"]


@checked
class MRT:
    """Options of the recipe. Options that name a method concern that method only."""

    name: Literal["mrt"] = "mrt"
    method: Literal["rl", "online", "grpo", "length", "mrt_star", "star"] = "rl"
    rollouts: Count = 4
    """Full rollouts per problem."""
    alpha: NonNegative = 1.0
    """Weight of the bonus; 0 is plain GRPO."""
    source: Literal["policy", "start"] = "policy"
    """The model that writes the thoughts which ``rl`` cuts and the STaR methods learn: the current policy, or the starting model."""
    bonus: Bonus = "mixed"
    branches: Annotated[int, Range(ge=2)] = 4
    """``rl``: number of rollouts from a cut thought; it must be even."""
    where: Literal["uniform", "late"] = "uniform"
    """``rl``: the number of episodes kept, j = 0 .. k-1 of k, is drawn uniformly, or with weight j + 1 (``late``)."""
    answers: Count = 4
    """``online`` with ``sampled``, ``mrt_star``: forced answers per prefix (published: 4, 8)."""
    progress: Literal["sampled", "likelihood"] = "sampled"
    """``online``: J is the mean reward of ``answers`` forced answers, or the probability of the known answer where they would
    be drawn. The latter has no sampling error, and needs a ``prover.answer`` that ends in a box."""
    reward_to_go: bool = False
    """``online``: credit an episode with the progress of the following episodes as well."""
    keep: Literal["value", "jump", "problem"] = "value"
    """``mrt_star``: which prefix is learnt. ``value``: the prefix of highest J of each thought; ``jump``: of each thought the
    prefix that ends with the episode of most progress; ``problem``: the prefix of highest J among all thoughts about a
    problem. The shortest prefix wins a tie."""
    penalty: Share = 0.1
    """``length``: the largest share of the reward that a long rollout can lose."""
    prover: Prover = field(default_factory=Prover)
    episodes: Episodes = field(default_factory=Episodes)

    def __post_init__(self) -> None:
        if self.branches % 2:
            raise ValueError(f"branches must be even (half stop, half continue), got {self.branches}")
        if self.progress == "likelihood" and self.method != "online":
            raise ValueError(f'progress = "likelihood" is for method = "online": {self.method} has no such value')
        if self.progress == "likelihood" and self.answers != 4:
            raise ValueError('progress = "likelihood" draws no answers: leave out answers')
        if self.rollouts < 2 and self.method not in ("star", "mrt_star"):
            raise ValueError(f"rollouts must be at least 2 for {self.method}: a group of one has no baseline")

    def build(self, setup: Setup) -> Recipe:
        start = setup.frozen() if self.source == "start" else None
        return Recipe(self, setup.task, setup.chat, setup.sampling, start, setup.reference())


class Recipe(common.FromAttempts):
    """MRT in one run. Its methods are described at the top of this file."""

    config: MRT

    def collect(self, engine: Engine, problems: Sequence[Problem], step: int) -> Collected:
        config = self.config
        sampling = replace(self.sampling, seed=derive(self.sampling.seed, step))
        if config.method in ("star", "mrt_star"):
            return self._star(self.start or engine, problems, sampling)
        groups = self._rollouts(engine, problems, sampling)
        stats, graded = common.describe(groups), common.gradable(groups)
        if config.method == "online":
            samples, more = self._online(engine, graded, sampling)
        elif config.method == "length":
            samples, more = common.outcome_samples(graded, partial(penalised, share=config.penalty)), {}
        else:
            samples, more = common.outcome_samples(graded), {}
        if config.method == "rl" and config.alpha:
            branched, more = self._branched(engine, problems, graded, sampling)
            samples += branched
        if self.reference is not None:
            common.refer(samples, self.reference, self.sampling.temperature)
        return Collected({"policy": samples}, stats | more, groups)

    def _rollouts(self, engine: Engine, problems: Sequence[Problem], sampling: Sampling) -> list[Group]:
        return rollouts(engine, self.chat, self.task, problems, sampling, self.config.prover.opening)

    # ------------------------------------------------------------ MRT (RL)

    def _branched(
        self, engine: Engine, problems: Sequence[Problem], groups: list[Group], sampling: Sampling
    ) -> tuple[list[Sample], Stats]:
        """Return the samples of the branches from one cut thought per problem, all drawn in one engine call.

        Half of the branches stop: a forced answer may have ``prover.tokens`` tokens. Half continue: they may use what the cut
        thought has left of the rollout's token limit. What is longer is cut.
        """
        config, prover = self.config, self.config.prover
        if config.source == "start":
            drawn = self._rollouts(self.start or engine, problems, replace(sampling, n=1))
            thoughts = [r for (r,) in drawn]
        else:
            thoughts = [g[0] for g in groups if g]
        cuts = [self._cut(r, sampling.seed) for r in thoughts]
        begun = [
            replace(r, completion=forced(r.completion.tokens[:end])) for r, end in zip(thoughts, cuts, strict=True)
        ]
        closed = [stopped(self.chat, r, len(r.completion.tokens), prover, cut=True) for r in begun]
        prompts = [[*r.prompt, *r.completion.tokens] for r in (*closed, *begun)]
        # another seed than the rollouts': from a cut at 0, theirs would draw the same thought again
        most = max(sampling.max_tokens - min(cuts, default=0), prover.tokens)
        limit = replace(sampling, n=config.branches // 2, max_tokens=most, seed=derive(sampling.seed, "branches"))
        branches = engine.generate(prompts, limit) if prompts else []
        samples: list[Sample] = []
        stop_values: list[float] = []
        gains: list[float] = []
        for i in range(len(thoughts)):
            room = max(1, sampling.max_tokens - cuts[i])
            halves = [
                grade_continuations(self.chat, self.task, prefix, [split(c, size)[0] for c in branches[row]])
                for prefix, row, size in ((closed[i], i, prover.tokens), (begun[i], len(thoughts) + i, room))
            ]
            stop, go = common.gradable(halves)
            if not stop or not go:
                continue
            advantages = branch_advantages(rewards_of(stop), rewards_of(go), config.bonus)
            first = len(stop) if config.bonus == "baseline" else 0
            for r, a in list(zip((*stop, *go), advantages, strict=True))[first:]:
                samples.append(policy_sample(r, whole(config.alpha * a, r)))
            stop_values.append(mean(rewards_of(stop)))
            gains.append(mean(rewards_of(go)) - stop_values[-1])
        return samples, {
            "mrt/stop_value": mean(stop_values), "mrt/progress": mean(gains), "mrt/cut_tokens": mean(cuts)
        }  # fmt: skip

    def _cut(self, rollout: Rollout, seed: int) -> int:
        """Draw where the thought is cut: the number of its tokens that are kept, those of 0 .. k-1 of its k episodes."""
        places = boundaries(self.chat, rollout, self.config.prover, self.config.episodes)[:-1]
        weights = [j + 1 if self.config.where == "late" else 1 for j in range(len(places))]
        return random.Random(f"{seed}/{rollout.problem.id}").choices(places, weights)[0]

    # ------------------------------------------------------------ MRT-online

    def _online(self, engine: Engine, groups: list[Group], sampling: Sampling) -> tuple[list[Sample], Stats]:
        """Credit each token with the outcome advantage + alpha * the progress of its episode.

        The tokens after the last episode, which are the answer, have the outcome advantage alone.
        """
        everyone = [r for g in groups for r in g]
        likely = self.config.progress == "likelihood"
        valued: Sequence[Sequence[Probe | Belief]] = (
            self._believed(engine, everyone) if likely else self._probed(engine, everyone, sampling)
        )
        stats, rows = probe_stats(valued), iter(valued)
        samples = []
        for group in groups:
            known = [(r, row) for r in group for row in [next(rows)] if not any(math.isnan(p.value) for p in row)]
            outcome = relative(rewards_of([r for r, _ in known]))
            for (rollout, row), a in zip(known, outcome, strict=True):
                gains = progress([p.value for p in row])
                paid = to_go(gains) if self.config.reward_to_go else gains
                size = len(rollout.completion.tokens)
                bonus = spread([*paid, 0.0], [*(p.end for p in row[1:]), size], size)
                samples.append(policy_sample(rollout, [a + self.config.alpha * b for b in bonus]))
        return samples, stats

    def _ends(self, everyone: Sequence[Rollout]) -> list[list[int]]:
        return [boundaries(self.chat, r, self.config.prover, self.config.episodes) for r in everyone]

    def _believed(self, engine: Engine, everyone: Sequence[Rollout]) -> list[list[Belief]]:
        ends = self._ends(everyone)
        return believed(engine, self.chat, everyone, ends, self.config.prover, self.sampling.temperature)

    def _probed(self, engine: Engine, everyone: Sequence[Rollout], sampling: Sampling) -> list[list[Probe]]:
        config, ends = self.config, self._ends(everyone)
        limit = replace(sampling, n=config.answers, seed=derive(sampling.seed, "answers"))
        return probe(engine, self.chat, self.task, everyone, ends, config.prover, limit)

    # ------------------------------------------------------------ STaR

    def _star(self, engine: Engine, problems: Sequence[Problem], sampling: Sampling) -> Collected:
        groups = self._rollouts(engine, problems, sampling)
        everyone = [r for g in groups for r in g]
        stats = common.describe(groups)
        if self.config.method == "star":
            learnt = [r for r in everyone if r.grade.correct]
        else:
            probes = self._probed(engine, everyone, sampling)
            stats |= probe_stats(probes)
            kept = [best_prefix(row, self.config.keep) for row in probes]
            if self.config.keep == "problem":
                n = self.config.rollouts
                kept = [best for i in range(0, len(kept), n) for best in best_of(kept[i : i + n])]
            learnt = [self._solution(p) for p in kept if p is not None]
        samples = [target_sample(r) for r in learnt]
        return Collected({"policy": samples}, stats | {"mrt/kept": len(learnt) / len(everyone)}, groups)

    def _solution(self, kept: Probe) -> Rollout:
        """Return the thought up to this probe, closed as a whole thought is closed, and the probe's first right answer.

        Blank lines at the end of the thought are removed. They stand before the next episode; a model that learnt them before
        the closing would write more and more of them there.
        """
        right = next(r for r in kept.answers if r.grade.correct)
        thought, rest = split(right.completion, kept.end)
        while len(thought.tokens) > 1 and self.chat.decode(thought.tokens[-2:]).isspace():
            thought, _ = split(thought, len(thought.tokens) - 1)
        answer = [t for t, drawn in zip(rest.tokens, rest.sampled, strict=True) if drawn]
        end = closing(self.chat, thought.tokens, self.config.prover, cut=False)
        return replace(right, completion=join(thought, forced([*end, *answer])))


def branch_advantages(stop: Sequence[float], go: Sequence[float], bonus: Bonus) -> list[float]:
    """Return advantages from the rewards of the branches that stopped and of those that continued, in this order.

    Rewards [0, 0] of the stopped and [1, 0] of the continued: ``mixed`` gives -0.5, -0.5, 1.5, -0.5 (mean 1/4, std 1/2); the
    other two give 0, 0, 1, 0.
    """
    if bonus == "mixed":
        return grpo([*stop, *go])
    return [r - mean(stop) for r in (*stop, *go)]


def penalised(group: Group, share: float) -> list[float]:
    """Return the rewards of a group, those of right rollouts reduced by up to ``share`` for their length.

    A right rollout has r * (1 - share * sigmoid((length - mean) / std)), with mean and (population) std over the right rollouts
    (Arora & Zanette, arXiv:2502.04463). Right rollouts of equal length lose share / 2.
    """
    lengths = [len(r.completion.tokens) for r in group if r.grade.correct]
    middle = mean(lengths)
    std = math.sqrt(mean([(n - middle) ** 2 for n in lengths])) or 1.0
    longer = iter([1 / (1 + math.exp((middle - n) / std)) for n in lengths])
    return [r.grade.known * (1 - share * next(longer) if r.grade.correct else 1) for r in group]


def best_prefix(row: Sequence[Probe], keep: Literal["value", "jump", "problem"]) -> Probe | None:
    """Return the prefix of a thought that is learnt; None if no prefix has a higher value than the empty one.

    The shortest prefix wins a tie. Prefixes whose value is NaN are not considered.
    """
    values = [p.success for p in row]
    gains = [math.nan, *progress(values)] if keep == "jump" else values
    candidates = [j for j in range(1, len(row)) if not math.isnan(gains[j])]
    if not candidates:
        return None
    best = max(candidates, key=lambda j: gains[j])
    return row[best] if values[best] > values[0] else None


def best_of(kept: Sequence[Probe | None]) -> list[Probe]:
    """Return the one prefix of highest value among those of one problem, or nothing if there are none.

    The shortest prefix wins a tie.
    """
    prefixes = [p for p in kept if p is not None]
    return [min(prefixes, key=lambda p: (-p.success, p.end))] if prefixes else []


def probe_stats(probes: Sequence[Sequence[Probe | Belief]]) -> Stats:
    """Return numbers for the log: progress is a mean over episodes, everything else a mean over thoughts."""
    valued = [row for row in probes if not any(math.isnan(p.value) for p in row)]
    gains = [g for row in valued for g in progress([p.value for p in row])]
    return {
        "mrt/progress": mean(gains),
        "mrt/progress_negative": mean([float(g < 0) for g in gains]),
        "mrt/value_first": mean([row[0].value for row in valued]),
        "mrt/value_last": mean([row[-1].value for row in valued]),
        "mrt/episodes": mean([len(row) - 1 for row in probes]),
        "mrt/probe_tokens": mean([sum(p.cost.generated + p.cost.verified for p in row) for row in probes]),
    }
