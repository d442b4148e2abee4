"""One run in many processes (gloo) gives what one process gives: gradients, rollouts, weights, files; and ends when one dies."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dist_worker import gradient, without_last_step
from safetensors.torch import load_file

from twofold import toml, training
from twofold.config import Config, EvalOptions, LoraOptions, Rollouts, Train
from twofold.engine_options import PythonEngine
from twofold.engines.base import route
from twofold.engines.native import NativeEngine
from twofold.maths.losses import Loss
from twofold.models import head
from twofold.models.io import load_model
from twofold.recipes.mrt import MRT, Episodes, Prover
from twofold.recipes.rlv import RLV
from twofold.recipes.tango import Tango
from twofold.tasks.procedural import Sums
from twofold.trainer.dist import SharedEngine, Team
from twofold.trainer.learner import Learner
from twofold.trainer.optim import Optim
from twofold.types import Completion, Sampling

WORKER = Path(__file__).parent / "dist_worker.py"
ROOT = Path(__file__).parents[1]
MICRO_TOKENS = (16, 4096)
REWARD = """import os

def reward(problem, text):
    with open(os.environ["CALLS"], "a") as file:
        file.write("x\\n")
    return float(sum(map(ord, text)) % 5)
"""
"""A number that depends on the text, so that there is something to learn. Every call leaves a line."""


def config(model: Path, recipe: Any, **train: Any) -> Config:
    rewards = model.parent / "rewards.py"
    rewards.write_text(REWARD)
    return Config(
        model=str(model),
        reward=(f"{rewards}:reward",),
        recipe=recipe,
        task=Sums(level=1),
        rollout=Rollouts(problems=5, max_tokens=6),
        optim=Optim(lr=1e-3, schedule="cosine", clip=0.1),
        train=Train(**({"steps": 2, "save_every": 1} | train)),
    )


def recipes(model: Path) -> dict[str, Config]:
    """Return a config for each recipe, with what it computes over a whole step, one with two adapters on one model, and three whose
    weights are cut among the ranks."""
    prover = Prover(hurry="", end="Yes", answer="\n", tokens=4)
    return {
        "rlv": replace(
            config(model, RLV(rollouts=3, balance="balanced", refills=1), epochs=2, minibatches=2),
            eval=EvalOptions(every=2, problems=3, n=2),
        ),
        "mrt": config(model, MRT(rollouts=2, method="online", answers=2, prover=prover, episodes=Episodes(shortest=1))),
        "lora": replace(config(model, RLV(rollouts=2, verify="separate")), lora=LoraOptions(rank=4)),
        "sharded": replace(  # two models, each with a reference policy, and a gradient that is clipped by its streams
            config(model, RLV(rollouts=3, verify="separate"), epochs=2, shard=True), loss=Loss(beta=0.1)
        ),
        "cut_module": replace(config(model, RLV(rollouts=2), shard=True), model_backend="module"),
        "cut_lora": replace(config(model, RLV(rollouts=2), shard=True, checkpointing=True), lora=LoraOptions(rank=4)),
        "tango": config(
            model, Tango(rollouts=2, share=False, verifier_warmup=1, estimator="reinforce++", verifier_tokens=6)
        ),
    }


def launched(ranks: int, folder: Path, **jobs: Any) -> subprocess.CompletedProcess[str]:
    """Run these jobs under torchrun. When a rank dies, it waits for 10 seconds, in which rank 0 can see and say it."""
    told = folder / f"jobs-{ranks}.json"
    told.write_text(json.dumps(jobs, default=asdict))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["--monitor-interval", "10"]
    paths = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "CALLS": str(folder / f"calls-{ranks}")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, WORKER, told], capture_output=True, text=True, env=environment, timeout=280)


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make all runs in one process."""
    made = tmp_path_factory.mktemp("ranks")
    os.environ["CALLS"] = str(made / "calls-1")
    for name, chosen in recipes(tiny_model).items():
        training.train(chosen, made / f"{name}-1")
    return made


@pytest.fixture(scope="module")
def two(folder: Path, tiny_model: Path) -> Path:
    return many(folder, tiny_model, 2)


@pytest.fixture(scope="module")
def four(folder: Path, tiny_model: Path) -> Path:
    return many(folder, tiny_model, 4)


