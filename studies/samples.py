"""Draw accuracy against the number of samples, from the result files of leaderboard.py: a panel for each of its folders.

    python studies/samples.py docs/results/samples.png "SmolLM2-135M=studies/results/smollm2" "1.4M model=studies/results/sums"

The bands are 95% intervals over problems and seeds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from leaderboard_table import interval, read
from shared import COLOURS, band, save

LINES = {
    ("rlv", "pass"): (None, "one of them is right (RL^V)"),
    ("rlv", "posterior"): (COLOURS[4], "RL^V, posterior of its verdicts"),
    ("rlv", "weighted"): (COLOURS[3], "RL^V, weighted by its verdicts"),
    ("rlv", "maj"): (COLOURS[2], "RL^V, majority"),
    ("think", "maj"): (COLOURS[5], "before, thinking, majority"),
    ("none", "maj"): (COLOURS[1], "before, majority"),
    ("rl", "maj"): (COLOURS[0], "plain RL, majority"),
}
"""(method, rule) -> colour and label, in the legend's order. A line without a colour is no strategy: it knows the answer. A folder may
lack a method."""


def draw(path: Path, panels: dict[str, Path]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    every = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    for ax, (title, folder) in zip(every, panels.items(), strict=True):
        named = {(x.method, x.rule): x for x in read(folder)[0]}
        for x, (colour, label) in ((named[key], how) for key, how in LINES.items() if key in named):
            mean_K = 100 * x.correct_S_P_K.mean(axis=(0, 1))
            if colour is None:
                ax.plot(x.ks, mean_K, ":", color="black", linewidth=1, label=label)
                continue
            ends = np.array([interval(x.of(k)) for k in x.ks]).T
            band(ax, x.ks, mean_K, *(100 * ends), colour, label)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xlabel("samples of a problem")
        ax.set_title(title, fontsize=10)
    every[0].set_ylabel("accuracy, %")
    max(every, key=lambda ax: len(ax.lines)).legend(frameon=False, fontsize=8, loc="lower right")
    save(figure, path)


def main(argv: Sequence[str]) -> None:
    path, *panels = argv
    draw(Path(path), {title: Path(folder) for title, _, folder in (panel.partition("=") for panel in panels)})


if __name__ == "__main__":
    main(sys.argv[1:])
