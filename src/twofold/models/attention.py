"""One attention function for training (packed, no padding) and for decoding (our own KV).

``transformers`` lets a model call any attention function by name and passes it the keyword arguments of the
forward call. So the same, unmodified module serves the learner and the engine:

    model(input_ids, position_ids=..., layout=Packing(...))    # ragged samples laid end to end
    model(input_ids, position_ids=..., layout=KV(...))         # continue rows of a cache
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from twofold.models import exact
from twofold.models.passes import on_gpu

NAME = "twofold"
BLOCK = 2**20
"""The most attention weights that a CPU's backward pass holds at a time (but at least those of 64 queries)."""
BUCKET = 2048
"""The most tokens of samples of unequal length that a CPU handles in one product."""


class Layout(Protocol):
    """Knows which keys each query may see, and holds the keys that are not in this call."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """query [B, H, T, D], key and value [B, H_kv, T, D] -> [B, T, H, D]."""
        ...

    def attend_exactly(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Do the same by ``models.exact.attend``, whose bits depend on the query's own text alone."""
        ...


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
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
            "a model that does not pass it on to its attention cannot be used"
        )
    if softcap is not None or s_aux is not None:
        raise ValueError(f"{type(module).__name__} caps its attention or has sinks; twofold's attention has neither")
    if attention_mask is not None:
        raise ValueError(f"{type(module).__name__} makes a mask of its own; twofold's attention knows causality alone")
    dtype = attention_dtype(value)
    with torch.autocast(value.device.type, enabled=False):  # autocast would cast them back
        return layout.attend(module.layer_idx, query.to(dtype), key.to(dtype), value.to(dtype), scaling), None


def attention_dtype(value: Tensor) -> torch.dtype:
    """Return the type to attend in: that of the values (bfloat16 under autocast), on a CPU fp32, as fast there and more exact."""
    return torch.float32 if value.device.type == "cpu" else value.dtype


def partial_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, mask: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Return attention to some of the keys, and the log-sum of its weights, with which ``merge`` adds other keys.

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
    """Return attention to two sets of keys, given attention to each: [..., D] in fp32 and [...]."""
    share = (other_lse - lse).sigmoid()
    return out.float().lerp(other.float(), share[..., None]), lse.logaddexp(other_lse)


def flash(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float | None) -> Tensor:
    """Return FlashAttention's output [N, H, D] for queries [N, H, D] to keys and values [K, H_kv, D] that lie end to end.

    Stretch i of the queries attends to stretch i of the keys, of which its own tokens are the last: causality is aligned to
    the end. No [N, K] matrix exists, and the gradient needs no more than the log-sums that the kernel keeps.
    """
    starts = spans.query_starts, spans.key_starts
    return torch.ops.aten._flash_attention_forward(
        query, key, value, *starts, *spans.longest, 0.0, True, False, scale=scale
    )[0]


def flashes(query: Tensor, value: Tensor) -> bool:
    """Return whether ``flash`` can be used: in 16 bits, on NVIDIA's GPUs from Ampere on, for heads of up to 256 numbers."""
    width = query.shape[-1]
    return (
        on_gpu(query)
        and query.dtype in (torch.bfloat16, torch.float16)
        and width == value.shape[-1] <= 256
        and width % 8 == 0
        and (query.is_meta or torch.cuda.get_device_capability(query.device) >= (8, 0))
    )


@dataclass(frozen=True, slots=True)
class Spans:
    """Where stretches of queries and of keys begin and end, for ``flash``."""

    query_starts: Tensor  # [stretches + 1], int32; the last is the end
    key_starts: Tensor
    longest: tuple[int, int]  # tokens of the longest stretch of queries, and of keys
    seen: Tensor  # [K] which laid token each key is


