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
NF4 = 0.5 + 1 / 64 + 4 / 64 / 256
"""Bytes of a weight in four bits: its block of 64 has a scale of one byte, and 256 scales have one of four."""
CONTEXT = 1 * GIB
"""What CUDA, its libraries and NCCL take. Not measured."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How devices share the work. Weights that sample are cut among ``tensor_parallel`` devices, which this version does not do."""

    devices: int = 1
    tensor_parallel: int = 1


@dataclass(frozen=True, slots=True)
class Case:
    """A run of a model of these sizes, on these devices."""

    config: Config
    engine: Native | Vllm
    shape: Shape
    machine: Machine
    layout: Layout
    precision: Precision

    @property
    def parts(self) -> int:
        """Number of devices that hold one copy of weights, gradients and moments together: with ``train.shard`` all. Otherwise each
        holds weights and gradients, and rank 0 the moments."""
        return self.layout.devices if self.config.train.shard else 1

    @property
    def micro_tokens(self) -> int:
        return self.config.train.micro_tokens or (4096 if self.machine.family == "cpu" else 16384)

    @property
    def trained(self) -> int:
        """Number of weights of a role that are trained."""
        lora = self.config.lora
        return self.shape.adapter(lora.rank, lora.targets) if lora.rank else self.shape.parameters

    @property
    def base(self) -> float:
        """Bytes of a model's weights, which are in float32 or, with ``lora.quantise``, have their layers' matrices in four bits."""
        four = self.config.lora.quantise == "nf4"
        return 4 * self.shape.parameters - ((4 - NF4) * self.shape.layer_matrices if four else 0)

    @property
    def outer(self) -> int:
        """Bytes of the embeddings in float32 and of the output matrix, as a learner whose weights are cut gathers them."""
        return (4 + BYTES[self.precision]) * self.shape.head


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


def memory_of(case: Case, draw: Draw | None, tokens: float) -> Memory:
    """Return the memory of the fullest device, where ``draw`` is the largest call of the engine, and ``tokens`` are those of the
    largest micro-batch."""
    config, shape, layout, width = case.config, case.shape, case.layout, BYTES[case.precision]
    roles, saves = _roles(config), config.train.checkpointing
    adapters, frozen = (roles, 1) if config.lora.rank else (0, roles)
    if config.loss.beta and not config.lora.rank:
        frozen += 1
    moments = 4 if config.optim.name == "muon" else 8
    weights = {
        "weights": (case.base * frozen + 4 * case.trained * adapters) / case.parts,
        "moments": moments * case.trained * roles / case.parts,
    }
    here = {"libraries": CONTEXT} if case.machine.family == "gpu" else {}
    sampling: dict[str, float] = {}
    if draw:
        vllm = case.engine if isinstance(case.engine, Vllm) else None
        copy = case.outer + width * shape.layer_matrices if case.parts > 1 else _copy(case)
        copies = width * shape.parameters * roles if vllm else copy * (roles + bool(config.loss.beta))
        rows = draw.texts * layout.tensor_parallel / layout.devices
        own = rows * draw.longest + rows * draw.prompts / draw.texts * draw.context
        cache = own * cache_bytes(shape, case.precision, case.machine) / layout.tensor_parallel
        sampling = {
            "vLLM's weights" if vllm else "copy for products": copies / layout.tensor_parallel,
            "keys and values": vllm.kv_gib * GIB * roles if vllm else cache,
            "logits": min(rows, case.engine.max_rows) * shape.vocabulary * (width + 4) / layout.tensor_parallel,
        }
    learning = {
        "gradients": 4 * case.trained / case.parts,
        "copy for products": _gathered(case) if case.parts > 1 else _copy(case),
        "activations": activations(shape, tokens, case.precision, saves),
        "logits": logits(shape, tokens, case.precision, case.machine, saves),
    }
    if sampling and isinstance(case.engine, Vllm) and not case.engine.sleep:
        learning |= {item: sampling[item] for item in ("vLLM's weights", "keys and values")}
    return Memory(weights | sampling | here if sampling else {}, weights | learning | here)


def _copy(case: Case) -> float:
    """Return the bytes of the matrices that the decoder lays out for its products.

    In float32 these are queries, keys and values, which are joined. With an adapter they are those of all layers: each is unpacked
    from four bits, or is the sum with the adapter. (Matrices that ``lora.targets`` leaves out are counted too.)
    """
    shape = case.shape
    if case.precision == "bfloat16":
        return 2 * shape.matrices
    joined = shape.layers * shape.hidden * (shape.query_width + shape.kv_width)
    return 4 * (shape.layer_matrices if case.config.lora.rank else joined)


def _gathered(case: Case) -> float:
    """Return the bytes that a learner whose weights are cut has gathered at most, with their gradients before they are cut.

    These are the embeddings and the output matrix, the layer that is computed and its gradient, and without checkpointing all layers.
    """
    layers, width = case.shape.layers, BYTES[case.precision]
    whole = width * case.shape.layer_matrices * (1 if case.config.train.checkpointing else layers) / layers
    return 2 * case.outer + whole + width * case.shape.layer_matrices / layers


def _roles(config: Config) -> int:
    """Return the number of models that are trained."""
    recipe = config.recipe
    two = (isinstance(recipe, Tango) and not recipe.share) or (isinstance(recipe, RLV) and recipe.verify == "separate")
    return 2 if two else 1
