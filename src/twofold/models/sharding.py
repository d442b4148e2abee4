"""Weights that are cut among the ranks of a run: each rank holds some rows of every matrix, and all together hold one copy.

They are the ``DTensor`` s that FSDP2 (``fully_shard``) makes, without its hooks: these gather the weights of a module when it is
called, and ``Decoder`` calls no module. It gathers a weight where it reads it (``gathered``), and the backward pass of that
hands each rank the sum of all ranks' gradients for its own rows. So gradients and the optimiser's state are cut in the same way
(ZeRO, arXiv:1910.02054; with ``DTensor`` alone as in SimpleFSDP, arXiv:2411.00284). Any other model gathers in the same way: each
module its own weights, when it is called (``gather_when_called``).

Importing ``DTensor`` takes longer than a small model takes to load and answer, so that only functions import it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed import DeviceMesh
    from torch.distributed.tensor import DTensor


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Leave this rank its rows of every weight of ``model``, in place and on the mesh's device. All ranks must have the same weights.

    A weight that is cut already stays as it is: views of one model share their weights.
    """
    done: dict[int, nn.Parameter] = {}  # a tied weight stays tied
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None and not is_cut(p):
                if id(p) not in done:
                    done[id(p)] = nn.Parameter(cut(p.detach(), mesh), p.requires_grad)
                module._parameters[name] = done[id(p)]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(mesh.device_type)


def cut(tensor: Tensor, mesh: DeviceMesh) -> DTensor:
    """Return a tensor that every rank has as one of which each has its rows only."""
    from torch.distributed.tensor import DTensor, Shard

    rows, first = -(-len(tensor) // mesh.size()), mesh.get_local_rank()
    own = tensor[first * rows : (first + 1) * rows].to(mesh.device_type, copy=True)
    return DTensor.from_local(own, mesh, [Shard(0)], run_check=False, shape=tensor.shape, stride=tensor.stride())


def gather_when_called(model: nn.Module) -> None:
    """Let every module of ``model`` have its own weights whole while it runs. All ranks must call the same modules."""

    def before(module: nn.Module, _: Any) -> None:
        vars(module)["cut"] = {name: p for name, p in module._parameters.items() if p is not None}
        module._parameters.update({name: gathered(p) for name, p in vars(module)["cut"].items()})

    def after(module: nn.Module, *_: Any) -> None:
        module._parameters.update(vars(module).pop("cut"))

    for module in model.modules():
        if module._parameters:
            module.register_forward_pre_hook(before)
            module.register_forward_hook(after, always_call=True)


@torch.inference_mode(False)
@torch.no_grad()
def whole_copy(model: nn.Module) -> Any:
    """Return a copy of ``model`` with whole weights. All ranks must call this together."""
    parameters = {id(p): p for p in model.parameters()}
    return copy.deepcopy(model, {i: nn.Parameter(gathered(p), False) for i, p in parameters.items()})


def is_cut(tensor: Tensor) -> TypeGuard[DTensor]:
    return hasattr(tensor, "device_mesh")


def sharded(model: Any) -> bool:
    """Return whether the weights of ``model`` are cut."""
    return any(map(is_cut, model.parameters()))


def gathered(weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a whole weight in ``dtype``. If it is cut, all ranks must call this, and pass back through it, in the same order: the
    gradient that a rank gets is the sum of all ranks' for its own rows, added in float32."""
    if not is_cut(weight):
        return weight.to(dtype)
    from torch.distributed.tensor import Partial, Replicate

    every = weight.redistribute(placements=[Replicate()], forward_dtype=dtype, backward_dtype=torch.float32)
    return every.to_local(grad_placements=[Partial()])


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor or, if it is cut, the whole of it. All ranks must call this in the same order."""
    return tensor.full_tensor() if is_cut(tensor) else tensor


def like(own: Tensor, tensor: Tensor) -> Tensor:
    """Return ``tensor`` on the device of ``own`` and, if that is cut and this is more than a number, cut in the same way."""
    return cut(tensor, own.device_mesh) if is_cut(own) and tensor.ndim else tensor.to(own.device)
