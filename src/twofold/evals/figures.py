"""Figures of a report: the numbers of ``report.json`` in, SVG text out. matplotlib is imported only when one is drawn.

The SVG is meant to stand inline in an HTML page that defines ``--ink``, ``--muted`` and ``--grid``: so one picture is
right in a light and in a dark page. Text stays text, in the page's own font. One colour per run, everywhere; the page
says which is whose.
"""

from __future__ import annotations

import io
import itertools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito (2008), safe for colour-blind readers; ordered so that neighbours differ most.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Stand-ins that matplotlib accepts as colours; replaced by the page's CSS variables in the finished SVG.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
_CSS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "twofold",
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
_RULES = {"weighted": "-", "maj": (0, (4, 2)), "pass": (0, (1, 1.6))}
TRAINING_METRICS = {
    "reward": "Mean reward",
    "verifier/balanced_accuracy": "Verifier balanced accuracy",
    "verifier/auroc": "Verifier AUROC",
    "completions/mean_length": "Mean completion length (tokens)",
}

Colours = Mapping[str, str]


def colours(labels: Sequence[str]) -> dict[str, str]:
    """One colour per run, in order; after six the palette starts again (lines are labelled by name as well)."""
    return {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(labels)}


def scaling(task: Mapping[str, Any], colour: Colours) -> str:
    """Accuracy against the number of samples: weighted solid, majority dashed, pass@k (an oracle) thin dotted."""
    with _drawing("Accuracy against number of samples", 4.6, right=2.6, top=0.4) as drawing:
        ax = drawing.axes(1)[0]
        ends = []
        for run in task["evaluations"]:
            ends += _curves(ax, run, [float(k) for k in run["ks"]], colour[run["label"]], judged_x=None, oracle=True)
        if len(task["evaluations"]) > 3:  # too many names: let the dotted lines be told by their colour
            ends = [end for end in ends if not end[1].endswith("oracle")]
        ks = max((run["ks"] for run in task["evaluations"]), key=max)  # of the run with most samples
        ax.set_xscale("log", base=2)
        ax.set_xticks(ks, [str(k) for k in ks])
        ax.minorticks_off()
        ax.set_xlim(ks[0], ks[-1] * 1.02)
        ax.set_xlabel("samples per problem")
        _percent(ax)
        _end_labels(ax, ends)
        _rule_legend(drawing.figure, ("weighted", "maj", "pass"))
    return drawing.svg


def cost(task: Mapping[str, Any], colour: Colours) -> str:
    """Accuracy against what it costs: tokens (generated, plus those the judge reads) and seconds per problem."""
    runs = task["evaluations"]
    with _drawing("Accuracy against tokens and seconds", 4.0) as drawing:
        tokens_ax, seconds_ax = drawing.axes(2)
        for run in runs:
            tokens, judge = run["tokens_per_sample"], run["judge_tokens_per_sample"]
            plain = [k * tokens for k in run["ks"]]
            _curves(
                tokens_ax, run, plain, colour[run["label"]], [k * (tokens + judge) for k in run["ks"]], oracle=False
            )
            seconds = [k * run["seconds_per_sample"] for k in run["ks"]]
            _curves(seconds_ax, run, seconds, colour[run["label"]], judged_x=None, oracle=False)
        tokens_ax.set_xlabel("tokens per problem (generated; weighted vote: + read by the judge)")
        seconds_ax.set_xlabel("seconds per problem (share of the batch, judging included)")
        tokens_ax.set_title("Tokens")
        seconds_ax.set_title("Seconds")
        for ax in (tokens_ax, seconds_ax):
            ax.set_xscale("log")
            ax.minorticks_off()
            _percent(ax)
            _thousands(ax)
        _rule_legend(drawing.figure, ("weighted", "maj"))
    return drawing.svg


def strategies(found: Mapping[str, Any], colour: Colours) -> str:
    """Every plan's accuracy against tokens (generated and read to judge) and seconds: lines where it was replayed for
    every number of samples, a point with its interval where it was run; pass@k, an oracle, dotted."""
    with _drawing("Accuracy of plans against tokens and seconds", 4.4, top=0.4) as drawing:
        axes = drawing.axes(2)
        for ax, title in zip(axes, ("Tokens", "Seconds"), strict=True):
            for row in found["plans"]:
                points, c = row["points"], colour[row["plan"]]
                x = [p["generated"] + p["verified"] if title == "Tokens" else p["seconds"] for p in points]
                low, high = ([p["accuracy"][side] for p in points] for side in ("low", "high"))
                if len(points) > 1:
                    ax.fill_between(x, low, high, color=c, alpha=0.08, linewidth=0)
                else:
                    ax.plot([x[0], x[0]], [low[0], high[0]], color=c, linewidth=1.0)
                ax.plot(x, [p["accuracy"]["mean"] for p in points], "o-", color=c, markersize=3.5, linewidth=1.5)
            ax.set_title(title)
            ax.set_xscale("log")
            ax.minorticks_off()
        oracle = found["oracle"]
        axes[0].plot(
            [p["generated"] for p in oracle], [p["accuracy"] for p in oracle], color=MUTED, linestyle=_RULES["pass"]
        )
        axes[0].text(oracle[-1]["generated"], oracle[-1]["accuracy"], "oracle  ", color=MUTED, ha="right", va="bottom")
        axes[0].set_xlabel("tokens per problem (generated, and read to judge)")
        axes[1].set_xlabel("seconds per problem (share of the batch)")
        for ax in axes:
            _percent(ax)
            _thousands(ax)
    return drawing.svg


