"""What the studies of training share: means with intervals over problems, and how their figures look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.evals.figures import PALETTE
from twofold.maths.stats import cluster_bootstrap, paired_bootstrap

Floats = NDArray[np.float64]

COLOURS = ["#888888", *PALETTE, "#000000", "#8c6d31"]
FIRST = 5_000_000_000
"""Problems of the training side that no run with a small seed meets: for common starts."""


def interval(values_P: Floats, scale: float = 100, digits: int = 1) -> str:
    mean, low, high = (scale * float(x) for x in cluster_bootstrap(values_P))
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def difference(a_P: Floats, b_P: Floats, scale: float = 100, digits: int = 1) -> str:
    d = paired_bootstrap(a_P, b_P)
    return f"{scale * d.mean:+.{digits}f} [{scale * d.low:+.{digits}f}, {scale * d.high:+.{digits}f}]"


def save(figure: Any, path: Path) -> None:
    """With the same axes and legends in all figures."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=160)
