"""Compare MRT with its baselines: accuracy at token budgets, regret, tokens at equal accuracy.

    python studies/mrt.py configs/mrt-sums.toml                                     # every method, three seeds; then the tables
    python studies/mrt.py configs/mrt-sums.toml --methods grpo rl --seeds 7 --set optim.lr=2e-4 --split train --out runs/try

The budget is ``rollout.max_tokens`` of the config. For every method and seed a model is trained from one start (``warm.py``)
and measured (``evals/probes.py``): thoughts may be twice the budget long, and each is stopped at every budget of SHARES and
after every episode. OUT/METHOD-SEED.jsonl has a line per problem; a model whose file exists is not run again. Seeds are
averaged per problem, and intervals (95%) resample problems.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import warm
from shared import COLOURS, Floats, band, difference, interval, save

from twofold import run, toml, training
from twofold.evals.probes import Prefix, Probing, Thought, probed, read_thoughts
from twofold.maths.regret import normalised_regret, progress, tokens_to_reach
from twofold.maths.stats import cluster_bootstrap, resamples
from twofold.types import Sampling

SIX = "recipe.rollouts=6"
METHODS = {
    "base": ("the start", []),
    "grpo": ("GRPO", ["recipe.method=grpo", SIX]),
    "online": ("MRT-online", ["recipe.method=online"]),
    "to_go": ("MRT-online, to go", ["recipe.method=online", "recipe.reward_to_go=true", "recipe.alpha=4"]),
    "rl": ("MRT (RL)", ["recipe.method=rl"]),
    "baseline": ("MRT (RL), stops as baseline", ["recipe.method=rl", "recipe.bonus=baseline", "recipe.branches=8"]),
    "mrt_star": ("MRT (STaR)", ["recipe.method=mrt_star"]),
    "star": ("STaR", ["recipe.method=star", SIX]),
    "length": ("GRPO + length penalty", ["recipe.method=length", SIX]),
}
"""In the order in which they are run. Baselines draw six rollouts where MRT draws four and its probes or branches, which is
about as many tokens."""
SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 1, 1.25, 1.5, 2)
BATCH = 50
SLACK = 0.005
"""Tokens are compared at GRPO's best accuracy minus half a point: on a plateau the very best point is luck."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="options to change for all methods, such as optim.lr=2e-4")
    parser.add_argument(
        "--warm", type=int, default=100, help="steps of the common start (warm.py); 0: start from the config's model"
    )
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--thoughts", type=int, default=2, help="thoughts per problem")
    parser.add_argument("--answers", type=int, default=2, help="answers forced wherever a thought is stopped")
    parser.add_argument("--split", default="test", help="'train' to choose settings; use seeds other than 0 then")
    parser.add_argument("--out", type=Path, default=Path("runs/mrt"))
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    base = toml.override(toml.load(run.Config, args.config), args.set)
    if args.warm:
        base = toml.override(base, [f"model={warm.start(base, args.warm, args.out / 'warm')}"])
    budget = base.rollout.max_tokens
    for seed in args.seeds:
        for method in sorted(args.methods, key=list(METHODS).index):
            if not (args.out / f"{method}-{seed}.jsonl").exists():
                one(method, seed, base, args)
    arms = {m: Arm.read(args.out, m, args.seeds, budget) for m in args.methods}
    print(f"\n{len(args.seeds)} seeds, {len(next(iter(arms.values())).natural_P)} problems, budget {budget} tokens\n")
    table(arms, budget)
    if "grpo" in arms:
        against(arms, "grpo", budget)
    episodes(args.out, args.methods, args.seeds)
    if args.figure:
        draw(arms, args.figure, budget)


