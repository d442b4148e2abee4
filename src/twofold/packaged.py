"""Files that come with the package: its configs and its examples. They are found by name from any directory."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

INSTALLED = Path(__file__).parent
ROOT = INSTALLED if (INSTALLED / "configs").is_dir() else INSTALLED.parents[1]
"""The directory with ``configs/`` and ``examples/``: inside an installed package, at the root of a checkout."""
FOLDERS = ("configs", "examples")


def file(path: Path) -> Path:
    """Return ``path`` if there is such a file, else the package's own file of this name (``examples/reward.py``), if it has one.

    If there is neither, ``path`` comes back.
    """
    inside = len(path.parts) == 2 and path.parts[0] in FOLDERS and (ROOT / path).is_file()
    return ROOT / path if inside and not path.is_file() else path


def config(name: Path) -> Path:
    """Return the file of a config: a path, or a name such as ``rlv-sums``, which stands for ``configs/rlv-sums.toml``.

    Raises FileNotFoundError, which lists the package's configs.
    """
    found = file(name)
    if not found.is_file() and len(name.parts) == 1:
        found = file(Path("configs", f"{name.name.removesuffix('.toml')}.toml"))
    if not found.is_file():
        known = sorted(path.stem for path in (ROOT / "configs").glob("*.toml"))
        close = get_close_matches(name.name.removesuffix(".toml"), known, n=1)
        hint = f"; did you mean {close[0]}?" if close else "."
        raise FileNotFoundError(f"{name}: no such file{hint} The package's configs are {', '.join(known)}")
    return found
