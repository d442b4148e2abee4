"""Experiment trackers, each from an extra of its own: ``pip install 'twofold[wandb]'``, ``[tensorboard]``, ``[trackio]``."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twofold.trainer.log import LogTo, Tracker

PROJECT = "twofold"


class Wandb:
    """A run of Weights & Biases, which continues when training is resumed. ``WANDB_MODE=offline`` keeps it on this machine."""

    def __init__(self, run: Path, config: Mapping[str, Any], start: int) -> None:
        import wandb

        identity = _identity(run, start)
        self._run = wandb.init(
            project=PROJECT, name=run.name, id=identity, resume="allow", dir=run, config=dict(config)
        )

    def write(self, step: int, stats: Mapping[str, float]) -> None:
        self._run.log(dict(stats), step=step)

    def close(self) -> None:
        self._run.finish()


class TensorBoard:
    """Event files in ``tensorboard/`` of the run; a resumed run hides what stood at later steps."""

    def __init__(self, run: Path, config: Mapping[str, Any], start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(run / "tensorboard", purge_step=start or None)

    def write(self, step: int, stats: Mapping[str, float]) -> None:
        for name, value in stats.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Trackio:
    """A run of trackio, whose dashboard is ``trackio show --project twofold``."""

    def __init__(self, run: Path, config: Mapping[str, Any], start: int) -> None:
        import trackio

        name = f"{run.name}-{_identity(run, start)}"  # trackio knows a run by its name
        self._run = trackio.init(project=PROJECT, name=name, config=dict(config), resume="allow", embed=False)

    def write(self, step: int, stats: Mapping[str, float]) -> None:
        self._run.log(dict(stats), step=step)

    def close(self) -> None:
        self._run.finish()


def _identity(run: Path, start: int) -> str:
    """A run's name among all runs: made when it starts, found again in its directory when it is resumed."""
    path = run / "tracking-id"
    if not start or not path.is_file():
        path.write_text(uuid.uuid4().hex[:12] + "\n")
    return path.read_text().strip()


TRACKERS: dict[LogTo, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
    "wandb": Wandb,
    "tensorboard": TensorBoard,
    "trackio": Trackio,
}


def open_trackers(names: Sequence[LogTo], run: Path, config: Mapping[str, Any], start: int) -> list[Tracker]:
    """Open the trackers for a run. Raises ImportError, with the extra to install, for one that is not there."""
    found = []
    for name in names:
        try:
            found.append(TRACKERS[name](run, config, start))
        except ImportError as error:
            raise ImportError(f"log.to names {name}: pip install 'twofold[{name}]' ({error})") from error
    return found
