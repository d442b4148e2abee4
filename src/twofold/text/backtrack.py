r"""A stream of attempts: "Backtrack to line n" takes back the lines from n on (MRT-B, arXiv:2503.07572).

What follows the mark stands in their place, so lines before n are shared and not said again. Lines are counted from 1,
those of the attempt so far, blank ones not. Released code and data name the beginning too, and write Line.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

MARK = "Backtrack to line {}\n"
_MARK = re.compile(r"^Backtrack to (?:line (\d{1,9})|(?:the )?beginning)[ \t]*\n", re.MULTILINE | re.IGNORECASE)
_LINE = re.compile(r"^[^\S\n]*\S", re.MULTILINE)


def line_starts(pieces: Sequence[str]) -> list[int]:
    r"""First token of each line that is not blank; ``pieces[t]`` is the text of token t.

    A token belongs to the line in which it begins.

    >>> line_starts(["Try", " 7", "\n\n", "So", " 8", "\n"])
    [0, 3]
    """
    starts = [0, *accumulate(map(len, pieces))]
    return [bisect_left(starts, line.start()) for line in _LINE.finditer("".join(pieces))]


def attempts(pieces: Sequence[str]) -> list[list[int]]:
    r"""Every attempt of a stream, the first one first, as the indices of its tokens: what is shared, and what is new.

    Tokens of a mark belong to no attempt. A line that is not there takes nothing back.

    >>> stream = ["3*2=6\n", "6+1=7\n", "Backtrack", " to line 2\n", "6+2=8"]
    >>> attempts(stream)
    [[0, 1], [0, 4]]
    """
    text, starts = "".join(pieces), [0, *accumulate(map(len, pieces))]
    found: list[list[int]] = [[]]
    said = 0
    for mark in _MARK.finditer(text):
        found[-1] += range(said, bisect_left(starts, mark.start()))
        before = found[-1]
        lines = [*line_starts([pieces[t] for t in before]), len(before)]
        found.append(before[: lines[min(max(int(mark[1] or 1), 1), len(lines)) - 1]])
        said = bisect_left(starts, mark.end())
    found[-1] += range(said, len(pieces))
    return found
