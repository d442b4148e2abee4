"""Shared by the studies: means and differences with intervals over problems, and the look of the figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.evals.figures import PALETTE
from twofold.maths.stats import cluster_bootstrap, paired_bootstrap

Floats = NDArray[np.float64]

COLOURS = ["#888888", *PALETTE, "#000000", "#8c6d31"]
FIRST = 5_000_000_000
"""The index of the first training problem of the common starts. A run with a small seed never gets this far."""


def interval(values_P: Floats, scale: float = 100, digits: int = 1) -> str:
    """Return the mean with its 95% interval over problems, such as ``62.0 [58.1, 65.7]``."""
    mean, low, high = (scale * float(x) for x in cluster_bootstrap(values_P))
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def difference(a_P: Floats, b_P: Floats, scale: float = 100, digits: int = 1) -> str:
    """Return the mean of a - b with its 95% interval, problems paired, such as ``+1.7 [-0.9, +4.2]``."""
    d = paired_bootstrap(a_P, b_P)
    return f"{scale * d.mean:+.{digits}f} [{scale * d.low:+.{digits}f}, {scale * d.high:+.{digits}f}]"


def save(figure: Any, path: Path) -> None:
    """Write the figure, with the axes that all figures have: from zero, because shares are compared."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
        axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=160)


def band(
    axes: Any, x: Sequence[float], mean: Floats, low: Floats, high: Floats, colour: str, label: str | None = None
) -> None:
    """Draw a curve with its interval."""
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(x, mean, color=colour, marker=".", markersize=4, linewidth=1.6, label=label)