class _Repeated(torch.autograd.Function):
    """x[index] for x [N, H, D]. The gradients of a row that occurs often are summed in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.index, ctx.rows = index, len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (g,) = gradients
        total = g.new_zeros(ctx.rows, *g.shape[1:], dtype=torch.float32)
        return total.index_add_(0, ctx.index, g.float()).to(g.dtype), None


@dataclass(frozen=True, slots=True)
class Bucket:
    """The own tokens of some samples, arranged as [samples, longest]. They are about equally long, so little is padding."""

    where: slice | Tensor  # which laid tokens these are; a slice, if all samples are equally long
    shape: tuple[int, int]
    index: Tensor  # [samples * longest] where each entry is laid; after the end of a short sample, its last token
    tokens: Tensor  # which entries are not padding
    padding: Tensor  # [samples, 1, longest, 1]

    def gather(self, x_N_H_D: Tensor) -> Tensor:
        """Return [samples, H, longest, D] (or without D); a view, if ``where`` is a slice."""
        flat = x_N_H_D[self.where] if isinstance(self.where, slice) else x_N_H_D.index_select(0, self.index)
        return flat.view(*self.shape, *flat.shape[1:]).transpose(1, 2)

    def add(self, total_N_H_D: Tensor, x_S_H_T_D: Tensor) -> None:
        """Add the samples' rows to the laid tokens: ``gather`` in the other direction."""
        flat = x_S_H_T_D.transpose(1, 2).flatten(0, 1)
        if isinstance(self.where, slice):
            total_N_H_D[self.where] += flat
        else:
            total_N_H_D.index_add_(0, self.where, flat.index_select(0, self.tokens))


