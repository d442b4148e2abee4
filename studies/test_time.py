"""Compare test-time rules on saved samples: tokens of the calibrated posterior and of the published stopping rules at equal
accuracy, the accuracy of every vote, the gain from choosing a rule by difficulty, and the gain from longer samples.

    for s in 0 1 2; do
        twofold train configs/rlv-sums.toml --train.seed $s --out runs/rlv-$s
        twofold eval runs/rlv-$s --problems 440 --n 64 --max_tokens 40 --seed $s --trace_top 20 --trace_window 8 --out runs/pool-$s
    done
    python studies/test_time.py runs/pool-0 runs/pool-1 runs/pool-2

The last ``--held-out`` problems of every evaluation fit the calibration and choose our threshold: the lowest at which our
accuracy on them is at least the other rule's. The other problems are the test. Seeds are averaged per problem, and intervals
(95%) resample problems. No model is needed.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from shared import difference

from twofold.compute.plan import Plan, parse
from twofold.evals.grid import under_cap
from twofold.evals.optimal import compute_optimal
from twofold.evals.plans import Replay, replay
from twofold.evals.pools import POOLS, read_header, read_pools
from twofold.maths import stats
from twofold.maths.posterior import fit
from twofold.types import Pool

CAP = 40
"""The most samples of any rule."""
PUBLISHED = {"adaptive consistency": "stop=adaptive,threshold=0.95", "ESC": "stop=windows,size=5"}
CHOICES = ("majority", "weighted", "posterior")
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)
CAPS = (16, 20, 24, 28, 32, 40)
RULES = ("majority", "certain", "borda", "deepconf", "best", "weighted", "posterior")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--orders", type=int, default=4)
    args = parser.parse_args()
    seeds = [Seed(run, args.held_out, args.orders) for run in args.runs]
    print(f"{len(seeds)} seeds, {len(seeds[0].test)} test problems, {args.held_out} to calibrate\n")
    stopping(seeds)
    rules(seeds)
    choice(seeds)
    lengths(seeds)


class Seed:
    """One evaluation: its calibration problems, its test problems, and replays of plans on either."""

    def __init__(self, run: Path, held_out: int, orders: int) -> None:
        header, pools = read_header(run), read_pools(run / POOLS)
        self.test, self.held_out, self.orders = pools[:-held_out], pools[-held_out:], orders
        self.calibration = fit([(p.answers, [g.label == "correct" for g in p.grades], p.scores) for p in self.held_out])
        self.like = Plan(max_tokens=header.max_tokens, calibration=self.calibration)
        self.ours = [(c, self.run(f"posterior-{CAP}:stop=posterior,threshold={c}", self.held_out)) for c in THRESHOLDS]
        print(f"{run.name}: {self.calibration}")

    def run(self, plan: str, pools: list[Pool], **changes: object) -> Replay:
        return replay(pools, replace(parse(plan, self.like), **changes), self.orders)  # type: ignore[arg-type]

    def threshold(self, accuracy: float) -> float:
        """Return the lowest threshold at which our plan has at least this accuracy on the calibration problems."""
        good = [c for c, r in self.ours if r.correct_P_K[:, -1].mean() >= accuracy]
        return good[0] if good else THRESHOLDS[-1]


def stopping(seeds: list[Seed]) -> None:
    head = ["published rule", "choice", "accuracy", "tokens", "+ judge", "ours: accuracy", "tokens", "+ judge"]
    head += ["difference, points", "tokens, times fewer", "with judge, times fewer", "per seed (with judge)"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for name, options in PUBLISHED.items():
        for choice in CHOICES:
            plan = f"{choice}-{CAP}:{options}"
            pairs = []
            for seed in seeds:
                c = seed.threshold(seed.run(plan, seed.held_out).correct_P_K[:, -1].mean())
                ours = f"posterior-{CAP}:stop=posterior,threshold={c}"
                pairs.append((last(seed.run(plan, seed.test)), last(seed.run(ours, seed.test))))
            a, b = (np.mean(side, axis=0) for side in zip(*pairs, strict=True))  # [problems, 3], over seeds
            each = ", ".join(f"{theirs[:, 2].mean() / mine[:, 2].mean():.2f}" for theirs, mine in pairs)
            cells = [name, choice, *spent(a), *spent(b), difference(b[:, 0], a[:, 0])]
            print("| " + " | ".join([*cells, ratio(a[:, 1], b[:, 1]), ratio(a[:, 2], b[:, 2]), each]) + " |")


def last(r: Replay) -> np.ndarray:
    """Return [problems, (correct, tokens generated, tokens generated or read to judge)] at the cap."""
    return np.stack([r.correct_P_K[:, -1], r.generated_P_K[:, -1], (r.generated_P_K + r.verified_P_K)[:, -1]], axis=1)


def spent(x_P_3: np.ndarray) -> list[str]:
    accuracy, generated, total = x_P_3.mean(axis=0)
    return [f"{100 * accuracy:.1f}%", f"{generated:.0f}", f"{total:.0f}"]


def ratio(a_P: np.ndarray, b_P: np.ndarray) -> str:
    """Return the mean of a over the mean of b, with its interval over problems."""
    counts = stats.resamples(len(a_P), 2000, seed=0)
    low, high = np.quantile((counts @ a_P) / (counts @ b_P), [0.025, 0.975])
    return f"{a_P.mean() / b_P.mean():.2f} [{low:.2f}, {high:.2f}]"


def rules(seeds: list[Seed]) -> None:
    ks = (4, 16, 64)
    print(
        "\n| choice of n samples | "
        + " | ".join(f"n = {k}" for k in ks)
        + " | tokens per sample (judged) |\n|"
        + "---|" * 5
    )
    for rule in RULES:
        found = [seed.run(f"{rule}-64:window=8", seed.test) for seed in seeds]
        r = np.mean([f.correct_P_K for f in found], axis=0)
        cells = [interval(r[:, found[0].ks.index(k)]) for k in ks]
        tokens = np.mean([f.generated_P_K[:, -1].mean() / 64 for f in found])
        judge = np.mean([f.verified_P_K[:, -1].mean() / 64 for f in found])
        print("| " + " | ".join([rule, *cells, f"{tokens:.1f} (+ {judge:.1f})"]) + " |")
    oracle = np.mean([any(g.correct for g in p.grades) for s in seeds for p in s.test])
    print(f"\npass@64, an oracle: {100 * oracle:.1f}%")


def choice(seeds: list[Seed]) -> None:
    """Print the compute-optimal table: one rule per bin of difficulty, as a pilot sees it, against one rule for all problems."""
    budgets = [4, 8, 16, 32, 64]
    head = [
        "among",
        "n",
        "by difficulty",
        "all tokens",
        "one for all",
        "all tokens",
        "difference, points",
        "one; by bin",
    ]
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for name, among in (("published", RULES[:-1]), ("all", RULES)):
        found = []
        for seed in seeds:
            plans = [parse(f"{rule}-64:window=8", seed.like) for rule in among]
            found.append(compute_optimal(seed.test, plans, budgets, orders=seed.orders))
        a, b = (np.mean(x, axis=0) for x in zip(*((f.adaptive_P_B_2, f.single_P_B_2) for f in found), strict=True))
        for i, n in enumerate(budgets):
            tables = "; ".join(
                f"{among[f.single[i]]}: {', '.join(among[of_bin[i]] for of_bin in f.best)}" for f in found
            )
            cells = [name, str(n)]
            for side in (a, b):
                cells += [interval(side[:, i, 0]), f"{side[:, i, 1].mean():.0f}"]
            cells.append(difference(a[:, i, 0], b[:, i, 0]))
            print("| " + " | ".join([*cells, tables]) + " |")


def lengths(seeds: list[Seed]) -> None:
    """Print the joint grid: accuracy of the weighted vote by token cap and number of samples."""
    ks = (1, 4, 16, 64)
    head = ["token cap", *(f"n = {k}" for k in ks), "generated", "all tokens", "shorter caps too"]
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    cumulated = 0.0
    for cap in CAPS:
        rows = [under_cap(seed.test, cap, "weighted", ks) for seed in seeds]
        correct_P_K = np.mean([r[0] for r in rows], axis=0)
        generated, verified = (np.mean([r[i] for r in rows]) for i in (1, 2))
        cumulated += generated + verified
        cells = [interval(column) for column in correct_P_K.T]
        cells += [f"{x:.1f}" for x in (generated, generated + verified, cumulated)]
        print("| " + " | ".join([str(cap), *cells]) + " |")


def interval(values_P: np.ndarray) -> str:
    mean, low, high = stats.cluster_bootstrap(values_P)
    return f"{100 * mean:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    main()
