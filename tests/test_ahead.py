"""One step off (``train.ahead``): which weights sample for which step, what a resume and Ctrl-C make of it, and what is refused."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from twofold import training
from twofold.config import Config, Rollouts, Train
from twofold.engines.native import NativeEngine
from twofold.maths.losses import Loss
from twofold.maths.schedule import Optim
from twofold.recipes.rlv import RLV
from twofold.tasks.procedural import Sums
from twofold.trainer.ahead import Ahead, check_ahead
from twofold.trainer.log import Log
from twofold.trainer.loop import Schedule, run_steps
from twofold.types import Collected


class Copied(NativeEngine):
    """The native engine on a copy of the weights, as an engine that is elsewhere has one."""

    def __init__(self, model: Any) -> None:
        super().__init__(copy.deepcopy(model))

    def load(self, weights: Any) -> None:
        self.model.load_state_dict(dict(weights))
        super().load(weights)


class Version:
    """An engine, a learner and a recipe in one. Weights are a number, which every update raises by one."""

    def __init__(self, during: Callable[[int], None] = lambda step: None) -> None:
        self.learnt = self.loaded = 0
        self.sampled_from: list[int] = []
        self.staleness: list[int] = []
        self.during = during

    def collect(self, engine: Any, problems: Any, step: int) -> Collected:
        self.sampled_from.append(self.loaded)
        self.during(step)
        return Collected({"policy": [self.loaded]}, {})  # type: ignore[list-item]

    def update(self, samples: Any) -> dict[str, float]:
        self.staleness += [self.learnt - version for version in samples]
        self.learnt += 1
        return {}

    def weights(self) -> Any:
        return self.learnt

    def load(self, weights: Any) -> None:
        self.loaded = weights

    def rest(self) -> None: ...


def steps(schedule: Schedule, folder: Path, version: Version) -> tuple[int, list[int], list[dict[str, Any]]]:
    """Return the number of steps that are done, those that were saved, and the lines of the log."""
    saved: list[int] = []
    with Log(folder, schedule.steps) as log:
        roles: Any = {"policy": version}
        reached = run_steps(
            version, roles, roles, lambda step: [], schedule, save=saved.append, evaluate=lambda done: {},
            score=lambda rollouts: [], watch=lambda groups: None, log=log,
        )  # fmt: skip
    return reached, saved, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_samples_are_from_the_weights_before_the_update_and_fresh_after_a_checkpoint(tmp_path: Path) -> None:
    version = Version()
    reached, saved, lines = steps(Schedule(0, 6, save_every=3, ahead=1), tmp_path, version)
    assert (reached, saved) == (6, [3, 6])
    assert version.sampled_from == [0, 0, 1, 3, 3, 4]
    assert version.staleness == [0, 1, 1, 0, 1, 1]
    assert [line.get("staleness", 0) for line in lines] == version.staleness
    (tmp_path / "on").mkdir()
    on_policy = Version()
    _, _, lines = steps(Schedule(0, 6, save_every=3), tmp_path / "on", on_policy)
    assert on_policy.sampled_from == [0, 1, 2, 3, 4, 5]
    assert not any("staleness" in line for line in lines)


@pytest.mark.parametrize(("at", "last"), [(2, 3), (0, 2)])
def test_ctrl_c_learns_from_what_is_drawn_and_saves(tmp_path: Path, at: int, last: int) -> None:
    """The signal comes while step ``at`` is collected: step 0 before anything, step 2 beside the update of step 1. In both cases
    a step more may have been drawn by then, never two."""

    def interrupt(step: int) -> None:
        if step == at:
            os.kill(os.getpid(), signal.SIGINT)

    version = Version(interrupt)
    reached, saved, _ = steps(Schedule(0, 9, save_every=0, ahead=1), tmp_path, version)
    assert saved == [reached] and version.learnt == reached == len(version.sampled_from)
    assert at + 1 <= reached <= last


def test_what_goes_wrong_while_drawing_ends_the_run(tmp_path: Path) -> None:
    def fail(step: int) -> None:
        if step == 2:
            raise KeyError("no such problem")

    with pytest.raises(KeyError, match="no such problem"):
        steps(Schedule(0, 9, save_every=0, ahead=1), tmp_path, Version(fail))


def config(model: Path, **train: Any) -> Config:
    return Config(
        model=str(model), recipe=RLV(rollouts=3), task=Sums(level=1), rollout=Rollouts(problems=3, max_tokens=8),
        optim=Optim(lr=1e-2), loss=Loss(correction="token_truncate"),
        train=Train(**({"steps": 4, "save_every": 2, "ahead": 1} | train)),
    )  # fmt: skip


def weights(run: Path, step: int) -> torch.Tensor:
    found = load_file(run / "checkpoints" / f"step-{step}" / "model.safetensors")
    return torch.cat([tensor.flatten() for tensor in found.values()])


@pytest.fixture(scope="module")
def ahead(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ahead") / "run"
    training.train(config(tiny_model), out, engine=Copied)
    return out


def test_a_thread_beside_the_learner_changes_no_bit(
    ahead: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle draws the next step to its end before the update begins."""
    begin = Ahead.begin

    def one_after_another(self: Ahead, step: int) -> None:
        begin(self, step)
        self.wait()

    monkeypatch.setattr(Ahead, "begin", one_after_another)
    training.train(config(tiny_model), tmp_path / "run", engine=Copied)
    assert weights(ahead, 4).equal(weights(tmp_path / "run", 4))
    training.train(config(tiny_model, ahead=0), tmp_path / "on", engine=Copied)
    assert not weights(ahead, 4).equal(weights(tmp_path / "on", 4))


def test_a_stale_step_is_corrected_and_the_others_need_it_not(ahead: Path) -> None:
    lines = [json.loads(line) for line in (ahead / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("staleness", 0) for line in lines] == [0, 1, 0, 1]
    assert [line["mismatch"] > 1e-3 for line in lines] == [False, True, False, True]
    assert [abs(line["correction"] - 1) > 1e-4 for line in lines] == [False, True, False, True]
    assert all(line["ahead_time"] > 0 for line in lines[1::2])


def test_a_resumed_run_is_the_one_that_was_not_stopped(ahead: Path, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(ahead, out)
    shutil.rmtree(out / "checkpoints" / "step-4")  # as if it had died in the last step
    training.train(config(tiny_model), out, engine=Copied, resume=True)
    assert weights(out, 4).equal(weights(ahead, 4))
    with pytest.raises(ValueError, match=r"train\.ahead = 0, was 1"):
        training.train(config(tiny_model, ahead=0), out, engine=Copied, resume=True)


def test_an_engine_that_computes_where_the_learner_does_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"the native engine samples from the very module that learns: set engine\.name"
    ):
        training.train(config(tiny_model), tmp_path / "run")
    with pytest.raises(ValueError, match="your engine runs in the learners"):
        check_ahead("python", ranks=2)
    check_ahead("python", ranks=1)
    check_ahead("fleet", ranks=2)