class Packing:
    """Samples laid end to end in one row of N tokens. Each sample attends causally, and to itself alone.

    A family is the samples that share a prefix: (tokens of the prefix, tokens that each sample has of its own). The prefix is
    laid once, so a prompt runs once, however many samples it has. ``padding`` tokens may follow, to which nothing attends.

    Families (1, [3, 2]) and (0, [2]) are 8 tokens, at positions 0 1 2 3 1 2 0 1. The second sample is tokens 0 4 5, which is
    row 1 of ``index``. Short rows are filled up with token 0, which causality hides. ``slots`` says where in ``index`` each
    token first occurs. Both stay on the CPU.
    """

    def __init__(
        self, families: Sequence[tuple[int, Sequence[int]]], device: torch.device | str = "cpu", padding: int = 0
    ) -> None:
        lengths = [prefix + size for prefix, sizes in families for size in sizes]
        self.index = index = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
        self.shared: list[tuple[slice, slice]] = []  # where a family's prefix is laid, and its samples' own tokens
        self.even: list[list[tuple[int, int]]] = []  # (first, end) of a sample's own tokens; equal lengths together
        self.ragged: list[tuple[int, int]] = []
        self.pieces: list[tuple[range, range]] = []  # tokens laid as neighbours, and the prefix that they see
        positions, slots, row, laid = [], [], 0, 0
        for prefix, sizes in families:
            positions.append(torch.arange(prefix))
            slots.append(row * index.shape[1] + positions[-1])
            first, laid = laid, laid + prefix
            shared = range(first, laid)
            self.pieces.append((shared, range(0)))
            own = []
            for size in sizes:
                index[row, :prefix] = torch.arange(first, first + prefix)
                index[row, prefix : prefix + size] = torch.arange(laid, laid + size)
                positions.append(torch.arange(prefix, prefix + size))
                slots.append(row * index.shape[1] + positions[-1])
                own.append((laid, laid + size))
                self.pieces.append((range(laid, laid + size), shared))
                row, laid = row + 1, laid + size
            if prefix:
                self.shared.append((slice(first, first + prefix), slice(first + prefix, laid)))
            if len(set(sizes)) == 1:
                self.even.append(own)
            else:
                self.ragged += own
        self.pieces.append((range(laid, laid + padding), range(0)))
        more = torch.zeros(padding, dtype=torch.long)
        self.slots = torch.cat([*slots, more])
        self.positions = torch.cat([*positions, more])[None]
        self.to(device)

    def to(self, device: torch.device | str) -> Packing:
        """Move to the device of the tokens."""
        self.device, self.positions = device, self.positions.to(device)
        return self

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        if query.device.type == "cpu" and key.shape[-1] == value.shape[-1]:
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            laid = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
            return _Packed.apply(*laid, self, scale)[None]
        if flashes(query, value):
            return self.attend_flash(query, key, value, scale)
        return self.attend_padded(query, key, value, scale)

    def attend_flash(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Attend in one call of ``flash``. A prefix's keys and values, not its queries, are repeated for every sample: where
        several heads share a key they are a small part of what a layer reads and writes.
        """
        q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
        if len(self.spans.seen) > len(k):
            k, v = (_Repeated.apply(x, self.spans.seen) for x in (k, v))
        return flash(q, k, v, self.spans, scale)[None]

    def attend_padded(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Attend the plain way, with every sample in a row of its own."""
        q, k, v = self._in_rows(query, key, value)
        out = sdpa(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        return out.transpose(1, 2).flatten(0, 1).index_select(0, self.rows[1])[None]

    def attend_exactly(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        positions = torch.arange(self.index.shape[1], device=query.device).expand(self.index.shape)
        q, k, v = self._in_rows(query, key, value)
        out = exact.attend(q, k, v, positions, scale)
        return out.flatten(0, 1).index_select(0, self.rows[1])[None]

    def _in_rows(self, *laid: Tensor) -> list[Tensor]:
        """Return tensors [1, H, N, D] as [samples, H, longest, D]."""
        flat = [x.squeeze(0).index_select(1, self.rows[0]) for x in laid]
        return [x.view(x.shape[0], *self.index.shape, -1).transpose(0, 1) for x in flat]

    # Each way to attend needs tensors of its own, which are made when they are needed.

    @cached_property
    def buckets(self) -> list[Bucket]:
        return [_bucket(s) for s in [*self.even, *_alike(self.ragged)]]

    @cached_property
    def spans(self) -> Spans:
        pieces = [piece for piece in self.pieces if piece[0]]
        rows, keys = [len(own) for own, _ in pieces], [len(before) + len(own) for own, before in pieces]
        starts = [torch.tensor([0, *accumulate(n)], dtype=torch.int32).to(self.device) for n in (rows, keys)]
        seen = torch.cat([torch.arange(x.start, x.stop) for own, before in pieces for x in (before, own)])
        return Spans(starts[0], starts[1], (max(rows), max(keys)), seen.to(self.device))

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        return self.index.flatten().to(self.device), self.slots.to(self.device)


def _alike(stretches: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Group stretches (first, end) by length: none is over a quarter longer than another, and at most ``BUCKET`` tokens."""
    bucket: list[tuple[int, int]] = []
    for first, end in sorted(stretches, key=lambda s: s[0] - s[1]):
        longest = bucket[0][1] - bucket[0][0] if bucket else 0
        if bucket and (4 * longest > 5 * (end - first) or (len(bucket) + 1) * longest > BUCKET):
            yield bucket
            bucket = []
        bucket.append((first, end))
    if bucket:
        yield bucket


def _bucket(stretches: list[tuple[int, int]]) -> Bucket:
    first, end = (torch.tensor(x)[:, None] for x in zip(*stretches, strict=True))
    steps = torch.arange(int((end - first).max()))
    index = (first + steps).minimum(end - 1)
    padding = steps >= end - first
    tokens = (~padding).flatten().nonzero()[:, 0]
    even = not bool(padding.any()) and [s for s, _ in stretches[1:]] == [e for _, e in stretches[:-1]]
    where = slice(stretches[0][0], stretches[-1][1]) if even else index.flatten()[tokens]
    return Bucket(where, (len(stretches), len(steps)), index.flatten(), tokens, padding[:, None, :, None])


class _Packed(torch.autograd.Function):
    """Packed attention on a CPU, where PyTorch's backward pass of attention is several times slower than matrix products.

    The own tokens of samples attend to themselves, bucket by bucket. Those of a family attend to its prefix, all in one
    product. ``merge`` joins the two. The backward pass needs no more of a softmax than its log-sum, so it takes the parts
    one by one (FlashAttention-2, arXiv:2307.08691, section 3.1). Everything is [N, H, D], so a stretch of tokens is a view.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Packing, scale: float) -> Tensor:
        out, lse = torch.zeros_like(q), q.new_zeros(q.shape[:2])
        for bucket in layout.buckets:
            queries, keys, values = (bucket.gather(x) for x in (q, k, v))
            part, sums = partial_attention(queries, keys, values, scale, causal=True)
            bucket.add(out, part)
            bucket.add(lse, sums)
        for prefix, own in layout.shared:
            # what is laid after the prefix sees all of it: plain causality
            every, size = slice(prefix.start, own.stop), prefix.stop - prefix.start
            queries, keys, values = (
                x[None, where].transpose(1, 2) for x, where in ((q, every), (k, prefix), (v, prefix))
            )
            part, sums = partial_attention(queries, keys, values, scale, causal=True)
            part, sums = part[0].transpose(0, 1), sums[0].T
            out[prefix], lse[prefix] = part[:size], sums[:size]
            out[own], lse[own] = merge(out[own], lse[own], part[size:], sums[size:])
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, lse = ctx.saved_tensors
        (g,) = gradients
        delta = torch.linalg.vecdot(g, out)
        found = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for bucket in ctx.layout.buckets:
            queries, keys, values, g_rows, sums, deltas = (bucket.gather(x) for x in (q, k, v, g, lse, delta))
            if not isinstance(bucket.where, slice):  # padding repeats a token and must not count again
                g_rows = g_rows.masked_fill(bucket.padding, 0)
                deltas = deltas.masked_fill(bucket.padding[..., 0], 0)
            parts = partial_gradients(queries, keys, values, g_rows, sums, deltas, ctx.scale)
            for total, part in zip(found, parts, strict=True):
                bucket.add(total, part)
        for prefix, own in ctx.layout.shared:
            every = slice(prefix.start, own.stop)
            queries, g_rows, sums, deltas = (x[None, every].transpose(1, 2) for x in (q, g, lse, delta))
            keys, values = (x[None, prefix].transpose(1, 2) for x in (k, v))
            parts = partial_gradients(queries, keys, values, g_rows, sums, deltas, ctx.scale)
            for total, part, where in zip(found, parts, (every, prefix, prefix), strict=True):
                total[where] += part[0].transpose(0, 1)
        return *found, None, None


def partial_gradients(
    query: Tensor, key: Tensor, value: Tensor, gradient: Tensor, lse: Tensor, delta: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value through causal attention to some of the keys.

    ``lse`` [B, H, T] are the log-sums over all the keys, ``delta`` the products of output and gradient. The weights are
    computed again, for a few queries at a time, so that they stay in the CPU's cache.
    """
    B, H, T, D = query.shape
    heads, S = key.shape[1:3]
    grads = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    query, scaled = query * scale, key * scale
    block = max(64, BLOCK // (B * H * S))
    for i in range(0, T, block):
        j = min(T, i + block)
        end = min(j, S)
        # all queries of one key head together
        q, g = (x[:, :, i:j].reshape(B, heads, -1, x.shape[3]) for x in (query, gradient))
        k, v = key[:, :, :end], value[:, :, :end]
        # between the products all is fp32: mixing types is slow, and small differences of the weights matter
        weights = (q @ k.mT).float().view(B, H, j - i, end).sub_(lse[:, :, i:j, None])
        weights = weights.clamp_(-80, 0).exp_().tril_(i)  # beyond the clamp a CPU's exponential is many times slower
        s = (g @ v.mT).float().view(weights.shape).sub_(delta[:, :, i:j, None]).mul_(weights)
        w, s = (x.to(k.dtype).view(B, heads, -1, end) for x in (weights, s))
        grads[0][:, :, i:j] = (s @ scaled[:, :, :end]).view(B, H, j - i, D)
        grads[1][:, :, :end] += s.mT @ q
        grads[2][:, :, :end] += w.mT @ g
    return grads
