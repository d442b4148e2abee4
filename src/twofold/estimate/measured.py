"""The measured runs that ``seconds.RATES`` are fitted to, and how far the fitted model is from each of them.

Rows of a CPU are from dev/LOG.md (5, Speed) and docs/performance.md. Six of an H100 are from one machine on 26 November 2026 and
stand in docs/performance.md and dev/LOG.md (12); the code was that before decoding and learning were rewritten for GPUs. Two are of
the present code's decoding on another H100, one day later (dev/LOG.md, 19).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

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
FREE = {("gpu", "counted"): ("gap",)}
"""The rates that a group's rows determine, where these are not all: two draws say nothing of learning."""


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
    basis: str = "measured"
    """Of a GPU's row: which of its ``seconds.RATES`` it belongs to."""

    @property
    def title(self) -> str:
        """What was measured, and where."""
        return f"{MACHINES[self.machine].name}, {self.precision}: {self.what}"

    @property
    def group(self) -> tuple[str, str]:
        family = MACHINES[self.machine].family
        return family, self.precision if family == "cpu" else self.basis

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


def _learnt(prompts: int, prompt: int, n: int, own: float, question: int = 0) -> Learnt:
    """``question``: tokens of a question about the solution, with a verdict."""
    return laid_out(prompts, prompt, n, own + question, own + bool(question), 1, 1)


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
    Row("learn these with verdicts, 173k tokens", 3.17, "h100", H, learnt=_learnt(32, 64, 16, 256, 19)),
    Row("the same with checkpointing", 3.52, "h100", H, learnt=_learnt(32, 64, 16, 256, 19), checkpointing=True),
    Row("a step of RL, 64 x 8 x 41 tokens, 135M", 2.74, "h100", S, draw=_draw(64, 80, 8, 41, 56), learnt=_learnt(64, 80, 8, 41)),
    Row("a step of RL^V, the same", 3.51, "h100", S, draw=_draw(64, 80, 8, 41, 56), learnt=_learnt(64, 80, 8, 41, 21)),
    Row("draw 32 x 16 x 256 tokens, 0.5B, present code", 0.752, "h100", H, draw=_draw(32, 64, 16, 256, 256), basis="counted"),
    Row("draw 1 x 16 x 256 tokens, 0.5B, present code", 0.401, "h100", H, draw=_draw(1, 64, 16, 256, 256), basis="counted"),
)  # fmt: skip


def fit(rows: Sequence[Row], start: Rates) -> Rates:
    """Return the rates at which the squares of log(predicted / measured) are least (Gauss-Newton in the rates' logarithms).

    ``rows``: of one group. A rate that no row depends on, or that is not in ``FREE``, stays. None moves by more than a factor of e
    from one iteration to the next.
    """
    names = FREE.get(rows[0].group) or [field.name for field in fields(Rates)]

    def rates(x: np.ndarray) -> Rates:
        return replace(start, **dict(zip(names, np.exp(x).tolist(), strict=True)))

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.array([math.log(row.predicted(rates(x)) / row.seconds) for row in rows])

    x, small = np.log([getattr(start, name) for name in names]), 1e-5
    for _ in range(30):
        here = residuals(x)
        slopes = np.stack([(residuals(x + small * unit) - here) / small for unit in np.eye(len(x))], 1)
        x = x + np.clip(np.linalg.lstsq(slopes, -here, rcond=1e-6)[0], -1, 1)
    return rates(x)


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
    others = (fit([other for other in rows if other is not row], whole) for row in rows)
    return [Error(row, row.predicted(whole), row.predicted(rates)) for row, rates in zip(rows, others, strict=True)]


def typical(found: Sequence[Error]) -> float:
    """Return the factor by which the model is off when a row is left out: exp of the root mean square of the logarithms."""
    squares = [math.log(e.left_out / e.row.seconds) ** 2 for e in found]
    return math.exp(math.sqrt(sum(squares) / len(squares)))
