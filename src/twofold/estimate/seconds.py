"""Seconds of a step, from its work and three numbers for each kind of machine, which were fitted to measured runs.

A token step of decoding takes ``gap`` for each layer, whatever its rows; the products' time, which is that of reading the weights
or that of the FLOPs; and the time of passing over keys, values and activations at a share ``passes`` of the bandwidth. Learning
takes (1 + ``narrow`` / hidden) times as long as its matrix products: what is not a product grows with the width, the products
with its square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from twofold.engine_options import Native, Vllm
from twofold.estimate.machines import GIB, Machine
from twofold.estimate.memory import BYTES, Case, Layout, cache_bytes
from twofold.estimate.shapes import Shape
from twofold.estimate.work import Draw, Learnt
from twofold.types import Precision

PRODUCTS = 0.6
"""Share of their limit that the products of a token step reach."""
TOUCHED = 60
"""Bytes that a token step passes over for each row, layer and dimension, besides keys, values and products."""
OPTIMISER = 28
"""Bytes that AdamW reads and writes for each weight that is trained."""
LATENCY = 15e-6
"""Seconds of one sum over the devices of a tensor-parallel group. Two per layer and token step. Not measured."""


@dataclass(frozen=True, slots=True)
class Rates:
    """The fitted numbers of one kind of machine."""

    gap: float
    """Seconds for each layer and token step: launches, waits and work on the host."""
    passes: float
    """Share of the bandwidth that a token step reaches outside its products."""
    narrow: float
    """The width at which learning spends as long outside its products as in them."""


RATES: dict[tuple[str, str], Rates] = {
    ("cpu", "bfloat16"): Rates(1.08e-3, 0.522, 1290),
    ("cpu", "float32"): Rates(1.08e-3, 0.522, 195),
    ("gpu", "measured"): Rates(1.52e-3, 0.189, 4000),
    ("gpu", "counted"): Rates(43.4e-6, 0.65, 950),
}
"""``measured`` is what an H100 took before the present decoding and learning were written. ``counted`` is the present code's. Its
``passes`` and ``narrow`` are from operations and bytes that were counted (dev/LOG.md, 12); learning has not been measured. Its ``gap``
is fitted to two draws of an H100 (dev/LOG.md, 19), whole calls with the capture of their graphs; 15e-6 was counted, without captures.
See ``measured.py``."""


def token_step(
    shape: Shape, machine: Machine, precision: Precision, rates: Rates, rows: float, cached: float, parts: int = 1
) -> dict[str, float]:
    """Return the seconds of one token of ``rows`` rows by cause, where ``cached`` tokens of keys and values are read.

    The weights are cut among ``parts`` devices.
    """
    flops = 2 * shape.matrices * rows + 4 * shape.layers * shape.query_width * cached
    reading = shape.matrices * BYTES[precision] / machine.bandwidth / 1e12
    products = max(reading, flops / machine.products(precision)) / parts / PRODUCTS
    passed = rows * (shape.layers * shape.hidden * TOUCHED + 2 * shape.vocabulary * BYTES[precision])
    passing = 1e12 * machine.bandwidth * rates.passes * parts
    found = {
        "gaps": shape.layers * rates.gap,
        "weights" if reading > flops / machine.products(precision) else "products": products,
        "cache": cached * cache_bytes(shape, precision, machine) / passing,
        "passes": passed / passing,
    }
    if parts > 1:
        sums = 2 * shape.layers * (LATENCY + 2 * rows * shape.hidden / machine.between(parts))
        found["tensor parallel"] = sums
    return found


def sampling(
    shape: Shape,
    machine: Machine,
    precision: Precision,
    rates: Rates,
    draw: Draw,
    layout: Layout,
    engine: Native | Vllm,
) -> dict[str, float]:
    """Return the seconds of a draw by cause; reading its prompts is "prefill"."""
    groups = layout.devices / layout.tensor_parallel
    prompts = max(1.0, draw.prompts / groups) if draw.prompts >= 1 else draw.prompts
    texts = prompts * draw.texts / draw.prompts
    if isinstance(engine, Vllm):  # rows that end make place for others; every row reads its own prompt
        most = min(engine.max_rows, held(engine, shape, machine, precision, draw.context + draw.length))
        steps = max(draw.longest, texts * draw.length / most)
        reads = draw.context
    else:
        steps = math.ceil(texts / max(engine.max_rows, draw.texts / draw.prompts)) * draw.longest
        reads = draw.context * draw.prompts / draw.texts
    active = texts * draw.length / steps
    step = token_step(
        shape, machine, precision, rates, active, active * (reads + draw.length / 2), layout.tensor_parallel
    )
    found = {cause: draw.times * steps * seconds for cause, seconds in step.items()}
    return found | {
        "prefill": draw.times * prefill(shape, machine, precision, rates, prompts * draw.fresh) / layout.tensor_parallel
    }


def held(engine: Vllm, shape: Shape, machine: Machine, precision: Precision, tokens: float) -> float:
    """Return how many texts of so many tokens vLLM's cache holds at once."""
    return max(1.0, engine.kv_gib * GIB / cache_bytes(shape, precision, machine) / tokens)


def prefill(shape: Shape, machine: Machine, precision: Precision, rates: Rates, tokens: float) -> float:
    """Return the seconds of a forward pass over ``tokens``, without logits."""
    return 2 * shape.layer_matrices * tokens / machine.products(precision) * (1 + rates.narrow / shape.hidden)


def learning(
    shape: Shape, machine: Machine, precision: Precision, rates: Rates, learnt: Learnt, *, checkpointing: bool = False,
    frozen_head: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Return the seconds of forward and backward passes on one device, in products and outside them."""
    flops = learnt.flops(shape, frozen_head=frozen_head) * (4 / 3 if checkpointing else 1)
    products = flops / machine.products(precision)
    return {"products": products, "passes": products * rates.narrow / shape.hidden}


def exchange(case: Case, updates: float, micro_batches: float) -> float:
    """Return the seconds in which devices wait for weights and gradients of one another.

    Replicated: gradients to rank 0 and weights back, in float32, for each update. Sharded (``train.shard``): each micro-batch
    gathers all layers before its forward pass and, with checkpointing, before its backward pass, and cuts gradients in float32;
    each update gathers embeddings and output matrix, and each step a copy to sample from. Nothing of this is hidden behind products.
    """
    shape, trained, link = case.shape, case.trained, case.machine.between(case.layout.devices)
    if case.layout.devices == 1:
        return 0.0
    if case.parts == 1:
        return updates * 8 * trained / link
    width = BYTES[case.precision]
    layers = (4 if case.config.lora.rank else width) * shape.layer_matrices  # an adapter is added in float32
    again = 2 if case.config.train.checkpointing else 1
    copy = (case.outer + width * shape.layer_matrices) / case.layout.tensor_parallel
    return (micro_batches * (again * layers + 4 * trained) + updates * case.outer + copy) / link
