"""A frozen base in four bits under an adapter (QLoRA, arXiv:2305.14314), by bitsandbytes.

The matrices of the layers become NF4 numbers in blocks of 64, whose scales are quantised again ("double quantisation"): 0.52 bytes
a weight in place of 4. ``Decoder`` turns one back where it reads it, and adds the adapter to what comes out. Embeddings, norms,
biases and the output matrix stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Packed(nn.Parameter):
    """A matrix in four bits: its bytes, with ``state``, by which bitsandbytes unpacks them, and the ``matrix``'s shape."""

    state: Any
    matrix: torch.Size


def quantise(model: nn.Module) -> None:
    """Replace the matrices of the layers of ``model`` in place. Raises ImportError, which says what to do, without bitsandbytes."""
    try:
        from bitsandbytes.functional import quantize_4bit
    except ImportError as error:
        missing = 'lora.quantise = "nf4" needs bitsandbytes'
        raise ImportError(f"{missing} ({error}): pip install 'twofold[qlora]'") from error
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if ".layers." in name and weight is not None and weight.ndim == 2 and not isinstance(weight, Packed):
            # in one row: on CPUs bitsandbytes 0.50 unpacks rows of fewer than 64 numbers wrongly
            packed, state = quantize_4bit(weight.detach().view(1, -1), quant_type="nf4", compress_statistics=True)
            module._parameters["weight"] = new = Packed(packed, requires_grad=False)
            new.state, new.matrix = state, weight.shape


def quantised(model: nn.Module) -> bool:
    """Return whether ``model`` has matrices in four bits."""
    return any(isinstance(p, Packed) for p in model.parameters())


def unpacked(weight: Packed) -> Tensor:
    """Return the matrix in the type in which it was quantised."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.detach().as_subclass(torch.Tensor), weight.state).view(weight.matrix)


def shape(weight: Tensor) -> torch.Size:
    """Return the shape of a matrix, in four bits or not."""
    return weight.matrix if isinstance(weight, Packed) else weight.shape


def check_whole(model: nn.Module, who: str) -> None:
    """Raise ValueError if ``model`` has matrices in four bits, which ``who`` cannot read."""
    if quantised(model):
        raise ValueError(f'lora.quantise = "nf4": {who} cannot read a base in four bits; set lora.quantise = "none"')
