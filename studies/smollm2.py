"""RL^V against plain RL on a pretrained model, SmolLM2-135M-Instruct: a supervised start, three seeds, held-out problems.

    python studies/smollm2.py configs/rlv-smollm2.toml --model SMOLLM2 --tests test harder ood --out runs/smollm2
    python studies/smollm2.py configs/rlv-smollm2.toml --seeds 5 --tests train --set recipe.lam=0.3 --out runs/try

The start learns to write worked solutions: for ``sums`` they are made here, and half of them begin with a wrong guess. No
document says whether a solution is right. Then each seed trains plain RL as the config says, and RL^V after a warm-up that teaches
the start the verdict on its own rollouts. Every model is evaluated on each test, a split of the config's task or a data file.
Another task is a config whose ``[task]`` is a data file, with ``--worked`` for worked solutions to start from:
``word_problems.py`` makes such files. What is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shared import FIRST

from twofold import run, toml, training
from twofold.config import Config, Data
from twofold.evals.report import print_table, report
from twofold.recipes.rlv import RLV
from twofold.recipes.sft import SFT
from twofold.tasks.procedural import Sums
from twofold.tasks.worked import attempt_sums
from twofold.trainer.optim import Optim

BATCH = 32
"""Worked solutions per update of the supervised start."""
SPLITS = ("train", "test", "harder", "ood")


def worked(config: Config, updates: int, path: Path) -> Data:
    """Write worked solutions of the config's ``sums`` for the start, none twice, and return them as a task."""
    task = config.task
    assert isinstance(task, Sums)
    problems = [task.problem("train", FIRST + i) for i in range(updates * BATCH)]
    solutions = [attempt_sums(random.Random(f"start/{p.id}"), p, wrong=0.5, slip=0.0) for p in problems]
    rows = [
        {"question": p.question, "answer": p.answer, "solution": s.text()}
        for p, s in zip(problems, solutions, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Data(source=str(path))


def start(config: Config, model: str, data: str | None, updates: int, lr: float, out: Path) -> Path:
    """Train the supervised start, unless it is there, and return its checkpoint. ``data``: worked solutions in a file."""
    out.mkdir(parents=True, exist_ok=True)
    supervised = replace(
        config,
        model=model,
        recipe=SFT(),
        task=Data(source=data) if data else worked(config, updates, out / "worked.jsonl"),
        rollout=replace(config.rollout, problems=BATCH),
        optim=Optim(lr=lr, schedule="cosine", warmup=0.1, final=0.1),
        train=replace(config.train, steps=updates, minibatches=1),
    )
    return train(supervised, out / "start", "start")


def train(config: Config, out: Path, title: str) -> Path:
    return training.train(config, out, resume=(out / "config.toml").exists(), title=title)


def warm(config: Config, steps: int, lr: float, seed: int) -> Config:
    """Return the training that teaches the start the verdict, on its own rollouts, and keeps its policy."""
    recipe = config.recipe
    assert isinstance(recipe, RLV)
    return replace(
        config,
        recipe=replace(recipe, verify_warmup=steps),
        optim=Optim(lr=lr, schedule="cosine", warmup=0.25, final=0.1),
        train=replace(config.train, seed=seed, steps=steps),
    )


def arms(config: Config, seed: int) -> tuple[Config, Config]:
    """Return plain RL and RL^V."""
    recipe = config.recipe
    assert isinstance(recipe, RLV)
    seeded = replace(config, train=replace(config.train, seed=seed))
    return replace(seeded, recipe=replace(recipe, verify="none")), seeded


def evaluate(config: Config, models: dict[str, Path], test: str, problems: int, out: Path) -> None:
    """Evaluate the models on one test, unless that is done, and print and write the report."""
    task = run.make_task(config.task if test in SPLITS else Data(source=test))
    options = run.Eval(
        problems=problems, n=16, max_tokens=config.rollout.max_tokens, temperature=config.rollout.temperature, batch=10
    )
    options = replace(options, split=test if test in SPLITS else "test")
    found = []
    for name, path in models.items():
        model = run.load(path, system=config.system, precision=config.train.precision)
        found.append(run.evaluate(model, task, options, out=out / name / "evals" / Path(test).stem, name=name))
    print_table(report(found, out / "reports" / Path(test).stem, baseline="start"))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--model", help="the pretrained model")
    parser.add_argument("--worked", help="a data file of worked solutions to start from")
    parser.add_argument(
        "--start", type=float, nargs=2, default=[200, 5e-5], metavar=("UPDATES", "LR"), help="of the start"
    )
    parser.add_argument(
        "--warm", type=float, nargs=2, default=[16, 1e-4], metavar=("STEPS", "LR"), help="of the verdict's warm-up"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tests", nargs="+", default=["test"], help="splits of the task, or data files")
    parser.add_argument("--problems", type=int, default=100, help="of each test")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="options in place of the config's")
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2"))
    args = parser.parse_args(argv)
    config = toml.override(toml.load(Config, args.config), args.set)
    begin = start(config, args.model, args.worked, int(args.start[0]), args.start[1], args.out)
    config = replace(config, model=str(begin))
    models = {"start": begin}
    for seed in args.seeds:
        plain, ours = arms(config, seed)
        models[f"rl-{seed}"] = train(plain, args.out / f"rl-{seed}", f"rl-{seed}")
        judge = train(warm(config, int(args.warm[0]), args.warm[1], seed), args.out / f"warm-{seed}", f"warm-{seed}")
        models[f"rlv-{seed}"] = train(replace(ours, model=str(judge)), args.out / f"rlv-{seed}", f"rlv-{seed}")
    for test in args.tests:
        evaluate(config, models, test, args.problems, args.out)


if __name__ == "__main__":
    main()
