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
from twofold.evals.compare import Comparison, against_best, comparisons, samples_saved, tokens_saved
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
from twofold.evals.thinking import thinking
from twofold.maths.stats import estimate, estimates

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
        efficiency=[row for e in ordered for row in samples_saved(base, e)],
        tokens_saved=[row for e in ordered[1:] for row in tokens_saved(base, e)],
        headline="",
    )
    return replace(task, headline=_headline(task, _shown(section, base, at)))


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


def _shown(section: list[Saved], base: Saved, at: int) -> list[Comparison]:
    """Return what the headline reports: the best run but the baseline, against the best rule of all other runs.

    A single run is compared with its own majority vote.
    """
    best = max((e for e in section if e is not base), key=lambda e: _mean(e, at), default=base)
    others = [e for e in section if e is not best]
    if others:
        return against_best(best, others, at)
    return [row for row in comparisons([best], at) if row.rule == best.rule]


def _mean(e: Saved, at: int) -> float:
    return float(e.curves_P_K[e.rule][:, e.ks.index(at)].mean())


def _headline(task: TaskReport, shown: Sequence[Comparison]) -> str:
    """Say the result in a few sentences. ``shown`` are comparisons of one run by several rules, all against one rule."""
    label = shown[0].run if shown else task.evaluations[0].label
    run = next(e for e in task.evaluations if e.label == label)
    text = (
        f"{label} answers {_accuracy(run, run.rule, task.at)} of the {run.problems} {task.task} problems correctly "
        f"by {RULE_NAMES[run.rule]} over {task.at} samples, {percent(run.accuracy['pass@1'].mean)} with one"
    )
    sentences = [text]
    for i, row in enumerate(shown):
        if i == 0:
            sentences[0] += f": {_difference(row, _rival(task, row))}"
        else:
            means = _accuracy(run, row.rule, task.at)
            sentences.append(f"By {RULE_NAMES[row.rule]} it is {means}: {_difference(row, 'that rule')}")
    saved = next((r for r in task.efficiency if r.run == label and r.baseline_rule == "maj"), None)
    if shown and shown[0].low > 0 and saved and saved.ratio is not None:
        bounds = f"95% [{saved.low:.1f}, {saved.high:.1f}]"
        whose = "its own" if saved.baseline == label else f"{saved.baseline}'s"
        sentences.append(f"It is as accurate as {whose} majority vote with {times(saved)} fewer samples ({bounds})")
    if run.verifier:
        sentences.append(f"Its verifier's AUROC is {number(run.verifier.auroc)}")
    return ". ".join(sentences) + "."


def _accuracy(run: Evaluation, rule: str, at: int) -> str:
    return percent(run.accuracy[f"{rule}@{at}"].mean)


def _rival(task: TaskReport, row: Comparison) -> str:
    if row.against == row.run:
        return f"its own {RULE_NAMES[row.against_rule]}"
    against = next(e for e in task.evaluations if e.label == row.against)
    mean = _accuracy(against, row.against_rule, task.at)
    return f"{row.against}'s {RULE_NAMES[row.against_rule]}, the best rule of all other runs ({mean})"


def _difference(row: Comparison, rival: str) -> str:
    size = f"{in_points(row.mean)} points (95% {interval(row, signed=True)})"
    return f"{size} against {rival}" if row.low > 0 or row.high < 0 else f"no clear difference from {rival}: {size}"


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
