"""Run examples/tutorial.ipynb and store it with what it printed: ``python docs/tutorial.py``, after a change of its cells.

The outputs are stored so that the notebook can be read, here and on the site, by someone who has not installed anything.
Progress lines are left out, because their seconds are those of one machine.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat

NOTEBOOK = Path(__file__).parents[1] / "examples" / "tutorial.ipynb"


def run(steps: int | None = None) -> Any:
    """Return the notebook with the outputs of a run of all its cells, perhaps with another number of training steps.

    Raises CellExecutionError if a cell fails.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if steps is not None:
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        first.source = re.sub(r"(?m)^STEPS = \d+", f"STEPS = {steps}", first.source)
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":
            text = "".join(output.text for output in cell.outputs if output.output_type == "stream")
            cell.outputs = [nbformat.v4.new_output("stream", text=text)] if text else []
    return notebook


if __name__ == "__main__":
    nbformat.write(run(), NOTEBOOK)
