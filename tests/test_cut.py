"""The steps of a solution as token indices, on cases cut by hand and for any text in any tokens."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.text.segments import sentence_ends


def steps(*pieces: str) -> list[str]:
    """Return the text of each step."""
    ends = sentence_ends(pieces)
    return ["".join(pieces[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


def by_character(text: str) -> list[str]:
    return steps(*text)


def test_lines_end_steps() -> None:
    assert sentence_ends(["1+1", "=2", "\n", "2+2=4", "\n", "4"]) == [3, 5, 6]
    assert by_character("a = 1\n\nb = 2\nc = 3") == ["a = 1\n\n", "b = 2\n", "c = 3"]


def test_sentences_end_steps_before_a_capital() -> None:
    assert by_character("Add them. Then stop! Why? Because.") == ["Add them. ", "Then stop! ", "Why? ", "Because."]
    assert by_character("It is 3.5 or e.g. 4. so. 5") == ["It is 3.5 or e.g. 4. so. 5"]


@pytest.mark.parametrize(
    "formula",
    ["$a.\n B$", "$$a.\n\n B$$", "\\(a. B\n\\)", "\\[\na = 1\nb = 2\n\\]", "$\\$5.\n C$", "$x$. $A. B$"],
)
def test_no_step_ends_inside_a_formula(formula: str) -> None:
    assert by_character(f"Let {formula} be\nso") == [f"Let {formula} be\n", "so"]


def test_a_step_may_end_after_a_formula() -> None:
    assert by_character("So $x = 1$. Then $y = 2$.\nDone") == ["So $x = 1$. ", "Then $y = 2$.\n", "Done"]


@pytest.mark.parametrize("dollar", ["$", "\\$"])
def test_money_is_no_formula(dollar: str) -> None:
    text = f"He has {dollar}5.\nShe has {dollar}6. They have {dollar}11."
    assert by_character(text) == [f"He has {dollar}5.\n", f"She has {dollar}6. ", f"They have {dollar}11."]


def test_an_unclosed_formula_hides_nothing() -> None:
    assert by_character("\\[ a\nb") == ["\\[ a\n", "b"]
    assert by_character("$a\nb") == ["$a\n", "b"]


def test_a_token_belongs_to_the_step_in_which_it_begins() -> None:
    assert steps("one", ".\nT", "wo", "\n", "three") == ["one.\nT", "wo\n", "three"]
    assert steps("a. ", "B.", " C") == ["a. ", "B. C"], "the token that begins with the space brings its capital along"
    assert steps("a\nb\nc", "d") == ["a\nb\nc", "d"], "two boundaries in a token are one end"


def test_a_trailing_newline_makes_no_empty_step() -> None:
    assert sentence_ends(["a", "\n"]) == [2]
    assert sentence_ends(["a", "\n", "b", "\n\n"]) == [2, 4]


def test_a_stop_token_without_text() -> None:
    """It begins where the text ends: after a newline it is a step of its own, else part of the last step."""
    assert sentence_ends(["a", "\n", "b", ""]) == [2, 4]
    assert sentence_ends(["a", "\n", ""]) == [2, 3]


def test_the_smallest_inputs() -> None:
    assert sentence_ends([]) == [0]
    assert sentence_ends([""]) == [1]
    assert sentence_ends(["\n"]) == [1]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(alphabet="aB1. \n$\\()[]!?", max_size=5), max_size=40))
def test_ends_rise_and_cover_everything(pieces: list[str]) -> None:
    ends = sentence_ends(pieces)
    assert ends[-1] == len(pieces)
    assert all(a < b for a, b in pairwise(ends))
    assert not pieces or ends[0] > 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(alphabet="aB. \n", min_size=1, max_size=4), min_size=1, max_size=20))
def test_tokens_only_coarsen_the_cut(pieces: list[str]) -> None:
    """Every end is a cut of the same text character by character, moved back to the next token's beginning."""
    text = "".join(pieces)
    starts = [sum(map(len, pieces[:t])) for t in range(len(pieces) + 1)]
    moved = {min(t for t in range(len(starts)) if starts[t] >= end) for end in sentence_ends(list(text))}
    assert sentence_ends(pieces) == sorted(moved)


def test_a_long_solution_is_cut_in_linear_time() -> None:
    began = time.process_time()
    assert len(sentence_ends(["a.", "\n"] * 50_000)) == 50_000
    assert time.process_time() - began < 3
