"""Per-token losses. All arguments are tensors of one shape [N]; nothing here is averaged (see ``weights``)."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped(logp: Tensor, behaviour: Tensor, advantages: Tensor, low: float = 0.2, high: float = 0.2) -> Tensor:
    """PPO's clipped surrogate as a loss: -min(rho A, clip(rho, 1 - low, 1 + high) A), rho = exp(logp - behaviour).

    rho 1.5, A 1, high 0.2 gives -1.2; rho 1.5, A -1 gives 1.5 (the pessimistic side is never clipped).
    """
    ratio = (logp - behaviour).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def k3(logp: Tensor, reference: Tensor) -> Tensor:
    """Schulman's k3 estimator of KL(policy || reference) on sampled tokens: r - log r - 1, r = p_ref / p >= 0."""
    log_ratio = reference - logp
    return log_ratio.exp() - log_ratio - 1
