"""The rows of a data set, from files and from the hub: each with its place, or what is wrong with it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from twofold import hub
from twofold.tasks.known import Named, Row

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
    return "\n".join(f"  {line}" for line in bad[:SHOWN] + more)


def read_json(path: Path) -> Iterator[Read]:
    """Read a list of objects or one object per line, whatever the file is called. A row of a list is named by its position."""
    with path.open("rb") as lines:
        first = next((text for line in lines if (text := line.removeprefix(_BOM).strip())), b"")
    objects = path.suffix == ".jsonl" or not isinstance(parse_line(first), str)
    return read_list(path) if first.startswith(b"[") or not objects else read_lines(path)


def read_lines(path: Path) -> Iterator[Read]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.removeprefix(_BOM).strip():
                yield f"{path.name}:{number}", parse_line(line.removeprefix(_BOM))


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


def read_list(path: Path) -> Iterator[Read]:
    try:
        rows = json.loads(path.read_bytes().removeprefix(_BOM).decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
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
