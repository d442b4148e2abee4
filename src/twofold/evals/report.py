"""From saved pools to one page: every rule at every k, the verifier's quality, and how sure the differences are.

Needs no model and no torch: ``report`` reads JSONL and writes ``report.html`` (one self-contained file) and
``report.json`` (the same numbers). All intervals are 95%, from resampling whole problems. Metric names are the usual
ones: ``pass@k`` (an oracle: *some* sample is correct), ``maj@k``, ``best@k`` and ``weighted@k``.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold.evals import figures, grid, plans
from twofold.evals import optimal as choice
from twofold.evals.pools import HEADER, POOLS, Header, PoolError, read_header, read_pools
from twofold.evals.render import html, interval, number, percent, points, print_table, times
from twofold.maths import stats, votes
from twofold.text.extract import canonical
from twofold.types import Pool

__all__ = ["measure", "print_table", "report"]

Floats = NDArray[np.float64]
Record = dict[str, Any]

AT = 16  # runs are compared at this number of samples, or the nearest power of two that all of them have
RULES = {
    "pass": "pass@k",
    "maj": "majority",
    "best": "best",
    "weighted": "weighted",
}  # metric name: name in votes.curves
EXAMPLES = 4

_canonical = cache(canonical)  # the same few answers come thousands of times


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation directory, read and measured; ``curves_P_K[rule]`` is the accuracy per problem and k of ``ks``."""

    label: str
    run: Path
    directory: Path
    header: Header
    pools: list[Pool]
    ks: list[int]
    curves_P_K: dict[str, Floats]

    @property
    def rule(self) -> str:
        """How this run answers, decided before looking at results: weighted vote if it is judged, else majority."""
        return "weighted" if "weighted" in self.curves_P_K else "maj"

    def curve(self, rule: str, ks: Sequence[int], ids: Sequence[str]) -> Floats:
        """[len(ids), len(ks)] accuracies of these problems at these k."""
        row = {pool.problem.id: i for i, pool in enumerate(self.pools)}
        return self.curves_P_K[rule][np.ix_([row[i] for i in ids], [self.ks.index(k) for k in ks])]


def report(
    runs: list[Path],
    out: Path,
    baseline: str | None = None,
    caps: Sequence[int] = (),
    optimal: bool = False,
) -> Record:
    """Write ``out/report.html`` and ``out/report.json`` about the evaluations found in ``runs``; returns the numbers.

    See ``measure`` for the arguments, the numbers and the errors.
    """
    result = measure(runs, baseline, caps, optimal)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    (out / "report.html").write_text(html(result), encoding="utf-8")
    return result


def measure(runs: list[Path], baseline: str | None = None, caps: Sequence[int] = (), optimal: bool = False) -> Record:
    """Everything a report says, as plain numbers and strings (undefined, such as an AUROC of one class: None).

    Each path is an evaluation directory or holds some under ``evals/*/``. Evaluations of one task and split are
    compared with each other; ``baseline`` names the one that efficiency is measured against (default: the first).
    An accuracy is found as ``result["tasks"][i]["evaluations"][j]["accuracy"]["weighted@16"]["mean"]``.
    ``caps`` (numbers of tokens) ask for each evaluation's grid of caps and samples (``grid``), ``optimal`` for its
    compute-optimal choice (``optimal``).

    Raises PoolError for missing or malformed files and ValueError for a baseline that is not among the evaluations, and
    for a grid or a choice that cannot be had.
    """
    evaluations = load(runs)
    labels = list(dict.fromkeys(e.label for e in evaluations))
    if baseline is not None and baseline not in labels:
        raise ValueError(f"no evaluation is named {baseline!r} (the baseline); found {', '.join(labels)}")
    sections: dict[tuple[str, str], list[Evaluation]] = {}
    for evaluation in evaluations:
        sections.setdefault((evaluation.header.task, evaluation.header.split), []).append(evaluation)
    tasks = [_task(section, baseline, caps, optimal) for section in sections.values()]
    training = _training(evaluations)
    result: Record = _plain({"headline": tasks[0]["headline"], "labels": labels, "tasks": tasks, "training": training})
    return result


