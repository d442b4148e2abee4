"""What a run costs: memory of a device, seconds of a step, hours and money, and what it waits for most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from twofold.config import Config
from twofold.engine_options import Native, Vllm
from twofold.estimate.machines import Machine
from twofold.estimate.memory import Case, Layout, Memory, memory_of
from twofold.estimate.seconds import OPTIMISER, RATES, Rates, exchange, held, learning, prefill, sampling
from twofold.estimate.shapes import Shape
from twofold.estimate.work import Lengths, Work, work_of
from twofold.types import Precision

HOST = 0.05e12
"""Bytes per second between a GPU and the CPU's memory, where vLLM's weights sleep. Not measured."""
RELIEF = {
    "sampling: gaps": "a token step costs this for any number of rows: draw more rows at once, shorter texts",
    "sampling: weights": "every token step reads all weights: draw more rows at once",
    "sampling: products": "more devices, fewer or shorter rollouts, a smaller model",
    "sampling: cache": "keys and values are read for every token: shorter rollouts or prompts, more devices",
    "sampling: passes": "more devices, fewer or shorter rollouts",
    "sampling: tensor parallel": "cut the sampling weights among fewer devices",
    "prefill": "shorter prompts, fewer of them, or more rollouts of each",
    "learning: products": "more devices, fewer or shorter rollouts, no checkpointing",
    "learning: passes": "more devices, fewer or shorter rollouts; a wider model loses less here",
    "optimiser": "fewer optimiser steps (train.minibatches, train.epochs), or lora",
    "exchange": "fewer optimiser steps, larger train.micro_tokens, or lora",
}
"""What takes the time -> what would relieve it."""
SPACE = {
    "weights": "set train.shard = true, or use more devices if it is",
    "moments": "set train.shard = true, or lora.rank",
    "gradients": "set train.shard = true, or lora.rank",
    "activations": "set train.checkpointing = true, or lower train.micro_tokens",
    "logits": "lower train.micro_tokens",
    "keys and values": "the native engine keeps those of a whole call, so lower rollout.problems; vLLM's are engine.kv_gib",
    "copy for products": "a GPU with more memory; set train.checkpointing = true",
    "vLLM's weights": "set engine.sleep = true, or use the native engine",
}
"""What takes the memory -> what would relieve it."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of a step by phase and cause, such as ``{"learning": {"products": 3.1, "passes": 2.0}}``."""

    phases: Mapping[str, Mapping[str, float]]

    @property
    def step(self) -> float:
        return sum(map(self.of, self.phases))

    def of(self, phase: str) -> float:
        return sum(self.phases[phase].values())

    @property
    def longest(self) -> str:
        """What takes longest, as ``RELIEF`` names it."""
        flat = {
            (phase if cause == "all" else f"{phase}: {cause}"): seconds
            for phase, causes in self.phases.items()
            for cause, seconds in causes.items()
        }
        return max(flat, key=flat.__getitem__)

    def share(self, name: str) -> float:
        """Return the share of the step that is spent in what ``longest`` has named."""
        phase, _, cause = name.partition(": ")
        return self.phases[phase][cause or "all"] / self.step


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of a run. ``times`` has "fitted" on a CPU; on a GPU "measured" and "counted" (see ``seconds.RATES``)."""

    precision: Precision
    work: Work
    memory: Memory
    flops: Mapping[str, float]
    """FLOPs of a step: sampling, prefill, learning."""
    times: Mapping[str, Times]
    hours: Mapping[str, float]
    money: Mapping[str, float]
    fits: bool
    notes: tuple[str, ...]

    @property
    def fullest(self) -> str:
        """The largest item of the fuller phase that has a remedy."""
        phase = max(self.memory.sampling, self.memory.learning, key=lambda items: sum(items.values()))
        return max((item for item in phase if item in SPACE), key=phase.__getitem__)


def estimate(config: Config, shape: Shape, machine: Machine, layout: Layout, lengths: Lengths) -> Estimate:
    """Return the cost of the run of ``config``. Raises ValueError for what is not modelled."""
    engine = config.engine
    if not isinstance(engine, Native | Vllm):
        raise ValueError(f"twofold plan cannot estimate engine {engine.name!r}, only native, vllm")
    if layout.devices % layout.tensor_parallel:
        raise ValueError(f"--tensor-parallel {layout.tensor_parallel} must divide --devices {layout.devices}")
    precision = machine.precision if config.train.precision == "auto" else config.train.precision
    work = work_of(config, lengths)
    largest = max(work.draws, key=lambda d: d.texts * (d.longest + d.context * d.prompts / d.texts), default=None)
    case = Case(config, engine, shape, machine, layout, precision)
    memory = memory_of(case, largest, min(case.micro_tokens, work.learnt.laid / work.updates / layout.devices))
    bases = {"measured": "measured", "counted": "counted"} if machine.family == "gpu" else {"fitted": precision}
    times = {name: _times(case, work, RATES[machine.family, basis]) for name, basis in bases.items()}
    hours = {basis: config.train.steps * t.step / 3600 for basis, t in times.items()}
    flops = {
        "sampling": sum(
            d.tokens * (2 * shape.matrices + 4 * shape.layers * shape.query_width * (d.context + d.length / 2))
            for d in work.draws
        ),
        "prefill": 2 * shape.layer_matrices * (sum(d.times * d.prompts * d.fresh for d in work.draws) + work.prefilled),
        "learning": work.learnt.flops(shape, frozen_head=bool(config.lora.rank)),
    }
    return Estimate(
        precision, work, memory, flops, times, hours,
        {basis: h * machine.price * layout.devices for basis, h in hours.items()},
        memory.peak <= machine.memory * 2**30, tuple(_notes(case, work)),
    )  # fmt: skip


def _times(case: Case, work: Work, rates: Rates) -> Times:
    config, engine, machine, layout = case.config, case.engine, case.machine, case.layout
    here = case.shape, machine, case.precision, rates
    sampled: dict[str, float] = {}
    for draw in work.draws:
        for cause, seconds in sampling(*here, draw, layout, engine).items():
            sampled[cause] = sampled.get(cause, 0.0) + seconds
    read = sampled.pop("prefill", 0.0) + prefill(*here, work.prefilled / layout.devices)
    passes = (
        1.1 if work.streams == 2 else 1.0
    )  # a tenth of the steps runs once more, to tell the streams' gradients apart
    learnt = learning(
        *here, work.learnt.scaled(passes / layout.devices),
        checkpointing=config.train.checkpointing, frozen_head=bool(config.lora.rank),
    )  # fmt: skip
    batches = math.ceil(max(work.updates, work.learnt.laid / layout.devices / case.micro_tokens))
    moved = exchange(case, work.updates, batches)
    if isinstance(engine, Vllm) and engine.sleep and machine.family == "gpu":
        moved += 2 * 2 * case.shape.parameters / layout.tensor_parallel / HOST
    return Times(
        {
            "sampling": sampled,
            "prefill": {"all": read},
            "learning": learnt,
            "optimiser": {"all": work.updates * OPTIMISER * case.trained / case.parts / machine.bandwidth / 1e12},
            "exchange": {"all": moved},
        }
    )


def _notes(case: Case, work: Work) -> list[str]:
    """Return what a reader must know before trusting the numbers."""
    engine, machine, layout = case.engine, case.machine, case.layout
    notes = []
    if layout.tensor_parallel > 1:
        notes.append("This version does not cut sampling among devices (--tensor-parallel): this cannot be run yet.")
    if isinstance(engine, Vllm) and layout.devices > 1:
        notes.append('vLLM in the process refuses several processes: engine.name = "native" runs on several devices.')
    if case.config.train.ahead:
        notes.append(
            "train.ahead is left out: a step is the sum of its phases here, where it takes as long as the slower of sampling and "
            "learning."
        )
    if isinstance(engine, Vllm) and machine.family == "gpu":
        notes.append("vLLM was not measured on a GPU; it is taken to decode as the native engine does.")
    if isinstance(engine, Vllm) and work.draws:
        draw = max(work.draws, key=lambda d: d.context + d.length)
        room = held(engine, case.shape, machine, case.precision, draw.context + draw.length)
        if room < min(engine.max_rows, draw.texts):
            notes.append(f"vLLM's cache holds {room:.0f} texts at once, fewer than max_rows: raise engine.kv_gib.")
    if machine.family == "gpu" and machine.name != "h100":
        notes.append(f"No run on {machine.name} was measured: its data sheet, with an H100's shares of it.")
    if layout.devices > 1:
        notes.append("Several devices were never measured: exchange is bytes over the link, without loss.")
    return notes
