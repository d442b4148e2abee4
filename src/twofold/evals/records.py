"""The records of a report: ``tf.report`` returns a ``Report``, and ``report.json`` has the names of its attributes.

The parts are defined with the functions that make them: ``stats.Estimate`` (a mean and its interval), ``compare``, ``scores``,
``plans``, ``grid``, ``optimal`` and ``thinking``. docs/metrics.md explains every number.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twofold.evals.attacks import Accepted
from twofold.evals.compare import Comparison, SamplesSaved, TokensSaved
from twofold.evals.grid import Grid
from twofold.evals.optimal import OptimalTable
from twofold.evals.plans import Strategies
from twofold.evals.pools import Header
from twofold.evals.scores import ROC, CalibrationBin, Changed, Histogram, MeanScore
from twofold.evals.texts import Texts
from twofold.evals.thinking import Thinking
from twofold.maths.stats import Estimate, Quality

RULES = ("weighted", "maj", "best", "posterior")
"""The rules that answer; the oracle does not."""
ALIKE = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "system", "enable_thinking", "opening", "judge")
"""The settings of an evaluation in which runs should not differ if they are to be compared."""


@dataclass(frozen=True, slots=True)
class Level:
    """Accuracies by metric (``weighted@16``) on the problems of one ``meta["level"]``; in JSON they are keys like ``problems``."""

    level: str
    problems: int
    accuracy: dict[str, Estimate]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The numbers of one evaluation. ``accuracy`` and ``labels`` go by metric (``weighted@16``) and by label. ``attacks`` is the
    short form of an audit."""

    label: str
    directory: str
    header: Header
    rule: str
    problems: int
    samples: int
    ks: list[int]
    accuracy: dict[str, Estimate]
    labels: dict[str, float]
    at_token_limit: float
    tokens_per_sample: float
    judge_tokens_per_sample: float
    seconds_per_sample: float
    seconds: float
    levels: list[Level]
    strategies: Strategies | None
    grid: Grid | None
    optimal: OptimalTable | None
    thinking: Thinking | None
    verifier: Quality | None
    attacks: Accepted | None
    texts: Texts


@dataclass(frozen=True, slots=True)
class Judged(Evaluation):
    """An evaluation whose samples have scores, and what those are worth (see ``scores.Scores``)."""

    verifier: Quality
    calibration: list[CalibrationBin]
    histogram: Histogram
    roc: ROC
    mean_score: MeanScore
    changed: Changed


@dataclass(frozen=True, slots=True)
class TaskReport:
    """The evaluations of one task and split, compared at ``at`` samples; ``baseline`` is one of their labels."""

    task: str
    split: str
    baseline: str
    at: int
    evaluations: list[Evaluation]
    comparisons: list[Comparison]
    efficiency: list[SamplesSaved]
    tokens_saved: list[TokensSaved]
    headline: str

    def rivals(self, label: str) -> list[tuple[str, str]]:
        """Return (label, rule) of what one would choose beside a run, at ``at`` samples.

        The first is the best rule of all other runs, a choice after the fact that flatters it. The second is the baseline by the
        rule that it answers with or, if the first is the baseline's, the best rule of the others. A single run's rival is its own
        majority vote.
        """
        others = [e for e in self.evaluations if e.label != label]
        if not others:
            return [(label, "maj")]
        first = self._best(others)
        base = [e for e in others if e.label == self.baseline]
        rest = [e for e in others if e.label != self.baseline]
        second = [self._best(rest)] if rest and first[0] == self.baseline else [(e.label, e.rule) for e in base]
        return list(dict.fromkeys([first, *second]))

    def _best(self, runs: Sequence[Evaluation]) -> tuple[str, str]:
        """Return (label, rule) of the highest accuracy."""
        pairs = [(e, rule) for e in runs for rule in RULES if f"{rule}@{self.at}" in e.accuracy]
        best, rule = max(pairs, key=lambda pair: pair[0].accuracy[f"{pair[1]}@{self.at}"].mean)
        return best.label, rule

    @property
    def score(self) -> str:
        """What the scores of all judged evaluations are called: "P(Yes)", or "score" unless each has that (see ``Header.score``)."""
        names = {e.header.score for e in self.evaluations if e.verifier}
        return "score" if "score" in names else "P(Yes)"

    @property
    def main(self) -> list[Comparison]:
        """The comparisons that a reader needs: what verdicts add to each run, and each run by its own rule against its rivals."""
        rule = {e.label: e.rule for e in self.evaluations}
        wanted = {run: [(run, "maj"), *self.rivals(run)] for run in rule}
        return [c for c in self.comparisons if c.rule == rule[c.run] and (c.against, c.against_rule) in wanted[c.run]]

    @property
    def unlike(self) -> list[str]:
        """What differs in how the runs were sampled and judged, as in "temperature 1.0 (base, rl), 0.7 (rlv)"."""
        lines = []
        for name in ALIKE:
            values: dict[str, list[str]] = {}
            for e in self.evaluations:
                value = getattr(e.header, name)
                values.setdefault("none" if value is None else repr(value), []).append(e.label)
            if len(values) > 1:
                lines.append(f"{name} " + ", ".join(f"{value} ({', '.join(runs)})" for value, runs in values.items()))
        return lines


@dataclass(frozen=True, slots=True)
class Curve:
    """The values of a training metric, and the steps at which it was measured."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True, slots=True)
class TrainingCurves:
    """The curves of one run by the metric's name in ``metrics.jsonl``."""

    label: str
    metrics: dict[str, Curve]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a report says. An accuracy is ``report.tasks[0].evaluations[0].accuracy["weighted@16"].mean``."""

    headline: str
    labels: list[str]
    tasks: list[TaskReport]
    training: list[TrainingCurves]


def fields_of(record: Any) -> dict[str, Any]:
    """Return the fields of a record by name; the values stay as they are."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def as_json(value: Any) -> Any:
    """Return what strict JSON can hold: records become objects, NaN and infinity null."""
    if isinstance(value, Level):
        return {"level": value.level, "problems": value.problems, **as_json(value.accuracy)}
    if dataclasses.is_dataclass(value):
        value = fields_of(value)
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
