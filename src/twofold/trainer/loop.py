"""The training loop, as verbs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from twofold.engines.base import Engine, PolicyEngine
from twofold.trainer.ahead import Ahead
from twofold.trainer.learner import Learner
from twofold.trainer.log import Log, Score
from twofold.trainer.stop import Stop
from twofold.types import Collected, Group, Problem


class Recipe(Protocol):
    """Problems in, per-token credit out (see ``recipes.common.Recipe``)."""

    def collect(self, engine: Engine, problems: Sequence[Problem], step: int) -> Collected: ...
    def state(self) -> Mapping[str, float]: ...


@dataclass(frozen=True, slots=True)
class Schedule:
    """What happens when. Steps ``start`` .. ``steps - 1`` are trained."""

    start: int
    steps: int
    save_every: int
    """Save a checkpoint every N steps, and always after the last one (0: only then)."""
    eval_every: int = 0
    """Evaluate every N steps (0: never)."""
    rollouts: int = 0
    """Number of groups of each step that are written to ``rollouts.jsonl``."""
    ahead: int = 0
    """1: draw the rollouts of a step while the learner is at the step before."""

    def saves(self, step: int) -> bool:
        """Return whether this step ends with a checkpoint. The step after it is on policy, as it is after a resume."""
        return step + 1 == self.steps or bool(self.save_every and (step + 1) % self.save_every == 0)


def run_steps(
    recipe: Recipe,
    engines: Mapping[str, PolicyEngine],
    learners: Mapping[str, Learner],
    problems: Callable[[int], list[Problem]],
    schedule: Schedule,
    *,
    save: Callable[[int], object],
    evaluate: Callable[[int], Mapping[str, float]],
    score: Score,
    watch: Callable[[Sequence[Group]], None],
    log: Log,
) -> int:
    """Train with an engine and a learner per role. Return the number of steps that are done.

    It is less than ``schedule.steps`` if the run was asked to stop: the first Ctrl-C or SIGTERM finishes the step, saves and
    returns; with ``ahead`` it learns from what is drawn by then. A second one stops at once. ``watch`` sees all rollouts of a step
    before it is learnt from, and may raise.
    """
    draws = Ahead(lambda step: recipe.collect(engines["policy"], problems(step), step))
    with Stop(log) as stop:
        for step in range(schedule.start, schedule.steps):
            began = time.monotonic()
            collected = draws.take(step)
            watch(collected.groups)
            log.rollouts(step, collected.groups[: schedule.rollouts], score)
            sampled = time.monotonic()
            stats = dict(collected.stats)
            if schedule.ahead and not schedule.saves(step) and not stop.asked:
                draws.begin(step + 1)
            else:
                for engine in engines.values():
                    engine.rest()
            for role, learner in learners.items():
                prefix = "" if role == "policy" else f"{role}/"
                stats |= {prefix + k: v for k, v in learner.update(collected.samples.get(role, [])).items()}
            waited = draws.wait()
            for role, engine in engines.items():
                engine.load(learners[role].weights())
            ended = time.monotonic()
            times = sampled - began + waited, ended - sampled - waited, ended - began
            stats |= zip(("collect_time", "update_time", "step_time"), times, strict=True)
            done = step + 1
            if schedule.eval_every and done % schedule.eval_every == 0:
                stats |= evaluate(done)
            log.step(step, stats)
            last = stop.asked and not draws.begun
            if last or schedule.saves(step):
                log.sync()  # no step before a checkpoint may lack its line
                save(done)
            if last:
                return done
    return schedule.steps
