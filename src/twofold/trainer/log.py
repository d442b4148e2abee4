"""What a run reports while it trains: JSON lines on disk, its progress on the screen, and trackers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from twofold.durable import Lines, read_lines, write_text
from twofold.progress import Progress
from twofold.types import Group, Rollout

METRICS, ROLLOUTS = "metrics.jsonl", "rollouts.jsonl"

SHOWN = {
    "reward": "reward",
    "verifier/auroc": "AUROC",
    "completions/mean_length": "length",
    "target_loss": "target loss",
    "entropy": "entropy",
    "grad_norm": "|grad|",
    "step_time": "s/step",
}

Score = Callable[[Sequence[Rollout]], Sequence[float | None]]
"""Function that returns P(Yes) for each of these rollouts, None where the model cannot be asked."""


class Tracker(Protocol):
    """Another place that a run's numbers are written to."""

    def write(self, step: int, stats: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class Log:
    """Appends to ``metrics.jsonl`` and ``rollouts.jsonl``, and shows the progress.

    Lines of step ``start`` and later are removed first: a run that was killed after its last checkpoint has left them.
    """

    def __init__(
        self, run: Path, steps: int, title: str = "training", start: int = 0, trackers: Sequence[Tracker] = ()
    ) -> None:
        self._metrics = _continued(run / METRICS, start)
        self._rollouts = _continued(run / ROLLOUTS, start)
        self._title, self._steps, self._trackers = title, steps, trackers
        self._last: dict[str, float] = {}
        self._progress = Progress("step")
        self._progress.update(title, start, steps)

    def __enter__(self) -> Log:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__()
        self._metrics.close()
        self._rollouts.close()
        for tracker in self._trackers:
            tracker.close()

    def rollouts(self, step: int, groups: Sequence[Group], score: Score) -> None:
        """Append the texts of these groups, with grades and P(Yes), to ``rollouts.jsonl``."""
        groups = [group for group in groups if group]
        scores = iter(score([r for group in groups for r in group]))
        for group in groups:
            problem = group[0].problem
            rows = [
                {
                    "text": r.text, "answer": r.answer, "reward": r.grade.reward, "label": r.grade.label, "p_yes": next(scores),
                    "tokens": len(r.completion.tokens), "finish": r.completion.finish,
                }
                for r in group
            ]  # fmt: skip
            about = {"step": step, "id": problem.id, "question": problem.question, "reference": problem.answer}
            self._rollouts.write(json.dumps(about | {"rollouts": rows}))

    def step(self, step: int, stats: Mapping[str, float]) -> None:
        """Write one step's numbers to disk, to the trackers and to the terminal."""
        # NaN is not JSON; null is, and readers take it as missing
        line = {"step": step} | {k: v if math.isfinite(v) else None for k, v in stats.items()}
        self._metrics.write(json.dumps(line))
        finite = {k: v for k, v in stats.items() if math.isfinite(v)}
        for tracker in self._trackers:
            tracker.write(step, finite)
        # a run without targets, or without a policy, has a 0 there
        self._last |= {k: v for k, v in finite.items() if v or k not in ("target_loss", "entropy")}
        now = "  ".join(f"{label} {self._last[name]:.3g}" for name, label in SHOWN.items() if name in self._last)
        self._progress.update(self._title, step + 1, self._steps, now)

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        self._metrics.sync()
        self._rollouts.sync()

    def say(self, text: str) -> None:
        self._progress.say(text)


def _continued(path: Path, start: int) -> Lines:
    """Open the file for appending, without lines of step ``start`` and later, and without the half line of a killed run."""
    if path.exists():
        write_text(path, "".join(json.dumps(row) + "\n" for row in read_lines(path) if row["step"] < start))
    return Lines(path)
