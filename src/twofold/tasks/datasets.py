r"""Problem sets from files and from the Hugging Face hub, with the methods of a task: ``problem`` and ``grade``.

Columns are recognised by their usual names (GSM8K, MATH, AIME, Minerva, OlympiadBench, DeepScaleR, verl, SkyRL, slime,
GPQA, MMLU, ARC, SVAMP, chat messages), and ``dataset.columns`` says which were taken. ``known`` has the sets that are
loaded by name. A malformed row is never dropped silently. It is an error that names the file and the line or, with
``skip_bad``, a warning and an entry of ``dataset.skipped``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Literal

from twofold.tasks.doubts import warn_of_references
from twofold.tasks.grading import as_grade, equal, grade_choice
from twofold.tasks.known import NAMED, Named
from twofold.tasks.procedural import PROCEDURAL
from twofold.tasks.reading import READERS, DataError, Read, listed, read_hub
from twofold.tasks.rows import Columns, choose_columns, described, to_problem
from twofold.tasks.stream import tell_left_out
from twofold.text.extract import Extract, choice_letter, final_answer
from twofold.text.notation import MAX_ANSWER, canonical
from twofold.types import Grade, Problem

log = logging.getLogger(__name__)

SKIP_BAD = "Repair the rows, or use the others: --skip-bad (in a config task.skip_bad, in Python skip_bad=True)."


@dataclass(frozen=True, slots=True)
class Dataset:
    """A list of problems. ``columns`` says in a line which columns were taken; ``skipped`` lists the rows left out by ``skip_bad``.

    ``same`` compares (reference, answer) where answers are not mathematics, and ``form`` tells such answers apart in a vote.
    """

    name: str
    problems: tuple[Problem, ...]
    columns: str
    skipped: tuple[str, ...] = ()
    same: Callable[[str, str], bool] | None = None
    form: Callable[[str], str] | None = None
    extract: Extract = "boxed"

    def __len__(self) -> int:
        return len(self.problems)

    def without(self, long: Collection[str]) -> Dataset:
        """Return the set without these problems, by their ids, and log it (see ``stream.tell_left_out``)."""
        kept = tuple(problem for problem in self.problems if problem.id not in long)
        tell_left_out(self.name, len(self), len(kept), long)
        return replace(self, problems=kept)

    def problem(self, split: Literal["train", "test"], i: int) -> Problem:
        """Return item ``i`` in file order. Both splits index the rows that were loaded; "train" begins again after the last.

        Raises IndexError for a test item that does not exist, and ValueError for another split.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split {split!r} is not one of train, test: a loaded set has no others")
        if split == "test" and not 0 <= i < len(self.problems):
            raise IndexError(f"{self.name} has {len(self.problems)} problems, there is no number {i}")
        return self.problems[i % len(self.problems)]

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        """Return the extracted answer and its grade. Multiple choice is graded by letter."""
        if "options" in problem.meta:
            return choice_letter(text), grade_choice(problem.answer, text)
        answer = final_answer(text, self.extract)
        if answer is None:
            return None, as_grade("no_answer")
        if self.same is not None:
            right = len(answer) <= MAX_ANSWER and self.same(problem.answer, answer)
            return answer, as_grade("correct" if right else "wrong")
        return answer, as_grade(equal(problem.answer, answer))


