"""What a GPU runs in the learner, as far as a CPU can tell: the same numbers, and how much memory is moved for them."""

from __future__ import annotations

import copy
import logging
import os
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from twofold.models import decoder, logprobs, norm, passes

ROOT = Path(__file__).parents[1]


def some(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


TOKENS = torch.arange(48)[:, None]
HALF = torch.float16  # Triton's interpreter knows no bfloat16


def halves(*shape: int, seed: int = 0) -> Tensor:
    return some(*shape, seed=seed, dtype=HALF)


PASSES = {
    "normed": (norm._normed, (some(48, 70), some(70), 1e-6, HALF)),
    "normed_gradients": (norm._gradients, (halves(48, 70), some(48, 70), some(70), some(48, 1).exp())),
    "added_normed": (norm._added_normed, (some(48, 70), halves(48, 70), some(70), 1e-6, HALF)),
    "added_gradients": (
        norm._added_gradients,
        (some(48, 70), halves(48, 70), some(48, 70), some(70), some(48, 1).exp(), HALF),
    ),
    "rotated": (decoder._rotated, (halves(2, 24, 5, 16)[:, :, :3], some(2, 24, 1, 8, 2), HALF, True)),
    "swiglu": (decoder._swiglu, (halves(48, 70), halves(48, 70, seed=1))),
    "swiglu_gradients": (decoder._swiglu_gradients, tuple(halves(48, 70, seed=i) for i in range(3))),
    "read": (logprobs._read, (halves(48, 5000), TOKENS, torch.full((48, 1), 0.7))),
    "gradient": (
        logprobs._gradient,
        (some(48, 1), halves(48, 5000), TOKENS, torch.full((48, 1), 0.7), some(48, 1) + 9),
    ),
}


@pytest.mark.parametrize("name", PASSES)
def test_a_kernel_computes_what_it_takes_the_place_of(name: str) -> None:
    """In Triton's interpreter (see conftest.py). Rows are no power of two wide; the rotation reads a part of a wider tensor."""
    if "TRITON_INTERPRET" not in os.environ:
        pytest.skip("bench/gpu.py compares the numbers on a GPU")
    pytest.importorskip("triton", minversion="3.9")
    function, args = PASSES[name]
    expected = function(*copy.deepcopy(args))
    found = passes.kernel(name, function)(*copy.deepcopy(args))
    assert found is not expected
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)


def test_every_pass_has_its_kernel() -> None:
    """Each decorated function names one, so that no kernel is missed only where there is a GPU."""
    sources = "".join(Path(m.__file__).read_text() for m in (norm, decoder, logprobs))
    assert sorted(re.findall(r'one_pass\("(\w+)"\)', sources)) == sorted(PASSES)


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


@pytest.mark.parametrize(
    ("triton", "gpu", "words"),
    [
        (None, None, "Triton is not installed"),
        ("installed", (7, 5), "this GPU is older than compute capability 8.0"),
        ("installed", (8, 0), ""),
    ],
)
def test_a_machine_that_cannot_run_the_kernels_says_so_and_learns_as_written(
    triton: str | None,
    gpu: tuple[int, int] | None,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(passes, "find_spec", lambda name: triton)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: gpu)
    passes.has_triton.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert passes.has_triton() is (not words)
        assert not words or passes.kernel("swiglu", decoder._swiglu) is decoder._swiglu
    assert words in caplog.text and bool(words) == bool(caplog.text)
    passes.has_triton.cache_clear()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_update_moves_what_it_must_on_a_gpu(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen2.5-0.5B's shape with 3 layers, two micro-batches. Without what is fused, kept and packed it was 24 MB a token."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    import counts
    from gpu import SHAPES

    given = counts.samples(2, 16, 256, verify=True)
    counted = counts.count({**SHAPES["0.5B"], "layers": 3}, given, 8192, checkpointing)
    layers, runs = 2 * 3, 2 if checkpointing else 1
    made = {name.removeprefix("fused "): n for name, n in counted.operations.items() if name.startswith("fused ")}
    assert made == {
        "normed": layers * runs + 2,
        "added_normed": layers * runs,
        "rotated": layers * (runs + 1),
        "swiglu": layers * runs,
        "swiglu_gradients": layers,
        "added_gradients": layers,
        "normed_gradients": layers + 2,
        "read": made["read"],
        "gradient": made["gradient"],
    }
    if not checkpointing:  # logits are kept, in one piece
        assert made["read"] == made["gradient"] == 2
    assert counted.operations["_flash_attention_forward"] == layers * runs
    assert counted.operations["_flash_attention_backward"] == layers
    tokens = sum(len(s.tokens) - 60 for s in given)
    outside = sum(n for name, n in counted.bytes.items() if name not in counts.PRODUCTS)
    assert outside / tokens < (5.1e6 if checkpointing else 3.1e6)
