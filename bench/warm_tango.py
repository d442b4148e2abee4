r"""A start for comparing Tango: the shipped model learns to solve with slips and to check half-heartedly, both in one model.

It writes critiques as it comes, but they are nearly deterministic (0.02 nats a token), so that verifications of one solution earn the
same and nothing can be reinforced. Here a critique does each step again and compares; with probability ``copy`` it repeats what
the step says instead, and with SLIP its own work is wrong. Solutions have honest slips with ``slip``.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

from study import FIRST

from twofold import run
from twofold.recipes.sft import sample
from twofold.tasks.procedural import Letters, Sums, apply
from twofold.tasks.worked import Attempt, attempt_letters, attempt_sums, slipped
from twofold.text.chat import CRITIQUE, Turn
from twofold.trainer import checkpoint
from twofold.trainer.learner import Learner, Loss
from twofold.trainer.optim import Optim
from twofold.types import Problem

SLIP, PLANTED = 0.05, 0.2


def attempt(rng: random.Random, problem: Problem, slip: float) -> Attempt:
    """A worked solution in which a step goes wrong with probability ``slip``."""
    if "words" in problem.meta:
        return attempt_letters(rng, problem, slip)
    return attempt_sums(rng, problem, 0.0, slip)


def checks(rng: random.Random, problem: Problem, lines: list[str], copy: float) -> list[tuple[str, bool]]:
    """(the checker's own work, whether the step agrees with it) of every step."""
    done = []
    for k, line in enumerate(lines):
        if "words" in problem.meta:
            word = problem.meta["words"][k]
            said = line.partition(",")[0]
            letter = rng.choice(word[:-1]) if rng.random() < SLIP else word[-1]
            own = f"{word}: {letter}"
        else:
            op, operand = problem.meta["steps"][k]
            said, value = line, int(re.match(r"-?\d+", line)[0])
            result = apply(value, op, operand)
            own = f"{value}{op}{operand}={slipped(rng, result) if rng.random() < SLIP else result}"
        own = said if rng.random() < copy else own
        done.append((own, own == said))
    return done


def critique(checked: list[tuple[str, bool]]) -> str:
    """Every step done again with its verdict, and CORRECT for the whole if all steps are."""
    mark = {True: "\\boxed{CORRECT}", False: "\\boxed{INCORRECT}"}
    steps = "\n".join(f"<step>{own} {mark[ok]}</step>" for own, ok in checked)
    whole = mark[all(ok for _, ok in checked)]
    return f"<step_verification>\n{steps}\n</step_verification>\n<final_verification>{whole}</final_verification>"


def document(task: Letters | Sums, i: int, slip: float, copy: float) -> list[Turn]:
    """One solution, then two quoted solutions with their critiques, and so on."""
    rng = random.Random(f"warm/{i}")
    problem = replace(task, level=rng.randint(2, task.level)).problem("train", FIRST + i)
    if i % 3 == 0:
        return [Turn(problem.question, attempt(rng, problem, slip).text())]
    quoted = attempt(rng, problem, PLANTED * rng.randrange(2))
    written = critique(checks(rng, problem, quoted.lines, copy))
    return [Turn(problem.question, quoted.text(), learn=0.0), Turn(CRITIQUE, written)]


def start(config: run.Config, steps: int, slip: float, copy: float, out: Path) -> Path:
    """The checkpoint of ``config.model`` after ``steps`` steps of 32 such documents; made once."""
    if found := checkpoint.latest(out):
        return found
    model = run.load(config.model)
    optim = Optim(lr=1e-3, schedule="cosine", final=0.05)
    learner = Learner(model.engine.model, optim, Loss(), steps=steps, micro_tokens=1024)
    for step in range(steps):
        rows = [document(config.task, 32 * step + j, slip, copy) for j in range(32)]
        stats = learner.update([sample(model.chat, turns) for turns in rows])
        if (step + 1) % 50 == 0:
            print(f"warm-up {step + 1}/{steps}  loss {stats['loss']:.3f}", flush=True)
    return checkpoint.save(out, steps, learner, model.tokenizer)
