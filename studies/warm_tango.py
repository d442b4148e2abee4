r"""The common start of the Tango study: one model learns to solve with occasional slips, and to check only some of the steps.

The critiques of the shipped model are nearly deterministic (0.02 nats a token), so all verifications of one solution earn the same
and nothing can be reinforced. Here a critique of ``sums`` does each step again and compares. A critique of ``letters`` writes what
follows the step's letter in the word: a colon, if the letter is the word's last (a model this small learns to copy sooner than to
compare). With probability ``copy`` the critique repeats the step unchecked instead, and with probability SLIP its own work is
wrong. A step of a solution has a slip with probability ``slip``.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from shared import FIRST

from twofold import run
from twofold.models.checkpoints import latest_checkpoint
from twofold.recipes.sft import sample
from twofold.tasks.procedural import Letters, Sums, apply
from twofold.tasks.worked import Attempt, attempt_letters, attempt_sums, slipped
from twofold.text.chat import Turn
from twofold.text.prompts import CRITIQUE
from twofold.trainer import checkpoint
from twofold.trainer.learner import Learner, Loss
from twofold.trainer.optim import Optim
from twofold.types import Problem

SLIP = 0.05
LR = {"adamw": 1e-3, "muon": 3e-3}


class Taught(NamedTuple):
    """The lessons of the start, in ``steps`` steps of AdamW or Muon: solutions whose steps slip with probability ``slip``, and
    critiques that repeat a step unchecked with probability ``copy``. In half of the criticised solutions a step slips with
    probability ``planted``."""

    steps: int
    optim: Literal["adamw", "muon"]
    slip: float
    planted: float
    copy: float


def attempt(rng: random.Random, problem: Problem, slip: float) -> Attempt:
    """Return a worked solution in which a step goes wrong with probability ``slip``."""
    if "words" in problem.meta:
        return attempt_letters(rng, problem, slip)
    return attempt_sums(rng, problem, 0.0, slip)


def checks(rng: random.Random, problem: Problem, lines: list[str], copy: float) -> list[tuple[str, bool]]:
    """Return, for every step, the checker's own work and whether the step agrees with it."""
    done = []
    for k, line in enumerate(lines):
        if "words" in problem.meta:
            word = problem.meta["words"][k]
            letter = line.partition(": ")[2][0]
            found = rng.choice(word) if rng.random() < SLIP else f"{word}:"[word.rindex(letter) + 1]
            said, own = f"{word}: {letter}:", f"{word}: {letter}{found}"
        else:
            op, operand = problem.meta["steps"][k]
            said, value = line, int(re.match(r"-?\d+", line)[0])
            result = apply(value, op, operand)
            own = f"{value}{op}{operand}={slipped(rng, result) if rng.random() < SLIP else result}"
        own = said if rng.random() < copy else own
        done.append((own, own == said))
    return done


def right(problem: Problem, lines: list[str]) -> list[bool]:
    """Return whether each line of a sampled solution does its step correctly, given what the line before it says.

    After a line that cannot be read no line is right.
    """
    verdicts, before = [], "" if "words" in problem.meta else str(problem.meta["start"])
    for k, line in enumerate(lines):
        if "words" in problem.meta:
            word = problem.meta["words"][k] if k < len(problem.meta["words"]) else ""
            verdicts.append(bool(word) and line == f"{word}: {word[-1]}, {before}{word[-1]}")
            before = line.rpartition(" ")[2]
        elif k < len(problem.meta["steps"]) and re.fullmatch(r"-?\d+", before):
            op, operand = problem.meta["steps"][k]
            verdicts.append(line == f"{before}{op}{operand}={apply(int(before), op, operand)}")
            before = line.rpartition("=")[2]
        else:
            verdicts.append(False)
    return verdicts


def critique(checked: list[tuple[str, bool]]) -> str:
    """Return the text of a critique: each step done again with its verdict, then CORRECT for the whole if every step is."""
    mark = {True: "\\boxed{CORRECT}", False: "\\boxed{INCORRECT}"}
    steps = "\n".join(f"<step>{own} {mark[ok]}</step>" for own, ok in checked)
    whole = mark[all(ok for _, ok in checked)]
    return f"<step_verification>\n{steps}\n</step_verification>\n<final_verification>{whole}</final_verification>"


def document(task: Letters | Sums, i: int, taught: Taught) -> list[Turn]:
    """Return document i. Every third is a solution to learn; the others are quoted solutions with a critique to learn."""
    rng = random.Random(f"warm/{i}")
    problem = replace(task, level=rng.randint(2, task.level)).problem("train", FIRST + i)
    if i % 3 == 0:
        return [Turn(problem.question, attempt(rng, problem, taught.slip).text())]
    quoted = attempt(rng, problem, taught.planted * rng.randrange(2))
    written = critique(checks(rng, problem, quoted.lines, taught.copy))
    return [Turn(problem.question, quoted.text(), learn=0.0), Turn(CRITIQUE, written)]


def start(config: run.Config, taught: Taught, out: Path) -> Path:
    """Return the checkpoint of ``config.model`` after ``taught.steps`` steps of 32 such documents each, made if it does not exist."""
    if found := latest_checkpoint(out):
        return found
    model = run.load(config.model)
    optim, steps = Optim(taught.optim, LR[taught.optim], schedule="cosine", final=0.05), taught.steps
    learner = Learner(model.engine.model, optim, Loss(), steps=steps, micro_tokens=1024)
    for step in range(steps):
        rows = [document(config.task, 32 * step + j, taught) for j in range(32)]
        stats = learner.update([sample(model.chat, turns) for turns in rows])
        if (step + 1) % 50 == 0:
            print(f"warm-up {step + 1}/{steps}  loss {stats['loss']:.3f}", flush=True)
    return checkpoint.save(out, steps, {"policy": learner}, model.tokenizer, state={}, chat={}, inputs={})
