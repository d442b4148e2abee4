"""Evaluate a model for the command line: show how far it is, print the tables, and write the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from twofold import run
from twofold.evals.pools import POOLS, finished_ids
from twofold.evals.report import print_table, report
from twofold.progress import Progress
from twofold.tasks.datasets import Dataset
from twofold.tasks.stream import length
from twofold.terminal import visible
from twofold.types import Stopped, Task


def evaluate_and_print(
    model: run.Model,
    task: Task,
    config: run.Eval,
    *,
    out: Path,
    title: str,
    rewards: Sequence[str],
    caps: Sequence[int],
    optimal: bool,
    skip_long: bool,
    verifier: run.Model | None,
    **options: Any,
) -> None:
    """Evaluate as ``run.evaluate`` does, graded by ``rewards`` if there are any. A set smaller than ``problems`` is used whole.

    With ``skip_long`` the problems of a data set that are too long for the context are left out.

    Raises Stopped, which says what is saved, at Ctrl-C.
    """
    if isinstance(task, Dataset):
        task = run.fitting(task, [model, verifier] if verifier else [model], config) if skip_long else task
        print(visible(f"{title}: {len(task)} problems; {task.columns}"))
    config = replace(config, problems=min(config.problems, length(task) or config.problems))
    try:
        with Progress("problem") as progress:
            tell = partial(progress.update, "evaluating")
            graded = run.rewarded(task, rewards)
            run.evaluate(model, graded, config, out=out, verifier=verifier, progress=tell, **options)
    except KeyboardInterrupt:
        done = len(finished_ids(out / POOLS))
        raise Stopped(f"stopped; {done} of {config.problems} problems are saved in {out}") from None
    print_table(report([out], out, caps=caps, optimal=optimal))
    print(f"report: {out / 'report.html'}")
