"""The measured runs that ``seconds.RATES`` are fitted to, and how far the fitted model is from each of them.

Every row is from dev/LOG.md or docs/performance.md, which say how it was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from twofold.engine_options import Native
from twofold.estimate.machines import MACHINES
from twofold.estimate.memory import Layout
from twofold.estimate.seconds import RATES, Rates, learning, sampling
from twofold.estimate.shapes import KNOWN, Shape
from twofold.estimate.work import Draw, Learnt, laid_out
from twofold.types import Precision

SMALL = Shape(256, 6, 4, 2, 768, 512, biases=True)
MIDDLE = Shape(512, 8, 8, 2, 1536, 512, biases=True)
TEN = Shape(384, 6, 6, 3, 1024, 512, biases=True)
HUNDRED = Shape(768, 14, 12, 6, 2304, 512, biases=True)
ONE = Native()


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. ``seconds`` are of ``draw`` and ``learnt`` together, whichever there are."""

    what: str
    seconds: float
    machine: str
    shape: Shape
    precision: Precision = "bfloat16"
    draw: Draw | None = None
    learnt: Learnt | None = None
    checkpointing: bool = False

    @property
    def group(self) -> tuple[str, str]:
        family = MACHINES[self.machine].family
        return family, self.precision if family == "cpu" else "measured"

    def predicted(self, rates: Rates) -> float:
        machine, found = MACHINES[self.machine], 0.0
        if self.draw:
            found += sum(sampling(self.shape, machine, self.precision, rates, self.draw, Layout(), ONE).values())
        if self.learnt:
            parts = learning(self.shape, machine, self.precision, rates, self.learnt, checkpointing=self.checkpointing)
            found += sum(parts.values())
        return found


def _draw(prompts: int, prompt: int, n: int, length: float, longest: float) -> Draw:
    return Draw(prompts, prompt, prompt, prompts * n, length, longest)


def _learnt(prompts: int, prompt: int, n: int, own: float) -> Learnt:
    return laid_out(prompts, prompt, n, own, own, 1, 1)


