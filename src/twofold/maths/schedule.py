"""The optimiser's options and its learning rate: warm-up, then a constant, linear or cosine schedule."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from twofold.ranges import NonNegative, Range, Share, checked


@checked
class Optim:
    """``warmup`` is a share of all steps. ``clip`` bounds the gradient norm of each stream (policy, targets) on its own."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: NonNegative = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Share = 0.03
    hold: Share = 0.0
    """Share of all steps, warm-up included, before the decay begins."""
    final: Share = 0.0
    """The learning rate at the end, as a share of ``lr`` (linear and cosine)."""
    beta1: Annotated[float, Range(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Range(ge=0, lt=1)] = 0.95
    weight_decay: NonNegative = 0.0
    clip: Annotated[float, Range(gt=0, lt=None)] = 1.0


def learning_rate(config: Optim, step: int, steps: int) -> float:
    """Return the learning rate of a step from 0 to steps - 1. It is a pure function, so no checkpoint has to hold it."""
    warm = math.ceil(config.warmup * steps)
    if step < warm:
        return config.lr * (step + 1) / warm
    flat = max(warm, round(config.hold * steps))
    done = max(0.0, (step - flat) / max(1, steps - flat))
    share = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[config.schedule]
    return config.lr * (config.final + (1 - config.final) * share)
