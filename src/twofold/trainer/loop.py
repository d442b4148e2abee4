"""The training loop, as verbs."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from twofold.engines.base import Engine, PolicyEngine
from twofold.trainer import checkpoint
from twofold.trainer.learner import Learner
from twofold.trainer.log import Log
from twofold.types import Problem, Sample


class Collects(Protocol):
    """A recipe: problems in, per-token credit out, one list of samples per role ("policy", ...)."""

    def collect(
        self, engine: Engine, problems: Sequence[Problem], step: int
    ) -> tuple[dict[str, list[Sample]], dict[str, float]]: ...


def train(
    recipe: Collects,
    engines: Mapping[str, PolicyEngine],
    learners: Mapping[str, Learner],
    problems: Callable[[int], list[Problem]],
    *,
    memory: Mapping[str, float],
    run: Path,
    tokenizer: Any,
    start: int,
    steps: int,
    save_every: int,
    log: Log,
) -> int:
    """Run steps ``start`` .. ``steps - 1`` with an engine and a learner per role; ``memory``, the recipe's, is saved with the
    weights. Returns the number of the next step (less than ``steps`` if asked to stop).

    Ctrl-C or SIGTERM finishes the step, saves, and returns; a second one stops at once.
    """
    with _Stop() as stop:
        for step in range(start, steps):
            began = time.monotonic()
            samples, stats = recipe.collect(engines["policy"], problems(step), step)
            collected = time.monotonic()
            for engine in engines.values():
                engine.rest()
            for role, learner in learners.items():
                prefix = "" if role == "policy" else f"{role}/"
                stats |= {prefix + k: v for k, v in learner.update(samples.get(role, [])).items()}
            for role, engine in engines.items():
                engine.load(learners[role].weights())
            ended = time.monotonic()
            log.step(
                step,
                stats
                | {"collect_time": collected - began, "update_time": ended - collected, "step_time": ended - began},
            )
            done = step + 1
            if done == steps or stop.asked or (save_every and done % save_every == 0):
                # the policy's last: its presence says that the step is whole
                for role, learner in reversed(list(learners.items())):
                    checkpoint.save(run, done, learner, tokenizer, role, memory)
            if stop.asked:
                return done
    return steps


class _Stop:
    """Turns the first SIGINT or SIGTERM into ``asked``; the second acts as it always did."""

    def __init__(self) -> None:
        self.asked = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __enter__(self) -> _Stop:
        try:
            self._before = {n: signal.signal(n, self._ask) for n in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: signals are somebody else's business
            self._before = {}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
