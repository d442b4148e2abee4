"""Families of models: each is right, or refused by name; how long a text may be; weights that are not those of the config."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families
import pytest
import torch
from families import FAMILIES, LONGROPE, YARN
from random_models import random_model
from safetensors.torch import load_file, save_file
from transformers import Phi3Config, Qwen2Config

import twofold as tf
from twofold import toml, training
from twofold.compute.judge import Judging
from twofold.compute.room import check_room
from twofold.config import Config
from twofold.engines.native import NativeEngine
from twofold.models.context import context
from twofold.models.decoder import Decoder, Module, network
from twofold.models.install import install
from twofold.models.io import load_model
from twofold.trainer.learner import Learner, Loss
from twofold.trainer.optim import Optim
from twofold.types import Context, Sample, Sampling

# ---------------------------------------------------------------- families


@pytest.mark.parametrize(("name", "kind", "options"), FAMILIES, ids=[name for name, _, _ in FAMILIES])
def test_a_family_is_what_the_page_says(name, kind, options):
    found = families.verdict(kind, options)
    assert families.written().get(name) == found, "run python tests/families.py to write docs/models.md again"


def test_the_page_has_these_families_and_no_others():
    assert list(families.written()) == [name for name, _, _ in FAMILIES]


def test_a_refused_model_is_as_it_was():
    """A caller that swallows the error has a model that ``transformers`` runs as before."""
    config = families.AutoConfig.for_model("diffllama", **families.SHAPE)
    model = families.AutoModelForCausalLM.from_config(config).eval()
    before = model(torch.tensor([[5, 6, 7]])).logits
    with pytest.raises(ValueError, match="DiffLlamaForCausalLM cannot be used: decoding token by token gives"):
        install(model)
    assert torch.allclose(model(torch.tensor([[5, 6, 7]])).logits, before, atol=1e-5)


# ---------------------------------------------------------------- how long a text may be


@pytest.mark.parametrize(
    ("config", "tokens", "by"),
    [
        (Qwen2Config(max_position_embeddings=32768), 32768, "max_position_embeddings"),
        # YaRN extends the original context, whatever the positions say
        (Qwen2Config(max_position_embeddings=32, rope_parameters=YARN), 128, "max_position_embeddings"),
        (Qwen2Config(max_position_embeddings=512, rope_parameters=YARN), 512, "max_position_embeddings"),
        (Qwen2Config(use_sliding_window=False, sliding_window=64), 32768, "max_position_embeddings"),
        (Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=99), 32768, "max_position_embeddings"),
        (Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=2), 64, "sliding_window"),
        (
            Phi3Config(max_position_embeddings=131072, original_max_position_embeddings=4096, rope_parameters=LONGROPE,
                       hidden_size=32, num_attention_heads=4, sliding_window=262144),
            4096, "original_max_position_embeddings",
        ),
        # as a config.json says it
        (SimpleNamespace(max_position_embeddings=2048), 2048, "max_position_embeddings"),
        (SimpleNamespace(max_position_embeddings=32768, sliding_window=4096), 4096, "sliding_window"),
        (SimpleNamespace(max_position_embeddings=32768, sliding_window=4096, use_sliding_window=False), 32768,
         "max_position_embeddings"),
        (SimpleNamespace(), None, ""),
    ],
)  # fmt: skip
def test_the_context_of_a_config(config, tokens, by):
    assert context(config) == Context(tokens, by)


def test_the_context_is_a_whole_number_of_tokens_to_the_last():
    Context(100, "x").check(60, 30, 10)
    message = r"context is 100 tokens \(x\), .* a text of 60 tokens and up to 31 .* and 10 .*: lower max_tokens to 30"
    with pytest.raises(ValueError, match=message):
        Context(100, "x").check(60, 31, 10)
    with pytest.raises(ValueError, match="a text of 101 tokens: leave it out or shorten it"):
        Context(100, "x").check(101)
    Context(None, "").check(10**9)


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """Return a model whose context is 96 tokens; the verdict question and the verdict take 16 of them."""
    return random_model("Llama", tmp_path_factory.mktemp("short"), max_position_embeddings=96)


def test_no_call_of_the_engine_goes_beyond_the_context(short):
    engine = NativeEngine(load_model(short)[0])
    ninety = [5] * 90
    assert len(engine.generate([ninety], Sampling(max_tokens=6))[0][0].tokens) == 6
    assert len(engine.logprobs([ninety], [[7] * 6])[0]) == 6
    for call in (
        lambda: engine.generate([[5], ninety], Sampling(max_tokens=7)),
        lambda: engine.start([[5], ninety], Sampling(max_tokens=7)),
        lambda: engine.logprobs([ninety], [[7] * 7]),
        lambda: engine.values([[5] * 97]),
    ):
        with pytest.raises(ValueError, match="context is 96 tokens"):
            call()


def test_what_runs_beside_a_long_text_has_no_position_beyond_the_context(tmp_path):
    """GPT-2 has a table of 16 positions. A long rest of a short prefix pads the short rest of a long one."""
    model, _ = load_model(random_model("GPT2", tmp_path, n_positions=16, n_embd=32, n_layer=2, n_head=4))
    texts = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]]
    engine, fresh = NativeEngine(model), NativeEngine(model)
    engine.generate(texts, Sampling(max_tokens=1))  # leaves a cache of both
    prompts = [[*texts[0], *[20] * 10], [*texts[1], 21]]
    for prompt, found in zip(prompts, engine.logprobs(prompts, [[30, 31]] * 2), strict=True):
        assert found == pytest.approx(fresh.logprobs([prompt], [[30, 31]])[0], abs=1e-5)


def test_the_learner_refuses_a_sample_beyond_the_context(short):
    learner = Learner(load_model(short)[0], Optim(), Loss(), steps=1)
    zeros = [0.0] * 97
    with pytest.raises(ValueError, match=r"context is 96 tokens .* a text of 97 tokens"):
        learner.update([Sample([5] * 97, [False] * 97, zeros, zeros, [*zeros[1:], 1.0])])


def settings(short: Path, max_tokens: int, *more: str) -> Config:
    options = [
        f"model={short}",
        f"rollout.max_tokens={max_tokens}",
        "rollout.problems=1",
        "train.steps=1",
        "recipe.rollouts=2",
    ]
    return toml.override(Config(), [*options, *more])


def test_training_is_refused_before_it_begins(short, tmp_path):
    """The prompt and the rollout fit, but not the verdict question after them."""
    chat = tf.load(short).chat
    longest = max(len(chat.prompt(p.question)) for p in _first_step(short))
    fits = 96 - longest - len(chat.follow_up(chat.question)) - 1
    with pytest.raises(ValueError, match=f"lower max_tokens to {fits}"):
        training.train(settings(short, fits + 1), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert training.train(settings(short, fits), tmp_path / "run").is_dir()


def _first_step(short: Path) -> list[Any]:
    from twofold.run import make_task
    from twofold.tasks.stream import Problems

    return Problems(make_task(settings(short, 9).task), 1, 0)(0)


def test_every_problem_of_a_data_set_is_checked_first(short, tmp_path):
    """The long one would come at some later step."""
    rows = [{"question": "What is 1 + 1?", "answer": "2"}] * 30 + [{"question": "Add " + "7 " * 60, "answer": "2"}]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = settings(short, 8, "task.name=data", f"task.source={tmp_path / 'set.jsonl'}")
    with pytest.raises(ValueError, match="context is 96 tokens"):
        training.train(config, tmp_path / "run")


def test_the_problems_of_the_evaluation_are_checked_first(short, tmp_path):
    row = {"question": "Add " + "7 " * 60, "answer": "2"}
    (tmp_path / "set.jsonl").write_text(json.dumps(row) + "\n")
    config = settings(short, 8, "eval.every=1", f"eval.task={tmp_path / 'set.jsonl'}")
    with pytest.raises(ValueError, match="context is 96 tokens"):
        training.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluating_and_solving_are_refused_before_they_begin(short, tmp_path):
    model = tf.load(short)
    test = tf.Eval(problems=2, n=2, max_tokens=90)
    with pytest.raises(ValueError, match="to ask and give a verdict"):
        tf.evaluate(model, "sums", test, out=tmp_path / "eval")
    assert not (tmp_path / "eval").exists()
    with pytest.raises(ValueError, match="lower max_tokens to"):
        tf.solve(model, "What is 1 + 1?", tf.Plan(n=2, max_tokens=90))
    assert tf.solve(model, "What is 1 + 1?", tf.Plan(n=2, max_tokens=8)).samples == 2


@pytest.mark.parametrize(
    ("judging", "after"),
    [(Judging("none"), 0), (Judging(), 1), (Judging("written", tokens=40), 40), (Judging(question="Is it?"), 1)],
)
def test_room_is_left_for_the_judgement(short, judging, after):
    chat = tf.load(short).chat
    asked = 0 if judging.name == "none" else len(chat.follow_up(judging.words(chat)))
    size = len(chat.prompt("What is 1 + 1?")) + 20 + asked + after
    check_room(Context(size, "x"), chat, [("sum", "What is 1 + 1?")], 20, judging)
    with pytest.raises(ValueError, match=f"context is {size - 1} tokens"):
        check_room(Context(size - 1, "x"), chat, [("sum", "What is 1 + 1?")], 20, judging)


# ---------------------------------------------------------------- weights that are not those of the config


def without(*names: str) -> Any:
    return lambda weights: {k: v for k, v in weights.items() if not k.endswith(names)}


def with_shape(name: str, *shape: int) -> Any:
    return lambda weights: weights | {name: torch.zeros(shape)}


LAYER = "model.layers.1."
CHANGES: dict[str, tuple[str, Any, dict[str, Any], str]] = {
    "no norm of queries": ("Qwen3", without("q_norm.weight"), {}, r"layers\.0\.self_attn\.q_norm\.weight is missing"),
    "no biases": ("Qwen2", without(".bias"), {}, r"self_attn\.k_proj\.bias is missing.*; and 2 more"),
    "biases that its config asks for": ("Llama", lambda w: w, dict(attention_bias=True), r"o_proj\.bias is missing"),
    "a tensor more": ("Llama", with_shape(LAYER + "extra", 3), {}, r"layers\.1\.extra is not in its config"),
    "biases that its config does not know": (
        "Llama", with_shape(LAYER + "mlp.up_proj.bias", 64), {}, r"up_proj\.bias is not in its config"),
    "another shape": (
        "Llama", with_shape(LAYER + "self_attn.k_proj.weight", 8, 32), {}, r"k_proj\.weight has the shape \[8, 32\], not \[16, 32\]"),
    "fewer layers than its config says": ("Qwen2", lambda w: w, dict(num_hidden_layers=3), r"model\.layers\.2\..* is missing"),
    "more layers than its config says": ("Qwen2", lambda w: w, dict(num_hidden_layers=1), r"model\.layers\.1\..* is not in its"),
    "a family of transformers": ("Phi3", without("qkv_proj.weight"), {}, r"self_attn\.qkv_proj\.weight is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_weights_that_are_not_those_of_the_config_are_named(name, tmp_path):
    family, change, config, message = CHANGES[name]
    folder = random_model(family, tmp_path)
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    about = json.loads((folder / "config.json").read_text()) | config
    if "num_hidden_layers" in config:
        about["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_an_output_layer_saved_besides_tied_embeddings_is_no_mistake(tmp_path):
    """Other programs write both. They are one weight."""
    folder = random_model("Llama", tmp_path, tie_word_embeddings=True)
    file = folder / "model.safetensors"
    before = NativeEngine(load_model(folder)[0]).logprobs([[5, 6]], [[7, 8]])
    weights = load_file(file)
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, file, {"format": "pt"})
    assert NativeEngine(load_model(folder)[0]).logprobs([[5, 6]], [[7, 8]])[0] == pytest.approx(before[0], abs=1e-5)


# ---------------------------------------------------------------- what runs a model


@pytest.mark.parametrize("name", ["Qwen2", "Llama"])
def test_both_backends_compute_the_same(name, tmp_path):
    folder = random_model(name, tmp_path)
    samples = [
        Sample([5, 6, 7, 8], [False, True, True, False], [-3.0] * 4, [0.0, 0.5, -0.7, 0.0], [0.0, 0.0, 0.0, 1.0])
    ]
    logprobs, gradients, kinds = [], [], []
    for backend in ("auto", "decoder", "module"):
        model, _ = load_model(folder, backend=backend)
        logprobs.append(NativeEngine(model).logprobs([[5, 6], [9]], [[7, 8], [3]]))
        kinds.append((type(model).__name__, type(network(model, torch.float32))))
        Learner(model, Optim(), Loss(), steps=1).accumulate(samples)
        gradients.append(torch.cat([p.grad.flatten() for _, p in sorted(model.named_parameters())]))
    assert kinds[0] == kinds[1] == ("Llama", Decoder) and kinds[2] == (f"{name}ForCausalLM", Module)
    assert logprobs[0] == logprobs[1]
    for a, b in zip(logprobs[0], logprobs[2], strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert float((gradients[2] - gradients[1]).norm()) < 1e-5 * float(gradients[1].norm())


def test_a_backend_that_does_not_suit_is_refused(tmp_path):
    folder = random_model("Phi3", tmp_path)
    with pytest.raises(ValueError, match=r'backend "decoder" cannot run this Phi3ForCausalLM: .* choose "auto"'):
        load_model(folder, backend="decoder")
    llama = random_model("Llama", tmp_path / "llama")
    config = toml.override(Config(), [f"model={llama}", "model_backend=module", "lora.rank=2", "train.steps=1"])
    with pytest.raises(ValueError, match="adapters are for Llama's family, run by the decoder"):
        training.train(config, tmp_path / "run")
