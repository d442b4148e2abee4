"""What a token's text is, for SentencePiece tokenizers as for byte-level ones; and texts that continue other texts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import FORMS, small

from twofold.serve.detokenize import Detokenizer, StopStrings
from twofold.text.chat import Chat
from twofold.text.codec import Codec, Part
from twofold.text.segments import Episodes, attempts, episode_ends, sentence_ends

SENTENCEPIECE = ("prepend", "metaspace", "first")
SOLUTION = "12 + 3 is 15. So it is.\n\nBut wait, it is 16. So we see.\nBacktrack to line 1\nTry 4."

each_form = pytest.mark.parametrize("form", FORMS)


def cut(pieces: list[str], ends: list[int]) -> list[str]:
    return ["".join(pieces[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


# Pieces ---------------------------------------------------------------------------------------------------------------


@each_form
@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=20), data=st.data())
def test_pieces_join_to_the_text(form: str, text: str, data: st.DataObject) -> None:
    """This also holds for tokens in any order, with control tokens and with bytes that make no character."""
    tokenizer = small(form)
    codec = Codec(tokenizer)
    drawn = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=30))
    for tokens in (codec.plain(text), drawn, [*codec.plain(text), *drawn]):
        pieces = codec.pieces(tokens)
        assert len(pieces) == len(tokens)
        assert "".join(pieces) == codec.decode(tokens)


@each_form
@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=20), data=st.data())
def test_text_that_continues_another_keeps_its_space(form: str, text: str, data: st.DataObject) -> None:
    """Pieces join to it as well, and so do those of a stream that is read in parts."""
    codec = Codec(small(form))
    tokens = [*codec.plain(text), *data.draw(st.lists(st.integers(0, len(codec.tokenizer) - 1), max_size=9))]
    whole = codec.continued(tokens)
    assert "".join(codec.pieces(tokens, within=True)) == whole
    tokens = codec.plain(text)
    reader = Detokenizer(StopStrings((), codec.continued))
    first = reader.read(tokens[: len(tokens) // 2])
    assert first + reader.read(tokens, final=True) == codec.continued(tokens)


@pytest.mark.parametrize("form", SENTENCEPIECE)
def test_the_first_word_of_a_continuation(form: str) -> None:
    codec = Codec(small(form))
    tokens = codec.plain("So it is.")
    assert (codec.decode(tokens), codec.continued(tokens)) == ("So it is.", " So it is.")


@pytest.mark.parametrize("form", [*SENTENCEPIECE, "bytes"])
def test_the_bytes_of_tokens_join_to_the_text(form: str) -> None:
    codec = Codec(small(form))
    text = "So € is\n漢 \x01 +~¡."
    tokens = codec.encode([Part(text)])
    assert b"".join(map(codec.token_bytes, tokens)) == text.encode()
    euro = codec.encode([Part("€")])[-3:]
    assert [codec.token_bytes(t) for t in euro] == [b"\xe2", b"\x82", b"\xac"]
    assert codec.token_bytes(codec.tokenizer.eos_token_id) == b""


@pytest.mark.parametrize("form", [*SENTENCEPIECE, "bytes"])
def test_a_character_of_several_tokens_goes_to_the_last_of_them(form: str) -> None:
    codec = Codec(small(form))
    pieces = codec.pieces(codec.plain("So €."))
    assert pieces[-4:] == ["", "", "€", "."]


def test_half_a_character_goes_to_the_token_before_the_next_whole_one() -> None:
    codec = Codec(small("bytes"))
    euro, so = codec.plain("€"), codec.plain("So")
    assert codec.pieces([*so, *euro[:2], *so]) == ["So", "", "\ufffd", "So"]
    assert codec.pieces([*so, *euro[:2]]) == ["So", "", "\ufffd"]


@each_form
def test_the_pieces_of_a_long_text_take_linear_time(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens that are decoded in all are counted, for a text and for bytes that make no character."""
    codec = Codec(small(form))
    tokens = (codec.plain(SOLUTION + "漢字 €") * 200)[:4000]
    broken = [t for t in range(len(codec.tokenizer)) if "\ufffd" in codec.token_text(t)][:1] * 4000
    for case in (tokens, broken):
        decoded = 0

        def count(tokens: list[int], control: bool = False, decode: Any = codec.decode) -> str:
            nonlocal decoded
            decoded += len(tokens)
            return decode(tokens, control)

        monkeypatch.setattr(codec, "decode", count)
        codec.pieces(case)
        monkeypatch.undo()
        assert decoded <= 10 * len(case)


