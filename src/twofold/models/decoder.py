"""The forward pass of Llama's family in few operations, over the weights of a model by their names.

A layer takes twenty operations here, where the module of ``transformers`` takes about sixty: queries, keys and values are one
product; the rotation is one complex product; weights are cast once. Sampling and learning both run it, and gradients reach
the model's own weights. The numbers are those of the module (under autocast if ``dtype`` is bfloat16), except for the order
of sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import embedding, pad, silu
from torch.utils.checkpoint import checkpoint

from twofold.maths.packing import rounded
from twofold.models import exact
from twofold.models.attention import Layout, attention_dtype
from twofold.models.context import context
from twofold.models.llama import FAMILY, Llama
from twofold.models.lora import NAME, Merged, off
from twofold.models.norm import added_norm, rms_norm
from twofold.models.passes import on_gpu, one_pass
from twofold.models.quantised import Packed, unpacked
from twofold.models.sharding import gathered, sharded, whole_copy

Affine = tuple[Tensor, Tensor | None]
"""Weight and bias."""


@dataclass(frozen=True, slots=True)
class Layer:
    before_attention: Tensor
    heads: Affine  # queries, keys and values
    query_norm: Tensor | None
    key_norm: Tensor | None
    out: Affine
    before_mlp: Tensor
    gate: Affine
    up: Affine
    down: Affine


class Decoder:
    """The forward pass with a copy of the model's matrices in ``dtype``, laid out for it. Make another when they change.

    One copy serves the micro-batches of one optimiser step. With ``recompute``, backward passes compute the layers again. With
    ``exact``, every number is a function of its own text (see ``models.exact``).
    """

    @staticmethod
    def suits(model: Any) -> bool:
        """Return whether ``model`` is a ``Llama``, or a model of ``transformers`` of that family whose linear layers are all plain and
        that was not loaded to be run by itself (``backend = "module"``)."""
        return isinstance(model, Llama) or (
            type(model).__name__ in FAMILY
            and getattr(model, "backend", "auto") != "module"
            and model.config.hidden_act == "silu"
            and getattr(model.config, "partial_rotary_factor", 1.0) == 1.0
            and all(
                type(m) is nn.Linear for name, m in off(model).named_modules() if name.endswith(("_proj", "lm_head"))
            )
        )

    def __init__(self, model: Any, dtype: torch.dtype, recompute: bool = False, exact: bool = False) -> None:
        config = model.config
        self.dtype, self.recompute, self.exact, self.eps = dtype, recompute, exact, config.rms_norm_eps
        self.most = context(config).tokens
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.padding = getattr(config, "pad_token_id", None)  # transformers does not train this token's embedding
        plain = isinstance(model, Llama)
        self.rotation = partial(_turned, model.frequencies(self.width)) if plain else partial(_scaled, model)
        self.weights, self.lora = dict(model.named_parameters(remove_duplicate=False)), getattr(model, "lora", None)
        self.embeddings, self.norm = (gathered(self.weights[f"model.{x}.weight"]) for x in ("embed_tokens", "norm"))
        self.depth = config.num_hidden_layers
        lazy = sharded(model) and torch.is_grad_enabled()  # a learner gathers a layer when it is run
        self.layers = [] if lazy else [self._layer(i) for i in range(self.depth)]
        self.output = self._joined("lm_head")
        self.vocabulary = len(self.output[0])

    def _layer(self, i: int) -> Layer:
        place = f"model.layers.{i}."
        w, b = self._joined(*(f"{place}self_attn.{x}_proj" for x in "qkv"))
        q, k = (self.weights.get(f"{place}self_attn.{x}_norm.weight") for x in "qk")
        return Layer(
            before_attention=gathered(self.weights[f"{place}input_layernorm.weight"]),
            heads=(self._paired(w), None if b is None else self._paired(b)),
            query_norm=None if q is None else _pairs(gathered(q), 0),
            key_norm=None if k is None else _pairs(gathered(k), 0),
            out=self._joined(f"{place}self_attn.o_proj"),
            before_mlp=gathered(self.weights[f"{place}post_attention_layernorm.weight"]),
            gate=self._joined(f"{place}mlp.gate_proj"),
            up=self._joined(f"{place}mlp.up_proj"),
            down=self._joined(f"{place}mlp.down_proj"),
        )

    def _joined(self, *layers: str) -> Affine:
        matrices = [self._matrix(x) for x in layers]
        biases = [gathered(self.weights[f"{x}.bias"], self.dtype) for x in layers if f"{x}.bias" in self.weights]
        return matrices[0] if len(matrices) == 1 else torch.cat(matrices), torch.cat(biases) if biases else None

    def _matrix(self, layer: str) -> Tensor:
        """Return the matrix of a layer, with its adapter if it has one."""
        own = self.weights[f"{layer}.weight"]
        a, b = (self.weights.get(f"{NAME}.{layer}.lora_{x}.weight") for x in "AB")
        own = unpacked(own) if isinstance(own, Packed) else own
        if self.lora is None or a is None or b is None:
            return gathered(own, self.dtype)
        return Merged.apply(*map(gathered, (own, a, b)), self.lora.scale).to(self.dtype)

    def _paired(self, x: Tensor) -> Tensor:
        """Reorder the rows of queries and keys by ``_pairs``, which leaves their products as they are."""
        rows = x.unflatten(0, (-1, self.width))
        turned = self.heads + self.kv_heads
        return torch.cat([_pairs(rows[:turned], 1), rows[turned:]]).flatten(0, 1)

    def __call__(self, ids_B_T: Tensor, positions_B_T: Tensor, layout: Layout) -> Tensor:
        """Return hidden states [B, T, hidden] after the last norm, in ``dtype``."""
        x, rows = embedding(ids_B_T, self.embeddings, self.padding), ids_B_T.numel()
        turned = (
            exact.rotations(self.rotation, positions_B_T, self.most) if self.exact else self.rotation(positions_B_T)
        )
        turn = torch.view_as_real(turned[:, :, None])
        with torch.autocast(x.device.type, enabled=False):
            x = self._rows(x.flatten(0, 1))
            run = partial(checkpoint, self._run, use_reentrant=False) if self.recompute else self._run
            for i in range(self.depth):
                x = run(i, x, turn, layout)
            return _first(rows, rms_norm(x, self.norm, self.eps, self.dtype)).unflatten(0, ids_B_T.shape)

    def _run(self, i: int, x_N_C: Tensor, turn_B_T_1_D: Tensor, layout: Layout) -> Tensor:
        """Run layer ``i``."""
        layer = self.layers[i] if self.layers else self._layer(i)
        q, k, v = self._heads(layer, rms_norm(x_N_C, layer.before_attention, self.eps, self.dtype), turn_B_T_1_D)
        seen = self._attend(layout, i, q, k, v).to(self.dtype).flatten(0, 1).flatten(1)
        x, h = added_norm(x_N_C, self._linear(self._rows(seen), layer.out), layer.before_mlp, self.eps, self.dtype)
        return x + self._linear(_SwiGLU.apply(self._linear(h, layer.gate), self._linear(h, layer.up)), layer.down)

    def _attend(self, layout: Layout, i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scale = self.width**-0.5
        if not self.exact:
            return layout.attend(i, q, k, v, scale)
        value = layout.attend_exactly(i, q.detach(), k.detach(), v.detach(), scale)
        return exact.with_gradient(layout.attend(i, q, k, v, scale), value) if q.requires_grad else value

    def _rows(self, x_N_C: Tensor) -> Tensor:
        return exact.tiled(x_N_C) if self.exact else _padded(x_N_C)

    def _linear(self, x_N_C: Tensor, affine: Affine) -> Tensor:
        return exact.linear(x_N_C, *affine) if self.exact else functional.linear(x_N_C, *affine)

    def _heads(self, layer: Layer, h_N_C: Tensor, turn_B_T_1_D: Tensor) -> list[Tensor]:
        """Return rotated queries, rotated keys, and values: [B, heads, T, D] each."""
        B, T = turn_B_T_1_D.shape[:2]
        every = _first(B * T, self._linear(h_N_C, layer.heads)).view(B, T, -1, self.width)
        sizes = [self.heads, self.kv_heads]
        qk, v = every.split([sum(sizes), self.kv_heads], 2)
        if layer.query_norm is not None and layer.key_norm is not None:
            q, k = qk.split(sizes, 2)
            normed = [rms_norm(t, w, self.eps, self.dtype) for t, w in ((q, layer.query_norm), (k, layer.key_norm))]
            qk = torch.cat(normed, 2)
        q, k = _Rotated.apply(qk, turn_B_T_1_D).split(sizes, 2)
        dtype = attention_dtype(v)
        return [t.to(dtype).transpose(1, 2) for t in (q, k, v)]

    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states [N, hidden]."""
        return _first(len(hidden), self._linear(self._rows(hidden), self.output))


