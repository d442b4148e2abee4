"""The numbers that searches decide by: how many children, which particles are kept, which branch is visited next."""

from __future__ import annotations

import math
from collections.abc import Sequence


def rebase_allocation(rewards: Sequence[float], width: int, temperature: float = 0.2) -> list[int]:
    """Return the children per node, ``width`` in all, by REBASE's balance of rewards (Wu et al., arXiv:2408.00724).

    Nodes are served in order of falling reward; of equals, the earlier is first. With e = exp(reward / temperature) and S
    the sum of e over the nodes not yet served, a node gets ceil(left * e / S) of what is left.

    >>> rebase_allocation([0.9, 0.7, 0.3, 0.1], 16)
    [12, 4, 0, 0]

    Raises ValueError unless width >= 0 and temperature > 0.
    """
    if width < 0 or temperature <= 0:
        raise ValueError(f"width must be at least 0 and temperature above 0, got {width} and {temperature}")
    top = max(rewards, default=0.0)
    order = sorted(range(len(rewards)), key=lambda i: -rewards[i])
    weights = [math.exp((rewards[i] - top) / temperature) for i in order]
    counts, left = [0] * len(rewards), width
    for rank, i in enumerate(order):
        if left == 0:
            break
        share = left * weights[rank] / math.fsum(weights[rank:])
        counts[i] = math.ceil(share - 1e-9)  # a whole number must not be rounded up for its last bit
        left -= counts[i]
    return counts


def particle_probabilities(scores: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Return softmax(logit(score) / temperature), with the scores, in [0, 1], clipped 1e-7 away from both ends.

    The weight of a particle is the current score of its whole prefix (arXiv:2502.01618; its code, like this, takes the logit).

    >>> [round(p, 3) for p in particle_probabilities([0.9, 0.5, 0.1])]
    [0.89, 0.099, 0.011]

    Raises ValueError unless temperature > 0.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    clipped = [min(max(s, 1e-7), 1 - 1e-7) for s in scores]
    logits = [math.log(s / (1 - s)) / temperature for s in clipped]
    top = max(logits)
    weights = [math.exp(w - top) for w in logits]
    return [w / math.fsum(weights) for w in weights]


def puct(
    q: float, prior: float, parent_visits: int, visits: int, c_init: float = 1.25, c_base: float = 19652.0
) -> float:
    """Return Q + c P sqrt(N_parent) / (1 + N), c = ln((N_parent + c_base + 1) / c_base) + c_init (AlphaZero; arXiv:2309.17179).

    >>> round(puct(q=0.4, prior=0.5, parent_visits=10, visits=3), 5)
    0.89433
    """
    c = math.log((parent_visits + c_base + 1) / c_base) + c_init
    return q + c * prior * math.sqrt(parent_visits) / (1 + visits)
