"""One way to make seeds from seeds."""

from __future__ import annotations

import random


def derive(seed: int, what: object) -> int:
    """Return the seed, of 62 bits, for one use of ``seed``: a step's number, or a name such as "values".

    Different uses draw unrelated numbers, also under neighbouring seeds, where ``seed + 1`` for a second use would draw
    what the first use draws under the next seed.
    """
    return random.Random(f"{seed}/{what}").getrandbits(62)
