"""AdamW, and Muon for training from scratch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from twofold.maths.schedule import Optim as Optim
from twofold.models.sharding import like


def make(config: Optim, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of a model. Weight decay applies to matrices only, as is usual."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim >= 2]
    rest = [p for p in parameters if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": rest, "weight_decay": 0.0}]
    if config.name == "adamw":
        groups.append({"params": matrices, "weight_decay": config.weight_decay})
        return torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=config.lr, betas=(config.beta1, config.beta2), fused=True
        )
    outer = {id(e.weight) for e in (model.get_input_embeddings(), model.get_output_embeddings())}  # type: ignore[operator]
    hidden = [p for p in matrices if id(p) not in outer]
    groups[0]["params"] = [*rest, *(p for p in matrices if id(p) in outer)]
    return Muon(hidden, torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True), config)


def moments(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> dict[str, Tensor]:
    """Return the optimiser's state by NAME/KIND, such as ``model.norm.weight/exp_avg``."""
    states = ((name, optimizer.state.get(p, {})) for name, p in model.named_parameters())
    return {f"{name}/{kind}": value for name, state in states for kind, value in state.items()}


def remember(optimizer: torch.optim.Optimizer, model: torch.nn.Module, found: Mapping[str, Tensor]) -> None:
    """Give the optimiser the state that ``moments`` returned. Raises ValueError if a parameter is not one of the model's."""
    own = dict(model.named_parameters())
    for key, value in found.items():
        name, _, kind = key.rpartition("/")
        if name not in own:
            raise ValueError(f"the optimiser's state is another model's, or an older version wrote it: it has {key!r}")
        optimizer.state[own[name]][kind] = like(own[name], value)


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz (Jordan et al., 2024) on hidden matrices; AdamW on the rest.

    The update's scale, 0.2 sqrt(max(rows, columns)), matches AdamW's, so both share one learning rate
    (arXiv:2502.16982). Matrices of one shape are orthogonalised in one batched product.
    """

    def __init__(self, matrices: Iterable[Tensor], others: torch.optim.AdamW, config: Optim) -> None:
        self.others = others
        self.decay = config.weight_decay
        super().__init__([{"params": list(matrices)}], {"lr": config.lr})
        self.matrices = self.param_groups[0]["params"]
        self.param_groups += others.param_groups
        self.state = others.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.others.step()
        alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for p in self.matrices:
            if p.grad is not None:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 0.05)
                alike[p.shape].append((p, torch.lerp(p.grad, momentum, 0.95)))
        lr = self.param_groups[0]["lr"]
        for shape, pairs in alike.items():
            updates = _orthogonal(torch.stack([u for _, u in pairs]))
            for (p, _), update in zip(pairs, updates, strict=True):
                p.mul_(1 - lr * self.decay).add_(update, alpha=-lr * 0.2 * math.sqrt(max(shape)))


def _orthogonal(x: Tensor) -> Tensor:
    """Return roughly the nearest orthogonal matrices to those in ``x`` [batch, rows, columns], by five Newton-Schulz steps."""
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x if wide else x.mT
