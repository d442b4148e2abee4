"""A suite's page: what a run measured beside what the paper reports, as ``suite.html``, ``suite.json`` and a table to print."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as Printed

from twofold.durable import write_text
from twofold.evals.critic import Critic
from twofold.evals.drawing import swatches
from twofold.evals.records import Evaluation, as_json
from twofold.evals.render import escape, interval, number, percent, templates
from twofold.evals.run import Eval
from twofold.evals.suites import CRITIC, Part, Row, Suite, Table
from twofold.maths.processbench import ProcessScore
from twofold.maths.stats import Estimate
from twofold.toml import flat

Found = Evaluation | ProcessScore
"""What a part measured: an evaluation's numbers, or a critic's."""


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a suite's table with what was measured. All numbers are shares from 0 to 1.

    ``samples`` is the number of samples of ``measured``, if it is less than the metric's; ``measured`` is None where the run
    has no such number. The line of the averages has no ``problems``.
    """

    name: str
    metric: str
    measured: Estimate | None
    samples: int | None
    problems: int | None
    size: int | None
    paper: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A table of the page."""

    title: str
    columns: tuple[str, ...]
    where: str
    lines: list[Line]


@dataclass(frozen=True, slots=True)
class Rules:
    """The run's accuracy on a set by every rule at ``k`` samples, and its verifier's AUROC; None if it was not judged."""

    name: str
    k: int
    accuracy: dict[str, Estimate]
    auroc: float | None


RULES = ("pass@1", "maj", "best", "weighted")


@dataclass(frozen=True, slots=True)
class SuiteReport:
    """A suite's page. ``parts`` are the sets that were run; ``changed`` says what was not as the suite has it, and in which sets.

    ``rules`` has the sets of which several samples were drawn.
    """

    suite: str
    paper: str
    model: str
    parts: list[str]
    changed: list[str]
    sections: list[Section]
    rules: list[Rules]
    notes: tuple[str, ...]


def beside(suite: Suite, model: str, ran: Mapping[str, Eval | Critic], found: Mapping[str, Found]) -> SuiteReport:
    """Return the page of a run that measured the parts in ``found``, sampled as ``ran`` says."""
    parts = {part.name: part for part in suite.parts if part.name in found}
    return SuiteReport(
        suite=suite.name,
        paper=suite.paper,
        model=model,
        parts=[*parts],
        changed=_all_changed({name: _changed(part.how, ran[name], found[name]) for name, part in parts.items()}),
        sections=[section for table in suite.tables if (section := _section(table, parts, found)).lines],
        rules=[_rules(name, e) for name, e in found.items() if isinstance(e, Evaluation) and e.samples > 1],
        notes=suite.notes,
    )


def _rules(name: str, found: Evaluation) -> Rules:
    k = found.ks[-1]
    points = {rule: found.accuracy.get(rule if "@" in rule else f"{rule}@{k}") for rule in RULES}
    known = {rule: point for rule, point in points.items() if point is not None}
    return Rules(name, k, known, found.verifier.auroc if found.verifier else None)


def _changed(suite: Eval | Critic, ran: Eval | Critic, found: Found) -> str:
    """Return the options that differ from the suite's own; ``problems`` has its own column, ``batch`` changes nothing.

    A suite has no system prompt and leaves thinking to the chat template.
    """
    ours, theirs = flat(suite), flat(ran)
    names = [name for name in theirs if name not in ("problems", "batch") and theirs[name] != ours[name]]
    changed = [f"{name}={theirs[name]}" for name in names]
    if isinstance(found, Evaluation):
        told = {name: getattr(found.header, name) for name in ("system", "enable_thinking", "opening")}
        changed += [f"{name}={value!r}" for name, value in told.items() if value is not None]
    return ", ".join(changed)


def _all_changed(texts: Mapping[str, str]) -> list[str]:
    """Return a line for each change: "n=4 in all sets", or "n=4 in math500, math2"."""
    names: dict[str, list[str]] = {}
    for name, text in texts.items():
        names.setdefault(text, []).append(name)
    return [
        f"{text} in {'all sets' if len(sets) == len(texts) else ', '.join(sets)}"
        for text, sets in names.items()
        if text
    ]


def _section(table: Table, parts: Mapping[str, Part], found: Mapping[str, Found]) -> Section:
    lines = [_line(row, parts[row.part].size, found[row.part]) for row in table.rows if row.part in found]
    if table.average and len(lines) == len(table.rows):
        means = [line.measured for line in lines if line.measured]
        average = _mean(means) if len(means) == len(lines) else None
        lines.append(Line("average", table.rows[0].metric, average, None, None, None, _shares(table.average)))
    return Section(table.title, table.columns, table.where, lines)


def _line(row: Row, size: int, found: Found) -> Line:
    problems = found.cases if isinstance(found, ProcessScore) else found.problems
    measured, samples = measure(row, found)
    name = row.part.removeprefix(CRITIC) + (f", {row.cap} tokens" if row.cap else "")
    return Line(name, row.metric, measured, samples, problems, size, _shares(row.paper))


def measure(row: Row, found: Found) -> tuple[Estimate | None, int | None]:
    """Return what was found for a row, and the number of samples if it had to be less than the row's."""
    if isinstance(found, ProcessScore):
        return Estimate(found.f1, found.low, found.high), None
    if row.metric == "regret":
        return _regret(found, row.cap), None
    rule, _, k = row.metric.partition("@")
    at = max(x for x in found.ks if x <= int(k))
    fewer = at if at < int(k) else None
    if row.cap is None:
        return found.accuracy.get(f"{rule}@{at}"), fewer
    cells = found.grid.cells if found.grid and found.rule == rule else []
    return next((c.accuracy for c in cells if (c.cap, c.k) == (row.cap, at)), None), fewer


