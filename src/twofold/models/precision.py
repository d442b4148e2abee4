"""In what type matrix products are fast on this machine: what ``auto`` stands for, and a word where another choice is slow."""

from __future__ import annotations

import logging
import time
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

from twofold.types import Precision

log = logging.getLogger(__name__)

ROWS, WIDTH, REPEATS = 128, 512, 5
"""Of the measured products, [rows, width] by [width, width]. They take less than a millisecond, so most repeats are undisturbed
on a busy CPU, too. From a width of 256 the faster type is the same at every width: a processor has units for bfloat16, or not."""


@cache  # measured, and said, once
def choose_precision(asked: Literal["auto", Precision]) -> Precision:
    """Return the precision that ``asked`` stands for. If it is "bfloat16" and that is slow on this machine, log so.

    A CUDA device that has bfloat16 is faster with it. On a CPU two products are timed.
    """
    if asked == "float32":
        return asked
    if torch.cuda.is_available():
        slow = not torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        seconds = product_seconds()
        slow = seconds["bfloat16"] > seconds["float32"]
    if asked == "auto":
        return "float32" if slow else "bfloat16"
    if slow:
        log.warning('precision = "bfloat16" is slower than "float32" on this machine')
    return asked


def product_seconds() -> dict[Precision, float]:
    """Return the seconds of a matrix product on the CPU in each precision: the least of several, on one thread."""
    a, b = torch.ones(ROWS, WIDTH), torch.ones(WIDTH, WIDTH)
    pairs: dict[Precision, tuple[Tensor, Tensor]] = {"float32": (a, b), "bfloat16": (a.bfloat16(), b.bfloat16())}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a thread that waits for another one measures the load
    try:
        return {name: min(_seconds(*pair) for _ in range(1 + REPEATS)) for name, pair in pairs.items()}
    finally:
        torch.set_num_threads(threads)


def _seconds(a: Tensor, b: Tensor) -> float:
    began = time.perf_counter()
    linear(a, b)
    return time.perf_counter() - began
