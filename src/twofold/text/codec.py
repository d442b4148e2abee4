"""Text to token ids and back, for one tokenizer. What a token's text is, is said here and nowhere else.

SentencePiece tokenizers (Llama-2, Mistral, Gemma, T5) put a space before a text and take it away again when they decode. So a
text that follows another one, and a token that is decoded alone, need care.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Literal, NamedTuple

_ANCHORS = ("\n", ".", "a")
"""Texts to put before another one. The first that shares no token with it serves."""
_BROKEN = "\ufffd"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_LONG = 8
"""A character has at most 4 bytes. Longer runs of tokens without a text of their own are broken; they are rarely looked at."""


def _byte_level() -> dict[str, int]:
    """Return the byte that each character of a byte-level BPE piece stands for: printable ones for themselves, the others, in
    order, for the characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_LEVEL = _byte_level()


class Part(NamedTuple):
    """A part of a text. ``may`` says which literals of added tokens become tokens in it.

    ``all``: it is ours. ``tags``: those that are not control tokens, such as ``<think>``. ``none``: it is untrusted.
    """

    text: str
    may: Literal["all", "tags", "none"] = "none"


class Codec:
    """Encodes texts of several parts, decodes, and gives each token its piece of the text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self.added = {t.content: i for i, t in added.items()}
        # Gemma's and GPT-NeoX's runs of spaces are added tokens, too, and belong to any text
        control = [t.content for t in added.values() if t.special or t.content.strip("▁ \t\n")]
        self.control, self._special = any_of(control), any_of([t.content for t in added.values() if t.special])
        self._skipped = frozenset(i for i, t in added.items() if t.special)
        self._markers, self._unread = frozenset[int](), self._skipped
        self._texts: dict[int, str] = {}

    def reserve(self, turns: set[str], thoughts: set[str]) -> None:
        """Take note of the added tokens that mark turns and thoughts. No text of others makes those of turns, be they special or
        not, and a reader of a solution needs those of thoughts."""
        self._markers = frozenset(self.added[text] for text in turns - thoughts) - self._skipped
        self._unread = self._skipped - {self.added[text] for text in thoughts & self.added.keys()}
        self._special = any_of(text for text, i in self.added.items() if i in self._markers | self._skipped)

    def readable(self, tokens: Sequence[int]) -> list[int]:
        """Return the tokens without control tokens; they decode to the same text.

        What ``decode`` drops is dropped. A marker of turns, whose literal it keeps, becomes the plain tokens of that literal.
        """
        found: list[int] = []
        for token in tokens:
            if token in self._markers:
                found += self.encode([Part(self.token_text(token))])
            elif token not in self._unread:
                found.append(token)
        return found

    # --- text to tokens -----------------------------------------------------------------------------------------------

    def encode(self, parts: Sequence[Part], *, begins: bool = False) -> list[int]:
        """Return the token ids of the parts joined. ``begins``: a text begins with them; else they continue one.

        A literal of an added token that touches a part which may not have it is cut after its first character.
        """
        text = "".join(part.text for part in parts)
        ids: list[int] = []
        for start, end in pairwise([0, *self._cuts(parts, text), len(text)]):
            ids += self.plain(text[start:end]) if begins and not start else self._continued(text[start:end])
        return ids

    @cached_property
    def opening(self) -> list[int]:
        """The tokens that the tokenizer itself puts before a text, such as Llama's BOS."""
        whole, own = self.tokenizer("x")["input_ids"], self.plain("x")
        places = (i for i in range(len(whole)) if whole[i : i + len(own)] == own)
        return whole[: next(places, 0)]

    def plain(self, text: str) -> list[int]:
        """Return the token ids of a text of ours that stands alone."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _continued(self, text: str) -> list[int]:
        if not self._adds_space:
            return self.plain(text)
        for anchor in _ANCHORS:
            before, whole = self.plain(anchor), self.plain(anchor + text)
            if whole[: len(before)] == before:
                return whole[len(before) :]
        return self.plain(text)

    @cached_property
    def _adds_space(self) -> bool:
        return "".join(self.tokenizer.convert_ids_to_tokens(self.plain("x"))) != "x"

    def _cuts(self, parts: Sequence[Part], text: str) -> list[int]:
        ends = [*accumulate(len(part.text) for part in parts)]
        cuts, start = [], 0
        while match := self.control.search(text, start):
            i = bisect_right(ends, match.start())
            special = self._special.fullmatch(match[0]) is not None
            whole = match.end() <= ends[i] and (parts[i].may == "all" or (parts[i].may == "tags" and not special))
            start = match.end() if whole else match.start() + 1
            cuts += [] if whole else [start]
        return cuts

    # --- tokens to text -----------------------------------------------------------------------------------------------

    def decode(self, tokens: Sequence[int], control: bool = False) -> str:
        """Return the text of ``tokens``, with the literals of ``control`` tokens or without."""
        skip = not control
        return self.tokenizer.decode(list(tokens), skip_special_tokens=skip, clean_up_tokenization_spaces=False)

    def continued(self, tokens: Sequence[int]) -> str:
        """Return the text of ``tokens`` that continue another text: the space before their first word is kept."""
        anchor, length = self._anchor
        return self.decode([anchor, *tokens])[length:]

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token adds to a text: none for a control token, no UTF-8 alone for a part of a character.

        SentencePiece writes a byte as ``<0xE2>``, byte-level BPE (GPT-2) each byte as a printable character.
        """
        text = "" if token in self._skipped else self.token_text(token)
        if _BROKEN not in text:
            return text.encode()
        piece: str = self.tokenizer.convert_ids_to_tokens(token)
        if found := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(found[1], 16)])
        return bytes(_BYTE_LEVEL[c] for c in piece) if set(piece) <= _BYTE_LEVEL.keys() else text.encode()

    def token_text(self, token: int) -> str:
        """Return the text of one token as it is within a text: with its space, and a control token by its literal."""
        if token not in self._texts:
            self._texts[token] = self._text([token], within=True)
        return self._texts[token]

    def pieces(self, tokens: Sequence[int], *, within: bool = False) -> list[str]:
        """Return the text of each token. Joined, they are ``decode(tokens)``, or ``continued(tokens)`` of those ``within`` a
        text; the time is linear in the number of tokens.

        A character of several tokens is the piece of the last of them; the others have none, nor has a control token. Bytes
        that make no character count as one character.
        """
        whole = self.continued(tokens) if within else self.decode(tokens)
        found = [""] * len(tokens)
        held: list[int] = []  # the places of tokens whose text is not known yet
        said = 0
        for i, token in enumerate(tokens):
            if token in self._skipped:
                continue
            held.append(i)
            if len(held) > _LONG and len(held) & (len(held) - 1):  # look at 16, 32, 64 ...
                continue
            own = self.token_text(token)
            alone = len(held) == 1 and within
            text = own if alone else self._text([tokens[j] for j in held], within)
            if not whole.startswith(text, said) or (_BROKEN in text and _BROKEN in own):
                continue
            if len(held) > 1 and own and _BROKEN not in own and text.endswith(own):
                found[held[-2]], found[i] = text[: -len(own)], own
            else:
                found[i] = text
            said, within, held = said + len(text), True, []
        if said < len(whole):
            found[held[-1]] = whole[said:]
        return found

    def _text(self, tokens: Sequence[int], within: bool) -> str:
        """Return the text of a few tokens, which begin a text or stand ``within`` one."""
        if not within:
            return self.decode(tokens, control=True)
        anchor, length = self._anchor
        return self.decode([anchor, *tokens], control=True)[length:]

    @cached_property
    def _anchor(self) -> tuple[int, int]:
        """A token for others to stand after, and the length of its text."""
        token = self.plain("x")[-1]
        return token, len(self.decode([token], control=True))


def any_of(literals: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that matches the longest of the literals; without literals it matches nothing."""
    return re.compile("|".join(map(re.escape, sorted(literals, key=len, reverse=True))) or r"(?!)")
