"""What a run says while it works: one JSON line per step on disk, one line (or a live bar) for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SHOWN = {
    "reward": "reward",
    "verifier/auroc": "AUROC",
    "completions/mean_length": "length",
    "entropy": "entropy",
    "grad_norm": "|grad|",
    "step_time": "s/step",
}


class Log:
    """Appends to ``metrics.jsonl``; on a terminal shows a live bar, elsewhere prints a line now and then.

    Lines from step ``start`` on, left by a run that died behind its last checkpoint, give way to the new ones.
    """

    def __init__(self, run: Path, steps: int, title: str = "training", start: int = 0) -> None:
        path = run / "metrics.jsonl"
        kept = path.read_text().splitlines(keepends=True)[:start] if path.exists() else []
        path.write_text("".join(kept))
        self._file = path.open("a")
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
        self._file.close()

    def step(self, step: int, stats: Mapping[str, float]) -> None:
        # NaN is not JSON; null says the same to every reader
        line = {"step": step} | {k: v if math.isfinite(v) else None for k, v in stats.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._last |= {k: v for k, v in stats.items() if math.isfinite(v)}
        now = "  ".join(f"{label} {self._last[name]:.3g}" for name, label in SHOWN.items() if name in self._last)
        self._progress.update(self._task, completed=step + 1, now=now)
        if not self._console.is_terminal and ((step + 1) % max(1, self._steps // 10) == 0 or step + 1 == self._steps):
            self._console.print(f"step {step + 1}/{self._steps}  {now}", highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)
