"""Your own code, named in a config as ``path/to/mine.py:Name``. Such a name is called a source.

When a run records its config, it adds the file's hash: ``mine.py:Name@sha256:HEX``. Loading such a pinned source returns the
same code, or raises an error which says that the file has changed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
from dataclasses import is_dataclass
from difflib import get_close_matches
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

from twofold import packaged

_PYTHON = "<python>:"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_PIN = re.compile(r"@sha256:[0-9a-f]{64}")
_FORM = re.compile(r"(?P<path>.+\.py):(?P<name>[A-Za-z_]\w*)(?:@sha256:(?P<digest>[0-9a-f]{64}))?")


def load(source: str) -> Any:
    """Return what a source names: a class, a function, any object. Each version of the file is executed once.

    A relative path starts at the working directory; ``examples/reward.py`` and its like are otherwise the package's. Raises
    ValueError if the source is not of the form ``FILE.py:NAME``, if the file has no such name, or if it has changed since it
    was pinned; FileNotFoundError if there is no such file; and whatever the file itself raises.
    """
    path, name, pinned = _parts(source)
    digest = _digest(path)
    if pinned and pinned != digest:
        raise ValueError(
            f"{path} has changed since it was recorded: its sha256 was {pinned[:12]}..., now it is {digest[:12]}...; "
            f"go back to that version, or leave out @sha256:... and start a new run"
        )
    module = f"{path.stem}_{digest[:12]}"
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, path, loader=_Uncached(module, str(path)))
        assert spec is not None and spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[module] = loaded  # dataclasses look their module up while they are made
        try:
            spec.loader.exec_module(loaded)
        except BaseException:
            del sys.modules[module]
            raise
    names = [n for n in vars(sys.modules[module]) if not n.startswith("_")]
    if name not in vars(sys.modules[module]):
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it defines {', '.join(names) or 'nothing'}"
        raise ValueError(f"{path} has no {name}; {hint}")
    return vars(sys.modules[module])[name]


def pin(source: str) -> str:
    """Return the source with the hash of its file; the file is not executed.

    Raises ValueError if the source is not of the form ``FILE.py:NAME``, FileNotFoundError if there is no such file.
    """
    path, name, pinned = _parts(source)
    return f"{path}:{name}@sha256:{pinned or _digest(path)}"


def describe(thing: object) -> str:
    """Return the name under which a run records what it was given in Python.

    For a class or a function of a file it is its pinned source. An object, a ``partial``, or what was typed in a session
    cannot be made again from a file: its name begins with ``<python>``, tells its arguments or fields, and ``load`` refuses it.
    """
    if isinstance(thing, partial):
        given = [*map(repr, thing.args), *(f"{name}={value!r}" for name, value in sorted(thing.keywords.items()))]
        return _PYTHON + f"partial({describe(thing.func).removeprefix(_PYTHON)}, {', '.join(given)})"
    kind: Any = thing if inspect.isclass(thing) or inspect.isroutine(thing) else type(thing)
    try:
        file = Path(inspect.getfile(kind))
        named = f"{file}:{kind.__qualname__}@sha256:{_digest(file)}"
    except (TypeError, OSError):  # a session has no file
        named = _PYTHON + kind.__qualname__
    if kind is thing and "<locals>" not in named:
        return named
    fields = "" if kind is thing else _ADDRESS.sub("", repr(thing if is_dataclass(thing) else vars(thing)))
    return _PYTHON + named.removeprefix(_PYTHON) + fields


def unpinned(text: str) -> str:
    """Return a text without the hashes of the sources in it."""
    return _PIN.sub("", text)


def is_source(text: str) -> bool:
    """Return whether a text has the form ``FILE.py:NAME``."""
    return _FORM.fullmatch(text) is not None


class _Uncached(SourceFileLoader):
    """Compiles the file as it is. Python's cache takes a version of the same size and second for the one it knows."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _parts(source: str) -> tuple[Path, str, str | None]:
    if source.startswith(_PYTHON):
        raise ValueError(f"{source[:200]} was given in Python and is in no file as it was: give it in Python again")
    found = _FORM.fullmatch(source)
    if found is None:
        raise ValueError(f"{source!r} does not name your code: write the file and what it defines, mine.py:Name")
    path = packaged.file(Path(found["path"]))
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (a relative path starts at {Path.cwd()})")
    return path, found["name"], found["digest"]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