def _turned(frequencies_D: Tensor, positions_B_T: Tensor) -> Tensor:
    """Return the complex numbers [B, T, D] by which pairs of a head's dimensions are rotated."""
    angles = positions_B_T[..., None].float() * frequencies_D
    return torch.complex(angles.cos(), angles.sin())


def _scaled(model: Any, positions_B_T: Tensor) -> Tensor:
    """Return the same numbers for a model of ``transformers``, whose angles may be scaled."""
    like = torch.empty(0, device=positions_B_T.device)
    cos, sin = (t[..., : t.shape[-1] // 2] for t in model.base_model.rotary_emb(like, positions_B_T))
    return torch.complex(cos, sin)


class _Rotated(torch.autograd.Function):
    """Rotate pairs of numbers [B, T, H, 2 D] by complex numbers [B, T, 1, D, 2], in fp32. The result has attention's type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, turn: Tensor) -> Tensor:
        ctx.turn, ctx.dtype = turn, x.dtype
        if on_gpu(x):
            return _rotated(x, turn, x.dtype)
        out = torch.empty(x.shape, device=x.device).copy_(x)
        _complex(out).mul_(torch.view_as_complex(turn))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (g,) = gradients
        if on_gpu(g):
            return _rotated(g, ctx.turn, ctx.dtype, back=True), None
        pairs = _complex(g) * torch.view_as_complex(ctx.turn).conj()
        return torch.view_as_real(pairs).flatten(-2).to(ctx.dtype), None


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


@one_pass("rotated")
def _rotated(x: Tensor, turn: Tensor, dtype: torch.dtype, back: bool = False) -> Tensor:
    """The same in real numbers: Triton knows no complex ones."""
    a, b = x.unflatten(-1, (-1, 2)).float().unbind(-1)
    cos, sin = turn.unbind(-1)
    sin = -sin if back else sin
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(dtype)


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up. The backward pass computes silu again, so that only the arguments are kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _swiglu(gate, up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return _swiglu_gradients(gradients[0], *ctx.saved_tensors)


@one_pass("swiglu")
def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return silu(gate) * up


@one_pass("swiglu_gradients")
def _swiglu_gradients(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten.silu_backward(gradient * up, gate), gradient * silu(gate)


def _padded(x_N_C: Tensor) -> Tensor:
    """Append rows of zeros, up to a size that occurs often."""
    more = rounded(len(x_N_C)) - len(x_N_C)
    return pad(x_N_C, (0, 0, 0, more)) if more else x_N_C


def _first(rows: int, x_N_C: Tensor) -> Tensor:
    """Return the first rows. A slice of all would be copied, and zeros written, in the backward pass."""
    return x_N_C if len(x_N_C) == rows else x_N_C[:rows]


def _pairs(x: Tensor, dim: int) -> Tensor:
    """Put the two dimensions of a head that are rotated together, i and i + D / 2, side by side."""
    return x.unflatten(dim, (2, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1)


class Module:
    """The forward pass of any other model: the module itself, which the caller runs under autocast if in bfloat16."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.head = model.get_output_embeddings()
        self.vocabulary = len(self.head.weight)

    def __call__(self, ids_B_T: Tensor, positions_B_T: Tensor, layout: Layout) -> Tensor:
        out = self.model.base_model(input_ids=ids_B_T, position_ids=positions_B_T, use_cache=False, layout=layout)
        return out.last_hidden_state


def network(model: Any, dtype: torch.dtype, recompute: bool = False, exact: bool = False) -> Decoder | Module:
    """Return the forward pass of ``model``, for sampling and for learning. A ``Module`` recomputes only within ``recomputing``.

    Raises ValueError if it is to be ``exact`` and ``Decoder`` does not suit.
    """
    if exact and not Decoder.suits(model):
        raise ValueError(
            f"exact mode is for models of Llama's family, and {type(model).__name__} is none: leave it out"
        )
    if Decoder.suits(model):
        return Decoder(model, dtype, recompute, exact)
    return Module(whole_copy(model) if sharded(model) and not torch.is_grad_enabled() else model)


@contextmanager
def recomputing(model: Any, recompute: bool) -> Iterator[None]:
    """With ``recompute``, let backward passes compute the layers of any other model again instead of keeping them.

    ``transformers`` does so in training mode only: the layers, not the dropout in them, are in that mode for a while.
    """
    layers = []
    if recompute and not Decoder.suits(model):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    for layer in layers:
        layer.training = True
    yield
    for layer in layers:
        layer.training = False