def load(runs: Sequence[Path]) -> list[Evaluation]:
    """Find, read and measure evaluations. Equal names within one task are told apart by the run's directory."""
    directories: list[Path] = []
    for path in runs:
        patterns = (HEADER, f"evals/*/{HEADER}", f"*/evals/*/{HEADER}")  # an evaluation, a run, a folder of runs
        found = next((f for p in patterns if (f := sorted(h.parent for h in path.glob(p)))), None)
        if not found:
            raise PoolError(f"{path}: no evaluation here: none of {', '.join(patterns)}")
        directories += found
    headers = {directory.resolve(): read_header(directory) for directory in directories}
    run_of = {d: d.parent.parent if d.parent.name == "evals" else d for d in headers}
    names = Counter((h.task, h.split, h.name) for h in headers.values())
    labels = {
        d: h.name if names[h.task, h.split, h.name] == 1 else f"{run_of[d].name}/{h.name}" for d, h in headers.items()
    }
    seen: dict[tuple[str, str, str], Path] = {}
    for d, h in headers.items():
        if (other := seen.setdefault((h.task, h.split, labels[d]), d)) != d:
            raise PoolError(f"{d} and {other} are both named {labels[d]!r}: change `name` in one {HEADER}")
    return [_measure(labels[d], run_of[d], d, header) for d, header in headers.items()]


def _measure(label: str, run: Path, directory: Path, header: Header) -> Evaluation:
    pools = read_pools(directory / POOLS)
    if len(pools) < 2:
        raise PoolError(f"{directory / POOLS}: {len(pools)} problems; an interval over problems needs at least 2")
    judged = any(score is not None for pool in pools for score in pool.scores)
    ks = votes.ks(header.n)
    rows = []
    for pool in pools:
        where = f"{directory / POOLS}: problem {pool.problem.id!r}"
        if len(pool.answers) != header.n:
            raise PoolError(f"{where} has {len(pool.answers)} samples, {HEADER} says n = {header.n}")
        if judged and any(s is None and a is not None for s, a in zip(pool.scores, pool.answers, strict=True)):
            raise PoolError(f"{where} has an answer without a score, though others were judged: judge all or none")
        scores = [0.0 if score is None else score for score in pool.scores] if judged else None
        rows.append(votes.curves(_classes(pool), [g.label == "correct" for g in pool.grades], scores, ks))
    curves = {rule: np.array([row[name] for row in rows]) for rule, name in RULES.items() if name in rows[0]}
    return Evaluation(label, run, directory, header, pools, ks, curves)


def _task(section: list[Evaluation], baseline: str | None, caps: Sequence[int], optimal: bool) -> Record:
    """Everything about the evaluations of one task and split."""
    base = next((e for e in section if e.label == baseline), section[0])
    ordered = [base, *(e for e in section if e is not base)]
    common = set.intersection(*(set(e.ks) for e in section))
    at = min(common, key=lambda k: (abs(math.log2(k / AT)), -k))
    task: Record = {
        "task": base.header.task,
        "split": base.header.split,
        "baseline": base.label,
        "at": at,
        "evaluations": [_describe(e, at, caps, optimal) for e in section],
        "comparisons": [row for e in ordered for row in _within(e, at)]
        + [row for a, b in itertools.combinations(ordered, 2) for row in _between(a, b, at)],
        "efficiency": [row for e in ordered for row in _efficiency(base, e)],
    }
    return task | {"headline": _headline(task)}


