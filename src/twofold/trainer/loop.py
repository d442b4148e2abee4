"""The training loop, as verbs."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Thread
from types import FrameType
from typing import Protocol

from twofold.engines.base import Engine, PolicyEngine
from twofold.trainer.learner import Learner
from twofold.trainer.log import Log, Score
from twofold.types import Collected, Group, Problem

FINISHING = "finishing the step, then saving; a second Ctrl-C leaves now and loses what was not saved"


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
    returns. A second one stops at once. ``watch`` sees all rollouts of a step before it is learnt from, and may raise.
    """
    with _Stop(log) as stop:
        for step in range(schedule.start, schedule.steps):
            began = time.monotonic()
            collected = recipe.collect(engines["policy"], problems(step), step)
            watch(collected.groups)
            log.rollouts(step, collected.groups[: schedule.rollouts], score)
            sampled = time.monotonic()
            stats = dict(collected.stats)
            for engine in engines.values():
                engine.rest()
            for role, learner in learners.items():
                prefix = "" if role == "policy" else f"{role}/"
                stats |= {prefix + k: v for k, v in learner.update(collected.samples.get(role, [])).items()}
            for role, engine in engines.items():
                engine.load(learners[role].weights())
            ended = time.monotonic()
            stats |= {"collect_time": sampled - began, "update_time": ended - sampled, "step_time": ended - began}
            done = step + 1
            if schedule.eval_every and done % schedule.eval_every == 0:
                stats |= evaluate(done)
            log.step(step, stats)
            if stop.asked or done == schedule.steps or (schedule.save_every and done % schedule.save_every == 0):
                log.sync()  # no step before a checkpoint may lack its line
                save(done)
            if stop.asked:
                return done
    return schedule.steps


class _Stop:
    """Sets ``asked`` at the first SIGINT or SIGTERM, and restores the previous handlers for the second."""

    def __init__(self, log: Log) -> None:
        self.log, self.asked = log, False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()
        # in a thread, because the signal may have come in the middle of another print
        Thread(target=self.log.say, args=(FINISHING,)).start()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __enter__(self) -> _Stop:
        try:
            self._before = {n: signal.signal(n, self._ask) for n in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread, which alone may handle signals
            self._before = {}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
