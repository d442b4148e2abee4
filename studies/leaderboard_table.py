"""The leaderboard's table and figure, from the result files of leaderboard.py alone.

A line is a method with a rule. Its curve is accuracy against all tokens of a problem: the prompt once, all solutions, and what is
read or written for verdicts. Between two k it is linear in log2 of the tokens; beyond its last k it stays where it is. Seconds
likewise. Intervals (95%) resample problems and seeds, both paired. Budgets are what plain RL's majority vote spends at SIZES.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from shared import COLOURS, Floats, save

from twofold.maths.stats import efficiency_ratio, resamples

RULES = {
    "maj": "majority", "best": "best", "weighted": "weighted", "posterior": "posterior",
    "maj_stop": "adaptive consistency", "posterior_stop": "posterior, stopping",
}  # fmt: skip
PAID = {"maj": "drawn", "pass": "drawn", "best": "judged", "weighted": "judged", "posterior": "judged"}
"""What is done for a rule, and measured for all such rules at once."""
SIZES, MIDDLE = (4, 16, 64), 16
DRAWS = 2000
NO_VERDICT = {"none", "rl", "rl2", "think", "long", "grpo", "mrt", "likelihood"}
"""Methods that were not trained to judge."""


@dataclass(frozen=True)
class Line:
    """A method with a rule: S seeds, P problems, K points, for ``ks`` samples each; a rule that stops when it is sure has no k.

    ``seconds_K`` are NaN where they were not measured.
    """

    method: str
    title: str
    rule: str
    ks: list[int]
    correct_S_P_K: Floats
    tokens_K: Floats
    seconds_K: Floats

    def at(self, budget: float, axis: str = "tokens") -> Floats | None:
        """Return [S, P] at a budget of tokens or seconds; None if one sample costs more, or the costs are not known."""
        cost_K = self.tokens_K if axis == "tokens" else self.seconds_K
        cost_K = np.maximum.accumulate(cost_K)  # seconds are noisy
        if not budget >= cost_K[0]:
            return None
        place = float(np.interp(math.log2(budget), np.log2(cost_K), np.arange(len(cost_K))))
        low = min(int(place), len(cost_K) - 2)
        return self.correct_S_P_K[:, :, low] * (low + 1 - place) + self.correct_S_P_K[:, :, low + 1] * (place - low)

    @property
    def last(self) -> float:
        return float(self.correct_S_P_K[:, :, -1].mean())

    def of(self, k: int) -> Floats:
        return self.correct_S_P_K[:, :, self.ks.index(k)]


def read(out: Path) -> tuple[list[Line], dict[str, list[dict[str, Any]]]]:
    """Return every line, and the results of each method. Raises ValueError if two were not given the same problems."""
    results: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(out.glob("*-*.json")):
        found = json.loads(path.read_text())
        results.setdefault(found["method"], []).append(found)
    if len({str([(r["seed"], r["problems"]) for r in seeds]) for seeds in results.values()}) != 1:
        raise ValueError(
            f"{out}: not all results are of the same seeds and problems; finish or remove those that differ"
        )
    lines = []
    for name, seeds in results.items():
        path = out / f"{name}.time.json"
        seconds = json.loads(path.read_text()) if path.exists() else {}
        for rule, first in seeds[0]["rules"].items():
            mine = [s["rules"][rule] for s in seeds]
            spent = seconds.get(PAID.get(rule, rule))
            lines.append(Line(
                name, seeds[0]["title"], rule, first["ks"], np.array([m["correct"] for m in mine]),
                np.mean([m["tokens"] for m in mine], axis=0), np.array(spent or [math.nan] * len(first["tokens"])),
            ))  # fmt: skip
    return lines, results


def interval(values_S_P: Floats) -> list[float]:
    """Return the ends of the mean's interval, from resampled seeds and problems: the same ones for every caller.

    >>> [round(x, 1) for x in interval(np.array([[0.0, 1.0] * 50] * 2))]  # the seeds are alike
    [0.4, 0.6]
    """
    seeds, problems = values_S_P.shape
    by_seed = resamples(seeds, DRAWS, seed=1) / seeds if seeds > 1 else np.ones((DRAWS, 1))
    means = np.einsum("ns,np,sp->n", by_seed, resamples(problems, DRAWS, seed=0) / problems, values_S_P, optimize=True)
    return np.quantile(means, [0.025, 0.975]).tolist()


def shown(values: Floats | None, sign: str = "") -> str:
    if values is None:
        return "–"
    mean, low, high = (100 * x for x in (values.mean(), *interval(values)))
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def fewer(line: Line, base: Line) -> str:
    """Return how many times fewer tokens a line needs for the best accuracy of ``base`` (see ``stats.efficiency_ratio``)."""
    nothing_P, grid = np.zeros(base.correct_S_P_K.shape[1]), sorted({*base.tokens_K.tolist(), *line.tokens_K.tolist()})
    both = [[nothing_P if (v := x.at(t)) is None else v.mean(axis=0) for t in grid] for x in (base, line)]
    ratio = efficiency_ratio(np.transpose(both[0]), np.transpose(both[1]), grid, n=500)
    return "never" if ratio.ratio is None else f"{ratio.ratio:.1f} [{ratio.low:.1f}, {ratio.high:.1f}]"


def yardstick(named: dict[tuple[str, str], Line]) -> tuple[Line, list[int]]:
    """Return the majority vote whose tokens are the budgets, and its sizes at them."""
    base = named.get(("rl", "maj")) or named["none", "maj"]
    return base, [k for k in SIZES if k in base.ks] or base.ks[-1:]


def standings(lines: Sequence[Line]) -> list[str]:
    """Return the rows of the leaderboard, best at the middle budget first."""
    named = {(x.method, x.rule): x for x in lines}
    base, sizes = yardstick(named)
    published = named.get(("rlv", "weighted"))
    middle = sizes.index(MIDDLE) if MIDDLE in sizes else -1
    tokens, seconds = ([cost[base.ks.index(k)] for k in sizes] for cost in (base.tokens_K, base.seconds_K))
    head = ["method", "rule", *(f"{t:.0f} tokens" for t in tokens), f"minus {base.title}, majority"]
    head += [
        "minus RL^V, weighted",
        "times fewer tokens",
        *(f"{1000 * s:.3g} ms" for s in seconds),
        "k with verdicts - 2k without",
    ]
    rows = []
    for x in lines:
        if x.rule == "pass" or (x.rule == "best" and x.last <= named[x.method, "weighted"].last):
            continue
        mine = x.at(tokens[middle])
        minus = [None if y is None or mine is None else mine - theirs for y in (base, published)
                 if y is None or (theirs := y.at(tokens[middle])) is not None]  # fmt: skip
        own = named[x.method, "maj"]
        k = max((k for k in x.ks if k <= MIDDLE and 2 * k in own.ks), default=0)
        twice = shown(x.of(k) - own.of(2 * k), "+") + f" k={k}" if k and x.rule != "maj" else ""
        cells = [x.title, RULES.get(x.rule, x.rule.replace("-{k}", "")), *(shown(x.at(t)) for t in tokens)]
        cells += [*(shown(m, "+") for m in minus), fewer(x, base)]
        cells += ["–" if (v := x.at(s, "seconds")) is None else f"{100 * v.mean():.1f}" for s in seconds]
        rows.append((-1.0 if mine is None else float(mine.mean()), "| " + " | ".join([*cells, twice]) + " |"))
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *(row for _, row in sorted(rows, reverse=True))]


def costs(lines: Sequence[Line], results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return the rows about trainings and verdicts: means over the seeds, and the range where it matters."""
    head = ["method", "steps", "engine tokens", "learnt tokens", "training s", "pass@1", "pass@n", "AUROC"]
    head += ["balanced accuracy", "ECE", "drawn per solution", "per verdict", "master keys accepted"]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, seeds in results.items():
        passed = next(x for x in lines if (x.method, x.rule) == (name, "pass"))
        cells = [seeds[0]["title"]]
        for key, form in (("steps", "{:.0f}"), ("computed", "{:,.0f}"), ("learnt", "{:,.0f}"), ("seconds", "{:.0f}")):
            cells.append(form.format(np.mean([s["training"][key] for s in seeds])) if seeds[0]["training"] else "")
        cells += [shown(passed.of(1)), f"{100 * passed.of(passed.ks[-1]).mean():.1f}"]
        for key in ("auroc", "balanced_accuracy", "ece"):
            of_S = [s[key] for s in seeds]
            cells.append(f"{np.mean(of_S):.2f} ({min(of_S):.2f} to {max(of_S):.2f})")
        cells += [f"{np.mean([s[key] for s in seeds]):.1f}" for key in ("drawn", "read")]
        keys = [s["keys"] for s in seeds if s["keys"]]
        cells.append(f"{sum(k[0] for k in keys)} of {sum(k[1] for k in keys)}" if keys else "")
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def draw(lines: Sequence[Line], path: Path) -> None:
    """Draw accuracy against tokens, and against seconds where they were measured: each method with a published rule (its weighted vote
    or best tournament, thin; without verdicts the majority vote or adaptive consistency, dashed), and the two that are best at
    few tokens with our posterior that stops (thick)."""
    from matplotlib.figure import Figure

    timed = any(np.isfinite(x.seconds_K).any() for x in lines)
    scales = {"all tokens of a problem": "tokens_K"} | ({"seconds of a problem": "seconds_K"} if timed else {})
    figure = Figure(figsize=(4 + 5 * len(scales), 5), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(scales), sharey=True))
    named = {(x.method, x.rule): x for x in lines}
    base, sizes = yardstick(named)
    few = base.tokens_K[base.ks.index(sizes[0])]
    stops = [x for x in lines if x.rule == "posterior_stop" and x.at(few) is not None]
    ahead = sorted(stops, key=lambda x: -float(np.mean(x.at(few))))[:2]
    for i, name in enumerate(dict.fromkeys(x.method for x in lines)):
        plans = [x for x in lines if x.method == name and "judge=" in x.rule]
        own = max(plans, key=lambda x: x.last) if plans else named.get((name, "weighted"))
        votes = [named[name, rule] for rule in ("maj", "maj_stop") if (name, rule) in named]
        vote = max(votes, key=lambda x: -1.0 if (v := x.at(few)) is None else float(v.mean()))
        drawn = [(vote, "--", 1.2)] if name in NO_VERDICT or own is None else [(own, "-", 1.2)]
        for x, style, width in [*drawn, *((y, "-", 3.0) for y in ahead if y.method == name)]:
            shares_K = 100 * x.correct_S_P_K.mean(axis=(0, 1))
            label = f"{x.title}, {RULES.get(x.rule, x.rule.replace('-{k}', ''))}"
            for ax, name_K in zip(axes, scales.values(), strict=True):
                ax.plot(getattr(x, name_K), shares_K, style, color=COLOURS[i % len(COLOURS)], linewidth=width,
                        marker="ox^sdv"[i // len(COLOURS) % 6], markersize=3, label=label)  # fmt: skip
    for ax, text in zip(axes, scales, strict=True):
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xlabel(text)
    axes[0].set_ylabel("accuracy, %")
    lines_of = sorted(axes[0].lines, key=lambda line: -line.get_ydata()[-1])  # as they end, from the top
    figure.legend(handles=lines_of, frameon=False, fontsize=8, loc="outside right center")
    save(figure, path)


def write(out: Path) -> None:
    """Write OUT/table.md and OUT/figure.png, and print the table."""
    lines, results = read(out)
    seeds, problems, _ = lines[0].correct_S_P_K.shape
    text = "\n".join([f"{seeds} seeds, {problems} problems.", "", *standings(lines), "", *costs(lines, results), ""])
    (out / "table.md").write_text(text)
    draw(lines, out / "figure.png")
    print(text)