def _share(width: int, share: float, precision: Precision = "bfloat16") -> Row:
    """An update of 3,200 tokens whose matrix products take a share of its time. Only the width matters."""
    shape = Shape(width, 6, width // 64, 2, 3 * width, 512)
    learnt = Learnt(3200, 3200, 0)
    seconds = learnt.flops(shape) / MACHINES["cpu"].products(precision) / share
    return Row(
        f"an update of width {width}: its products are {share:.0%} of it",
        seconds,
        "cpu",
        shape,
        precision,
        learnt=learnt,
    )


H = KNOWN["qwen2.5-0.5b"]
S = KNOWN["smollm2-135m"]
ROWS: tuple[Row, ...] = (
    *(_share(w, x) for w, x in ((256, 0.23), (512, 0.34), (896, 0.44), (1536, 0.57), (2048, 0.62))),
    Row("learn 32 x 8 x 96 tokens, prompts of 32, 5M", 2.77, "cpu", SMALL, learnt=_learnt(32, 32, 8, 96)),
    Row("learn 32 x 8 x 16 to 96 tokens, prompts of 32", 1.7, "cpu", SMALL, learnt=_learnt(32, 32, 8, 56)),
    Row("learn 8 x 32 x 96 tokens, prompts of 256", 4.4, "cpu", SMALL, learnt=_learnt(8, 256, 32, 96)),
    Row("learn 64 texts of 64 tokens", 0.70, "cpu", SMALL, learnt=_learnt(8, 32, 8, 64)),
    Row("learn 1,024 texts of 64 tokens", 8.4, "cpu", SMALL, learnt=_learnt(128, 32, 8, 64)),
    Row("learn 4,096 texts of 64 tokens", 32.4, "cpu", SMALL, learnt=_learnt(512, 32, 8, 64)),
    Row("learn 16 texts of 1,024 tokens", 3.5, "cpu", SMALL, learnt=_learnt(2, 32, 8, 1024)),
    Row("learn 16 texts of 4,096 tokens", 26.0, "cpu", SMALL, learnt=_learnt(2, 32, 8, 4096)),
    Row("learn 32 texts of 64 tokens, 10M", 0.52, "cpu", TEN, learnt=_learnt(4, 32, 8, 64)),
    Row("learn 32 texts of 64 tokens, 100M", 5.6, "cpu", HUNDRED, learnt=_learnt(4, 32, 8, 64)),
    Row("draw 32 x 8 x 96 tokens, prompts of 32, 5M", 2.15, "cpu", SMALL, draw=_draw(32, 32, 8, 96, 96)),
    Row("draw 32 x 8 x 16 to 96 tokens, prompts of 32", 1.4, "cpu", SMALL, draw=_draw(32, 32, 8, 56, 96)),
    Row("draw 8 x 32 x 96 tokens, prompts of 256", 2.5, "cpu", SMALL, draw=_draw(8, 256, 32, 96, 96)),
    Row("draw 64 texts of 64 tokens", 0.60, "cpu", SMALL, draw=_draw(8, 32, 8, 64, 64)),
    Row("draw 1,024 texts of 64 tokens", 3.9, "cpu", SMALL, draw=_draw(128, 32, 8, 64, 64)),
    Row("draw 4,096 texts of 64 tokens", 15.8, "cpu", SMALL, draw=_draw(512, 32, 8, 64, 64)),
    Row("draw 16 texts of 1,024 tokens", 9.2, "cpu", SMALL, draw=_draw(2, 32, 8, 1024, 1024)),
    Row("draw 16 texts of 4,096 tokens", 79.0, "cpu", SMALL, draw=_draw(2, 32, 8, 4096, 4096)),
    Row("draw 32 texts of 64 tokens, 10M", 0.69, "cpu", TEN, draw=_draw(4, 32, 8, 64, 64)),
    Row("draw 32 texts of 64 tokens, 100M", 2.5, "cpu", HUNDRED, draw=_draw(4, 32, 8, 64, 64)),
    _share(256, 0.58, "float32"),
    _share(512, 0.70, "float32"),
    Row("draw 32 tokens of 32 x 16 texts, 0.5B", 32 * 0.0310, "h100", H, draw=Draw(32, 72, 0, 512, 32, 32)),
    Row("draw 32 x 16 x 256 tokens, 0.5B", 11.48, "h100", H, draw=_draw(32, 64, 16, 256, 256)),
    Row("learn these with verdicts, 173k tokens", 3.17, "h100", H, learnt=_learnt(32, 64, 16, 275)),
    Row("the same with checkpointing", 3.52, "h100", H, learnt=_learnt(32, 64, 16, 275), checkpointing=True),
    Row("a step of RL, 64 x 8 x 41 tokens, 135M", 2.74, "h100", S, draw=_draw(64, 80, 8, 41, 56), learnt=_learnt(64, 80, 8, 41)),
    Row("a step of RL^V, the same", 3.51, "h100", S, draw=_draw(64, 80, 8, 41, 56), learnt=_learnt(64, 80, 8, 65)),
)  # fmt: skip


def loss(rows: Sequence[Row], rates: Rates) -> float:
    """Return the sum of squared logarithms of predicted / measured."""
    return sum(math.log(row.predicted(rates) / row.seconds) ** 2 for row in rows)


def least(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function of one positive number is least, by golden section of its logarithm."""
    a, b, golden = math.log(low), math.log(high), (math.sqrt(5) - 1) / 2
    for _ in range(40):
        c, d = b - golden * (b - a), a + golden * (b - a)
        a, b = (a, d) if function(math.exp(c)) < function(math.exp(d)) else (c, b)
    return math.exp((a + b) / 2)


def fit(rows: Sequence[Row], start: Rates, sweeps: int = 8) -> Rates:
    """Return the rates at which the model is nearest to ``rows``, found one after the other. One that no row depends on stays."""
    rates, bounds = start, {"narrow": (50.0, 2e4)} if any(row.learnt for row in rows) else {}
    if any(row.draw for row in rows):
        bounds |= {"gap": (1e-6, 1e-2), "passes": (1e-3, 1.0)}
    for _ in range(sweeps):
        for name, (low, high) in bounds.items():
            rates = _improved(rows, rates, name, low, high)
    return rates


def _improved(rows: Sequence[Row], rates: Rates, name: str, low: float, high: float) -> Rates:
    def changed(x: float) -> Rates:
        return replace(rates, **{name: x})

    return changed(least(lambda x: loss(rows, changed(x)), low, high))


@dataclass(frozen=True, slots=True)
class Error:
    """A row, what the model says of it, and what it says if fitted to the other rows of its group."""

    row: Row
    fitted: float
    left_out: float


def errors(group: tuple[str, str]) -> list[Error]:
    """Return the errors of one group's rows."""
    rows = [row for row in ROWS if row.group == group]
    start = RATES[group]
    whole = fit(rows, start)
    others = (fit([other for other in rows if other is not row], whole, 3) for row in rows)
    return [Error(row, row.predicted(whole), row.predicted(rates)) for row, rates in zip(rows, others, strict=True)]


def typical(found: Sequence[Error]) -> float:
    """Return the factor by which the model is off when a row is left out: exp of the root mean square of the logarithms."""
    squares = [math.log(e.left_out / e.row.seconds) ** 2 for e in found]
    return math.exp(math.sqrt(sum(squares) / len(squares)))