def _describe(e: Evaluation, at: int, caps: Sequence[int], optimal: bool) -> Record:
    """The numbers of one evaluation."""
    accuracy: Record = {}
    for rule, curve_P_K in e.curves_P_K.items():
        for k, *point in zip(e.ks, *stats.cluster_bootstrap(curve_P_K), strict=True):
            accuracy[f"{rule}@{k}"] = dict(zip(("mean", "low", "high"), point, strict=True))
    samples = len(e.pools) * e.header.n
    labels = Counter(grade.label for pool in e.pools for grade in pool.grades)
    at_limit = sum(tokens >= e.header.max_tokens for pool in e.pools for tokens in pool.tokens)
    return {
        "label": e.label,
        "directory": e.directory.name,
        "header": dataclasses.asdict(e.header),
        "rule": e.rule,
        "problems": len(e.pools),
        "samples": e.header.n,
        "ks": e.ks,
        "accuracy": accuracy,
        "labels": {label: labels[label] / samples for label in ("correct", "wrong", "no_answer", "timeout", "error")},
        "at_token_limit": at_limit / samples,
        "tokens_per_sample": sum(sum(pool.tokens) for pool in e.pools) / samples,
        "judge_tokens_per_sample": sum(sum(pool.judge_tokens) for pool in e.pools) / samples,
        "seconds_per_sample": sum(pool.seconds for pool in e.pools) / samples,
        "seconds": e.header.seconds,
        "levels": _levels(e, at),
        "strategies": plans.measure(e.directory, e.pools, e.header),
        "grid": grid.measure(e.pools, e.header, caps, RULES[e.rule]) if caps else None,
        "optimal": choice.measure(e.pools, choice.candidates(e.directory, e.header)) if optimal else None,
        **(_verifier(e) if e.rule == "weighted" else {"verifier": None}),
    }


def _verifier(e: Evaluation) -> Record:
    """Quality of the scores, on samples that have an answer (only they can win a vote) and could be graded."""
    judged = [
        (score, grade.label == "correct", pool.problem.id)
        for pool in e.pools
        for answer, score, grade in zip(pool.answers, pool.scores, pool.grades, strict=True)
        if answer is not None and score is not None and grade.label in ("correct", "wrong")
    ]
    if len({problem for _, _, problem in judged}) < 2:
        return {"verifier": None}
    scores = np.array([score for score, _, _ in judged])
    correct = np.array([right for _, right, _ in judged])
    edges = np.linspace(0, 1, 21)
    both_classes = correct.any() and not correct.all()  # otherwise there is no ROC curve
    thresholds = [np.inf, *np.unique(np.quantile(scores, np.linspace(0, 1, 201)))[::-1]] if both_classes else []
    return {
        "verifier": dataclasses.asdict(stats.verifier_quality(scores, correct, [problem for _, _, problem in judged])),
        "calibration": [
            {"score": score, "accuracy": accuracy, "count": count}
            for score, accuracy, count in stats.calibration_bins(scores, correct, bins=15)
        ],
        "histogram": {
            "edges": edges,
            "correct": np.histogram(scores[correct], edges)[0],
            "wrong": np.histogram(scores[~correct], edges)[0],
        },
        "roc": {
            "false_yes": [np.mean(scores[~correct] >= t) for t in thresholds],
            "true_yes": [np.mean(scores[correct] >= t) for t in thresholds],
        },
        "mean_score": {
            label: np.mean(of_label) if (of_label := _scores_of(e.pools, label)) else None
            for label in ("correct", "wrong", "no_answer")
        },
        "changed": _changed(e),
    }


def _scores_of(pools: Sequence[Pool], label: str) -> list[float]:
    pairs = ((s, g) for pool in pools for s, g in zip(pool.scores, pool.grades, strict=True))
    return [score for score, grade in pairs if score is not None and grade.label == label]


