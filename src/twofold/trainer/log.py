"""What a run reports while it trains: JSON lines on disk, a live bar or printed lines for people, and trackers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from twofold.types import Group, Rollout

METRICS, ROLLOUTS = "metrics.jsonl", "rollouts.jsonl"

SHOWN = {
    "reward": "reward",
    "verifier/auroc": "AUROC",
    "completions/mean_length": "length",
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
    """Appends to ``metrics.jsonl`` and ``rollouts.jsonl``. Shows a live bar on a terminal; elsewhere prints about ten lines.

    Lines of step ``start`` and later are removed first: a run that was killed after its last checkpoint has left them.
    """

    def __init__(
        self, run: Path, steps: int, title: str = "training", start: int = 0, trackers: Sequence[Tracker] = ()
    ) -> None:
        self._metrics = _continued(run / METRICS, start)
        self._rollouts = _continued(run / ROLLOUTS, start)
        self._trackers = trackers
        self._console = Console()
        self._steps = steps
        self._last: dict[str, float] = {}
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[now]}"),
        )
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._progress.add_task(title, total=steps, completed=start, now="")

    def __enter__(self) -> Log:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
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
            self._rollouts.write(json.dumps(about | {"rollouts": rows}) + "\n")
        self._rollouts.flush()

    def step(self, step: int, stats: Mapping[str, float]) -> None:
        """Write one step's numbers to disk, to the trackers and to the terminal."""
        # NaN is not JSON; null is, and readers take it as missing
        line = {"step": step} | {k: v if math.isfinite(v) else None for k, v in stats.items()}
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        finite = {k: v for k, v in stats.items() if math.isfinite(v)}
        for tracker in self._trackers:
            tracker.write(step, finite)
        self._last |= finite
        now = "  ".join(f"{label} {self._last[name]:.3g}" for name, label in SHOWN.items() if name in self._last)
        self._progress.update(self._task, completed=step + 1, now=now)
        if not self._console.is_terminal and ((step + 1) % max(1, self._steps // 10) == 0 or step + 1 == self._steps):
            self._console.print(f"step {step + 1}/{self._steps}  {now}", highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def _continued(path: Path, start: int) -> Any:
    """Open the file for appending, without lines of step ``start`` and later, and without the half line of a killed run."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = (line for line in lines if line.endswith("\n") and json.loads(line)["step"] < start)
    path.write_text("".join(kept), encoding="utf-8")
    return path.open("a", encoding="utf-8")