def many(folder: Path, model: Path, ranks: int) -> Path:
    """Make all runs in many processes, and the gradient in two ways; and at last a run whose rank 1 dies, which ends them all."""
    runs = [(chosen, f"{folder / name}-{ranks}") for name, chosen in recipes(model).items()]
    resumed = [(chosen, out, f"{out}-resumed") for chosen, out in runs if Path(out).name.startswith(("rlv", "sharded"))]
    gradients, sharded = (
        [(str(model), n, f"{folder}/{name}-{ranks}-{n}.safetensors") for n in MICRO_TOKENS]
        for name in ("gradient", "sharded")
    )
    dying = replace(config(model, RLV(rollouts=2)), engine=PythonEngine(source=f"{WORKER}:Dying"))
    last = [(dying, f"{folder}/dying-{ranks}")]
    run = launched(ranks, folder, runs=runs, resumed=resumed, gradients=gradients, sharded=sharded, dying=last)
    assert run.returncode != 0 and "rank 0 has lost rank 1" in run.stderr, run.stderr
    assert Path(last[0][1]).is_dir(), run.stderr  # it is the last run that ended them
    return folder


def weights(run: Path, step: int, role: str = "") -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step-{step}" / role
    return load_file(next(iter(folder.glob("*model.safetensors"))))


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([(a[name] - b[name]).flatten() for name in a]).norm())


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: math.nan if v is None else v for k, v in line.items() if not k.endswith("_time")} for line in lines]


def texts(run: Path) -> list[Any]:
    groups = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    return [(g["step"], g["id"], [(r["text"], r["reward"]) for r in g["rollouts"]]) for g in groups]


# ---------------------------------------------------------------- the same as one process


def check_gradients(folder: Path, model: Path, ranks: int) -> None:
    """Compare the gradient of ``dist_worker.samples`` with that of one process, which divides it otherwise."""
    for name, parts_of in (
        ("gradient", {"policy_loss", "target_loss", "value_loss"}),
        ("sharded", {"policy_loss", "target_loss"}),
    ):
        expected, numbers = gradient(Learner, str(model), 100, head=name == "gradient")
        whole = torch.cat([g.flatten() for _, g in sorted(expected.items())])
        for micro_tokens in MICRO_TOKENS:
            found = load_file(folder / f"{name}-{ranks}-{micro_tokens}.safetensors")
            assert found.keys() == expected.keys()
            gap = torch.cat([g.flatten() for _, g in sorted(found.items())]) - whole
            assert float(gap.norm()) <= 1e-6 * float(whole.norm()), micro_tokens
            parts = json.loads((folder / f"{name}-{ranks}-{micro_tokens}.json").read_text())
            held, refused = parts.pop("held", []), parts.pop("refused", "")
            assert ("vLLM samples for one learner, and this run has several" in refused) == (name == "sharded")
            assert parts == pytest.approx(numbers, rel=1e-5) and parts_of <= parts.keys()
            assert held == pytest.approx([1 / ranks] * len(held), rel=0.05) and len(held) == (name == "sharded") * ranks


def check_run(folder: Path, name: str, ranks: int) -> None:
    """Compare a run with the same run in one process: texts, rewards, numbers, weights and the names of all files."""
    one, many = folder / f"{name}-1", folder / f"{name}-{ranks}"
    assert texts(many) == texts(one)
    for a, b in zip(metrics(one), metrics(many), strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-5, nan_ok=True)
    assert any(line.get("grad_norm", 0) > 0 for line in metrics(one))
    moved = distance(weights(one, 1), weights(one, 2))
    assert moved > 0.01
    for role in ("", "verifier") if name in ("lora", "tango", "sharded") else ("",):
        assert distance(weights(one, 2, role), weights(many, 2, role)) < 1e-3 * moved
    files = [{str(p.relative_to(run)) for p in run.rglob("*")} for run in (one, many)]
    assert files[0] == files[1]
    assert (one / "config.toml").read_text() == (many / "config.toml").read_text()


@pytest.mark.timeout(300)
def test_the_gradient_is_that_of_one_process_however_it_is_divided(two, tiny_model):
    check_gradients(two, tiny_model, 2)


