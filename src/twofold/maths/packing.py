"""Which samples go into which micro-batch."""

from __future__ import annotations

from collections.abc import Sequence


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of samples, in groups of at most ``budget`` tokens, similar lengths together.

    A sample longer than the budget gets a group of its own: nothing is cut or dropped.

    >>> micro_batches([5, 1, 4, 2], budget=6)
    [[1, 3], [2], [0]]
    """
    groups: list[list[int]] = []
    room = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not groups or lengths[i] > room:
            groups.append([])
            room = budget
        groups[-1].append(i)
        room -= lengths[i]
    return groups
