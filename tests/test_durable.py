"""What survives a crash, a full disk, a second writer and a flipped bit: checkpoints, configs and logs."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import twofold as tf
from twofold import cli, durable, run, toml, training
from twofold.config import Config, Data, Rollouts, Train
from twofold.models import io
from twofold.models.checkpoints import MANIFEST, OPTIMIZER, STATE, Damaged, newest_good, seal, steps, verify
from twofold.models.io import load_model
from twofold.recipes.rlv import RLV
from twofold.tasks.procedural import Sums
from twofold.trainer import checkpoint
from twofold.trainer.learner import Diverged, Learner, Loss
from twofold.trainer.optim import Optim
from twofold.types import Sample

ROOT = Path(__file__).parents[1]
DIED = 9


def config(model: Path, **train: Any) -> Config:
    return Config(
        model=str(model), recipe=RLV(rollouts=2, verify="separate"), task=Sums(level=1),
        rollout=Rollouts(problems=2, max_tokens=6), optim=Optim(lr=1e-3, schedule="cosine"),
        train=Train(**({"steps": 4, "save_every": 2} | train)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with two models, saved after the second and the fourth."""
    out = tmp_path_factory.mktemp("durable") / "run"
    training.train(config(tiny_model), out)
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def learner(model: Path) -> Learner:
    """Return a learner that has made one step, so that it has moments."""
    found = Learner(load_model(model)[0], Optim(lr=1e-2, warmup=0.0), Loss(), steps=4)
    found.update([Sample([20, 21, 22, 23], [False] * 4, [0.0] * 4, [0.0] * 4, [0.0, 1.0, 1.0, 1.0])])
    return found


# ---------------------------------------------------------------- every crash point


