"""Files that survive a crash: whole or not there, on the disk when we say so, and written by one process at a time.

A process may be killed and a machine may lose its power at any point. What these functions write is then as it was before,
or as it should be after; a log loses at most what was not synced, and a last line that was cut is dropped. A name that ends in
``.draft`` is of a thing that is being made or deleted, and is nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK, DRAFT = ".lock", ".draft"


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: whoever reads it, at any time, finds the old text or the new one."""
    draft = path.with_name(path.name + DRAFT)
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def publish(draft: Path, final: Path) -> None:
    """Give a finished folder its name, in the place of what had it. Everything in it is on the disk before that."""
    for path in [*draft.rglob("*"), draft]:
        sync(path)
    rename(draft, final)


def rename(folder: Path, to: Path) -> None:
    """Rename a folder, in the place of what had the name."""
    if to.exists():
        remove(to)
    os.rename(folder, to)
    sync(to.parent)


def remove(folder: Path) -> None:
    """Delete a folder. Its name goes first, so that nobody finds a half of it."""
    gone = folder.with_name(f"{folder.name}.old{DRAFT}")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(folder, gone)
    sync(folder.parent)
    shutil.rmtree(gone)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Hold a directory, made if need be, for one writer. The system lets go of it when the process ends, in whatever way.

    A directory that was made here and is still empty in the end is deleted. Raises BlockingIOError if another writer has it.
    """
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"{directory} is being written by another process: wait until it ends, or choose another --out"
            ) from None
        try:
            yield
        finally:
            if made and [path.name for path in directory.iterdir()] == [LOCK]:
                shutil.rmtree(directory)


class Lines:
    """A file of JSON lines that only grows. A last line that a killed process left half written is cut off first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)

    def write(self, line: str) -> None:
        """Append a line. It survives the end of this process. Raises OSError, which names the file, if there is no room."""
        data = f"{line}\n".encode()
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def sync(self) -> None:
        """Wait until all lines are on the disk, where they survive the end of the machine, too."""
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_lines(path: Path) -> list[Any]:
    """Return the JSON of every whole line of a file; nothing if there is no file. Half a last line does not count.

    Raises ValueError, with file and line, if a line is not JSON.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not JSON, so the file is damaged: {error}") from error
    return rows
