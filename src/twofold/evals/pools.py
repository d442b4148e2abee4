"""An evaluation on disk: ``eval.json`` says what was run, ``pools.jsonl`` holds one line per problem.

Lines are only ever appended, so a crash can spoil at most the last one. Reading is strict: a line that is not exactly a
pool is an error that names the file and the line. Only ``finished_ids``, which serves to resume, passes over a last line
that has no newline; ``Lines`` cuts it off.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from twofold.durable import Lines, write_text
from twofold.types import Grade, Label, Pool, Problem

HEADER = "eval.json"
POOLS = "pools.jsonl"

_LISTS = ("answers", "rewards", "labels", "scores", "tokens", "judge_tokens")
_KEYS = {"problem", *_LISTS, "seconds"}
_OPTIONAL = {"certainty", "traces"}
_PROBLEM_KEYS = {"id", "question", "answer", "meta"}


class PoolError(ValueError):
    """A file of an evaluation is missing, cut off or not in the format. The message names the place."""


@dataclass(frozen=True, slots=True)
class Header:
    """What was evaluated and how.

    ``judge``: how samples were scored, and by which other model if one did (None: not at all); ``judge_votes``: how many
    critiques of each were written, if it writes; ``judge_question``: what was asked, if not the standard question of that
    judge; ``judge_cut``: where steps were cut, if it judges steps. ``seconds``: wall-clock time in all.
    ``trace_top``: of how many likeliest tokens the token confidences were recorded (0: not at all); ``trace_window``: tokens
    of a group of DeepConf's scores. ``code``: the user's code that posed and graded the problems, pinned. ``system``: the
    system prompt, ``enable_thinking`` what the chat template was told, and ``opening`` what every solution begins with; None also in
    files that are older than these keys.
    ``load``: the machine's mean load per core meanwhile, this evaluation included.
    """

    name: str
    model: str
    task: str
    split: str
    n: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    engine: str
    versions: Mapping[str, str]
    judge: str | None
    seconds: float
    trace_top: int = 0
    trace_window: int = 0
    judge_votes: int = 1
    judge_question: str | None = None
    judge_cut: str | None = None
    code: str | None = None
    top_k: int = 0
    min_p: float = 0.0
    system: str | None = None
    enable_thinking: bool | None = None
    opening: str | None = None
    extract: str = "boxed"
    load: float | None = None

    @property
    def score(self) -> str:
        """What a sample's score is called: "P(Yes)" if the judge gives that (divided by P(Yes) + P(No) or not), else "score"."""
        return "P(Yes)" if (self.judge or "").partition(" ")[0] in ("p_yes", "normalised") else "score"


RENAMED = {"confidence": "trace_top", "window": "trace_window"}
"""Keys of the header in older files -> what they are called now."""


def write_header(directory: Path, header: Header) -> None:
    """Write ``directory/eval.json``, replacing an older one in a single step (a reader never sees half a file)."""
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / HEADER, json.dumps(dataclasses.asdict(header), indent=2) + "\n")


def read_header(directory: Path) -> Header:
    """Read ``directory/eval.json``. Raises PoolError if it is missing, not JSON, or lacks or adds a key."""
    path = directory / HEADER
    if not path.is_file():
        raise PoolError(f"{path}: not found; an evaluation directory holds {HEADER} and {POOLS}")
    try:
        values = json.loads(path.read_text())
    except ValueError as err:
        raise PoolError(f"{path}: not JSON: {err}") from err
    if isinstance(values, dict):
        values = {RENAMED.get(key, key): value for key, value in values.items()}
    keys = dataclasses.fields(Header)
    optional = {f.name for f in keys if f.default is not dataclasses.MISSING}
    _same_keys(values, {f.name for f in keys}, str(path), optional)
    return Header(**values)


def check_problem(problem: Problem) -> None:
    """Raise ValueError, before anything is sampled, if a problem cannot be saved: its ``meta`` may come from your own task."""
    for key, value in _saved(problem)["meta"].items():
        try:
            json.dumps({key: value}, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"problem {problem.id!r}: meta[{key!r}] = {value!r:.100} is no JSON: {error}") from error


def _saved(problem: Problem) -> dict[str, Any]:
    return {"id": problem.id, "question": problem.question, "answer": problem.answer, "meta": dict(problem.meta)}


def write_pool(file: Lines, pool: Pool) -> None:
    """Append one pool as one line."""
    record = {
        "problem": _saved(pool.problem),
        "answers": pool.answers,
        "rewards": [grade.reward for grade in pool.grades],
        "labels": [grade.label for grade in pool.grades],
        "scores": pool.scores,
        "tokens": pool.tokens,
        "judge_tokens": pool.judge_tokens,
        "seconds": pool.seconds,
    }
    if pool.certainty is not None and pool.traces is not None:
        record |= {"certainty": pool.certainty, "traces": dict(pool.traces)}
    file.write(json.dumps(record, allow_nan=False))


