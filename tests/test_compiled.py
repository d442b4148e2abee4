"""What a GPU runs in the learner, as far as a CPU can tell: the same numbers, and how much memory is moved for them."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from twofold.models import compiled, decoder, logprobs, norm

ROOT = Path(__file__).parents[1]


def some(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def in_bf16(*shape: int, seed: int = 0) -> Tensor:
    return some(*shape, seed=seed, dtype=torch.bfloat16)


TOKENS = torch.arange(48)[:, None]
COMPILED = {
    "norm": (norm._normed, (some(48, 64), some(64), 1e-6, torch.bfloat16)),
    "its gradients": (norm._gradients, (in_bf16(48, 64), some(48, 64), some(64), some(48, 1).exp())),
    "sum and norm": (norm._added_normed, (some(48, 64), in_bf16(48, 64), some(64), 1e-6, torch.bfloat16)),
    "their gradients": (
        norm._added_gradients,
        (some(48, 64), in_bf16(48, 64), some(48, 64), some(64), some(48, 1).exp(), torch.bfloat16),
    ),
    "rotation": (decoder._rotated, (in_bf16(1, 48, 3, 16), some(1, 48, 1, 8, 2), torch.bfloat16, True)),
    "SwiGLU": (decoder._swiglu, (in_bf16(48, 64), in_bf16(48, 64, seed=1))),
    "SwiGLU's gradients": (decoder._swiglu_gradients, tuple(in_bf16(48, 64, seed=i) for i in range(3))),
    "log-probs": (logprobs._read, (in_bf16(48, 500), TOKENS, torch.full((48, 1), 0.7))),
    "their gradient": (
        logprobs._gradient,
        (some(48, 1), in_bf16(48, 500), TOKENS, torch.full((48, 1), 0.7), some(48, 1) + 9),
    ),
}


def compare(name: str, backend: str) -> None:
    function, args = COMPILED[name]
    expected = function(*copy.deepcopy(args))
    with torch.no_grad():
        found = torch.compile(function.__wrapped__, backend=backend, fullgraph=True)(*copy.deepcopy(args))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5 if backend == "aot_eager" else 1e-2)


@pytest.mark.parametrize("name", COMPILED)
def test_every_compiled_function_is_one_graph_with_the_numbers_of_a_cpu(name: str) -> None:
    compare(name, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_every_function_compiles_to_the_same_numbers(name: str) -> None:
    compare(name, "inductor")


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_reread_from_the_logits_are_those_of_a_cpu(temperature: float) -> None:
    weights, entropies, found = some(48), [], []
    for way in (logprobs._Chosen, logprobs._Reread):
        hidden = (some(48, 500) * 5).requires_grad_()
        logp, entropy = way.apply(hidden * 2, TOKENS, torch.full((48, 1), temperature))
        (logp * weights).sum().backward()
        found.append((logp, hidden.grad))
        entropies.append(entropy)
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(entropies[1], entropies[0], atol=1e-5, rtol=1e-4)
    assert not entropies[1].requires_grad


def test_rotation_in_real_numbers_is_the_complex_one_and_back_undoes_it() -> None:
    x, angles = some(1, 7, 3, 16), some(1, 7, 1, 8)
    turn = torch.stack([angles.cos(), angles.sin()], -1)
    turned = decoder._Rotated.apply(x, turn)
    torch.testing.assert_close(decoder._rotated(x, turn, torch.float32), turned)
    torch.testing.assert_close(decoder._rotated(turned, turn, torch.float32, back=True), x, atol=1e-5, rtol=0)


def test_a_machine_that_cannot_compile_says_so_and_learns_as_written(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(function: Any, **_: Any) -> Any:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch, "compile", fails)
    compiled.compiles.cache_clear()
    compiled.compiled.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert compiled.compiled(some) is some
    assert "Failed to find C compiler" in caplog.text
    compiled.compiles.cache_clear()
    compiled.compiled.cache_clear()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_update_moves_what_it_must_on_a_gpu(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen2.5-0.5B's shape with 3 layers, two micro-batches. Without what is compiled, kept and packed it was 24 MB a token."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    import counts
    from gpu import SHAPES

    given = counts.samples(2, 16, 256, verify=True)
    counted = counts.count({**SHAPES["0.5B"], "layers": 3}, given, 8192, checkpointing)
    layers, runs = 2 * 3, 2 if checkpointing else 1
    made = {name.removeprefix("fused "): n for name, n in counted.operations.items() if name.startswith("fused ")}
    assert made == {
        "_normed_as_written": layers * runs + 2,
        "_added_normed": layers * runs,
        "_rotated": layers * (runs + 1),
        "_swiglu": layers * runs,
        "_swiglu_gradients": layers,
        "_added_gradients": layers,
        "_gradients_as_written": layers + 2,
        "_read": made["_read"],
        "_gradient": made["_gradient"],
    }
    if not checkpointing:  # logits are kept, in one piece
        assert made["_read"] == made["_gradient"] == 2
    assert counted.operations["_flash_attention_forward"] == layers * runs
    assert counted.operations["_flash_attention_backward"] == layers
    tokens = sum(len(s.tokens) - 60 for s in given)
    outside = sum(n for name, n in counted.bytes.items() if name not in counts.PRODUCTS)
    assert outside / tokens < (5.1e6 if checkpointing else 3.1e6)
