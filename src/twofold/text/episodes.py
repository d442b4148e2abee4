"""Cut a thought into episodes: paragraphs up to the next change of mind (MRT, arXiv:2503.07572, section 5)."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

MARKS = (
    "Wait",
    "But wait",
    "Alternatively",
    "Is there another way to think about this?",
    "But let me double-check",
    "But hold on",
)
"""What a paragraph that changes the course begins with, as in the authors' analysis."""


@dataclass(frozen=True, slots=True)
class Episodes:
    """Where an episode ends: before a paragraph that begins with one of ``marks`` (case counts).

    * ``shortest``: paragraphs that an episode has at least; a mark that comes earlier is passed over (published: 3).
    * ``most``: after so many cuts the rest is one episode (published: 45 to 99).
    * ``group``: consecutive episodes that are taken together (published: 3 to 10).
    """

    shortest: int = 3
    most: int = 49
    group: int = 1
    marks: tuple[str, ...] = MARKS

    def __post_init__(self) -> None:
        if self.shortest < 1 or self.most < 0 or self.group < 1:
            raise ValueError(f"shortest and group must be at least 1, most at least 0, got {self}")


def episode_ends(text: str, config: Episodes) -> list[int]:
    r"""Where each episode ends, in characters; the last entry is ``len(text)``. A blank line belongs to what is before it.

    >>> episode_ends("Try 7.\n\nWait. Try 8.\n\nSo 8.", Episodes(shortest=1))
    [8, 27]
    >>> episode_ends("Try 7.\n\nWait. Try 8.\n\nSo 8.", Episodes(shortest=2))
    [27]
    """
    starts = [0, *(m.end() for m in re.finditer("\n\n", text))]
    ends: list[int] = []
    first = 0
    for i, start in enumerate(starts):
        if len(ends) == config.most:
            break
        if i - first >= config.shortest and text.startswith(config.marks, start):
            ends.append(start)
            first = i
    return [*ends[config.group - 1 :: config.group], len(text)]


def token_ends(pieces: Sequence[str], config: Episodes) -> list[int]:
    r"""``episode_ends`` in tokens; ``pieces[t]`` is the text of token t. The last entry is ``len(pieces)``.

    A token belongs to the episode in which it begins.

    >>> token_ends(["Try", " 7.", "\n\n", "Wait", "."], Episodes(shortest=1))
    [3, 5]
    """
    starts = [0, *accumulate(map(len, pieces))]
    ends = (bisect_left(starts, end) for end in episode_ends("".join(pieces), config)[:-1])
    return [*dict.fromkeys(e for e in ends if e < len(pieces)), len(pieces)]
