"""Evaluation against plain transformers: what is sampled, how it is scored, and that an interrupted one continues."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import twofold
from twofold import run, toml
from twofold.compute.judge import Judging
from twofold.config import Data
from twofold.evals.during import figures
from twofold.evals.pools import read_header, read_pools
from twofold.evals.run import RENAMED, Eval
from twofold.models.head import attach
from twofold.models.io import save_model
from twofold.tasks.procedural import Sums
from twofold.text.prompts import JUDGE
from twofold.types import Grade, Pool, Problem, Sampling

SMALL = Eval(problems=3, n=4, max_tokens=12, batch=2)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> run.Model:
    return run.load(tiny_model)


def pools(model: run.Model, out: Path, **changes: Any) -> list[Pool]:
    verifier = changes.pop("verifier", None)
    return read_pools(
        run.evaluate(model, "sums", replace(SMALL, **changes), out=out, verifier=verifier) / "pools.jsonl"
    )


@torch.no_grad()
def last_hidden(directory: Path, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (hidden state, logits) of the last token, by transformers alone."""
    plain = AutoModelForCausalLM.from_pretrained(directory)
    out = plain(torch.tensor([tokens]), output_hidden_states=True)
    return out.hidden_states[-1][0, -1], out.logits[0, -1]


def judgement_prompts(model: run.Model) -> list[list[int]]:
    """Return the judgement prompt of every sample that SMALL draws, each generated alone."""
    chat, task = model.chat, Sums()
    sampling = Sampling(n=SMALL.n, max_tokens=SMALL.max_tokens, stop=chat.stop, seed=SMALL.seed)
    found = []
    for i in range(SMALL.problems):
        prompt = chat.prompt(task.problem("test", i).question)
        model.engine.load({})
        for c in model.engine.generate([prompt], sampling)[0]:
            found.append(chat.ask([*prompt, *chat.readable(c.tokens)], JUDGE))
    return found


def test_scores_are_the_probability_of_yes(model, tiny_model, tmp_path):
    yes, no = model.chat.yes_no_ids
    expected = [last_hidden(tiny_model, p)[1].softmax(-1) for p in judgement_prompts(model)]
    scores = [s for pool in pools(model, tmp_path / "plain") for s in pool.scores]
    assert scores == pytest.approx([float(p[yes]) for p in expected], rel=1e-3)
    scores = [s for pool in pools(model, tmp_path / "two", judge=Judging("normalised")) for s in pool.scores]
    assert scores == pytest.approx([float(p[yes] / (p[yes] + p[no])) for p in expected], rel=1e-3)


@pytest.mark.parametrize("kind", ["bce", "regression"])
def test_a_trained_head_scores(kind, tiny_model, tmp_path):
    model = run.load(tiny_model)
    torch.manual_seed(0)
    attach(model.engine.model, kind)
    head = model.engine.model.value_head
    torch.nn.init.normal_(head.weight)
    outputs = [head(last_hidden(tiny_model, p)[0]).detach() for p in judgement_prompts(model)]
    squash = {"bce": torch.sigmoid, "regression": lambda x: x.clamp(0, 1)}[kind]
    scores = [s for pool in pools(model, tmp_path / kind, judge=Judging("head")) for s in pool.scores]
    assert scores == pytest.approx([float(squash(x)) for x in outputs], abs=1e-4)


def test_another_model_may_verify(model, tiny_model, tmp_path):
    other = run.load(tiny_model)
    with torch.no_grad():
        other.engine.model.get_parameter("model.norm.weight").mul_(0.5)
    save_model(tmp_path / "other", other.engine.model, other.tokenizer)
    yes = model.chat.yes_no_ids[0]
    expected = [float(last_hidden(tmp_path / "other", p)[1].softmax(-1)[yes]) for p in judgement_prompts(model)]
    judged = pools(model, tmp_path / "judged", verifier=replace(other, name="other"))
    assert [s for pool in judged for s in pool.scores] == pytest.approx(expected, rel=1e-3)
    assert [pool.tokens for pool in judged] == [pool.tokens for pool in pools(model, tmp_path / "own")]
    assert read_header(tmp_path / "judged").judge == "p_yes of other"
    with pytest.raises(ValueError, match="another evaluation"):
        pools(model, tmp_path / "judged")


def test_the_version_is_the_source_trees(model, tmp_path, monkeypatch):
    """A package that runs from its source, without being installed, has no metadata."""
    versions = {"torch": "1", "transformers": "2"}
    monkeypatch.setattr("twofold.evals.run.version", versions.__getitem__)
    pools(model, tmp_path, problems=1)
    assert read_header(tmp_path).versions == {"twofold": twofold.__version__, **versions}


def test_what_the_model_was_told_is_recorded(model, tiny_model, tmp_path):
    """Another system prompt is another evaluation."""
    told = replace(model, chat=run.load(tiny_model, system="Be brief.").chat)
    pools(told, tmp_path, problems=1)
    header = read_header(tmp_path)
    assert (header.system, header.enable_thinking) == ("Be brief.", None)
    with pytest.raises(ValueError, match="another evaluation"):
        pools(model, tmp_path, problems=1)


