"""Log-probs of given tokens from hidden states, without a [tokens, vocabulary] matrix for the whole batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 4096


def token_logprobs(
    head: Callable[[Tensor], Tensor], hidden_N_D: Tensor, tokens_N: Tensor, temperature_N: Tensor
) -> tuple[Tensor, Tensor]:
    """(log p of each token, entropy of each distribution), both [N] in fp32 nats; entropy carries no gradient.

    Logits exist for ``CHUNK`` tokens at a time and are computed again in the backward pass.
    """

    def part(hidden: Tensor, tokens: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        logp = (head(hidden).float() / temperature[:, None]).log_softmax(-1)
        with torch.no_grad():
            # softmax again, and not exp(), which is slow at tiny probabilities on CPUs
            entropy = -(logp.softmax(-1) * logp).sum(-1)
        return logp.gather(1, tokens[:, None])[:, 0], entropy

    if len(tokens_N) <= CHUNK:
        return part(hidden_N_D, tokens_N, temperature_N)
    chunks = zip(hidden_N_D.split(CHUNK), tokens_N.split(CHUNK), temperature_N.split(CHUNK), strict=True)
    logps, entropies = zip(*(checkpoint(part, *c, use_reentrant=False) for c in chunks), strict=True)
    return torch.cat(logps), torch.cat(entropies)
