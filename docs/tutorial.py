"""Run examples/tutorial.ipynb and store it with what it printed: ``python docs/tutorial.py``, after a change of its cells.

The outputs are stored so that the notebook can be read, here and on the site, by someone who has not installed anything.
Progress lines are left out, because their seconds are those of one machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbclient
import nbformat

NOTEBOOK = Path(__file__).parents[1] / "examples" / "tutorial.ipynb"


def run() -> Any:
    """Return the notebook with the outputs of a run of all its cells. Raises CellExecutionError if a cell fails."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.output_type == "stream"]
    return notebook


if __name__ == "__main__":
    nbformat.write(run(), NOTEBOOK)
