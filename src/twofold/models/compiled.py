"""Elementwise maths that a GPU runs in one pass over memory, where one operation after another would take a pass each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")


def fused(function: Callable[P, R]) -> Callable[P, R]:
    """Let CUDA devices run ``function``, which takes a tensor first, as compiled by ``torch.compile`` at its first call.

    Other devices run it as it is written. The function must need no gradient: it is a part of an ``autograd.Function``.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        first: Any = args[0]
        return (compiled(function) if on_gpu(first) else function)(*args, **kwargs)

    return run


def on_gpu(x: torch.Tensor) -> bool:
    """Return whether ``x`` is on a CUDA device, or on ``meta``, where no number exists and ``bench/counts.py`` counts operations."""
    return x.device.type in ("cuda", "meta")


@cache
def compiled(function: Callable[P, R]) -> Callable[P, R]:
    return torch.compile(function, fullgraph=True) if compiles() else function


@cache
def compiles() -> bool:
    """Return whether functions can be compiled for the CUDA device. It takes Triton and a C compiler; a warning says what fails."""
    try:
        torch.compile(torch.neg)(torch.ones(2, device="cuda"))
    except RuntimeError as error:
        log.warning(
            "torch.compile does not work here, so that every elementwise operation is a pass of its own over the GPU's "
            "memory, and learning takes about twice as long: %s",
            error,
        )
        return False
    return True
