"""What the process asks of the system, before it computes anything."""

from __future__ import annotations

import ctypes


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
