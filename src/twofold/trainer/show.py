"""Read a run's rollouts as text: what the model wrote at a step, how that was graded, and the model's own verdict."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twofold.durable import read_lines
from twofold.trainer.log import ROLLOUTS

LINES = 20
"""Lines shown of each text, unless all are asked for."""


def show(run: Path, step: int | None = None, full: bool = False) -> Iterator[str]:
    """Yield the lines to print for one step (default: the last step that was written).

    Raises FileNotFoundError if the run has written no rollouts, ValueError if it has none of that step.
    """
    path = run / ROLLOUTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a run writes it while it trains, unless log.rollouts is 0")
    groups = read_lines(path)
    steps = sorted({group["step"] for group in groups})
    if not steps:
        raise ValueError(f"{path} is empty: either this recipe draws no rollouts, or no step has ended yet")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise ValueError(f"{path} has no step {step}; it has steps {steps[0]} to {steps[-1]}")
    for group in groups:
        if group["step"] == step:
            yield from _group(group, full)


def _group(group: dict[str, Any], full: bool) -> Iterator[str]:
    rows = group["rollouts"]
    right = sum(row["label"] == "correct" for row in rows)
    yield f"step {group['step']}  problem {group['id']}  {right} of {len(rows)} correct"
    yield group["question"].strip()
    yield f"(reference: {group['reference']})" if group["reference"] else ""
    for number, row in enumerate(rows, 1):
        verdict = "" if row["p_yes"] is None else f"  verdict {row['p_yes']:.2f}"
        reward = "unknown" if row["reward"] is None else f"{row['reward']:g}"
        end = "" if row["finish"] == "stop" else "  cut by the token limit"
        yield f"--- {number}: {row['label']}, reward {reward}{verdict}  {row['tokens']} tokens{end}"
        lines = row["text"].strip().splitlines()
        yield from lines if full else lines[:LINES]
        if not full and len(lines) > LINES:
            yield f"... {len(lines) - LINES} more lines (--full shows them)"
    yield ""
