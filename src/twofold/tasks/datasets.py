r"""Problem sets from files and from the Hugging Face hub, with the methods of a task: ``problem`` and ``grade``.

Columns are recognised by their usual names (GSM8K, MATH, AIME, Minerva, OlympiadBench, DeepScaleR, verl, SkyRL, slime,
GPQA), and ``dataset.columns`` says which were taken. ``known`` has the sets that are loaded by name. A malformed row is
never dropped silently. It is an error that names the file and the line or, with ``skip_bad``, an entry of
``dataset.skipped``.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from twofold.tasks.doubts import warn_of_references
from twofold.tasks.grading import as_grade, equal, grade_choice
from twofold.tasks.known import NAMED, Named, Row
from twofold.tasks.procedural import PROCEDURAL
from twofold.text.extract import Extract, choice_letter, final_answer, last_boxed, only_answer
from twofold.text.notation import MAX_ANSWER, canonical
from twofold.types import Grade, Problem

MAX_ROW = 1 << 20
"""The most bytes of a row."""
SHOWN = 10
"""The most bad rows that an error message lists."""

Read = tuple[str, "Row | str"]
"""The place of a row ("file:12"), and the row itself or a string that says what is wrong with it."""


class DataError(ValueError):
    """Rows that cannot be used. ``bad`` has one line for each: "file:12: no answer"."""

    def __init__(self, source: str, bad: list[str], hint: str = "") -> None:
        self.bad = bad
        shown = "\n  ".join(bad[:SHOWN])
        more = f"\n  ... and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        repair = "Repair the rows, or pass skip_bad=True to use the others."
        super().__init__(f"{len(bad)} unusable row(s) in {source}:\n  {shown}{more}\n{repair}{hint}")


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
    limit: int | None = None,
    split: str = "test",
    skip_bad: bool = False,
    extract: Extract = "boxed",
) -> Dataset:
    """Load problems from ``source``: a .jsonl, .json, .csv or .parquet file, a name in ``NAMED``, or a hub repository.

    A file whose name is in ``NAMED``, such as cruxeval.jsonl, is read as a copy of that set, unless a column is given.

    Args:
        prompt_column, answer_column: the columns to take, where the usual names find the wrong ones. A dot enters a nested
            field ("reward_model.ground_truth"). With one of them a known set is posed and graded like any other.
        limit: use only the first ``limit`` rows.
        split: the split of a set on the hub. A file is one split already.
        skip_bad: keep the good rows and list the others in ``skipped``.
        extract: where a solution's answer may stand (see ``text.extract.Extract``).

    Raises:
        DataError: rows are malformed, or there are none.
        ValueError: a column is missing, or the kind of file or the name is unknown.
    """
    name, rows, named = opened(source, split, own_columns=bool(prompt_column or answer_column))
    hint = as_published(Path(source)) if named.pose else ""
    problems: list[Problem] = []
    bad: list[str] = []
    seen: dict[str, str] = {}
    columns: tuple[str, str] | None = None
    for i, (where, row) in enumerate(islice(wanted(rows, named), limit)):
        if not isinstance(row, str):
            if columns is None:
                columns = choose_columns(row, prompt_column, answer_column, named, where, hint)
            try:
                problem = to_problem(name, i, row, *columns, named.pose)
                if problem.id in seen:
                    raise ValueError(f"id {problem.id!r} was used before, at {seen[problem.id]}")
                seen[problem.id] = where
                problems.append(problem)
                continue
            except ValueError as e:
                row = str(e)
        bad.append(f"{where}: {row}")
    if bad and not (skip_bad and problems):
        raise DataError(str(source), bad, hint)
    if columns is None:
        raise DataError(str(source), [f"{source}: no rows"])
    if named.same is None:
        warn_of_references({seen[p.id]: p.answer for p in problems if "options" not in p.meta})
    taken = f"{name}: question from {columns[0]!r}, answer from {columns[1]!r}"
    return Dataset(
        name, tuple(problems), taken, tuple(bad), named.same, named.form or (named.same and canonical), extract
    )


def opened(source: str | Path, split: str, *, own_columns: bool) -> tuple[str, Iterator[Read], Named]:
    """Return a source's name, its rows, and what is known of the set. Raises ValueError if there is no such source.

    With ``own_columns`` a file is an ordinary one, whatever its name, and a set of the hub is posed like any other.
    """
    path = Path(source)
    if path.suffix in READERS:
        named = Named("") if own_columns else NAMED.get(path.stem, Named(""))
        return path.stem, READERS[path.suffix](path), named
    if path.is_file():
        raise ValueError(f"{path} is not one of {', '.join(READERS)}")
    if str(source) not in NAMED and "/" not in str(source):
        known = ", ".join([*(p().name for p in PROCEDURAL), "gym:NAME", *NAMED])
        raise ValueError(
            f"{source}: no such task, set or file; there are {known}, files, and sets of a hub (OWNER/NAME)"
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


# --- reading rows -----------------------------------------------------------------------------------------------------


def read_jsonl(path: Path) -> Iterator[Read]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{path.name}:{number}", parse_line(line)


def parse_line(line: bytes) -> Row | str:
    if len(line) > MAX_ROW:
        return f"a row of {len(line):,} bytes, more than {MAX_ROW:,}"
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as e:
        return f"not UTF-8 at byte {e.start}"
    except (json.JSONDecodeError, RecursionError) as e:
        return f"not JSON: {e}"
    return row if isinstance(row, dict) else f"a JSON {type(row).__name__}, not an object"


def read_json(path: Path) -> Iterator[Read]:
    """Read a list of objects. A row is named by its position in the list."""
    try:
        rows = json.loads(path.read_bytes().decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        raise DataError(str(path), [f"{path.name}: not UTF-8 JSON: {e}"]) from e
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds a JSON {type(rows).__name__}; a list of objects is needed")
    for number, row in enumerate(rows, 1):
        yield f"{path.name}:{number}", row if isinstance(row, dict) else f"a JSON {type(row).__name__}, not an object"


def read_csv(path: Path) -> Iterator[Read]:
    # bytes that are not UTF-8 become lone surrogates, which ``clean`` refuses, so that the error names the line
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
        reader = csv.DictReader(lines)
        while True:
            try:
                row = next(reader, None)
            except csv.Error as e:
                yield f"{path.name}:{reader.line_num}", f"not CSV: {e}"
                continue
            if row is None:
                return
            yield f"{path.name}:{reader.line_num}", "more fields than the header has" if None in row else row


def read_parquet(path: Path) -> Iterator[Read]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        rows = (row for batch in file.iter_batches(batch_size=256) for row in batch.to_pylist())
        yield from ((f"{path.name}:{number}", row) for number, row in enumerate(rows, 1))


def read_hub(named: Named, split: str) -> Iterator[Read]:
    """Read a set from the hub. Raises OSError if it cannot be fetched, and ValueError if what is there cannot be read."""
    if named.file is not None:
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(named.repo, named.file, repo_type="dataset"))
        yield from READERS[path.suffix](path)
        return
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = load_dataset(named.repo, named.config, split=named.split or split)
    except DatasetsError as error:
        if isinstance(error, OSError):
            raise
        raise ValueError(f"{named.repo} on the hub cannot be read: {error}") from error
    yield from ((f"{named.repo}:{number}", row) for number, row in enumerate(rows, 1))


def wanted(rows: Iterator[Read], named: Named) -> Iterator[Read]:
    """Return the rows that belong to the set, malformed ones included. A row without the column that says so belongs to it."""
    column, values = named.only or ("", ())
    return ((at, row) for at, row in rows if isinstance(row, str) or column not in row or row[column] in values)


READERS = {".jsonl": read_jsonl, ".json": read_json, ".csv": read_csv, ".parquet": read_parquet}


# --- from a row to a problem ------------------------------------------------------------------------------------------

PROMPTS = ("problem", "question", "prompt", "Question")
VERL, SKYRL = "reward_model.ground_truth", "reward_spec.ground_truth"
ANSWERS = ("answer", "final_answer", "ground_truth", VERL, SKYRL, "Correct Answer", "label", "solution")
IDS = ("id", "unique_id", "idx", "Record ID")
WRONG_OPTIONS = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def choose_columns(
    row: Row, prompt: str | None, answer: str | None, named: Named, where: str, hint: str
) -> tuple[str, str]:
    """Return the names of the question's and the answer's column: those asked for, or else what the first row has.

    The columns of a known set come first; one that is posed from several columns has no others, and its error ends in
    ``hint``.
    """
    found = []
    columns = ("prompt", prompt, named.prompt, PROMPTS), ("answer", answer, named.answer, ANSWERS)
    for kind, asked, known, usual in columns:
        own = asked or known
        names = ([own] if own else []) + ([] if asked or named.pose else [*usual])
        name = next((name for name in names if field(row, name) is not None), None)
        if name is None:
            missing = f"no {names[0]!r}" if len(names) == 1 else f"none of {', '.join(names)}"
            do = hint if named.pose else f" Name it with {kind}_column=..."
            raise ValueError(f"{where} has {missing}; it has {', '.join(row)}.{do}")
        found.append(name)
    return found[0], found[1]


def field(row: Row, name: str) -> Any:
    """Return ``row[name]``, or the nested field that a dotted ``name`` leads to; None if there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def to_problem(
    name: str, i: int, row: Row, prompt: str, answer: str, pose: Callable[[Row], tuple[str, str]] | None = None
) -> Problem:
    """Return row ``i`` as a problem. Raises ValueError that says what is missing."""
    question, reference = pose(row) if pose else (as_question(field(row, prompt)), as_answer(field(row, answer)))
    question, reference = clean(prompt, question), clean(answer, reference)
    own = next((row[key] for key in IDS if row.get(key) is not None), i)
    meta = {k: v for k, v in row.items() if k not in (prompt, answer) and (is_small(v) or k == "solution")}
    if all(isinstance(row.get(key), str) for key in WRONG_OPTIONS):
        wrong = [clean(key, row[key]) for key in WRONG_OPTIONS]
        question, reference, options = as_choice(question, reference, wrong)
        meta = {k: v for k, v in meta.items() if k not in WRONG_OPTIONS} | {"options": options}
    return Problem(clean("id", f"{name}-{own}"), question, reference, meta)


