"""The demo's config equals the one in ``configs/``, and the shipped model is as the README says."""

from __future__ import annotations

import shlex
from pathlib import Path

from safetensors import safe_open
from transformers import AutoModelForCausalLM

from twofold import arguments, cli, demo, run, toml
from twofold.compute.rollout import rollouts
from twofold.config import ALIASES, Config
from twofold.evals.pools import read_pools
from twofold.tasks.procedural import Sums
from twofold.types import Sampling

ROOT = Path(__file__).parents[1]


def test_the_demo_trains_what_the_config_file_says():
    assert toml.load(Config, ROOT / "configs" / "rlv-sums.toml", ALIASES) == demo.CONFIG


def test_every_config_file_is_valid():
    for path in (ROOT / "configs").glob("*.toml"):
        loaded = toml.load(Config, path, ALIASES)
        assert toml.from_dict(Config, __import__("tomllib").loads(toml.to_toml(loaded))) == loaded


def test_the_shipped_model_is_small_standard_and_solves_some():
    weights = run.shipped() / "model.safetensors"
    assert weights.stat().st_size < 8_000_000
    with safe_open(weights, framework="pt") as file:
        size = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert 1_000_000 < size < 3_000_000
    assert AutoModelForCausalLM.from_pretrained(run.shipped()).config.model_type == "llama"
    model = run.load("tiny")
    task = Sums()
    groups = rollouts(
        model.engine,
        model.chat,
        task,
        [task.problem("test", i) for i in range(60)],
        Sampling(n=8, max_tokens=40, stop=model.chat.stop),
    )
    share = sum(r.grade.correct for g in groups for r in g) / 480
    assert 0.3 < share < 0.6  # room above and below


def test_a_small_demo_runs_from_end_to_end(tmp_path, capsys):
    small = toml.override(demo.CONFIG, ["train.steps=2", "rollout.problems=2", "recipe.rollouts=2"])
    evaluation = toml.override(demo.EVAL, ["problems=3", "n=2", "batch=3"])
    assert demo.demo(tmp_path, 0, small, evaluation) == tmp_path / "report.html"
    assert (
        demo.demo(tmp_path, 0, small, evaluation) == tmp_path / "report.html"
    )  # everything is there already: nothing is done twice
    for name in ("base", "rl", "rlv"):
        assert len(read_pools(tmp_path / name / "evals" / "test" / "pools.jsonl")) == 3
    said = capsys.readouterr().out.partition("Try next:\n")[2].splitlines()[:3]
    words = [shlex.split(line, comments=True) for line in said]
    assert [w[1:3] for w in words] == [["solve", f"{tmp_path}/rlv"]] * 2 + [["serve", f"{tmp_path}/rlv"]]
    for _program, *command in words:
        args, rest = arguments.parser(cli.COMMANDS).parse_known_args(command)
        assert not rest and (args.run is cli.COMMANDS["serve"] or cli.main(command) == 0)
    page = (tmp_path / "report.html").read_text()
    assert "rlv" in page
    assert (
        cli.main(["report", str(tmp_path), "--baseline", "rl"]) == 0
    )  # as the README says: again, from what was saved
    assert (tmp_path / "report.html").read_text() == page
