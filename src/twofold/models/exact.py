"""Exact mode: a forward pass whose every number depends on its own text alone, bit for bit.

A library chooses the order of a sum by the sizes of its matrices. So a token's log-prob may change by a rounding with the number
of rows beside it, with the length of a cache, or between sampling and learning. Here the sizes never change: rows are multiplied
``TILE`` at a time, and a query adds up its keys by blocks of ``BLOCK``, which begin at fixed positions of its text.

Gradients are those of the usual, faster pass: ``with_gradient`` takes the value from here and the gradient from there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import pad

TILE, BLOCK = 16, 64
POSITIONS = 1024
"""Positions whose rotations are computed at once."""


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, usual: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def with_gradient(usual: Tensor, value: Tensor) -> Tensor:
    """Return ``value``, whose gradient flows to ``usual``: the same numbers but for a rounding."""
    return _WithGradient.apply(usual, value)


def tiled(x_N_C: Tensor) -> Tensor:
    """Append rows of zeros, up to a whole number of tiles."""
    more = -len(x_N_C) % TILE
    return pad(x_N_C, (0, 0, 0, more)) if more else x_N_C


def linear(x_N_C: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Do ``torch.nn.functional.linear``, where a row of the result depends on the same row of ``x_N_C`` alone."""
    tiles = tiled(x_N_C.detach()).split(TILE)
    w, b = weight.detach(), None if bias is None else bias.detach()
    value = torch.cat([functional.linear(tile, w, b) for tile in tiles])[: len(x_N_C)]
    if not torch.is_grad_enabled():
        return value
    return with_gradient(functional.linear(x_N_C, weight, bias), value)


def attend(
    query_R_H_T_D: Tensor, keys_R_K_S_D: Tensor, values_R_K_S_D: Tensor, positions_R_T: Tensor, scale: float | None
) -> Tensor:
    """Return attention [R, T, H, D] of R texts, each to its own keys: entry s is the key at position s.

    A query at position p reads the keys at 0 .. p. Entries after them may hold any finite number.
    """
    R, H, T, D = query_R_H_T_D.shape
    K, S = keys_R_K_S_D.shape[1:3]
    G, rows = H // K, H // K * T
    scale = D**-0.5 if scale is None else scale
    q = pad(query_R_H_T_D.reshape(R, K, rows, D), (0, 0, 0, -rows % TILE)).reshape(R * K, -1, TILE, D).contiguous()
    last = pad(positions_R_T.repeat(1, G), (0, -rows % TILE)).repeat_interleave(K, 0).view(R * K, -1, TILE, 1)
    tiles = q.shape[1]
    k, v = (pad(x.reshape(R * K, S, -1), (0, 0, 0, -S % BLOCK)).contiguous() for x in (keys_R_K_S_D, values_R_K_S_D))
    top = q.new_full((R * K, tiles, TILE, 1), float("-inf"))
    total, out = torch.zeros_like(top), q.new_zeros(R * K, tiles, TILE, v.shape[2])
    for first in range(0, S, BLOCK):
        # each product of a batch has the sizes [TILE, D] and [D, BLOCK]
        block_k, block_v = (x[:, None, first : first + BLOCK].expand(-1, tiles, -1, -1) for x in (k, v))
        scores = (q @ block_k.mT).mul_(scale)
        scores.masked_fill_(torch.arange(first, first + BLOCK, device=q.device) > last, float("-inf"))
        higher = torch.maximum(top, scores.amax(-1, keepdim=True))
        weights, shrink = (scores - higher).exp_(), (top - higher).exp_()
        total = total * shrink + weights.sum(-1, keepdim=True)
        out, top = out * shrink + weights @ block_v, higher
    found = (out / total).view(R, K, -1, v.shape[2])[:, :, :rows]
    return found.reshape(R, H, T, -1).transpose(1, 2)


def rotations(of: Any, positions_B_T: Tensor, most: int | None) -> Tensor:
    """Return ``of(positions)``, [B, T, D], computed for whole stretches of positions, whichever of them are wanted.

    ``of`` is not asked for positions from ``most`` on, where the scaling of some models changes the numbers before it, too.
    """
    stretches = range(0, int(positions_B_T.max()) + 1, POSITIONS)
    steps = torch.arange(POSITIONS, device=positions_B_T.device)[None]
    every = [of((s + steps).clamp(max=most - 1 if most else None))[0] for s in stretches]
    return torch.cat(every)[positions_B_T]