def one(method: str, seed: int, base: run.Config, args: argparse.Namespace) -> None:
    """Train and measure; the file appears when it is complete."""
    folder, model = args.out / f"{method}-{seed}", base.model
    began = time.monotonic()
    if options := METHODS[method][1]:
        config = toml.override(base, [*options, f"train.seed={seed}"])
        model = str(training.train(config, folder, resume=(folder / "config.toml").exists(), title=f"{method} {seed}"))
    trained = time.monotonic()
    thoughts = look(model, base, args, seed)
    args.out.mkdir(parents=True, exist_ok=True)
    part = args.out / f"{method}-{seed}.part"
    rows = ({"id": problem, "thoughts": list(map(asdict, mine))} for problem, mine in thoughts.items())
    part.write_text("".join(json.dumps(row) + "\n" for row in rows))
    part.rename(part.with_suffix(".jsonl"))
    print(
        f"{method} {seed}: {trained - began:.0f} s to train, {time.monotonic() - trained:.0f} s to measure", flush=True
    )


def look(name: str, config: run.Config, args: argparse.Namespace, seed: int) -> dict[str, list[Thought]]:
    model, recipe, task = run.load(name), config.recipe, run.make_task(config.task)
    budgets = budgets_of(config.rollout.max_tokens)
    temperature, n = config.rollout.temperature, args.thoughts
    sampling = Sampling(n, temperature, max_tokens=max(budgets), stop=model.chat.stop, seed=seed)
    probing = Probing(answers=args.answers, budgets=budgets, prover=recipe.prover, episodes=recipe.episodes)
    problems = [task.problem(args.split, i) for i in range(args.problems)]
    found: dict[str, list[Thought]] = {}
    for i in range(0, len(problems), BATCH):
        some = problems[i : i + BATCH]
        thoughts = probed(model.engine, model.chat, task, some, probing, sampling)
        found |= {p.id: thoughts[j * n : (j + 1) * n] for j, p in enumerate(some)}
    return found


def budgets_of(most: int) -> tuple[int, ...]:
    return tuple(round(share * most) for share in SHARES)


@dataclass(frozen=True)
class Arm:
    """One method, averaged over seeds and thoughts: P problems, B budgets (SHARES), C curves along which regret is taken: the
    ends of episodes, as published, and the budgets, which do not depend on where a thought is cut.

    ``natural_P`` is the accuracy within the budget with nothing forced. ``seconds`` and ``tokens`` (in updates) are those of
    one training.
    """

    natural_P: Floats
    correct_P_B: Floats
    spent_P_B: Floats
    regret_P_C: Floats
    length_P: Floats
    each: list[tuple[float, float, float]]
    """Per seed: accuracy within the budget, J at the budget, regret at the budget."""
    seconds: float
    tokens: float

    @classmethod
    def read(cls, out: Path, method: str, seeds: Sequence[int], budget: int) -> Arm:
        rows = [by_problem(read_thoughts(out / f"{method}-{seed}.jsonl"), budget) for seed in seeds]
        mean = np.mean(rows, axis=0)
        size = len(SHARES)
        at = 1 + SHARES.index(1)
        each = [(float(r[:, 0].mean()), float(r[:, at].mean()), float(r[:, 1 + 2 * size].mean())) for r in rows]
        logs = [out / f"{method}-{seed}" / "metrics.jsonl" for seed in seeds]
        steps = [json.loads(line) for log in logs if log.exists() for line in log.read_text().splitlines()]
        seconds, tokens = (sum(s.get(name, 0) for s in steps) / len(seeds) for name in ("step_time", "num_tokens"))
        return cls(
            mean[:, 0], mean[:, 1 : 1 + size], mean[:, 1 + size : 1 + 2 * size],
            mean[:, 1 + 2 * size : 3 + 2 * size], mean[:, -1], each, seconds, tokens,
        )  # fmt: skip

    def curve(self, weights_P: Floats) -> list[tuple[float, float]]:
        """Return (tokens spent, accuracy) at each budget, without the budgets that no thought is long enough to use."""
        total = weights_P.sum()
        spent, correct = weights_P @ self.spent_P_B / total, weights_P @ self.correct_P_B / total
        points = list(zip(spent.tolist(), correct.tolist(), strict=True))
        return [p for i, p in enumerate(points) if i == 0 or p[0] > points[i - 1][0] + 1e-9]


