"""Cut a solution into steps: strings in, token indices out."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

# A single dollar opens a formula by pandoc's rule: no space inside it, no digit behind it. Other dollars are money.
_INLINE = r"(?<!\\)\$(?=\S)(?:\\.|[^$\\])*(?<=\S)\$(?!\d)"
_LATEX = re.compile(rf"\$\$.*?\$\$|{_INLINE}|\\\(.*?\\\)|\\\[.*?\\\]", re.DOTALL)
_BOUNDARY = re.compile(r"\n+|(?<=[.!?])\s+(?=[A-Z])")


def step_ends(pieces: Sequence[str]) -> list[int]:
    """Token index behind each step; ``pieces[t]`` is the text of token t. The last entry is ``len(pieces)``.

    A step ends at a newline, or at the end of a sentence (full stop, space, capital), never inside a LaTeX formula
    (VinePPO's rule, arXiv:2410.01679). A token belongs to the step in which it begins.

    >>> step_ends(["1+1", "=2", "\\n", "2+2=4", "\\n", "4"])
    [3, 5, 6]
    """
    text = "".join(pieces)
    hidden = _LATEX.sub(lambda m: "x" * len(m.group()), text)
    starts = [0, *accumulate(map(len, pieces))]
    ends: list[int] = []
    for boundary in _BOUNDARY.finditer(hidden):
        end = bisect_left(starts, boundary.end())
        if 0 < end < len(pieces) and end not in ends[-1:]:
            ends.append(end)
    return [*ends, len(pieces)]
