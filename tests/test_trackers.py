"""``[log] to``: the real trackers, each kept offline, and what they hold after a run."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path

import pytest

import twofold as tf
from twofold import toml
from twofold.config import Config, Rollouts, Train
from twofold.recipes.rlv import RLV

SMALL = Config(recipe=RLV(rollouts=2), rollout=Rollouts(problems=2, max_tokens=8), train=Train(steps=2, save_every=1))


def rewards(run: Path) -> list[float]:
    return [json.loads(line)["reward"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_tensorboard_holds_every_step_once(tmp_path: Path) -> None:
    """This includes the steps of a resumed run, whose last step is written again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = toml.override(SMALL, ["log.to=tensorboard"])
    tf.train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step-2")  # as if it had been killed before its last save
    tf.train(config, tmp_path / "run", resume=True)
    found = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("reward")] == [
        *enumerate(map(pytest.approx, rewards(tmp_path / "run")))
    ]
    assert all(math.isfinite(e.value) for name in found.Tags()["scalars"] for e in found.Scalars(name))


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tf.train(toml.override(SMALL, ["log.to=wandb"]), tmp_path / "run")
    (file,) = (tmp_path / "run").rglob("*.wandb")
    until = time.monotonic() + 60  # a process of wandb's own writes it
    while b"frac_reward_zero_std" not in file.read_bytes():
        assert time.monotonic() < until, file.read_bytes()
        time.sleep(0.1)


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for folder in ("a", "b"):
        tf.train(toml.override(SMALL, ["log.to=trackio"]), tmp_path / folder / "run")
    assert any(p.stat().st_size > 1000 for p in (tmp_path / "trackio").rglob("twofold*"))
    identities = {(tmp_path / folder / "run/tracking-id").read_text() for folder in ("a", "b")}
    assert len(identities) == 2  # of one name, and still two runs


def test_a_tracker_that_is_not_installed_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"log\.to names wandb: pip install -e '\.\[wandb\]'"):
        tf.train(toml.override(SMALL, ["log.to=wandb"]), tmp_path / "run")


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(toml.ConfigError, match=r"log\.to\[0\] must be one of 'wandb', 'tensorboard', 'trackio'"):
        toml.override(SMALL, ["log.to=mlflow"])
