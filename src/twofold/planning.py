"""What a training run will cost, for the command line: ``twofold plan``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from textwrap import wrap
from typing import Any

from twofold.config import Config
from twofold.estimate.cost import RELIEF, SPACE, Estimate, estimate
from twofold.estimate.machines import GIB, MACHINES, Machine
from twofold.estimate.memory import Layout
from twofold.estimate.shapes import Shape, shape_of
from twofold.estimate.work import Lengths
from twofold.terminal import visible

WIDTH, LABEL, COLUMN = 80, 44, 15
BASES = {
    "fitted": "fitted: to measurements of two cores; one that is left out is off by a factor of 1.3.",
    "measured": "measured: fitted to 6 measurements of an H100 with models of 135M and 0.5B, before decoding and learning "
    "were rewritten for it; one that is left out is off by a factor of 1.3.",
    "counted": "counted: the present code, by its operations and bytes. Decoding: its gaps are fitted to two draws of a "
    "0.5B model on one H100. Learning: no run has checked it.",
}
"""What the times of each basis rest on. docs/scaling.md has the table of errors."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A run, and where it is to run."""

    title: str
    config: Config
    model: str
    shape: Shape
    machine: Machine
    layout: Layout
    lengths: Lengths
    cost: Estimate


def machine_of(name: str, changes: Mapping[str, float | None]) -> Machine:
    """Return a known machine, with the numbers that are not None in place of its own. ``tflops`` is of both precisions."""
    given = {key: value for key, value in changes.items() if value is not None}
    if (tflops := given.pop("tflops", None)) is not None:
        given |= {"bfloat16": tflops, "float32": tflops}
    changed: dict[str, Any] = given
    return replace(MACHINES[name], **changed)


def plan(title: str, config: Config, model: str | None, machine: Machine, layout: Layout, lengths: Lengths) -> Planned:
    """Estimate a run. ``model`` is named as for ``shapes.shape_of`` (None: the config's)."""
    name = model or config.model
    shape = shape_of(name)
    found = estimate(config, shape, machine, layout, lengths)
    return Planned(title, config, name, shape, machine, layout, lengths, found)


def as_json(planned: Planned) -> str:
    """Return everything that ``lines`` shows, and the parts of it, as one JSON object."""
    cost = planned.cost
    return json.dumps(
        {
            "config": planned.title, "model": planned.model, "parameters": planned.shape.parameters,
            "shape": asdict(planned.shape), "machine": asdict(planned.machine),
            "layout": asdict(planned.layout) | {"sharded": planned.config.train.shard},
            "precision": cost.precision, "work": asdict(cost.work), "flops": dict(cost.flops),
            "memory": asdict(cost.memory) | {"peak": cost.memory.peak, "fits": cost.fits},
            "seconds": {basis: times.phases for basis, times in cost.times.items()},
            "step": {basis: times.step for basis, times in cost.times.items()},
            "hours": dict(cost.hours), "money": dict(cost.money),
            "bottleneck": {basis: times.longest for basis, times in cost.times.items()}, "notes": list(cost.notes),
        }
    )  # fmt: skip


def lines(planned: Planned) -> list[str]:
    """Return the tables, in lines of at most 80 columns."""
    found = [*_head(planned), "", *_memory(planned), "", *_work(planned.cost), "", *_times(planned), ""]
    for sentence in _verdicts(planned):
        found += wrap(sentence, WIDTH, subsequent_indent="  ")
    return found


def _row(label: str, *cells: str) -> str:
    return (f"{label:<{LABEL}}" + "".join(f"{cell:>{COLUMN}}" for cell in cells)).rstrip()


def _head(planned: Planned) -> list[str]:
    config, layout = planned.config, planned.layout
    how = "" if layout.devices == 1 else ", sharded" if config.train.shard else ", replicated"
    adapter = f", LoRA of rank {config.lora.rank}" if config.lora.rank else ""
    completion = planned.lengths.completion or config.rollout.max_tokens / 2
    about = (
        f"{planned.title}: {planned.model}, {planned.shape.parameters / 1e9:.3g} billion weights, {config.recipe.name}"
        f"{adapter}, {config.engine.name} engine, {planned.cost.precision}, {layout.devices} x {planned.machine.name}{how}"
    )
    assumed = (
        f"Prompts of {planned.lengths.prompt} tokens and rollouts of {completion:.0f} (at most "
        f"{config.rollout.max_tokens}) in the mean: --prompt and --completion say yours."
    )
    return [*wrap(visible(about), WIDTH), *wrap(assumed, WIDTH)]


def _memory(planned: Planned) -> list[str]:
    memory = planned.cost.memory
    found = [_row("memory of the fullest device, GiB", "sampling", "learning")]
    for item in dict.fromkeys([*memory.sampling, *memory.learning]):
        cells = (phase.get(item) for phase in (memory.sampling, memory.learning))
        found.append(_row(f"  {item}", *("-" if x is None else f"{x / GIB:.2f}" for x in cells)))
    sums = (f"{sum(phase.values()) / GIB:.2f}" if phase else "-" for phase in (memory.sampling, memory.learning))
    return [*found, _row(f"  sum, of {planned.machine.memory:g}", *sums)]


def _work(cost: Estimate) -> list[str]:
    work, flops = cost.work, {name: f"{x / 1e12:,.4g}" for name, x in cost.flops.items()}
    return [
        _row("a step", "tokens", "TFLOP"),
        _row("  drawn", f"{work.sampled:,.0f}", flops["sampling"]),
        _row("  read before drawing or to score", f"{_read(cost):,.0f}", flops["prefill"]),
        _row("  judged (of what is drawn or learnt)", f"{work.judged:,.0f}", ""),
        _row("  learnt, prompts included", f"{work.learnt.laid:,.0f}", flops["learning"]),
    ]


def _read(cost: Estimate) -> float:
    return cost.work.prefilled + sum(d.times * d.prompts * d.fresh for d in cost.work.draws)


def _times(planned: Planned) -> list[str]:
    cost, steps = planned.cost, planned.config.train.steps
    found = [_row("seconds of a step", *cost.times)]
    for phase in next(iter(cost.times.values())).phases:
        found.append(_row(f"  {phase}", *(f"{times.of(phase):.3g}" for times in cost.times.values())))
    found.append(_row("  step", *(f"{times.step:.3g}" for times in cost.times.values())))
    found.append(_row(f"hours of {steps} steps", *(f"{h:.3g}" for h in cost.hours.values())))
    price = f"money, at {planned.machine.price:g} an hour and device"
    return [*found, _row(price, *(f"{m:,.3g}" if m < 1000 else f"{m:,.0f}" for m in cost.money.values()))]


def _verdicts(planned: Planned) -> list[str]:
    cost, found = planned.cost, []
    if not cost.fits:
        item, most = cost.fullest, f"{cost.memory.peak / GIB:.0f} GiB of {planned.machine.memory:g}"
        found.append(f"BOTTLENECK: memory, {most}, most of it {item}. It does not fit: {SPACE[item]}.")
    for basis, times in cost.times.items():
        name = times.longest
        found.append(f"Bottleneck ({basis}): {name}, {times.share(name):.0%} of the step. Relief: {RELIEF[name]}.")
    return found + list(cost.notes) + [BASES[basis] for basis in cost.times]