def read_pools(path: Path) -> list[Pool]:
    """Return all pools of ``path`` in the order they were written.

    Raises PoolError, with file and line, for a line that is not a pool, a problem that occurs twice, and a truncated last
    line (the evaluation was killed while it wrote: resume it).
    """
    if not path.is_file():
        raise PoolError(f"{path}: not found; the evaluation has written no pool yet")
    *lines, rest = path.read_bytes().split(b"\n")
    pools = _parse_all(lines, path)
    if rest:
        raise PoolError(
            f"{path}:{len(lines) + 1}: truncated last line ({len(rest)} bytes, no newline): the evaluation was killed "
            f"while writing; run it again to resume, or delete that line"
        )
    return pools


def finished_ids(path: Path, problems: Sequence[Problem] = ()) -> set[str]:
    """Return the ids of the problems that are done. A truncated last line does not count, and no file gives no ids.

    Raises PoolError if one of ``problems`` is done under another id, or its id is another question's: an older version named
    problems otherwise, and two files of one name may hold different questions.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    done = [pool.problem for pool in _parse_all(lines, path)]
    ids = {(p.id, p.question) for p in problems}
    names, questions = {i for i, _ in ids}, {question for _, question in ids}
    for p in done:
        if (p.id, p.question) not in ids and (p.id in names or p.question in questions):
            raise PoolError(f"{path} has other problems by the same names, such as {p.id}: choose another --out")
    return {p.id for p in done}


def read_lines(path: Path) -> list[Any]:
    """Return the JSON of every line of a file, or nothing if there is no file. Raises PoolError if a line is cut off."""
    if not path.exists():
        return []
    *lines, rest = path.read_text().split("\n")
    if rest:
        raise PoolError(
            f"{path}:{len(lines) + 1}: truncated last line: the run was killed while writing; run it again to resume"
        )
    return [json.loads(line) for line in lines]


def _parse_all(lines: list[bytes], path: Path) -> list[Pool]:
    pools, line_of = [], dict[str, int]()
    for number, line in enumerate(lines, start=1):
        pool = _parse(line, f"{path}:{number}")
        first = line_of.setdefault(pool.problem.id, number)
        if first != number:
            raise PoolError(f"{path}:{number}: problem {pool.problem.id!r} was already on line {first}")
        pools.append(pool)
    return pools


def _parse(line: bytes, where: str) -> Pool:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as err:
        raise PoolError(f"{where}: not JSON: {err}") from err
    _same_keys(record, _KEYS, where, _OPTIONAL)
    _same_keys(record["problem"], _PROBLEM_KEYS, f"{where}: problem")
    if not all(isinstance(record[key], list) for key in _LISTS):
        raise PoolError(f"{where}: {', '.join(_LISTS)} must be lists, one entry per sample")
    lengths = {key: len(record[key]) for key in _LISTS}
    if "certainty" in record:
        lengths |= {"certainty": len(record["certainty"])} | {k: len(v) for k, v in record["traces"].items()}
    if len(set(lengths.values())) != 1 or not record["answers"]:
        raise PoolError(f"{where}: lists must have one length, at least 1, got {lengths}")
    if strange := set(record["labels"]) - set(get_args(Label)):
        raise PoolError(f"{where}: unknown label {sorted(strange)}, expected one of {get_args(Label)}")
    if not all(score is None or 0 <= score <= 1 for score in record["scores"]):
        raise PoolError(f"{where}: scores are probabilities in [0, 1] or null")
    return Pool(
        problem=Problem(**record["problem"]),
        answers=record["answers"],
        grades=[Grade(reward, label) for reward, label in zip(record["rewards"], record["labels"], strict=True)],
        scores=record["scores"],
        tokens=record["tokens"],
        judge_tokens=record["judge_tokens"],
        seconds=record["seconds"],
        certainty=record.get("certainty"),
        traces=record.get("traces"),
    )


def _same_keys(record: Any, expected: set[str], where: str, optional: Set[str] = frozenset()) -> None:
    if not isinstance(record, dict):
        raise PoolError(f"{where}: expected a JSON object, got {type(record).__name__}")
    missing, unknown = sorted(expected - record.keys() - optional), sorted(record.keys() - expected - optional)
    if missing or unknown:
        raise PoolError(f"{where}: missing keys {missing}, unknown keys {unknown}")
