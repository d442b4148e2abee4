"""Count what one update asks of a CUDA device, without one: operations, bytes and FLOPs, and the least seconds they take.

    python bench/counts.py [--shapes 0.5B 1.5B] [--prompts 64] [--completions 16] [--length 1024] [--verify] [--checkpointing]

The learner's own code runs on tensors without content (device "meta"), so every operation is seen and none is computed. A
pass of ``models.passes`` counts as one operation, which reads its arguments and writes its results. The seconds are
a prediction for ``gpu.py`` to check: products at ``--tflops``, all other bytes at ``--tbytes`` (of an H100: what a large product
reaches, and the memory's bandwidth).
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any
from unittest.mock import patch

import torch
from common import qwen2, record
from gpu import PROMPT, SHAPES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from twofold.models import passes
from twofold.models.decoder import network
from twofold.trainer.batch import Batch, batches
from twofold.trainer.learner import Learner, Loss
from twofold.trainer.optim import Optim
from twofold.types import Sample

QUESTION = 19
"""Tokens of the question that the shipped model is asked about its solution, and of the verdict."""


class Counted(TorchDispatchMode):
    """Counts operations that move bytes, by their name; views and allocations move none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.flops = 0
        self.inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not (self.inside or func.is_view or name.startswith(("empty", "new_empty", "detach", "_unsafe_view"))):
            self.add(name, size((args, kwargs)) + size(out))
            if func.overloadpacket in flop_registry:
                self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out

    def add(self, name: str, moved: int) -> None:
        self.bytes[name] += moved
        self.operations[name] += 1

    def kernel(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Take the place of ``passes.kernel``."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self.inside = True
            out = function(*args, **kwargs)
            self.inside = False
            self.add(f"fused {name}", size((args, kwargs)) + size(out))
            return out

        return run


def size(tree: Any) -> int:
    """Bytes of all tensors in it; of an expanded one, those that are there."""
    return sum(
        min(x.numel() * x.element_size(), x.untyped_storage().nbytes())
        for x in tree_leaves(tree)
        if isinstance(x, Tensor)
    )


PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}


def moved(batch: Batch) -> Batch:
    """Return the batch without content. (It cannot be made so: which tokens are read is found in it.)"""

    def to(x: Any) -> Any:
        return x.to("meta") if isinstance(x, Tensor) else x

    layout = batch.layout
    spans = layout.spans
    layout.positions = to(layout.positions)
    layout.spans = replace(spans, **{f.name: to(getattr(spans, f.name)) for f in fields(spans)})
    named = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{k: tuple(map(to, x)) if isinstance(x, tuple) else to(x) for k, x in named.items()})


def samples(prompts: int, completions: int, length: int, verify: bool) -> list[Sample]:
    rng = random.Random(0)
    more = QUESTION if verify else 0
    size = PROMPT + length + more
    made = []
    for _ in range(prompts):
        prompt = [rng.randrange(500) for _ in range(PROMPT)]
        for _ in range(completions):
            targets = [0.0] * size
            if verify:
                targets[-1] = 0.1
            made.append(
                Sample(
                    prompt + [7] * (length + more), [False] * PROMPT + [True] * length + [False] * more, [-1.0] * size,
                    [1.0] * size, targets,
                )
            )  # fmt: skip
    return made


def count(shape: dict[str, Any], given: Sequence[Sample], micro_tokens: int, checkpointing: bool) -> Counted:
    """Count the forward and backward passes of an update, the optimiser's step apart."""
    counted = Counted()
    with (
        patch("twofold.trainer.learner.make"),  # no optimiser
        patch.object(passes, "kernel", counted.kernel),
        patch("twofold.models.logprobs.has_triton", lambda: True),
        patch(
            "torch.autocast", lambda *_, **__: nullcontext()
        ),  # it knows no meta device; the forward pass is in bfloat16 without it
    ):
        with torch.device("meta"):
            model = qwen2(**shape)
        learner = Learner(model, Optim(), Loss(), steps=1, precision="bfloat16", checkpointing=checkpointing)
        laid = [moved(batch) for batch in batches(given, Loss(), micro_tokens, torch.device("cpu"), range(len(given)))]
        with counted:
            run = network(model, torch.bfloat16, checkpointing)
            for batch in laid:
                learner._losses(run, batch, True)[0].backward()
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.5B", "1.5B"])
    for option, value in (("--prompts", 64), ("--completions", 16), ("--length", 1024), ("--micro-tokens", 16384)):
        parser.add_argument(option, type=int, default=value)
    parser.add_argument("--tflops", type=float, default=800)
    parser.add_argument("--tbytes", type=float, default=3.35)
    parser.add_argument("--verify", action="store_true", help="append a question and a verdict to every sample")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--top", type=int, default=0, help="also print this many operations by their bytes")
    args = parser.parse_args()
    for name in args.shapes:
        given = samples(args.prompts, args.completions, args.length, args.verify)
        counted = count(SHAPES[name], given, args.micro_tokens, args.checkpointing)
        outside = sum(b for op, b in counted.bytes.items() if op not in PRODUCTS)
        record(
            "counts-learner", shape=name, samples=len(given), operations=sum(counted.operations.values()),
            tflop=counted.flops / 1e12, gigabytes=outside / 1e9, least_products_s=counted.flops / args.tflops / 1e12,
            least_passes_s=outside / args.tbytes / 1e12,
        )  # fmt: skip
        for op, b in counted.bytes.most_common(args.top):
            print(f"{b / 1e9:10.1f} GB {counted.operations[op]:6d} {op}")


if __name__ == "__main__":
    main()
