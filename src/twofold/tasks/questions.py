"""Read the questions of a file, for ``twofold solve``."""

from __future__ import annotations

import json
from pathlib import Path


def read_questions(path: Path) -> list[str]:
    """Return the problems of a file, one per line: text, or (``.jsonl``) an object with a question, problem or prompt."""
    problems = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        if path.suffix == ".jsonl":
            row = json.loads(line)
            keys = [
                k for k in ("question", "problem", "prompt") if isinstance(row, dict) and isinstance(row.get(k), str)
            ]
            if not keys:
                raise ValueError(f"{path}:{number}: an object with a text question, problem or prompt is needed")
            line = row[keys[0]]
        problems.append(line.strip())
    if not problems:
        raise ValueError(f"{path}: no problems in this file")
    return problems
