"""Files from outside: every hostile model directory is refused in a line, in seconds, and none of its code is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile
import pytest
from random_models import random_model

import twofold as tf
from twofold.evals.pools import check_problem
from twofold.models.io import load_model
from twofold.solving import questions
from twofold.terminal import visible
from twofold.text.confined import confined
from twofold.types import Problem

SECONDS = 600
"""The most that all of them may take, on a busy machine."""
LINE = 700
pytestmark = pytest.mark.timeout(SECONDS)


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what became of each directory, in a process of its own with little memory."""
    folder = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, hostile.__file__, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, input="y\n" * 500)
    assert run.returncode == 0, f"{run.stdout[-500:]}\n{run.stderr[-2000:]}"
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


def test_every_hostile_directory_is_refused_in_a_line_that_names_it(refusals: list[dict[str, Any]]) -> None:
    tried = [x for x in refusals if "name" in x]
    assert len(tried) >= 69
    names = {x["name"] for x in tried}
    assert {*hostile.LLAMA, *hostile.PHI3, *(f"GGUF: {x}" for x in hostile.GGUF)} <= names
    kinds = ("ValueError", "OSError", "FileNotFoundError", "Damaged")
    for x in tried:
        assert x["kind"] in kinds, x
        assert "\n" not in x["line"] and len(x["line"]) < LINE, x
        assert x["path"] in x["line"], x


def test_no_code_of_a_directory_is_run(refusals: list[dict[str, Any]]) -> None:
    assert refusals[-1] == {"ran": False}


def test_no_directory_takes_long(refusals: list[dict[str, Any]]) -> None:
    """Processor seconds of this process; a template's own are limited by ``confined``."""
    assert {x["name"]: x["seconds"] for x in refusals if x.get("seconds", 0) > 20} == {}


def test_the_reason_is_named(refusals: list[dict[str, Any]]) -> None:
    lines = {x["name"]: x["line"] for x in refusals if "name" in x}
    for name, reason in {
        "config: layers 10^9": "config.json: num_hidden_layers = 1000000000 is more than 10,000",
        "config: layers 1 of 2": "model.layers.1.input_layernorm.weight is not in its config",
        "config: eps NaN": "config.json is not JSON: NaN is no number",
        "code: attention of a hub": "attn_implementation = 'evil/kernel' names code of a package or a hub",
        "code: pickle": "has no model.safetensors: pytorch_model.bin may hold code and is never read",
        "weights: NaN": "model.norm.weight has values that are not finite",
        "template: 2 GB": "chat_template.jinja has 2,147,483,648 bytes, more than 1,048,576",
        "template: a loop": "it takes more than 2 s",
        "index: outside": "names '../b.safetensors', which is no safetensors file of the directory",
        "stop: beyond the vocabulary": "1 tokens beyond the model's 512 embeddings, such as 1000000",
        "file: a link outside": "outside the model's directory",
    }.items():
        assert reason in lines[name], name


def test_a_directory_of_the_hubs_cache_is_loaded(tmp_path: Path) -> None:
    """Its files are links to ``blobs``. Custom code beside a model that ``transformers`` knows does no harm."""
    made = random_model("Llama", tmp_path / "made")
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "blobs").mkdir()
    hostile.both(hostile.config(auto_map=hostile.CUSTOM), hostile.text("evil.py", hostile.EVIL))(made)
    for i, file in enumerate(sorted(made.iterdir())):
        file.rename(snapshot.parent.parent / "blobs" / f"{i}")
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    assert load_model(snapshot)[0].config.num_hidden_layers == 2
    assert not hasattr(sys, "evil")


def test_work_is_done_elsewhere_with_little_time_and_memory() -> None:
    here = os.getpid()
    assert confined(lambda: f"{os.getpid() != here} é\n") == "True é\n"
    with pytest.raises(ValueError, match=r"^two lines$"):
        confined(lambda: _fail("two\nlines"))
    for work, reason in {
        (lambda: "a" * (2 << 30)): "^MemoryError$",
        (lambda: "a" * (1 << 21)): "writes more than 1,048,576 characters",
        (lambda: str(sum(1 for _ in iter(int, 1)))): "takes more than 2 s",
        (lambda: os._exit(0)): "takes more than 2 s",
    }.items():
        with pytest.raises(ValueError, match=reason):
            confined(work)


def _fail(text: str) -> str:
    raise RuntimeError(text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1}, object(), [{"a": float("nan")}]])
def test_a_problem_that_cannot_be_saved_is_found_before_it_is_sampled(value: Any, tmp_path: Path) -> None:
    class Mine:
        name = "mine"

        def problem(self, split: str, i: int) -> Problem:
            return Problem(f"mine-{i}", "What is 1 + 1?", "2", {"ok": 1, "extra": value if i == 2 else 0})

    with pytest.raises(ValueError, match=r"problem 'mine-2': meta\['extra'\] = .* is no JSON"):
        tf.evaluate(tf.load("tiny"), Mine(), tf.Eval(problems=3, n=1, max_tokens=4), out=tmp_path / "e")
    assert not (tmp_path / "e" / "pools.jsonl").exists()
    check_problem(Problem("p", "q", "a", {"list": [1, "two", None]}))


def test_a_bad_question_is_named_by_its_line(tmp_path: Path) -> None:
    bad = {
        "a.txt": b"What is 1 + 1?\nWhat \xff",
        "b.jsonl": b'{"question": "q"}\n{"question": ',
        "c.jsonl": b'{"question": "q"}\n{"question": 5}',
        "d.txt": b"q\na\0b",
        "e.jsonl": b'{"question": "q"}\n' + b"[" * 100_000,
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}:2: "):
            questions(tmp_path / name)
    (tmp_path / "good.txt").write_bytes("one \u2028 line\r\ntwo\n".encode())
    assert questions(tmp_path / "good.txt") == ["one \u2028 line", "two"]


def test_control_characters_are_seen() -> None:
    assert visible("a\x1b[31m\x07\u202e\ud800\r\n\tb\rc\x9b") == r"a\x1b[31m\x07\u202e\ud800" + "\n\tb" + r"\rc\x9b"
    assert visible("é 🍎 \\frac") == "é 🍎 \\frac"
