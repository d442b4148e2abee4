"""The command line as a person meets it: its words, its exit status, its progress, and what a Ctrl-C leaves behind."""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import twofold as tf
from twofold import cli, toml
from twofold.config import Config, Rollouts, Train
from twofold.progress import Progress
from twofold.recipes.rlv import RLV
from twofold.tasks.procedural import Sums
from twofold.trainer.log import Log
from twofold.trainer.optim import Optim

ROOT = Path(__file__).parents[1]


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start ``python -m twofold``, with both outputs in one pipe. It hears Ctrl-C even if the tests run in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "twofold", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")} | environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line on stderr of a command that fails with status 2."""
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("twofold: ") and error.count("\n") == 1
    return error


def test_the_version_has_one_source() -> None:
    found, _ = start("--version").communicate()
    assert found == f"twofold {tf.__version__}\n"
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    assert f"version: {tf.__version__}" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["solve", "tiny", " \n"], "there is no problem to solve: its text is empty"),
        (["eval", "tiny", "--task", "sum"], "sum: no such task, set or file; did you mean sums?"),
        (["eval", "tiny", "--task", "contdown:level=2"], "did you mean countdown?"),
        (["eval", "tiny", "--task", "sums:level=0"], "task 'sums:level=0': level must be at least 1, got 0"),
        (["eval", "tiny", "--skip-bad"], "--skip-bad: for a data set, and sums is none"),
        (["eval", "tiny", "--n", "0"], "command line: --n must be at least 1, got 0"),
        (["eval", "tiny", "--top-p", "0"], "--top_p must be more than 0 and at most 1, got 0"),
        (["eval", "tiny", "--temprature=1"], "unknown option --temprature; did you mean --temperature?"),
        (["eval", "tiny", "--caps", "64,x"], "--caps"),
        (["eval", "tiny", "--task", "countdown:level=2", "--problems", "40"], "countdown has 25 different problems"),
        (["solve", "tiny", "1+1", "--abstain", "2"], "--abstain: must be from 0 to 1, got 2"),
        (["critic", "tiny", "sums", "--number", "0"], "--number: must be at least 1, got 0"),
        (["serve", "tiny", "--port", "70000"], "--port: must be from 0 to 65535"),
        (["show", "runs", "--step", "last"], "--step: invalid whole number value: 'last'"),
        (["tarin"], "invalid choice: 'tarin'"),
        (["report"], "the following arguments are required: runs (twofold report --help"),
        (["train", str(ROOT / "configs/rlv-sums.toml"), "--out", "nowhere", "--resume"], "nowhere holds no run"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in said(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_hub_that_does_not_answer_is_asked_once() -> None:
    """Port 9 of this machine is closed. The hub's own client asks six times, over 23 seconds."""
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": "/nowhere"}
    for arguments in (["solve", "someone/model", "1+1"], ["eval", "tiny", "--task", "someone/set"]):
        found, _ = (child := start(*arguments, **closed)).communicate()
        assert child.returncode == 2
        assert f"twofold: {arguments[-1] if 'eval' in arguments else arguments[1]}: no such file, and the hub" in found
        assert "cannot be reached" in found and "Retry" not in found


# ---------------------------------------------------------------- progress


def test_a_narrow_terminal_shows_the_step_and_the_time_left() -> None:
    screen = Console(file=io.StringIO(), width=80, force_terminal=True)
    with Progress("step", screen) as progress:
        for done in range(8):
            progress.update(
                "training", done, 8, "reward 0.25  AUROC 0.61  length 33.1  entropy 0.125  |grad| 2.1  s/step 5"
            )
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.file.getvalue()).replace("\r", "\n").splitlines()
    (last,) = {line for line in lines if "7/8" in line}
    assert re.fullmatch(r"training \S+ 7/8 left [-0-9:]{7} reward 0.25  AUROC 0.61 .*…", last) and len(last) == 80


def test_a_pipe_gets_a_line_at_every_tenth() -> None:
    pipe = Console(file=io.StringIO())
    with Progress("problem", pipe) as progress:
        for done in range(8, 41, 8):
            progress.update("evaluating", done, 40)
        progress.say("set extract in [task]")
    *lines, said = pipe.file.getvalue().splitlines()
    assert said == "set extract in [task]"  # square brackets are no markup
    assert [line.split("  ")[0] for line in lines] == [f"evaluating: problem {n}/40" for n in (16, 24, 32, 40)]
    assert all(line.endswith(" left") for line in lines[:-1])


# ---------------------------------------------------------------- Ctrl-C


@pytest.fixture
def slow_toml(tiny_model: Path, tmp_path: Path) -> Path:
    config = Config(
        model=str(tiny_model), recipe=RLV(rollouts=2), task=Sums(level=1), rollout=Rollouts(problems=128, max_tokens=900),
        optim=Optim(lr=1e-3), train=Train(steps=4, save_every=0),
    )  # fmt: skip
    path = tmp_path / "slow.toml"
    path.write_text(toml.to_toml(config))
    return path


@pytest.mark.timeout(300)  # processes of their own, which on a busy machine take their time to start
def test_a_second_ctrl_c_leaves_without_a_traceback(slow_toml: Path, tmp_path: Path) -> None:
    child = start("train", str(slow_toml), "--out", str(tmp_path / "run"))
    try:
        while child.poll() is None and not (tmp_path / "run" / "rollouts.jsonl").exists():
            time.sleep(0.02)
        time.sleep(0.5)  # the log is there just before the first step
        child.send_signal(signal.SIGINT)
        time.sleep(1)
        child.send_signal(signal.SIGINT)
        found, _ = child.communicate()
    finally:
        child.kill()
    assert child.returncode == 130, found
    assert "Traceback" not in found and found.endswith("twofold: stopped\n")
    assert "finishing the step, then saving; a second Ctrl-C leaves now" in found


def test_a_reader_that_leaves_ends_the_program_without_a_word() -> None:
    """As in ``twofold train rlv-sums --dry-run | head -1``, whose output is short and goes out at the very end."""
    command = [sys.executable, "-m", "twofold", "train", "rlv-sums", "--dry-run"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    said = child.stderr.read()
    child.stderr.close()
    assert (child.wait(), said) == (141, "")


@pytest.mark.timeout(300)
def test_an_evaluation_says_what_is_saved(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    arguments = ["eval", str(tiny_model), "--out", str(out), "problems=40", "n=2", "max_tokens=200", "batch=2"]
    child = start(*arguments)
    try:
        while child.poll() is None and not ((out / "pools.jsonl").exists() and (out / "pools.jsonl").read_bytes()):
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        found, _ = child.communicate()
    finally:
        child.kill()
    saved = len((out / "pools.jsonl").read_text().splitlines())
    assert child.returncode == 3 and 2 <= saved < 40, found
    assert f"twofold: stopped; {saved} of 40 problems are saved in {out}. The same command continues" in found


# ---------------------------------------------------------------- data sets


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Return a set of four good rows, one whose answer is NaN, and one that is longer than the model's context."""
    rows: list[dict[str, Any]] = [{"question": f"{i}+1?", "answer": f"It is\n#### {i + 1}"} for i in range(4)]
    rows += [{"question": "none?", "answer": float("nan")}, {"id": "long", "question": "1 " * 2000, "answer": "#### 1"}]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "mixed.jsonl"


def test_bad_and_long_rows_stop_an_evaluation_or_are_left_out(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    command = ["eval", "tiny", "--task", str(mixed), "--out", str(tmp_path / "out"), "n=2", "max_tokens=8"]
    assert cli.main(command) == 2
    assert "mixed.jsonl:5: the answer is nan" in capsys.readouterr().err
    assert "mixed-long: the model's context is 2048 tokens" in said(capsys, *command, "--skip-bad")
    assert not (tmp_path / "out").exists()
    assert cli.main([*command, "--skip-bad", "--skip-long"]) == 0
    assert "mixed.jsonl:5: the answer is nan" in caplog.text
    assert (
        "1 of 5 problems of mixed are too long for the model's context and left out, such as mixed-long" in caplog.text
    )
    assert len((tmp_path / "out" / "pools.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("recipe", ["rlv", "sft"])
def test_bad_and_long_rows_stop_a_training_or_are_left_out(
    recipe: str, mixed: Path, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    (tmp_path / "small.toml").write_text(f'model = "{tiny_model}"\n[train]\nsteps = 2\nsave_every = 0\n')
    command = ["train", str(tmp_path / "small.toml"), "--out", str(out), f"recipe={recipe}", "task.name=data"]
    command += [f"task.source={mixed}", "rollout.problems=4", "rollout.max_tokens=4"]
    assert cli.main(command) == 2
    assert "mixed.jsonl:5: the answer is nan" in capsys.readouterr().err
    assert "mixed-long: the model's context is 1024 tokens" in said(capsys, *command, "task.skip_bad=true")
    assert not out.exists()
    assert cli.main([*command, "task.skip_bad=true", "task.skip_long=true"]) == 0
    if recipe == "rlv":
        shown = [json.loads(line)["id"] for line in (out / "rollouts.jsonl").read_text().splitlines()]
        assert set(shown) <= {f"mixed-{i}" for i in range(4)}


def test_a_prompt_to_solve_that_is_too_long_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "problems.txt").write_text("1+1?\n" + "1 " * 2000)
    assert "problem 2: the model's context is 2048" in said(capsys, "solve", "tiny", str(tmp_path / "problems.txt"))
    beam = ["solve", "tiny", "1 " * 2000, "--plan", "majority-2:make=beam,width=2"]
    assert "the problem: the model's context is 2048" in said(capsys, *beam)


def test_solutions_without_answers_are_for_sft_only(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Good day."}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    (tmp_path / "bare.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "2"}) + "\n")
    (tmp_path / "small.toml").write_text(f'model = "{tiny_model}"\ntask.name = "data"\n[train]\nsteps = 3\n')
    out = tmp_path / "run"
    train = ["train", str(tmp_path / "small.toml"), "--out", str(out), "rollout.problems=1", "optim.lr=0.01"]
    refused = "problem chat-0 has no answer to grade by"
    assert refused in said(capsys, *train, f"task.source={tmp_path / 'chat.jsonl'}")
    assert refused in said(capsys, "eval", str(tiny_model), "--task", str(tmp_path / "chat.jsonl"), "max_tokens=4")
    bare = said(capsys, *train, "recipe=sft", f"task.source={tmp_path / 'bare.jsonl'}")
    assert "problem bare-0 has no worked solution: name its column with --task.solution_column" in bare
    assert not out.exists()
    assert cli.main([*train, "recipe=sft", f"task.source={tmp_path / 'chat.jsonl'}"]) == 0
    losses = [json.loads(line)["target_loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert losses[2] < losses[0]


def test_the_screen_shows_what_a_run_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A supervised run has a loss and no policy, plain RL a policy and no targets, RL^V both."""
    numbers = {"reward": 0.5, "target_loss": 0.25, "entropy": 0.125, "grad_norm": 2.0, "step_time": 1.0}
    said = []
    for absent in ({"reward": math.nan, "entropy": 0.0}, {"target_loss": 0.0}, {}):
        with Log(tmp_path, 1) as log:
            log.step(0, numbers | absent)
        said.append(capsys.readouterr().out.strip().partition("  ")[2])
    assert said == [
        "target loss 0.25  |grad| 2  s/step 1",
        "reward 0.5  entropy 0.125  |grad| 2  s/step 1",
        "reward 0.5  target loss 0.25  entropy 0.125  |grad| 2  s/step 1",
    ]
