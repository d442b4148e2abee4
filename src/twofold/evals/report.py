"""Make one page of saved evaluations: every rule at every k, the verifier's quality, and how sure the differences are.

``report`` reads JSONL, needs no model and no torch, and writes ``report.html`` (one self-contained file) and
``report.json`` (the same numbers). All intervals are 95%, from resampling whole problems. Metric names are the usual
ones: ``pass@k`` (an oracle: *some* sample is correct), ``maj@k``, ``best@k`` and ``weighted@k``.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from twofold.durable import write_text
from twofold.evals.compare import Comparison, comparisons, samples_saved, tokens_saved
from twofold.evals.figures import TRAINING_METRICS
from twofold.evals.grid import accuracy_grid
from twofold.evals.optimal import candidates, optimal_table
from twofold.evals.plans import strategies
from twofold.evals.pools import PoolError
from twofold.evals.records import (
    Curve,
    Evaluation,
    Judged,
    Level,
    Report,
    TaskReport,
    TrainingCurves,
    as_json,
    fields_of,
)
from twofold.evals.render import RULE_NAMES, html, in_points, interval, number, percent, print_table, times
from twofold.evals.saved import VOTING_RULE, Saved, holds_evaluations, load_evaluations
from twofold.evals.scores import judged_scores
from twofold.evals.texts import read_texts
from twofold.evals.thinking import thinking
from twofold.maths.stats import estimate, estimates
from twofold.tasks.doubts import doubts

__all__ = ["print_table", "report", "summarise"]

METRICS = "metrics.jsonl"
AT = 16
"""Runs are compared at this number of samples, or at the nearest power of two that all of them have."""


def report(
    runs: Sequence[str | Path],
    out: str | Path | None = None,
    baseline: str | None = None,
    caps: Sequence[int] = (),
    optimal: bool = False,
) -> Report:
    """Write ``report.html`` and ``report.json`` into ``out`` (default: the first of ``runs``), and return the numbers.

    See ``summarise`` for the arguments and the errors.
    """
    found = summarise(runs, baseline, caps, optimal)
    out = Path(runs[0] if out is None else out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "report.json", json.dumps(as_json(found), indent=1, allow_nan=False) + "\n")
    write_text(out / "report.html", html(found))
    return found


def summarise(
    runs: Sequence[str | Path], baseline: str | None = None, caps: Sequence[int] = (), optimal: bool = False
) -> Report:
    """Return everything a report says. A number that does not exist, such as the AUROC of one class, is NaN.

    Each path is an evaluation directory or holds some under ``evals/*/``, or is a run with a ``metrics.jsonl``, of which
    the training alone is reported. Evaluations of one task and split are compared
    with each other; ``baseline`` names the one that efficiency is measured against (default: the first). ``caps``
    (numbers of tokens) ask for each evaluation's grid of caps and samples, ``optimal`` for its compute-optimal choice.

    Raises PoolError for missing or malformed files, and ValueError for a baseline that is not among the evaluations and
    for a grid or a choice that the samples do not allow.
    """
    paths = [Path(run) for run in runs]
    trained = {
        path: path.resolve().name for path in paths if not holds_evaluations(path) and (path / METRICS).is_file()
    }
    evaluations = load_evaluations([path for path in paths if path not in trained])
    labels = list(dict.fromkeys(e.label for e in evaluations))
    if baseline is not None and baseline not in labels:
        raise ValueError(f"no evaluation is named {baseline!r} (the baseline); found {', '.join(labels)}")
    sections: dict[tuple[str, str], list[Saved]] = {}
    for evaluation in evaluations:
        sections.setdefault((evaluation.header.task, evaluation.header.split), []).append(evaluation)
    tasks = [_task(section, baseline, caps, optimal) for section in sections.values()]
    headline = tasks[0].headline if tasks else f"The training of {', '.join(trained.values())}, without an evaluation."
    training = _training({e.run: e.label for e in evaluations} | trained)
    return Report(headline, list(dict.fromkeys([*labels, *trained.values()])), tasks, training)


def _task(section: list[Saved], baseline: str | None, caps: Sequence[int], optimal: bool) -> TaskReport:
    base = next((e for e in section if e.label == baseline), section[0])
    ordered = [base, *(e for e in section if e is not base)]
    common = set.intersection(*(set(e.ks) for e in section))
    at = min(common, key=lambda k: (abs(math.log2(k / AT)), -k))
    task = TaskReport(
        task=base.header.task,
        split=base.header.split,
        baseline=base.label,
        at=at,
        evaluations=[_evaluation(e, at, caps, optimal) for e in section],
        comparisons=comparisons(ordered, at),
        efficiency=[],
        tokens_saved=[row for e in ordered[1:] for row in tokens_saved(base, e)],
        headline="",
    )
    named = {e.label: e for e in section}
    for e in ordered:
        best = task.rivals(e.label)[0]
        rivals = dict.fromkeys([(base.label, "maj"), *([] if e is base else [best])])
        task.efficiency.extend(samples_saved(e, [(named[label], rule) for label, rule in rivals], best))
    best_run = max((e for e in section if e is not base), key=lambda e: _mean(e, at), default=base)
    warnings = [f"{e.label}: {doubt}. " for e in section for doubt in doubts(e.pools)]
    return replace(task, headline="".join(warnings) + _headline(task, best_run.label))


def _evaluation(e: Saved, at: int, caps: Sequence[int], optimal: bool) -> Evaluation:
    samples = len(e.pools) * e.header.n
    labels = Counter(grade.label for pool in e.pools for grade in pool.grades)
    at_limit = sum(tokens >= e.header.max_tokens for pool in e.pools for tokens in pool.tokens)
    numbers = Evaluation(
        label=e.label,
        directory=e.directory.name,
        header=e.header,
        rule=e.rule,
        problems=len(e.pools),
        samples=e.header.n,
        ks=e.ks,
        accuracy={
            f"{rule}@{k}": point
            for rule, curve_P_K in e.curves_P_K.items()
            for k, point in zip(e.ks, estimates(curve_P_K), strict=True)
        },
        labels={label: labels[label] / samples for label in ("correct", "wrong", "no_answer", "timeout", "error")},
        at_token_limit=at_limit / samples,
        tokens_per_sample=sum(sum(pool.tokens) for pool in e.pools) / samples,
        judge_tokens_per_sample=sum(sum(pool.judge_tokens) for pool in e.pools) / samples,
        seconds_per_sample=sum(pool.seconds for pool in e.pools) / samples,
        seconds=e.header.seconds,
        levels=_levels(e, at),
        strategies=strategies(e.directory, e.pools, e.header),
        grid=accuracy_grid(e.pools, e.header, caps, VOTING_RULE[e.rule]) if caps else None,
        optimal=optimal_table(e.pools, candidates(e.directory, e.header)) if optimal else None,
        thinking=thinking(e.probed) if e.probed else None,
        verifier=None,
        attacks=e.attacks,
        texts=read_texts(e.directory, e.pools),
    )
    scores = judged_scores(e.pools) if e.rule == "weighted" else None
    return Judged(**fields_of(numbers) | fields_of(scores)) if scores else numbers


def _levels(e: Saved, at: int) -> list[Level]:
    """Return the accuracy by ``problem.meta["level"]``; a level of a single problem has no interval."""
    ids: dict[str, list[str]] = {}
    for pool in e.pools:
        if "level" in pool.problem.meta:
            ids.setdefault(str(pool.problem.meta["level"]), []).append(pool.problem.id)
    metrics = [("pass", 1), *((rule, at) for rule in e.curves_P_K if rule != "pass")]
    return [
        Level(
            level,
            len(ids[level]),
            {f"{rule}@{k}": estimate(e.curve(rule, [k], ids[level])[:, 0]) for rule, k in metrics},
        )
        for level in sorted(ids, key=lambda name: (len(name), name) if name.isdigit() else (0, name))
    ]


def _mean(e: Saved, at: int) -> float:
    return float(e.curves_P_K[e.rule][:, e.ks.index(at)].mean())


def _headline(task: TaskReport, label: str) -> str:
    """Say what run ``label`` reaches by the rule that it answers with, and how it stands to its rivals: three lines of 80."""
    run = next(e for e in task.evaluations if e.label == label)
    text = (
        f"{label}: {percent(run.accuracy[f'{run.rule}@{task.at}'].mean)} of {run.problems} {task.task} problems by "
        f"{RULE_NAMES[run.rule]} of {task.at} (of one: {percent(run.accuracy['pass@1'].mean)})"
    )
    rows = {(row.against, row.against_rule): row for row in task.main if row.run == label}
    rivals = [rival for rival in task.rivals(label) if rival in rows]
    found = [_difference(rows[rival], _rival(task, label, rival), i == 0) for i, rival in enumerate(rivals)]
    text += f": {', '.join(found)}." if found else "."
    return f"{text} AUROC {number(run.verifier.auroc)}." if run.verifier else text


def _rival(task: TaskReport, label: str, rival: tuple[str, str]) -> str:
    """Return a rival in words. Of the best rule of all other runs this also says how many samples are saved against it."""
    against, rule = rival
    if against == label:
        return f"its own {RULE_NAMES[rule]}"
    name = f"{against}'s {RULE_NAMES[rule]}"
    if rival != task.rivals(label)[0]:
        return name
    saved = next((r for r in task.efficiency if r.run == label and r.is_best_rule), None)
    clear = saved is not None and saved.ratio is not None and saved.low > 1
    return f"{name}, the best other rule" + (f" (equal with {times(saved)} fewer samples)" if saved and clear else "")


def _difference(row: Comparison, rival: str, first: bool) -> str:
    size = f"{in_points(row.mean)} {'points ' if first else ''}{interval(row, signed=True)}"
    if row.low > 0 or row.high < 0:
        return f"{size} {'over' if row.low > 0 else 'against'} {rival}"
    return f"no clear difference from {rival}: {size}"


def _training(runs: Mapping[Path, str]) -> list[TrainingCurves]:
    """Return the curves of the runs, by label, that have a ``metrics.jsonl``; its last line may still be in writing."""
    series = []
    for run, label in runs.items():
        path = run / METRICS
        if not path.is_file():
            continue
        curves: dict[str, Curve] = {}
        for line_number, line in enumerate(path.read_text().split("\n")[:-1], start=1):
            try:
                row = json.loads(line)
                step = row["step"]
            except (ValueError, KeyError, TypeError) as err:
                raise PoolError(f"{path}:{line_number}: not a JSON object with a `step`") from err
            for metric in TRAINING_METRICS:
                if (value := row.get(metric)) is not None and math.isfinite(value):
                    curve = curves.setdefault(metric, Curve([], []))
                    curve.steps.append(step)
                    curve.values.append(value)
        if curves:
            series.append(TrainingCurves(label, curves))
    return series