def grid(found: Mapping[str, Any], colour: str) -> str:
    """Left: accuracy at every token cap (rows) and number of samples. Right: the same against tokens in all, a line per
    cap with its 95% band; dashed, if every shorter cap had been drawn afresh before."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    caps, ks = found["caps"], found["ks"]
    rows = [found["cells"][i * len(ks) : (i + 1) * len(ks)] for i in range(len(caps))]
    shades = LinearSegmentedColormap.from_list("shades", [to_rgba(colour, 0.03), to_rgba(colour, 0.6)])
    with _drawing("Accuracy by token cap and number of samples", 1.6 + 0.4 * max(4, len(caps)), top=0.4) as drawing:
        table, lines = drawing.axes(2)
        means = [[cell["accuracy"]["mean"] for cell in row] for row in rows]
        table.pcolormesh(means, cmap=shades)
        for y, x in itertools.product(range(len(caps)), range(len(ks))):
            table.text(x + 0.5, y + 0.5, f"{100 * means[y][x]:.0f}", ha="center", va="center")
        table.set_xticks([x + 0.5 for x in range(len(ks))], [str(k) for k in ks])
        table.set_yticks([y + 0.5 for y in range(len(caps))], [str(cap) for cap in caps])
        table.grid(False)
        table.tick_params(length=0)
        table.set_xlabel("samples per problem")
        table.set_ylabel("token cap")
        table.set_title(f"Accuracy of the {found['rule']} vote, per cent")
        for i, (cap, row) in enumerate(zip(caps, rows, strict=True)):
            c, tokens = PALETTE[i % len(PALETTE)], [cell["generated"] + cell["verified"] for cell in row]
            low, mean, high = ([cell["accuracy"][name] for cell in row] for name in ("low", "mean", "high"))
            lines.fill_between(tokens, low, high, color=c, alpha=0.08, linewidth=0)
            lines.plot(tokens, mean, "o-", color=c, markersize=3, linewidth=1.5, label=f"cap {cap}")
            if i:
                lines.plot([cell["cumulated"] for cell in row], mean, color=c, linewidth=0.9, linestyle=_RULES["maj"])
        lines.set_xscale("log")
        lines.minorticks_off()
        lines.set_xlabel("tokens per problem, in all (dashed: shorter caps drawn afresh before)")
        lines.set_title("The same against tokens")
        lines.legend(loc="best")
        _percent(lines)
        _thousands(lines)
    return drawing.svg


def verifier(runs: Sequence[Mapping[str, Any]], colour: Colours) -> str:
    """Calibration with the histogram of scores below it, and the ROC curve, of every run that was judged."""
    with _drawing("Verifier: calibration and ROC", 4.6, top=0.4) as drawing:
        grid = drawing.figure.add_gridspec(2, 2, height_ratios=[3.4, 1], hspace=0.12, wspace=0.2)
        calibration = drawing.figure.add_subplot(grid[0, 0])
        counts = drawing.figure.add_subplot(grid[1, 0], sharex=calibration)
        roc = drawing.figure.add_subplot(grid[:, 1])
        for ax in (calibration, roc):
            ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        for run in runs:
            c, histogram = colour[run["label"]], run["histogram"]
            points = [(b["score"], b["accuracy"]) for b in run["calibration"]]
            calibration.plot(*zip(*points, strict=True), "o-", color=c, markersize=3.5, linewidth=1.4)
            both = [a + b for a, b in zip(histogram["correct"], histogram["wrong"], strict=True)]
            counts.stairs(_shares(both), histogram["edges"], color=c, linewidth=1.4)
            roc.plot(run["roc"]["false_yes"], run["roc"]["true_yes"], color=c)
        calibration.set_title("Calibration: does P(Yes) mean what it says?")
        calibration.set_ylabel("share that is correct")
        calibration.tick_params(labelbottom=False)
        counts.set_xlabel("P(Yes)")
        counts.set_ylabel("share")
        roc.set_title("ROC: does it tell right from wrong?")
        roc.set_xlabel("wrong solutions accepted")
        roc.set_ylabel("correct solutions accepted")
        for ax in (calibration, counts, roc):
            ax.set_xlim(-0.01, 1.01)
            _percent(ax, margin=False)
        for ax in (calibration, roc):
            ax.set_ylim(-0.01, 1.01)
        roc.xaxis.set_major_formatter(roc.yaxis.get_major_formatter())
        counts.set_ylim(bottom=0)
    return drawing.svg


def histograms(runs: Sequence[Mapping[str, Any]], colour: Colours) -> str:
    """Where the scores of correct (filled) and wrong (outlined) samples lie, one small panel per judged run."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows = -(-len(runs) // 3)
    with _drawing("Scores of correct and wrong samples", 0.7 + 2.1 * rows) as drawing:
        axes = drawing.axes(min(3, max(2, len(runs))), rows, hspace=0.55)
        for ax, run in zip(axes, runs, strict=False):
            edges, c = run["histogram"]["edges"], colour[run["label"]]
            ax.stairs(_shares(run["histogram"]["correct"]), edges, fill=True, color=c, alpha=0.75)
            ax.stairs(_shares(run["histogram"]["wrong"]), edges, color=INK, linewidth=1.2)
            ax.set_title(f"{_short(run['label'])}: {_auroc(run)}", color=c)
            ax.set_xlim(0, 1)
            ax.set_xlabel("P(Yes)")
            _percent(ax, margin=False)
            ax.set_ylim(bottom=0)
        keys = [Patch(color=MUTED), Line2D([], [], color=INK, linewidth=1.2)]
        names = ["correct samples", "wrong samples"]
        drawing.figure.legend(keys, names, loc="upper left", bbox_to_anchor=(0.055, 1.0), ncols=2, handlelength=1.2)
        axes[0].set_ylabel("share of its class")
        for ax in axes[len(runs) :]:
            ax.set_visible(False)
    return drawing.svg


