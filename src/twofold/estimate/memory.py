"""Memory of the fullest device, by item, while sampling and while learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from twofold.config import Config
from twofold.engine_options import Native, Vllm
from twofold.estimate.machines import GIB, Machine
from twofold.estimate.shapes import Shape
from twofold.estimate.work import Draw
from twofold.recipes.rlv import RLV
from twofold.recipes.tango import Tango
from twofold.types import Precision

BYTES: Mapping[Precision, int] = {"float32": 4, "bfloat16": 2}
CHUNK, KEPT = 2**27, 5 * GIB
"""``LOGITS`` and ``KEPT`` of ``models/logprobs.py``: the most logits at once, and the most bytes of them that a GPU keeps."""
CONTEXT = 1 * GIB
"""What CUDA, its libraries and NCCL take. Not measured."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How devices share the work. ``sharded``: each holds a part of the weights, gradients and moments (FSDP), which this version
    does not do. Otherwise each holds all of them, and rank 0 the moments. The weights that sample are cut among ``tensor_parallel``
    devices."""

    devices: int = 1
    sharded: bool = False
    tensor_parallel: int = 1

    @property
    def parts(self) -> int:
        return self.devices if self.sharded else 1


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by item, in both phases of a step."""

    sampling: dict[str, float]
    learning: dict[str, float]

    @property
    def peak(self) -> float:
        return max(sum(self.sampling.values()), sum(self.learning.values()))


def cache_bytes(shape: Shape, precision: Precision, machine: Machine) -> float:
    """Return the bytes of one token's keys and values. On CPUs they are in float32."""
    return shape.layers * shape.kv_width * (4 if machine.family == "cpu" else BYTES[precision])


def activations(shape: Shape, tokens: float, precision: Precision, checkpointing: bool) -> float:
    """Return the bytes that the backward pass of a micro-batch needs: of every layer, or with ``checkpointing`` each layer's
    input and one layer.

    A layer keeps its residual twice in float32, and in the matrices' type two norms, queries, keys and values before and after
    the rotation, what attention returns, and three rows of the MLP.
    """
    numbers = 3 * shape.hidden + 2 * (shape.query_width + shape.kv_width) + shape.query_width + 3 * shape.ffn
    layer = tokens * (2 * 4 * shape.hidden + BYTES[precision] * numbers)
    return layer + shape.layers * tokens * 4 * shape.hidden if checkpointing else shape.layers * layer


def logits(shape: Shape, tokens: float, precision: Precision, machine: Machine, checkpointing: bool) -> float:
    """Return the bytes of logits and of what is made of them. See ``models/logprobs.py``."""
    whole = tokens * shape.vocabulary * BYTES[precision]
    if machine.family == "gpu" and not checkpointing and whole <= KEPT:
        return whole
    return min(tokens * shape.vocabulary, CHUNK) * (BYTES[precision] + 3 * 4)


def micro_tokens(config: Config, machine: Machine) -> int:
    return config.train.micro_tokens or (4096 if machine.family == "cpu" else 16384)


def trainable(config: Config, shape: Shape) -> int:
    lora = config.lora
    return shape.adapter(lora.rank, lora.targets) if lora.rank else shape.parameters


def memory_of(
    config: Config,
    engine: Native | Vllm,
    shape: Shape,
    machine: Machine,
    layout: Layout,
    precision: Precision,
    draw: Draw | None,
    tokens: float,
) -> Memory:
    """Return the memory of the fullest device, where ``draw`` is the largest call of the engine, and ``tokens`` are those of the
    largest micro-batch."""
    roles = _roles(config)
    adapters, frozen = (roles, 1) if config.lora.rank else (0, roles)
    if config.loss.beta and not config.lora.rank:
        frozen += 1
    parts, tuned = layout.parts, trainable(config, shape)
    matrices = (
        shape.matrices
        if precision == "bfloat16"
        else shape.layers * shape.hidden * (shape.query_width + shape.kv_width)
    )
    copy = BYTES[precision] * matrices
    moments = 4 if config.optim.name == "muon" else 8
    weights = {
        "weights (float32)": (4 * shape.parameters * frozen + 4 * adapters * (tuned if config.lora.rank else 0))
        / parts,
        "moments": moments * tuned * roles / parts,
    }
    here = {"libraries": CONTEXT} if machine.family == "gpu" else {}
    sampling: dict[str, float] = {}
    if draw:
        vllm = engine if isinstance(engine, Vllm) else None
        copies = BYTES[precision] * shape.parameters * roles if vllm else copy * (roles + bool(config.loss.beta))
        rows = draw.texts * layout.tensor_parallel / layout.devices
        own = rows * draw.longest + rows * draw.prompts / draw.texts * draw.context
        cache = own * cache_bytes(shape, precision, machine) / layout.tensor_parallel
        sampling = {
            "vLLM's weights" if vllm else "copy for products": copies / layout.tensor_parallel,
            "keys and values": vllm.kv_gib * GIB * roles if vllm else cache,
            "logits": min(rows, engine.max_rows) * shape.vocabulary * (BYTES[precision] + 4) / layout.tensor_parallel,
        }
    saves = config.train.checkpointing
    learning = {
        "gradients": 4 * tuned / parts,
        "copy for products": copy / shape.layers * 2 if parts > 1 else copy,
        "activations": activations(shape, tokens, precision, saves),
        "logits": logits(shape, tokens, precision, machine, saves),
    }
    if sampling and isinstance(engine, Vllm) and not engine.sleep:
        learning["vLLM's weights"], learning["keys and values"] = (
            sampling["vLLM's weights"],
            sampling["keys and values"],
        )
    return Memory(weights | sampling | here if sampling else {}, weights | learning | here)


def _roles(config: Config) -> int:
    """Return the number of models that are trained."""
    recipe = config.recipe
    two = (isinstance(recipe, Tango) and not recipe.share) or (isinstance(recipe, RLV) and recipe.verify == "separate")
    return 2 if two else 1