@each_form
def test_cuts_are_those_of_byte_level_tokenizers(form: str) -> None:
    """VinePPO's sentences, MRT's "But wait" and MRT-B's attempts; a cut is at the next token that begins there or later."""
    pieces, bytewise = (Chat(small(x)).pieces(Codec(small(x)).plain(SOLUTION)) for x in (form, "bytes"))
    found, wanted = ([cut(p, sentence_ends(p)), cut(p, episode_ends(p, Episodes(1)))] for p in (pieces, bytewise))
    assert [len(x) for x in found] == [len(x) for x in wanted] == [6, 2]
    assert found[1] == wanted[1] and found[1][1].startswith("But wait")
    if form != "unigram":  # whose first words are several tokens
        assert found == wanted
    streams = [["".join(p[t] for t in attempt) for attempt in attempts(p)] for p in (pieces, bytewise)]
    assert streams[0] == streams[1] == [SOLUTION.partition("Backtrack")[0], "Try 4."]


@pytest.mark.parametrize("form", SENTENCEPIECE)
def test_a_tokens_own_text_has_its_space(form: str) -> None:
    codec = Codec(small(form))
    ((so,), (end,)) = codec.plain("So"), codec.plain("</s>")[-1:]
    assert codec.tokenizer.convert_ids_to_tokens(so) == "▁So"
    assert (codec.token_text(so), codec.token_text(end)) == (" So", "</s>")


# Texts that continue --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [*SENTENCEPIECE, "bytes"])
@settings(max_examples=25, deadline=None)
@given(parts=st.lists(st.one_of(st.sampled_from([" ", "\n", "So", "</s>", "<s>"]), st.text(max_size=4)), min_size=1))
def test_a_text_that_continues_another_begins_as_it_is_written(form: str, parts: list[str]) -> None:
    chat = Chat(small(form))
    tokens = [t for part in parts for t in chat.encode(part)]
    assert not {*chat.tokenizer.all_special_ids} & {*tokens}
    assert chat.decode([*chat.codec.plain("x"), *tokens]) == "x" + "".join(parts)


@each_form
def test_a_text_alone_begins_as_the_tokenizer_begins_it(form: str) -> None:
    tokenizer = small(form)
    assert Chat(tokenizer).text("So it is") == tokenizer("So it is")["input_ids"]
    assert Chat(tokenizer).text("So</s>").count(tokenizer.eos_token_id) == 0


# Streams --------------------------------------------------------------------------------------------------------------


@each_form
def test_a_stream_keeps_its_spaces(form: str) -> None:
    """Also where tokens without a text stand between."""
    chat = Chat(small(form))
    (so,), end = chat.codec.plain("So")[-1:], chat.stop[0]
    tokens = [*chat.codec.plain(SOLUTION), end, so, end, end, so]
    reader = Detokenizer(StopStrings((), chat.decode))
    read = [reader.read(tokens[: i + 1], final=i == len(tokens) - 1) for i in range(len(tokens))]
    assert "".join(read) == chat.decode(tokens)


@pytest.mark.parametrize("form", SENTENCEPIECE)
def test_a_stop_string_may_begin_with_a_space(form: str) -> None:
    chat = Chat(small(form))
    tokens = chat.codec.plain("Try it So So")
    stops = StopStrings((" So",), chat.decode)
    assert stops.first_end(tokens, 0, len(tokens)) == len(tokens) - 1
