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
    if query.device.type == "cpu":  # attention itself is slower in bfloat16 there, its backward pass several times
        with torch.autocast("cpu", enabled=False):
            return layout.attend(module.layer_idx, query.float(), key.float(), value.float(), scaling), None
    return layout.attend(module.layer_idx, query, key, value, scaling), None


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


class KV:
    """Keys and values of many rows of different lengths, one tensor [rows, H_kv, capacity, D] per layer.

    The first ``active`` rows take part in a call; a finished row is swapped behind them and keeps its cache,
    so that a judgement or a probe can go on from it without a second prefill. A row holds up to ``capacity - 1``
    tokens: the last slot takes what padding writes.
    """

    def __init__(self, rows: int, capacity: int, device: torch.device | str = "cpu") -> None:
        self.capacity = capacity
        self.active = rows
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._mask: Tensor | None = None
        self._reach = 0

    def begin(self, counts: Tensor) -> Tensor:
        """Row r < active is to append ``counts[r]`` tokens, right-padded to T = max; returns positions [active, T]."""
        device = self.lengths.device
        start = self.lengths[: self.active]
        steps = torch.arange(int(counts.max()), device=device)
        positions = start[:, None] + steps
        self._reach = int((start + counts).max())
        if self._reach >= self.capacity:
            raise ValueError(f"a row would hold {self._reach} tokens, the cache has room for {self.capacity - 1}")
        # padded steps write behind the row's end: clamped to the last slot, and hidden by every later mask
        self._write = positions.clamp(max=self.capacity - 1)
        seen = torch.arange(self._reach, device=device)[None, None] <= positions[:, :, None]
        self._mask = torch.zeros(seen.shape, device=device).masked_fill(~seen, float("-inf"))[:, None]
        return positions

    def end(self, counts: Tensor) -> None:
        self.lengths[: self.active] += counts

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        rows, heads, steps, width = query.shape
        if layer == len(self.keys):
            # both of the values' type: under autocast rotation leaves keys in fp32, to be rounded at every step
            for store, x in ((self.keys, key), (self.values, value)):
                store.append(value.new_zeros(len(self.lengths), x.shape[1], self.capacity, x.shape[3]))
        keys, values = self.keys[layer], self.values[layer]
        row = torch.arange(rows, device=key.device)[:, None]
        keys[row, :, self._write] = key.transpose(1, 2).to(keys.dtype)
        values[row, :, self._write] = value.transpose(1, 2)
        keys, values, mask = keys[:rows, :, : self._reach], values[:rows, :, : self._reach], self._mask
        assert mask is not None
        mask = mask.to(query.dtype)
        if steps == 1:  # the heads that share a key head become its queries: no copy of the cache
            query = query.view(rows, key.shape[1], heads // key.shape[1], width)
            out = sdpa(query, keys, values, attn_mask=mask, scale=scale)
            return out.reshape(rows, 1, heads, value.shape[3])
        out = sdpa(query, keys, values, attn_mask=mask, scale=scale, enable_gqa=heads != key.shape[1])
        return out.transpose(1, 2)

    def retire(self, finished: list[int]) -> tuple[list[int], list[int]]:
        """Swap finished rows behind the active ones; returns the row indices exchanged, pairwise."""
        self.active -= len(finished)
        done = set(finished)
        front = [i for i in finished if i < self.active]
        back = [i for i in range(self.active, self.active + len(finished)) if i not in done]
        if front:
            to, fro = torch.tensor(front + back), torch.tensor(back + front)
            for x in (*self.keys, *self.values, self.lengths):
                x[to] = x[fro]
        return front, back

    def fork(self, rows: Tensor, lengths: Tensor, capacity: int) -> KV:
        """A new cache whose row i continues the first ``lengths[i]`` tokens of row ``rows[i]``."""
        new = KV(len(rows), capacity, self.lengths.device)
        new.lengths = lengths.clone().to(self.lengths.device)
        keep = min(int(lengths.max()), self.capacity)
        for mine, theirs in ((new.keys, self.keys), (new.values, self.values)):
            for x in theirs:
                y = x.new_zeros(len(rows), x.shape[1], capacity, x.shape[3])
                y[:, :, :keep] = x[rows, :, :keep]
                mine.append(y)
        return new

    @staticmethod
    def join(parts: list[KV], order: list[int]) -> KV:
        """One cache of the rows of all parts (of one capacity): the i-th, end to end, becomes row ``order[i]``."""
        whole = KV(len(order), parts[0].capacity, parts[0].lengths.device)
        where = torch.tensor(order).argsort()
        whole.lengths = torch.cat([p.lengths for p in parts])[where]
        whole.keys = [torch.cat(layer)[where] for layer in zip(*(p.keys for p in parts), strict=True)]
        whole.values = [torch.cat(layer)[where] for layer in zip(*(p.values for p in parts), strict=True)]
        return whole
