"""Experiment trackers. Each needs its own extra: ``pip install -e '.[wandb]'``, ``.[tensorboard]`` or ``.[trackio]``."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twofold.durable import write_text
from twofold.trainer.log import Tracker
from twofold.types import LogTo

PROJECT = "twofold"


class Wandb:
    """A run of Weights & Biases; a resumed training continues it. ``WANDB_MODE=offline`` keeps it on disk."""

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
    """Event files in ``tensorboard/`` of the run; a resumed run replaces what they had from its first step on."""

    def __init__(self, run: Path, config: Mapping[str, Any], start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(run / "tensorboard", purge_step=start or None)

    def write(self, step: int, stats: Mapping[str, float]) -> None:
        for name, value in stats.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Trackio:
    """A run of trackio. ``trackio show --project twofold`` opens its dashboard."""

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
        write_text(path, uuid.uuid4().hex[:12] + "\n")
    return path.read_text().strip()


TRACKERS: dict[LogTo, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
    "wandb": Wandb,
    "tensorboard": TensorBoard,
    "trackio": Trackio,
}


def open_trackers(names: Sequence[LogTo], run: Path, config: Mapping[str, Any], start: int) -> list[Tracker]:
    """Open a run's trackers. Raises ImportError, with the extra to install, if a tracker's package is not installed."""
    trackers = []
    for name in names:
        try:
            trackers.append(TRACKERS[name](run, config, start))
        except ImportError as error:
            raise ImportError(f"log.to names {name}: pip install -e '.[{name}]' ({error})") from error
    return trackers
