"""One attention function for training (packed, no padding) and for decoding (our own KV).

``transformers`` lets a model call any attention function by name and hands it the keyword arguments of the
forward call. So the same, unmodified module serves the learner and the engine:

    model(input_ids, position_ids=..., layout=Packing(...))    # ragged samples laid end to end
    model(input_ids, position_ids=..., layout=KV(...))         # continue rows of a cache
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

NAME = "twofold"


class Layout(Protocol):
    """Says which keys each query may see, and holds those that are not in this call."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """query [B, H, T, D], key and value [B, H_kv, T, D] -> [B, T, H, D]."""
        ...


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None = None,
    layout: Layout | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    if layout is None:
        raise ValueError(
            f"{type(module).__name__} got no layout: call the model with layout=Packing(...) or KV(...); "
            "a model that does not hand it on to its attention cannot be used"
        )
    if softcap is not None or s_aux is not None:
        raise ValueError(f"{type(module).__name__} caps its attention or has sinks; twofold's attention has neither")
    # under autocast rotation leaves queries and keys in fp32
    return layout.attend(module.layer_idx, query.to(value.dtype), key.to(value.dtype), value, scaling), None


def partial_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, mask: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention to some of the keys, and the log-sum of its weights, by which ``merge`` adds other keys.

    query [B, H, T, D], key and value [B, H_kv, S, D], mask broadcast to [B, H, T, S] -> [B, H, T, D] and, in fp32, [B, H, T].
    """
    if query.device.type == "cpu" and key.shape[-1] == value.shape[-1]:
        mask = None if mask is None else mask.to(query.dtype)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=mask, scale=scale
        )
    groups = query.shape[1] // key.shape[1]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query @ key.repeat_interleave(groups, 1).mT).float() * scale
    if causal:
        scores += torch.full(scores.shape[2:], float("-inf"), device=scores.device).triu(1)
    lse = (scores if mask is None else scores.add_(mask)).logsumexp(-1)
    return (scores - lse[..., None]).exp().to(value.dtype) @ value.repeat_interleave(groups, 1), lse


def merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to two sets of keys from attention to each: [..., D] in fp32 and [...]."""
    share = (other_lse - lse).sigmoid()
    return out.float().lerp(other.float(), share[..., None]), lse.logaddexp(other_lse)


def install(model: Any) -> Any:
    """Make ``model`` use this attention and return it.

    Raises ValueError, by name, for models with other than full attention, with an attention that cannot be
    replaced, or whose logits are not those of the output layer alone (scaled or capped behind it).
    """
    from transformers import AttentionInterface

    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if kinds != {"full_attention"} or window:
        what = ", ".join(sorted(kinds - {"full_attention"})) or f"a sliding window of {window}"
        raise ValueError(f"{type(model).__name__} uses {what}; twofold's attention supports full attention only")
    AttentionInterface.register(NAME, attention)
    model.set_attn_implementation(NAME)
    if config._attn_implementation != NAME:
        raise ValueError(f"{type(model).__name__} has an attention of its own, which twofold cannot replace")
    call: dict[str, Any] = {"input_ids": torch.arange(2, device=model.device)[None], "use_cache": False}
    layout = Packing([2], device=model.device)
    with torch.no_grad():
        logits = model(**call, position_ids=layout.positions, layout=layout).logits
        hidden = model.base_model(**call, position_ids=layout.positions, layout=layout).last_hidden_state
        ours = model.get_output_embeddings()(hidden)
    if not torch.allclose(ours, logits, rtol=1e-3, atol=1e-3):
        raise ValueError(f"{type(model).__name__} scales or caps its logits behind the output layer; twofold does not")
    return model


class Packing:
    """Samples laid end to end in one row of N tokens; each attends causally to itself alone.

    ``shared[s] = (r, n)``: sample s begins with the first n tokens of the earlier sample r, and these are laid once. So a
    prompt runs once, however many samples it has. Everything but attention runs on the N tokens; only inside attention
    are they set out as [samples, longest].

    Lengths (3, 2) give positions 0 1 2 0 1 and slots 0 1 2 3 4 (of 2 x 3); with ``shared = {1: (0, 1)}`` positions
    0 1 2 1, slots 0 1 2 4, and sample 1 is tokens 0 and 3.
    """

    def __init__(
        self,
        lengths: list[int],
        shared: Mapping[int, tuple[int, int]] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        rows, longest = len(lengths), max(lengths)
        index = torch.zeros(rows, longest, dtype=torch.long)  # behind short samples token 0: causality hides it
        self.families: dict[tuple[int, int], list[int]] = defaultdict(list)
        positions, slots, size = [], [], 0
        for s, length in enumerate(lengths):
            source, n = (shared or {}).get(s, (s, 0))
            if n:
                self.families[source, n].append(s)
            index[s, :n] = index[source, :n]
            index[s, n:length] = torch.arange(size, size + length - n)
            positions.append(torch.arange(n, length))
            slots.append(s * longest + positions[-1])
            size += length - n
        self.index = index.to(device)
        self.positions = torch.cat(positions)[None].to(device)
        self.slots = torch.cat(slots).to(device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        q, k, v = (_SetOut.apply(x[0], self) for x in (query, key, value))
        out = sdpa(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        return _Take.apply(out.transpose(1, 2).flatten(0, 1), self.slots)[None]


class _SetOut(torch.autograd.Function):
    """[H, N, D] -> [samples, H, longest, D].

    The gradient is written out: autograd's own adds token by token, which costs more than the attention.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Packing) -> Tensor:
        ctx.layout = layout
        flat = x.transpose(0, 1).index_select(0, layout.index.flatten())
        return flat.view(*layout.index.shape, *flat.shape[1:]).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        layout, gradient = ctx.layout, gradients[0].transpose(1, 2)
        own = gradient.flatten(0, 1).index_select(0, layout.slots)
        for (source, n), members in layout.families.items():
            own[layout.index[source, :n]] += gradient[members, :n].sum(0)
        return own.transpose(0, 1), None


class _Take(torch.autograd.Function):
    """x[slots] for slots that are all different, so that its gradient is a copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.shape = x.shape
        return x.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        return gradients[0].new_zeros(ctx.shape).index_copy_(0, slots, gradients[0]), None
