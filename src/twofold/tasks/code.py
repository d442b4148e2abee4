r"""The procedural task ``code``: write a small Python function, which hidden tests then call in a sandbox.

A problem is a chain of steps on a list of whole numbers, in words and with two examples:

    Write a Python function f(xs) for a list xs of whole numbers. Leave out the multiples of 3. Add 4 to each. Return their
    sum. For example, f([3, 5, -2]) is 11 and f([6, 1]) is 5. Put it into a ```python block.

A solution's answer is the program in its last complete block. The reward is 1 if the function returns the right value for
every hidden test, else 0. See ``sandbox`` for how it is run.
"""

from __future__ import annotations

import io
import random
import tokenize
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal

from twofold.ranges import Range, Seed, checked
from twofold.tasks import sandbox
from twofold.tasks.items import Split, draw, on_side
from twofold.text.extract import last_program
from twofold.types import Grade, Label, Problem

TESTS = 12
"""Hidden tests of a problem."""
TOP = 20
"""The largest number in the tests; ``ood`` problems have three times as large ones."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step in words, as a Python expression, and itself. ``k`` is drawn from ``operands``, if it has any."""

    words: str
    source: str
    run: Callable[[list[int], int], Any]
    operands: tuple[int, int] | None = None


STEPS = (
    Step("Keep the even numbers.", "[x for x in xs if x % 2 == 0]", lambda xs, k: [x for x in xs if x % 2 == 0]),
    Step("Keep the odd numbers.", "[x for x in xs if x % 2 == 1]", lambda xs, k: [x for x in xs if x % 2 == 1]),
    Step("Keep the numbers above {k}.", "[x for x in xs if x > {k}]", lambda xs, k: [x for x in xs if x > k], (-9, 9)),
    Step("Keep the numbers below {k}.", "[x for x in xs if x < {k}]", lambda xs, k: [x for x in xs if x < k], (-9, 9)),
    Step(
        "Leave out the multiples of {k}.", "[x for x in xs if x % {k}]", lambda xs, k: [x for x in xs if x % k], (2, 5)
    ),
    Step("Add {k} to each.", "[x + {k} for x in xs]", lambda xs, k: [x + k for x in xs], (2, 9)),
    Step("Multiply each by {k}.", "[x * {k} for x in xs]", lambda xs, k: [x * k for x in xs], (2, 9)),
    Step("Square each.", "[x * x for x in xs]", lambda xs, k: [x * x for x in xs]),
    Step("Replace each by its absolute value.", "[abs(x) for x in xs]", lambda xs, k: [abs(x) for x in xs]),
    Step("Reverse the order.", "xs[::-1]", lambda xs, k: xs[::-1]),
    Step("Sort them, smallest first.", "sorted(xs)", lambda xs, k: sorted(xs)),
    Step(
        "Leave out repetitions: keep the first of each.",
        "list(dict.fromkeys(xs))",
        lambda xs, k: list(dict.fromkeys(xs)),
    ),
    Step("Leave out the first number.", "xs[1:]", lambda xs, k: xs[1:]),
    Step(
        "Replace each by the sum of all up to it.",
        "[sum(xs[: i + 1]) for i in range(len(xs))]",
        lambda xs, k: list(accumulate(xs)),
    ),
    Step(
        "Replace them by the differences of neighbours, each later number less the one before it.",
        "[b - a for a, b in zip(xs, xs[1:])]",
        lambda xs, k: [b - a for a, b in pairwise(xs)],
    ),
)
ENDS = (
    Step("Return the list.", "xs", lambda xs, k: xs),
    Step("Return their sum.", "sum(xs)", lambda xs, k: sum(xs)),
    Step("Return how many there are.", "len(xs)", lambda xs, k: len(xs)),
    Step("Return the largest, or None if there is none.", "max(xs, default=None)", lambda xs, k: max(xs, default=None)),
    Step(
        "Return the smallest, or None if there is none.", "min(xs, default=None)", lambda xs, k: min(xs, default=None)
    ),
    Step("Return them as a text, joined by commas.", '",".join(map(str, xs))', lambda xs, k: ",".join(map(str, xs))),
)

Chain = Sequence[tuple[Step, int]]
"""Steps with their operands, an end last."""


def run_chain(chain: Chain, xs: list[int]) -> Any:
    """Return what a chain makes of a list."""
    value: Any = xs
    for step, k in chain:
        value = step.run(value, k)
    return value


def source_of(chain: Chain) -> str:
    """Return a chain as a Python function."""
    *steps, (end, _) = chain
    lines = [f"    xs = {step.source.format(k=k)}\n" for step, k in steps]
    return f"def f(xs):\n{''.join(lines)}    return {end.source}\n"


def near(chain: Chain) -> list[Chain]:
    """Return the chains that a careless solver might write: without a step, or with an operand that is off by one."""
    *steps, end = chain
    found: list[Chain] = []
    for j, (step, k) in enumerate(steps):
        found.append([*steps[:j], *steps[j + 1 :], end])
        if step.operands:
            found += [[*steps[:j], (step, k + off), *steps[j + 1 :], end] for off in (-1, 1)]
    return found