def _changed(e: Evaluation) -> Record:
    """Problems on which the scores turned the vote of all samples from wrong to right ("fixed"), or back ("broken")."""
    examples: dict[str, list[Record]] = {"fixed": [], "broken": []}
    for pool in e.pools:
        classes = _classes(pool)
        right = {a for a, g in zip(classes, pool.grades, strict=True) if g.label == "correct"}
        scores = [score or 0.0 for score in pool.scores]
        majority, weighted = votes.choose(classes, None, "majority"), votes.choose(classes, scores, "weighted")
        if (majority in right) != (weighted in right):
            examples["fixed" if weighted in right else "broken"].append(
                {
                    "id": pool.problem.id,
                    "question": pool.problem.question[:600],
                    "answer": pool.problem.answer,
                    "majority": majority,
                    "weighted": weighted,
                    "solved": sum(grade.label == "correct" for grade in pool.grades) / len(pool.grades),
                }
            )
    return {
        "fixed": len(examples["fixed"]),
        "broken": len(examples["broken"]),
        "examples": {kind: rows[:EXAMPLES] for kind, rows in examples.items()},
    }


def _levels(e: Evaluation, at: int) -> list[Record]:
    """Accuracy by ``problem.meta["level"]``; a level of a single problem has no interval."""
    ids: dict[str, list[str]] = {}
    for pool in e.pools:
        if "level" in pool.problem.meta:
            ids.setdefault(str(pool.problem.meta["level"]), []).append(pool.problem.id)
    rows = []
    for level in sorted(ids, key=lambda name: (len(name), name) if name.isdigit() else (0, name)):
        row: Record = {"level": level, "problems": len(ids[level])}
        for rule, k in [("pass", 1), *((rule, at) for rule in e.curves_P_K if rule != "pass")]:
            values_P = e.curve(rule, [k], ids[level])[:, 0]
            low = high = None
            if len(values_P) > 1:
                _, low, high = stats.cluster_bootstrap(values_P)
            row[f"{rule}@{k}"] = {"mean": values_P.mean(), "low": low, "high": high}
        rows.append(row)
    return rows


def _within(e: Evaluation, at: int) -> list[Record]:
    """Differences of one run's rules from its own majority vote."""
    ids = [pool.problem.id for pool in e.pools]
    return [_compare(e, rule, e, "maj", at, ids) for rule in _rules(e, at) if rule != "maj"]


def _between(a: Evaluation, b: Evaluation, at: int) -> list[Record]:
    """Differences b - a on the problems both have, for every pair of their rules."""
    ids = _common(a, b)
    if len(ids) < 2:
        return []
    return [_compare(b, of_b, a, of_a, at, ids) for of_b, of_a in itertools.product(_rules(b, at), _rules(a, at))]


def _rules(e: Evaluation, at: int) -> list[str]:
    """The rules that are compared: weighted and majority vote, and best-of-n where it comes out highest."""
    mean = {
        rule: e.curves_P_K[rule][:, e.ks.index(at)].mean()
        for rule in ("weighted", "maj", "best")
        if rule in e.curves_P_K
    }
    return [rule for rule in mean if rule != "best" or mean[rule] == max(mean.values())]


def _compare(b: Evaluation, rule_b: str, a: Evaluation, rule_a: str, k: int, ids: Sequence[str]) -> Record:
    difference = stats.paired_bootstrap(b.curve(rule_b, [k], ids)[:, 0], a.curve(rule_a, [k], ids)[:, 0])
    names = {"run": b.label, "rule": rule_b, "against": a.label, "against_rule": rule_a}
    return {**names, "k": k, "problems": len(ids), **dataclasses.asdict(difference)}


def _efficiency(base: Evaluation, e: Evaluation) -> list[Record]:
    """Samples the baseline needs / samples this run needs, against the baseline's majority and its best rule."""
    ids, ks = _common(base, e), [k for k in e.ks if k in base.ks]
    strategies = [rule for rule in base.curves_P_K if rule != "pass"]
    best = max(strategies, key=lambda rule: base.curve(rule, ks, ids).mean(axis=0).max()) if len(ids) > 1 else "maj"
    rows = []
    for rule in dict.fromkeys(("maj", best)):
        if len(ids) < 2 or (base is e and rule == e.rule):
            continue
        ratio = stats.efficiency_ratio(base.curve(rule, ks, ids), e.curve(e.rule, ks, ids), ks)
        if ratio.target <= 0:  # the baseline is right on next to nothing: no accuracy to reach sooner
            continue
        names = {"run": e.label, "rule": e.rule, "baseline": base.label, "baseline_rule": rule}
        at_least = ratio.ours_k == ks[0]
        rows.append(
            {**names, "is_best_rule": rule == best, "at_least": at_least, "max_k": ks[-1], **dataclasses.asdict(ratio)}
        )
    return rows


