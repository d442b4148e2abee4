"""Does every engine give the same learning curve? RL^V on the shipped model, trained with each engine and three seeds.

    python studies/engines.py --engines native fleet vllm=.venv-vllm/bin/python
    python studies/engines.py --engines native fleet --steps 3 --seeds 0 --set engine.exact=true --out runs/engines-exact

An engine is run by the Python that has it: NAME=PYTHON, or the one that runs this script. All runs have the settings of
``configs/rlv-sums.toml`` with fewer and smaller steps of one update each, so that ``mismatch`` is the engine's alone. A run that is
done is not run again. The table has means of each third of a run with 95% t-intervals over the seeds, and differences to the
first engine, paired by seed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import t
from shared import Floats

from twofold.durable import read_lines

CONFIG = Path(__file__).parent.parent / "configs" / "rlv-sums.toml"
SMALL = ["rollout.problems=8", "train.minibatches=1", "recipe.score_every=1", "log.rollouts=0"]
ENGINES = {
    "native": [],
    "fleet": ["engine.name=fleet", "engine.workers=2"],
    "vllm": ["engine.name=vllm", "engine.eager=true", "engine.context=256", "engine.kv_gib=0.1"],
}
FOLLOWED = ("reward", "verifier/auroc", "mismatch")


def train(engine: str, python: str, seed: int, args: argparse.Namespace) -> Floats:
    """Train, unless it is done. Return the followed numbers of each step, [steps, 3]; NaN where a step has none."""
    run = args.out / f"{engine}-{seed}"
    if not (run / "checkpoints" / f"step-{args.steps}").exists():
        command = [python, "-m", "twofold", "train", str(CONFIG), "--out", str(run)]
        command += ["--resume"] if (run / "config.toml").exists() else []
        options = [*SMALL, *ENGINES[engine], *args.set, f"train.steps={args.steps}", f"train.seed={seed}"]
        subprocess.run([*command, *options], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    rows = read_lines(run / "metrics.jsonl")
    return np.array([[row[name] for name in FOLLOWED] for row in rows], dtype=float)


def interval(values_S: Floats, sign: str = "") -> str:
    """Return the mean over seeds with its 95% t-interval, such as ``0.412 ±0.051``; one seed has none."""
    n = len(values_S)
    half = f" ±{t.ppf(0.975, n - 1) * values_S.std(ddof=1) / n**0.5:.3f}" if n > 1 else ""
    return f"{values_S.mean():{sign}.3f}{half}"


def table(curves: dict[str, dict[int, Floats]]) -> str:
    """Return the table of ``curves[engine][seed]``, each [steps, 3]. An engine is compared on the seeds that it has."""
    first = next(iter(curves))
    lines = ["| | seeds | " + " | ".join(f"{x}, first third | last third | minus {first}" for x in ("reward", "AUROC"))]
    lines[0] += f" | steps as {first} | mismatch, mean | largest |"
    lines.append("|" + "---|" * (lines[0].count("|") - 1))
    for engine, by_seed in curves.items():
        own = np.array(list(by_seed.values()))
        base = np.array([curves[first][seed] for seed in by_seed])
        third = own.shape[1] // 3
        cells = [engine, str(len(own))]
        for k in (0, 1):
            begin, end = np.nanmean(own[:, :third, k], axis=1), np.nanmean(own[:, -third:, k], axis=1)
            moved = end - np.nanmean(base[:, -third:, k], axis=1)
            cells += [interval(begin), interval(end), interval(moved, "+") if engine != first else ""]
        same = np.isclose(own[..., :2], base[..., :2], rtol=0, atol=1e-9, equal_nan=True).all(axis=-1)
        cells += [f"{same.sum()} of {same.size}", f"{own[..., 2].mean():.1e}", f"{own[..., 2].max():.1e}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--engines", nargs="+", default=["native", "fleet"], metavar="NAME[=PYTHON]", help=", ".join(ENGINES)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="options in place of the config's")
    parser.add_argument("--out", type=Path, default=Path("runs/engines"))
    args = parser.parse_args(argv)
    curves: dict[str, dict[int, Floats]] = {}
    for seed in args.seeds:
        for name, _, python in (engine.partition("=") for engine in args.engines):
            curves.setdefault(name, {})[seed] = train(name, python or sys.executable, seed, args)
    text = table(curves)
    print(text)
    (args.out / "table.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