@checked
class Code:
    """Write a Python function that takes a list of whole numbers through ``level`` steps."""

    level: Annotated[int, Range(ge=1, le=6)] = 2
    seed: Seed = 0
    name: Literal["code"] = "code"

    def problem(self, split: Split, i: int) -> Problem:
        return draw(self.name, self.seed, split, i, lambda rng: self._make(rng, split))

    def _make(self, rng: random.Random, split: Split) -> Problem:
        level = self.level + (split == "harder")
        while True:
            steps = [(step, _operand(rng, step, split == "ood")) for step in rng.sample(STEPS, level)]
            chain = [*steps, (rng.choice(ENDS), 0)]
            words = " ".join(step.words.format(k=k) for step, k in chain)
            if not on_side(words, split) or (split == "ood" and not any(step.operands for step, _ in steps)):
                continue
            # the inputs depend on the chain only, because the problem's id stands for all of it
            inputs = _inputs(random.Random(words), chain, 3 * TOP if split == "ood" else TOP)
            if tells(chain, inputs[2:]) and run_chain(chain, inputs[0]) != run_chain(chain, inputs[1]):
                break
        examples = " and ".join(f"f({xs}) is {run_chain(chain, xs)!r}" for xs in inputs[:2])
        question = (
            f"Write a Python function f(xs) for a list xs of whole numbers. {words} For example, {examples}. "
            "Put it into a ```python block."
        )
        tests = [[[xs], run_chain(chain, xs)] for xs in inputs[2:]]
        source = source_of(chain)
        solution = f"```python\n{source}```"
        return Problem(words, question, source, {"tests": tests, "level": level, "solution": solution})

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        """Return the program and its grade. Raises ``sandbox.Unsafe`` where programs cannot be isolated.

        ``timeout`` is a program over its limit of processor time: like one that is wrong, it earns 0. ``error`` is a program
        of which nothing is known, because its process was ended from outside: its reward is unknown.
        """
        found = last_program(text)
        if found is None:
            return None, Grade(0.0, "no_answer")
        label = judged(found[0], "f", problem.meta["tests"])
        rewards = {"correct": 1.0, "wrong": 0.0, "timeout": 0.0}
        return found[0], Grade(rewards.get(label), label)

    @property
    def extract(self) -> str:
        """What an evaluation notes of where answers stand. Plans that read boxed answers are refused."""
        return "program"

    def form(self, answer: str) -> str:
        """Return what tells programs apart in a vote: the program without comments, blank lines and its own spacing.

        Two programs in other words are two answers, though they may do the same.
        """
        try:
            return _normal(answer)
        except (tokenize.TokenError, SyntaxError):
            return answer.strip()


def judged(program: str, function: str, tests: Sequence[Sequence[Any]]) -> Label:
    """Return the label of a program. A test is a list of arguments and the value that the function must return for them."""
    try:
        found = sandbox.call(program, function, [arguments for arguments, _ in tests])
    except TimeoutError:
        return "timeout"
    except sandbox.Broken:
        return "error"
    return "correct" if found == [[value] for _, value in tests] else "wrong"


def tells(chain: Chain, inputs: Sequence[list[int]]) -> bool:
    """Return whether tests on these inputs tell a chain from all that are ``near`` it, and from a constant, in short values."""
    wanted = [run_chain(chain, xs) for xs in inputs]
    if any(wanted.count(value) > len(wanted) // 2 or len(repr(value)) > 120 for value in wanted):
        return False
    return all(
        any(run_chain(other, xs) != value for xs, value in zip(inputs, wanted, strict=True)) for other in near(chain)
    )


def _operand(rng: random.Random, step: Step, wide: bool) -> int:
    low, high = step.operands or (0, 0)
    return rng.randint(high + 1, 3 * high) if wide and high else rng.randint(low, high)


def _inputs(rng: random.Random, chain: Chain, top: int) -> list[list[int]]:
    """Return two lists for the examples, and those of the tests: the empty one, a single number, and longer ones.

    Many of their numbers are near an operand, where a wrong comparison shows.
    """
    operands = [k for step, k in chain if step.operands] or [0]

    def number() -> int:
        return rng.choice(operands) + rng.randint(-1, 1) if rng.random() < 0.3 else rng.randint(-top, top)

    sizes = [rng.randint(3, 5), rng.randint(3, 5), 0, 1, *(rng.randint(3, 8) for _ in range(TESTS - 2))]
    return [[number() for _ in range(size)] for size in sizes]


def _normal(program: str) -> str:
    """Return a program in lines of tokens with one space between. Raises TokenError or SyntaxError for what is no Python."""
    lines: list[str] = []
    words: list[str] = []
    depth = 0
    for token in tokenize.generate_tokens(io.StringIO(program).readline):
        match token.type:
            case tokenize.INDENT:
                depth += 1
            case tokenize.DEDENT:
                depth -= 1
            case tokenize.NEWLINE:
                lines.append("    " * depth + " ".join(words))
                words = []
            case tokenize.COMMENT | tokenize.NL | tokenize.ENDMARKER:
                pass
            case _:
                words.append(token.string)
    return "\n".join(lines)
