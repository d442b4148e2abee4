"""The division of samples among processes."""

from __future__ import annotations

from collections.abc import Sequence


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
