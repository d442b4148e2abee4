"""RMSNorm in few passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from twofold.models.passes import one_pass


class RMSNorm(nn.Module):
    """The norm w x / sqrt(mean(x^2) + eps) over the last dimension, computed in fp32.

    Under autocast the result has autocast's type, so that the linear layers that read it do not each cast it again.
    """

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        return rms_norm(x, self.weight, self.variance_epsilon, dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Return w x / sqrt(mean(x^2) + eps) over the last dimension, computed in fp32, in ``dtype``."""
    return _RMSNorm.apply(x, weight, eps, dtype)


def added_norm(x: Tensor, more: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return x + more, in the type of ``x``, and its ``rms_norm``."""
    return _AddedNorm.apply(x, more, weight, eps, dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        out, rate = _normed(x, weight, eps, dtype)
        ctx.save_for_backward(x, weight, rate)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return *_gradients(gradients[0], *ctx.saved_tensors), None, None


class _AddedNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, more: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        total, out, rate = _added_normed(x, more, weight, eps, dtype)
        ctx.save_for_backward(total, weight, rate)
        ctx.dtype = more.dtype
        return total, out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (g_total, g_out), (total, weight, rate) = gradients, ctx.saved_tensors
        return *_added_gradients(g_total, g_out, total, weight, rate, ctx.dtype), None, None


def _normed_as_written(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    rate = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * rate).mul_(weight).to(dtype), rate


def _gradients_as_written(gradient: Tensor, x: Tensor, weight: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Take LayerNorm's fused gradient at a mean of 0 and add the mean of g w, which LayerNorm subtracts."""
    size = x.shape[-1]
    g, flat = (t.reshape(-1, size).float() for t in (gradient, x))
    w, rate = weight.float(), rate.view(-1, 1)
    gx, gw, _ = torch.ops.aten.native_layer_norm_backward(
        g, flat, [size], torch.zeros_like(rate), rate, w, None, [True, True, False]
    )
    gx.addcmul_((g @ w)[:, None], rate, value=1 / size)
    return gx.view(x.shape).to(x.dtype), gw.to(weight.dtype)


_normed = one_pass("normed")(_normed_as_written)
_gradients = one_pass("normed_gradients")(_gradients_as_written)


@one_pass("added_normed")
def _added_normed(
    x: Tensor, more: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    total = x + more
    return total, *_normed_as_written(total, weight, eps, dtype)


@one_pass("added_gradients")
def _added_gradients(
    g_total: Tensor, g_out: Tensor, total: Tensor, weight: Tensor, rate: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    gx, gw = _gradients_as_written(g_out, total, weight, rate)
    gx += g_total
    return gx, gx.to(dtype), gw


def replace_norms(model: nn.Module) -> None:
    """Replace every module of ``model`` that computes this norm by an ``RMSNorm``."""
    for parent in model.modules():
        for name, module in parent.named_children():
            eps = getattr(module, "variance_epsilon", None)
            weight = getattr(module, "weight", None)
            if isinstance(module, RMSNorm) or eps is None or weight is None or weight.ndim != 1:
                continue
            ours = RMSNorm(weight, eps).train(module.training)
            x = torch.linspace(-2, 3, weight.numel(), device=weight.device, dtype=weight.dtype)[None]
            with torch.no_grad():
                same = torch.allclose(ours(x), module(x), rtol=1e-3, atol=1e-4)
            if same:
                setattr(parent, name, ours)
