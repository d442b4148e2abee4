"""Tokens to text while they still come: pieces that never change once given, and where a stop string ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Stops:
    """Strings that end a sample. ``decode`` is the tokenizer's, control tokens left out."""

    strings: tuple[str, ...]
    decode: Decode

    def first(self, tokens: Sequence[int], seen: int, size: int) -> int | None:
        """How many of the first ``size`` tokens there are when a stop string is complete, if one is behind ``seen`` of them.

        Every token is at least a byte, so few have to be read.
        """
        if not self.strings:
            return None
        most = max(len(s.encode()) for s in self.strings)
        for end in range(seen + 1, size + 1):
            text = self.decode(tokens[max(0, end - most) : end])
            if any(s in text for s in self.strings):
                return end
        return None

    def cut(self, text: str) -> str:
        """What stands before the stop string that was complete first.

        >>> Stops(("2", "34"), str).cut("1 34 2")
        '1 '
        """
        ends = ((i + len(s), i) for s in self.strings if (i := text.find(s)) >= 0)
        return text[: min(ends, default=(0, len(text)))[1]]

    def held(self, text: str) -> int:
        """Length of the longest end of ``text`` that may become a stop string.

        >>> Stops(("\\n\\nQ",), str).held("so 4.\\n")
        1
        """
        sizes = range(min(len(text), max(map(len, self.strings), default=1) - 1), 0, -1)
        return next((k for k in sizes if any(s.startswith(text[-k:]) for s in self.strings)), 0)


class Reader:
    """The text of one growing list of tokens, piece by piece; the pieces join to the text that ``Stops.cut`` gives."""

    def __init__(self, stops: Stops) -> None:
        self.stops = stops
        self._from = self._read = 0  # tokens behind ``_read`` are decoded from ``_from``, where a piece began
        self._waiting = ""
        self._ended = False

    def more(self, tokens: Sequence[int], final: bool = False) -> str:
        """What the tokens since the last call add. Half a character, or what may begin a stop string, waits."""
        decode = self.stops.decode
        before, now = decode(tokens[self._from : self._read]), decode(tokens[self._from :])
        if final or not now.endswith("\ufffd"):
            self._waiting += now[len(before) :]
            self._from, self._read = self._read, len(tokens)
        if self._ended:
            return ""
        text = self.stops.cut(self._waiting)
        self._ended = len(text) < len(self._waiting)
        if not final and not self._ended and (k := self.stops.held(text)):
            text = text[:-k]
        self._waiting = self._waiting[len(text) :]
        return text
