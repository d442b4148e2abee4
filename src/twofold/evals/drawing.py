"""The style of all figures, and what they share. matplotlib is imported only when a figure is drawn.

A figure is SVG that stands inline in an HTML page. Its colours are the page's ``--ink``, ``--muted`` and ``--grid``, so that
one picture suits a light and a dark page. Text stays text, in the page's font. A run has one colour in all figures; the
page has the key.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from twofold.maths.stats import Estimate
from twofold.terminal import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito (2008), safe for colour-blind readers, in an order in which neighbours differ most.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Stand-ins that matplotlib accepts as colours. The page's CSS variables replace them in the finished SVG.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
_CSS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"} | {
    c: f"var(--c{i})" for i, c in enumerate(PALETTE)
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "twofold",
    "text.parse_math": False,  # a run's name may have a $
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
LINE_STYLES = {"weighted": "-", "maj": (0, (4, 2)), "best": (0, (6, 1.5, 1, 1.5)), "pass": (0, (1, 1.6))}

Colours = Mapping[str, str]


def colours(labels: Sequence[str]) -> dict[str, str]:
    """Return one colour per run, in order. After six the palette starts again; lines are labelled by name as well."""
    return {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(labels)}


def swatches(labels: Sequence[str]) -> dict[str, str]:
    """Return the same colours as the page's variables, which are lighter on a dark page."""
    return {label: f"var(--c{i % len(PALETTE)})" for i, label in enumerate(labels)}


@dataclass
class Drawing:
    """A figure, and its SVG text once it is finished."""

    figure: Figure
    svg: str = ""

    def axes(
        self, columns: int, rows: int = 1, hspace: float = 0.3, wspace: float = 0.2, share: bool = False
    ) -> list[Axes]:
        """Return the panels; with ``share`` they have one vertical axis."""
        space = {"wspace": wspace, "hspace": hspace}
        return list(self.figure.subplots(rows, columns, squeeze=False, sharey=share, gridspec_kw=space).flat)


@contextmanager
def canvas(title: str, height: float, right: float = 0.15, top: float = 0.7) -> Iterator[Drawing]:
    """Give a figure 10 inches wide to draw on; ``.svg`` holds its text after the block. Margins are in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, height))
        figure.subplots_adjust(left=0.065, right=1 - right / 10, top=1 - top / height, bottom=0.5 / height)
        drawing = Drawing(figure)
        yield drawing
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing.svg = _inline(buffer.getvalue(), title)


def _inline(svg: str, title: str) -> str:
    """Return SVG for an HTML page: no prologue or metadata, colours from CSS, ids that differ from other figures'."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(?<=<svg) |(?<= )(?:width|height)="[\d.]+pt" ?', " ", svg, count=3)
    prefix = f"f{zlib.crc32(svg.encode()):08x}"
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for colour, variable in _CSS.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1).strip()


def band(ax: Axes, x: Sequence[float], points: Sequence[Estimate], c: str) -> None:
    """Draw a curve and its interval."""
    ax.plot(x, [p.mean for p in points], color=c)
    ax.fill_between(x, [p.low for p in points], [p.high for p in points], color=c, alpha=0.1, linewidth=0)


def end_labels(ax: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Name lines at their right end. Labels that would overlap are pushed apart, and a short stroke joins each to its line."""
    low, high = ax.get_ylim()
    figure = ax.get_figure(root=True)
    assert figure is not None
    gap = 0.165 / (ax.get_position().height * figure.get_figheight())  # 0.165 inches are a line of text
    wanted = sorted(((y - low) / (high - low), text, c) for y, text, c in ends)
    placed = [y for y, _, _ in wanted]
    for _ in range(100):  # neighbours that are too close step apart, half the overlap each
        for i in range(len(placed) - 1):
            overlap = max(gap - (placed[i + 1] - placed[i]), 0.0)
            placed[i], placed[i + 1] = placed[i] - overlap / 2, placed[i + 1] + overlap / 2
    for (y, text, c), height in zip(wanted, placed, strict=True):
        ax.plot([1.0, 1.02], [y, height], transform=ax.transAxes, color=c, linewidth=0.7, alpha=0.6, clip_on=False)
        ax.text(1.026, height, visible(text), color=c, transform=ax.transAxes, va="center", fontsize=8.5)


def rule_legend(figure: Figure, rules: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    names = {"weighted": "weighted vote", "maj": "majority vote", "pass": "pass@k: oracle, not a strategy"}
    lines = [
        Line2D([], [], color=MUTED, linestyle=LINE_STYLES[r], linewidth=1.0 if r == "pass" else 1.8) for r in rules
    ]
    names_of = [names[rule] for rule in rules]
    figure.legend(lines, names_of, loc="upper left", bbox_to_anchor=(0.055, 1.0), ncols=3, labelcolor=MUTED)


def percent_axis(ax: Axes, margin: bool = True) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if margin:
        low, high = ax.get_ylim()
        ax.set_ylim(max(low, -0.01), min(high, 1.01))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))


def thousands_axis(ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    ax.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=20))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}"))


def shares(counts: Sequence[int]) -> list[float]:
    return [count / max(sum(counts), 1) for count in counts]
