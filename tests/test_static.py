"""The decode step of fixed shape: its tokens are those of the ragged path, and what it costs is counted.

The conformance suite (``test_engines``) runs over it too. The Triton kernels run in Triton's interpreter, and are compiled for an
H100, where Triton is installed (``pip install triton``); only a GPU can say how fast they are.
"""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from twofold.engines import static
from twofold.engines.native import NativeEngine
from twofold.engines.sampling import draw
from twofold.engines.static import Step, obstacle
from twofold.models import fused
from twofold.models.install import install
from twofold.types import Completion, Sampling

PROMPTS = [[5, 17, 90, 42, 9], [8], [77, 78], list(range(60, 80)), [20, 3, 21], [77, 78]]
STOPS = tuple(range(0, 96, 9))
MODELS = {
    "Qwen2Config": dict(tie_word_embeddings=True),
    "LlamaConfig": dict(mlp_bias=True),
    "Qwen3Config": dict(head_dim=16),
}


def model_of(config: str, layers: int = 2) -> Any:
    shape = dict(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4)
    shape |= dict(num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.4)
    shape |= dict(bos_token_id=None, eos_token_id=None, pad_token_id=None) | MODELS.get(config, {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(getattr(transformers, config)(**shape)).float().eval()
        for name, p in model.named_parameters():
            if name.endswith("bias"):  # biases of zeros would hide a mistake
                p.data.normal_()
    return install(model)


def engines(model: Any, **options: Any) -> tuple[NativeEngine, NativeEngine]:
    """Return the engine as a CPU has it and the static one."""
    ragged, fixed = NativeEngine(model, **options), NativeEngine(model, **options)
    fixed.static = True
    return ragged, fixed


def assert_same(found: list[list[Completion]], want: list[list[Completion]]) -> None:
    assert [[(c.tokens, c.finish) for c in group] for group in found] == [
        [(c.tokens, c.finish) for c in g] for g in want
    ]
    for a, b in zip((c for g in found for c in g), (c for g in want for c in g), strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4, rel=0)
        assert (a.token_confidence is None) == (b.token_confidence is None)
        if a.token_confidence and b.token_confidence:
            assert a.token_confidence == pytest.approx(b.token_confidence, abs=1e-4, rel=0)
            assert a.token_certainty == pytest.approx(b.token_certainty, abs=1e-4, rel=0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often, keep few rows and allocate little, so that short samples meet every case."""
    for name, value in (("LOOK", 3), ("FEWEST", 2), ("ROOM", 8)):
        monkeypatch.setattr(static, name, value)


# What is drawn --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", MODELS)
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(n=8, max_tokens=40, stop=STOPS, seed=2),
        Sampling(n=1, max_tokens=23, stop=STOPS[:3], temperature=0.6, seed=3),
        Sampling(n=3, max_tokens=9, stop=STOPS, temperature=1.2, top_p=0.7, trace_top=2),
        Sampling(n=2, max_tokens=12, temperature=0),
        Sampling(n=2, max_tokens=1),
    ],
    ids=["many", "one", "top-p", "greedy", "one token"],
)
@pytest.mark.usefixtures("small")
def test_the_static_path_draws_what_the_ragged_one_draws(config: str, sampling: Sampling) -> None:
    """So do a second call, whose prompts begin with the first one's samples, and the scores of those."""
    ragged, fixed = engines(model_of(config), max_rows=24)
    want, reported = ragged.generate(PROMPTS, sampling), {}
    found = fixed.generate(PROMPTS, sampling, lambda i, j, c: reported.update({(i, j): c}))
    assert_same(found, want)
    assert reported == {(i, j): c for i, group in enumerate(found) for j, c in enumerate(group)}
    texts = [
        [*p, *c.tokens[:k], 60, 61] for p, group in zip(PROMPTS, want, strict=True) for k, c in enumerate(group, 1)
    ]
    assert fixed.logprobs(texts, [[50]] * len(texts)) == [
        pytest.approx(x, abs=1e-4) for x in ragged.logprobs(texts, [[50]] * len(texts))
    ]
    again = replace(sampling, n=2, max_tokens=5, seed=8)
    before = replace(fixed.usage)
    assert_same(fixed.generate(texts, again), ragged.generate(texts, again))
    assert fixed.usage.reused > before.reused


@pytest.mark.usefixtures("small")
def test_rows_are_dropped_by_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """48 rows begin; a step never has more than twice the rows that were live at the last look, unless it has few."""
    seen: list[tuple[int, int]] = []
    plain = Step.__call__

    def watched(step: Step) -> None:
        seen.append((step.rows, step.decoding.live))
        plain(step)

    monkeypatch.setattr(Step, "__call__", watched)
    _, fixed = engines(model_of("Qwen2Config"))
    fixed.generate(PROMPTS, Sampling(n=8, max_tokens=60, stop=STOPS, seed=2))
    assert {rows for rows, _ in seen} == {48, 24, 12, 6, 3}
    assert all(rows >= live for rows, live in seen)
    assert all(rows // 2 < live or rows == 3 for rows, live in seen)


def test_bfloat16_is_that_of_the_ragged_path() -> None:
    """The log-probs of the static path's tokens are those that the ragged path scores, ten times nearer than in fp32."""
    model = model_of("Qwen2Config")
    _, fixed = engines(model, precision="bfloat16")
    groups = fixed.generate(PROMPTS, Sampling(n=4, max_tokens=12))
    prompts, tokens = PROMPTS * 4, [group[j].tokens for j in range(4) for group in groups]
    drawn = torch.tensor([group[j].logprobs for j in range(4) for group in groups])

    def gap(precision: Any) -> float:
        return float(
            (torch.tensor(NativeEngine(model, precision=precision).logprobs(prompts, tokens)) - drawn).abs().mean()
        )

    assert gap("bfloat16") < 0.3 * gap("float32")


def test_new_weights_are_seen_after_load() -> None:
    model = model_of("LlamaConfig")
    ragged, fixed = engines(model)
    sampling = Sampling(n=2, max_tokens=6)
    fixed.generate(PROMPTS, sampling)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    fixed.load({})
    assert_same(fixed.generate(PROMPTS, sampling), ragged.generate(PROMPTS, sampling))


# What a step costs ----------------------------------------------------------------------------------------------------

VIEWS = {"slice", "select", "unsqueeze", "alias", "view", "chunk", "split", "transpose", "t", "expand", "flatten"}
WAITS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "bincount"}


class Counting(TorchDispatchMode):
    """Counts the operations that are kernels, and those of them that read a tensor of the shape ``logits``. Refuses one that
    waits for a number from the device, or that moves one there."""

    def __init__(self, logits: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.logits, self.kernels, self.readers = logits, Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        assert name not in WAITS and not masks, f"{name} waits for the device"
        devices = {x for x in (*args, *(kwargs or {}).values()) if isinstance(x, torch.device)}
        assert devices <= {torch.device("cpu")}, f"{name} moves a tensor"
        if name not in VIEWS:
            self.kernels[name] += 1
            if any(isinstance(x, torch.Tensor) and tuple(x.shape) == self.logits for x in args):
                self.readers[name] += 1
        return func(*args, **(kwargs or {}))


def counted(layers: int, sampling: Sampling, config: str = "Qwen2Config") -> Counting:
    """Return the counts of the last step of a call in bfloat16 with two prompts."""
    _, fixed = engines(model_of(config, layers), precision="bfloat16")
    plain, found = Step.__call__, []

    def watched(step: Step) -> None:
        found.append(Counting(logits=(2 * sampling.n, 96)))
        with found[-1], pytest.MonkeyPatch.context() as patch:
            for unseen in ("tolist", "numpy"):  # on a CPU these read memory without an operation
                patch.setattr(torch.Tensor, unseen, None)
            plain(step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "__call__", watched)
        fixed.generate(PROMPTS[:2], sampling)
    return found[-1]


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_a_step_has_8_kernels_per_layer_and_18_more(temperature: float) -> None:
    """Per layer these are four products, two norms, the attention and the gate. ``draw_one`` is two kernels on a GPU. Nothing is
    cast or copied but the tokens, and the logits are read once."""
    sampling = Sampling(n=100, max_tokens=4, temperature=temperature)
    two, three = counted(2, sampling), counted(3, sampling)
    assert three.kernels - two.kernels == Counter(linear=4, add_norm=2, attend_one=1, gated=1)
    assert two.kernels.total() + 1 - 2 * 8 <= 18
    assert two.readers == Counter(draw_one=1)
    assert not {name for name in two.kernels if "copy" in name} - {"copy_", "index_copy_"}
    assert two.kernels["copy_"] == 1 and two.kernels["index_copy_"] == 2


@pytest.mark.parametrize("sampling", [Sampling(n=2, max_tokens=4, top_p=0.8, trace_top=3)])
def test_what_is_only_done_when_asked_does_not_wait_either(sampling: Sampling) -> None:
    assert counted(2, sampling, "Qwen3Config").kernels.total() > 40


def test_the_count_refuses_what_waits() -> None:
    one = torch.ones(1)
    waiting = (one.item, one.nonzero, lambda: one[one > 0], lambda: bool(one[0]))
    for wait in waiting:
        with pytest.raises(AssertionError, match="waits"), torch.inference_mode(), Counting():
            wait()
    with pytest.raises(AssertionError, match="moves"), torch.inference_mode(), Counting():
        one.to("meta")


# Which models ---------------------------------------------------------------------------------------------------------


def test_another_family_is_decoded_slowly_and_said_so_once(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=96, bos_token_id=None, eos_token_id=None
    )
    model = install(AutoModelForCausalLM.from_config(config).eval())
    assert "CUDA" in obstacle(model)
    with caplog.at_level(logging.WARNING):
        assert not NativeEngine(model).static and not caplog.records
        monkeypatch.setattr(type(model), "device", property(lambda self: torch.device("cuda")))
        assert not NativeEngine(model).static
    (record,) = caplog.records
    assert "GPT2LMHeadModel is not of Llama's family" in record.getMessage()


# The kernels ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def kernels() -> ModuleType:
    """Return ``twofold.models.kernels.decoding`` in Triton's interpreter (see conftest.py); older ones fail on loops."""
    if "TRITON_INTERPRET" not in os.environ:
        pytest.skip("bench/gpu.py compares the paths on a GPU")
    pytest.importorskip("triton", minversion="3.9")
    return importlib.import_module("twofold.models.kernels.decoding")


@pytest.mark.parametrize(
    ("group", "width", "own", "shared", "at", "dtype"),
    [
        (2, 8, 5, 9, 0, torch.float32),  # the first own token
        (7, 24, 70, 130, 69, torch.float32),  # sizes that are no powers of two; more than a block of keys
        (1, 64, 130, 3, 128, torch.float16),
    ],
)
def test_the_attention_kernel(
    kernels: ModuleType, group: int, width: int, own: int, shared: int, at: int, dtype: torch.dtype
) -> None:
    """The plain version is the oracle. Three of four rows take part. A row may begin in no token of the shared ones."""
    torch.manual_seed(0)
    angles = torch.randn(own + shared, width // 2)
    turns = torch.stack([angles.cos(), angles.sin()], -1).flatten(1)
    qkv = torch.randn(3, (group + 2) * 2 * width).to(dtype)
    begin = [
        torch.randn(3, shared, 2, width).to(dtype).transpose(1, 2) for _ in range(2)
    ]  # as a copied cache is laid out
    cache = [torch.randn(4, 2, own, width).to(dtype) for _ in range(2)]
    start, source = torch.tensor([shared, 0, shared - 1, 1]), torch.tensor([2, 1, 2, 0])
    results = []
    for attend in (fused.attend_one, kernels.attend_one):
        mine = [x.clone() for x in cache]
        results.append((attend(qkv, turns, torch.tensor([at]), start, *mine, source, *begin, width**-0.5), *mine))
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    for found, want in zip(*results, strict=True):
        torch.testing.assert_close(found, want, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_norm_and_the_gate_kernels(kernels: ModuleType, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, change, weight = torch.randn(5, 12), torch.randn(5, 12).to(dtype), torch.randn(12)
    sums = x.clone(), x.clone()
    found, want = (
        f(mine, change, weight, 1e-5) for f, mine in zip((kernels.add_norm, fused.add_norm), sums, strict=True)
    )
    tolerance = 1e-6 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(found, want, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(sums[0], x + change)
    both = torch.randn(3, 2 * 1500).to(dtype)
    torch.testing.assert_close(kernels.gated(both), fused.gated(both), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("vocabulary", "impossible"), [(40, 3), (700, 512), (1024, 0)])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.0, 1e-3])
def test_the_draw_kernels(kernels: ModuleType, vocabulary: int, impossible: int, temperature: float) -> None:
    """They draw the tokens of ``draw`` with its log-probs, also at both ends of the unit interval. A chunk may be impossible."""
    torch.manual_seed(0)
    logits = 4 * torch.randn(12, vocabulary)
    logits[:, :impossible] = -torch.inf
    numbers = torch.rand(12, dtype=torch.float64)
    numbers[0], numbers[1] = 0, 1 - 2**-53
    tokens, logprobs = kernels.draw_one(logits, numbers, temperature)
    want, expected = draw(logits, numbers, temperature, 1.0)
    assert tokens.tolist() == want.tolist()
    torch.testing.assert_close(logprobs, expected, atol=2e-6, rtol=0)


def test_a_grid_of_uniforms_gives_the_probabilities(kernels: ModuleType) -> None:
    logits = torch.tensor([0.1, 0.4, 0.0, 0.2, 0.3]).log().expand(50, -1).contiguous()
    tokens, logprobs = kernels.draw_one(logits, (torch.arange(50, dtype=torch.float64) + 0.5) / 50, 1.0)
    assert torch.bincount(tokens).tolist() == [5, 20, 0, 10, 15]
    assert sorted({round(x, 4) for x in logprobs.exp().tolist()}) == [0.1, 0.2, 0.3, 0.4]


def test_the_whole_step_over_the_kernels(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operations are called as a CUDA device would: by the dispatcher's key."""

    def on_cuda(name: str) -> Any:
        op, key = getattr(torch.ops.twofold, name).default, torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        return lambda *arguments: op.redispatch(key, *arguments)

    for name in ("attend_one", "add_norm", "gated", "draw_one"):
        monkeypatch.setattr(static, name, on_cuda(name))
    ragged, fixed = engines(model_of("Qwen2Config"))
    sampling = Sampling(n=2, max_tokens=6, stop=STOPS, seed=1)
    assert_same(fixed.generate(PROMPTS[:3], sampling), ragged.generate(PROMPTS[:3], sampling))


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from twofold.models.kernels import decoding as k

types = dict.fromkeys(["qkv", "keys", "values", "shared_keys", "shared_values", "out", "change", "both", "logits"], "*bf16")
types |= dict.fromkeys(["x", "turns", "weight", "greatest", "sums", "logprobs"], "*fp32") | {"uniforms": "*fp64"}
types |= dict.fromkeys(["at", "start", "source", "tokens"], "*i64") | dict.fromkeys(["scale", "eps", "temperature"], "fp32")
for kernel, constants in (
    (k._attend_one, dict(GROUP=7, KV_HEADS=2, D=64, BLOCK_G=16, HALF=32, BLOCK=64)),
    (k._add_norm, dict(WIDTH=896, BLOCK=1024)),
    (k._gated, dict(WIDTH=4864, BLOCK=1024)),
    (k._chunk_sums, dict(CHUNK=512)),
    (k._draw_one, dict(GREEDY=False, LEAST=-80.0, CHUNK=512, CHUNKS=512)),
):
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    assert triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


def test_the_kernels_compile_for_an_h100() -> None:
    """The interpreter accepts more than the compiler does."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    subprocess.run([sys.executable, "-c", COMPILE], check=True, env=environment)
