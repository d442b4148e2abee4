"""MRT-B beside its baselines: warm starts, then reinforcement learning behind the best of them.

    python bench/backtrack.py configs/backtrack-sums.toml      # five trainings for each of three seeds; then the table

Per seed: the warm starts ``warm``, ``rise`` and ``star`` from the model of the config, then ``rl`` and ``grpo`` from ``warm``.
Measured on held-out problems: streams of at most the config's ``rollout.max_tokens``, and one linearised stream whose window
is half as large, of which the latest attempt is all that is remembered (``compute/backtrack.py``). OUT/METHOD-SEED.json
holds the numbers of a model per problem; what is there is not done again. Intervals (95%) resample problems.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from mrt import Floats, difference, interval

from twofold import config as configs
from twofold import run
from twofold.compute.backtrack import Backtracking, backtracking, tried
from twofold.compute.rollout import rollouts
from twofold.types import Sampling

WARM = ["recipe.source=start", "optim.lr=1e-3", "train.epochs=4", "train.steps=25", "rollout.max_tokens=44"]
METHODS = {
    "base": ("the shipped model", None),
    "star": ("STaR", [*WARM, "recipe.method=star"]),
    "rise": ("RISE", [*WARM, "recipe.method=rise"]),
    "warm": ("MRT-B warm start", [*WARM, "recipe.method=warm"]),
    "grpo": ("warm start, then GRPO", ["recipe.method=grpo", "recipe.rollouts=6"]),
    "rl": ("warm start, then MRT-B (RL)", ["recipe.method=rl"]),
}
"""GRPO draws six streams per problem, about as many tokens as four and four that go on behind a first attempt."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--samples", type=int, default=4, help="per problem, of streams and of linearised streams")
    parser.add_argument("--split", default="test", help="train: to choose settings, with seeds other than 0")
    parser.add_argument("--out", type=Path, default=Path("runs/backtrack"))
    args = parser.parse_args()
    base = configs.load(run.Config, args.config)
    arms = {m: np.mean([one(m, s, base, args) for s in args.seeds], axis=0) for m in METHODS}
    heads = ["method", "pass@1", "tokens", "first attempt", "more than one", "linearised", "its tokens"]
    print("| " + " | ".join([*heads, "minus GRPO: pass@1", "linearised"]) + " |\n|" + "---|" * (len(heads) + 2))
    for method, rows_P_N in arms.items():
        right, tokens, first, more, linear, spent = rows_P_N.T
        cells = [interval(right), f"{tokens.mean():.0f}", interval(first), f"{100 * more.mean():.0f}%"]
        cells += [interval(linear), f"{spent.mean():.0f}"]
        cells += [difference(rows_P_N[:, i], arms["grpo"][:, i]) if method != "grpo" else "" for i in (0, 4)]
        print("| " + " | ".join([METHODS[method][0], *cells]) + " |")


def one(method: str, seed: int, base: run.Config, args: argparse.Namespace) -> Floats:
    """Train (behind ``warm`` what needs it) and measure, unless it is done: [problems, numbers] as in ``look``."""
    path, folder, options = args.out / f"{method}-{seed}.json", args.out / f"{method}-{seed}", METHODS[method][1]
    if not path.exists():
        model = base.model
        if options is not None:
            start = [f"model={args.out / f'warm-{seed}'}"] if method in ("rl", "grpo") else []
            if start:
                one("warm", seed, base, args)
            config = configs.override(base, [*options, *start, f"train.seed={seed}"])
            resume = (folder / "config.toml").exists()
            model = str(run.train(config, folder, resume=resume, title=f"{method} {seed}"))
        args.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(look(model, base, args, seed)) + "\n")
    return np.array(json.loads(path.read_text()))


def look(name: str, config: run.Config, args: argparse.Namespace, seed: int) -> list[list[float]]:
    """Per problem: right, tokens, right in the first attempt, more attempts than one; linearised: right, tokens."""
    model, task, most = run.load(name), run.make_task(config.task), config.rollout.max_tokens
    chat, sampling = model.chat, Sampling(n=args.samples, max_tokens=most, seed=seed)
    problems = [task.problem(args.split, i) for i in range(args.problems)]
    groups = rollouts(model.engine, chat, task, problems, sampling)
    window = Sampling(max_tokens=most // 2, seed=seed + 1)
    questions = [p.question for p in problems]
    streams = backtracking(model.engine, chat, questions, args.samples, window, Backtracking())
    rows = []
    for problem, group, made in zip(problems, groups, streams, strict=True):
        attempts = [tried(chat, r.completion) for r in group]
        firsts = [task.grade(problem, chat.decode(a[0].tokens))[1].reward for a in attempts]
        linear = [task.grade(problem, r.text)[1].reward for r in made.candidates]
        each = [
            (r.grade.reward, len(r.completion.tokens), z0, len(a) > 1)
            for r, z0, a in zip(group, firsts, attempts, strict=True)
        ]
        rows.append([*np.mean(each, axis=0).tolist(), sum(linear) / args.samples, made.cost.generated / args.samples])
    return rows


if __name__ == "__main__":
    main()