def _common(a: Evaluation, b: Evaluation) -> list[str]:
    """Ids of the problems both have. Raises PoolError if one id stands for two different questions."""
    question = {pool.problem.id: pool.problem.question for pool in b.pools}
    shared = [pool.problem for pool in a.pools if pool.problem.id in question]
    for problem in shared:
        if question[problem.id] != problem.question:
            raise PoolError(f"problem {problem.id!r} is a different question in {a.directory} and {b.directory}")
    return [problem.id for problem in shared]


def _headline(task: Record) -> str:
    """The result in one or two sentences: the best other run against the baseline's majority vote, or one run's own."""
    at, evaluations, base = task["at"], task["evaluations"], task["baseline"]
    others = [e for e in evaluations if e["label"] != base] or evaluations
    best = max(others, key=lambda e: e["accuracy"][f"{e['rule']}@{at}"]["mean"])
    point = best["accuracy"][f"{best['rule']}@{at}"]
    how = "weighted" if best["rule"] == "weighted" else "majority"
    text = (
        f"{best['label']} answers {percent(point['mean'])} of the {best['problems']} {task['task']} problems correctly "
        f"by {how} vote over {at} samples, {percent(best['accuracy']['pass@1']['mean'])} with one"
    )
    key = {"run": best["label"], "rule": best["rule"], "against": base, "against_rule": "maj"}
    row = next((r for r in task["comparisons"] if key.items() <= r.items()), None)
    if row is None:
        text += "."
    else:
        name = "its own majority vote" if base == best["label"] else f"{base}'s majority vote"
        size = f"{points(row['mean'])} points (95% {interval(row, signed=True)})"
        clear = row["low"] > 0 or row["high"] < 0
        text += f": {size} against {name}." if clear else f", no clear difference from {name}: {size}."
        ratio = next((r for r in task["efficiency"] if r["run"] == best["label"] and r["baseline_rule"] == "maj"), None)
        if clear and row["mean"] > 0 and ratio and ratio["ratio"] is not None:
            bounds = f"95% [{ratio['low']:.1f}, {ratio['high']:.1f}]"
            text += f" For the same accuracy it needs {times(ratio)} fewer samples ({bounds})."
    if best["verifier"]:
        text += f" Its verifier's AUROC is {number(best['verifier']['auroc'])}."
    return text


def _training(evaluations: Sequence[Evaluation]) -> list[Record]:
    """Training curves of the runs that have a ``metrics.jsonl``; the last line may still be in writing."""
    series = []
    for run, label in {e.run: e.label for e in evaluations}.items():
        path = run / "metrics.jsonl"
        if not path.is_file():
            continue
        metrics: dict[str, Record] = {}
        for number_of_line, line in enumerate(path.read_text().split("\n")[:-1], start=1):
            try:
                row = json.loads(line)
                step = row["step"]
            except (ValueError, KeyError, TypeError) as err:
                raise PoolError(f"{path}:{number_of_line}: not a JSON object with a `step`") from err
            for metric in figures.TRAINING_METRICS.keys() & row.keys():
                if row[metric] is not None and math.isfinite(row[metric]):
                    metrics.setdefault(metric, {"steps": [], "values": []})
                    metrics[metric]["steps"].append(step)
                    metrics[metric]["values"].append(row[metric])
        if metrics:
            series.append({"label": label, "metrics": metrics})
    return series


def _classes(pool: Pool) -> list[str | None]:
    """Answers as voting classes: equivalent spellings become one string."""
    return [None if answer is None else _canonical(answer) for answer in pool.answers]


def _plain(value: Any) -> Any:
    """Numpy to plain numbers, NaN and infinity to None: what strict JSON can hold."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
