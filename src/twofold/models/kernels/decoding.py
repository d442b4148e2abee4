"""The operations of ``fused`` as Triton kernels, one launch each. PyTorch's builds for CUDA bring Triton.

Sizes are padded to powers of two, which Triton needs, and the padding is masked. All sums are in fp32.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from twofold.models.logprobs import LEAST

COLUMNS = 1024
"""Columns of a program that works element by element."""
CHUNK = 512
"""Tokens whose weights are summed before one is drawn: about the square root of a large vocabulary."""
KEYS, BYTES = 32, 2**14
"""The most keys that an attention program reads at a time, and the most bytes that they take."""
WARPS = 2
"""Warps of an attention program. Of 12 settings tried on an H100 these two are within a tenth of the best for many rows, with heads of
64 and of 128 numbers; one warp is slow for few rows."""


@triton.jit
def _add_norm(x, change, weight, out, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    real = column < WIDTH
    place = tl.program_id(0).to(tl.int64) * WIDTH + column
    total = tl.load(x + place, real, 0.0).to(tl.float32) + tl.load(change + place, real, 0.0).to(tl.float32)
    tl.store(x + place, total, real)
    rate = tl.rsqrt(tl.sum(total * total) / WIDTH + eps)
    tl.store(out + place, total * rate * tl.load(weight + column, real, 0.0).to(tl.float32), real)


def add_norm(x_A_C: Tensor, change_A_C: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    """Do ``fused.add_norm``."""
    out, (rows, width) = torch.empty_like(change_A_C), x_A_C.shape
    _add_norm[(rows,)](x_A_C, change_A_C, weight_C, out, eps, width, triton.next_power_of_2(width))
    return out


@triton.jit
def _gated(both, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(both + 2 * row * WIDTH + column, column < WIDTH, 0.0).to(tl.float32)
    up = tl.load(both + (2 * row + 1) * WIDTH + column, column < WIDTH, 0.0).to(tl.float32)
    silu = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty).to(tl.float32)  # rounded as the learner's
    tl.store(out + row * WIDTH + column, silu * up, column < WIDTH)


def gated(gate_and_up_A_F: Tensor) -> Tensor:
    """Do ``fused.gated``."""
    rows, width = len(gate_and_up_A_F), gate_and_up_A_F.shape[1] // 2
    out = gate_and_up_A_F.new_empty(rows, width)
    _gated[(rows, triton.cdiv(width, COLUMNS))](gate_and_up_A_F, out, width, COLUMNS)
    return out


@triton.jit
def _over(
    best, total, out, query, keys, values, count, stride, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Continue an online softmax (greatest score, sum of weights, weighted sum of values) over ``count`` more keys."""
    place, d = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    for first in range(0, count, BLOCK):
        token = first + place
        where = token[:, None] * stride + d[None, :]
        real = (token < count)[:, None] & (d < D)[None, :]
        key = tl.load(keys + where, real, 0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="tf32x3") * scale
        scores = tl.where((token < count)[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(best - higher)
        value = tl.load(values + where, real, 0.0)
        out = out * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="tf32x3")
        total = total * shrink + tl.sum(weights, 1)
        best = higher
    return best, total, out


@triton.jit
def _turned(place, real, cos, sin):
    """Load pairs of numbers, side by side, and rotate each."""
    x, y = tl.load(place, real, 0.0).to(tl.float32), tl.load(place + 1, real, 0.0).to(tl.float32)
    return tl.interleave(x * cos - y * sin, x * sin + y * cos)


@triton.jit
def _attend_one(
    qkv, turns, at, start, keys, values, source, shared_keys, shared_values,
    out, scale, own_row, own_head, own_token, shared_row, shared_head,
    shared_token, GROUP: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_G: tl.constexpr,
    HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program is one row and one key head, with the GROUP query heads that share it: each key is read once."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    count, length = tl.load(at).to(tl.int32), tl.load(start + row).to(tl.int32)
    g, half, d = tl.arange(0, BLOCK_G), tl.arange(0, HALF), tl.arange(0, 2 * HALF)
    pair = half < D // 2
    turn = turns + (length + count) * D + 2 * half
    cos, sin = tl.load(turn, pair, 0.0), tl.load(turn + 1, pair, 0.0)

    token = qkv + row * (GROUP + 2) * KV_HEADS * D
    queries = (head * GROUP + g)[:, None] * D
    query = _turned(
        token + queries + 2 * half[None, :], (g < GROUP)[:, None] & pair[None, :], cos[None, :], sin[None, :]
    )
    key = _turned(token + (GROUP * KV_HEADS + head) * D + 2 * half, pair, cos, sin).to(keys.dtype.element_ty)
    value = tl.load(token + ((GROUP + 1) * KV_HEADS + head) * D + d, d < D, 0.0).to(values.dtype.element_ty)
    query = query.to(keys.dtype.element_ty)
    own = row * own_row + head * own_head
    tl.store(keys + own + count * own_token + d, key, d < D)
    tl.store(values + own + count * own_token + d, value, d < D)

    best = tl.sum(query.to(tl.float32) * key.to(tl.float32)[None, :], 1) * scale
    total = tl.full([BLOCK_G], 1.0, tl.float32)
    seen = tl.zeros([BLOCK_G, 2 * HALF], tl.float32) + value.to(tl.float32)[None, :]
    best, total, seen = _over(
        best, total, seen, query, keys + own, values + own, count, own_token, scale, D, 2 * HALF, BLOCK
    )
    shared = tl.load(source + row) * shared_row + head * shared_head
    best, total, seen = _over(
        best, total, seen, query, shared_keys + shared, shared_values + shared, length, shared_token, scale, D, 2 * HALF, BLOCK
    )  # fmt: skip
    place = out + row * GROUP * KV_HEADS * D + queries + d[None, :]
    tl.store(place, seen / total[:, None], (g < GROUP)[:, None] & (d < D)[None, :])


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
    """Do ``fused.attend_one``. Keys and values have the same strides."""
    rows, (kv_heads, width) = len(qkv_A_X), keys_R_H_S_D.shape[1::2]
    group = qkv_A_X.shape[1] // width // kv_heads - 2
    out = qkv_A_X.new_empty(rows, group * kv_heads * width)
    padded = max(16, triton.next_power_of_2(width))
    _attend_one[(rows, kv_heads)](
        qkv_A_X, turns_N_D, at_1, start_R, keys_R_H_S_D, values_R_H_S_D, source_R, shared_keys_P_H_T_D,
        shared_values_P_H_T_D, out, scale, *keys_R_H_S_D.stride()[:3], *shared_keys_P_H_T_D.stride()[:3],
        group, kv_heads, width, max(16, triton.next_power_of_2(group)), padded // 2,
        max(16, min(KEYS, BYTES // (padded * keys_R_H_S_D.element_size()))), num_warps=WARPS,
    )  # fmt: skip
    return out


@triton.jit
def _likely(x, LEAST: tl.constexpr):
    return tl.where(x > LEAST, tl.exp(x), 0.0)


@triton.jit
def _chunk_sums(logits, greatest, sums, temperature, size, CHUNK: tl.constexpr):
    """Find the greatest logit of a chunk of the vocabulary, and the sum of exp((logit - greatest) / temperature)."""
    row, chunk, chunks = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + row * size + token, token < size, float("-inf")).to(tl.float32)
    highest = tl.maximum(tl.max(x, 0), -3.4028234663852886e38)  # a chunk may hold impossible tokens only
    tl.store(greatest + row * chunks + chunk, highest)
    tl.store(sums + row * chunks + chunk, tl.sum(tl.exp((x - highest) / temperature), 0))


@triton.jit
def _invert(weights, share, COUNT: tl.constexpr):
    """Return into which of the weights a share of their sum, in [0, 1), falls, how far into it, as a share of it, and the sum."""
    place = tl.arange(0, COUNT)
    cumulative = tl.cumsum(weights, 0)
    total = tl.max(cumulative, 0)
    target = share * total
    which = tl.min(tl.where((weights > 0) & (cumulative > target), place, COUNT - 1), 0)
    before = tl.max(tl.where(place < which, cumulative, 0.0), 0)
    into = (target - before) / tl.sum(tl.where(place == which, weights, 0.0), 0)
    return which, tl.minimum(tl.maximum(into, 0.0), 1 - 2**-53), total


@triton.jit
def _draw_one(
    logits, greatest, sums, uniforms, tokens, logprobs, temperature, size, chunks,
    GREEDY: tl.constexpr, LEAST: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Draw a chunk of the vocabulary, then a token of it. One program is one row."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.arange(0, CHUNKS)
    highest = tl.load(greatest + row * chunks + chunk, chunk < chunks, float("-inf"))
    top = tl.max(highest, 0)
    weights = tl.load(sums + row * chunks + chunk, chunk < chunks, 0.0) * _likely((highest - top) / temperature, LEAST)
    which, share, total = _invert(weights.to(tl.float64), tl.load(uniforms + row), CHUNKS)
    if GREEDY:
        which = tl.argmax(highest, 0)
    token = which * CHUNK + tl.arange(0, CHUNK)
    x = (tl.load(logits + row * size + token, token < size, float("-inf")).to(tl.float32) - top) / temperature
    place = tl.argmax(x, 0) if GREEDY else _invert(_likely(x, LEAST).to(tl.float64), share, CHUNK)[0]
    chosen = tl.sum(tl.where(tl.arange(0, CHUNK) == place, x, 0.0), 0)
    tl.store(tokens + row, (which * CHUNK + place).to(tl.int64))
    tl.store(logprobs + row, chosen - tl.log(total.to(tl.float32)))


def draw_one(logits_A_V: Tensor, uniforms_A: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Do ``sampling.draw_one``: the first kernel reads all logits, the second one those of one chunk."""
    rows, size = logits_A_V.shape
    chunks, scale = triton.cdiv(size, CHUNK), temperature or 1.0
    greatest, sums = logits_A_V.new_empty(2, rows, chunks, dtype=torch.float32)
    tokens, logprobs = torch.empty_like(uniforms_A, dtype=torch.long), torch.empty_like(uniforms_A, dtype=torch.float32)
    _chunk_sums[(rows, chunks)](logits_A_V, greatest, sums, scale, size, CHUNK)
    _draw_one[(rows,)](
        logits_A_V, greatest, sums, uniforms_A, tokens, logprobs, scale, size, chunks,
        temperature == 0, LEAST, CHUNK, triton.next_power_of_2(chunks),
    )  # fmt: skip
    return tokens, logprobs