def levels(task: Mapping[str, Any], colour: Colours) -> str:
    """Accuracy per difficulty level: a bar per run with its 95% interval, and pass@1 as a short line."""
    runs = [run for run in task["evaluations"] if run["levels"]]
    names = list(dict.fromkeys(level["level"] for run in runs for level in run["levels"]))
    width = 0.8 / len(runs)
    with _drawing("Accuracy by level", 3.1, top=0.15) as drawing:
        ax = drawing.axes(1)[0]
        for i, run in enumerate(runs):
            c = colour[run["label"]]
            for level in run["levels"]:
                x = names.index(level["level"]) - 0.4 + (i + 0.5) * width
                best, one = level[f"{run['rule']}@{task['at']}"], level["pass@1"]["mean"]
                ax.bar(x, best["mean"], width * 0.88, color=c, alpha=0.8)
                if best["low"] is not None:
                    ax.plot([x, x], [best["low"], best["high"]], color=INK, linewidth=0.9)
                ax.plot(
                    [x - width * 0.44, x + width * 0.44], [one, one], color=INK, linewidth=1.6, solid_capstyle="butt"
                )
        counts = {level["level"]: level["problems"] for run in runs for level in run["levels"]}
        ax.set_xticks(range(len(names)), [f"{name}  (n={counts[name]})" for name in names])
        ax.set_xlabel("level (number of problems)")
        ax.xaxis.grid(False)
        ax.set_xlim(-0.6, len(names) - 0.4)
        _percent(ax, margin=False)
        ax.set_ylim(0, 1.02)
    return drawing.svg


def training(series: Sequence[Mapping[str, Any]], colour: Colours) -> str:
    """Training curves by step, one panel per metric that is present; thin line every step, thick line running mean."""
    metrics = [metric for metric in TRAINING_METRICS if any(metric in run["metrics"] for run in series)]
    rows = -(-len(metrics) // 2)
    with _drawing("Training curves", 0.4 + 2.3 * rows, top=0.4) as drawing:
        axes = drawing.axes(2, rows, hspace=0.5)
        for ax, metric in zip(axes, metrics, strict=False):
            for run in series:
                if metric in run["metrics"]:
                    steps, values = run["metrics"][metric]["steps"], run["metrics"][metric]["values"]
                    ax.plot(steps, values, color=colour[run["label"]], linewidth=0.8, alpha=0.35)
                    ax.plot(steps, _running_mean(values), color=colour[run["label"]])
            ax.set_title(TRAINING_METRICS[metric])
            ax.set_xlabel("step")
        for ax in axes[len(metrics) :]:
            ax.set_visible(False)
    return drawing.svg


@dataclass
class _Drawing:
    figure: Figure
    svg: str = ""

    def axes(self, columns: int, rows: int = 1, hspace: float = 0.3) -> list[Axes]:
        return list(
            self.figure.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.2, "hspace": hspace}).flat
        )


