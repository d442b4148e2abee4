"""Log-probs of given tokens from hidden states, without a [tokens, vocabulary] matrix for the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGITS = 2**27
"""The most logits that exist at once. They take 512 MiB in fp32: 4096 tokens with a vocabulary of 32 thousand, or 900 with
one of 150 thousand."""
LEAST = -80.0
"""A logit this far below the row's greatest, or further, counts as this far below it. CPUs take several times longer for
smaller exponentials, and no sum would change."""


def token_logprobs(
    head: Callable[[Tensor], Tensor], vocabulary: int, hidden_N_D: Tensor, tokens_N: Tensor, temperature_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (log p of each token, entropy of each distribution), both [N] in fp32 nats. The entropy carries no gradient.

    ``head`` turns hidden states [n, D] into logits [n, ``vocabulary``], of which at most ``LOGITS`` exist at a time: if there
    are more, they are computed in chunks, and again in the backward pass.
    """

    def part(hidden: Tensor, tokens: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        return _Chosen.apply(head(hidden), tokens[:, None], temperature[:, None])

    size = max(1, LOGITS // vocabulary)
    if len(tokens_N) <= size:
        return part(hidden_N_D, tokens_N, temperature_N)
    chunks = zip(hidden_N_D.split(size), tokens_N.split(size), temperature_N.split(size), strict=True)
    logps, entropies = zip(*(checkpoint(part, *c, use_reentrant=False) for c in chunks), strict=True)
    return torch.cat(logps), torch.cat(entropies)


def shifted(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """Return (logits - the row's greatest) / temperature, in fp32."""
    x = logits.float()
    return (x - x.amax(-1, keepdim=True)).div_(temperature)


class _Chosen(torch.autograd.Function):
    """Log-probs of chosen tokens, and entropies. One softmax serves both and the gradient."""

    @staticmethod
    def forward(ctx: Any, logits_N_V: Tensor, tokens_N_1: Tensor, temperature_N_1: Tensor) -> tuple[Tensor, Tensor]:
        x_N_V = shifted(logits_N_V, temperature_N_1)
        mine_N = x_N_V.gather(1, tokens_N_1)[:, 0]
        p_N_V = x_N_V.clamp_(min=LEAST).softmax(-1)
        total_N = -p_N_V.amax(-1).log()  # log of the sum of exp(x): the greatest x is 0
        entropy_N = total_N - torch.linalg.vecdot(p_N_V, x_N_V)
        ctx.save_for_backward(p_N_V, tokens_N_1, temperature_N_1)
        ctx.dtype = logits_N_V.dtype
        ctx.mark_non_differentiable(entropy_N)
        return mine_N - total_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        p_N_V, tokens_N_1, temperature_N_1 = ctx.saved_tensors
        g_N_1 = gradients[0][:, None] / temperature_N_1
        return (p_N_V * -g_N_1).scatter_add_(1, tokens_N_1, g_N_1).to(ctx.dtype), None, None
