"""The tutorial notebook runs from its first cell to its last, and shows what its text says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra dev is not installed")
pytest.importorskip("nbclient", reason="the extra dev is not installed")

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("tutorial", ROOT / "docs" / "tutorial.py")
assert spec is not None and spec.loader is not None
tutorial = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tutorial)


def printed(notebook: Any) -> list[str]:
    """What each code cell prints."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(output.text for output in cell.outputs) for cell in cells]


def auroc(texts: list[str], name: str) -> float:
    [text] = [text for text in texts if f"{name}: " in text]
    return float(re.findall(r"AUROC (\d\.\d+)", text)[0])


@pytest.fixture(scope="module")
def stored() -> Any:
    return nbformat.read(tutorial.NOTEBOOK, as_version=4)


@pytest.mark.timeout(900)  # half a minute of one core; ten times as long on a busy machine
def test_it_runs_and_its_verifier_learns(stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    fresh = printed(tutorial.run(steps=12))
    for texts, least in ((fresh, 0.65), (printed(stored), 0.75)):
        assert auroc(texts, "before") < 0.6 and auroc(texts, "after") > least
    assert "step 10" in "".join(fresh) and "step 15" not in "".join(fresh)
    assert [bool(text) for text in fresh] == [bool(text) for text in printed(stored)]


def test_what_is_stored_is_one_whole_run(stored: Any) -> None:
    """So that it can be read without running it: in order, without an error or a folder of the machine that ran it."""
    nbformat.validate(stored)
    cells = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(
        len(cell.outputs) <= 1 and "Error" not in text for cell, text in zip(cells, printed(stored), strict=True)
    )
    assert not re.search(r"/(tmp|home|root|work)/", "".join(printed(stored)))


def test_every_link_of_the_tutorial_leads_somewhere(stored: Any) -> None:
    text = "\n".join(cell.source for cell in stored.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert len(links) >= 8 and [link for link in links if not (tutorial.NOTEBOOK.parent / link).exists()] == []
