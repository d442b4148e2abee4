"""GGUF files: as good as the directory that they were made of, or refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_files import write_gguf
from random_models import random_model
from safetensors.numpy import save_file
from transformers import AutoTokenizer, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import twofold as tf
from twofold import cli
from twofold.engines.native import NativeEngine
from twofold.models.io import load_model, load_tokenizer
from twofold.models.llama import Llama

TEXTS, ENDS = [[5, 6, 70, 8, 9, 200, 31], [9, 10]], [[30, 31, 32], [33]]
LLAMA3 = dict(rope_type="llama3", rope_theta=5e5, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3 |= dict(original_max_position_embeddings=8192)


def logprobs(folder: Path) -> list[float]:
    return [x for row in NativeEngine(load_model(folder)[0]).logprobs(TEXTS, ENDS) for x in row]


@pytest.mark.parametrize(
    ("family", "options"),
    [("Llama", dict(head_dim=8)), ("Llama", dict(attention_bias=True, tie_word_embeddings=True, head_dim=8)),
     ("Qwen2", {}), ("Qwen3", dict(head_dim=16))],
)  # fmt: skip
def test_a_file_is_the_directory_that_it_was_made_of(family, options, tmp_path, capsys):
    folder = random_model(family, tmp_path / "made", **options)
    file = write_gguf(folder, tmp_path / "model.gguf")
    assert logprobs(file) == pytest.approx(logprobs(folder), abs=1e-5)
    assert cli.main(["convert", str(file), str(tmp_path / "out")]) == 0
    assert f"saved {tmp_path / 'out'}" in capsys.readouterr().out
    assert isinstance(load_model(tmp_path / "out")[0], Llama)
    assert logprobs(tmp_path / "out") == logprobs(file)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [3, 1]
    assert tf.load(file).chat.stop == tf.load(tmp_path / "out").chat.stop == (3, 1)
    text = "Start with 47 ,  12.\n\n\\boxed{12} Yes <|end|><|user|> <think> don't 1.5 né e\u0301"
    made, read, saved = (load_tokenizer(x) for x in (folder, file, tmp_path / "out"))
    if family != "Llama":  # the shipped tokenizer does not normalise, Qwen's do
        text = text.removesuffix(" e\u0301")
        assert read("e\u0301")["input_ids"] == read("\u00e9")["input_ids"]
    for tokenizer in (read, saved, AutoTokenizer.from_pretrained(tmp_path / "out")):
        assert tokenizer(text)["input_ids"] == made(text)["input_ids"]
        assert (tokenizer.chat_template, tokenizer.eos_token_id) == (made.chat_template, made.eos_token_id)
    assert cli.main(["convert", str(file), str(tmp_path / "out")]) == 2
    assert "out is not empty" in capsys.readouterr().err
    assert cli.main(["convert", str(folder), str(tmp_path / "again")]) == 2
    assert "made is no .gguf file" in capsys.readouterr().err


def test_a_file_is_solved_with_and_trained(tmp_path, capsys):
    file = write_gguf(random_model("Llama", tmp_path / "made", head_dim=8, eos_token_id=3), tmp_path / "m.gguf")
    assert cli.main(["solve", str(file), "What is 1 + 1?", "n=2", "max_tokens=4"]) == 0
    assert "answer" in capsys.readouterr().out
    config = tf.Config()
    options = [f"model={file}", "train.steps=1", "rollout.problems=1", "recipe.rollouts=2", "rollout.max_tokens=4"]
    last = tf.train(tf.toml.override(config, options), tmp_path / "run")
    assert (last / "config.json").is_file() and isinstance(load_model(last)[0], Llama)


def divisors(rope: dict) -> np.ndarray:
    """Return what llama.cpp divides the frequencies by, from the frequencies of ``transformers``."""
    config = LlamaConfig(
        hidden_size=32, num_attention_heads=4, rope_parameters=dict(rope), max_position_embeddings=10**6
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
    return (rope["rope_theta"] ** -(torch.arange(0, 8, 2) / 8) / scaled).numpy().astype(np.float32)


def test_llama_3s_scaling_is_read_from_its_numbers(tmp_path):
    made = random_model(
        "Llama", tmp_path / "made", rope_parameters=dict(LLAMA3), max_position_embeddings=10**5, head_dim=8
    )
    file = write_gguf(made, tmp_path / "model.gguf", more={"rope_freqs.weight": divisors(LLAMA3)})
    model, _ = load_model(file)
    assert model.config.rope_parameters == LLAMA3
    far = [[i % 400 + 50 for i in range(300)]]
    found, expected = (NativeEngine(load_model(x)[0]).logprobs(far, [[30, 31]]) for x in (file, made))
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    plain = write_gguf(made, tmp_path / "plain.gguf")
    assert NativeEngine(load_model(plain)[0]).logprobs(far, [[30, 31]])[0] != pytest.approx(expected[0], abs=1e-3)
    other = divisors(LLAMA3) * np.array([1, 1, 2, 1], np.float32)
    with pytest.raises(ValueError, match="scales RoPE, but not as Llama 3 does: use the model's original directory"):
        load_model(write_gguf(made, tmp_path / "other.gguf", more={"rope_freqs.weight": other}))


def test_what_would_be_left_out_is_refused(tmp_path, monkeypatch):
    made = random_model("Llama", tmp_path / "made", head_dim=8)
    more = {"blk.1.attn_q.bias": np.ones(32, np.float32)}
    with pytest.raises(ValueError, match="has other weights than a model of type llama"):
        load_model(write_gguf(made, tmp_path / "more.gguf", more=more))
    with pytest.raises(ValueError, match=r"splits text \(deepseek-llm\)"):
        load_model(write_gguf(made, tmp_path / "split.gguf", pre="deepseek-llm"))
    phi = random_model("Phi3", tmp_path / "phi")
    save_file({"model.norm.weight": np.ones(32, np.float32)}, phi / "model.safetensors")
    with pytest.raises(ValueError, match="a model of type phi3; of GGUF files only llama, qwen2, qwen3 are read"):
        load_model(write_gguf(phi, tmp_path / "phi.gguf"))
    whole, cut = (tmp_path / "more.gguf").read_bytes(), tmp_path / "cut.gguf"
    for end in (2, 3000, len(whole) - 5000):
        cut.write_bytes(whole[:end])
        with pytest.raises(OSError, match=r"cut\.gguf cannot be read as GGUF: is it complete"):
            load_model(cut)
    with pytest.raises(FileNotFoundError, match=r"gone\.gguf"):
        tf.load(tmp_path / "gone.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[gguf\]'"):
        load_model(tmp_path / "more.gguf")
