"""The reading guide of the training path, held against the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "training-path.md"
LINES = 1580


def code_lines(text: str) -> int:
    """Lines without docstrings, comments and blank lines."""
    texts: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            texts.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(1 for i, line in lines if line.strip() and not line.strip().startswith("#") and i not in texts)


def test_lines_are_counted() -> None:
    assert code_lines('"""What it is."""\n\nx = 1  # one\n# two\ny = 2\n') == 2


def test_the_training_path_is_short() -> None:
    """The guide promises this of the files that it lists."""
    files = re.findall(r"\]\(\.\./(src/twofold/[\w/]+\.py)\)", GUIDE.read_text(encoding="utf-8"))
    parts = {Path(f).parent.name for f in files}
    assert len(files) == len(set(files)) >= 17 and parts >= {"twofold", "recipes", "compute", "maths", "trainer"}
    total = sum(code_lines((ROOT / file).read_text(encoding="utf-8")) for file in files)
    assert total <= LINES, f"the training path has {total} lines of code, more than {LINES}"
    assert f"at most {LINES:,} lines of\ncode" in GUIDE.read_text(encoding="utf-8")
