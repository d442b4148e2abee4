"""The procedural tasks ``sums``, ``countdown`` and ``letters``: no download, no end of problems, and exact grades.

How their problems are drawn, and what the splits mean, is in ``items``.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Literal

from twofold.ranges import Count, Range, Seed, Share, checked
from twofold.tasks.code import Code
from twofold.tasks.items import Split, draw
from twofold.text.extract import final_answer
from twofold.types import Grade, Problem


def apply(value: int, op: str, operand: int) -> int:
    """Return the result of one step."""
    return value + operand if op == "+" else value - operand if op == "-" else value * operand


def run_chain(start: int, steps: Sequence[tuple[str, int]], top: int) -> int | None:
    """Return the result of a chain of steps, or None if a value on the way is outside 0 .. ``top``."""
    value = start
    for op, operand in steps:
        value = apply(value, op, operand)
        if not 0 <= value <= top:
            return None
    return value


VERB = {"+": "Add", "-": "Subtract", "*": "Multiply by"}


@checked
class Sums:
    """Chained arithmetic of ``level`` steps on whole numbers from 0 to ``top``; ``ood`` problems go up to twice as far.

    Forward: "Start with 47. Add 38. Subtract 9. What is the result?" In a share ``choice`` of the items there are
    ``choices`` starts to choose from: "Start with 23, 47 or 61. Multiply by 2. Add 5. The result is 99. What was the start?"
    To find the start takes the whole chain backwards, and to check one takes it forwards. So checking is easier than
    solving, and many samples make the same wrong guess. Real problems have the same two properties, which make
    verification pay.
    """

    level: Count = 2
    choice: Share = 0.75
    choices: Annotated[int, Range(ge=2)] = 4
    operations: str = "+-*"
    """The operations to draw from."""
    top: Annotated[int, Range(ge=20)] = 99
    """The largest number."""
    seed: Seed = 0
    name: Literal["sums"] = "sums"

    def __post_init__(self) -> None:
        if not self.operations or set(self.operations) - set(VERB):
            raise ValueError(f"operations must be some of {' '.join(VERB)}, got {self.operations!r}")
        if self.choices > self.top // 4:
            raise ValueError(f"choices must be at most a quarter of top, {self.top // 4}; got {self.choices}")

    def problem(self, split: Split, i: int) -> Problem:
        return draw(self.name, self.seed, split, i, lambda rng: self._make(rng, split))

    def _make(self, rng: random.Random, split: Split) -> Problem:
        level = self.level + (split == "harder")
        top = 2 * self.top + 1 if split == "ood" else self.top
        while True:
            start = value = rng.randint(2, top)
            steps: list[tuple[str, int]] = []
            while len(steps) < level:
                op = rng.choice(self.operations)
                operand = rng.randint(2, 9) if op == "*" else rng.randint(2, 20 * self.top // 33)
                if 0 <= apply(value, op, operand) <= top:
                    steps.append((op, operand))
                    value = apply(value, op, operand)
            chain = " ".join(f"{VERB[op]} {operand}." for op, operand in steps)
            meta = {"start": start, "steps": steps, "result": value, "level": level}
            if rng.random() >= self.choice:
                question = f"Start with {start}. {chain} What is the result?"
                return Problem(f"{start} {chain}", question, str(value), meta | {"starts": [start]})
            others = [n for n in range(2, top + 1) if run_chain(n, steps, top) not in (None, value)]
            if len(others) >= self.choices - 1:  # else too few starts stay in range, and another chain is drawn
                break
        starts = rng.sample([start, *rng.sample(others, self.choices - 1)], self.choices)
        listed = f"{', '.join(map(str, starts[:-1]))} or {starts[-1]}"
        question = f"Start with {listed}. {chain} The result is {value}. What was the start?"
        return Problem(f"{sorted(starts)} {chain} {value}", question, str(start), meta | {"starts": starts})

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        return grade_literally(problem, text)

    def form(self, answer: str) -> str:
        """Return what tells answers apart in a vote: here a sum is not its value, and an anagram not the word."""
        return answer.strip()


@checked
class Countdown:
    """Reach a target with each of ``level`` numbers exactly once and + - *. Many expressions are right."""

    level: Annotated[int, Range(ge=2)] = 3
    seed: Seed = 0
    name: Literal["countdown"] = "countdown"

    def problem(self, split: Split, i: int) -> Problem:
        return draw(self.name, self.seed, split, i, lambda rng: self._make(rng, split))

    def _make(self, rng: random.Random, split: Split) -> Problem:
        level = self.level + (split == "harder")
        low, high = (13, 20) if split == "ood" else (2, 12)
        while True:
            numbers = [rng.randint(low, high) for _ in range(level)]
            value, text = numbers[0], str(numbers[0])
            for j, operand in enumerate(numbers[1:]):
                op = rng.choice("+-*")
                value = apply(value, op, operand)
                text = f"{'(' + text + ')' if j else text}{op}{operand}"
            if 2 <= value <= 99:
                break
        shown = rng.sample(numbers, level)
        question = f"Reach {value} with {', '.join(map(str, shown))}, each used once, with + - *."
        return Problem(
            f"{value} {sorted(numbers)}", question, text, {"numbers": shown, "target": value, "level": level}
        )

    def form(self, answer: str) -> str:
        """Return what tells answers apart in a vote: two expressions of one value may use other numbers."""
        return "".join(answer.split())

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        answer = final_answer(text)
        if answer is None:
            return None, Grade(0.0, "no_answer")
        try:
            value, used = evaluate(answer)
        except ValueError:
            return answer, Grade(0.0, "wrong")
        right = value == problem.meta["target"] and sorted(used) == sorted(problem.meta["numbers"])
        return answer, Grade(1.0, "correct") if right else Grade(0.0, "wrong")


def evaluate(expression: str) -> tuple[Fraction, list[int]]:
    """Return the value of an expression of whole numbers, + - * / and brackets, and the numbers that it uses.

    >>> evaluate("(3+7)*2")
    (Fraction(20, 1), [3, 7, 2])

    Raises ValueError for anything else. Model output is parsed, never executed.
    """
    if len(expression) > 200:
        raise ValueError("expression is longer than 200 characters")
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, MemoryError, RecursionError) as e:
        raise ValueError(f"not an expression: {expression!r}") from e
    used: list[int] = []

    def walk(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant(value=int(v)) if not isinstance(v, bool) and v < 10**9:
                used.append(v)
                return Fraction(v)
            case ast.BinOp(left=left, op=op, right=right):
                a, b = walk(left), walk(right)
                match op:
                    case ast.Add():
                        return a + b
                    case ast.Sub():
                        return a - b
                    case ast.Mult():
                        return a * b
                    case ast.Div() if b:
                        return a / b
        raise ValueError(f"not allowed in an expression: {ast.unparse(node)!r}")

    return walk(tree), used


@checked
class Letters:
    """Concatenate the last letters of ``level`` made-up words."""

    level: Count = 3
    seed: Seed = 0
    name: Literal["letters"] = "letters"

    def problem(self, split: Split, i: int) -> Problem:
        return draw(self.name, self.seed, split, i, lambda rng: self._make(rng, split))

    def _make(self, rng: random.Random, split: Split) -> Problem:
        level = self.level + (split == "harder")
        low, high = (6, 8) if split == "ood" else (3, 5)
        words = [
            "".join(rng.choice("aeiou" if j % 2 else "bdfgklmnprst") for j in range(rng.randint(low, high)))
            for _ in range(level)
        ]
        question = f"Take the last letters of {', '.join(words)} and join them."
        return Problem(question, question, "".join(w[-1] for w in words), {"words": words, "level": level})

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        return grade_literally(problem, text)

    def form(self, answer: str) -> str:
        """Return what tells answers apart in a vote: here a sum is not its value, and an anagram not the word."""
        return answer.strip()


def grade_literally(problem: Problem, text: str) -> tuple[str | None, Grade]:
    """Return the final answer and its grade. Only the reference itself is correct: a sum in place of its value earns nothing."""
    answer = final_answer(text)
    if answer is None:
        return None, Grade(0.0, "no_answer")
    return answer, Grade(1.0, "correct") if answer.strip() == problem.answer else Grade(0.0, "wrong")


PROCEDURAL = (Sums, Countdown, Letters, Code)