@contextmanager
def _drawing(title: str, height: float, right: float = 0.15, top: float = 0.7) -> Iterator[_Drawing]:
    """A figure 10 inches wide, margins in inches too; on leaving the block ``.svg`` holds it as text."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, height))
        figure.subplots_adjust(left=0.065, right=1 - right / 10, top=1 - top / height, bottom=0.5 / height)
        drawing = _Drawing(figure)
        yield drawing
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing.svg = _inline(buffer.getvalue(), title)


def _inline(svg: str, title: str) -> str:
    """SVG for an HTML page: no prologue or metadata, colours from CSS, ids that cannot clash with another figure's."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(?<=<svg) |(?<= )(?:width|height)="[\d.]+pt" ?', " ", svg, count=3)
    prefix = f"f{zlib.crc32(svg.encode()):08x}"
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for colour, variable in _CSS.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1).strip()


def _curves(
    ax: Axes, run: Mapping[str, Any], x: Sequence[float], c: str, judged_x: Sequence[float] | None, oracle: bool
) -> list[tuple[float, str, str]]:
    """Draw one run's rules; returns (y, label, colour) of the ends worth naming. A rule is named with its AUROC."""
    ends = []
    for rule in ("pass", "maj", "weighted"):
        points = [run["accuracy"].get(f"{rule}@{k}") for k in run["ks"]]
        if points[0] is None or (rule == "pass" and not oracle):
            continue
        where = judged_x if judged_x is not None and rule == "weighted" else x
        mean = [point["mean"] for point in points]
        ax.plot(where, mean, color=c, linestyle=_RULES[rule], linewidth=1.0 if rule == "pass" else 1.8)
        if rule == run["rule"]:
            ax.fill_between(
                where, [p["low"] for p in points], [p["high"] for p in points], color=c, alpha=0.1, linewidth=0
            )
        name = {"pass": "oracle", "maj": "majority", "weighted": f"weighted, {_auroc(run)}"}[rule]
        ends.append((mean[-1], f"{_short(run['label'], 15)} {name}", c))
    return ends


def _end_labels(ax: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Name lines at their right end; labels that would overlap are pushed apart and joined to their line by a rule."""
    low, high = ax.get_ylim()
    gap = 0.052
    wanted = sorted(((y - low) / (high - low), text, c) for y, text, c in ends)
    placed = [y for y, _, _ in wanted]
    for _ in range(100):  # neighbours that are too close step apart, half the overlap each
        for i in range(len(placed) - 1):
            overlap = max(gap - (placed[i + 1] - placed[i]), 0.0)
            placed[i], placed[i + 1] = placed[i] - overlap / 2, placed[i + 1] + overlap / 2
    for (y, text, c), height in zip(wanted, placed, strict=True):
        ax.plot([1.0, 1.02], [y, height], transform=ax.transAxes, color=c, linewidth=0.7, alpha=0.6, clip_on=False)
        ax.text(1.026, height, text, color=c, transform=ax.transAxes, va="center", fontsize=8.5)


def _rule_legend(figure: Figure, rules: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    names = {"weighted": "weighted vote", "maj": "majority vote", "pass": "pass@k: oracle, not a strategy"}
    lines = [Line2D([], [], color=MUTED, linestyle=_RULES[r], linewidth=1.0 if r == "pass" else 1.8) for r in rules]
    names_of = [names[rule] for rule in rules]
    figure.legend(lines, names_of, loc="upper left", bbox_to_anchor=(0.055, 1.0), ncols=3, labelcolor=MUTED)


def _percent(ax: Axes, margin: bool = True) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if margin:
        low, high = ax.get_ylim()
        ax.set_ylim(max(low, -0.01), min(high, 1.01))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))


def _thousands(ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    ax.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=20))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}"))


def _auroc(run: Mapping[str, Any]) -> str:
    """The verifier's AUROC in words; it is not defined when the samples are all correct or all wrong."""
    value = run["verifier"]["auroc"] if run["verifier"] else None
    return "AUROC n/a" if value is None else f"AUROC {value:.2f}"


def _short(label: str, most: int = 20) -> str:
    """Both ends of a long name: what tells runs apart is often last."""
    return label if len(label) <= most else f"{label[: most // 2]}…{label[-most // 2 + 1 :]}"


def _shares(counts: Sequence[int]) -> list[float]:
    return [count / max(sum(counts), 1) for count in counts]


def _running_mean(values: Sequence[float], share: float = 0.1) -> list[float]:
    """Centred mean over a window of about ``share`` of the run; the window shrinks at both ends."""
    half = int(len(values) * share / 2)
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]
