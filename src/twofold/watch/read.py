"""What the page of a run shows: its curves, its state and its last rollouts, read again as the files grow."""

from __future__ import annotations

import json
import os
import re
import statistics
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofold.evals.texts import kind_of, shortened
from twofold.terminal import visible
from twofold.trainer.log import METRICS, ROLLOUTS

CONFIG = "config.toml"
POINTS = 400
"""The most points of a line: each is then the mean of several steps that follow one another."""
GROUPS, CHARACTERS = 6, 4000
"""Groups of rollouts that are shown, and characters of a text."""
QUIET = 60.0
"""Seconds without news, or ten times a step if that is more, after which a run that is not finished is called quiet."""
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart: ``lines`` are metrics (or patterns of their names) and what they are called; ``low`` and ``high`` bound the axis."""

    title: str
    about: str
    lines: Mapping[str, str]
    low: float | None = 0.0
    high: float | None = None
    rule: float | None = None
    """A value with a line of its own, such as chance."""
    log: bool = False
    absent: bool = False
    """Whether a line that is 0 at every step is of something that this run does not do, and is not drawn."""


SPEED = "tokens/second"
PANELS = (
    Panel("Reward", "mean of the step's rollouts", {"reward": "reward"}),
    Panel(
        "Verifier",
        "on training rollouts before they are learnt from; held out: as the short evaluations judge; chance is 0.5",
        {
            "verifier/auroc": "AUROC",
            "verifier/balanced_accuracy": "balanced accuracy",
            "pairs/accuracy": "the right one of two",
            "eval/auroc": "AUROC, held out",
        },
        high=1.0,
        rule=0.5,
    ),
    Panel(
        "Stated confidence",
        "on training rollouts; the Brier score is the mean of (confidence - correct)^2, so low is good",
        {"rlcr/confidence": "mean confidence", "rlcr/brier": "Brier score"},
        high=1.0,
    ),
    Panel(
        "Length",
        "mean tokens of a completion",
        {"completions/mean_length": "solution", "verifier/mean_length": "verification"},
    ),
    Panel(
        "Gradient norms",
        "before clipping, on a logarithmic axis; those of the two streams in every tenth step and where the joint one is clipped",
        {
            "grad_norm": "joint",
            "grad_norm/policy": "policy",
            "grad_norm/targets": "verdicts (targets)",
            "verifier/grad_norm": "second model",
        },
        low=None,
        log=True,
    ),
    Panel(
        "Tokens per second",
        "tokens learnt from (prompts and verdicts too), by the time of the whole step",
        {SPEED: "tokens/s"},
    ),
    Panel(
        "Seconds per step",
        "longer while other programs use the machine",
        {"collect_time": "sample and grade", "update_time": "update"},
    ),
    Panel(
        "Held-out problems",
        "accuracy, of the short evaluations while training",
        {"eval/pass@1": "one sample", r"eval/maj@\d+": "majority", r"eval/weighted@\d+": "weighted"},
        high=1.0,
    ),
    Panel("Loss of the targets", "verdicts or solutions, nats", {"target_loss": "loss"}, absent=True),
    Panel(
        "Loss of the score",
        "squared distance of the last-token score from the reward, times recipe.lam",
        {"score_loss": "loss"},
    ),
    Panel("Entropy", "of the policy at sampled tokens, nats", {"entropy": "entropy"}, absent=True),
    Panel(
        "Progress",
        "change of the chance to be right",
        {"mrt/progress": "of an episode", "backtrack/progress": "last attempt minus first"},
        low=None,
        rule=0.0,
    ),
)
_KEPT = re.compile("|".join([*(name for panel in PANELS for name in panel.lines), "num_tokens", "step_time"]))


class Growing:
    """The rows of a file of JSON lines to which another process appends. Half a last line waits until it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin()

    def _begin(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.last: dict[str, float | None] = {}
        self._end, self._line = 0, b""

    def read(self) -> None:
        """Read the lines that are new, or all of them if a resumed run has written the file again.

        Raises ValueError, with file and line, if a whole line is no line of a run.
        """
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            self._begin()
            return
        with file:
            file.seek(self._end - len(self._line))
            if file.read(len(self._line)) != self._line:
                self._begin()
                file.seek(0)
            lines = file.read().split(b"\n")[:-1]
        for line in lines:
            try:
                row = json.loads(line)
                step = row["step"]
            except (ValueError, KeyError, TypeError) as error:
                number = len(self.rows) + 1
                raise ValueError(f"{self._path}:{number}: not a line of a run, so the file is damaged") from error
            self.last = row
            kept = {"step": step} | {k: v for k, v in row.items() if v is not None and _KEPT.fullmatch(k)}
            if kept.get("step_time") and "num_tokens" in kept:
                kept[SPEED] = kept["num_tokens"] / kept["step_time"]
            self.rows.append(kept)
            self._line = line + b"\n"
            self._end += len(self._line)


class Run:
    """A run directory that may still be written. Raises ValueError if it is none."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files = [directory / name for name in (CONFIG, METRICS, ROLLOUTS)]
        if not any(path.is_file() for path in self._files):
            raise ValueError(f"{directory} is no run: {_hint(directory)}")
        self._metrics = Growing(directory / METRICS)
        self._read()

    def _read(self) -> None:
        """Read the config, which a resume to more steps writes again, and the metrics that are new."""
        config = self.directory / CONFIG
        try:
            self.config = tomllib.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        except ValueError as error:
            raise ValueError(f"{config}: not TOML, so the file is damaged: {error}") from error
        self._metrics.read()

    @property
    def version(self) -> str:
        """A text that changes with the files."""
        found = (path.stat() for path in self._files if path.is_file())
        return " ".join(f"{s.st_ino}-{s.st_size}-{s.st_mtime_ns}" for s in found)

    def data(self) -> dict[str, Any]:
        """Return all that the page shows, for JSON."""
        version = self.version  # before reading: what comes meanwhile is news
        self._read()
        every, panels = _panels(self._metrics.rows)
        return {
            "version": version,
            "name": visible(self.directory.resolve().name),
            "about": [[name, visible(value)] for name, value in self._about().items()],
            "state": self.state(),
            "every": every,
            "panels": panels,
            "last": self._metrics.last,
            "groups": [_group(row) for row in last_rows(self.directory / ROLLOUTS, GROUPS)],
        }

    def state(self) -> dict[str, Any]:
        """Return how far the run is: ``kind`` (waiting, running, quiet, finished), the same in words, and the steps done and due."""
        rows, due = self._metrics.rows, self.config.get("train", {}).get("steps")
        done = int(rows[-1]["step"]) + 1 if rows else 0
        since = time.time() - max(path.stat().st_mtime for path in self._files if path.is_file())
        times = [row["step_time"] for row in rows[-10:] if "step_time" in row]
        usual = statistics.median(times) if times else 0.0
        steps = f"{done} of {due} steps" if due else f"{done} steps"
        if due and done >= due:
            kind, words = "finished", f"finished: all {due} steps are done"
        elif since > max(QUIET, 10 * usual):
            took = f", and a step took {_span(usual)}" if times else ""
            why = "it was stopped, hangs, or is busy with something else, such as an evaluation"
            kind, words = "quiet", f"{steps}, then nothing for {_span(since)}{took}: {why}"
        elif not rows:
            kind, words = "waiting", "no step is done yet"
        else:
            left = f", {_span(usual * (due - done))} to go" if due and times else ""
            kind, words = "running", f"running: {steps}{left}"
        return {"kind": kind, "words": words, "done": done, "due": due}

    def _about(self) -> dict[str, Any]:
        c = self.config
        named = {name: c.get(name, {}).get("name") for name in ("recipe", "task", "engine")}
        values = {"model": c.get("model"), **named, "seed": c.get("train", {}).get("seed")}
        return {name: value for name, value in values.items() if value is not None}


def _hint(directory: Path) -> str:
    if directory.is_file():
        return "it is a file, and a run is a directory"
    if not directory.is_dir():
        return "there is no such directory"
    if (directory / "eval.json").is_file():
        return "it is an evaluation; twofold report shows those"
    if inside := sorted(path.parent.name for path in directory.glob(f"*/{METRICS}")):
        return f"it holds {', '.join(inside[:5])}; name one of these"
    return f"neither {CONFIG} nor {METRICS} is in it; twofold train writes both into its --out directory as it begins"


def _panels(rows: Sequence[dict[str, float]]) -> tuple[int, list[dict[str, Any]]]:
    """Return how many steps are one point, and the panels for which there is any number."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    every = -(-len(rows) // POINTS)
    panels = []
    for panel in PANELS:
        lines = [
            {"name": label, "points": _points(rows, name, every)}
            for pattern, label in panel.lines.items()
            for name in names
            if re.fullmatch(pattern, name) and not (panel.absent and all(row.get(name, 0) == 0 for row in rows))
        ]
        if lines:
            bounds = {name: getattr(panel, name) for name in ("title", "about", "low", "high", "rule", "log")}
            panels.append(bounds | {"lines": lines})
    return every, panels


def _points(rows: Sequence[dict[str, float]], name: str, every: int) -> list[tuple[float, float]]:
    """Return (step, value): the means over bins of ``every`` rows, without the bins that have no value."""
    points = []
    for i in range(0, len(rows), every):
        found = [(row["step"], row[name]) for row in rows[i : i + every] if name in row]
        if found:
            points.append((statistics.fmean(step for step, _ in found), statistics.fmean(value for _, value in found)))
    return points


def last_rows(path: Path, most: int) -> list[Any]:
    """Return the JSON of the last ``most`` whole lines of a file, newest first; nothing if there is no file.

    Raises ValueError if one of these lines is not JSON.
    """
    if not path.is_file():
        return []
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        tail, begin = b"", size
        while begin and tail.count(b"\n") <= most:
            length = min(CHUNK, begin)
            begin -= length
            file.seek(begin)
            tail = file.read(length) + tail
    lines = tail.split(b"\n")[:-1]
    try:
        return [json.loads(line) for line in reversed(lines[-most:])]
    except ValueError as error:
        raise ValueError(f"{path}: a line at its end is not JSON, so the file is damaged: {error}") from error


def _group(row: dict[str, Any]) -> dict[str, Any]:
    """Return one group of ``rollouts.jsonl`` for the page: with the kind of each rollout, and texts that fit."""
    about = {"step": row["step"], "id": visible(row["id"]), "reference": visible(row["reference"])}
    rollouts = [
        {name: r[name] for name in ("label", "reward", "p_yes", "tokens", "finish")}
        | {"kind": kind_of(r["label"], r["p_yes"]), "text": shortened(visible(r["text"]).strip(), CHARACTERS)}
        for r in row["rollouts"]
    ]
    return about | {"question": shortened(visible(row["question"]).strip(), CHARACTERS), "rollouts": rollouts}


def _span(seconds: float) -> str:
    """Return a time in words.

    >>> _span(4.24), _span(200), _span(9000)
    ('4.2 s', '3 min', '2.5 hours')
    """
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
