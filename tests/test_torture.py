"""The short form of ``torture.py``: slow all the same. ``make torture`` runs the full one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(600)  # whole runs, in processes of their own, on a machine that may be busy
def test_a_run_that_is_killed_ends_with_the_same_bits_and_a_part_of_its_state_that_is_dropped_is_seen() -> None:
    words = ["--kills", "2", "--drop", "2", "--runs", "tango"]
    found = subprocess.run(
        [sys.executable, ROOT / "tests" / "torture.py", *words], capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    assert re.search(r"tango: (\d+) of \1 runs ended with the bits of the run that was never stopped", found.stdout)
    assert "2 of 2 parts of the state, dropped, were seen" in found.stdout
