"""What the process asks of the system before it computes anything: memory that stays, and threads that share a busy machine."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""The variables by which a user decides how OpenMP's threads wait."""
INTERVAL = 0.25
"""Seconds between two looks at the load."""
CROWDED = 0.05
"""Share of the time that threads wait for a core, of all time in which they could run. Two threads on two cores beside one
process that computes wait for 0.25 of it."""
WAKING = 1e-4
"""Seconds that a thread may take from being woken to running on a core that is free."""
CALM = 8
"""Looks without load after which threads spin again."""


def leads() -> bool:
    """Return whether this process speaks for the run: torchrun did not start it, or started it first."""
    return os.environ.get("RANK", "0") == "0"


def keep_memory() -> None:
    """Tell the C library to keep the memory that tensors free, instead of giving it back to the system.

    Every step allocates the same large blocks again; getting them from the system, page by page, takes a tenth of a training
    step on a CPU. Only glibc has this setting; with another C library nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, mmap_threshold = -1, -3
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, 2**31 - 1)


@cache  # one thread for a process
def share_cores() -> None:
    """Let OpenMP's threads sleep while they wait, whenever other processes want the cores.

    A thread that has done its part of a matrix product spins until the others have done theirs. On a quiet machine that is
    the fastest way to wait. On a busy one it burns the time that the others need, and a training stands still. So a thread
    looks at the load four times a second. How threads wait changes no result; another number of threads would.

    Call it after torch is imported. Only GNU's OpenMP, which PyTorch's packages for Linux have, can be told while it runs;
    with another one nothing happens, nor with a single thread, nor if the user has set one of the variables ``CHOSEN``.
    """
    openmp = ctypes.CDLL(None)
    gnu = hasattr(openmp, "GOMP_parallel") and not hasattr(openmp, "kmp_set_blocktime")  # Intel's and LLVM's have both
    if gnu and openmp.omp_get_max_threads() > 1 and not any(name in os.environ for name in CHOSEN):
        threading.Thread(target=_watch, args=(openmp,), name="twofold-load", daemon=True).start()


class Load:
    """Whether other processes want the cores, by how long this one's threads have run and have waited for a core."""

    def __init__(self) -> None:
        self.busy = False
        self._before, self._calm = (0.0, 0.0, 0), 0

    def look(self, ran: float, waited: float, turns: int) -> bool:
        """Set ``busy`` by all that was counted so far (see ``thread_times``), and return it."""
        more_run, more_waited, more_turns = (a - b for a, b in zip((ran, waited, turns), self._before, strict=True))
        self._before = ran, waited, turns
        crowded = more_waited - WAKING * more_turns > CROWDED * max(more_run + more_waited, INTERVAL)
        self._calm = 0 if crowded else self._calm + 1
        self.busy = crowded or (self.busy and self._calm < CALM)
        return self.busy


def thread_times() -> tuple[float, float, int]:
    """Return the seconds that this process's threads have run, those that they have waited for a core, and how many turns they had.

    Linux counts this for every thread (``schedstat``).
    """
    ran = waited = turns = 0
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended
            counted = [int(number) for number in (thread / "schedstat").read_text().split()]
            ran, waited, turns = ran + counted[0], waited + counted[1], turns + counted[2]
    return ran / 1e9, waited / 1e9, turns


def _watch(openmp: Any) -> None:
    load, quiet = Load(), threading.Event()
    quiet.set()
    said = False
    while True:
        time.sleep(INTERVAL)
        busy = load.look(*thread_times())
        if busy and quiet.is_set():
            quiet.clear()
            threading.Thread(target=oversubscribe, args=(openmp, quiet), daemon=True).start()
            if not said:
                log.warning("other processes want the cores: threads sleep while they wait, as long as that lasts")
            said = True
        elif not busy:
            quiet.set()


def oversubscribe(openmp: Any, quiet: threading.Event) -> None:
    """Keep one more OpenMP thread than there are cores, all asleep, until it is quiet.

    Where a process has more of them than cores, libgomp spins only 100 times before a thread sleeps (see GOMP_SPINCOUNT in
    its manual), in place of 300,000 times. Threads of another team count, too. They end with the thread that began them.
    """
    threads = openmp.omp_get_num_procs() + 1
    nothing = ctypes.cast(openmp.omp_get_thread_num, ctypes.c_void_p)  # what each of them runs
    openmp.GOMP_parallel(nothing, None, ctypes.c_uint(threads), ctypes.c_uint(0))
    quiet.wait()
