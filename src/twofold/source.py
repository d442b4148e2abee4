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
from difflib import get_close_matches
from pathlib import Path
from typing import Any

_FORM = re.compile(r"(?P<path>.+\.py):(?P<name>[A-Za-z_]\w*)(?:@sha256:(?P<digest>[0-9a-f]{64}))?")


def load(source: str) -> Any:
    """Return what a source names: a class, a function, any object. Each version of the file is executed once.

    A relative path starts at the working directory. Raises ValueError if the source is not of the form ``FILE.py:NAME``, if
    the file has no such name, or if it has changed since it was pinned; FileNotFoundError if there is no such file; and
    whatever the file itself raises.
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
        spec = importlib.util.spec_from_file_location(module, path)
        assert spec is not None and spec.loader is not None  # a .py file always has both
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
    """Return the pinned source of a class, a function or an instance that was given in Python.

    If there is no file (an interactive session), return ``<python>:Name``.
    """
    while hasattr(thing, "func"):  # functools.partial
        thing = thing.func
    kind: Any = thing if inspect.isclass(thing) or inspect.isroutine(thing) else type(thing)
    try:
        file = Path(inspect.getfile(kind))
    except (TypeError, OSError):
        return f"<python>:{kind.__qualname__}"
    if not file.is_file():
        return f"<python>:{kind.__qualname__}"
    return f"{file}:{kind.__qualname__}@sha256:{_digest(file)}"


def is_source(text: str) -> bool:
    """Return whether a text has the form ``FILE.py:NAME``."""
    return _FORM.fullmatch(text) is not None


def _parts(source: str) -> tuple[Path, str, str | None]:
    found = _FORM.fullmatch(source)
    if found is None:
        raise ValueError(f"{source!r} does not name your code: write the file and what it defines, mine.py:Name")
    path = Path(found["path"])
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (a relative path starts at {Path.cwd()})")
    return path, found["name"], found["digest"]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
