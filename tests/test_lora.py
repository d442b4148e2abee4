"""Adapters: what they compute, what is trained, what is saved, and the models that share one base."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from twofold import run, toml, training
from twofold.config import Config, LoraOptions, Rollouts, Train
from twofold.engine_options import PythonEngine, Vllm, VllmServer
from twofold.engines.native import NativeEngine
from twofold.maths.losses import Loss
from twofold.models import lora, quantised
from twofold.models.io import convert, load_model
from twofold.recipes.pretrain import Pretrain
from twofold.recipes.rlv import RLV
from twofold.recipes.tango import Tango
from twofold.tasks.procedural import Sums
from twofold.trainer.learner import Learner
from twofold.trainer.optim import Optim
from twofold.types import Sample

TOKENS = [20, 21, 22, 23, 24, 25, 26]
EVERY = LoraOptions().targets


def config(model: Path, recipe: Any = None, **options: Any) -> Config:
    return Config(
        model=str(model),
        recipe=recipe or RLV(rollouts=2),
        task=Sums(level=1),
        rollout=Rollouts(problems=2, max_tokens=6),
        optim=Optim(lr=1e-2),
        lora=LoraOptions(rank=4, alpha=8.0),
        train=Train(steps=2, save_every=1),
        **options,
    )


def shaken(path: Path, targets: tuple[str, ...] = EVERY) -> tuple[Any, Any, Any]:
    """Return a model, a view of it with an adapter that is not 0, and the tokenizer."""
    model, tokenizer = load_model(path)
    view = lora.attach(model, lora.Lora(4, 8.0, targets, str(path)), seed=1)
    torch.manual_seed(0)
    for name, p in view.named_parameters():
        if "lora_B" in name:
            p.data.normal_(0, 0.1)
    return model, view, tokenizer


def logprobs(model: Any) -> list[float]:
    return NativeEngine(model).logprobs([TOKENS[:1]], [TOKENS[1:]])[0]


def by_transformers(model: Any) -> list[float]:
    with torch.no_grad():
        logp = model(torch.tensor([TOKENS])).logits[0].log_softmax(-1)
    return logp[range(len(TOKENS) - 1), TOKENS[1:]].tolist()


def sample() -> Sample:
    n = len(TOKENS)
    return Sample(TOKENS, [False] + [True] * (n - 1), [0.0] + [-5.0] * (n - 1), [1.0] * n, [0.0] * n)


# ---------------------------------------------------------------- what it computes


@pytest.mark.parametrize("fixture", ["tiny_model", "tiny_qwen"])
def test_an_adapter_is_added_to_the_weights(fixture, request):
    """By hand: W + (alpha / rank) B A in the model of transformers."""
    path = request.getfixturevalue(fixture)
    model, view, _ = shaken(path)
    theirs = AutoModelForCausalLM.from_pretrained(path)
    assert logprobs(model) == pytest.approx(by_transformers(theirs), abs=1e-4)
    for i, block in enumerate(theirs.model.layers):
        for part in (block.self_attn, block.mlp):
            for name, layer in part.named_children():
                if name in EVERY:
                    place = f"adapter.model.layers.{i}.{'mlp' if part is block.mlp else 'self_attn'}.{name}.lora_"
                    a, b = (view.get_parameter(f"{place}{x}.weight") for x in "AB")
                    layer.weight.data += 2.0 * b @ a
    assert logprobs(view) == pytest.approx(by_transformers(theirs), abs=1e-4)
    assert max(abs(x - y) for x, y in zip(logprobs(view), logprobs(model), strict=True)) > 0.1
    assert logprobs(lora.off(view)) == logprobs(model)
    own, _ = load_model(path)
    own.load_state_dict(Learner(view, Optim(), Loss(), steps=1).weights())  # as an engine with a copy of its own does
    assert logprobs(own) == pytest.approx(logprobs(view), abs=1e-4)


def test_a_new_adapter_changes_nothing_and_depends_on_the_seed(tiny_model):
    model, _ = load_model(tiny_model)
    views = [lora.attach(model, lora.Lora(4, 8.0, ("q_proj",), ""), seed) for seed in (1, 1, 2)]
    assert logprobs(views[0]) == logprobs(model)
    name = "adapter.model.layers.1.self_attn.q_proj.lora_A.weight"
    first, same, other = (view.get_parameter(name) for view in views)
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert first.abs().max() <= 32**-0.5 and first.abs().max() > 0.9 * 32**-0.5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients_are_those_of_the_chain_rule(tiny_model, precision):
    """dA = s B' dW and dB = s dW A', where dW is the gradient of the whole matrix; over several micro-batches."""
    _, view, _ = shaken(tiny_model)
    learner = Learner(view, Optim(), Loss(), steps=1, micro_tokens=8, precision=precision)
    learner.accumulate([sample()] * 3)
    merged, _ = load_model(tiny_model)
    for name, p in merged.named_parameters():
        place = f"adapter.{name.removesuffix('.weight')}.lora_"
        if f"{place}A.weight" in dict(view.named_parameters()):
            a, b = (view.get_parameter(f"{place}{x}.weight").detach() for x in "AB")
            p.data += 2.0 * b @ a
    whole = Learner(merged, Optim(), Loss(), steps=1, micro_tokens=8, precision=precision)
    whole.accumulate([sample()] * 3)
    for layer in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"):
        a, b = (view.get_parameter(f"adapter.model.layers.0.{layer}.lora_{x}.weight") for x in "AB")
        dw = merged.get_parameter(f"model.layers.0.{layer}.weight").grad
        assert torch.allclose(a.grad, 2.0 * b.T @ dw, rtol=1e-4, atol=1e-6)
        assert torch.allclose(b.grad, 2.0 * dw @ a.T, rtol=1e-4, atol=1e-6)
    assert {n for n, p in view.named_parameters() if p.grad is not None} == {n for n in lora.trained(view)}


def test_peft_computes_the_same(tiny_qwen, tmp_path):
    """PEFT loads what we save, and we load what it saves."""
    peft = pytest.importorskip("peft")
    _, view, _ = shaken(tiny_qwen, ("q_proj", "down_proj"))
    lora.save(tmp_path, view)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_qwen), tmp_path)
    assert by_transformers(theirs) == pytest.approx(logprobs(view), abs=1e-4)
    through_transformers = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert by_transformers(through_transformers) == pytest.approx(logprobs(view), abs=1e-4)
    theirs.save_pretrained(tmp_path / "again")
    model, tokenizer = load_model(tmp_path / "again")  # it has no tokenizer: the base's is taken
    assert tokenizer.chat_template
    assert logprobs(model) == pytest.approx(logprobs(view), abs=1e-4)
    assert logprobs(load_model(tiny_qwen)[0]) != pytest.approx(logprobs(view), abs=1e-2)


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lora") / "run"
    training.train(config(tiny_model), out)
    return out


def test_a_run_saves_its_adapter_alone_and_is_loaded_as_any_other(finished, tiny_model, tmp_path):
    saved = finished / "checkpoints" / "step-2"
    assert not (saved / "model.safetensors").exists()
    about = json.loads((saved / "adapter_config.json").read_text())
    assert (about["r"], about["lora_alpha"], about["base_model_name_or_path"]) == (4, 8.0, str(tiny_model))
    tensors = load_file(saved / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 7 and all(n.startswith("base_model.model.model.layers.") for n in tensors)
    assert any(t.any() for n, t in tensors.items() if "lora_B" in n)
    loaded, start = run.load(finished), run.load(tiny_model)
    assert loaded.chat.stop == start.chat.stop
    ours, before = (m.engine.logprobs([TOKENS[:1]], [TOKENS[1:]])[0] for m in (loaded, start))
    assert max(abs(x - y) for x, y in zip(ours, before, strict=True)) > 1e-3
    convert(saved, tmp_path / "whole")
    assert by_transformers(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")) == pytest.approx(ours, abs=1e-4)


def test_a_resumed_run_has_the_same_bits(finished, tiny_model, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-2")
    training.train(config(tiny_model), tmp_path / "run", resume=True)
    for name in ("adapter_model.safetensors", "trainer/optimizer.safetensors"):
        whole, again = (load_file(r / "checkpoints" / "step-2" / name) for r in (finished, tmp_path / "run"))
        assert whole.keys() == again.keys() and all(torch.equal(whole[k], again[k]) for k in whole)


def test_the_reference_is_the_model_without_its_adapter(tiny_model, tmp_path):
    training.train(config(tiny_model, loss=Loss(beta=0.1)), tmp_path / "run")
    first, second = (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert first["kl"] == pytest.approx(0, abs=1e-9) and second["kl"] > 1e-4
    assert first["mismatch"] < 1e-5 and second["mismatch"] < 1e-5


def test_two_roles_are_two_adapters_on_one_base(tiny_model, tmp_path, monkeypatch):
    kept: dict[str, Any] = {}
    monkeypatch.setattr(training._Setup, "add_learners", seen(training._Setup.add_learners, kept))
    recipe = Tango(rollouts=2, share=False, verifier_warmup=1, verifier_learns="sft", verifier_tokens=6)
    training.train(config(tiny_model, recipe), tmp_path / "run")
    models = kept["setup"].models
    name = "model.layers.0.mlp.up_proj"
    bases = [models[role].get_parameter(f"{name}.weight") for role in ("policy", "verifier")]
    assert bases[0] is bases[1]
    adapters = [models[role].get_parameter(f"adapter.{name}.lora_A.weight") for role in ("policy", "verifier")]
    assert not torch.equal(*adapters)
    saved = tmp_path / "run" / "checkpoints" / "step-2"
    for folder, adapter in zip((saved, saved / "verifier"), adapters, strict=True):
        found = load_file(folder / "adapter_model.safetensors")[f"base_model.model.{name}.lora_A.weight"]
        assert torch.equal(found, adapter)
    start, _ = load_model(tiny_model)
    assert all(torch.equal(p, models["policy"].get_parameter(n)) for n, p in start.named_parameters())


def seen(method: Any, kept: dict[str, Any]) -> Any:
    def called(self: Any, *args: Any) -> Any:
        kept["setup"] = self
        return method(self, *args)

    return called


# ---------------------------------------------------------------- errors


def test_what_cannot_be_adapted_is_refused(finished, tiny_model, tmp_path):
    chosen = config(tiny_model)
    with pytest.raises(ValueError, match=r"lora\.targets is empty"):
        LoraOptions(rank=2, targets=())
    wrong = replace(chosen, lora=LoraOptions(rank=2, targets=("query",)))
    with pytest.raises(ValueError, match=r"lora.targets: Llama has no query, only down_proj, gate_proj"):
        training.train(wrong, tmp_path / "a")
    with pytest.raises(ValueError, match=r"is an adapter itself; make a model of it with `twofold convert"):
        training.train(replace(chosen, model=str(finished)), tmp_path / "b")
    with pytest.raises(ValueError, match="lora: this recipe begins with a new model"):
        training.train(replace(chosen, recipe=Pretrain(hidden=32, layers=1, heads=2, ffn=32)), tmp_path / "c")


def test_other_kinds_of_adapters_and_other_models_are_refused(tiny_model, tiny_qwen, tmp_path):
    _, view, _ = shaken(tiny_model)
    lora.save(tmp_path, view)
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(about | {"use_dora": True}))
    with pytest.raises(ValueError, match="plain LoRA only, not use_dora = True"):
        load_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file({n.replace("q_proj", "query"): t for n, t in tensors.items()}, tmp_path / "adapter_model.safetensors")
    model, _ = load_model(tiny_model)
    with pytest.raises(
        ValueError, match=r"is an adapter of another model: Llama has no model.layers.0.self_attn.query"
    ):
        lora.merge(tmp_path, model)


@pytest.fixture(scope="module")
def adapter(tiny_qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an adapter on another run's checkpoint; that run asks its own question."""
    root = tmp_path_factory.mktemp("adapter")
    words = [
        "train.steps=1",
        "rollout.problems=2",
        "recipe.rollouts=2",
        "rollout.max_tokens=6",
        "judge.question=Is it?",
    ]
    training.train(toml.override(Config(), [f"model={tiny_qwen}", *words]), root / "base")
    return training.train(toml.override(Config(), [f"model={root / 'base'}", *words, "lora.rank=2"]), root / "run")


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("what", ["base", "adapter"])
def test_a_damaged_base_or_adapter_is_neither_loaded_nor_converted(adapter: Path, tmp_path: Path, what: str) -> None:
    copied = shutil.copytree(adapter, tmp_path / "step-1")
    if what == "adapter":
        flipped(copied / "adapter_model.safetensors")
    else:
        base = shutil.copytree(Path(str(lora.base_of(adapter))), tmp_path / "base")
        flipped(base / "model.safetensors")
        shutil.rmtree(copied / "trainer")  # or the changed file below would be the damage that is found
        about = json.loads((copied / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(base)}
        (copied / "adapter_config.json").write_text(json.dumps(about))
    for act in (lambda: run.load(copied), lambda: convert(copied, tmp_path / "out")):
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            act()


def test_a_converted_adapter_asks_the_question_that_it_learnt(adapter: Path, tmp_path: Path) -> None:
    convert(adapter, tmp_path / "out")
    assert run.load(tmp_path / "out").chat.question == run.load(adapter).chat.question == "Is it?"


def test_a_base_that_is_gone_is_named(adapter: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(adapter, tmp_path / "step-1")
    shutil.rmtree(copied / "trainer")
    about = json.loads((copied / "adapter_config.json").read_text()) | {"base_model_name_or_path": "/gone/models/base"}
    (copied / "adapter_config.json").write_text(json.dumps(about))
    with pytest.raises(FileNotFoundError, match=r"adapter_config.json: its base model /gone/models/base is not there"):
        run.load(copied)


# ---------------------------------------------------------------- a base in four bits


def in_four_bits(path: Path) -> tuple[Any, Any]:
    """Return a view with an adapter on a base in four bits, and the same on a base that has these numbers in float32."""
    pytest.importorskip("bitsandbytes")
    views = []
    for packs in (True, False):
        model, _ = load_model(path)
        quantised.quantise(model)
        if not packs:
            for module in model.modules():
                if isinstance(w := module._parameters.get("weight"), quantised.Packed):
                    module._parameters["weight"] = torch.nn.Parameter(quantised.unpacked(w))
        view = lora.attach(model, lora.Lora(4, 8.0, EVERY, str(path)), seed=1)
        for name, p in view.named_parameters():
            if "lora_B" in name:
                p.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        views.append(view)
    return views[0], views[1]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_base_in_four_bits_computes_with_the_numbers_that_it_holds(tiny_qwen, precision):
    packed, plain = in_four_bits(tiny_qwen)
    gradients = []
    for view in (packed, plain):
        learner = Learner(view, Optim(), Loss(), steps=1, precision=precision)
        learner.accumulate([sample()] * 2)
        gradients.append([p.grad for p in view.parameters() if p.grad is not None])
    assert logprobs(packed) == logprobs(plain) != logprobs(lora.off(plain))
    assert len(gradients[0]) == 2 * 7 * 2 and all(map(torch.equal, *gradients))
    with pytest.raises(ValueError, match="vLLM cannot read a base in four bits"):
        quantised.check_whole(packed, "vLLM")
    weights = {n: p for n, p in packed.named_parameters() if isinstance(p, quantised.Packed)}
    assert {n.rpartition("layers.")[0] for n in weights} == {"model."} and len(weights) == 2 * 7
    whole, _ = load_model(tiny_qwen)
    for name, p in weights.items():
        w = whole.get_parameter(name).detach()
        assert p.numel() == w.numel() / 2 and p.element_size() == 1
        assert 0 < float((quantised.unpacked(p) - w).norm() / w.norm()) < 0.15


def test_a_run_on_a_base_in_four_bits_resumes_to_the_bit(tiny_model, tmp_path):
    pytest.importorskip("bitsandbytes")
    chosen = toml.override(config(tiny_model, RLV(rollouts=2, verify="separate")), ["lora.quantise=nf4"])
    last = training.train(chosen, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-2")
    again = training.train(chosen, tmp_path / "again", resume=True)
    files = ("adapter_model.safetensors", "verifier/adapter_model.safetensors")
    assert all((last / file).read_bytes() == (again / file).read_bytes() for file in files)
    assert (last / files[1]).read_bytes() != (last.with_name("step-1") / files[1]).read_bytes()


@pytest.mark.parametrize("engine", [Vllm(), VllmServer(), PythonEngine(source="mine.py:Engine")])
def test_an_engine_with_weights_of_its_own_refuses_a_base_in_four_bits(engine):
    model = torch.nn.Linear(2, 2)
    model.weight = quantised.Packed(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="cannot read a base in four bits"):
        engine.build(model, "float32")


def test_four_bits_without_bitsandbytes_say_what_is_missing(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        ImportError, match=r"lora\.quantise = .nf4. needs bitsandbytes .*: pip install 'twofold\[qlora\]'"
    ):
        training.train(toml.override(config(tiny_model), ["lora.quantise=nf4"]), tmp_path / "run")