def by_problem(thoughts: dict[str, list[Thought]], budget: int) -> Floats:
    """Return [problems, numbers]: natural accuracy, J at each budget, tokens spent at each budget, both regrets, length."""

    def numbers(t: Thought) -> list[float]:
        def spent(p: Prefix) -> float:  # the prompt left out
            return p.tokens + p.length - t.prompt

        natural = float(t.label == "correct" and t.tokens - t.prompt <= budget)
        stops = [t.at(b) for b in budgets_of(budget)]
        regret = [
            normalised_regret(sorted({spent(p): p.value for p in some}.items()), budget) for some in (t.own, stops)
        ]
        return [natural, *(p.value for p in stops), *map(spent, stops), *regret, float(t.own[-1].end)]

    return np.array([np.mean([numbers(t) for t in thoughts[name]], axis=0) for name in sorted(thoughts)])


def table(arms: dict[str, Arm], budget: int) -> None:
    head = ["method", "pass@1, nothing forced", *(f"{s}x budget" for s in (0.5, 1, 2))]
    head += ["regret, episodes", "regret, budgets", "thought, tokens", "training, s", "tokens learnt from"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for method, arm in arms.items():
        cells = [interval(arm.natural_P), *(interval(arm.correct_P_B[:, SHARES.index(s)]) for s in (0.5, 1, 2))]
        cells += [interval(arm.regret_P_C[:, c], 1, 3) for c in (0, 1)]
        cells += [f"{arm.length_P.mean():.0f}", f"{arm.seconds:.0f}", f"{arm.tokens / 1000:.0f}k"]
        print("| " + " | ".join([METHODS[method][0], *cells]) + " |")


def against(arms: dict[str, Arm], other: str, budget: int) -> None:
    """Print paired differences to ``other``, the gain over the base as a multiple of its gain, and tokens at its accuracy."""
    theirs = arms[other]
    head = [f"minus {METHODS[other][0]}", "pass@1", *(f"{s}x budget" for s in (0.5, 1, 2)), "regret, episodes"]
    head += [
        "regret, budgets",
        "gain in pass@1 over its gain",
        "tokens, times fewer",
        "per seed: pass@1",
        "1x",
        "regret",
    ]
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for method, arm in arms.items():
        if method == other:
            continue
        at = [SHARES.index(s) for s in (0.5, 1, 2)]
        pairs = [(arm.natural_P, theirs.natural_P), *((arm.correct_P_B[:, i], theirs.correct_P_B[:, i]) for i in at)]
        cells = [difference(a, b) for a, b in pairs]
        cells += [difference(arm.regret_P_C[:, c], theirs.regret_P_C[:, c], 1, 3) for c in (0, 1)]
        cells.append(gains(arm, theirs, arms["base"]) if "base" in arms and method != "base" else "")
        cells.append(efficiency(arm, theirs))
        for i, (scale, digits) in enumerate([(100, 1), (100, 1), (1, 3)]):
            deltas = [scale * (a[i] - b[i]) for a, b in zip(arm.each, theirs.each, strict=True)]
            cells.append(", ".join(f"{d:+.{digits}f}" for d in deltas))
        print("| " + " | ".join([METHODS[method][0], *cells]) + " |")


def resampled(problems: int, ratio: Callable[[Floats], float]) -> str:
    """Return a ratio of means with its interval over problems. ``ratio`` takes the problems' weights."""
    drawn = resamples(problems, 1000, seed=0).astype(float)
    low, high = np.quantile([ratio(w) for w in drawn], [0.025, 0.975], method="nearest")
    return f"{ratio(np.ones(problems)):.2f} [{low:.2f}, {high:.2f}]"


def gains(arm: Arm, theirs: Arm, base: Arm) -> str:
    """Return our gain in pass@1 over the base as a multiple of theirs; infinite where they gained nothing."""

    def ratio(w_P: Floats) -> float:
        a, b, start = (float(w_P @ x.natural_P) for x in (arm, theirs, base))
        return (a - start) / (b - start) if b > start else math.inf

    return resampled(len(base.natural_P), ratio)


def efficiency(arm: Arm, theirs: Arm) -> str:
    """Return how many times fewer tokens reach the other's best accuracy minus SLACK; 0 in a resample that never reaches it."""

    def ratio(w_P: Floats) -> float:
        ours, other = arm.curve(w_P), theirs.curve(w_P)
        target = max(a for _, a in other) - SLACK
        return tokens_to_reach(other, target) / tokens_to_reach(ours, target)

    text = resampled(len(arm.natural_P), ratio)
    return "not reached" if text.startswith("0.00 ") else text


def episodes(out: Path, methods: Sequence[str], seeds: Sequence[int]) -> None:
    """Print the mean J after 0, 1, 2 ... episodes, over the thoughts that have as many, and the shares of progress."""
    print("\n| method | episodes | J after 0, 1, 2 ... (thoughts) | progress > 0, = 0, < 0 | tokens per episode |")
    print("|---|---|---|---|---|")
    for method in methods:
        read = [read_thoughts(out / f"{method}-{seed}.jsonl") for seed in seeds]
        thoughts = [t for one in read for mine in one.values() for t in mine]
        rows = [[p.value for p in t.own] for t in thoughts]
        longest = max(map(len, rows))
        after = [[r[j] for r in rows if len(r) > j] for j in range(longest)]
        js = ", ".join(f"{np.mean(values):.2f} ({len(values)})" for values in after if len(values) >= 20)
        steps = np.array([g for r in rows if len(r) > 1 for g in progress(r)])
        shares = ", ".join(f"{100 * np.mean(x):.0f}%" for x in (steps > 0, steps == 0, steps < 0))
        size = sum(t.own[-1].end for t in thoughts) / len(steps)
        print(f"| {METHODS[method][0]} | {len(steps) / len(rows):.2f} | {js} | {shares} | {size:.0f} |")


def draw(arms: dict[str, Arm], path: Path, budget: int) -> None:
    """Draw accuracy against tokens spent, budget by budget, a panel per method with its 95% interval over problems.

    The large mark is the budget of training; grey is GRPO.
    """
    from matplotlib.figure import Figure

    columns = min(4, len(arms))
    rows = -(-len(arms) // columns)
    figure = Figure(figsize=(2.6 * columns, 0.3 + 2.3 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes, (method, arm), colour in zip(panels, arms.items(), COLOURS, strict=False):
        if "grpo" in arms and method != "grpo":
            x, y = zip(*arms["grpo"].curve(np.ones(len(arm.natural_P))), strict=True)
            axes.plot(x, [100 * v for v in y], color="#888888", linewidth=1.0)
        x, _ = zip(*arm.curve(np.ones(len(arm.natural_P))), strict=True)
        mean, low, high = (100 * v[: len(x)] for v in cluster_bootstrap(arm.correct_P_B))
        band(axes, x, mean, low, high, colour)
        i = min(SHARES.index(1), len(x) - 1)
        axes.plot(x[i], mean[i], color=colour, marker="o", markersize=6)
        axes.set_title(METHODS[method][0], color=colour, fontsize=9, loc="left")
        axes.tick_params(labelbottom=True)
    for axes in panels[len(arms) :]:
        axes.set_visible(False)
    figure.supxlabel(f"tokens spent per answer (limit in training: {budget})", fontsize=9)
    figure.supylabel("accuracy of thoughts stopped by force, %", fontsize=9)
    save(figure, path)


if __name__ == "__main__":
    main()