def test_an_evaluation_samples_from_the_likeliest_tokens(model, tmp_path):
    """With one token left, every sample is the greedy one."""
    greedy = pools(model, tmp_path / "greedy", temperature=0, problems=2, n=1)
    for name, only in {"k": {"top_k": 1}, "p": {"min_p": 1.0}}.items():
        found = pools(model, tmp_path / name, problems=2, n=1, **only)
        assert [(p.answers, p.tokens) for p in found] == [(p.answers, p.tokens) for p in greedy]


def test_without_a_judge_nothing_is_read(model, tmp_path):
    unjudged = pools(model, tmp_path / "none", judge=Judging("none"))
    assert all(pool.scores == [None] * 4 and pool.judge_tokens == [0] * 4 for pool in unjudged)
    assert read_header(tmp_path / "none").judge is None


def test_an_interrupted_evaluation_goes_on_where_it_stopped(model, tmp_path):
    straight = pools(model, tmp_path / "straight")
    pools(model, tmp_path / "cut", problems=2)
    lines = (tmp_path / "cut" / "pools.jsonl").read_text()
    went_on = pools(model, tmp_path / "cut")
    assert (tmp_path / "cut" / "pools.jsonl").read_text().startswith(lines)  # nothing was done twice
    assert [replace(p, seconds=0.0) for p in went_on] == [replace(p, seconds=0.0) for p in straight]


@pytest.mark.parametrize(
    "change",
    [
        {"n": 5},
        {"temperature": 0.5},
        {"top_k": 5},
        {"min_p": 0.1},
        {"seed": 1},
        {"judge": Judging("none")},
        {"split": "ood"},
    ],
)
def test_a_directory_of_other_settings_is_refused_and_kept(change, model, tmp_path):
    pools(model, tmp_path)
    before = (tmp_path / "pools.jsonl").read_text()
    with pytest.raises(ValueError, match=r"another evaluation.*--out"):
        pools(model, tmp_path, **change)
    assert (tmp_path / "pools.jsonl").read_text() == before
    assert json.loads((tmp_path / "eval.json").read_text())["n"] == 4


def test_how_an_evaluation_judges_is_said_on_the_command_line():
    assert toml.override(Eval(), ["--judge", "steps"]).judge == Judging("steps")
    words = ["--judge.name", "steps", "--judge.votes", "4", "--judge.cut=tags"]
    assert toml.override(Eval(), words).judge == Judging("steps", cut="tags", votes=4)
    for old, new in (("judge_votes", "judge.votes"), ("confidence", "trace_top"), ("window", "trace_window")):
        with pytest.raises(toml.ConfigError, match=f"unknown option --{old}; twofold calls it --{new}"):
            toml.override(Eval(), [f"--{old}", "4"], RENAMED)


def test_the_figures_of_an_evaluation_while_training():
    """Two problems of two samples. By count 1/2 (a tie) and 0 are right; by verdict 1 and 0. Unjudged, verdicts have no figures."""
    right, wrong = Grade(1.0, "correct"), Grade(0.0, "wrong")

    def pool(i: int, grades: list[Grade], scores: list[float | None]) -> Pool:
        return Pool(
            Problem(str(i), "", "1"), ["1" if g.correct else "2" for g in grades], grades, scores, [1, 1], [0, 0], 0.0
        )

    found = figures([pool(0, [right, wrong], [0.9, 0.2]), pool(1, [wrong, wrong], [0.3, 0.4])])
    assert {k: found[k] for k in ("pass@1", "maj@2", "weighted@2", "auroc", "balanced_accuracy")} == {
        "pass@1": 0.25, "maj@2": 0.25, "weighted@2": 0.5, "auroc": 1.0, "balanced_accuracy": 1.0,
    }  # fmt: skip
    assert figures([pool(0, [right, wrong], [None, None]), pool(1, [wrong, wrong], [None, None])]) == {
        "pass@1": 0.25, "maj@2": 0.25,
    }  # fmt: skip


def test_an_evaluation_is_not_continued_with_other_problems_of_the_same_names(tmp_path: Path) -> None:
    """Two files of one name, or one file read in another way: what is there already is refused, not taken for done."""
    model = run.load("tiny")
    settings = run.Eval(problems=1, n=2, max_tokens=8)

    def evaluate(folder: str, question: str, **options: Any) -> Path:
        file = tmp_path / folder / "q.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"question": question, "answer": "5"}) + "\n")
        return run.evaluate(model, run.make_task(Data(source=str(file), **options)), settings, out=tmp_path / "e")

    evaluate("a", "2+3?")
    before = (tmp_path / "e" / "pools.jsonl").read_bytes()
    with pytest.raises(ValueError, match="has other problems by the same names, such as q-0"):
        evaluate("b", "1+4?")
    with pytest.raises(ValueError, match="holds another evaluation"):
        evaluate("a", "2+3?", extract="number")
    evaluate("a", "2+3?")
    assert (tmp_path / "e" / "pools.jsonl").read_bytes() == before
