r"""Cut a text into segments: the steps of a solution, the episodes of a thought, the attempts of a stream.

Cuts are found in the characters of the text and returned in tokens. ``pieces[t]`` is the text of token t, and a token
belongs to the segment in which it begins (``tokens_at``).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from twofold.ranges import Count, Whole, checked


def tokens_at(pieces: Sequence[str], places: Iterable[int]) -> list[int]:
    """Return the first token that begins at each place, a number of characters, or later.

    >>> tokens_at(["ab", "c", "de"], [0, 1, 3, 5])
    [0, 1, 2, 3]
    """
    starts = [0, *accumulate(map(len, pieces))]
    return [bisect_left(starts, place) for place in places]


def segment_ends(pieces: Sequence[str], places: Iterable[int]) -> list[int]:
    """Cut a text at ``places`` and return the segments' ends in tokens; the last entry is ``len(pieces)``.

    Two cuts within one token, and cuts at either end of the text, make no segment of their own.
    """
    inside = (t for t in tokens_at(pieces, places) if 0 < t < len(pieces))
    return [*dict.fromkeys(inside), len(pieces)]


# --- a solution's steps (VinePPO) -------------------------------------------------------------------------------------

# A single dollar opens a formula by pandoc's rule: no space inside it, no digit after it. Other dollars are money.
_INLINE = r"(?<!\\)\$(?=\S)(?:\\.|[^$\\])*(?<=\S)\$(?!\d)"
_LATEX = re.compile(rf"\$\$.*?\$\$|{_INLINE}|\\\(.*?\\\)|\\\[.*?\\\]", re.DOTALL)
_BOUNDARY = re.compile(r"\n+|(?<=[.!?])\s+(?=[A-Z])")


def sentence_ends(pieces: Sequence[str]) -> list[int]:
    """Return the token index after each step; the last entry is ``len(pieces)``.

    A step ends at a newline, or at the end of a sentence (full stop, space, capital letter), never inside a LaTeX
    formula (VinePPO's rule, arXiv:2410.01679).

    >>> sentence_ends(["1+1", "=2", "\\n", "2+2=4", "\\n", "4"])
    [3, 5, 6]
    """
    hidden = _LATEX.sub(lambda m: "x" * len(m.group()), "".join(pieces))
    return segment_ends(pieces, (boundary.end() for boundary in _BOUNDARY.finditer(hidden)))


# --- a thought's episodes (MRT) ---------------------------------------------------------------------------------------

MARKS = (
    "Wait",
    "But wait",
    "Alternatively",
    "Is there another way to think about this?",
    "But let me double-check",
    "But hold on",
)
"""How a paragraph begins that changes course, as in the analysis of MRT's authors."""


@checked
class Episodes:
    """Where an episode ends: before a paragraph that begins with one of ``marks`` (MRT, arXiv:2503.07572, section 5).

    * ``shortest``: the least number of paragraphs in an episode; an earlier mark is ignored (published: 3).
    * ``most``: the largest number of cuts; the rest of the thought is one episode (published: 45 to 99).
    * ``group``: how many consecutive episodes are joined into one (published: 3 to 10).
    * ``marks``: compared with case.
    """

    shortest: Count = 3
    most: Whole = 49
    group: Count = 1
    marks: tuple[str, ...] = MARKS


def episode_places(text: str, config: Episodes) -> list[int]:
    r"""Return where each episode ends, in characters; the last entry is ``len(text)``. A blank line ends the text before it.

    >>> episode_places("Try 7.\n\nWait. Try 8.\n\nSo 8.", Episodes(shortest=1))
    [8, 27]
    >>> episode_places("Try 7.\n\nWait. Try 8.\n\nSo 8.", Episodes(shortest=2))
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


def episode_ends(pieces: Sequence[str], config: Episodes) -> list[int]:
    r"""Return ``episode_places`` in tokens; the last entry is ``len(pieces)``.

    >>> episode_ends(["Try", " 7.", "\n\n", "Wait", "."], Episodes(shortest=1))
    [3, 5]
    """
    return segment_ends(pieces, episode_places("".join(pieces), config)[:-1])


def whole_paragraphs(pieces: Sequence[str]) -> int:
    r"""Return how many tokens make up whole paragraphs: those up to the last blank line, 0 without one.

    >>> whole_paragraphs(["Try 7.", "\n\n", "So"]), whole_paragraphs(["Try 7."])
    (2, 0)
    """
    end = "".join(pieces).rfind("\n\n") + 2
    return tokens_at(pieces, [end])[0] if end > 1 else 0


# --- a stream's attempts (MRT-B) --------------------------------------------------------------------------------------

_MARK = re.compile(r"^Backtrack to (?:line (\d{1,9})|(?:the )?beginning)[ \t]*\n", re.MULTILINE | re.IGNORECASE)
_LINE = re.compile(r"^[^\S\n]*\S", re.MULTILINE)


def line_starts(pieces: Sequence[str]) -> list[int]:
    r"""Return the first token of each line that is not blank.

    >>> line_starts(["Try", " 7", "\n\n", "So", " 8", "\n"])
    [0, 3]
    """
    return tokens_at(pieces, (line.start() for line in _LINE.finditer("".join(pieces))))


def attempts(pieces: Sequence[str]) -> list[list[int]]:
    r"""Return every attempt of a stream in order, as the indices of its tokens: the lines it shares, then its own.

    "Backtrack to line n" takes back the lines from n on, and what follows replaces them (MRT-B, arXiv:2503.07572). Lines
    are counted from 1 within the attempt so far, without blank lines. "Backtrack to the beginning", from the released code
    and data, means line 1. The tokens of such a mark belong to no attempt; a line number beyond the attempt's last line
    takes nothing back.

    >>> stream = ["3*2=6\n", "6+1=7\n", "Backtrack", " to line 2\n", "6+2=8"]
    >>> attempts(stream)
    [[0, 1], [0, 4]]
    """
    found: list[list[int]] = [[]]
    said = 0
    for mark in _MARK.finditer("".join(pieces)):
        start, end = tokens_at(pieces, mark.span())
        found[-1] += range(said, start)
        before = found[-1]
        lines = [*line_starts([pieces[t] for t in before]), len(before)]
        found.append(before[: lines[min(max(int(mark[1] or 1), 1), len(lines)) - 1]])
        said = end
    found[-1] += range(said, len(pieces))
    return found