@pytest.mark.parametrize("name", ["rlv", "mrt", "lora", "tango", "sharded", "cut_module", "cut_lora"])
def test_a_run_is_that_of_one_process(two, name):
    check_run(two, name, 2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_four_ranks_are_one_process_too(four, tiny_model):
    check_gradients(four, tiny_model, 4)
    for name in recipes(tiny_model):
        check_run(four, name, 4)


def test_every_rollout_is_graded_once(two):
    calls = [len((two / f"calls-{n}").read_text().splitlines()) for n in (1, 2)]
    assert calls[0] == calls[1] > 0


# ---------------------------------------------------------------- resuming, and the end


@pytest.mark.parametrize("name", ["rlv", "sharded"])
def test_a_run_resumes_on_the_same_ranks_to_the_bit(two, name):
    whole, resumed = two / f"{name}-2", two / f"{name}-2-resumed"
    assert all(torch.equal(weight, weights(whole, 2)[name]) for name, weight in weights(resumed, 2).items())
    for a, b in zip(metrics(whole), metrics(resumed), strict=True):
        assert b == pytest.approx(a, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("name", ["rlv", "sharded"])
def test_a_run_resumes_on_another_number_of_ranks(two, name, tiny_model, tmp_path):
    without_last_step(two / f"{name}-2", tmp_path / "one")
    training.train(recipes(tiny_model)[name], tmp_path / "one", resume=True)
    start, whole = (weights(two / f"{name}-2", step) for step in (1, 2))
    assert distance(weights(tmp_path / "one", 2), whole) < 1e-3 * distance(start, whole)


def test_all_ranks_end_when_one_dies_and_what_was_saved_stays(two):
    """``many`` has seen that they ended, and that rank 0 said whom it had lost."""
    assert [path.name for path in (two / "dying-2" / "checkpoints").iterdir()] == ["step-1"]


# ---------------------------------------------------------------- who samples what


class Echo:
    """An engine whose completions say which prompts it has had."""

    def generate(self, prompts: Any, sampling: Sampling, finished: Any) -> Any:
        groups = [[Completion([*p, j], [0.0], [True], "stop") for j in range(sampling.n)] for p in prompts]
        for i, group in enumerate(groups):
            for j, c in enumerate(group):
                finished(i, j, c)
        return groups


def test_prompts_are_dealt_out_evenly_and_go_where_their_beginning_is_cached():
    engine = SharedEngine(Team(0, 3), 0, None, Echo())
    parts, engine._homes = engine._dealt([[1], [2], [3], [2], [4], [5]])
    assert parts == {0: [0, 4], 1: [1, 3], 2: [2, 5]}
    parts, engine._homes = engine._dealt([[5, 9], [2, 7], [2, 8], [4, 4, 4]])
    assert parts == {0: [3], 1: [1, 2], 2: [0]}
    for again in ([2, 7, 7], [2, 6]):  # after a call's prompt, and after an earlier one with which that begins
        assert engine._dealt([again])[0] == {0: [], 1: [0], 2: []}
    parts, engine._homes = engine._dealt([[6], [7]])  # the next step's
    assert parts == {0: [0], 1: [1], 2: []} and len(engine._homes) == 2


def test_a_prompt_goes_to_its_longest_known_beginning_or_to_the_place_with_the_fewest_tokens():
    known = {(1,): "a", (1, 2): "b", (8,): "gone"}
    prompts = [[1, 2, 3, 4], [1, 9], [8, 8, 8], [5], [6, 6], [8, 8, 8], [7]]
    # [1, 2, 3, 4] begins with both known ones, [1, 9] with the short one; then a has 2 tokens and b 4. The place that had [8] has
    # gone, so [8, 8, 8] goes to a (5), [5] to b (5), [6, 6] to a, the first of two equals (7), the second [8, 8, 8] to the first
    # (10), and [7] to b.
    parts, homes = route(prompts, known, ["a", "b"])
    assert parts == {"a": [1, 2, 4, 5], "b": [0, 3, 6]}
    own = {tuple(prompts[i]): place for place, part in parts.items() for i in part}
    assert homes == {(1,): "a", (1, 2): "b"} | own


def test_a_run_needs_a_gpu_for_every_process_if_there_are_any(monkeypatch):
    from twofold.trainer import dist

    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"rank 3 has no GPU: this machine has 2. Lower torchrun's --nproc-per-node"):
        dist.team.__wrapped__()


# ---------------------------------------------------------------- what cannot be cut among ranks


@pytest.mark.parametrize("word", ["optim.name=muon", "engine.name=vllm", "engine.name=fleet"])
def test_an_option_that_needs_whole_weights_is_refused_with_shard(word):
    with pytest.raises(ValueError, match=r"train\.shard: set engine\.name = .native., optim\.name = .adamw."):
        toml.override(Config(), ["train.shard=true", word])


def test_a_scalar_head_and_experts_are_not_cut(tiny_model):
    headed, experts = load_model(tiny_model)[0], load_model(tiny_model)[0]
    head.attach(headed, "bce")
    experts.config.num_local_experts = 4
    for model, why in ((headed, "has a scalar head"), (experts, "has experts")):
        ranks = Team(0, 2)
        ranks.engine(NativeEngine)(model)
        with pytest.raises(ValueError, match=why):
            ranks.shard()
