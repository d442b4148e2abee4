"""The rows of a data set, from files and from the hub: each with its place, or what is wrong with it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from twofold import hub
from twofold.tasks.known import Named, Row
from twofold.terminal import visible

MAX_ROW = 1 << 20
"""The most bytes of a row."""
SHOWN = 10
"""The most bad rows that a message lists."""

_BOM = b"\xef\xbb\xbf"

Read = tuple[str, "Row | str"]
"""The place of a row ("file:12"), and the row itself or a string that says what is wrong with it."""


class DataError(ValueError):
    """Rows that cannot be used. ``bad`` has one line for each: "file:12: no answer". ``hint`` is said after them."""

    def __init__(self, source: str, bad: list[str], hint: str = "") -> None:
        self.bad = bad
        super().__init__(f"{len(bad)} unusable row(s) in {source}:\n{listed(bad)}\n{hint or 'Repair the rows.'}")


def listed(bad: list[str]) -> str:
    """Return the first bad rows, one per line, and how many more there are."""
    more = [f"... and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
    return "\n".join(f"  {visible(line)}" for line in bad[:SHOWN] + more)


def read_json(path: Path) -> Iterator[Read]:
    """Read a list of objects or one object per line, whatever the file is called. A row of a list is named by its position."""
    first = next((line for _, line in _lines(path)), b"").strip()
    objects = path.suffix == ".jsonl" or not isinstance(parse_line(first), str)
    return read_list(path) if first.startswith(b"[") or not objects else read_lines(path)


def read_lines(path: Path) -> Iterator[Read]:
    for number, line in _lines(path):
        yield f"{path.name}:{number}", parse_line(line)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not empty, with their numbers. Of a line that is too long only the beginning is kept."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_ROW + 2):
            number, rest = number + 1, line
            while len(rest) == MAX_ROW + 2 and not rest.endswith(b"\n"):
                rest = file.readline(MAX_ROW + 2)
            if line.removeprefix(_BOM).strip():
                yield number, line.removeprefix(_BOM)


def parse_line(line: bytes) -> Row | str:
    if len(line) > MAX_ROW + 1:
        return f"a row of more than {MAX_ROW:,} bytes"
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_without_doubles)
    except UnicodeDecodeError as e:
        return f"not UTF-8 at byte {e.start}"
    except (ValueError, RecursionError) as e:
        return f"not JSON: {e}"
    return row if isinstance(row, dict) else f"a JSON {type(row).__name__}, not an object"


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"{_double([name for name, _ in pairs])!r} is there twice")
    return found


def _double(names: Sequence[str]) -> str | None:
    return next((name for i, name in enumerate(names) if name in names[:i]), None)


def read_list(path: Path) -> Iterator[Read]:
    try:
        text = path.read_bytes().removeprefix(_BOM).decode("utf-8")
        rows = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as e:
        raise DataError(str(path), [f"{path.name}: not UTF-8 JSON: {e}"]) from e
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds a JSON {type(rows).__name__}; a list of objects, or one per line, is needed")
    for number, row in enumerate(rows, 1):
        yield f"{path.name}:{number}", row if isinstance(row, dict) else f"a JSON {type(row).__name__}, not an object"


def read_csv(path: Path) -> Iterator[Read]:
    # bytes that are not UTF-8 become lone surrogates, which ``clean`` refuses, so that the error names the line
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.DictReader(lines)
        while True:
            begins = 1
            try:
                if double := _double(reader.fieldnames or []):
                    raise ValueError(f"{path} has two columns {double!r}: rename one")
                begins = reader.line_num + 1
                row = next(reader, None)
            except csv.Error as e:  # a quote that is not closed: where the next row begins is not known
                raise DataError(str(path), [f"{path.name}:{begins}: not CSV: {e}; is a quote not closed?"]) from e
            if row is None:
                return
            yield f"{path.name}:{reader.line_num}", "more fields than the header has" if None in row else row


def read_parquet(path: Path) -> Iterator[Read]:
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except ValueError as e:
        raise ValueError(f"{path} cannot be read as parquet: {e}") from e
    with file:
        if double := _double(file.schema_arrow.names):
            raise ValueError(f"{path} has two columns {double!r}: rename one")
        rows = (row for batch in file.iter_batches(batch_size=256) for row in batch.to_pylist())
        yield from ((f"{path.name}:{number}", row) for number, row in enumerate(rows, 1))


def read_hub(named: Named, split: str) -> Iterator[Read]:
    """Read a set from the hub. Raises OSError if it cannot be fetched, and ValueError if what is there cannot be read."""
    hub.check(named.repo, "dataset")
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


READERS = {".jsonl": read_json, ".json": read_json, ".csv": read_csv, ".parquet": read_parquet}
