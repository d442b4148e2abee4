"""The examples of docs/extending.md, run as their docstrings say, on the shipped model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import twofold as tf
from twofold import cli, source, toml
from twofold.compute.judge import Judging
from twofold.config import Config, LogOptions, PythonRecipe, PythonTask, Rollouts, Train
from twofold.engine_options import PythonEngine
from twofold.recipes.rlv import RLV
from twofold.tasks.procedural import Sums

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SMALL = Config(
    recipe=RLV(rollouts=4),
    rollout=Rollouts(problems=2, max_tokens=16),
    train=Train(steps=2, save_every=0),
    log=LogOptions(),
)
WORDS = ["--rollout.problems=2", "--rollout.max_tokens=16", "--train.steps=1", "--recipe.rollouts=4"]


def lines(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def trained(tmp_path: Path, *words: str) -> Path:
    """Run the command line in the repository's root."""
    out = tmp_path / "run"
    assert cli.main(["train", str(ROOT / "configs/rlv-sums.toml"), "--out", str(out), *words]) == 0
    return out


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_reward(tmp_path: Path) -> None:
    """A solution is paid 1 - words / 20, and the verifier's labels are the task's."""
    run = trained(tmp_path, *WORDS, "--reward", "examples/reward.py:brief")
    rows = [r for group in lines(run, "rollouts.jsonl") for r in group["rollouts"]]
    assert len(rows) == 8
    assert all(r["reward"] == pytest.approx(max(0, 1 - len(r["text"].split()) / 20)) for r in rows)
    assert lines(run)[0]["reward"] == pytest.approx(sum(r["reward"] for r in rows) / 8)
    assert {r["label"] for r in rows} <= {"correct", "wrong", "no_answer"}
    assert lines(run)[0]["labels/correct"] == sum(r["label"] == "correct" for r in rows) / 8
    assert toml.load(Config, run / "config.toml").reward == (source.pin("examples/reward.py:brief"),)


def test_the_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, "--task.name=python", "--task.source=examples/task.py:Pairs"]
    run = trained(tmp_path, *words)
    groups = lines(run, "rollouts.jsonl")
    assert [g["question"][:32] for g in groups] == ["Name two different numbers that "] * 2
    assert lines(run)[0]["labels/error"] == 0
    out = tmp_path / "e"
    words = ["eval", "tiny", "--task", "examples/task.py:Pairs", "--problems=2", "--n=2", "--max_tokens=16"]
    assert cli.main([*words, "--out", str(out)]) == 0
    assert json.loads((out / "eval.json").read_text())["task"] == "pairs"


