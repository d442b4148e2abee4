"""Files from outside: every hostile model directory is refused in a line, in seconds, and none of its code is run."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import hostile
import pytest

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
    assert refusals[-1] == {"ran": []}


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
