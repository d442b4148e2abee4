"""Measure the start-up: ``import twofold``, ``--help``, ``--dry-run`` and a first answer, each in a new process."""

from __future__ import annotations

import subprocess
import sys

from common import ROOT, interleaved, record

PROBLEM = "Start with 47. Add 38. What is the result?"


def run(*command: str) -> None:
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    seconds = interleaved(
        {
            "python": lambda: run("-c", "pass"),
            "import": lambda: run("-c", "import twofold"),
            "help": lambda: run("-m", "twofold.cli", "--help"),
            "dry run": lambda: run("-m", "twofold.cli", "train", str(ROOT / "configs" / "rlv-sums.toml"), "--dry-run"),
            "solve": lambda: run("-m", "twofold.cli", "solve", "tiny", PROBLEM),
            "import torch": lambda: run("-c", "import torch"),
            "import a model class of transformers": lambda: run(
                "-c", "import transformers.models.llama.modeling_llama"
            ),
        },
        repeats=5,
    )
    record("startup", **{f"{name} s": s for name, s in seconds.items()})


if __name__ == "__main__":
    main()
