"""Whole runs on a tiny model: the files that they write, bit-exact resuming, and errors that name the mistake."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from twofold import cli, run, toml, training
from twofold.compute.judge import question
from twofold.compute.rollout import draw
from twofold.config import ALIASES, Config, Data, Rollouts, Train
from twofold.engine_options import Vllm
from twofold.engines.native import NativeEngine
from twofold.evals.report import report
from twofold.maths.seeds import derive
from twofold.models.checkpoints import latest_checkpoint
from twofold.models.head import attach
from twofold.models.io import load_model
from twofold.recipes.pretrain import Pretrain
from twofold.recipes.rlv import RLV
from twofold.recipes.sft import SFT
from twofold.tasks.procedural import Sums
from twofold.tasks.stream import Problems
from twofold.trainer import checkpoint
from twofold.trainer.learner import Learner, Loss
from twofold.trainer.optim import Optim
from twofold.types import Sample, Sampling

ROOT = Path(__file__).parents[1]


def small(model: Path, **recipe: object) -> Config:
    return Config(
        model=str(model),
        recipe=RLV(**({"rollouts": 2} | recipe)),
        task=Sums(level=1),
        rollout=Rollouts(problems=2, max_tokens=6),
        optim=Optim(lr=1e-3, schedule="cosine"),
        train=Train(steps=4, save_every=2),
    )


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "small"
    assert training.train(small(tiny_model), out) == out / "checkpoints" / "step-4"
    return out


def killed_after_two_steps(finished: Path, out: Path) -> Path:
    """Leave what a run leaves that was killed in its fourth step: the checkpoint of step 2 and three lines of metrics."""
    shutil.copytree(finished, out)
    for name in os.listdir(out / "checkpoints"):
        if name.startswith("step-4"):
            shutil.rmtree(out / "checkpoints" / name)
    (out / "checkpoints" / "step-4.draft").mkdir()
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:3]) + '{"step": 3, "rew')
    return out


# ---------------------------------------------------------------- engines that keep a copy of the weights


class Copying(NativeEngine):
    """An engine with weights of its own, which ``load`` overwrites. It reads no scalar head."""

    def __init__(self, model):
        super().__init__(copy.deepcopy(model))

    def load(self, weights):
        self.model.load_state_dict(weights)
        self.rest()

    @property
    def values(self):
        raise AttributeError("values")


def test_an_engine_with_a_copy_of_the_weights_samples_from_those_that_are_resumed(tiny_model, tmp_path):
    """The engine is built before the checkpoint is read."""
    config = replace(small(tiny_model), optim=Optim(lr=1e-2))
    training.train(replace(config, train=Train(steps=2, save_every=2)), tmp_path / "run", engine=Copying)
    training.train(config, tmp_path / "run", engine=Copying, resume=True)
    assert [line["mismatch"] < 1e-5 for line in metrics(tmp_path / "run")] == [True] * 4


def test_a_scalar_head_needs_an_engine_that_reads_it(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="only the native engine reads a scalar head"):
        training.train(small(tiny_model, verify="bce"), tmp_path / "run", engine=Copying)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_that_is_not_installed_is_an_error_that_says_what_to_install(tiny_model, tmp_path, capsys):
    (tmp_path / "config.toml").write_text(toml.to_toml(replace(small(tiny_model), engine=Vllm())))
    assert cli.main(["train", str(tmp_path / "config.toml"), "--out", str(tmp_path / "run")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert 'engine.name = "vllm" needs vLLM' in said and "pip install 'twofold[vllm]'" in said


# ---------------------------------------------------------------- what a run leaves behind


def test_a_run_directory(finished, tiny_model):
    assert sorted(os.listdir(finished)) == [".lock", "checkpoints", "config.toml", "metrics.jsonl", "rollouts.jsonl"]
    assert sorted(os.listdir(finished / "checkpoints")) == ["step-2", "step-4"]
    assert toml.load(Config, finished / "config.toml") == small(tiny_model)


def test_metrics(finished, tiny_model):
    lines = metrics(finished)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    promised = {
        "reward", "reward_std", "frac_reward_zero_std", "completions/mean_length", "completions/clipped_ratio", "labels/no_answer",
        "lambda", "loss", "policy_loss", "target_loss", "entropy", "clip_ratio", "mismatch", "grad_norm", "lr", "num_tokens",
        "skipped", "step_time", "collect_time", "update_time",
    }  # fmt: skip
    assert all(promised <= line.keys() for line in lines)
    assert (
        "verifier/auroc" in lines[0] and lines[0]["verifier/auroc"] is None
    )  # one class only: not a number, in JSON null
    assert all(line["mismatch"] < 1e-5 for line in lines)  # the engine samples from the weights of this step
    start, trained = run.load(tiny_model), run.load(finished)
    questions = [small(tiny_model).task.problem("train", i).question for i in range(2)]  # those of the first step
    sampling = Sampling(2, max_tokens=6, stop=start.chat.stop, seed=derive(0, 0))
    solved = [r for group in draw(start.engine, start.chat, questions, sampling) for r in group]
    before, after = (
        [lp for (lp,) in m.engine.logprobs([question(m.chat, r) for r in solved], [[m.chat.yes_no_ids[1]]] * 4)]
        for m in (start, trained)
    )
    assert lines[0]["target_loss"] == pytest.approx(-sum(before) / 4, rel=1e-4)
    assert sum(after) > sum(before)  # "No" is right every time, and becomes likelier after the same solutions


def test_there_is_no_pickle(finished):
    files = [p for p in finished.rglob("*") if p.is_file()]
    assert {p.suffix for p in files if p.name != ".lock"} <= {".toml", ".jsonl", ".json", ".safetensors", ".jinja"}
    assert not any(p.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05") for p in files)


@pytest.mark.parametrize("fixture", ["tiny_model", "tiny_qwen"])
def test_checkpoints_are_plain_transformers_models(fixture, request, tmp_path):
    """This also holds with tied embeddings, and with a scalar head, which is saved in a file of its own."""
    path = request.getfixturevalue(fixture)
    model, tokenizer = load_model(path)
    attach(model, "bce")
    learned = Learner(model, Optim(lr=1e-2, warmup=0.0), Loss(), steps=1)
    tokens = [20, 21, 22, 23]
    learned.update([Sample(tokens, [False] * 4, [0.0] * 4, [0.0] * 4, [0.0, 1.0, 1.0, 1.0], values=[(3, 1.0, 1.0)])])
    saved = checkpoint.save(
        tmp_path, 1, {"policy": learned}, tokenizer, state={}, chat={"question": "Is it?"}, inputs={}
    )
    loaded, report = AutoModelForCausalLM.from_pretrained(saved, attn_implementation="sdpa", output_loading_info=True)
    assert not any(report.values())  # nothing missing, nothing unexpected
    theirs = AutoModelForCausalLM.from_pretrained(path, attn_implementation="sdpa")
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("value_head")}
    theirs.load_state_dict(weights)
    ids = torch.tensor([tokens])
    assert torch.equal(loaded(ids).logits, theirs(ids).logits)
    assert AutoTokenizer.from_pretrained(saved).chat_template == tokenizer.chat_template
    assert torch.equal(load_file(saved / "head" / "value_head.safetensors")["weight"], model.value_head.weight)


def test_a_run_directory_is_a_model(finished):
    """A run directory stands for its newest checkpoint."""
    model = run.load(finished).engine.model
    saved = load_file(finished / "checkpoints" / "step-4" / "model.safetensors")
    assert all(torch.equal(model.get_parameter(name), value) for name, value in saved.items())


# ---------------------------------------------------------------- resuming


def same(a: Path, b: Path) -> bool:
    """Return whether two checkpoints have the same files, the models of all roles and the manifests among them."""
    files, others = ({str(p.relative_to(x)): p.read_bytes() for p in x.rglob("*") if p.is_file()} for x in (a, b))
    return len(files) > 5 and files == others


def test_resuming_is_bit_exact(finished, tiny_model, tmp_path):
    out = killed_after_two_steps(finished, tmp_path / "killed")
    assert training.train(small(tiny_model), out, resume=True) == out / "checkpoints" / "step-4"
    assert same(finished / "checkpoints" / "step-4", out / "checkpoints" / "step-4")
    clocks = {"step_time", "collect_time", "update_time"}
    ours, theirs = (
        [{k: v for k, v in line.items() if k not in clocks} for line in metrics(x)] for x in (out, finished)
    )
    assert ours == theirs  # every step once, though step 2 was done twice


@pytest.mark.parametrize(
    ("fixture", "optim", "recipe"),
    [
        ("tiny_qwen", Optim("muon", lr=1e-2, schedule="linear"), {}),
        ("tiny_model", Optim(lr=1e-3, schedule="linear"), {"verify": "separate", "lam_warmup": 4}),
        ("tiny_model", Optim(lr=1e-3), {"verify": "bce", "estimator": "vineppo", "vine_k": 2}),
    ],
)
def test_resuming_is_bit_exact_in_every_mode(fixture, optim, recipe, request, tmp_path):
    config = small(request.getfixturevalue(fixture), **recipe)
    config = replace(
        config, optim=optim, loss=Loss(beta=0.1), train=Train(steps=4, save_every=2, epochs=2, minibatches=2)
    )
    straight = tmp_path / "straight"
    training.train(config, straight)
    out = killed_after_two_steps(straight, tmp_path / "killed")
    training.train(config, out, resume=True)
    last = straight / "checkpoints" / "step-4"
    assert (last / "verifier" / "model.safetensors").is_file() == (recipe.get("verify") == "separate")
    assert same(last, out / "checkpoints" / "step-4")
    assert not same(last, straight / "checkpoints" / "step-2")


def test_resuming_a_finished_run_changes_nothing(finished, tiny_model, tmp_path):
    out = shutil.copytree(finished, tmp_path / "again")
    assert training.train(small(tiny_model), out, resume=True) == out / "checkpoints" / "step-4"
    assert same(finished / "checkpoints" / "step-4", out / "checkpoints" / "step-4")
    assert metrics(out) == metrics(finished)


def test_resuming_before_the_first_checkpoint_begins_at_the_beginning(tiny_model, finished, tmp_path):
    out = tmp_path / "early"
    out.mkdir()
    shutil.copy(finished / "config.toml", out)
    (out / "metrics.jsonl").write_text((finished / "metrics.jsonl").read_text().splitlines(keepends=True)[0])
    training.train(small(tiny_model), out, resume=True)
    assert same(finished / "checkpoints" / "step-4", out / "checkpoints" / "step-4")
    assert [line["step"] for line in metrics(out)] == [0, 1, 2, 3]


def test_a_run_may_be_made_longer(finished, tiny_model, tmp_path):
    out = shutil.copytree(finished, tmp_path / "longer")
    longer = replace(small(tiny_model), train=Train(steps=6, save_every=2))
    assert training.train(longer, out, resume=True) == out / "checkpoints" / "step-6"
    assert [line["step"] for line in metrics(out)] == list(range(6))
    assert metrics(out)[:4] == metrics(finished) and toml.load(Config, out / "config.toml") == longer
    with pytest.raises(ValueError, match=r"train\.steps = 4, was 6"):  # what it learnt cannot be taken back
        training.train(small(tiny_model), out, resume=True)


def test_a_run_that_is_not_there_cannot_be_resumed(tiny_model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run that could be resumed: leave out --resume"):
        training.train(small(tiny_model), tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()


def test_a_run_without_evaluations_has_a_report(finished, tmp_path, capsys):
    found = report([str(finished)], tmp_path)
    assert found.headline == "The training of small, without an evaluation." and not found.tasks
    assert found.training[0].metrics["target_loss"].steps == [0, 1, 2, 3]
    assert "Loss of the targets" in (tmp_path / "report.html").read_text()
    assert cli.main(["report", str(finished), "--out", str(tmp_path)]) == 0
    assert found.headline in capsys.readouterr().out


def test_a_run_is_not_overwritten(finished, tiny_model):
    before = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match=r"already holds a run.*--resume.*--out"):
        training.train(small(tiny_model), finished)
    assert (finished / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"optim": Optim(lr=2e-3, schedule="cosine")}, r"optim\.lr.*0\.002"),
        ({"train": Train(steps=4, save_every=2, seed=1)}, r"train\.seed.*1"),
        ({"task": Sums(level=4)}, r"task\.level.*4"),  # there is a "... = 4" elsewhere
        ({"recipe": SFT()}, r"recipe\.name.*sft"),
        ({"system": "Be brief."}, r"system.*Be brief"),
    ],
)
def test_another_config_is_refused_by_name(finished, tiny_model, change, named):
    with pytest.raises(ValueError, match=f"made with another config.*{named}"):
        training.train(replace(small(tiny_model), **change), finished, resume=True)
    assert toml.load(Config, finished / "config.toml") == small(tiny_model)


def test_a_run_that_never_began_leaves_nothing_in_the_way(tiny_model, tmp_path):
    """A run that failed on a wrong model name leaves nothing, so that the corrected command may start it."""
    with pytest.raises(OSError):
        training.train(replace(small(tiny_model), model=str(tmp_path / "nowhere")), tmp_path / "out")
    assert not (tmp_path / "out" / "config.toml").exists()


def test_the_newest_checkpoint_is_that_of_the_latest_step(tmp_path):
    """A draft, and what is damaged and set aside, is none. (By name, step-10 comes before step-2.)"""
    for name in ("step-2", "step-10", "step-30-verifier", "step-40.draft", "step-50.damaged"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-10"
    assert latest_checkpoint(tmp_path / "none") is None


def test_weights_of_another_model_are_refused(finished, tiny_qwen):
    other = Learner(load_model(tiny_qwen)[0], Optim(), Loss(), steps=1)
    before = copy.deepcopy(other.model.state_dict())
    with pytest.raises(ValueError, match=r"holds another model.*bias"):
        checkpoint.restore(finished / "checkpoints" / "step-4", other)
    assert all(torch.equal(x, other.model.state_dict()[name]) for name, x in before.items())


# ---------------------------------------------------------------- other recipes


def test_sft_learns_a_file_of_solutions(tiny_model, tmp_path):
    rows = [
        {"question": f"What is {n}+1?", "solution": f"{n}+1={n + 1}\n\\boxed{{{n + 1}}}", "answer": str(n + 1)}
        for n in range(6)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Config(
        model=str(tiny_model), recipe=SFT(), task=Data(source=str(tmp_path / "sums.jsonl")), rollout=Rollouts(problems=6),
        optim=Optim(lr=1e-2, warmup=0.0), train=Train(steps=12, save_every=0),
    )  # fmt: skip
    last = training.train(config, tmp_path / "run")
    losses = [line["target_loss"] for line in metrics(tmp_path / "run")]
    assert losses[-1] < 0.5 * losses[0]
    assert os.listdir(tmp_path / "run" / "checkpoints") == [last.name] == ["step-12"]


def test_problems_are_a_pure_function_of_the_step(tiny_model, tmp_path):
    """Each epoch has every row of a data set once, in a new order; no two seeds share a procedural problem."""
    (tmp_path / "six.jsonl").write_text(
        "".join(json.dumps({"question": f"q{n}", "answer": str(n)}) + "\n" for n in range(6))
    )
    config = replace(small(tiny_model), task=Data(source=str(tmp_path / "six.jsonl")), rollout=Rollouts(problems=3))
    of_step = Problems(run.make_task(config.task), 3, config.train.seed)
    epochs = [[p.question for step in (2 * e, 2 * e + 1) for p in of_step(step)] for e in range(6)]
    assert all(sorted(epoch) == [f"q{n}" for n in range(6)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    again = Problems(run.make_task(config.task), 3, config.train.seed)
    assert [p.question for p in again(3)] == [p.question for p in of_step(3)]
    ids = [{p.id for s in range(50) for p in Problems(Sums(), 2, seed)(s)} for seed in (0, 1)]
    assert len(ids[0]) == len(ids[1]) == 100 and not ids[0] & ids[1]


@pytest.mark.slow
def test_a_base_model_from_nothing(tmp_path):
    config = Config(
        recipe=Pretrain(hidden=32, layers=1, ffn=64, documents=8), optim=Optim("muon", lr=4e-3, warmup=0.0),
        train=Train(steps=30, save_every=0),
    )  # fmt: skip
    last = training.train(config, tmp_path / "run")
    losses = [line["target_loss"] for line in metrics(tmp_path / "run")]
    assert losses[-1] < losses[0] - 1
    assert AutoModelForCausalLM.from_pretrained(last).config.num_hidden_layers == 1
    assert run.load(last).chat.yes_no_ids


# ---------------------------------------------------------------- the command line


@pytest.fixture
def small_toml(tiny_model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(toml.to_toml(small(tiny_model)))
    return path


def test_dry_run_prints_a_config_that_reads_back(small_toml, tiny_model, tmp_path, capsys):
    assert cli.main(["train", str(small_toml), "--optim.lr", "3e-5", "recipe.estimator=vineppo", "--dry-run"]) == 0
    (tmp_path / "printed.toml").write_text(capsys.readouterr().out)
    expected = replace(small(tiny_model, estimator="vineppo"), optim=Optim(lr=3e-5, schedule="cosine"))
    assert toml.load(Config, tmp_path / "printed.toml") == expected


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--optim.warmpu=0.1", "did you mean --optim.warmup"),
        ("--learning_rate=1e-6", "twofold calls it --optim.lr"),
        ("--recipe.hidden=3", "option of another --recipe.name"),
        ("--train.steps=many", "--train.steps must be a whole number"),
    ],
)
def test_a_wrong_option_is_named_with_its_remedy(small_toml, option, hint, capsys):
    assert cli.main(["train", str(small_toml), option, "--dry-run"]) == 2
    said = capsys.readouterr()
    assert hint in said.err and said.err.count("\n") == 1 and not said.out


def test_an_existing_run_is_a_one_line_error(small_toml, finished, capsys):
    assert cli.main(["train", str(small_toml), "--out", str(finished)]) == 2
    assert re.fullmatch(r"twofold: .* already holds a run: .*--resume.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_configs_fit(path):
    assert toml.load(Config, path, ALIASES)


def test_the_qwen_config_trains_a_qwen(tiny_qwen, tmp_path, monkeypatch):
    """The published config (bfloat16, checkpointing, MATH's columns) trains random weights with that model's chat format."""
    rows = [
        {"problem": f"What is {i} + {i}?", "solution": f"It is $\\boxed{{{2 * i}}}$.", "level": "1"} for i in range(8)
    ]
    (tmp_path / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = toml.override(
        toml.load(Config, ROOT / "configs" / "rlv-qwen2.5-math-1.5b.toml"),
        [f"model={tiny_qwen}", f"task.source={tmp_path / 'math.jsonl'}", "rollout.problems=4", "rollout.max_tokens=12",
         "recipe.rollouts=3", "train.steps=2", "optim.lr=1e-3"],
    )  # fmt: skip
    batches: list[list[Sample]] = []
    update = Learner.update
    monkeypatch.setattr(Learner, "update", lambda self, samples: batches.append(samples) or update(self, samples))
    last = training.train(config, tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(last)
    rollouts = [
        [s for s in b if any(s.sampled)] for b in batches
    ]  # one with control tokens inside is judged in a sample of its own
    assert [len(b) for b in rollouts] == [12, 12]
    assert all(sum(any(s.targets) for s in b) == 12 for b in batches)
    for sample in (s for s in batches[0] if any(s.targets)):
        text = tokenizer.decode(sample.tokens)
        assert text.startswith("<|im_start|>system\nPlease reason step by step")
        assert (
            "<|im_start|>user\nIs this solution correct? Answer Yes or No.<|im_end|>\n<|im_start|>assistant\n" in text
        )
        verdict = [tokenizer.decode([t]) for t, w in zip(sample.tokens, sample.targets, strict=True) if w]
        assert verdict in (["Yes"], ["No"]) and text.endswith(verdict[0])
    assert all(math.isfinite(line["target_loss"]) and not line["skipped"] for line in metrics(tmp_path / "run"))
    before, after = (AutoModelForCausalLM.from_pretrained(d).state_dict() for d in (tiny_qwen, last))
    assert before.keys() == after.keys() and any(not torch.equal(before[k], after[k]) for k in before)


REAL = [
    "rlv-qwen2.5-math-1.5b",
    "rlv-grpo-qwen2.5-math-1.5b",
    "rlv-vineppo-qwen2.5-math-1.5b",
    "rlv-r1-distill-qwen-1.5b",
    "rlv-qwen2.5-math-7b",
]


@pytest.mark.parametrize("name", REAL)
def test_a_config_of_a_real_model_prints_itself_and_takes_a_step(name, tiny_qwen, tmp_path, capsys):
    """As it stands with ``--dry-run``, and with its budgets cut on random weights of that architecture."""
    path = ROOT / "configs" / f"{name}.toml"
    assert cli.main(["train", str(path), "--dry-run"]) == 0
    (tmp_path / "printed.toml").write_text(capsys.readouterr().out)
    assert toml.load(Config, tmp_path / "printed.toml") == toml.load(Config, path)
    rows = [{"problem": f"What is {i} + {i}?", "solution": f"$\\boxed{{{2 * i}}}$", "level": "1"} for i in range(4)]
    (tmp_path / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        f"model={tiny_qwen}",
        f"task.source={tmp_path / 'math.jsonl'}",
        "rollout.problems=4",
        "rollout.max_tokens=8",
    ]
    words += ["recipe.rollouts=2", "recipe.vine_k=2", "train.steps=1", "train.save_every=0", "log.rollouts=0"]
    assert cli.main(["train", str(path), "--out", str(tmp_path / "run"), *words]) == 0
    (line,) = metrics(tmp_path / "run")
    assert math.isfinite(line["target_loss"]) and line["grad_norm"] > 0 and not line["skipped"]


def test_aliases_lead_to_options_that_exist():
    assert {name for name in ALIASES.values() if not name.startswith("--")} <= set(toml.options(Config))


@pytest.mark.timeout(300)  # a process of its own, which on a busy machine takes its time to start
def test_sigterm_finishes_the_step_saves_and_can_be_resumed(tiny_model, tmp_path, capsys):
    config = replace(small(tiny_model), rollout=Rollouts(problems=4, max_tokens=24), train=Train(steps=8, save_every=0))
    (tmp_path / "long.toml").write_text(toml.to_toml(config))
    out = tmp_path / "run"
    arguments = ["train", str(tmp_path / "long.toml"), "--out", str(out)]
    lines = out / "metrics.jsonl"
    child = subprocess.Popen(
        [sys.executable, "-m", "twofold.cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    try:
        while child.poll() is None and not (lines.is_file() and lines.read_bytes()):
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        said, _ = child.communicate()
    finally:
        child.kill()
    assert child.returncode == 3, said
    done = len(metrics(out))
    assert 1 <= done < 8
    assert os.listdir(out / "checkpoints") == [f"step-{done}"]
    assert "finishing the step, then saving; a second Ctrl-C leaves now" in said
    assert f"stopped after step {done}; saved" in said and "--resume" in said.replace("\n", " ")
    assert cli.main([*arguments, "--resume"]) == 0
    assert f"resuming {out} at step {done}" in capsys.readouterr().out.replace("\n", "")
    assert [line["step"] for line in metrics(out)] == list(range(8))
    assert latest_checkpoint(out) == out / "checkpoints" / "step-8"


def test_options_change_only_on_purpose():
    """Users write these names in their configs, so removing one breaks their runs."""
    assert toml.options(Config) == OPTIONS


OPTIONS = [
    "model", "model_backend", "system", "reward", "reward_weights", "recipe.name", "recipe.estimator", "recipe.verify", "recipe.lam",
    "recipe.lam_warmup", "recipe.verify_warmup", "recipe.balance", "recipe.truncated", "recipe.adversarial",
    "recipe.rollouts", "recipe.refills", "recipe.vine_k",
    "recipe.last_token.token", "recipe.last_token.scale", "recipe.last_token.reference", "recipe.last_token.after",
    "recipe.last_token.mix", "recipe.last_token.mix_after",
    "recipe.score_every", "recipe.method", "recipe.alpha", "recipe.source", "recipe.bonus", "recipe.branches", "recipe.where",
    "recipe.answers", "recipe.progress", "recipe.reward_to_go", "recipe.keep", "recipe.penalty",
    "recipe.prover.opening", "recipe.prover.hurry",
    "recipe.prover.end", "recipe.prover.answer", "recipe.prover.tokens", "recipe.episodes.shortest", "recipe.episodes.most",
    "recipe.episodes.group", "recipe.episodes.marks", "recipe.continuations", "recipe.learn", "recipe.share", "recipe.verifier",
    "recipe.generator_updates", "recipe.verifier_updates", "recipe.verifier_warmup", "recipe.alpha_min", "recipe.credit",
    "recipe.verifications", "recipe.verifier_learns", "recipe.format", "recipe.class_weights", "recipe.ema", "recipe.consistency",
    "recipe.step_labels", "recipe.label_ratio", "recipe.cut", "recipe.question", "recipe.verifier_tokens", "recipe.hidden",
    "recipe.layers", "recipe.heads", "recipe.ffn", "recipe.vocabulary", "recipe.documents", "recipe.mix.countdown",
    "recipe.mix.letters", "recipe.mix.choice", "recipe.mix.think", "recipe.mix.critique", "recipe.mix.facts",
    "recipe.mix.words", "recipe.mix.late", "recipe.mix.wrong_guess", "recipe.mix.slip", "recipe.mix.planted_guess",
    "recipe.mix.planted_slip", "task.level", "task.choice", "task.choices", "task.operations", "task.top", "task.seed",
    "task.name", "task.source", "task.split", "task.prompt_column", "task.answer_column", "task.solution_column", "task.extract",
    "task.skip_bad", "task.skip_long", "task.task", "rollout.problems",
    "rollout.temperature", "rollout.max_tokens", "chat.enable_thinking", "chat.think_end", "chat.opening", "judge.question",
    "engine.name", "engine.exact", "engine.max_rows", "engine.context", "engine.kv_gib", "engine.eager", "engine.sleep",
    "engine.deadline", "engine.url", "engine.exchange", "engine.workers", "engine.address", "engine.cpus",
    "engine.gpus", "engine.timeout", "engine.source", "optim.name", "optim.lr", "optim.schedule", "optim.warmup",
    "optim.hold", "optim.final", "optim.beta1", "optim.beta2", "optim.weight_decay", "optim.clip", "loss.kind", "loss.clip_low",
    "loss.clip_high", "loss.cap", "loss.normalise", "loss.constant", "loss.correction",
    "loss.correction_cap", "loss.beta", "lora.rank", "lora.alpha", "lora.targets", "lora.quantise", "train.steps", "train.seed",
    "train.epochs", "train.minibatches", "train.ahead", "train.micro_tokens", "train.precision", "train.checkpointing",
    "train.shard",
    "train.save_every", "train.keep", "eval.every", "eval.task", "eval.problems", "eval.n", "log.to", "log.rollouts",
]  # fmt: skip
