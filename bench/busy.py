"""Measure a training step on a quiet machine and beside one and two other processes that never wait.

The others are plain Python loops, or further trainings of the same kind. Ways in which OpenMP's threads may wait take turns:
``now`` as twofold has it, ``spin`` as OpenMP has it by itself, ``sleep`` (OMP_WAIT_POLICY=PASSIVE); ``one`` has one thread. All
are compared with ``now`` on the quiet machine. ``spin`` is measured alone, unless ``--spin`` asks for all of it, which takes
minutes a step.

A step counts only if processes outside this benchmark used less than ``STRANGERS`` of a core meanwhile; what is missing after
``--minutes`` is left out.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import Worker, record

WAYS = {
    "now": {},
    "spin": {"GOMP_SPINCOUNT": "300000"},
    "sleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one": {"OMP_NUM_THREADS": "1"},
}
LOADS = ("quiet", "1 loop", "2 loops", "1 training", "2 trainings")
STRANGERS = 0.1
TICK = os.sysconf("SC_CLK_TCK")


class Way:
    """A training that is measured, and trainings and loops beside it, which stand still until they are wanted."""

    def __init__(self, name: str, folder: Path, beside: int) -> None:
        out = (str(folder / f"{name}-{i}") for i in range(1 + beside))
        self.workers = [Worker(sys.executable, "busy_worker.py", env=WAYS[name], out=path) for path in out]
        for worker in self.workers:
            worker.step()  # the first step is a warm-up
        self.measured, *trainings = self.workers
        for worker in trainings:
            worker.tell("run")
        loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(beside)]
        self.processes = [worker.process for worker in self.workers] + loops
        self.kinds = {"loop": loops, "training": [worker.process for worker in trainings]}
        for process in [p for kind in self.kinds.values() for p in kind]:
            process.send_signal(signal.SIGSTOP)

    @contextmanager
    def beside(self, load: str) -> Iterator[None]:
        number, _, kind = load.partition(" ")
        others = [] if load == "quiet" else self.kinds[kind.rstrip("s")][: int(number)]
        for process in others:
            process.send_signal(signal.SIGCONT)
        time.sleep(1)  # a new load is noticed in a quarter of a second
        yield
        for process in others:
            process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def all_seconds() -> float:
    """Seconds of processor time that all processes have used since the machine started."""
    user, nice, system = Path("/proc/stat").read_text().split()[1:4]
    return (int(user) + int(nice) + int(system)) / TICK


def seconds_of(process: subprocess.Popen[str]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def step(way: Way, load: str) -> tuple[float, float]:
    """Take one step. Return its seconds and how many cores were used by processes outside this benchmark."""
    with way.beside(load):
        before = all_seconds() - sum(map(seconds_of, way.processes))
        began = time.monotonic()
        seconds = way.measured.step()["seconds"]
        after = all_seconds() - sum(map(seconds_of, way.processes))
        return seconds, (after - before) / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--minutes", type=float, default=10, help="(%(default)s)")
    parser.add_argument("--spin", action="store_true", help="measure spinning threads beside others, too")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        ways = {name: Way(name, Path(folder), 2 if name != "spin" or args.spin else 0) for name in WAYS}
        todo = [(load, name) for load in LOADS for name in WAYS if load == "quiet" or name != "spin" or args.spin]
        try:
            while any(len(found[cell]) < args.repeats for cell in todo) and time.monotonic() < end:
                for load, name in todo:
                    if len(found[load, name]) < args.repeats and time.monotonic() < end:
                        seconds, strangers = step(ways[name], load)
                        print(
                            f"  {name}, {load}: {seconds:.2f} s, strangers use {strangers:.2f} cores", file=sys.stderr
                        )
                        if strangers < STRANGERS:
                            found[load, name].append(seconds)
        finally:
            for way in ways.values():
                way.close()
    medians = {cell: statistics.median(values) for cell, values in found.items() if values}
    for load in LOADS:
        row = {name: medians[load, name] for name in WAYS if (load, name) in medians}
        quiet = {
            f"{name} / quiet": s / medians["quiet", "now"] for name, s in row.items() if ("quiet", "now") in medians
        }
        record("busy", load=load, repeats=args.repeats, **{f"{name} s": s for name, s in row.items()}, **quiet)
    if {("quiet", "now"), ("quiet", "spin")} <= medians.keys():
        record("busy-quiet", ratio=medians["quiet", "now"] / medians["quiet", "spin"])


if __name__ == "__main__":
    main()
