"""A start for comparing MRT: the shipped model learns thoughts that sometimes use what they have already refuted.

It writes attempts, checks and "Wait" as it comes, but made to answer behind a refuted start it names that very start (99.5% of
answers), so that no prefix but a finished one is worth anything, and progress says who was lucky. Here a thought tries a
start that it has not tried with probability FRESH, else any; before every attempt it may end with a guess, half of the
time among what is left.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

from common import FIRST

from twofold import run, toml
from twofold.recipes.corpus import attempt_sums
from twofold.trainer import checkpoint
from twofold.types import Problem

FRESH, GUESS, LEFT, MOST, SLIP = 0.3, 0.15, 0.5, 5, 0.02


def thought(rng: random.Random, problem: Problem) -> str:
    """A solution with its thought: up to MOST attempts, ended by a right one or by a guess."""
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
    """The checkpoint of ``config.model`` after ``steps`` steps of 32 such thoughts; made once."""
    if found := checkpoint.latest(out):
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
    return run.train(toml.override(run.Config(), options), out, resume=(out / "config.toml").exists(), title="warm")
