"""The corpus of the shipped base model: worked solutions with honest slips, critiques, a few judgements.

Document ``i`` is a pure function of (seed, i): a conversation about one training-side problem.
What it teaches, and what it leaves to reinforcement learning:

* solutions in every task's format, one step per line; part of them contain a wrong guess or a slip and go on honestly;
* thoughts between ``<think>`` tags: several attempts, each checked, the next opened by "Wait";
* critiques that mark every step and the whole of a *quoted* solution with planted errors CORRECT or INCORRECT
  (so spotting errors is learnt, making them is not);
* Yes/No questions about single facts of a quoted solution (do the last two numbers agree, is every step right);
* the Yes/No judgement itself **with answers drawn at random**, three Yes to one No: the format is familiar, the
  skill is not there, and an untrained judge is as lenient as untrained judges are.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from twofold.tasks.procedural import Countdown, Letters, Sums, apply
from twofold.text.chat import CRITIQUE, JUDGE, Turn
from twofold.types import Problem

FACT = 10.0
"""Weight of the answer to a question about a fact: one token among hundreds, and all that the document is for."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the corpus. Each is a probability."""

    countdown: float = 0.12
    letters: float = 0.06
    choice: float = 0.75
    think: float = 0.10
    critique: float = 0.25
    """Of the rest, with the next two: the solution is only quoted (nothing of it is learnt), with planted errors."""
    questions: float = 0.30
    """A Yes/No question about one fact of the quoted text."""
    judgement: float = 0.08
    """The Yes/No question about the whole, answered at random (three Yes to one No)."""
    wrong_guess: float = 0.50
    slip: float = 0.02
    """Per step, where the solution is learnt."""
    planted_guess: float = 0.50
    planted_slip: float = 0.10


@dataclass(slots=True)
class Attempt:
    """A worked attempt: its lines, which of them are right, the answer, and whether that is right."""

    lines: list[str]
    right: list[bool]
    answer: str
    correct: bool
    reached: int | None = None

    def text(self) -> str:
        return "\n".join([*self.lines, f"\\boxed{{{self.answer}}}"])


def slipped(rng: random.Random, value: int) -> int:
    """A wrong result near ``value``: off by one, a carry missed, or two digits swapped."""
    wrong = rng.choice(
        [value + 1, value - 1, value + 10, value - 10, int(str(abs(value))[::-1]), value + rng.randint(2, 9)]
    )
    return wrong if wrong != value else value + 1


def chain(
    rng: random.Random, start: int, steps: list[tuple[str, int]], slip: float
) -> tuple[list[str], list[bool], int]:
    """Lines "a op b=c" of a chain, which of them are right, and where it ends."""
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
    """A start is chosen, the chain run from it, and where that leads set beside what was asked."""
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
    lines, right, joined = [], [], ""
    for word in problem.meta["words"]:
        letter = word[-1]
        if rng.random() < slip:
            letter = rng.choice([c for c in word if c != word[-1]] or ["x"])
        joined += letter
        lines.append(f"{word}: {letter}, {joined}")
        right.append(letter == word[-1])
    return Attempt(lines, right, joined, joined == problem.answer)


def critique(attempt: Attempt) -> str:
    """A verdict per step, then one for the whole, in the tagged format that Tango's verifier uses."""
    mark = {True: "\\boxed{CORRECT}", False: "\\boxed{INCORRECT}"}
    steps = "\n".join(f"<step>{mark[ok]}</step>" for ok in attempt.right)
    whole = mark[attempt.correct and all(attempt.right)]
    return f"<step_verification>\n{steps}\n</step_verification>\n<final_verification>{whole}</final_verification>"


def fact(rng: random.Random, attempt: Attempt, goal: int | None) -> Turn:
    """A Yes/No question about one thing that a judge would look at, with the true answer."""
    if goal is not None and rng.random() < 0.7:
        return Turn(
            "Do the last two numbers agree? Answer Yes or No.", "Yes" if attempt.reached == goal else "No", FACT
        )
    sums = attempt.right if goal is None else attempt.right[:-1]
    return Turn("Is every step right? Answer Yes or No.", "Yes" if all(sums) else "No", FACT)


def thought(rng: random.Random, attempt: Callable[[float], Attempt], goal: int) -> str:
    """Up to five attempts between think tags, each checked against the goal; the answer is the last one's."""
    episodes = []
    for n in range(5):
        now = attempt(0.6 if n < 2 else 0.3)
        verdict = f"{goal} is right." if now.reached == goal else f"{now.reached} is not {goal}."
        episodes.append("\n".join([f"{'Wait. ' if n else ''}Try {now.answer}.", *now.lines[:-1], verdict]))
        if now.reached == goal or rng.random() < 0.1:
            break
    return "<think>\n" + "\n\n".join(episodes) + f"\n</think>\n\\boxed{{{now.answer}}}"


def document(seed: int, i: int, mix: Mix) -> list[Turn]:
    """The turns of document ``i``."""
    rng = random.Random(f"corpus/{seed}/{i}")
    kind, level = rng.random(), rng.choice([1, 2, 2, 2, 3, 3])
    goal = None
    problem: Problem
    attempt: Callable[[float, float], Attempt]
    if kind < mix.letters:
        problem = Letters(level + 1, seed).problem("train", i)
        attempt = lambda wrong, slip: attempt_letters(rng, problem, slip)  # noqa: E731
    elif kind < mix.letters + mix.countdown:
        problem = Countdown(max(2, level), seed).problem("train", i)
        goal = problem.meta["target"]
        attempt = lambda wrong, slip: attempt_countdown(rng, problem, wrong, slip)  # noqa: E731
    else:
        problem = Sums(level, mix.choice, seed=seed).problem("train", i)
        goal = problem.meta["result"] if len(problem.meta["starts"]) > 1 else None
        attempt = lambda wrong, slip: attempt_sums(rng, problem, wrong, slip)  # noqa: E731
    if goal is not None and rng.random() < mix.think:
        return [Turn(problem.question, thought(rng, lambda wrong: attempt(wrong, mix.slip), goal))]
    use = rng.random() - mix.critique
    if use < mix.questions + mix.judgement:
        quoted = attempt(mix.planted_guess, mix.planted_slip)
        if use < 0:
            follow = Turn(CRITIQUE, critique(quoted))
        elif use < mix.questions:
            follow = fact(rng, quoted, goal)
        else:
            follow = Turn(JUDGE, rng.choice(["Yes", "Yes", "Yes", "No"]))
        return [Turn(problem.question, quoted.text(), learn=0.0), follow]
    return [Turn(problem.question, attempt(mix.wrong_guess, mix.slip).text())]
