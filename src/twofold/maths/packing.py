"""The division of samples into parts and micro-batches, and sizes that occur often."""

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


def shares(lengths: Sequence[int], prefixes: Sequence[Sequence[int]], n: int) -> list[list[int]]:
    """Return the sample indices of ``n`` parts that have about as many tokens each, in the order of the samples.

    Samples with the same prefix stay together. The largest such family is dealt out first, each to the smallest part.

    >>> shares([5, 4, 5, 6], [[7, 7], [8], [7, 7], []], 2)
    [[0, 2], [1, 3]]
    """
    families: dict[tuple[int, ...], list[int]] = {}
    for i, prefix in enumerate(prefixes):
        families.setdefault(tuple(prefix) or (-1 - i,), []).append(i)
    sizes = {key: sum(lengths[i] for i in own) - len(key) * (len(own) - 1) for key, own in families.items()}
    parts: list[list[int]] = [[] for _ in range(n)]
    tokens = [0] * n
    for key in sorted(families, key=lambda key: (-sizes[key], key)):
        smallest = tokens.index(min(tokens))
        parts[smallest] += families[key]
        tokens[smallest] += sizes[key]
    return [sorted(part) for part in parts]
