"""MRT: reward what a thought gains by going on, so that every further token helps.

Paper: "Optimizing Test-Time Compute via Meta Reinforcement Fine-Tuning" (arXiv:2503.07572). A thought is cut into
episodes; J_j is the chance of a right answer if it is stopped after episode j and made to answer (the meta-prover);
progress is J_j - J_(j-1). Objective: outcome + alpha * progress. Methods, baselines among them:

* ``rl``, MRT (RL), section 6.2: a thought is cut at a random episode; of ``branches`` rollouts from there half are
  stopped at once, half go on. ``bonus = "mixed"`` (the paper's words) normalises all their rewards together;
  ``"termination"`` (the authors' README) takes the mean of the stopped ones as everybody's baseline; with ``"baseline"``
  they are nothing else, and only those that go on are learnt. A bonus y + alpha (y - T) *inside* one GRPO group is GRPO
  and nothing else: T and alpha cancel.
* ``online``, the authors' MRT-online of 2026: every episode of a fresh rollout is paid its own progress.
* ``mrt_star``, MRT (STaR): supervised learning on thoughts cut where they are worth most, with a right answer forced there.
* ``star``: supervised learning on all right rollouts. ``grpo``: the outcome only. ``length``: the outcome of a right
  rollout times 1 - penalty * sigmoid((length - mean) / std), over the right ones of its group.

What the paper leaves open is a field here. Deviations: ``alpha`` multiplies the normalised bonus, next to the outcome term
of ``rollouts`` full rollouts per problem, which the published recipe shares with it; one prefix per problem and step. The
STaR methods draw and learn at every step (``source = "start"``: from the starting model, as published, else from the
current one) and learn the thought, its closing without ``hurry``, and the answer. A rollout whose reward, or one of whose
values, could not be computed is left out. Tokens that were context or forced carry no credit.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from twofold.compute.probe import Probe, Prover, boundaries, closing, probe, stopped
from twofold.compute.rollout import Task, forced, grade_continuations, join, rollouts, split
from twofold.engines.base import Engine
from twofold.maths.credit import grpo, mean, spread, to_go
from twofold.maths.regret import progress
from twofold.maths.seeds import derive
from twofold.recipes import common
from twofold.recipes.common import Setup, Stats, policy_sample, relative, rewards_of, target_sample, whole
from twofold.text.chat import Chat
from twofold.text.segments import Episodes
from twofold.types import Collected, Group, Problem, Rollout, Sample, Sampling

Bonus = Literal["mixed", "termination", "baseline"]


@dataclass(frozen=True, slots=True)
class MRT:
    """Options of the recipe. Each method reads what concerns it."""

    name: Literal["mrt"] = "mrt"
    method: Literal["rl", "online", "grpo", "length", "mrt_star", "star"] = "rl"
    rollouts: int = 4
    """Full rollouts per problem."""
    alpha: float = 1.0
    """Weight of the bonus; 0 leaves GRPO."""
    source: Literal["policy", "start"] = "policy"
    """Who thought the thoughts that are cut, or learnt by the STaR methods: the policy of this step, or the starting model."""
    bonus: Bonus = "mixed"
    branches: int = 4
    """``rl``: rollouts from a cut thought, an even number."""
    where: Literal["uniform", "late"] = "uniform"
    """``rl``: the cut is after 0 .. k-1 of k episodes, all equally likely, or after j with weight j + 1."""
    answers: int = 4
    """``online``, ``mrt_star``: forced answers per prefix (published: 4, 8)."""
    reward_to_go: bool = False
    """``online``: an episode is paid the progress of all that follow too."""
    keep: Literal["value", "jump", "problem"] = "value"
    """``mrt_star``, of each thought the prefix of highest J (``value``), or behind the episode of most progress (``jump``);
    ``problem``: of all thoughts about a problem the one prefix of highest J. The shortest of equals."""
    penalty: float = 0.1
    """``length``: the largest share of the reward that length can cost."""
    prover: Prover = field(default_factory=Prover)
    episodes: Episodes = field(default_factory=Episodes)

    def __post_init__(self) -> None:
        if self.branches < 2 or self.branches % 2:
            raise ValueError(f"branches must be even, half stop and half go on, got {self.branches}")
        if self.rollouts < 1 or self.answers < 1 or not 0 <= self.penalty <= 1:
            raise ValueError(f"rollouts and answers must be at least 1, penalty in [0, 1], got {self}")
        if self.rollouts < 2 and self.method not in ("star", "mrt_star"):
            raise ValueError(f"rollouts must be at least 2 for {self.method}: a group of one has no baseline")

    def build(self, setup: Setup) -> Recipe:
        start = setup.frozen() if self.source == "start" else None
        return Recipe(self, setup.task, setup.chat, setup.sampling, start, setup.reference())


class Recipe(common.Recipe):
    """``start`` is the starting model, for ``source = "start"``; ``reference`` is asked for the KL stream if given."""

    def __init__(
        self,
        config: MRT,
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
        if config.method in ("star", "mrt_star"):
            return self._star(self.start or engine, problems, sampling)
        groups = self._rollouts(engine, problems, sampling)
        stats, known = common.describe(groups), common.gradable(groups)
        if config.method == "online":
            samples, more = self._online(engine, known, sampling)
        else:
            samples, more = self._outcome(known), {}
        if config.method == "rl" and config.alpha:
            branched, more = self._branched(engine, problems, known, sampling)
            samples += branched
        if self.reference is not None:
            common.refer(samples, self.reference, self.sampling.temperature)
        return Collected({"policy": samples}, stats | more, groups)

    def _rollouts(self, engine: Engine, problems: Sequence[Problem], sampling: Sampling) -> list[Group]:
        return rollouts(engine, self.chat, self.task, problems, sampling, self.config.prover.opening)

    # ------------------------------------------------------------ outcome

    def _outcome(self, groups: list[Group]) -> list[Sample]:
        """GRPO: one advantage per rollout."""
        samples = []
        for group in groups:
            rewards = penalised(group, self.config.penalty) if self.config.method == "length" else rewards_of(group)
            samples += [policy_sample(r, whole(a, r)) for r, a in zip(group, relative(rewards), strict=True)]
        return samples

    # ------------------------------------------------------------ MRT (RL)

    def _branched(
        self, engine: Engine, problems: Sequence[Problem], groups: list[Group], sampling: Sampling
    ) -> tuple[list[Sample], Stats]:
        """From one cut thought per problem, half of the branches stop and half go on, in one engine call.

        A thought that goes on has the rest of the rollout's token limit, a forced answer its own; what is longer is cut.
        """
        config, prover = self.config, self.config.prover
        if config.source == "start":
            drawn = self._rollouts(self.start or engine, problems, replace(sampling, n=1))
            thoughts = [r for (r,) in drawn]
        else:
            thoughts = [g[0] for g in groups if g]
        cuts = [self._cut(r, sampling.seed) for r in thoughts]
        on = [replace(r, completion=forced(r.completion.tokens[:end])) for r, end in zip(thoughts, cuts, strict=True)]
        off = [stopped(self.chat, r, len(r.completion.tokens), prover, cut=True) for r in on]
        prompts = [[*r.prompt, *r.completion.tokens] for r in (*off, *on)]
        # a seed of its own: with the rollouts' an uncut thought would be the same again
        most = max(sampling.max_tokens - min(cuts, default=0), prover.tokens)
        limit = replace(sampling, n=config.branches // 2, max_tokens=most, seed=derive(sampling.seed, "branches"))
        branches = engine.generate(prompts, limit) if prompts else []
        samples: list[Sample] = []
        stops: list[float] = []
        gains: list[float] = []
        for i in range(len(thoughts)):
            room = max(1, sampling.max_tokens - cuts[i])
            halves = [
                grade_continuations(self.chat, self.task, begun, [split(c, size)[0] for c in branches[row]])
                for begun, row, size in ((off[i], i, prover.tokens), (on[i], len(thoughts) + i, room))
            ]
            t, y = ([r for r in half if r.grade.reward is not None] for half in halves)
            if not t or not y:
                continue
            numbers = branch_advantages(rewards_of(t), rewards_of(y), config.bonus)
            first = len(t) if config.bonus == "baseline" else 0
            for r, a in list(zip((*t, *y), numbers, strict=True))[first:]:
                samples.append(policy_sample(r, whole(config.alpha * a, r)))
            stops.append(mean(rewards_of(t)))
            gains.append(mean(rewards_of(y)) - stops[-1])
        return samples, {"mrt/stop_value": mean(stops), "mrt/progress": mean(gains), "mrt/cut_tokens": mean(cuts)}

    def _cut(self, rollout: Rollout, seed: int) -> int:
        """Tokens of the thought that are kept: 0 .. k-1 of its k episodes."""
        places = boundaries(self.chat, rollout, self.config.prover, self.config.episodes)[:-1]
        weights = [j + 1 if self.config.where == "late" else 1 for j in range(len(places))]
        return random.Random(f"{seed}/{rollout.problem.id}").choices(places, weights)[0]

    # ------------------------------------------------------------ MRT-online

    def _online(self, engine: Engine, groups: list[Group], sampling: Sampling) -> tuple[list[Sample], Stats]:
        """Outcome advantage + alpha * progress on the tokens of each episode; the answer behind has the outcome alone."""
        probes = self._probed(engine, [r for g in groups for r in g], sampling)
        stats, rows = probe_stats(probes), iter(probes)
        samples = []
        for group in groups:
            known = [(r, row) for r in group for row in [next(rows)] if not any(math.isnan(p.value) for p in row)]
            outcome = relative(rewards_of([r for r, _ in known]))
            for (rollout, row), a in zip(known, outcome, strict=True):
                gained = progress([p.value for p in row])
                paid = to_go(gained) if self.config.reward_to_go else gained
                size = len(rollout.completion.tokens)
                bonus = spread([*paid, 0.0], [*(p.end for p in row[1:]), size], size)
                samples.append(policy_sample(rollout, [a + self.config.alpha * b for b in bonus]))
        return samples, stats

    def _probed(self, engine: Engine, everyone: Sequence[Rollout], sampling: Sampling) -> list[list[Probe]]:
        config = self.config
        ends = [boundaries(self.chat, r, config.prover, config.episodes) for r in everyone]
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
        """The thought up to there, closed as a whole thought is, and the first right answer.

        Blank lines at its end go: they come before another episode, and learnt before the end they breed.
        """
        right = next(r for r in kept.answers if r.grade.correct)
        thought, rest = split(right.completion, kept.end)
        while len(thought.tokens) > 1 and self.chat.decode(thought.tokens[-2:]).isspace():
            thought, _ = split(thought, len(thought.tokens) - 1)
        answer = [t for t, drawn in zip(rest.tokens, rest.sampled, strict=True) if drawn]
        end = closing(self.chat, thought.tokens, self.config.prover, cut=False)
        return replace(right, completion=join(thought, forced([*end, *answer])))


def branch_advantages(stop: Sequence[float], on: Sequence[float], bonus: Bonus) -> list[float]:
    """Advantages of the branches that stopped, then of those that went on.

    Stopped [0, 0], on [1, 0]: ``mixed`` gives -0.5, -0.5, 1.5, -0.5 (mean 1/4, std 1/2); the others 0, 0, 1, 0.
    """
    if bonus == "mixed":
        return grpo([*stop, *on])
    return [r - mean(stop) for r in (*stop, *on)]


def penalised(group: Group, share: float) -> list[float]:
    """Rewards of a group, of a right rollout less up to ``share`` for length:
    r * (1 - share * sigmoid((length - mean) / std)), mean and (population) std over the right ones (Arora & Zanette,
    arXiv:2502.04463). Right ones of equal length lose share / 2.
    """
    lengths = [len(r.completion.tokens) for r in group if r.grade.correct]
    middle = mean(lengths)
    std = math.sqrt(mean([(n - middle) ** 2 for n in lengths])) or 1.0
    longer = iter([1 / (1 + math.exp((middle - n) / std)) for n in lengths])
    return [1 - share * next(longer) if r.grade.correct else r.grade.reward or 0.0 for r in group]


def best_prefix(row: Sequence[Probe], keep: Literal["value", "jump", "problem"]) -> Probe | None:
    """Where a thought is cut for learning; None if no prefix beats the empty one with a right answer.

    The first of equals, so the shortest. Values that are NaN are passed over.
    """
    values = [p.value for p in row]
    gains = [math.nan, *progress(values)] if keep == "jump" else values
    candidates = [j for j in range(1, len(row)) if not math.isnan(gains[j])]
    if not candidates:
        return None
    best = max(candidates, key=lambda j: gains[j])
    return row[best] if values[best] > values[0] else None


def best_of(kept: Sequence[Probe | None]) -> list[Probe]:
    """Of one problem's prefixes the one of highest value, the shortest of equals; none if there is none."""
    found = [p for p in kept if p is not None]
    return [min(found, key=lambda p: (-p.value, p.end))] if found else []


def probe_stats(probes: Sequence[Sequence[Probe]]) -> Stats:
    """Means over episodes (progress), thoughts (the others)."""
    known = [row for row in probes if not any(math.isnan(p.value) for p in row)]
    gains = [g for row in known for g in progress([p.value for p in row])]
    return {
        "mrt/progress": mean(gains),
        "mrt/progress_negative": mean([float(g < 0) for g in gains]),
        "mrt/value_first": mean([row[0].value for row in known]),
        "mrt/value_last": mean([row[-1].value for row in known]),
        "mrt/episodes": mean([len(row) - 1 for row in probes]),
        "mrt/probe_tokens": mean([sum(p.cost.generated for p in row) for row in probes]),
    }
