"""Compare MRT-B with its baselines: three warm starts, then two reinforcement learnings from the start ``warm``.

    python studies/backtrack.py configs/backtrack-sums.toml      # five trainings for each of three seeds; then the table

Each model is measured on held-out problems: streams of at most ``rollout.max_tokens``, and linearised streams, which have
half of these as their window and keep only the latest attempt (``compute/backtrack.py``). OUT/METHOD-SEED.json holds a
model's numbers per problem; a model whose file exists is not run again. Seeds are averaged; intervals (95%) resample problems.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from shared import Floats, difference, interval

from twofold import run, toml, training
from twofold.compute.backtrack import Backtracking, backtracking, tried
from twofold.compute.rollout import rollouts
from twofold.maths.seeds import derive
from twofold.types import Sampling

WARM = ["recipe.source=start", "optim.lr=1e-3", "train.epochs=4", "train.steps=25", "rollout.max_tokens=44"]
METHODS = {
    "base": ("the shipped model", []),
    "star": ("STaR", [*WARM, "recipe.method=star"]),
    "rise": ("RISE", [*WARM, "recipe.method=rise"]),
    "warm": ("MRT-B, warm start", [*WARM, "recipe.method=warm"]),
    "grpo": ("then GRPO", ["recipe.method=grpo", "recipe.rollouts=6"]),
    "rl": ("then MRT-B (RL)", ["recipe.method=rl"]),
}
"""GRPO draws six streams per problem: about as many tokens as four streams and four that continue after a first attempt."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--samples", type=int, default=4, help="per problem, of streams and of linearised streams")
    parser.add_argument("--out", type=Path, default=Path("runs/backtrack"))
    args = parser.parse_args()
    base = toml.load(run.Config, args.config)
    done = {(m, s): one(m, s, base, args) for s in args.seeds for m in args.methods}
    arms = {m: np.mean([done[m, s] for s in args.seeds], axis=0) for m in args.methods}
    print("| | pass@1 | tokens | first attempts | linearised | its tokens | minus GRPO: pass@1 | linearised |")
    print("|" + "---|" * 8)
    for method, rows_P_5 in arms.items():
        right, tokens, first, linear, spent = rows_P_5.T
        cells = [interval(right), f"{tokens.mean():.0f}", interval(first), interval(linear), f"{spent.mean():.0f}"]
        cells += [
            difference(rows_P_5[:, i], arms["grpo"][:, i]) if "grpo" in arms and method != "grpo" else ""
            for i in (0, 3)
        ]
        print("| " + " | ".join([METHODS[method][0], *cells]) + " |")


def one(method: str, seed: int, base: run.Config, args: argparse.Namespace) -> Floats:
    """Train and measure, unless it is done. Return the numbers of ``look``, [problems, 5]."""
    folder, model, options = args.out / f"{method}-{seed}", base.model, METHODS[method][1]
    path = folder.with_suffix(".json")
    if not path.exists():
        if options:
            start = [f"model={args.out / f'warm-{seed}'}"] if method in ("rl", "grpo") else []
            config = toml.override(base, [*options, *start, f"train.seed={seed}"])
            resume = (folder / "config.toml").exists()
            model = str(training.train(config, folder, resume=resume, title=f"{method} {seed}"))
        args.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(look(model, base, args, seed)) + "\n")
    return np.array(json.loads(path.read_text()))


def look(name: str, config: run.Config, args: argparse.Namespace, seed: int) -> list[list[float]]:
    """Return, per problem, accuracy, tokens and the first attempts' accuracy; then accuracy and tokens of the linearised streams."""
    model, task, most = run.load(name), run.make_task(config.task), config.rollout.max_tokens
    sampling = Sampling(args.samples, max_tokens=most, stop=model.chat.stop, seed=seed)
    problems = [task.problem("test", i) for i in range(args.problems)]
    groups = rollouts(model.engine, model.chat, task, problems, sampling)
    questions, window = (
        [p.question for p in problems],
        replace(sampling, max_tokens=most // 2, seed=derive(seed, "streams")),
    )
    streams = backtracking(model.engine, model.chat, questions, args.samples, window, Backtracking())
    rows = []
    for problem, group, made in zip(problems, groups, streams, strict=True):
        firsts = [model.chat.decode(tried(model.chat, r.completion)[0].tokens) for r in group]
        z0 = np.mean([task.grade(problem, text)[1].reward for text in firsts])
        right, tokens = np.mean([(r.grade.reward, len(r.completion.tokens)) for r in group], axis=0)
        last = sum(task.grade(problem, r.text)[1].reward for r in made.candidates)  # a stream may have no candidate
        rows.append([right, tokens, z0, last / args.samples, made.cost.generated / args.samples])
    return rows


if __name__ == "__main__":
    main()
