"""A report for people: one HTML page, and tables in the terminal."""

from __future__ import annotations

import math

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich import box, markup
from rich.console import Console
from rich.table import Table

from twofold.evals import figures
from twofold.evals.attacks import Accepted
from twofold.evals.audit import Audited
from twofold.evals.compare import Comparison, SamplesSaved
from twofold.evals.drawing import Colours, colours, swatches
from twofold.evals.grid import Grid
from twofold.evals.optimal import OptimalTable
from twofold.evals.plans import GrowingPlan, PlanCurve, Strategies
from twofold.evals.records import Judged, Report, TaskReport
from twofold.evals.texts import KINDS, SHOWN, Texts
from twofold.evals.thinking import Thinking
from twofold.maths.stats import Difference, Estimate
from twofold.terminal import visible

RULE_NAMES = {
    "maj": "majority vote",
    "best": "best-of-n",
    "weighted": "weighted vote",
    "posterior": "posterior",
    "pass": "oracle",
}


PIPE_WIDTH = 100
"""Columns of printed tables where there is no terminal."""
BUSY = 1.2
"""A load per core from which on programs wait for one another; somewhat above 1, because a load is a mean over a minute."""
SECONDS = "seconds depend on the machine and its load"


def templates() -> Environment:
    """Return the pages' templates, with the filters that they use."""
    environment = Environment(
        loader=PackageLoader("twofold.evals", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "number": number,
        "interval": interval,
        "times": times,
        "p": p_value,
        "lengths": lengths,
        "in_points": in_points,
        "accepts": accepts,
        "visible": visible,
    }
    environment.globals |= {"colours_of": swatches, "at_budgets": at_budgets}
    return environment


def html(found: Report) -> str:
    """Return one self-contained page: inline CSS and SVG, no script, nothing fetched."""
    colour = colours(found.labels)
    return (
        templates()
        .get_template("report.html.jinja")
        .render(
            report=found,
            tasks=[(task, _figures(task, colour)) for task in found.tasks],
            training_figure=Markup(figures.training(found.training, colour)) if found.training else None,
            colour=swatches(found.labels),
            rule_names=RULE_NAMES,
            kinds=KINDS,
            shown=SHOWN,
            first_of=first_kind,
            busy=BUSY,
        )
    )


def _figures(task: TaskReport, colour: Colours) -> dict[str, Markup]:
    judged = [e for e in task.evaluations if isinstance(e, Judged)]
    drawn = {"scaling": figures.scaling(task, colour), "cost": figures.cost(task, colour)}
    if judged:
        drawn["verifier"] = figures.verifier(judged, colour, task.score)
        drawn["histograms"] = figures.histograms(judged, colour)
    if thoughts := {e.label: e.thinking for e in task.evaluations if e.thinking}:
        drawn["budgets"] = figures.budgets(thoughts, colour)
        drawn["progress"] = figures.progress(thoughts, colour)
    for e in task.evaluations:
        if e.thinking:
            drawn[f"prefixes {e.label}"] = figures.prefixes(e, e.thinking, colour[e.label])
        if e.strategies:
            of_plan = colours([row.plan for row in e.strategies.plans])
            drawn[f"strategies {e.label}"] = figures.strategies(e.strategies, of_plan)
        if e.grid:
            drawn[f"grid {e.label}"] = figures.grid(e.grid, colour[e.label])
    if any(e.levels for e in task.evaluations):
        drawn["levels"] = figures.levels(task, colour)
    return {name: Markup(svg) for name, svg in drawn.items()}


def first_kind(found: Texts) -> str:
    """Return the first kind of samples of which there is a text to show."""
    return next((kind for kind, rows in found.shown.items() if rows), next(iter(KINDS)))


def escape(text: str) -> str:
    """Return a text from outside for a rich table or line: without markup, colours and control characters."""
    return markup.escape(visible(text))


def print_table(found: Report, console: Console | None = None) -> None:
    """Print the report as tables, in plain text and ``PIPE_WIDTH`` columns if the output is not a terminal.

    The tables of accuracies, verifiers, differences, samples saved and costs fit 80 columns. ``report.html`` has more digits
    and more rows.
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    if not found.tasks:
        console.print(escape(found.headline), highlight=False)
    for task in found.tasks:
        console.print(f"\n{escape(task.headline)}\n", highlight=False)
        if task.unlike:
            console.print(f"Not sampled alike: {escape('; '.join(task.unlike))}\n", style="bold", highlight=False)
        tables = [_accuracy(task), _verifiers(task), _comparisons(task), _efficiency(task), _cost(task)]
        tables += [_strategies(e.label, e.strategies) for e in task.evaluations if e.strategies]
        tables += [_grid(e.label, e.grid) for e in task.evaluations if e.grid]
        tables += [_optimal(e.label, e.optimal) for e in task.evaluations if e.optimal]
        for table in (*tables, _thinking(task)):
            if table.row_count:
                console.print(table)
        for e in task.evaluations:
            if e.verifier and e.verifier.alarm:
                console.print(f"ALARM {escape(e.label)}: {escape(e.verifier.alarm)}", style="bold red", highlight=False)


def _accuracy(task: TaskReport) -> Table:
    at = task.at
    metrics = ["pass@1", f"maj@{at}", f"best@{at}", f"weighted@{at}", f"posterior@{at}"]
    sizes = dict.fromkeys(f"{run.problems} problems x {run.samples} samples" for run in task.evaluations)
    title = f"{task.task} {task.split}: {' or '.join(sizes)}, 95% intervals over problems"
    heads = [metric.replace("@", "\n@") for metric in metrics]
    table = _table(title, ["run", *heads, "AUROC", f"oracle\npass@{at}"])
    for run in task.evaluations:
        found = [run.accuracy.get(metric) for metric in metrics]
        cells = ["-" if point is None else _with_interval(point, digits=0) for point in found]
        cells += [number(run.verifier.auroc) if run.verifier else "-", percent(run.accuracy[f"pass@{at}"].mean)]
        table.add_row(escape(run.label), *cells)
    return table


def _cost(task: TaskReport) -> Table:
    columns = ["tokens\n/sample", "judge\nreads", "s\n/sample", "s in\nall", "correct", "wrong", "no\nanswer"]
    columns += ["not\ngraded", "at\nlimit"]
    table = _table(f"cost, and labels of the samples ({SECONDS})", ["run", *columns])
    for run in task.evaluations:
        cells = [f"{run.tokens_per_sample:.1f}", f"{run.judge_tokens_per_sample:.1f}"]
        cells += [f"{run.seconds_per_sample:.3f}", f"{run.seconds:.0f}"]
        cells += [percent(run.labels[label]) for label in ("correct", "wrong", "no_answer")]
        cells += [percent(run.labels["timeout"] + run.labels["error"]), percent(run.at_token_limit)]
        table.add_row(escape(run.label), *cells)
    return table


def _strategies(label: str, found: Strategies) -> Table:
    columns = ["plan", "", "accuracy", "samples", "generated", "to\njudge", "tokens\nin all", "s\n/problem"]
    table = _table(f"plans on {label}'s problems: means per problem ({SECONDS})", columns)
    for row in found.plans:
        point = row.points[-1]
        spent = [point.samples, point.generated, point.verified, point.generated + point.verified]
        cells = [row.how, _with_interval(point.accuracy), *(f"{x:.1f}" for x in spent), f"{point.seconds:.3f}"]
        table.add_row(escape(row.plan) + lengths(row), *cells)
    return table


def _grid(label: str, found: Grid) -> Table:
    columns = ["token\ncap", "ended", "samples", "accuracy", "generated", "to\njudge", "tokens\nin all"]
    columns += ["with shorter\ncaps"]
    table = _table(f"{found.rule} vote on {label}'s problems, by token cap: means per problem", columns)
    ended = dict(zip(found.caps, found.ended, strict=True))
    for cell in found.cells:
        spent = [cell.generated, cell.verified, cell.generated + cell.verified, cell.cumulated]
        cells = [percent(ended[cell.cap]), str(cell.k), _with_interval(cell.accuracy), *(f"{x:.1f}" for x in spent)]
        table.add_row(str(cell.cap), *cells)
    return table


def _optimal(label: str, found: OptimalTable) -> Table:
    columns = [
        "samples",
        "best rule,\nhard to easy",
        "accuracy",
        "tokens",
        "best single",
        "its\naccuracy",
        "its\ntokens",
    ]
    title = f"compute-optimal on {label}'s problems: a pilot of {found.pilot} samples chooses, cross-validated"
    table = _table(title, [*columns, "difference,\npoints"])
    for row in found.rows:
        adaptive = [_with_interval(row.adaptive), f"{row.adaptive_tokens:.0f}"]
        single = [_with_interval(row.single), f"{row.single_tokens:.0f}"]
        difference = f"{in_points(row.difference.mean)}\n{interval(row.difference, signed=True)}"
        best = escape(", ".join(row.best))
        table.add_row(str(row.budget), best, *adaptive, escape(row.best_single), *single, difference)
    return table


def accepts(found: Accepted | None) -> str:
    """Return ``3 of 64`` and the upper bound of the rate; empty if no attacks were judged."""
    return "" if found is None else f"{found.accepted} of {found.judged}\n<= {percent(found.at_most)}"


def at_budgets(found: Thinking) -> list[int]:
    """Return the indices in ``budgets`` of half the token limit, the limit, and twice the limit."""
    last = len(found.budgets) - 1
    return [(last + 1) // 4 - 1, (last + 1) // 2 - 1, last]


def _thinking(task: TaskReport) -> Table:
    columns = ["run", "no\nthought", "whole\nthought", "natural", "progress", "negative", "episodes", "regret at"]
    table = _table("thoughts stopped by force: means over problems, regret at half, one and two token limits", columns)
    for run in task.evaluations:
        if not (found := run.thinking):
            continue
        cells = [_with_interval(point) for point in (found.first, found.last, found.natural)]
        gained = found.progress
        cells += [f"{in_points(gained.mean)}\n{interval(gained, signed=True)}", percent(gained.negative)]
        cells += [f"{found.episodes:.1f}"]
        cells += ["\n".join(f"{found.budgets[i]}: {percent(found.regret[i].mean)}" for i in at_budgets(found))]
        table.add_row(escape(run.label), *cells)
    return table


def _verifiers(task: TaskReport) -> Table:
    columns = ["AUROC", "balanced\naccuracy", "correct\naccepted", "wrong\nrejected", "says Yes\n/ right", "ECE"]
    columns += ["attacks\naccepted"]
    table = _table("verifier, on samples with an answer", ["run", *columns])
    for run in task.evaluations:
        if quality := run.verifier:
            cells = [_bounds(quality.auroc, quality.auroc_interval)]
            cells += [_bounds(quality.balanced_accuracy, quality.balanced_accuracy_interval)]
            cells += [percent(quality.tpr), percent(quality.tnr)]
            cells += [f"{percent(quality.says_yes)}\n/ {percent(quality.base_rate)}"]
            table.add_row(escape(run.label), *cells, number(quality.ece), accepts(run.attacks) or "-")
    return table


def print_audit(found: Audited, console: Console | None = None) -> None:
    """Print an audit as three tables that fit 80 columns."""
    console = console or Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    heads = ["kind", "wordings", "accepted", "rate", "95%: at\nmost", "most accepted"]
    title = f"adversarial solutions of {found.problems} {found.task} problems: accepted as right"
    table = _table(title, heads)
    table.columns[-1].justify = "left"
    for row in found.accepted:
        worst = "" if row.worst is None else _clipped(row.worst)
        half = "held out" if row.held_out else "training"
        cells = [half, f"{row.accepted} of {row.judged}", percent(row.accepted / row.judged), percent(row.at_most)]
        table.add_row(row.kind, *cells, escape(worst))
    console.print(table)
    table = _table(
        "changes that should change no verdict", ["change", "judged", "accepted\nbefore", "after", "flipped"]
    )
    for change in found.changes:
        shares = (change.before, change.after, change.flipped)
        table.add_row(escape(change.change), str(change.judged), *map(percent, shares))
    console.print(table)
    if quality := found.verifier:
        table = _table(
            "on the model's own solutions",
            ["", "AUROC", "balanced\naccuracy", "ECE", "Brier", "base\nrate", "says\nYes"],
        )
        names = ("auroc", "balanced_accuracy", "ece", "brier")
        cells = [_bounds(getattr(quality, name), getattr(quality, f"{name}_interval")) for name in names]
        table.add_row(str(quality.n), *cells, percent(quality.base_rate), percent(quality.says_yes))
        console.print(table)


def _clipped(text: str) -> str:
    """Return a text in quotes, cut to the width of a column."""
    shown = repr(text)
    return shown if len(shown) <= 16 else f"{shown[:15]}…"


def _comparisons(task: TaskReport) -> Table:
    rest = len(task.comparisons) - len(task.main)
    more = f"; {rest} more in report.html" if rest else ""
    title = f"differences on the same problems (paired bootstrap{more})"
    table = _table(title, ["this", "minus this", "points", "95%", "p", "problems"])
    for row in task.main:
        ours, theirs = f"{row.run} {row.rule}@{row.k}", f"{row.against} {row.against_rule}@{row.k}"
        table.add_row(
            escape(ours),
            escape(theirs),
            in_points(row.mean),
            interval(row, signed=True),
            p_value(row.p),
            str(row.problems),
        )
    return table


def _efficiency(task: TaskReport) -> Table:
    table = _table(
        "samples the other needs / samples this run needs, at equal accuracy",
        ["this", "the other", "ratio", "95%", "at\naccuracy"],
    )
    for row in task.efficiency:
        names = [f"{row.run} {RULE_NAMES[row.rule]}", f"{row.baseline} {RULE_NAMES[row.baseline_rule]}"]
        cells = ["not reached", "-"] if row.ratio is None else [times(row), f"[{row.low:.1f}, {row.high:.1f}]"]
        table.add_row(*map(escape, names), *map(escape, cells), percent(row.target))
    return table


def _table(title: str, columns: list[str]) -> Table:
    table = Table(
        title=escape(title), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", padding=(0, 1, 0, 0)
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _with_interval(point: Estimate, digits: int = 1) -> str:
    """Return a table's cell of two lines."""
    return f"{percent(point.mean)}\n{interval(point, digits=digits)}"


def _bounds(value: float, bounds: tuple[float, float]) -> str:
    return f"{number(value)}\n[{number(bounds[0])}, {number(bounds[1])}]"


def lengths(row: PlanCurve) -> str:
    """Return in words what else the plan costs if its lengths grow, and nothing for other plans."""
    if not isinstance(row, GrowingPlan):
        return ""
    return (
        f" (cap reached {row.lengths.reached:.1f}; with every shorter cap: at most {row.lengths.cumulated:.0f} tokens)"
    )


def percent(x: float) -> str:
    return "n/a" if math.isnan(x) else f"{100 * x:.1f}%"


def in_points(x: float) -> str:
    """Return a difference of accuracies in percentage points, signed; never ``-0.0``."""
    return "n/a" if math.isnan(x) else f"{round(100 * x, 1) + 0.0:+.1f}"


def number(x: float) -> str:
    return "n/a" if math.isnan(x) else f"{x:.2f}"


def interval(point: Estimate | Difference | Comparison, signed: bool = False, digits: int = 1) -> str:
    """Return ``[58.0, 66.3]``, in per cent; empty when there is no interval."""
    form = f"{'+' if signed else ''}.{digits}f"
    return "" if math.isnan(point.low) else f"[{100 * point.low:{form}}, {100 * point.high:{form}}]"


def times(row: SamplesSaved) -> str:
    """Return a ratio in words: ``at least 4.0x``, or that the accuracy is not reached."""
    if row.ratio is None:
        return f"not reached within {row.max_k} samples"
    return f"{'at least ' if row.at_least else ''}{row.ratio:.1f}x"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
