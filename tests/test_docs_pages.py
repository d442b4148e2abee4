"""What pages say is so: their Python runs, their trainings are configs, their estimates are those of ``twofold plan``."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import twofold as tf
from twofold import cli

ROOT = Path(__file__).parents[1]
TRAINING = ["start", "train", "gsm8k"]
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{i}")
    for page in sorted(ROOT.glob("docs/*.md"))
    for i, block in enumerate(re.findall(r"(?ms)^```python\n(.*?)^```", page.read_text("utf-8")))
    if "import twofold as tf\n" in block
]


@pytest.mark.parametrize("block", BLOCKS)
def test_the_python_of_a_page_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that has the configs, a run that was evaluated, and the user's own file of problems."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    if "runs/demo" in block:
        small = tf.Eval(problems=2, n=16, max_tokens=24)
        tf.evaluate(tf.load("tiny"), "sums", small, out="runs/demo")
    row = {"question": "Start with 7. Add 5. What is the result?", "answer": "12"}
    (tmp_path / "my.jsonl").write_text(json.dumps(row) + "\nnot a row\n")
    exec(block, {})


def commands(page: str) -> list[list[str]]:
    """The words of the commands on a page of docs/, without ``twofold``."""
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    twofold ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize("page", TRAINING)
def test_the_trainings_and_estimates_of_a_page_run_dry(
    page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    found = [words for words in commands(page) if words[0] in ("train", "plan") and not words[1].startswith("runs/")]
    assert found
    for words in found:
        dry = ["--dry-run"] if words[0] == "train" and "--dry-run" not in words else []
        assert cli.main([*words, *dry]) == 0, words
        assert len(capsys.readouterr().out.splitlines()) > 10


def test_the_walkthrough_trains_on_its_data_within_its_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All trainings of the model on GSM8K, and the evaluations of them, agree on data and token limit."""
    monkeypatch.chdir(ROOT)
    ours = [
        words for words in commands("gsm8k") if words[0] in ("train", "eval", "audit") and "model=tiny" not in words
    ]
    assert len(ours) >= 9
    for words in ours:
        if words[0] == "train":
            assert cli.main([*words, *["--dry-run"] * ("--dry-run" not in words)]) == 0
            said = capsys.readouterr().out
            assert 'source = "gsm8k"' in said and "max_tokens = 512" in said and 'split = "train"' in said
        else:
            assert words[words.index("--task") + 1] == "gsm8k" and words[words.index("--max_tokens") + 1] == "512"


def test_the_figures_of_the_walkthrough_are_those_of_the_plan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "gsm8k.md").read_text("utf-8")
    plans = [words for words in commands("gsm8k") if words[0] == "plan"]
    assert len(plans) == 2
    for words in plans:
        assert cli.main([*words, "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        memory = f"{plan['memory']['peak'] / 2**30:.0f} of {plan['machine']['memory']:.0f} GiB"
        for basis, said in (("measured", "as older code was measured"), ("counted", "as the present code counts")):
            row = f"| {said} | {plan['step'][basis]:.0f} s | {plan['hours'][basis]:.1f} h | {memory} |"
            assert row in page, f"docs/gsm8k.md should have: {row}"


def entries() -> dict[str, str]:
    parts = re.split(r"(?m)^### (.*)\n", (ROOT / "docs" / "glossary.md").read_text("utf-8"))[1:]
    return {name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def test_the_glossary_has_one_short_meaning_for_each_word() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    named = list(entries())
    assert len(named) == text.count("\n### ") and named == sorted(named, key=str.casefold)
    for name, meaning in entries().items():
        assert meaning.endswith(".") and len(re.findall(r"\.(?: |$)", meaning)) <= 2, name


def test_the_glossary_has_the_words_that_a_plan_a_grade_and_a_log_need() -> None:
    wanted = {
        "advantage",
        "AUROC",
        "confidence",
        "episode",
        "grade",
        "P(Yes)",
        "pass@k",
        "plan",
        "pool",
        "posterior",
        "regret",
    }
    wanted |= {"reward", "rollout", "verdict", "weighted vote"}
    assert wanted <= entries().keys()
    assert set(re.findall(r"`(\w+)`", entries()["grade"])) == set(tf.types.Label.__args__)
