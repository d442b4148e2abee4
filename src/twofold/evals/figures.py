"""The figures of a report: each takes its records and returns SVG text (see ``drawing``)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from twofold.evals.drawing import (
    INK,
    LINE_STYLES,
    MUTED,
    PALETTE,
    Colours,
    band,
    canvas,
    end_labels,
    percent_axis,
    rule_legend,
    shares,
    thousands_axis,
)
from twofold.evals.grid import Grid
from twofold.evals.plans import Strategies
from twofold.evals.records import Evaluation, Judged, TaskReport, TrainingCurves
from twofold.evals.thinking import Thinking
from twofold.terminal import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAINING_METRICS = {
    "reward": "Mean reward",
    "target_loss": "Loss of the targets (verdicts, solutions)",
    "verifier/balanced_accuracy": "Verifier balanced accuracy",
    "verifier/auroc": "Verifier AUROC",
    "completions/mean_length": "Mean completion length (tokens)",
    "mrt/progress": "Progress of an episode",
    "backtrack/progress": "Progress of the last attempt over the first",
}


def scaling(task: TaskReport, colour: Colours) -> str:
    """Draw accuracy against the number of samples: a panel per run, with all its rules and, in grey, the others' own rules."""
    runs = task.evaluations
    columns = min(3, len(runs))
    rows = -(-len(runs) // columns)
    ks = max((run.ks for run in runs), key=max)  # those of the run with most samples
    with canvas("Accuracy against number of samples", 0.45 + 3.2 * rows, right=0.95, top=0.4) as drawing:
        axes, names = drawing.axes(columns, rows, hspace=0.5, wspace=0.55, share=True), []
        for ax, run in zip(axes, runs, strict=False):
            for other in runs:
                if other is not run:
                    mean = [other.accuracy[f"{other.rule}@{k}"].mean for k in other.ks]
                    ax.plot(other.ks, mean, color=MUTED, linewidth=0.9, alpha=0.7)
            ends = _rules(ax, run, colour[run.label])
            ax.set_title(f"{_short(run.label)}{f', {_auroc(run)}' if run.verifier else ''}", color=colour[run.label])
            ax.set_xscale("log", base=2)
            ax.set_xticks(ks, [str(k) for k in ks])
            ax.minorticks_off()
            ax.set_xlim(ks[0], ks[-1])
            ax.set_xlabel("samples per problem")
            names.append((ax, ends))
        low = axes[0].get_ylim()[0]
        axes[0].set_ylim(0 if low < 0.5 else low, 1.02)  # of all panels
        for ax, ends in names:
            percent_axis(ax, margin=False)
            ax.tick_params(labelleft=True)
            end_labels(ax, ends)
        for ax in axes[len(runs) :]:
            ax.set_visible(False)
    return drawing.svg


def _rules(ax: Axes, run: Evaluation, c: str) -> list[tuple[float, str, str]]:
    """Draw all rules of a run, with the interval of the one it answers with; return (y, label, colour) of the ends."""
    ends = []
    for rule, name in (("pass", "oracle"), ("maj", "majority"), ("best", "best-of-n"), ("weighted", "weighted")):
        if f"{rule}@1" not in run.accuracy:
            continue
        points = [run.accuracy[f"{rule}@{k}"] for k in run.ks]
        mean, own = [point.mean for point in points], rule == run.rule
        ax.plot(run.ks, mean, color=c, linestyle=LINE_STYLES[rule], linewidth=2.2 if own else 1.3)
        if own:
            ax.fill_between(run.ks, [p.low for p in points], [p.high for p in points], color=c, alpha=0.2, linewidth=0)
        ends.append((mean[-1], name, c))
    return ends


def cost(task: TaskReport, colour: Colours) -> str:
    """Draw accuracy against its cost: tokens (generated, plus those the judge reads) and seconds per problem."""
    runs = task.evaluations
    with canvas("Accuracy against tokens and seconds", 4.0) as drawing:
        tokens_ax, seconds_ax = drawing.axes(2)
        for run in runs:
            tokens, judge = run.tokens_per_sample, run.judge_tokens_per_sample
            plain = [k * tokens for k in run.ks]
            _curves(tokens_ax, run, plain, colour[run.label], [k * (tokens + judge) for k in run.ks])
            seconds = [k * run.seconds_per_sample for k in run.ks]
            _curves(seconds_ax, run, seconds, colour[run.label], seconds)
        tokens_ax.set_xlabel("tokens per problem (generated; weighted vote: + read by the judge)")
        seconds_ax.set_xlabel("seconds per problem (share of the batch, judging included)")
        tokens_ax.set_title("Tokens")
        seconds_ax.set_title("Seconds")
        for ax in (tokens_ax, seconds_ax):
            ax.set_xscale("log")
            ax.minorticks_off()
            percent_axis(ax)
            thousands_axis(ax)
        rule_legend(drawing.figure, ("weighted", "maj"))
    return drawing.svg


def strategies(found: Strategies, colour: Colours) -> str:
    """Draw every plan's accuracy against tokens (generated and read to judge) and against seconds.

    A plan that was replayed for every number of samples is a line, one that was run is a point with its interval. Dotted:
    pass@k, an oracle.
    """
    with canvas("Accuracy of plans against tokens and seconds", 4.4, top=0.4) as drawing:
        axes = drawing.axes(2)
        for ax, title in zip(axes, ("Tokens", "Seconds"), strict=True):
            for row in found.plans:
                points, c = row.points, colour[row.plan]
                x = [p.generated + p.verified if title == "Tokens" else p.seconds for p in points]
                low, high = [p.accuracy.low for p in points], [p.accuracy.high for p in points]
                if len(points) > 1:
                    ax.fill_between(x, low, high, color=c, alpha=0.08, linewidth=0)
                else:
                    ax.plot([x[0], x[0]], [low[0], high[0]], color=c, linewidth=1.0)
                ax.plot(x, [p.accuracy.mean for p in points], "o-", color=c, markersize=3.5, linewidth=1.5)
            ax.set_title(title)
            ax.set_xscale("log")
            ax.minorticks_off()
        oracle = found.oracle
        axes[0].plot(
            [p.generated for p in oracle], [p.accuracy for p in oracle], color=MUTED, linestyle=LINE_STYLES["pass"]
        )
        axes[0].text(oracle[-1].generated, oracle[-1].accuracy, "oracle  ", color=MUTED, ha="right", va="bottom")
        axes[0].set_xlabel("tokens per problem (generated, and read to judge)")
        axes[1].set_xlabel("seconds per problem (share of the batch)")
        for ax in axes:
            percent_axis(ax)
            thousands_axis(ax)
    return drawing.svg


def grid(found: Grid, colour: str) -> str:
    """Draw accuracy at every token cap (rows) and number of samples on the left, and against all tokens on the right.

    There a line per cap has its 95% band. Dashed: the cost if the samples of every shorter cap were drawn as well.
    """
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    caps, ks = found.caps, found.ks
    rows = [found.cells[i * len(ks) : (i + 1) * len(ks)] for i in range(len(caps))]
    shades = LinearSegmentedColormap.from_list("shades", [to_rgba(colour, 0.03), to_rgba(colour, 0.6)])
    with canvas("Accuracy by token cap and number of samples", 1.6 + 0.4 * max(4, len(caps)), top=0.4) as drawing:
        table, lines = drawing.axes(2)
        means = [[cell.accuracy.mean for cell in row] for row in rows]
        table.pcolormesh(means, cmap=shades)
        for y, x in itertools.product(range(len(caps)), range(len(ks))):
            table.text(x + 0.5, y + 0.5, f"{100 * means[y][x]:.0f}", ha="center", va="center")
        table.set_xticks([x + 0.5 for x in range(len(ks))], [str(k) for k in ks])
        table.set_yticks([y + 0.5 for y in range(len(caps))], [str(cap) for cap in caps])
        table.grid(False)
        table.tick_params(length=0)
        table.set_xlabel("samples per problem")
        table.set_ylabel("token cap")
        table.set_title(f"Accuracy of the {found.rule} vote, per cent")
        for i, (cap, row) in enumerate(zip(caps, rows, strict=True)):
            c, tokens = PALETTE[i % len(PALETTE)], [cell.generated + cell.verified for cell in row]
            points = [cell.accuracy for cell in row]
            mean = [p.mean for p in points]
            lines.fill_between(
                tokens, [p.low for p in points], [p.high for p in points], color=c, alpha=0.08, linewidth=0
            )
            lines.plot(tokens, mean, "o-", color=c, markersize=3, linewidth=1.5, label=f"cap {cap}")
            if i:
                lines.plot([cell.cumulated for cell in row], mean, color=c, linewidth=0.9, linestyle=LINE_STYLES["maj"])
        lines.set_xscale("log")
        lines.minorticks_off()
        lines.set_xlabel("tokens per problem, in all (dashed: with every shorter cap)")
        lines.set_title("The same against tokens")
        lines.legend(loc="best")
        percent_axis(lines)
        thousands_axis(lines)
    return drawing.svg


def verifier(runs: Sequence[Judged], colour: Colours, score: str) -> str:
    """Draw the calibration of every judged run, the histogram of its scores below it, and its ROC curve. ``score`` is what the scores
    are called."""
    with canvas("Verifier: calibration and ROC", 4.6, top=0.4) as drawing:
        grid = drawing.figure.add_gridspec(2, 2, height_ratios=[3.4, 1], hspace=0.12, wspace=0.2)
        calibration = drawing.figure.add_subplot(grid[0, 0])
        counts = drawing.figure.add_subplot(grid[1, 0], sharex=calibration)
        roc = drawing.figure.add_subplot(grid[:, 1])
        for ax in (calibration, roc):
            ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        for run in runs:
            c, histogram = colour[run.label], run.histogram
            points = [(b.score, b.accuracy) for b in run.calibration]
            calibration.plot(*zip(*points, strict=True), "o-", color=c, markersize=3.5, linewidth=1.4)
            both = [a + b for a, b in zip(histogram.correct, histogram.wrong, strict=True)]
            counts.stairs(shares(both), histogram.edges, color=c, linewidth=1.4)
            roc.plot(run.roc.false_yes, run.roc.true_yes, color=c)
        calibration.set_title("Calibration: is the score the share that is correct?")
        calibration.set_ylabel("share that is correct")
        calibration.tick_params(labelbottom=False)
        counts.set_xlabel(score)
        counts.set_ylabel("share")
        roc.set_title("ROC: do correct solutions score higher?")
        roc.set_xlabel("wrong solutions accepted")
        roc.set_ylabel("correct solutions accepted")
        for ax in (calibration, counts, roc):
            ax.set_xlim(-0.01, 1.01)
            percent_axis(ax, margin=False)
        for ax in (calibration, roc):
            ax.set_ylim(-0.01, 1.01)
        roc.xaxis.set_major_formatter(roc.yaxis.get_major_formatter())
        counts.set_ylim(bottom=0)
    return drawing.svg


def histograms(runs: Sequence[Judged], colour: Colours) -> str:
    """Draw the scores of correct (filled) and wrong (outlined) samples, one small panel per judged run."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows = -(-len(runs) // 3)
    with canvas("Scores of correct and wrong samples", 0.7 + 2.1 * rows) as drawing:
        axes = drawing.axes(min(3, max(2, len(runs))), rows, hspace=0.55)
        for ax, run in zip(axes, runs, strict=False):
            edges, c = run.histogram.edges, colour[run.label]
            ax.stairs(shares(run.histogram.correct), edges, fill=True, color=c, alpha=0.75)
            ax.stairs(shares(run.histogram.wrong), edges, color=INK, linewidth=1.2)
            ax.set_title(f"{_short(run.label)}: {_auroc(run)}", color=c)
            ax.set_xlim(0, 1)
            ax.set_xlabel(run.header.score)
            percent_axis(ax, margin=False)
            ax.set_ylim(bottom=0)
        keys = [Patch(color=MUTED), Line2D([], [], color=INK, linewidth=1.2)]
        names = ["correct samples", "wrong samples"]
        drawing.figure.legend(keys, names, loc="upper left", bbox_to_anchor=(0.055, 1.0), ncols=2, handlelength=1.2)
        axes[0].set_ylabel("share of its class")
        for ax in axes[len(runs) :]:
            ax.set_visible(False)
    return drawing.svg


def levels(task: TaskReport, colour: Colours) -> str:
    """Draw accuracy by difficulty level: a bar per run with its 95% interval, and pass@1 as a short line."""
    runs = [run for run in task.evaluations if run.levels]
    names = list(dict.fromkeys(level.level for run in runs for level in run.levels))
    width = 0.8 / len(runs)
    with canvas("Accuracy by level", 3.1, top=0.15) as drawing:
        ax = drawing.axes(1)[0]
        for i, run in enumerate(runs):
            c = colour[run.label]
            for level in run.levels:
                x = names.index(level.level) - 0.4 + (i + 0.5) * width
                best, one = level.accuracy[f"{run.rule}@{task.at}"], level.accuracy["pass@1"].mean
                ax.bar(x, best.mean, width * 0.88, color=c, alpha=0.8)
                if not math.isnan(best.low):
                    ax.plot([x, x], [best.low, best.high], color=INK, linewidth=0.9)
                ax.plot(
                    [x - width * 0.44, x + width * 0.44], [one, one], color=INK, linewidth=1.6, solid_capstyle="butt"
                )
        counts = {level.level: level.problems for run in runs for level in run.levels}
        ax.set_xticks(range(len(names)), [f"{name}  (n={counts[name]})" for name in names])
        ax.set_xlabel("level (number of problems)")
        ax.xaxis.grid(False)
        ax.set_xlim(-0.6, len(names) - 0.4)
        percent_axis(ax, margin=False)
        ax.set_ylim(0, 1.02)
    return drawing.svg


def budgets(thoughts: Mapping[str, Thinking], colour: Colours) -> str:
    """Draw the accuracy of thoughts that are stopped at a token budget, and their regret against one right at once."""
    with canvas("Accuracy and regret against the token budget", 3.6, top=0.4) as drawing:
        axes = drawing.axes(2)
        for label, found in thoughts.items():
            c = colour[label]
            band(axes[0], found.budgets, found.accuracy, c)
            band(axes[1], found.budgets, found.regret, c)
            axes[0].plot(found.tokens, found.natural.mean, "o", color=c, markersize=4.5)
        axes[0].set_title("Accuracy when stopped")
        axes[1].set_title("Normalised regret: lower is better")
        for ax in axes:
            ax.set_xlabel("token budget (prompt, thought, closing and answer)")
            ax.set_xlim(left=0)
            percent_axis(ax)
    return drawing.svg


def prefixes(run: Evaluation, found: Thinking, c: str) -> str:
    """Draw [maj@p]_j, a panel for thoughts of similar numbers of episodes.

    The line is stopping after 0, 1, ... episodes with one answer. From each of its points a branch leads to 2, 4 and 8
    answers that vote. Dotted: the majority of independent samples.
    """
    buckets = found.buckets
    with canvas("Votes at each prefix", 3.4, top=0.4) as drawing:
        axes = drawing.axes(max(2, len(buckets)))
        low, high = 1.0, 0.0
        for ax, bucket in zip(axes, buckets, strict=False):
            for branch in bucket.points:
                ax.plot(
                    [p.tokens for p in branch], [p.accuracy for p in branch], "o--", color=INK, markersize=2,
                    linewidth=0.9,
                )  # fmt: skip
            stops = [branch[0] for branch in bucket.points]
            ax.plot([p.tokens for p in stops], [p.accuracy for p in stops], "o-", color=c, markersize=4)
            ax.plot(
                [k * run.tokens_per_sample for k in run.ks], [run.accuracy[f"maj@{k}"].mean for k in run.ks],
                color=MUTED, linestyle=LINE_STYLES["pass"], linewidth=1.2,
            )  # fmt: skip
            spent = [p.tokens for branch in bucket.points for p in branch]
            ax.set_xscale("log")
            ax.minorticks_off()
            ax.set_xlim(min(spent) * 0.8, max(spent) * 1.25)
            n = f"{bucket.low}" if bucket.low == bucket.high else f"{bucket.low}-{bucket.high}"
            ax.set_title(f"{n} episode{'s' if n != '1' else ''} ({bucket.thoughts} thoughts)")
            ax.set_xlabel("tokens")
            reached = [p.accuracy for branch in bucket.points for p in branch]
            low, high = min(low, *reached), max(high, *reached)
        for ax in axes:
            ax.set_ylim(low - 0.05, high + 0.05)
            percent_axis(ax)
            thousands_axis(ax)
        for ax in axes[len(buckets) :]:
            ax.set_visible(False)
    return drawing.svg


def progress(thoughts: Mapping[str, Thinking], colour: Colours) -> str:
    """Draw by how much episodes changed the chance of a right answer: shares of all episodes, an outline per run."""
    with canvas("Progress of episodes", 2.8, top=0.15) as drawing:
        ax = drawing.axes(1)[0]
        for label, found in thoughts.items():
            c, gained = colour[label], found.progress
            ax.stairs(shares(gained.counts), gained.edges, color=c, linewidth=1.6)
            ax.axvline(gained.mean, color=c, linewidth=1.0, linestyle=LINE_STYLES["maj"])
        ax.set_xlim(-1.0625, 1.0625)
        ax.set_xlabel("progress: J after the episode minus J before it (dashed: mean)")
        ax.set_ylabel("share of episodes")
        percent_axis(ax, margin=False)
        ax.set_ylim(bottom=0)
    return drawing.svg


def training(series: Sequence[TrainingCurves], colour: Colours) -> str:
    """Draw training curves, one panel per metric that is present. Thin: every step. Thick: the running mean."""
    metrics = [metric for metric in TRAINING_METRICS if any(metric in run.metrics for run in series)]
    rows = -(-len(metrics) // 2)
    with canvas("Training curves", 0.4 + 2.3 * rows, top=0.4) as drawing:
        axes = drawing.axes(2, rows, hspace=0.5)
        for ax, metric in zip(axes, metrics, strict=False):
            for run in series:
                if metric in run.metrics:
                    curve, c = run.metrics[metric], colour[run.label]
                    ax.plot(curve.steps, curve.values, color=c, linewidth=0.8, alpha=0.35)
                    ax.plot(curve.steps, _running_mean(curve.values), color=c)
            ax.set_title(TRAINING_METRICS[metric])
            ax.set_xlabel("step")
        for ax in axes[len(metrics) :]:
            ax.set_visible(False)
    return drawing.svg


def _curves(ax: Axes, run: Evaluation, x: Sequence[float], c: str, judged_x: Sequence[float]) -> None:
    """Draw a run's votes; ``judged_x`` is where those lie that need verdicts. The run's own rule has its band."""
    for rule, where in (("maj", x), ("weighted", judged_x)):
        if f"{rule}@1" not in run.accuracy:
            continue
        points = [run.accuracy[f"{rule}@{k}"] for k in run.ks]
        ax.plot(where, [point.mean for point in points], color=c, linestyle=LINE_STYLES[rule], linewidth=1.8)
        if rule == run.rule:
            ax.fill_between(where, [p.low for p in points], [p.high for p in points], color=c, alpha=0.14, linewidth=0)


def _auroc(run: Evaluation) -> str:
    """Return the verifier's AUROC in words. It is not defined when the samples are all correct or all wrong."""
    value = run.verifier.auroc if run.verifier else math.nan
    return "AUROC n/a" if math.isnan(value) else f"AUROC {value:.2f}"


def _short(label: str, most: int = 20) -> str:
    """Return both ends of a long name, because what distinguishes runs is often last."""
    label = visible(label)
    return label if len(label) <= most else f"{label[: most // 2]}…{label[-most // 2 + 1 :]}"


def _running_mean(values: Sequence[float], share: float = 0.1) -> list[float]:
    """Return the centred mean over a window of about ``share`` of the run. The window shrinks at both ends."""
    half = int(len(values) * share / 2)
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]
