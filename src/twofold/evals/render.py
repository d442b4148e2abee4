"""The numbers of a report for people: one HTML page, or tables in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from twofold.evals import figures

Record = Mapping[str, Any]

RULE_NAMES = {"maj": "majority", "best": "best-of-n", "weighted": "weighted vote", "pass": "oracle"}


def html(result: Record) -> str:
    """One self-contained page: inline CSS and SVG, no script, nothing fetched."""
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
        "points": points,
    }
    colour = figures.colours(result["labels"])
    environment.globals["colours_of"] = figures.colours
    tasks = [task | {"figures": _figures(task, colour)} for task in result["tasks"]]
    training = Markup(figures.training(result["training"], colour)) if result["training"] else None
    template = environment.get_template("report.html.jinja")
    return template.render(result, tasks=tasks, training_figure=training, colour=colour, rule_names=RULE_NAMES)


def _figures(task: Record, colour: figures.Colours) -> dict[str, Markup]:
    judged = [e for e in task["evaluations"] if e["verifier"]]
    drawn = {"scaling": figures.scaling(task, colour), "cost": figures.cost(task, colour)}
    if judged:
        drawn["verifier"] = figures.verifier(judged, colour)
        drawn["histograms"] = figures.histograms(judged, colour)
    for e in task["evaluations"]:
        if found := e["strategies"]:
            colours = figures.colours([row["plan"] for row in found["plans"]])
            drawn[f"strategies {e['label']}"] = figures.strategies(found, colours)
        if e["grid"]:
            drawn[f"grid {e['label']}"] = figures.grid(e["grid"], colour[e["label"]])
    if any(e["levels"] for e in task["evaluations"]):
        drawn["levels"] = figures.levels(task, colour)
    return {name: Markup(svg) for name, svg in drawn.items()}


def print_table(result: Record, console: Console | None = None) -> None:
    """The report in the terminal; plain text, not wrapped to 80 columns, when the output is not one."""
    console = console or Console()
    if not console.is_terminal:
        console.width = 160
    for task in result["tasks"]:
        console.print(f"\n{escape(task['headline'])}\n", highlight=False)
        tables = [_accuracy(task), _verifiers(task), _comparisons(task), _efficiency(task), _cost(task)]
        for name, of_run in (("strategies", _strategies), ("grid", _grid), ("optimal", _optimal)):
            tables += [of_run(e) for e in task["evaluations"] if e[name]]
        for table in tables:
            if table.row_count:
                console.print(table)
        for run in task["evaluations"]:
            if run["verifier"] and run["verifier"]["alarm"]:
                console.print(
                    f"ALARM {escape(run['label'])}: {run['verifier']['alarm']}", style="bold red", highlight=False
                )


def _accuracy(task: Record) -> Table:
    at = task["at"]
    columns = [
        "run",
        "pass@1",
        f"maj@{at}",
        f"best@{at}",
        f"weighted@{at}",
        "AUROC",
        f"oracle pass@{at}",
        "problems x n",
    ]
    table = _table(f"{task['task']} {task['split']}: accuracy, 95% intervals over problems", columns)
    for run in task["evaluations"]:
        columns = ["pass@1", f"maj@{at}", f"best@{at}", f"weighted@{at}"]
        found = [run["accuracy"].get(column) for column in columns]
        cells = ["-" if point is None else f"{percent(point['mean'])} {interval(point)}" for point in found]
        cells += [number(run["verifier"]["auroc"]) if run["verifier"] else "-"]
        cells += [percent(run["accuracy"][f"pass@{at}"]["mean"]), f"{run['problems']} x {run['samples']}"]
        table.add_row(escape(run["label"]), *cells)
    return table


def _cost(task: Record) -> Table:
    columns = [
        "run",
        "tokens/sample",
        "judge reads",
        "s/sample",
        "s in all",
        *task["evaluations"][0]["labels"],
        "at limit",
    ]
    table = _table("cost, and what became of the samples", columns)
    for run in task["evaluations"]:
        cells = [f"{run['tokens_per_sample']:.1f}", f"{run['judge_tokens_per_sample']:.1f}"]
        cells += [f"{run['seconds_per_sample']:.3f}", f"{run['seconds']:.0f}"]
        cells += [percent(share) for share in run["labels"].values()]
        table.add_row(escape(run["label"]), *cells, percent(run["at_token_limit"]))
    return table


def _strategies(run: Record) -> Table:
    columns = ["plan", "", "accuracy", "samples", "generated", "to judge", "tokens in all", "s/problem"]
    table = _table(f"plans on {run['label']}'s problems: means per problem", columns)
    for row in run["strategies"]["plans"]:
        point = row["points"][-1]
        spent = [point["samples"], point["generated"], point["verified"], point["generated"] + point["verified"]]
        accuracy = f"{percent(point['accuracy']['mean'])} {interval(point['accuracy'])}"
        cells = [row["how"], accuracy, *(f"{x:.1f}" for x in spent), f"{point['seconds']:.3f}"]
        table.add_row(escape(row["plan"]) + lengths(row), *cells)
    return table


def _grid(run: Record) -> Table:
    found = run["grid"]
    columns = [
        "token cap",
        "ended",
        "samples",
        "accuracy",
        "generated",
        "to judge",
        "tokens in all",
        "shorter caps too",
    ]
    table = _table(f"{found['rule']} vote on {run['label']}'s problems, by token cap: means per problem", columns)
    ended = dict(zip(found["caps"], found["ended"], strict=True))
    for cell in found["cells"]:
        accuracy = f"{percent(cell['accuracy']['mean'])} {interval(cell['accuracy'])}"
        spent = [cell["generated"], cell["verified"], cell["generated"] + cell["verified"], cell["cumulated"]]
        cells = [percent(ended[cell["cap"]]), str(cell["k"]), accuracy, *(f"{x:.1f}" for x in spent)]
        table.add_row(str(cell["cap"]), *cells)
    return table


def _optimal(run: Record) -> Table:
    found = run["optimal"]
    columns = ["samples", "best rule, hard to easy", "accuracy", "tokens", "best single", "its accuracy", "its tokens"]
    title = (
        f"compute-optimal on {run['label']}'s problems: a pilot of {found['pilot']} samples chooses, cross-validated"
    )
    table = _table(title, [*columns, "difference, points"])
    for row in found["rows"]:
        sides = [
            (f"{percent(row[side]['mean'])} {interval(row[side])}", f"{row[f'{side}_tokens']:.0f}")
            for side in ("adaptive", "single")
        ]
        difference = f"{points(row['difference']['mean'])} {interval(row['difference'], signed=True)}"
        best = escape(", ".join(row["best"]))
        table.add_row(str(row["budget"]), best, *sides[0], escape(row["best_single"]), *sides[1], difference)
    return table


def _verifiers(task: Record) -> Table:
    columns = [
        "run",
        "AUROC",
        "balanced accuracy",
        "correct accepted",
        "wrong rejected",
        "ECE",
        "Brier",
        "says Yes",
        "base rate",
    ]
    table = _table("verifier, on samples with an answer", columns)
    for run in task["evaluations"]:
        if quality := run["verifier"]:
            intervals = [_bounds(quality, name) for name in ("auroc", "balanced_accuracy", "ece", "brier")]
            auroc, balanced, ece, brier = intervals
            rates = [percent(quality["tpr"]), percent(quality["tnr"])]
            table.add_row(
                run["label"],
                auroc,
                balanced,
                *rates,
                ece,
                brier,
                percent(quality["says_yes"]),
                percent(quality["base_rate"]),
            )
    return table


def _comparisons(task: Record) -> Table:
    table = _table(
        "differences on the same problems (paired bootstrap)", ["this", "minus this", "points", "95%", "p", "problems"]
    )
    for row in task["comparisons"]:
        ours, theirs = f"{row['run']} {row['rule']}@{row['k']}", f"{row['against']} {row['against_rule']}@{row['k']}"
        table.add_row(
            ours, theirs, points(row["mean"]), interval(row, signed=True), p_value(row["p"]), str(row["problems"])
        )
    return table


def _efficiency(task: Record) -> Table:
    table = _table(
        "samples the baseline needs / samples this run needs", ["run", "baseline curve", "ratio", "95%", "at accuracy"]
    )
    for row in task["efficiency"]:
        names = [f"{row['run']} {RULE_NAMES[row['rule']]}", f"{row['baseline']} {RULE_NAMES[row['baseline_rule']]}"]
        bounds = "-" if row["ratio"] is None else f"[{row['low']:.1f}, {row['high']:.1f}]"
        table.add_row(*names, times(row), bounds, percent(row["target"]))
    return table


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _bounds(quality: Record, name: str) -> str:
    low, high = quality[f"{name}_interval"]
    return f"{number(quality[name])} [{number(low)}, {number(high)}]"


def lengths(row: Record) -> str:
    """What else is to be known of the cost of a plan whose lengths grow; of others nothing."""
    if not (found := row.get("lengths")):
        return ""
    return f" (cap reached {found['reached']:.1f}; every cap anew: at most {found['cumulated']:.0f} tokens)"


def percent(x: float | None) -> str:
    return "n/a" if x is None or math.isnan(x) else f"{100 * x:.1f}%"


def points(x: float) -> str:
    """A difference of accuracies in percentage points, signed; never ``-0.0``."""
    return f"{round(100 * x, 1) + 0.0:+.1f}"


def number(x: float | None) -> str:
    return "n/a" if x is None or math.isnan(x) else f"{x:.2f}"


def interval(point: Record, signed: bool = False) -> str:
    """``[58.0, 66.3]`` in per cent; empty when there is none."""
    sign = "+" if signed else ""
    return "" if point["low"] is None else f"[{100 * point['low']:{sign}.1f}, {100 * point['high']:{sign}.1f}]"


def times(row: Record) -> str:
    """An efficiency ratio in words: ``at least 4.0x``, or that the accuracy is not reached."""
    if row["ratio"] is None:
        return f"not reached within {row['max_k']} samples"
    return f"{'at least ' if row['at_least'] else ''}{row['ratio']:.1f}x"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
