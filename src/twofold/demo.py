"""The demo: train the shipped base model with and without a verifier, evaluate all three models, and write a report."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from twofold import run, training
from twofold.config import Config, Rollouts, Train
from twofold.evals.report import print_table, report
from twofold.maths.losses import Loss
from twofold.maths.schedule import Optim
from twofold.progress import Progress
from twofold.recipes.rlv import RLV
from twofold.tasks.procedural import Sums

CONFIG = Config(
    recipe=RLV(estimator="rloo", verify="generative", lam=0.5, adversarial=0.15, rollouts=8),
    task=Sums(),
    rollout=Rollouts(problems=16, max_tokens=40),
    loss=Loss(beta=0.5),
    optim=Optim(lr=6e-4, schedule="cosine", warmup=0.1, final=0.1),
    train=Train(steps=36, minibatches=4, save_every=0),
)
"""Leave-one-out PPO^V on ``sums``. ``configs/rlv-sums.toml`` is the same."""

PUZZLE = "Start with 9, 18 or 24. Multiply by 3. Subtract 8. The result is 46. What was the start?"
"""In the demo's world: the trained model answers it."""
OUTSIDE = "What is 2+2?"
"""Outside of it: no such question was in its training, and the trained model is not sure."""

EVAL = run.Eval(problems=120, n=32, max_tokens=40, batch=15)


def demo(out: Path, seed: int = 0, config: Config = CONFIG, evaluation: run.Eval = EVAL) -> Path:
    """Train ``rl`` and ``rlv``, evaluate them and ``base``, and return the path of the report. Everything is under ``out``.

    Both runs have the same problems, seed and number of steps; only the verdict term differs. Finished parts are kept, so
    the same call continues an interrupted demo. Raises Stopped if training was interrupted.
    """
    console = Console()
    began = time.monotonic()
    recipe = config.recipe
    assert isinstance(recipe, RLV)
    config = replace(config, train=replace(config.train, seed=seed))
    variants = {"rl": replace(config, recipe=replace(recipe, verify="none")), "rlv": config}
    models: dict[str, str | Path] = {"base": config.model}
    for i, (name, variant) in enumerate(variants.items(), 1):
        what = (
            "train rl, RL without a verifier" if name == "rl" else "train rlv, RL^V: the same, and it learns to judge"
        )
        amount = f"{config.train.steps} steps of {config.rollout.problems} problems x {recipe.rollouts} rollouts"
        console.print(f"[bold]{i}/3[/] {what}: {amount}", soft_wrap=True)
        models[name] = training.train(variant, out / name, resume=(out / name / "config.toml").exists(), title=name)
    amount = f"{evaluation.problems} held-out problems x {evaluation.n} samples"
    console.print(f"[bold]3/3[/] evaluate base, rl and rlv: {amount}", soft_wrap=True)
    task = run.make_task(config.task)
    with Progress("problem", console) as progress:
        for name, path in models.items():
            run.evaluate(
                run.load(path),
                task,
                replace(evaluation, seed=seed),
                out=out / name / "evals" / "test",
                name=name,
                progress=partial(progress.update, name),
            )
    print_table(report([out / name for name in models], out, baseline="rl"))
    page = out / "report.html"
    console.print(f"\nreport: [bold]{page}[/]  ({time.monotonic() - began:.0f} s)", soft_wrap=True)
    console.print("\nTry next:", *next_commands(out / "rlv"), sep="\n  ", markup=False, highlight=False, soft_wrap=True)
    return page


def next_commands(model: Path) -> list[str]:
    """Return three commands to try on the trained model: a puzzle, a question outside its world, and the page."""
    program = "twofold" if shutil.which("twofold") or Path(sys.argv[0]).name != "twofold" else sys.argv[0]
    return [
        f'{program} solve {model} "{PUZZLE}"',
        f'{program} solve {model} "{OUTSIDE}"    # not in its world: it should say that it is not sure',
        f"{program} serve {model}    # OpenAI's API, and a page to try it: http://127.0.0.1:8000",
    ]