def load(
    source: str | Path,
    *,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    solution_column: str | None = None,
    limit: int | None = None,
    split: str = "test",
    skip_bad: bool = False,
    extract: Extract = "boxed",
) -> Dataset:
    """Load problems from ``source``: a .jsonl, .json, .csv or .parquet file, a name in ``NAMED``, or a hub repository.

    A file whose name is in ``NAMED``, such as cruxeval.jsonl, is read as a copy of that set, unless a column is given.

    Args:
        prompt_column: the column to take for the question, where the usual names find the wrong one. A dot enters a nested
            field ("reward_model.ground_truth").
        answer_column: the same for the answer. With one of the two a known set is posed and graded like any other.
        solution_column: the column with the worked solutions that SFT learns, text or chat messages.
        limit: use only the first ``limit`` rows.
        split: the split of a set on the hub. A file is one split already.
        skip_bad: keep the good rows, list the others in ``skipped``, and log a warning with their places.
        extract: where a solution's answer may stand (see ``text.extract.Extract``).

    Raises:
        DataError: rows are malformed, or there are none.
        ValueError: a column is missing, or the kind of file or the name is unknown.
    """
    name, reads, named = opened(source, split, own_columns=bool(prompt_column or answer_column))
    hint = as_published(Path(source)) if named.pose else ""
    rows = list(islice(wanted(reads, named), limit))
    asked = prompt_column, answer_column, solution_column
    columns = columns_of(rows, asked, named, hint)
    problems: list[Problem] = []
    bad: list[str] = []
    seen: dict[str, str] = {}
    for i, (where, row) in enumerate(rows):
        if not isinstance(row, str) and columns:
            try:
                problem = to_problem(name, i, row, columns, named.pose)
                if problem.id in seen:
                    raise ValueError(f"id {problem.id!r} was used before, at {seen[problem.id]}")
                seen[problem.id] = where
                problems.append(problem)
                continue
            except (ValueError, RecursionError) as e:
                row = str(e)
        bad.append(f"{where}: {row}")
    if bad and not (skip_bad and problems):
        raise DataError(str(source), bad, SKIP_BAD + hint)
    if columns is None:
        raise DataError(str(source), [f"{source}: no rows"])
    if bad:
        log.warning("%d of %d rows of %s are left out:\n%s", len(bad), len(rows), source, listed(bad))
    if named.same is None:
        warn_of_references({seen[p.id]: p.answer for p in problems if p.answer and "options" not in p.meta})
    first = next(row for _, row in rows if not isinstance(row, str))
    form = named.form or (named.same and canonical)
    return Dataset(name, tuple(problems), described(name, columns, first), tuple(bad), named.same, form, extract)


def columns_of(
    rows: Iterable[Read], asked: tuple[str | None, str | None, str | None], named: Named, hint: str
) -> Columns | None:
    """Return the columns that the first row decides which has some; None if there is no row. Raises ValueError if none has."""
    wrong: ValueError | None = None
    for where, row in rows:
        if not isinstance(row, str):
            try:
                return choose_columns(row, *asked, named, where, hint)
            except ValueError as error:
                wrong = wrong or error
    if wrong:
        raise wrong
    return None


def opened(source: str | Path, split: str, *, own_columns: bool) -> tuple[str, Iterator[Read], Named]:
    """Return a source's name, its rows, and what is known of the set. Raises ValueError if there is no such source.

    With ``own_columns`` a file is an ordinary one, whatever its name, and a set of the hub is posed like any other.
    """
    path = Path(source)
    if path.suffix in READERS:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is no file: a folder, a pipe or a device")
        named = Named("") if own_columns else NAMED.get(path.stem, Named(""))
        return path.stem, READERS[path.suffix](path), named
    if path.is_file():
        raise ValueError(f"{path} is not one of {', '.join(READERS)}")
    if str(source) not in NAMED and "/" not in str(source):
        known = [*(p().name for p in PROCEDURAL), "gym:NAME", *NAMED]
        close = get_close_matches(str(source).partition(":")[0], known, n=1)
        hint = f"did you mean {close[0]}? There" if close else "there"
        raise ValueError(
            f"{source}: no such task, set or file; {hint} are {', '.join(known)}, files, and sets of a hub (OWNER/NAME)"
        )
    named = NAMED.get(str(source), Named(str(source)))
    if own_columns:
        named = replace(named, pose=None, same=None)
    return str(source).replace("/", "-"), read_hub(named, split), named


def as_published(path: Path) -> str:
    """Return what an error says about a file that is read as a published set; nothing for a set of the hub."""
    if path.suffix not in READERS:
        return ""
    return (
        f" {path.name} was read as the published set {path.stem}, because of its name. If it is a set of your own, rename it, "
        "or name its columns with prompt_column and answer_column (--prompt-column, --answer-column)."
    )


def wanted(rows: Iterator[Read], named: Named) -> Iterator[Read]:
    """Return the rows that belong to the set, malformed ones included. A row without the column that says so belongs to it."""
    column, values = named.only or ("", ())
    return ((at, row) for at, row in rows if isinstance(row, str) or column not in row or row[column] in values)