def test_an_evaluation_with_other_code_is_another_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a reward or without, and before or after its file was edited: nothing old is taken for new."""
    mine = tmp_path / "mine.py"
    mine.write_text("def one(problem, text): return 1.0\n")
    words = ["eval", "tiny", "--problems=2", "--n=2", "--max_tokens=16", "--out", str(tmp_path / "e")]
    rewarded = [*words, "--reward", f"{mine}:one"]
    assert cli.main(rewarded) == cli.main(rewarded) == 0
    assert [pool["rewards"] for pool in lines(tmp_path / "e", "pools.jsonl")] == [[1.0, 1.0]] * 2
    header = json.loads((tmp_path / "e/eval.json").read_text())
    assert header["code"] == f"1 * {source.pin(f'{mine}:one')}"
    assert cli.main(words) == 2
    mine.write_text("def one(problem, text): return 0.5\n")
    capsys.readouterr()
    assert cli.main(rewarded) == 2
    assert "holds another evaluation" in capsys.readouterr().err


def test_the_tasks_own_grade() -> None:
    task = source.load("examples/task.py:Pairs")()
    problem = task.problem("train", 3)
    total = problem.meta["total"]
    assert task.problem("train", 3) == problem != task.problem("test", 3)
    assert task.grade(problem, f"\\boxed{{1, {total - 1}}}") == (f"1, {total - 1}", tf.Grade(1.0, "correct"))
    assert task.grade(problem, f"\\boxed{{1, {total}}}")[1].label == "wrong"
    assert task.grade(problem, "none")[1].label == "no_answer"


def test_the_recipe_imitates_what_was_right(tmp_path: Path) -> None:
    """Only targets are learnt, one for each token of the right solutions; options come from Python."""
    recipe = source.load("examples/recipe.py:Rejection")
    config = toml.override(SMALL, ["rollout.max_tokens=40", "task.choice=0", "log.rollouts=9"])
    last = tf.train(config, tmp_path / "run", recipe=partial(recipe, rollouts=6))
    assert last.name == "step-2"
    for line in lines(tmp_path / "run"):
        assert line["policy_loss"] == 0 and line["target_loss"] > 0
    rows = [g for g in lines(tmp_path / "run", "rollouts.jsonl") if g["step"] == 0]
    assert [len(g["rollouts"]) for g in rows] == [6, 6]
    recorded = toml.load(Config, tmp_path / "run/config.toml").recipe
    assert isinstance(recorded, PythonRecipe)
    named = source.pin(f"{EXAMPLES / 'recipe.py'}:Rejection")
    assert recorded.source == f"<python>:partial({named}, rollouts=6)"


def test_the_recipe_by_name_and_the_engine(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--recipe.name=python", "--recipe.source=examples/recipe.py:Rejection"]
    words += ["--engine.name=python", "--engine.source=examples/engine.py:Counting"]
    run = trained(tmp_path, *[w for w in WORDS if "recipe" not in w], *words)
    drawn = sum(r["tokens"] for g in lines(run, "rollouts.jsonl") for r in g["rollouts"])
    assert f"{drawn} tokens drawn so far" in capfd.readouterr().out


def test_a_resume_with_other_code_is_refused(tmp_path: Path) -> None:
    """The typed and the recorded config both refuse changed code; with the same code the run continues."""
    mine = tmp_path / "mine.py"
    mine.write_text((EXAMPLES / "task.py").read_text())
    words = [*WORDS, "--task.name=python", f"--task.source={mine}:Pairs"]
    run = trained(tmp_path, *words)
    again = ["train", str(ROOT / "configs/rlv-sums.toml"), "--out", str(run), *words, "--resume"]
    recorded = ["train", str(run / "config.toml"), "--out", str(run), "--resume"]
    assert cli.main(again) == cli.main(recorded) == 0
    mine.write_text(mine.read_text() + "\n")
    assert cli.main(again) == cli.main(recorded) == 2


def test_objects_given_in_python(tmp_path: Path) -> None:
    """An engine's class is recorded by its file. An object is recorded with its fields, and no file can make it again: a resume
    needs the same object."""
    task = source.load("examples/task.py:Pairs")()
    task.level = 3
    engine = source.load("examples/engine.py:Counting")
    config = toml.override(SMALL, ["train.steps=1", "train.save_every=1"])
    tf.train(config, tmp_path / "run", task=task, engine=engine)
    recorded = toml.load(Config, tmp_path / "run/config.toml")
    assert isinstance(recorded.engine, PythonEngine)
    assert recorded.engine.source == source.pin(f"{EXAMPLES / 'engine.py'}:Counting")
    assert isinstance(recorded.task, PythonTask) and recorded.task.source.endswith("{'level': 3}")
    assert tf.train(config, tmp_path / "run", task=task, engine=engine, resume=True).name == "step-1"
    task.level = 4
    with pytest.raises(ValueError, match=r"was made with another config \(task.source = "):
        tf.train(config, tmp_path / "run", task=task, engine=engine, resume=True)
    with pytest.raises(ValueError, match="was given in Python and is in no file as it was: give it in Python again"):
        tf.train(recorded, tmp_path / "run", resume=True)


def test_a_task_of_the_package_is_recorded_as_the_config_that_it_is(tmp_path: Path) -> None:
    config = toml.override(SMALL, ["train.steps=1"])
    tf.train(config, tmp_path / "run", task=Sums(level=4, choice=0))
    assert toml.load(Config, tmp_path / "run/config.toml").task == Sums(level=4, choice=0)


def test_what_a_recipe_must_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a recipe must be a tf\.Recipe, and this one made 7"):
        tf.train(SMALL, tmp_path / "run", recipe=lambda setup: 7)  # type: ignore[arg-type, return-value]


def test_a_run_that_cannot_begin_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    config = toml.override(SMALL, ["train.steps=1", "eval.every=1", "eval.task=gone.jsonl"])
    with pytest.raises((ValueError, OSError)):
        tf.train(config, tmp_path / "run")
    tf.train(toml.override(config, ["eval.every=0"]), tmp_path / "run")


@pytest.mark.parametrize(
    ("verify", "judge"), [("bce", "head"), ("separate", "p_yes of verifier"), ("generative", "p_yes")]
)
def test_what_was_trained_to_judge_judges_while_training(verify: str, judge: str, tmp_path: Path) -> None:
    """The figures and the rollouts' scores are those of the head, or of the second model, as a later evaluation finds them."""
    words = ["train.steps=1", "eval.every=1", "eval.problems=3", "eval.n=2", f"recipe.verify={verify}", "optim.lr=1e-3"]
    last = tf.train(toml.override(SMALL, words), tmp_path / "run")
    header = json.loads((tmp_path / "run/evals/step-1/eval.json").read_text())
    assert header["judge"] == judge
    verifier = tf.load(f"{last}/verifier") if verify == "separate" else None
    test = tf.Eval(problems=3, n=2, max_tokens=16, judge=Judging("head" if verify == "bce" else "p_yes"))
    out = tf.evaluate(tf.load(last), "sums", test, out=tmp_path / "e", verifier=verifier)
    while_training, later = (
        [s for pool in lines(folder, "pools.jsonl") for s in pool["scores"]]
        for folder in (tmp_path / "run/evals/step-1", out)
    )
    assert while_training == pytest.approx(later, abs=1e-5)


