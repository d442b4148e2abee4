"""Log-probs of given tokens from hidden states, without a [tokens, vocabulary] matrix for the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from twofold.models.exact import with_gradient
from twofold.models.passes import has_triton, on_gpu, one_pass

LOGITS = 2**27
"""The most logits that exist at once. They take 512 MiB in fp32: 4096 tokens with a vocabulary of 32 thousand, or 900 with
one of 150 thousand."""
KEPT = 5 * 2**30
"""The most bytes of logits that a GPU keeps for the backward pass. In bfloat16 they are those of 16 thousand tokens, the default
micro-batch there, with a vocabulary of 150 thousand. Their gradient takes their place."""
LEAST = -80.0
"""A logit this far below the row's greatest, or further, counts as this far below it. CPUs take several times longer for
smaller exponentials, and no sum would change."""


def token_logprobs(
    head: Callable[[Tensor], Tensor],
    vocabulary: int,
    hidden_N_D: Tensor,
    tokens_N: Tensor,
    temperature_N: Tensor,
    sparing: bool = True,
    exact: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return (log p of each token, entropy of each distribution), both [N] in fp32 nats. The entropy carries no gradient.

    ``head`` turns hidden states [n, D] into logits [n, ``vocabulary``], of which at most ``LOGITS`` exist at a time: if there
    are more, they are computed in chunks, and again in the backward pass. A GPU that need not be ``sparing`` of memory, and
    can read them without a copy in fp32, keeps up to ``KEPT`` bytes of them instead. With ``exact``, log-probs have the bits
    of the engine's (see ``models.exact``).
    """
    gpu = on_gpu(hidden_N_D)
    chosen = _Reread if gpu else _Chosen

    def part(hidden: Tensor, tokens: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(hidden)
        logp, entropy = chosen.apply(logits, tokens[:, None], temperature[:, None])
        if exact:
            logp = with_gradient(
                logp, shifted(logits.detach(), temperature[:, None]).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
            )
        return logp, entropy

    most = KEPT // hidden_N_D.element_size() if gpu and not sparing and has_triton() else LOGITS
    size = max(1, most // vocabulary)
    if len(tokens_N) <= size:
        return part(hidden_N_D, tokens_N, temperature_N)
    chunks = zip(hidden_N_D.split(size), tokens_N.split(size), temperature_N.split(size), strict=True)
    logps, entropies = zip(*(checkpoint(part, *c, use_reentrant=False) for c in chunks), strict=True)
    return torch.cat(logps), torch.cat(entropies)


def shifted(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """Return (logits - the row's greatest) / temperature, at least in fp32."""
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (x - x.amax(-1, keepdim=True)).div_(temperature)


class _Chosen(torch.autograd.Function):
    """Log-probs of chosen tokens, and entropies. One softmax serves both and the gradient: exponentials take a CPU's time."""

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


class _Reread(torch.autograd.Function):
    """The same, where memory takes the time: logits are read twice here and once for the gradient, and no softmax is stored."""

    @staticmethod
    def forward(ctx: Any, logits_N_V: Tensor, tokens_N_1: Tensor, temperature_N_1: Tensor) -> tuple[Tensor, Tensor]:
        logp_N, entropy_N, total_N_1 = _read(logits_N_V, tokens_N_1, temperature_N_1)
        ctx.save_for_backward(logits_N_V, tokens_N_1, temperature_N_1, total_N_1)
        ctx.mark_non_differentiable(entropy_N)
        return logp_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits_N_V, *others = ctx.saved_tensors
        return _gradient(gradients[0][:, None], logits_N_V.detach(), *others), None, None


@one_pass("read")
def _read(logits_N_V: Tensor, tokens_N_1: Tensor, temperature_N_1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probs and entropies [N], and the log of the sum of exp(logit / temperature) [N, 1]."""
    x = logits_N_V.float() / temperature_N_1
    top = x.amax(-1, keepdim=True)
    weights = (x - top).exp()
    mass = weights.sum(-1, keepdim=True)
    total = top + mass.log()
    mean = (weights * x).sum(-1, keepdim=True) / mass
    return (x.gather(1, tokens_N_1) - total)[:, 0], (total - mean)[:, 0], total


@one_pass("gradient")
def _gradient(
    g_N_1: Tensor, logits_N_V: Tensor, tokens_N_1: Tensor, temperature_N_1: Tensor, total_N_1: Tensor
) -> Tensor:
    """Return the gradient of the logits, in their place: they may be gigabytes."""
    p = (logits_N_V.float() / temperature_N_1 - total_N_1).exp()
    mine = torch.arange(logits_N_V.shape[1], device=p.device) == tokens_N_1
    return logits_N_V.copy_((mine.float() - p) * (g_N_1 / temperature_N_1))
