"""The division of samples into micro-batches, and sizes that occur often."""

from __future__ import annotations

from collections.abc import Sequence


def rounded(n: int) -> int:
    """Round the rows of a matrix product up to a multiple of 16 (above 256: by at most an eighth), so that sizes recur.

    A library that compiles code for every new size, as oneDNN does in bfloat16, takes longer to compile it than to run it.

    >>> [rounded(n) for n in (1, 8, 9, 100, 256, 1000, 3700)]
    [1, 8, 16, 112, 256, 1024, 3840]
    """
    step = max(16, 1 << max(0, n.bit_length() - 4))
    return n if n <= 8 else -(-n // step) * step


def micro_batches(lengths: Sequence[int], prefixes: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """Return groups of sample indices, of at most ``budget`` tokens each. Sample i begins with ``prefixes[i]``.

    Samples with the same prefix stay together, and in a group its tokens count once. Otherwise samples of similar length
    come together. A sample longer than the budget has a group of its own: nothing is cut or dropped.

    >>> micro_batches([5, 1, 4, 2], [[], [], [], []], budget=6)
    [[1, 3], [2], [0]]
    >>> micro_batches([5, 4, 5], [[7, 7, 7], [8], [7, 7, 7]], budget=7)
    [[1], [0, 2]]
    """
    keys = [tuple(p) for p in prefixes]
    longest: dict[tuple[int, ...], int] = {}
    for key, length in zip(keys, lengths, strict=True):
        longest[key] = max(length, longest.get(key, 0)) if key else 0
    order = sorted(range(len(lengths)), key=lambda i: (longest[keys[i]], keys[i], lengths[i]))
    groups: list[list[int]] = []
    room = 0
    for i in order:
        again = groups and keys[groups[-1][-1]] == keys[i]
        cost = lengths[i] - (len(keys[i]) if again else 0)
        if not groups or cost > room:
            groups.append([])
            room, cost = budget, lengths[i]
        groups[-1].append(i)
        room -= cost
    return groups
