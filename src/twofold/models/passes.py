"""Elementwise maths that a GPU runs in one pass over memory, where one operation after another would take a pass each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, wraps
from importlib.util import find_spec
from typing import Any, ParamSpec, TypeVar

import torch

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")


def one_pass(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let CUDA devices run ``kernels.learning.<name>`` in place of a function, which takes a tensor first.

    Other devices run it as it is written. The function must need no gradient: it is a part of an ``autograd.Function``.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            first: Any = args[0]
            return (kernel(name, function) if on_gpu(first) else function)(*args, **kwargs)

        return run

    return decorate


def on_gpu(x: torch.Tensor) -> bool:
    """Return whether ``x`` is on a CUDA device, or on ``meta``, where no number exists and ``bench/counts.py`` counts operations."""
    return x.device.type in ("cuda", "meta")


def kernel(name: str, function: Callable[P, R]) -> Callable[P, R]:
    """Return the kernel of this name, or ``function`` where no kernel runs (see ``has_triton``)."""
    if not has_triton():
        return function
    from twofold.models.kernels import learning

    found: Callable[P, R] = getattr(learning, name)
    return found


@cache
def has_triton() -> bool:
    """Return whether Triton is installed and the GPU, if there is one, can run its kernels; a warning says what it costs if not."""
    why = None if find_spec("triton") else "Triton is not installed"
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        why = "this GPU is older than compute capability 8.0"
    if why:
        log.warning(
            "%s, so that every elementwise operation is a pass of its own over the GPU's memory, and learning takes about twice as "
            "long",
            why,
        )
    return why is None