def _regret(found: Evaluation, budget: int | None) -> Estimate | None:
    """Return the regret at a budget; beyond the token limit it is that of thoughts that were made to go on up to it."""
    if found.thinking is None:
        return None
    within = zip(found.thinking.budgets, found.thinking.regret, strict=True)
    known = {at: regret for at, regret in within if at <= found.header.max_tokens}
    return (known | {w.budget: w.regret for w in found.thinking.waits if w.waits}).get(budget or 0)


def _mean(means: Sequence[Estimate]) -> Estimate:
    """Return the mean of the sets' means. Its interval adds their variances, because the sets share no problems."""

    def half(sides: Sequence[float]) -> float:
        return math.sqrt(sum(side**2 for side in sides)) / len(sides)

    mean = sum(m.mean for m in means) / len(means)
    return Estimate(mean, mean - half([m.mean - m.low for m in means]), mean + half([m.high - m.mean for m in means]))


def _shares(numbers: Sequence[float | None]) -> tuple[float | None, ...]:
    return tuple(None if x is None else x / 100 for x in numbers)


# --- for people -------------------------------------------------------------------------------------------------------


def write(page: SuiteReport, out: Path) -> None:
    """Write ``out/suite.json`` and ``out/suite.html``, which links to the report of each set."""
    write_text(out / "suite.json", json.dumps(as_json(page), indent=1, allow_nan=False) + "\n")
    template = templates().get_template("suite.html.jinja")
    text = template.render(page=page, rules=RULES, colours_of=swatches, of=of)
    write_text(out / "suite.html", text)


def print_suite(page: SuiteReport, console: Console | None = None) -> None:
    """Print the tables of a suite. They fit in 80 columns."""
    console = console or Console()
    console.print(f"\n{escape(page.model)} on the sets of {escape(page.paper)}", style="bold", highlight=False)
    for section in page.sections:
        console.print(_printed(section))
        console.print(f"{escape(section.where)}\n", style="dim", highlight=False)
    if page.rules:
        console.print(_printed_rules(page.rules))
    for text in page.changed:
        console.print(f"Not as in the suite: {escape(text)}", highlight=False)


def _printed(section: Section) -> Printed:
    """Return a section as a table: per cent, one line for each row, the columns' names one word to a line."""
    same = len({line.metric for line in section.lines}) == 1
    title = f"{section.title} ({section.lines[0].metric}, %)" if same else f"{section.title} (%)"
    gap = (0, 1, 0, 0) if len(section.columns) < 5 else 0
    table = Printed(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", padding=gap)
    table.add_column("set", no_wrap=True)
    for column in ["this run", *(column.replace(" ", "\n") for column in section.columns), "number"]:
        table.add_column(column, justify="right", no_wrap=True)
    for line in section.lines:
        name = line.name if same else f"{line.name} {line.metric}"
        table.add_row(name, shown(line), *("-" if x is None else f"{100 * x:.1f}" for x in line.paper), of(line))
    return table


def _printed_rules(rules: Sequence[Rules]) -> Printed:
    title = "This run by every rule (%; intervals are in each set's report)"
    table = Printed(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", padding=(0, 1, 0, 0))
    for i, column in enumerate(["set", "samples", *RULES, "AUROC"]):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rules:
        cells = [percent(row.accuracy[rule].mean).rstrip("%") if rule in row.accuracy else "-" for rule in RULES]
        table.add_row(row.name, str(row.k), *cells, "-" if row.auroc is None else number(row.auroc))
    return table


def shown(line: Line) -> str:
    """Return the measured number with its interval, and "@4" if it is that of 4 samples, fewer than the metric's."""
    if line.measured is None:
        return "-"
    fewer = f" @{line.samples}" if line.samples else ""
    return f"{percent(line.measured.mean)} {interval(line.measured)}{fewer}".replace("% ", " ")


def of(line: Line) -> str:
    """Return how many of a set's problems were used: "500", or "10/500"."""
    if line.problems is None:
        return ""
    return f"{line.problems}" if line.problems == line.size else f"{line.problems}/{line.size}"
