"""Three operations of a decode step that are one kernel each on a CUDA device (``kernels.decoding``).

Here is each one's slow and obvious version. It runs on a CPU, and is what the tests hold the kernel against.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch.nn.functional import silu

from twofold.models.norm import rms_norm


@custom_op("twofold::add_norm", mutates_args=("x_A_C",), device_types="cpu")
def add_norm(x_A_C: Tensor, change_A_C: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    """Add ``change`` to ``x``, in place, and return the RMSNorm of the sum, in the type of ``change``."""
    return rms_norm(x_A_C.add_(change_A_C), weight_C, eps, change_A_C.dtype)


@custom_op("twofold::attend_one", mutates_args=("keys_R_H_S_D", "values_R_H_S_D"), device_types="cpu")
def attend_one(
    qkv_A_X: Tensor,
    turns_N_D: Tensor,
    at_1: Tensor,
    start_R: Tensor,
    keys_R_H_S_D: Tensor,
    values_R_H_S_D: Tensor,
    source_R: Tensor,
    shared_keys_P_H_T_D: Tensor,
    shared_values_P_H_T_D: Tensor,
    scale: float,
) -> Tensor:
    """Append one token to each of the first A rows of a cache, and return the attention's output for it, [A, heads * D].

    ``qkv`` holds the token's queries, keys and values, before the rotation. The cache holds ``at`` tokens of each row's own. The
    row begins with the first ``start[r]`` tokens of row ``source[r]`` of the shared keys and values, so its token stands at
    position start[r] + at. ``turns`` holds cosine and sine of each pair of a head's dimensions, by position.
    """
    A, kv_heads, D = len(qkv_A_X), *keys_R_H_S_D.shape[1::2]
    start, source = start_R[:A], source_R[:A]
    every = qkv_A_X.view(A, -1, D)
    pairs, turn = (torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) for x in (every, turns_N_D[start + at_1]))
    turned = torch.view_as_real(pairs[:, :-kv_heads] * turn[:, None]).flatten(2).to(keys_R_H_S_D.dtype)
    query, key = turned.split([turned.shape[1] - kv_heads, kv_heads], 1)
    value = every[:, -kv_heads:].to(values_R_H_S_D.dtype)
    keys_R_H_S_D[:A].index_copy_(2, at_1, key[:, :, None])
    values_R_H_S_D[:A].index_copy_(2, at_1, value[:, :, None])
    keys = torch.cat([shared_keys_P_H_T_D[source], keys_R_H_S_D[:A]], 2)
    values = torch.cat([shared_values_P_H_T_D[source], values_R_H_S_D[:A]], 2)
    own = torch.arange(keys_R_H_S_D.shape[2], device=at_1.device) <= at_1
    shared = torch.arange(shared_keys_P_H_T_D.shape[2], device=at_1.device) < start[:, None]
    seen = torch.cat([shared, own.expand(A, -1)], 1)[:, None, None]
    out = sdpa(query[:, :, None], keys, values, attn_mask=seen, scale=scale, enable_gqa=True)
    return out.flatten(1).to(qkv_A_X.dtype)


@custom_op("twofold::gated", mutates_args=(), device_types="cpu")
def gated(gate_and_up_A_F: Tensor) -> Tensor:
    """Return silu(gate) * up, [A, F / 2]."""
    gate, up = gate_and_up_A_F.chunk(2, 1)
    return silu(gate) * up


def on_cuda(name: str, *arguments: Any) -> Any:
    """Call a function of ``kernels.decoding``, which is imported no sooner: without a CUDA device there may be no Triton."""
    from twofold.models.kernels import decoding

    return getattr(decoding, name)(*arguments)


add_norm.register_kernel("cuda", partial(on_cuda, "add_norm"))
attend_one.register_kernel("cuda", partial(on_cuda, "attend_one"))
gated.register_kernel("cuda", partial(on_cuda, "gated"))
