"""The learner's passes over memory (``passes``) as Triton kernels: each function here is one launch, and one reading of its operands.

Their names and arguments are those of the functions they take the place of, beside which a docstring says what they compute.
A kernel takes any number of rows, so that it is compiled once, in a second or two, and Triton keeps it on disk. All sums are in
fp32 and in a fixed order, so that a gradient repeats to the bit.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

PROGRAMS = 512
"""Programs that share the rows of a norm's backward pass. Each sums the weight's gradient over its own rows."""
ELEMENTS = 1024
"""Elements of a program that works element by element."""
LOGITS = 4096
"""Logits that a program reads at a time."""


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


def _block(width: int) -> tuple[int, int]:
    """Return the power of two that holds a row, and the warps of a program that works on one."""
    block = triton.next_power_of_2(width)
    return block, max(1, min(16, block // 256))


# RMSNorm --------------------------------------------------------------------------------------------------------------


@triton.jit
def _norm(x, more, weight, total, out, rates, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, MORE: tl.constexpr):
    column = tl.arange(0, BLOCK)
    real = column < WIDTH
    row = tl.program_id(0).to(tl.int64)
    place = row * WIDTH + column
    value = tl.load(x + place, real, 0.0).to(tl.float32)
    if MORE:
        value = (value + tl.load(more + place, real, 0.0).to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + place, value, real)
        value = value.to(tl.float32)
    rate = tl.rsqrt(tl.sum(value * value) / WIDTH + eps)
    tl.store(rates + row, rate)
    tl.store(out + place, value * rate * tl.load(weight + column, real, 0.0).to(tl.float32), real)


def _run_norm(
    x: Tensor, more: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    flat, added = _rows(x), None if more is None else _rows(more)
    out = torch.empty(flat.shape, dtype=dtype, device=x.device)
    rates = torch.empty(len(flat), dtype=torch.float32, device=x.device)
    total = flat if added is None else torch.empty_like(flat)
    block, warps = _block(x.shape[-1])
    _norm[(len(flat),)](
        flat, flat if added is None else added, weight, total, out, rates, eps, x.shape[-1], block, added is not None,
        num_warps=warps,
    )  # fmt: skip
    return total.view(x.shape), out.view(x.shape), rates.view(*x.shape[:-1], 1)


def normed(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _run_norm(x, None, weight, eps, dtype)[1:]


def added_normed(
    x: Tensor, more: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    return _run_norm(x, more, weight, eps, dtype)


@triton.jit(do_not_specialize=["rows"])
def _norm_gradients(
    g_total, gradient, x, weight, rates, gx, copied, sums, rows,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, TOTAL: tl.constexpr,
):  # fmt: skip
    """With g the gradient, w the weight and r the rate: gx = r g w - x r^3 mean(g w x), plus ``g_total``; gw = sum of g x r."""
    column = tl.arange(0, BLOCK)
    real = column < WIDTH
    w = tl.load(weight + column, real, 0.0).to(tl.float32)
    gw, width = tl.zeros([BLOCK], tl.float32), tl.full([], WIDTH, tl.int64)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        place = row * width + column
        g = tl.load(gradient + place, real, 0.0).to(tl.float32)
        normed = tl.load(x + place, real, 0.0).to(tl.float32)
        rate = tl.load(rates + row)
        normed *= rate
        gw += g * normed
        g *= w
        found = rate * (g - normed * (tl.sum(g * normed) / WIDTH))
        if TOTAL:
            found += tl.load(g_total + place, real, 0.0).to(tl.float32)
            tl.store(copied + place, found, real)
        tl.store(gx + place, found, real)
    tl.store(sums + tl.program_id(0) * WIDTH + column, gw, real)


def _run_norm_gradients(
    g_total: Tensor | None, gradient: Tensor, x: Tensor, weight: Tensor, rate: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    g, flat = _rows(gradient), _rows(x)
    kept = g if g_total is None else _rows(g_total)
    gx = torch.empty_like(flat)
    copied = gx if g_total is None else torch.empty(flat.shape, dtype=dtype, device=x.device)
    programs = min(PROGRAMS, len(flat))
    sums = torch.empty(programs, x.shape[-1], dtype=torch.float32, device=x.device)
    block, warps = _block(x.shape[-1])
    _norm_gradients[(programs,)](
        kept, g, flat, weight, rate.contiguous(), gx, copied, sums, len(flat), x.shape[-1], block, g_total is not None,
        num_warps=warps,
    )  # fmt: skip
    return gx.view(x.shape), copied.view(x.shape), sums.sum(0).to(weight.dtype)


def normed_gradients(gradient: Tensor, x: Tensor, weight: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    gx, _, gw = _run_norm_gradients(None, gradient, x, weight, rate, x.dtype)
    return gx, gw


def added_gradients(
    g_total: Tensor, g_out: Tensor, total: Tensor, weight: Tensor, rate: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    return _run_norm_gradients(g_total, g_out, total, weight, rate, dtype)


# Rotation and SwiGLU --------------------------------------------------------------------------------------------------


@triton.jit
def _rotate(x, turns, out, stride, sign, WIDTH: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """One program is one token: HALF pairs of each head, one head after another."""
    token = tl.program_id(0).to(tl.int64)
    pair = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = pair < WIDTH
    turn = turns + token * 2 * HALF + 2 * (pair % HALF)
    cos, sin = tl.load(turn, real, 0.0), sign * tl.load(turn + 1, real, 0.0)
    place = x + token * stride + 2 * pair
    a, b = tl.load(place, real, 0.0).to(tl.float32), tl.load(place + 1, real, 0.0).to(tl.float32)
    to = out + token * 2 * WIDTH + 2 * pair
    tl.store(to, a * cos - b * sin, real)
    tl.store(to + 1, a * sin + b * cos, real)


def rotated(x: Tensor, turn: Tensor, dtype: torch.dtype, back: bool = False) -> Tensor:
    B, T, heads, size = x.shape
    if x.stride()[2:] != (size, 1) or (B > 1 and x.stride(0) != T * x.stride(1)):
        x = x.contiguous()
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    turns = turn.expand(B, T, 1, size // 2, 2).contiguous()
    width = heads * size // 2
    grid = B * T, triton.cdiv(width, ELEMENTS)
    _rotate[grid](x, turns, out, x.stride(1), -1.0 if back else 1.0, width, size // 2, ELEMENTS)
    return out


@triton.jit
def _gate(gate, up, out, size, ELEMENTS: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    g, u = tl.load(gate + place, place < size, 0.0).to(tl.float32), tl.load(up + place, place < size, 0.0)
    silu = (g * tl.sigmoid(g)).to(out.dtype.element_ty).to(tl.float32)  # rounded as when it is written out
    tl.store(out + place, silu * u.to(tl.float32), place < size)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    _gate[(triton.cdiv(gate.numel(), ELEMENTS),)](gate, up, out, gate.numel(), ELEMENTS)
    return out


@triton.jit
def _gate_gradients(gradient, gate, up, g_gate, g_up, size, ELEMENTS: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    g = tl.load(gradient + place, place < size, 0.0).to(tl.float32)
    x = tl.load(gate + place, place < size, 0.0).to(tl.float32)
    share = tl.sigmoid(x)
    u = tl.load(up + place, place < size, 0.0).to(tl.float32)
    tl.store(g_up + place, g * x * share, place < size)
    tl.store(g_gate + place, g * u * share * (1 + x * (1 - share)), place < size)


def swiglu_gradients(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    gradient, gate, up = gradient.contiguous(), gate.contiguous(), up.contiguous()
    g_gate, g_up = torch.empty_like(gate), torch.empty_like(up)
    _gate_gradients[(triton.cdiv(gate.numel(), ELEMENTS),)](gradient, gate, up, g_gate, g_up, gate.numel(), ELEMENTS)
    return g_gate, g_up


# Log-probs ------------------------------------------------------------------------------------------------------------


@triton.jit
def _read(logits, tokens, temperatures, logps, entropies, totals, size, BLOCK: tl.constexpr):
    """One program is one row: an online softmax, with the sum of exp(x) x beside that of exp(x)."""
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperatures + row)
    top, mass, mean = tl.full([], -3.0e38, tl.float32), tl.zeros([], tl.float32), tl.zeros([], tl.float32)
    for first in range(0, size, BLOCK):
        token = first + tl.arange(0, BLOCK)
        x = tl.load(logits + row * size + token, token < size, float("-inf")).to(tl.float32) / temperature
        higher = tl.maximum(top, tl.max(x))
        weights = tl.exp(x - higher)
        shrink = tl.exp(top - higher)
        mass = mass * shrink + tl.sum(weights)
        mean = mean * shrink + tl.sum(tl.where(weights > 0, weights * x, 0.0))
        top = higher
    total = top + tl.log(mass)
    chosen = tl.load(logits + row * size + tl.load(tokens + row)).to(tl.float32) / temperature
    tl.store(logps + row, chosen - total)
    tl.store(entropies + row, total - mean / mass)
    tl.store(totals + row, total)


def read(logits_N_V: Tensor, tokens_N_1: Tensor, temperature_N_1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits, (rows, size) = logits_N_V.contiguous(), logits_N_V.shape
    logps, entropies, totals = torch.empty(3, rows, dtype=torch.float32, device=logits.device)
    _read[(rows,)](
        logits, tokens_N_1.contiguous(), temperature_N_1.contiguous(), logps, entropies, totals, size, LOGITS,
        num_warps=8,
    )  # fmt: skip
    return logps, entropies, totals[:, None]


@triton.jit
def _logits_gradient(gradients, logits, tokens, temperatures, totals, size, BLOCK: tl.constexpr):
    row, token = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    temperature, place = tl.load(temperatures + row), logits + row * size + token
    p = tl.exp(tl.load(place, token < size, 0.0).to(tl.float32) / temperature - tl.load(totals + row))
    mine = tl.where(token == tl.load(tokens + row), 1.0, 0.0)
    tl.store(place, (mine - p) * (tl.load(gradients + row) / temperature), token < size)


def gradient(
    g_N_1: Tensor, logits_N_V: Tensor, tokens_N_1: Tensor, temperature_N_1: Tensor, total_N_1: Tensor
) -> Tensor:
    rows, size = logits_N_V.shape
    others = [x.contiguous() for x in (tokens_N_1, temperature_N_1, total_N_1)]
    grid = rows, triton.cdiv(size, LOGITS)
    _logits_gradient[grid](g_N_1.contiguous(), logits_N_V, *others, size, LOGITS, num_warps=8)
    return logits_N_V