class Crash:
    """Ends this process at its k-th point, as a kill would, or as a loss of power, which also loses what was not synced.

    There is a point before every call that changes files, and one in the middle of those that can be left half done: a file
    that is there and empty, or half written.
    """

    def __init__(self, at: int, root: Path, power: bool) -> None:
        self.left, self.root, self.power = at, root, power
        self.safe = {p.stat().st_ino for p in root.rglob("*") if p.is_file()}
        sys.addaudithook(self._hook)
        self._fsync, self._write, self._save = os.fsync, os.write, io.save_file
        os.fsync, os.write = self.fsync, self.write  # type: ignore[assignment]
        io.save_file = checkpoint.save_file = self.save_file

    def point(self, half: Callable[[], object] = lambda: None) -> None:
        if self.left == 0:
            self.left = -1
            half()
            for path in self.root.rglob("*") if self.power else ():
                if path.is_file() and path.stat().st_ino not in self.safe:
                    os.truncate(path, path.stat().st_size // 2)
            os._exit(DIED)
        self.left -= 1

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.left < 0:
            return
        if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR):
            self.point()
            self.point(lambda: os.close(os.open(args[0], args[2], 0o666)))
        elif event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
            self.point()

    def fsync(self, fd: int) -> None:
        self.point()
        self._fsync(fd)
        self.safe.add(os.fstat(fd).st_ino)

    def write(self, fd: int, data: bytes) -> int:
        self.point(lambda: self._write(fd, data[: len(data) // 2]))
        return self._write(fd, data)

    def save_file(self, tensors: Any, path: Path, *rest: Any) -> None:
        def half() -> None:
            self._save(tensors, path, *rest)
            os.truncate(path, path.stat().st_size // 2)

        self.point()
        self.point(half)
        self._save(tensors, path, *rest)


def crashes(act: Callable[[Path], object], before: Path, folder: Path, power: bool) -> Iterator[Path]:
    """Yield a copy of ``before`` for every point of ``act`` at which a child process died."""
    for at in range(1000):
        here = shutil.copytree(before, folder / f"{at}-{power}")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                Crash(at, here, power)
                act(here)
                status = 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, DIED)
        yield here
        shutil.rmtree(here)
        if status == 0:
            return


@pytest.mark.parametrize("power", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_crash_point_of_a_save_leaves_the_old_or_the_new_checkpoint(tiny_model, tmp_path, power):
    """Two models; the third step is saved, the first is then deleted, and the second remains. At no time is there a damaged one."""
    tokenizer = load_model(tiny_model)[1]
    learners = {"policy": learner(tiny_model), "verifier": learner(tiny_model)}

    def save(here: Path, step: int = 3) -> Path:
        return checkpoint.save(here, step, learners, tokenizer, state={"x": step}, chat={}, inputs={}, keep=2)

    before = tmp_path / "before"
    for step in (1, 2):
        save(before, step)
    old, new = content(before), content(save(tmp_path / "new"))
    seen = set()
    for n, here in enumerate(crashes(save, before, tmp_path, power)):
        found, bad = newest_good(here)
        assert found is not None and not bad
        assert content(found) == new if found.name == "step-3" else content(here).items() >= old.items()
        seen.add(tuple(folder.name for folder in steps(here)))
        if n % 20 == 0:
            assert content(save(here)) == new and len(os.listdir(here / "checkpoints")) == 2  # no leftovers
    assert seen == {("step-1", "step-2"), ("step-1", "step-2", "step-3"), ("step-2", "step-3")}
    assert n > 60


def test_every_crash_point_of_a_resume_leaves_a_run_that_can_be_resumed(tiny_model, out, tmp_path, monkeypatch):
    """The newest checkpoint is damaged, and the last line of each log is torn."""
    (out / "checkpoints" / "step-4" / "model.safetensors").write_bytes(b"")
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        with (out / name).open("a") as file:
            file.write('{"step": 3, "to')
    logs = {name: durable.read_lines(out / name) for name in ("metrics.jsonl", "rollouts.jsonl")}
    kept = {name: [row for row in rows if row["step"] < 2] for name, rows in logs.items()}
    monkeypatch.setattr(training, "run_steps", lambda *_, **__: os._exit(0))
    seen = set()
    longer = config(tiny_model, steps=5)
    for here in crashes(lambda here: training.train(longer, here, resume=True), out, tmp_path, True):
        assert newest_good(here)[0] == here / "checkpoints" / "step-2"
        assert toml.load(Config, here / "config.toml") in (config(tiny_model), longer)
        for name in logs:
            rows = durable.read_lines(here / name)
            assert rows in (logs[name], kept[name])
            seen.add((name, len(rows)))
    assert seen == {(name, len(rows)) for by in (logs, kept) for name, rows in by.items()}  # it saw the old and the new


def test_every_crash_point_of_a_line_leaves_all_lines_before_it(tmp_path):
    def write(here: Path) -> None:
        with durable.Lines(here / "log.jsonl") as file:
            for n in (1, 2):
                file.write(json.dumps({"n": n}))
                file.sync()

    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "log.jsonl").write_text('{"n": 0}\n{"n": 1')
    seen = []
    for here in crashes(write, tmp_path / "before", tmp_path, False):
        rows = durable.read_lines(here / "log.jsonl")
        seen.append([row["n"] for row in rows])
        write(here)  # a torn line is in nobody's way
        assert durable.read_lines(here / "log.jsonl") == [*rows, {"n": 1}, {"n": 2}]
    assert sorted(map(tuple, seen)) == sorted(map(tuple, seen), key=len)
    assert {tuple(x) for x in seen} == {(0,), (0, 1), (0, 1, 2)}


def test_a_line_that_is_no_json_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n\0\0\0\n')
    with pytest.raises(ValueError, match=r"x\.jsonl:2: not JSON"):
        durable.read_lines(tmp_path / "x.jsonl")


# ---------------------------------------------------------------- damage


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def reseal(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    seal(folder, int(folder.name[5:]))


def test_every_file_and_every_kind_of_damage_is_found(out):
    """A bit of every file (three places in each), its end, itself; the other step's file; a renamed folder."""
    last, before = out / "checkpoints" / "step-4", out / "checkpoints" / "step-2"
    verify(last, resume=True)
    names = sorted(content(last))
    assert {"model.safetensors", OPTIMIZER, STATE, MANIFEST, f"verifier/{MANIFEST}", f"verifier/{OPTIMIZER}"} <= set(
        names
    )
    for name in names:
        path = last / name
        whole = path.read_bytes()
        for bit in (0, len(whole) * 4, len(whole) * 8 - 1):
            flip(path, bit)
            with pytest.raises(Damaged, match="step-4"):
                verify(last, resume=True)
            path.write_bytes(whole)
        for damage in (whole[:-1], whole + b" ", whole[: len(whole) // 2], b"", b"\0" * len(whole)):
            path.write_bytes(damage)
            with pytest.raises(Damaged, match="step-4"):
                verify(last, resume=True)
        path.unlink()
        with pytest.raises(Damaged, match="step-4"):
            verify(last, resume=True)
        path.write_bytes(whole)
        if (before / name).read_bytes() != whole:
            shutil.copy(before / name, path)
            with pytest.raises(Damaged, match="step-4"):
                verify(last, resume=True)
            path.write_bytes(whole)
    verify(last, resume=True)
    with pytest.raises(Damaged, match=r"is the checkpoint of step 2.*renamed"):
        verify(before.rename(before.with_name("step-99")), resume=True)


@pytest.mark.parametrize("name", ["model.safetensors", f"verifier/{OPTIMIZER}", STATE])
def test_a_resume_falls_back_to_the_newest_good_checkpoint_and_says_so(name, out, finished, tiny_model, capsys):
    flip(out / "checkpoints" / "step-4" / name, 400)
    assert training.train(config(tiny_model), out, resume=True) == out / "checkpoints" / "step-4"
    said = capsys.readouterr().out.replace("\n", " ")
    assert re.search(f"step-4/{name} is not as it was written.*step 4 is damaged.*resuming .* at step 2", said), said
    assert content(out / "checkpoints" / "step-4") == content(finished / "checkpoints" / "step-4")
    assert sorted(os.listdir(out / "checkpoints")) == ["step-2", "step-4", "step-4.damaged"]
    assert [row["step"] for row in durable.read_lines(out / "metrics.jsonl")] == [0, 1, 2, 3]


def test_a_run_without_a_good_checkpoint_is_refused_with_all_reasons(out, tiny_model):
    flip(out / "checkpoints" / "step-4" / "model.safetensors", 4000)
    (out / "checkpoints" / "step-2" / "config.json").unlink()
    before = content(out)
    with pytest.raises(
        ValueError, match=r"no checkpoint is good.*step-4/model\.safetensors.*step-2/config\.json is missing"
    ):
        training.train(config(tiny_model), out, resume=True)
    assert content(out) == before


def test_a_damaged_checkpoint_is_not_loaded(out):
    """The moments are not read, so that they may be damaged or gone. A second model is checked on its own."""
    last = out / "checkpoints" / "step-4"
    (last / OPTIMIZER).unlink()
    assert run.load(out).engine.model and run.load(last / "verifier").engine.model
    flip(last / "verifier" / "model.safetensors", 9000)
    assert run.load(out).engine.model
    with pytest.raises(ValueError, match=r"step-4/verifier/model\.safetensors is not as it was written"):
        run.load(last / "verifier")
    flip(last / "tokenizer.json", 900)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not as it was written.*step 4"):
        run.load(out)
    flip(last / "tokenizer.json", 900)
    assert run.load(out / "checkpoints" / "step-2").engine.model
    shutil.rmtree(last / "trainer")  # a plain model directory has no manifest
    assert run.load(last).engine.model


def test_an_older_version_s_checkpoint_is_a_model_but_is_not_resumed(out, tiny_model):
    for folder in steps(out):
        shutil.move(folder / STATE, folder / "trainer_state.json")
        shutil.rmtree(folder / "trainer")
    assert run.load(out).chat.question == config(tiny_model).judge.question
    with pytest.raises(ValueError, match=r"step-4 has no trainer/manifest\.json: an older version wrote it"):
        training.train(config(tiny_model), out, resume=True)


def test_moments_are_in_the_newest_two_checkpoints_only(tiny_model, tmp_path):
    learners = {"policy": learner(tiny_model)}
    tokenizer = load_model(tiny_model)[1]
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, learners, tokenizer, state={}, chat={}, inputs={})
    assert [(folder / OPTIMIZER).is_file() for folder in steps(tmp_path)] == [False, True, True]
    verify(tmp_path / "checkpoints" / "step-1")
    with pytest.raises(Damaged, match="step-1 has no moments"):
        verify(tmp_path / "checkpoints" / "step-1", resume=True)
    assert not list((tmp_path / "checkpoints" / "step-3").glob("optim*"))  # nothing beside the model but the model
    assert [p.name for p in (tmp_path / "checkpoints" / "step-3").glob("*.safetensors")] == ["model.safetensors"]


# ---------------------------------------------------------------- one writer


HOLD = """import sys, pathlib, twofold.durable
with twofold.durable.writing(pathlib.Path(sys.argv[1])):
    print(flush=True)
    input()
"""


@contextmanager
def held(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process write to a directory."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    ) as other:  # fmt: skip
        assert other.stdout is not None and other.stdout.readline() == "\n"
        yield other
        other.kill()


def test_a_second_writer_is_refused_and_a_killed_one_holds_nothing(out, tiny_model, tmp_path, capsys):
    before = content(out)
    (tmp_path / "c.toml").write_text(toml.to_toml(config(tiny_model)))
    with held(out):
        assert cli.main(["train", str(tmp_path / "c.toml"), "--out", str(out), "--resume"]) == 2
        assert re.fullmatch(rf"twofold: {out} is being written by another process: .*\n", capsys.readouterr().err)
        with pytest.raises(BlockingIOError, match="is being written"):
            tf.evaluate(tf.load(tiny_model), "sums", tf.Eval(problems=2, n=2, max_tokens=4), out=out)
    assert content(out) == before
    training.train(config(tiny_model), out, resume=True)


# ---------------------------------------------------------------- the same run


def test_a_resume_over_changed_inputs_is_refused_unless_they_are_named(tiny_model, tmp_path, capsys):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    rows = [json.dumps({"question": f"What is {n}+1?", "answer": str(n + 1)}) for n in range(4)]
    data = tmp_path / "sums.jsonl"
    data.write_text("\n".join(rows) + "\n")
    how = replace(config(model), recipe=RLV(rollouts=2), task=Data(source=str(data)))
    out = tmp_path / "run"
    training.train(replace(how, train=Train(steps=1)), out)

    def refused(said: str, *accepted: str) -> None:
        before = content(out)
        with pytest.raises(ValueError, match=said):
            training.train(replace(how, train=Train(steps=2)), out, resume=True, accept_changed=accepted)
        assert content(out) == before

    data.write_text("\n".join(reversed(rows)) + "\n")
    refused("the problems of the task changed.*--accept-changed data")
    data.write_text("\n".join(rows) + "\n")
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    refused("the weights that training began with changed.*--accept-changed model")
    template = json.loads((model / "tokenizer_config.json").read_text()).get("chat_template")
    where = model / ("tokenizer_config.json" if template else "chat_template.jinja")
    where.write_text(where.read_text().replace("<|assistant|>", "<|assistant|> ", 1))
    refused("weights .* and the chat template.* changed.*model --accept-changed template", "data")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["added_tokens"][-1]["lstrip"] = True
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused("the tokenizer changed", "model", "template")
    refused("wheather cannot be accepted changed, only data, model", "wheather")
    (tmp_path / "c.toml").write_text(toml.to_toml(replace(how, train=Train(steps=2))))
    words = [f"--accept-changed={name}" for name in ("model", "template", "tokenizer")]
    assert cli.main(["train", str(tmp_path / "c.toml"), "--out", str(out), "--resume", *words]) == 0, (
        capsys.readouterr()
    )
    training.train(replace(how, train=Train(steps=3)), out, resume=True)  # the next checkpoint has the new hashes


def test_changed_code_is_refused_unless_it_is_named(tiny_model, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("def reward(problem, text):\n    return 1.0\n")
    how = replace(config(tiny_model), recipe=RLV(rollouts=2), reward=(f"{mine}:reward",))
    training.train(replace(how, train=Train(steps=1)), tmp_path / "run")
    mine.write_text("def reward(problem, text):\n    return 0.0\n")
    more = replace(how, train=Train(steps=2))
    with pytest.raises(ValueError, match=r"made with another config \(reward.*--accept-changed code"):
        training.train(more, tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match=r"optim\.lr"):
        training.train(replace(more, optim=Optim(lr=1.0)), tmp_path / "run", resume=True, accept_changed=["code"])
    training.train(more, tmp_path / "run", resume=True, accept_changed=["code"])
    rows = durable.read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["reward"] for row in rows] == [1.0, 0.0]


def test_a_run_whose_config_is_gone_is_neither_resumed_nor_overwritten(out, tiny_model):
    (out / "config.toml").unlink()
    before = content(out)
    with pytest.raises(FileNotFoundError, match=r"it has checkpoints, but no config\.toml"):
        training.train(config(tiny_model), out, resume=True)
    with pytest.raises(FileExistsError, match=r"holds checkpoints of a run whose config\.toml is gone"):
        training.train(config(tiny_model), out)
    assert content(out) == before


# ---------------------------------------------------------------- numbers that are not finite


NAMES = ["lr", "final", "weight_decay", "beta1", "beta2", "warmup", "hold"]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", NAMES)
def test_no_option_of_the_optimiser_may_be_infinite_or_nan(name, value):
    with pytest.raises(ValueError, match=f"optim.{name} must be"):
        toml.override(Config(), [f"optim.{name}={value}"])
    with pytest.raises(ValueError, match=f"{name} must be"):
        Optim(**{name: float(value)})


BAD = [math.nan, math.inf, -math.inf]
SAMPLE = Sample(
    [20, 21, 22, 23], [False, True, True, False], [0.0, -6.0, -6.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0] * 3 + [1.0]
)


def poison(point: str, found: Learner, value: float, monkeypatch: pytest.MonkeyPatch) -> Sample:
    """Put a number into one place of the next update, and return the sample to learn from."""
    if point in ("logprobs", "advantages", "targets"):
        numbers = list(getattr(SAMPLE, point))
        numbers[3 if point == "targets" else 1] = value
        return replace(SAMPLE, **{point: numbers})
    weights = found.model.get_parameter("model.layers.0.mlp.up_proj.weight")
    if point == "weight":
        weights.data[0, 0] = value
    elif point == "gradient":
        weights.register_hook(lambda g: torch.where(torch.arange(g.numel()).view_as(g) == 0, value, g))
    else:  # logits, or the loss
        losses = found._losses

        def spoilt(*args: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            loss, parts = losses(*args)
            return loss * value, parts | {"loss": loss.detach() * value}

        monkeypatch.setattr(found, "_losses", spoilt)
    return SAMPLE


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("point", ["logprobs", "advantages", "targets", "gradient", "weight", "loss"])
def test_a_number_that_is_not_finite_changes_no_weight_and_stops_after_three(point, value, tiny_model, monkeypatch):
    """The places are those where rewards, verdicts, ratios, gradients and hardware put it."""
    found = learner(tiny_model)
    sample = poison(point, found, value, monkeypatch)
    before = {name: tensor.clone() for part in found.saved() for name, tensor in part.items()}
    for n in (1, 2, 3):
        if n == 3:
            with pytest.raises(Diverged, match="three updates in a row were not finite"):
                found.update([sample])
        else:
            assert found.update([sample])["skipped"] == 1
        for name, tensor in chain(*(part.items() for part in found.saved())):
            assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("where", ["weight", "moment"])
def test_what_is_not_finite_is_never_saved(where, value, tiny_model, tmp_path):
    tokenizer = load_model(tiny_model)[1]
    learners = {"policy": learner(tiny_model), "verifier": learner(tiny_model)}
    first = checkpoint.save(tmp_path, 1, learners, tokenizer, state={}, chat={}, inputs={})
    before = content(tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    parameter = learners["verifier"].model.get_parameter(name)
    spoilt = parameter.data if where == "weight" else learners["verifier"].optimizer.state[parameter]["exp_avg_sq"]
    spoilt[0, 0] = value
    said = f"{name} of the verifier" if where == "weight" else f"{name}/exp_avg_sq of the verifier"
    with pytest.raises(Diverged, match=f"step 2 is not saved: {said} is not finite"):
        checkpoint.save(tmp_path, 2, learners, tokenizer, state={}, chat={}, inputs={})
    assert content(tmp_path) == before and newest_good(tmp_path) == (first, {})


def test_a_run_that_diverges_ends_in_words_and_keeps_its_last_good_checkpoint(tiny_model, tmp_path, capsys):
    """At this learning rate the weights are finite, but what they compute is not."""
    how = replace(config(tiny_model, steps=20, save_every=1), optim=Optim(lr=1e30, warmup=0.0))
    (tmp_path / "c.toml").write_text(toml.to_toml(how))
    assert cli.main(["train", str(tmp_path / "c.toml"), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert re.search("not finite", said) and said.splitlines()[-1].startswith("twofold: ")
    for folder in steps(tmp_path / "run"):
        assert all(v.isfinite().all() for v in load_file(folder / "model.safetensors").values())


# ---------------------------------------------------------------- a full disk


@contextmanager
def full(room: int) -> Iterator[None]:
    """Let no file grow beyond ``room`` bytes, which fails as a full disk does, in whatever language the writer is."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 100, 1000, 5000, 40_000, 150_000])
def test_a_full_disk_is_an_error_in_words_and_the_last_checkpoint_survives(room, tiny_model, tmp_path):
    tokenizer = load_model(tiny_model)[1]
    learners = {"policy": learner(tiny_model)}
    first = checkpoint.save(tmp_path, 1, learners, tokenizer, state={}, chat={}, inputs={}, keep=1)
    assert (first / OPTIMIZER).stat().st_size > 150_000
    before = content(tmp_path)
    with (
        pytest.raises(OSError, match=r"the checkpoint of step 2 could not be saved.*too large.*older ones"),
        full(room),
    ):
        checkpoint.save(tmp_path, 2, learners, tokenizer, state={}, chat={}, inputs={}, keep=1)
    assert content(tmp_path) == before and newest_good(tmp_path) == (first, {})  # no half directory either


def test_a_full_disk_while_a_line_is_written_names_the_file(tmp_path):
    with durable.Lines(tmp_path / "log.jsonl") as file:
        file.write('{"n": 1}')
        with pytest.raises(OSError, match=r"too large.*log\.jsonl"), full(12):
            file.write('{"n": 2}')
    assert durable.read_lines(tmp_path / "log.jsonl") == [{"n": 1}]
    with pytest.raises(OSError), full(5):
        durable.write_text(tmp_path / "config.toml", "much too long")
    assert os.listdir(tmp_path) == ["log.jsonl"]