def is_small(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and len(value) <= 100)


def clean(column: str, text: str) -> str:
    if not text.strip():
        raise ValueError(f"empty {column!r}")
    if len(text) > MAX_ROW:
        raise ValueError(f"{column!r} has {len(text):,} characters, more than {MAX_ROW:,}")
    if "\0" in text:
        raise ValueError(f"a NUL character in {column!r}")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(f"bytes that are not UTF-8, or half a surrogate pair, in {column!r}")
    return text.strip()


def as_question(value: Any) -> str:
    """Return the question in a cell: a string, or the last user turn of a list of chat messages."""
    if isinstance(value, list):
        turns = [m.get("content") for m in value if isinstance(m, Mapping) and m.get("role") == "user"]
        value = turns[-1] if turns else None
    if not isinstance(value, str):
        raise ValueError("no question: neither text nor chat messages with a user turn")
    return value


def as_answer(value: Any) -> str:
    r"""Return the reference in a cell: 27.0 -> "27", ["2", "3"] -> "2, 3", a worked solution -> its ``####`` or ``\boxed{}``.

    Raises ValueError for a worked solution that has neither, or boxes with different answers in several places.
    """
    if isinstance(value, list):
        return ", ".join(as_answer(v) for v in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise ValueError("no answer")
    if last_boxed(value) is None and "####" not in value:
        if "\n" in value.strip() or len(value) > 500:
            raise ValueError("the answer is a worked solution without \\boxed{} or ####")
        return value
    return only_answer(value)


LETTERS = "ABCD"


def as_choice(question: str, right: str, wrong: list[str]) -> tuple[str, str, list[str]]:
    """Return the question with its options, the letter of the right one, and the options in order.

    The question seeds the order, so it is the same in every run.
    """
    options = [right, *wrong]
    random.Random(question).shuffle(options)
    lines = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=True))
    return f"{question}\n\n{lines}", LETTERS[options.index(right)], options
