"""Tournaments: which solutions to compare next, and what the results say. Numbers in and out; no model.

Source: V1-Infer, Alg. 1-4 of "V1: Unifying Generation and Self-Verification" (arXiv:2603.04304). A comparison of entrants i and j
has a margin m in [-1, 1], above 0 where i is the better one. The entrant's standing is the mean of its results, in which a clear
result weighs more than a close one:

    w = max(|m|, floor)      v = 1 if m > 0, 1/2 if m = 0, else 0      mu_i = sum_j w_ij v_ij / sum_j w_ij      (1/2 before any)

Phase 1 covers: every entrant meets ``degree`` others. Phase 2 refines: entrants of neighbouring ranks meet. Each round is one batch of
comparisons of disjoint pairs. ``degree = 0`` with ``floor = 1`` is a Swiss tournament: all results weigh the same, and the first
round pairs neighbours of the list.

What the paper leaves open, or does otherwise: no pair meets twice, because a judge without chance says the same again (there, the
closest pair meets, even again); and solutions with the same answer do not meet unless ``within`` is set.
"""

from __future__ import annotations

from collections.abc import Sequence

from twofold.ranges import Count, Positive, Share, Whole, checked

Pair = tuple[int, int]
Game = tuple[int, int, float]
"""(i, j, margin of i over j)."""


@checked
class Tournament:
    """How ``judge=pairs`` compares a problem's samples. The defaults are V1-Infer's, with the larger of its common budgets."""

    budget: Positive = 2.0
    """Comparisons per entrant, at most (the paper: 1, 2 or 3)."""
    degree: Whole = 2
    """Opponents that every entrant meets first."""
    nearby: Count = 8
    """Ranks below an entrant among which its opponent of phase 2 is looked for."""
    floor: Share = 0.1
    """The least weight of a result."""
    both: bool = True
    """Ask in both orders and take the mean, so that a preference for one place plays no part. It reads twice the tokens."""
    within: bool = False
    """Compare samples with the same answer, too, as the paper does."""
    answers: bool = False
    """One sample of each answer enters, and its standing is that of all samples with this answer (ours). It reads least."""

    def __post_init__(self) -> None:
        if self.within and self.answers:
            raise ValueError("answers enters one sample of each answer, which leaves within nothing to compare")


def margin(first: float, second: float, least: float = 1, most: float = 10) -> float:
    """Return the margin of two ratings from ``least`` to ``most``.

    >>> round(margin(9, 3), 4), round(margin(5, 6), 4)
    (0.6667, -0.1111)
    """
    return (first - second) / (most - least)


def standings(n: int, games: Sequence[Game], floor: float) -> list[float]:
    """Return mu of each of ``n`` entrants, from 0 to 1.

    >>> [round(mu, 6) for mu in standings(3, [(0, 1, margin(9, 3)), (0, 2, margin(5, 6))], floor=0.1)]
    [0.857143, 0.0, 1.0]
    """
    won, weighed = [0.0] * n, [0.0] * n
    for i, j, m in games:
        weight = max(abs(m), floor)
        value = (m > 0) + 0.5 * (m == 0)
        for k, v in ((i, value), (j, 1 - value)):
            won[k] += weight * v
            weighed[k] += weight
    return [w / total if total else 0.5 for w, total in zip(won, weighed, strict=True)]


def next_round(kinds: Sequence[object], games: Sequence[Game], how: Tournament) -> list[Pair]:
    """Return the disjoint pairs that meet next; none when the budget is spent or everyone has met whom they may.

    Entrants of one kind do not meet, unless ``how.within``. Ties are broken by the entrants' order: shuffle it once.
    """
    n = len(kinds)
    left = int(how.budget * n) - len(games)
    mu = standings(n, games, how.floor)
    kin = [{j for j in range(n) if j == i or (kinds[i] == kinds[j] and not how.within)} for i in range(n)]
    met: list[set[int]] = [set() for _ in kinds]
    for i, j, _ in games:
        met[i].add(j)
        met[j].add(i)
    pairs: list[Pair] = []
    if any(len(m) < how.degree for m in met):
        pairs = _disjoint(sorted(range(n), key=lambda i: len(met[i])), range(n), mu, kin, met, n)
    if not any(len(met[i]) < how.degree for pair in pairs for i in pair):  # nobody who lacks opponents can find one
        ranked = sorted(range(n), key=lambda i: -mu[i])
        pairs = _disjoint(ranked, ranked, mu, kin, met, how.nearby)
    return pairs[: max(0, left)]


def _disjoint(
    order: Sequence[int],
    ranked: Sequence[int],
    mu: Sequence[float],
    kin: Sequence[set[int]],
    met: Sequence[set[int]],
    nearby: int,
) -> list[Pair]:
    """Pair each entrant, in this order, with one it has not met: of the next ``nearby`` free ones, that of the closest mu."""
    free, pairs = set(order), list[Pair]()
    for i in order:
        if i not in free:
            continue
        free.discard(i)
        others = [j for j in ranked if j in free and j not in kin[i]][:nearby]
        if new := [j for j in others if j not in met[i]]:
            j = min(new, key=lambda j: abs(mu[i] - mu[j]))
            free.discard(j)
            pairs.append((i, j))
    return pairs
