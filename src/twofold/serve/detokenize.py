"""Turn tokens into text while they arrive: pieces that never change once given, cut where a stop string ends the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class StopStrings:
    """Strings that end a sample. ``decode`` is the tokenizer's, which leaves out control tokens."""

    strings: tuple[str, ...]
    decode: Decode

    def first_end(self, tokens: Sequence[int], searched: int, size: int) -> int | None:
        """Return the first length in ``searched`` + 1 ... ``size`` at which ``tokens`` complete a stop string, if there is one.

        A token is at least one byte, so the last few tokens are enough to find a stop string in. One more is taken because
        the first may lose its space.
        """
        if not self.strings:
            return None
        most = max(len(s.encode()) for s in self.strings)
        for end in range(searched + 1, size + 1):
            text = self.decode(tokens[max(0, end - most - 1) : end])
            if any(s in text for s in self.strings):
                return end
        return None

    def cut(self, text: str) -> str:
        """Return the text before the stop string that is complete first.

        >>> StopStrings(("2", "34"), str).cut("1 34 2")
        '1 '
        """
        ends = ((i + len(s), i) for s in self.strings if (i := text.find(s)) >= 0)
        return text[: min(ends, default=(0, len(text)))[1]]

    def partial(self, text: str) -> int:
        """Return the length of the longest end of ``text`` that may become a stop string.

        >>> StopStrings(("\\n\\nQ",), str).partial("so 4.\\n")
        1
        """
        sizes = range(min(len(text), max(map(len, self.strings), default=1) - 1), 0, -1)
        return next((k for k in sizes if any(s.startswith(text[-k:]) for s in self.strings)), 0)


class Detokenizer:
    """The text of one growing list of tokens, piece by piece. The pieces join to the text that ``StopStrings.cut`` gives."""

    def __init__(self, stops: StopStrings) -> None:
        self.stops = stops
        self._start = self._end = 0  # the last piece was tokens[_start:_end]; decoding with it keeps spaces right
        self._held_back = ""
        self._stopped = False

    def read(self, tokens: Sequence[int], final: bool = False) -> str:
        """Return the text that was added since the last call. Half a character, or the beginning of a stop string, is held
        back until the next call or the ``final`` one."""
        decode = self.stops.decode
        before, now = decode(tokens[self._start : self._end]), decode(tokens[self._start :])
        if final or not now.endswith("\ufffd"):
            self._held_back += now[len(before) :]
            if len(now) > len(before):  # else the last piece may be no text at all
                self._start, self._end = self._end, len(tokens)
        if self._stopped:
            return ""
        text = self.stops.cut(self._held_back)
        self._stopped = len(text) < len(self._held_back)
        if not final and not self._stopped and (k := self.stops.partial(text)):
            text = text[:-k]
        self._held_back = self._held_back[len(text) :]
        return text
