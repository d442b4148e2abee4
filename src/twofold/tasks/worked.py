"""Worked solutions of the procedural tasks, with planted errors: every line, and whether it is right.

After a slip a solution continues correctly from the wrong number, so only the step with the slip is wrong.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from twofold.tasks.procedural import Countdown, apply
from twofold.types import Problem


@dataclass(slots=True)
class Attempt:
    """A worked attempt: its lines, which of them are right, its answer, and whether the answer is correct.

    ``reached`` is the number in which its chain ends; None where there is no chain.
    """

    lines: list[str]
    right: list[bool]
    answer: str
    correct: bool
    reached: int | None = None

    def text(self) -> str:
        return "\n".join([*self.lines, f"\\boxed{{{self.answer}}}"])


def slipped(rng: random.Random, value: int) -> int:
    """Return a wrong result near ``value``: off by one, a missed carry, digits reversed, or off by up to 9."""
    wrong = rng.choice(
        [value + 1, value - 1, value + 10, value - 10, int(str(abs(value))[::-1]), value + rng.randint(2, 9)]
    )
    return wrong if wrong != value else value + 1


def chain(
    rng: random.Random, start: int, steps: list[tuple[str, int]], slip: float
) -> tuple[list[str], list[bool], int]:
    """Return the lines "a op b=c" of a chain, which of them are right, and the number in which it ends."""
    lines, right, value = [], [], start
    for op, asked in steps:
        operand = asked
        kind = rng.random()
        if kind < slip / 4:  # copied wrongly from the question
            operand = max(2, asked + rng.choice([-1, 1, 10]))
        result = apply(value, op, operand)
        if slip / 4 <= kind < slip:
            result = slipped(rng, result)
        lines.append(f"{value}{op}{operand}={result}")
        right.append(operand == asked and result == apply(value, op, operand))
        value = result
    return lines, right, value


def attempt_sums(rng: random.Random, problem: Problem, wrong: float, slip: float) -> Attempt:
    """Return an attempt that runs the chain from a start and, where starts were to choose from, compares its end with the goal.

    ``wrong`` is the chance of a wrong start, ``slip`` that of a slip in a step.
    """
    meta = problem.meta
    start, starts, goal = meta["start"], meta["starts"], meta["result"]
    choice = len(starts) > 1
    if choice and rng.random() < wrong:
        start = rng.choice([s for s in starts if s != start])
    lines, right, value = chain(rng, start, meta["steps"], slip)
    if choice:
        lines.append(f"{value} vs {goal}")
        right.append(value == goal)
    answer = str(start if choice else value)
    return Attempt(lines, right, answer, answer == problem.answer, value)


def attempt_countdown(rng: random.Random, problem: Problem, wrong: float, slip: float) -> Attempt:
    """Return an attempt that computes one expression and compares its value with the target.

    ``wrong`` is the chance of a random expression in place of the right one, ``slip`` that of a slip in a step.
    """
    numbers, target = list(problem.meta["numbers"]), problem.meta["target"]
    if rng.random() < wrong:
        rng.shuffle(numbers)
        ops = [rng.choice("+-*") for _ in numbers[1:]]
    else:
        flat = problem.answer.replace("(", "").replace(")", "")
        ops = [c for c in flat if c in "+-*"]
        numbers = [int(x) for x in flat.replace("-", "+").replace("*", "+").split("+")]
    steps = list(zip(ops, numbers[1:], strict=True))
    text = str(numbers[0])
    for j, (op, operand) in enumerate(steps):
        text = f"{'(' + text + ')' if j else text}{op}{operand}"
    lines, right, value = chain(rng, numbers[0], steps, slip)
    lines.append(f"{value} vs {target}")
    right.append(value == target)
    _, grade = Countdown().grade(problem, f"\\boxed{{{text}}}")
    return Attempt(lines, right, text, grade.label == "correct", value)


def attempt_letters(rng: random.Random, problem: Problem, slip: float) -> Attempt:
    """Return an attempt with a line per word. ``slip`` is the chance of taking another letter of the word."""
    lines, right, joined = [], [], ""
    for word in problem.meta["words"]:
        letter = word[-1]
        if rng.random() < slip:
            letter = rng.choice([c for c in word if c != word[-1]] or ["x"])
        joined += letter
        lines.append(f"{word}: {letter}, {joined}")
        right.append(letter == word[-1])
    return Attempt(lines, right, joined, joined == problem.answer)