def test_evaluation_while_training_and_the_last_checkpoints(tmp_path: Path) -> None:
    """The figures equal those of a later evaluation of the same weights, and training is the same as without them."""
    config = toml.override(SMALL, ["train.steps=3", "train.save_every=1", "rollout.max_tokens=40"])
    tf.train(config, tmp_path / "plain")
    config = toml.override(config, ["train.keep=2", "eval.every=3", "eval.problems=4", "eval.n=2"])
    last = tf.train(config, tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == ["step-2", "step-3"]
    rows = lines(tmp_path / "run")
    assert "eval/pass@1" not in rows[1]
    model = tf.load(last)
    out = tf.evaluate(model, "sums", tf.Eval(problems=4, n=2, max_tokens=40), out=tmp_path / "later")
    pools = [json.loads(line) for line in (out / "pools.jsonl").read_text().splitlines()]
    right = [label == "correct" for pool in pools for label in pool["labels"]]
    assert rows[2]["eval/pass@1"] == pytest.approx(sum(right) / 8)
    assert rows[2].keys() >= {"eval/maj@2", "eval/weighted@2", "eval/auroc", "eval/balanced_accuracy", "eval/ece"}
    weights = [(tmp_path / run / "checkpoints/step-3/model.safetensors").read_bytes() for run in ("plain", "run")]
    assert weights[0] == weights[1]


def test_a_data_set_needs_a_test_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    config = toml.override(SMALL, ["task.name=data", f"task.source={tmp_path / 'd.jsonl'}", "eval.every=1"])
    with pytest.raises(ValueError, match=r"name another with eval\.task"):
        tf.train(config, tmp_path / "run")


def test_another_question_is_learnt_kept_and_asked(tmp_path: Path) -> None:
    question = "Is it right? Say Yes or No."
    config = toml.override(SMALL, ["train.steps=1", f"judge.question={question}"])
    last = tf.train(config, tmp_path / "run")
    assert tf.load(last).chat.question == question
    assert tf.load("tiny").chat.question == "Is this solution correct? Answer Yes or No."


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tf.train(SMALL, tmp_path / "run")
    capsys.readouterr()
    assert cli.main(["show", str(tmp_path / "run"), "--step", "0"]) == 0
    said = capsys.readouterr().out
    (first, second) = [g for g in lines(tmp_path / "run", "rollouts.jsonl") if g["step"] == 0]
    assert said.startswith(f"step 0  problem {first['id']}") and second["question"] in said
    assert all(f"verdict {r['p_yes']:.2f}" in said for r in first["rollouts"])
    assert cli.main(["show", str(tmp_path / "run"), "--step", "7"]) == 2
    assert "has no step 7; it has steps 0 to 1" in capsys.readouterr().err
    assert cli.main(["show", str(tmp_path)]) == 2
