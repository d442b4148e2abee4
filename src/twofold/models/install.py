"""Make a model of ``transformers`` use our attention, and compare it with the model as it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twofold.models.attention import NAME, Packing, attention
from twofold.models.context import WINDOWS
from twofold.models.decoder import Decoder, Module, network
from twofold.models.kv import KV
from twofold.models.llama import Llama
from twofold.models.norm import replace_norms

TOLERANCE = 1e-3
"""The largest gap between two log-probs that counts as rounding, as a share of the standard deviation of the model's log-probs."""


def install(model: Any) -> Any:
    """Make ``model`` use this attention, and ``RMSNorm`` where it computes that norm, and return it.

    Two texts of four tokens are run before and after: by the model itself, as the engine runs them (a prefill, then token by
    token), and as the learner does (packed into one row, with what they share only once). Raises ValueError, which names the
    model's class, if the log-probs differ or the attention cannot be replaced.
    """
    if isinstance(model, Llama):
        return model  # ``Decoder`` runs it, always with this attention
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)
    if model.config._attn_implementation == NAME:
        return model  # installed before, perhaps in another process

    name = type(model).__name__
    kinds = set(getattr(model.config, "layer_types", None) or []) - {"full_attention", *WINDOWS}
    if kinds:
        raise ValueError(f"{name} uses {', '.join(sorted(kinds))}; twofold supports attention only")
    before = model.config._attn_implementation
    ids_2_4 = torch.tensor([[0, 1, 2, 3], [0, 4, 5, 6]], device=model.device) + 7
    expected = _expected(model, ids_2_4)
    replace_norms(model)
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise ValueError(f"{name} has an attention of its own, which twofold cannot replace")
    try:
        _compare(model, ids_2_4, expected)
    except ValueError:
        model.set_attn_implementation(before)
        raise
    return model


@torch.no_grad()
def _expected(model: Any, ids_B_T: Tensor) -> Tensor:
    """Return the log-probs that the model itself gives. Raises ValueError if they are not those of its output layer alone."""
    found: list[Tensor] = []
    layer = model.get_output_embeddings()
    if layer is None:
        raise ValueError(f"{type(model).__name__} has no output layer over a vocabulary: it is no language model")
    hook = layer.register_forward_hook(lambda module, args, out: found.append(out))
    logits = model(input_ids=ids_B_T, use_cache=False).logits
    hook.remove()
    if not torch.allclose(found[-1], logits, rtol=1e-3, atol=1e-3):
        raise ValueError(f"{type(model).__name__} scales or caps its logits after the output layer; twofold does not")
    return logits.float().log_softmax(-1)


@torch.no_grad()
def _compare(model: Any, ids_B_T: Tensor, expected_B_T_V: Tensor) -> None:
    """Raise ValueError if the network gives other log-probs than expected."""
    name, run = type(model).__name__, network(model, torch.float32)
    for way, hidden in (("decoding token by token", _decoded), ("packing two samples", _packed)):
        try:
            found = run.head(hidden(run, ids_B_T)).float().log_softmax(-1)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"{name} cannot be used: {way} fails in its own code: {error}") from error
        gap = float((found - expected_B_T_V).abs().max())
        if not gap <= TOLERANCE * float(expected_B_T_V.std()):
            raise ValueError(f"{name} cannot be used: {way} gives log-probs up to {gap:.2g} nats from the model's own")


def _decoded(run: Decoder | Module, ids_B_T: Tensor) -> Tensor:
    B, T = ids_B_T.shape
    kv = KV(torch.zeros(B, dtype=torch.long), T, ids_B_T.device)
    hidden = [run(ids_B_T[:, :2], kv.begin([2] * B), kv)]
    hidden += [run(ids_B_T[:, t : t + 1], kv.begin([1] * B), kv) for t in range(2, T)]
    return torch.cat(hidden, 1)


def _packed(run: Decoder | Module, ids_B_T: Tensor) -> Tensor:
    B, T = ids_B_T.shape
    layout = Packing([(1, [T - 1] * B)], ids_B_T.device)
    laid = torch.cat([ids_B_T[0, :1], ids_B_T[:, 1:].flatten()])[None]
    return run(laid, layout.positions, layout)[0][layout.index]
