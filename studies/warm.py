"""The common start of the MRT study: the shipped model learns thoughts that sometimes use what they have already refuted.

The shipped model writes attempts, checks and "Wait", but when it is made to answer after a refuted start it names that very
start (99.5% of answers). So only a finished thought is worth anything, and progress says who was lucky. In the thoughts taught
here the next attempt is an untried start with probability FRESH, else any start. Before every attempt the thought ends with a
guess with probability GUESS; the guess is an untried start with probability LEFT, else a tried one.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

from shared import FIRST

from twofold import run, toml, training
from twofold.models.checkpoints import latest_checkpoint
from twofold.recipes.corpus import attempt_sums
from twofold.types import Problem

FRESH, GUESS, LEFT, MOST, SLIP = 0.3, 0.15, 0.5, 5, 0.02


def thought(rng: random.Random, problem: Problem) -> str:
    """Return a solution with its thought: up to MOST attempts, until one is right or the thought ends with a guess."""
    starts = [str(s) for s in problem.meta["starts"]]
    goal, answer = problem.meta["result"], rng.choice(starts)
    tried: list[str] = []
    lines: list[str] = []
    for n in range(MOST):
        left = [s for s in starts if s not in tried]
        if rng.random() < GUESS:
            answer = rng.choice(left if left and (not tried or rng.random() < LEFT) else tried)
            break
        answer = rng.choice(left if left and rng.random() < FRESH else starts)
        start = replace(problem, meta={**problem.meta, "start": int(answer)})
        attempt = attempt_sums(rng, start, 0.0, SLIP)
        right = attempt.reached == goal
        verdict = f"{goal} is right." if right else f"{attempt.reached} is not {goal}."
        lines.append("\n".join([f"{'Wait. ' if n else ''}Try {answer}.", *attempt.lines[:-1], verdict]))
        tried.append(answer)
        if right:
            break
    return "<think>\n" + "\n\n".join(lines) + ("\n" if lines else "") + f"</think>\n\\boxed{{{answer}}}"


def start(config: run.Config, steps: int, out: Path) -> Path:
    """Return the checkpoint of ``config.model`` after ``steps`` steps of 32 such thoughts each. It is made if it does not exist."""
    if found := latest_checkpoint(out):
        return found
    task, rows = run.make_task(config.task), []
    for i in range(32 * steps):
        problem = task.problem("train", FIRST + i)
        solution = thought(random.Random(f"warm/{i}"), problem)
        rows.append({"question": problem.question, "answer": problem.answer, "solution": solution})
    data = out.with_suffix(".jsonl")
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["recipe.name=sft", "task.name=data", f"task.source={data}", "rollout.problems=32", "optim.lr=5e-4"]
    options += [f"train.steps={steps}", "optim.schedule=cosine", "optim.final=0.1", f"model={config.model}"]
    return training.train(
        toml.override(run.Config(), options), out, resume=(out / "config.toml").exists(), title="warm"
    )
