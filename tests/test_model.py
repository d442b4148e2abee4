"""Model directories: reading them, without the code of ``transformers`` where it is not needed, and writing them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import Oracle
from random_models import random_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from twofold.engines.native import NativeEngine
from twofold.models import head
from twofold.models.io import load_model, load_tokenizer, save_model
from twofold.models.llama import Llama

TEXTS, ENDS = [[5, 6, 70, 8, 9, 200, 31], [9, 10]], [[30, 31, 32], [33]]


def as_transformers_has_it(folder: Path) -> list[float]:
    oracle = Oracle(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    return [x for row in oracle.logprobs(TEXTS, ENDS) for x in row]


def as_we_have_it(model: Any) -> list[float]:
    return [x for row in NativeEngine(model).logprobs(TEXTS, ENDS) for x in row]


PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", dict(attention_bias=True, mlp_bias=True)),
    "Qwen2, tied": ("Qwen2", dict(tie_word_embeddings=True)),
    "Qwen3, wide heads": ("Qwen3", dict(head_dim=16)),
    "Mistral, short texts": ("Mistral", dict(sliding_window=16)),
    "Mistral, other base": ("Mistral", dict(sliding_window=None, rope_parameters=dict(rope_type="default", rope_theta=5e5))),
    "Qwen2, one layer in bfloat16": ("Qwen2", dict(num_hidden_layers=1, dtype="bfloat16")),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_model_of_the_family_is_read_as_it_is_and_written_back(name, tmp_path):
    family, options = PLAIN[name]
    folder = random_model(family, tmp_path / "made", **options)
    model, tokenizer = load_model(folder)
    assert isinstance(model, Llama)
    assert as_we_have_it(model) == pytest.approx(as_transformers_has_it(folder), abs=1e-4)
    save_model(tmp_path / "saved", model, tokenizer)
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(report.values())  # nothing missing, nothing unexpected
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / "saved" / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[k].float(), after[k]) for k in before)
    assert as_transformers_has_it(tmp_path / "saved") == as_transformers_has_it(folder)
    generation = [json.loads((d / "generation_config.json").read_text()) for d in (folder, tmp_path / "saved")]
    assert generation[0] == generation[1]


YARN = dict(rope_type="yarn", factor=4.0, rope_theta=1e4, original_max_position_embeddings=256)
OTHERS: dict[str, dict[str, Any]] = {
    "scaled rotation": dict(rope_parameters=YARN),
    "in pieces": dict(shards="20KB"),
    "another activation": dict(hidden_act="gelu"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_is_built_by_transformers(name, tmp_path):
    folder = random_model("Llama", tmp_path, **OTHERS[name])
    model, _ = load_model(folder)
    assert not isinstance(model, Llama)
    assert as_we_have_it(model) == pytest.approx(as_transformers_has_it(folder), abs=1e-4)


@pytest.mark.parametrize(
    ("file", "error"),
    [("config.json", ValueError), ("tokenizer_config.json", ValueError), ("model.safetensors", OSError)],
)
def test_a_file_cut_short_is_named(file, error, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "cut")
    (folder / file).write_bytes((folder / file).read_bytes()[:-20])
    with pytest.raises(error, match=rf"cut/{file}"):
        load_model(folder)


# ---------------------------------------------------------------- the scalar head


@pytest.mark.parametrize(
    ("kind", "probabilities", "losses"),
    [
        ("bce", [0.6224593, 0.9241418, 0.3775407], [0.4740770, 2.5788923, 0.9740770]),  # sigmoid; - ln p of the label
        ("regression", [0.5, 1.0, 0.0], [0.25, 6.25, 2.25]),
    ],
)
def test_a_head_is_a_logit_or_a_probability(kind, probabilities, losses):
    """Weights (1, -1) and bias 0.5 make the numbers 0.5, 2.5 and -0.5 of the rows below."""
    hidden, labels = torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 0.0, 1.0])
    ours = head.Head(2, kind)
    assert not ours(hidden).any()  # it begins at zero
    with torch.no_grad():
        ours.weight.copy_(torch.tensor([[1.0, -1.0]]))
        ours.bias.fill_(0.5)
    assert ours.probability(hidden).tolist() == pytest.approx(probabilities)
    for weights in ([1.0, 0.0, 2.0], [0.0, 1.0, 0.0]):
        expected = sum(w * x for w, x in zip(weights, losses, strict=True))
        assert ours.loss(hidden, labels, torch.tensor(weights)).item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["bce", "regression"])
def test_a_saved_head_knows_its_kind(kind, tiny_model, tmp_path):
    model, tokenizer = load_model(tiny_model)
    head.attach(model, kind)
    torch.nn.init.normal_(model.value_head.weight)
    save_model(tmp_path, model, tokenizer)
    loaded, _ = load_model(tmp_path)
    assert torch.equal(loaded.value_head.weight, model.value_head.weight)
    assert NativeEngine(loaded).values(TEXTS) == pytest.approx(NativeEngine(model).values(TEXTS))
    assert loaded.value_head.kind == kind


def test_a_head_of_an_older_version_loads_and_its_kind_is_not_guessed(tiny_model, tmp_path):
    """Older versions wrote the two tensors without the kind."""
    folder = shutil.copytree(tiny_model, tmp_path / "old")
    width = load_model(folder)[0].config.hidden_size
    old = {"weight": torch.randn(1, width), "bias": torch.tensor([0.3])}
    save_file(old, folder / "value_head.safetensors")
    model, tokenizer = load_model(folder)
    assert torch.equal(model.value_head.weight, old["weight"]) and torch.equal(model.value_head.bias, old["bias"])
    with pytest.raises(ValueError, match=r"value_head\.safetensors does not say .* set model\.value_head\.kind"):
        NativeEngine(model).values(TEXTS)
    model.value_head.kind = "regression"
    save_model(folder, model, tokenizer)
    assert all(0 <= p <= 1 for p in NativeEngine(load_model(folder)[0]).values(TEXTS))


@pytest.mark.parametrize("fixture", ["tiny_model", "tiny_qwen"])
def test_the_tokenizer_is_the_one_that_transformers_finds(fixture, request):
    folder = request.getfixturevalue(fixture)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    text = "Start with 47.\n\n\\boxed{12} Yes <|end|><|im_end|> né"
    assert type(ours) is type(theirs) and ours(text) == theirs(text)
    assert (ours.eos_token_id, ours.chat_template) == (theirs.eos_token_id, theirs.chat_template)


def test_a_first_answer_waits_for_no_model_class_of_transformers():
    """Importing one takes longer than everything else together."""
    code = "import sys, twofold; twofold.solve(twofold.load('tiny'), 'Start with 4. Add 3. What is the result?')\n"
    code += "print([x for x in sys.modules if x.startswith(('transformers.model', 'transformers.generation'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
