r"""ProcessBench (arXiv:2412.06559), find the first wrong step of a solution: the published files, and a procedural twin.

The twin plants slips in worked solutions of a procedural task, so the first wrong step is known by construction, and there
is no end of cases.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from twofold.maths.processbench import first_error
from twofold.tasks.items import Split
from twofold.tasks.known import Named, Row
from twofold.tasks.procedural import Countdown, Letters, Sums
from twofold.tasks.reading import READERS, DataError, read_hub
from twofold.tasks.rows import clean
from twofold.tasks.stream import places
from twofold.tasks.worked import Attempt, attempt_countdown, attempt_letters, attempt_sums
from twofold.types import Problem

HUB = "Qwen/ProcessBench"
SPLITS = ("gsm8k", "math", "olympiadbench", "omnimath")


@dataclass(frozen=True, slots=True)
class Case:
    """A solution in steps. ``label`` is the index of the first wrong step, from 0; it is -1 if every step is right.

    ``final_answer_correct`` is not the label, because a right answer may follow a wrong step. ``generator`` wrote the
    solution. ``answer`` is what the solution boxes after its steps; it is empty if the last step boxes the answer.
    """

    id: str
    problem: str
    steps: tuple[str, ...]
    label: int
    final_answer_correct: bool
    generator: str = ""
    answer: str = ""


def some_cases(source: Sums | Letters | Countdown | str | Path, n: int, split: Split = "test") -> list[Case]:
    """Return ``n`` cases of a procedural task, about different problems and with planted errors, or at most the first ``n``
    that ``load_cases`` loads."""
    if isinstance(source, str | Path):
        return load_cases(source, n)
    twin = Planted(source, split=split)
    return [twin.case(i) for i in places(source, split, n)]


def load_cases(source: str | Path, limit: int | None = None) -> list[Case]:
    """Load the cases of a .jsonl, .json, .csv or .parquet file with the published fields, or of a published split by its name.

    Raises DataError that lists the rows which are no such cases, and ValueError for a source that is neither.
    """
    path = Path(source)
    if path.suffix in READERS:
        rows = READERS[path.suffix](path)
    elif str(source) in SPLITS:
        rows = read_hub(Named(HUB, split=str(source)), str(source))
    else:
        raise ValueError(f"{source} is neither a file ({', '.join(READERS)}) nor one of {', '.join(SPLITS)}")
    cases: list[Case] = []
    bad: list[str] = []
    for where, row in rows:
        if len(cases) == limit:
            break
        try:
            cases.append(as_case(row))
        except (ValueError, RecursionError) as e:
            bad.append(f"{where}: {e}")
    if bad or not cases:
        raise DataError(str(source), bad or [f"{source}: no rows"])
    return cases


def as_case(row: Row | str) -> Case:
    """Return a row as a case. Raises ValueError that says what is wrong with the row."""
    if isinstance(row, str):
        raise ValueError(row)
    steps, label, correct = row.get("steps"), row.get("label"), row.get("final_answer_correct")
    if not isinstance(steps, list) or not steps or not all(isinstance(s, str) for s in steps):
        raise ValueError("'steps' must be a list of texts, at least one")
    if type(label) is not int or not -1 <= label < len(steps):
        raise ValueError(f"'label' must be -1 or the index of one of {len(steps)} steps, got {label!r}")
    if type(correct) is not bool:
        raise ValueError(f"'final_answer_correct' must be true or false, got {correct!r}")
    texts = {name: row.get(name) for name in ("id", "problem", "generator")}
    if missing := [name for name, text in texts.items() if not isinstance(text, str)]:
        raise ValueError(f"no text under {', '.join(map(repr, missing))}")
    cleaned = {name: clean(name, str(text)) for name, text in texts.items()}
    return Case(cleaned["id"], cleaned["problem"], tuple(steps), label, correct, cleaned["generator"])


@dataclass(frozen=True, slots=True)
class Planted:
    """The twin: case i is a pure function of (task, seed, i). Even cases have a wrong step, odd ones have none.

    In an even case ``slip`` is the chance of a slip in a step, and ``wrong_guess`` that of a wrong start (``sums``) or a
    random expression (``countdown``). A wrong start is not itself a wrong step: the wrong step is the line that compares its
    result with the goal.
    """

    task: Sums | Letters | Countdown
    slip: float = 0.3
    wrong_guess: float = 0.3
    seed: int = 0
    split: Split = "test"

    def __post_init__(self) -> None:
        if not 0 < self.slip <= 1 or not 0 <= self.wrong_guess <= 1:
            raise ValueError(
                f"slip must be in (0, 1], or no case would get its error, wrong_guess in [0, 1]; got {self}"
            )

    def case(self, i: int) -> Case:
        name = self.task.name
        problem = self.task.problem(self.split, i)
        rng = random.Random(f"planted/{name}/{self.seed}/{i}")
        flawed = i % 2 == 0
        while True:
            found = self._attempt(rng, problem, flawed)
            label = first_error(found.right)
            if (label >= 0) == flawed:
                return Case(
                    f"{name}-{self.seed}-{i}", problem.question, tuple(found.lines), label, found.correct, "planted",
                    found.answer,
                )  # fmt: skip

    def _attempt(self, rng: random.Random, problem: Problem, flawed: bool) -> Attempt:
        if isinstance(self.task, Letters):
            return attempt_letters(rng, problem, self.slip * flawed)
        make: Callable[[random.Random, Problem, float, float], Attempt]
        make = attempt_sums if isinstance(self.task, Sums) else attempt_countdown
        return make(rng, problem, self.wrong_guess * flawed, self.slip * flawed)
