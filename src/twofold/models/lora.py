"""LoRA (arXiv:2106.09685): beside each frozen matrix W two thin ones are trained, and W + (alpha / rank) B A takes its place.

A model with an adapter is a view: it shares the frozen weights with the model that it was made from, and with every other view of
it. So the model without its adapter, or with another one, costs no second copy. Files have the layout of PEFT.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from twofold.maths.seeds import derive
from twofold.models import outside
from twofold.models.llama import place
from twofold.models.quantised import shape

NAME, CONFIG, WEIGHTS = "adapter", outside.ADAPTER, "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT writes before the name of a layer."""
PLAIN = {"peft_type": "LORA", "bias": "none"}
OTHER_KINDS = (
    "use_dora",
    "use_rslora",
    "lora_bias",
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
)
"""Options of PEFT that change what an adapter computes."""


@dataclass(frozen=True, slots=True)
class Lora:
    """What an adapter is: ``targets`` are the last parts of its layers' names, ``base`` is the frozen model's directory or name."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    base: str

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def attach(model: Any, lora: Lora, seed: int) -> Any:
    """Return a view of ``model`` with a new adapter, which changes nothing until it is trained. The weights of ``model`` are frozen.

    A is drawn as PEFT draws it, uniformly within 1 / sqrt(columns of W); B is 0. Raises ValueError if a target is not a layer.
    """
    view = off(model)
    view.lora, adapter = lora, nn.Module()
    random = torch.Generator().manual_seed(derive(seed, NAME))
    layers = {n.removesuffix(".weight"): p for n, p in view.named_parameters() if ".layers." in n and p.ndim == 2}
    if missing := [t for t in lora.targets if not any(_is(name, t) for name in layers)]:
        known = sorted({name.rpartition(".")[2] for name in layers})
        raise ValueError(f"lora.targets: {type(model).__name__} has no {', '.join(missing)}, only {', '.join(known)}")
    for name, weight in layers.items():
        if any(_is(name, target) for target in lora.targets):
            rows, columns = shape(weight)
            a = (2 * torch.rand(lora.rank, columns, generator=random) - 1) / math.sqrt(columns)
            place(adapter, f"{name}.lora_A.weight", a.to(weight.device))
            place(adapter, f"{name}.lora_B.weight", torch.zeros(rows, lora.rank, device=weight.device))
    view.requires_grad_(False)
    view.add_module(NAME, adapter)
    return view


def off(model: Any) -> Any:
    """Return a view of ``model`` without its adapter."""
    view = copy.copy(model)
    view._modules = {name: module for name, module in model._modules.items() if name != NAME}
    view.lora = None
    return view


def _is(name: str, target: str) -> bool:
    return name.rpartition(".")[2] == target


class Merged(torch.autograd.Function):
    """W + scale B A. Every micro-batch passes back through the same node, so nothing that it needs may be freed."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        ctx.a, ctx.b, ctx.scale = a, b, scale
        return torch.addmm(w, b, a, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor, None]:
        g = gradients[0] * ctx.scale
        return None, ctx.b.detach().T @ g, g @ ctx.a.detach().T, None


class Weights(Mapping[str, Tensor]):
    """The weights of a model by the names of its base, the adapter added; each sum is made when it is read."""

    def __init__(self, model: Any) -> None:
        self._every, self._scale = model.state_dict(), model.lora.scale
        self._names = [name for name in self._every if not name.startswith(f"{NAME}.")]

    def __getitem__(self, name: str) -> Tensor:
        weight, layer = self._every[name], f"{NAME}.{name.removesuffix('.weight')}"
        a, b = (self._every.get(f"{layer}.lora_{x}.weight") for x in "AB")
        return weight if a is None or b is None else torch.addmm(weight, b, a, alpha=self._scale)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def weights(model: Any) -> Mapping[str, Tensor]:
    """Return the weights that an engine with a copy of the model needs, by name."""
    return Weights(model) if adapted(model) else model.state_dict()


# ---------------------------------------------------------------- files


def save(folder: Path, model: Any, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write the adapter of ``model`` as PEFT does. ``weights`` are those that are ``trained``, if they are not the model's."""
    lora = model.lora
    about = PLAIN | {
        "task_type": "CAUSAL_LM", "base_model_name_or_path": lora.base, "r": lora.rank, "lora_alpha": lora.alpha,
        "target_modules": list(lora.targets), "lora_dropout": 0.0, "inference_mode": True,
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n")
    found = (trained(model) if weights is None else weights).items()
    tensors = {f"{PREFIX}{n.removeprefix(f'{NAME}.')}": t.contiguous() for n, t in found if n.startswith(f"{NAME}.")}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def read(folder: Path) -> dict[str, Tensor]:
    """Return the weights of the adapter in ``folder`` by the names that they have in a model."""
    return {f"{NAME}.{n.removeprefix(PREFIX)}": t for n, t in load_file(folder / WEIGHTS).items()}


def base_of(folder: Path) -> str | None:
    """Return the model that the adapter in ``folder`` belongs to; None if there is no adapter."""
    about = outside.read_json(folder / CONFIG)
    if about is None:
        return None
    base = about.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{folder / CONFIG}: base_model_name_or_path must name the base model, got {str(base)[:100]}")
    return base


def merge(folder: Path, model: Any) -> None:
    """Add the adapter in ``folder`` to the weights of ``model``. Raises ValueError if it is no plain LoRA of this model."""
    about = outside.read_json(folder / CONFIG) or {}
    strange = [f"{k} = {about.get(k)!r}" for k, v in PLAIN.items() if about.get(k) != v]
    if strange := strange + [f"{k} = {about[k]!r}" for k in OTHER_KINDS if about.get(k)]:
        raise ValueError(f"{folder / CONFIG}: twofold reads plain LoRA only, not {', '.join(strange)}")
    tensors, own = read(folder), dict(model.named_parameters())
    layers = sorted({n.removeprefix(f"{NAME}.").rpartition(".lora_")[0] for n in tensors})
    if unknown := [layer for layer in layers if f"{layer}.weight" not in own]:
        raise ValueError(f"{folder} is an adapter of another model: {type(model).__name__} has no {unknown[0]}")
    for layer in layers:
        a, b = (tensors[f"{NAME}.{layer}.lora_{x}.weight"] for x in "AB")
        weight = own[f"{layer}.weight"].data
        weight.copy_(torch.addmm(weight, b.to(weight), a.to(weight), alpha=about["lora_alpha"] / about["r"]))


def trained(model: Any) -> dict[str, Tensor]:
    """Return the weights that training changes, by name: all of a model without an adapter."""
    every = model.state_dict()
    return {n: every[n] for n, p in model.named_parameters() if p.requires_grad} if adapted(model) else every


def adapted(model: Any) -> bool:
    """Return whether ``model`` is a view with an adapter."""
    return getattr(model, "lora", None) is not None
