"""Measure how a training step of the shipped model scales with the number of processes: RL^V, 32 problems x 8 rollouts.

``wall`` is a step's time with N ranks over its time with one process. ``cpu`` is the same of the busiest rank's CPU time, which a
loaded machine changes less: without any loss both are 1 / N. A rank has one thread, so N ranks need N free cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from common import record

import twofold as tf
from twofold.engines.native import NativeEngine
from twofold.toml import override

SETTINGS = ["rollout.problems=32", "recipe.rollouts=8", "rollout.max_tokens=96", "train.save_every=0", "log.rollouts=0"]


class Timed(NativeEngine):
    """Writes down this process's CPU seconds whenever it gets new weights: when the run begins, and after each step."""

    seconds: ClassVar[list[float]] = []

    def load(self, weights: Mapping[str, Any]) -> None:
        super().load(weights)
        self.seconds.append(time.process_time())


def train(steps: int, out: Path) -> None:
    """Train in this process, which may be one of several, and write down its CPU seconds per step."""
    tf.train(override(tf.Config(), [*SETTINGS, f"train.steps={steps}"]), out / "run", engine=Timed)
    a, *_, b = Timed.seconds
    (out / f"cpu-{os.environ.get('RANK', '0')}").write_text(str((b - a) / steps))


def measured(ranks: int, steps: int) -> tuple[float, float]:
    """Return a step's wall-clock seconds, the median without the first, and the CPU seconds of the busiest rank."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        command = [sys.executable, *launcher, __file__, "--steps", str(steps), "--out", folder]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        wall = statistics.median(json.loads(line)["step_time"] for line in lines[1:])
        return wall, max(float(path.read_text()) for path in Path(folder).glob("cpu-*"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="train here, in this process, and measure nothing else")
    args = parser.parse_args()
    if args.out:
        train(args.steps, args.out)
    else:
        found = {n: [measured(n, args.steps) for _ in range(args.repeats)] for n in [1, *args.ranks]}
        medians = {n: [statistics.median(column) for column in zip(*rows, strict=True)] for n, rows in found.items()}
        for n in args.ranks:
            (wall, cpu), (wall_1, cpu_1) = medians[n], medians[1]
            record("scale", ranks=n, wall=wall / wall_1, cpu=cpu / cpu_1)
