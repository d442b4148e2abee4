"""Tango's formats: what a step and a verdict are, what the format scores are, and where a step ends in tokens."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.text.steps import read, solution_format, solution_text, span_ends, spans

R, W = r"\boxed{CORRECT}", r"\boxed{INCORRECT}"


def texts(text: str, cut: str = "tags") -> list[str]:
    return [text[a:b] for a, b in spans(text, cut)]  # type: ignore[arg-type]


def critique(*steps: str, final: str = R, between: str = "\n") -> str:
    body = between.join(f"<step>{s}</step>" for s in steps)
    return f"<step_verification>\n{body}\n</step_verification>\n<final_verification>{final}</final_verification>"


# ---------------------------------------------------------------- the generator's steps


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\n<step>a\nb</step>\n<step></step></think>", ["<step>a\nb</step>", "<step></step>"]),
        ("<answer><step>outside of the thought</step></answer>", ["<step>outside of the thought</step>"]),
        ("<step>a<step>b</step>c</step>", ["<step>a<step>b</step>"]),  # non-greedy: up to the first end
        ("</step><step>never closed", []),
        ("<Step>a</Step> < step>b</step>", []),
        ("", []),
    ],
)
def test_steps_in_tags(text: str, expected: list[str]) -> None:
    assert texts(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1+1=2\n\n  \n2+2=4\n\\boxed{4}", ["1+1=2\n", "2+2=4\n"]),
        ("1+1=2\nso \\boxed{2}\nand more", ["1+1=2\n"]),
        ("1+1=2", ["1+1=2"]),  # cut by the token limit
        ("\\boxed{2}", []),
    ],
)
def test_steps_by_lines(text: str, expected: list[str]) -> None:
    assert texts(text, "lines") == expected


def test_a_step_ends_after_the_token_with_its_last_character() -> None:
    pieces = ["<think>\n", "<step>", "a", "</step>\n", "<step>b</", "step", ">", "\n</think>"]
    assert span_ends(pieces) == [4, 7]
    assert span_ends(["<step>a</step><step>b</step>", "."]) == [1, 1]  # two in one token
    assert span_ends(["1", "=1\n", "2=2", "\n\\bo", "xed{2}"], "lines") == [2, 4]


@given(st.lists(st.text("ab<>/step\n", max_size=6)), st.sampled_from(["tags", "lines"]))
def test_any_pieces_give_ends_in_order_that_cover_the_steps(pieces: list[str], cut: str) -> None:
    ends = span_ends(pieces, cut)  # type: ignore[arg-type]
    assert ends == sorted(ends) and all(0 < e <= len(pieces) for e in ends)
    for end, (_, stop) in zip(ends, spans("".join(pieces), cut), strict=True):  # type: ignore[arg-type]
        assert len("".join(pieces[: end - 1])) < stop <= len("".join(pieces[:end]))


def test_what_is_written_is_read() -> None:
    for cut in ("tags", "lines"):
        text = solution_text(["1+1=2", "2+2=4", "4+4=8"], "8", cut)  # type: ignore[arg-type]
        assert len(texts(text, cut)) == 3 and solution_format(text, cut) == 1.0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<step>a</step>" * 3 + r"<answer>\boxed{1}</answer>", 1.0),
        ("<step>a</step>" * 2 + r"<answer>\boxed{1}</answer>", 0.6),
        (r"<answer>\boxed{1}</answer>", 0.2),
        ("<step>a</step>" * 3 + "<answer>1</answer>", 0.2),
        ("<step>a</step>" * 2 + "<answer>1</answer>", 0.0),
        ("<answer>1</answer>", 0.0),
        ("<step>a</step>" * 3 + r"\boxed{1}", 0.0),  # no answer block
        ("<step>a</step>" * 3 + r"<answer>\boxed{1}", 0.0),
    ],
)
def test_the_generators_format_score(text: str, score: float) -> None:
    assert solution_format(text) == pytest.approx(score)


# ---------------------------------------------------------------- the verifier's verdicts


@pytest.mark.parametrize(
    ("block", "verdict"),
    [
        (R, True),
        (rf"I see. {W}", False),
        (r"\boxed{correct}", True),
        (r"\box{Incorrect}", False),
        (rf"{R}. ", True),
        (rf"{R} .", True),
        (f"{R}\n", True),
        (f"{W} or rather {R}", True),
        (f"{R}..", None),
        (f"{R} surely", None),
        (r"\boxed{MAYBE}", None),
        (r"\boxed{NOT CORRECT}", None),
        ("CORRECT", None),
        ("", None),
    ],
)
def test_a_step_block_must_end_with_its_verdict(block: str, verdict: bool | None) -> None:
    assert read(critique(block)).steps == [verdict]


def test_verdicts_are_read_inside_of_the_verification_only() -> None:
    """A solution that is quoted first has steps of its own, and may even contain verdicts."""
    found = read(f"<step>{R}</step><step>{R}</step>\n" + critique(W, R))
    assert found.steps == [False, True] and not found.shape
    assert read(f"<step>{R}</step><final_verification>{R}</final_verification>").steps == []
    assert read(f"<step_verification><step>{R}</step>").steps == []  # never closed: cut by the token limit


@pytest.mark.parametrize(
    ("steps", "count", "verdicts"),
    [((R, W), 2, [True, False]), ((R, W), 3, None), ((R, "?"), 1, None), ((R, "?"), 2, None), ((), 0, None)],
)
def test_verdicts_count_if_there_is_one_for_each_step(steps: tuple[str, ...], count: int, verdicts: object) -> None:
    assert read(critique(*steps)).step_verdicts(count) == verdicts


@pytest.mark.parametrize(
    ("final", "verdict", "closed"),
    [
        (R, True, True),
        (rf"The whole is {W}.", False, True),
        (f"{R} since all is well", True, False),
        ("well", None, False),
    ],
)
def test_the_final_verdict(final: str, verdict: bool | None, closed: bool) -> None:
    found = read(critique(R, final=final))
    assert (found.final, found.closed) == (verdict, closed)
    assert read(f"<final_verification>{R}").final is None


@pytest.mark.parametrize(
    ("text", "score", "uncounted"),
    [
        (critique(R, W), 1.0, 1.0),
        (f"  {critique(R, W)}\n", 1.0, 1.0),
        (critique(R, W) + ".", 0.0, 0.0),  # text outside of the two blocks
        ("First. " + critique(R, W), 0.0, 0.0),
        (critique(R, W) * 2, 0.0, 0.0),
        (critique(R, W).replace("</step_verification>", "</step_verification> so"), 0.0, 0.0),
        (f"<final_verification>{R}</final_verification><step_verification></step_verification>", 0.0, 0.0),
        ("", 0.0, 0.0),
        (critique(R, W, final=f"{R} yes"), 0.2, 0.2),
        (critique(), 0.2, 0.2),  # no step blocks
        (critique(R), 0.2, 1.0),  # one too few: only where the solution's steps can be counted on
        (critique(R, "?"), 0.2, 1.0),
        (critique(R, "?", W), 1.0, 1.0),  # the released code counts verdicts, not blocks
        (critique(R, W, between=" then "), 0.6, 0.6),
        (critique(R, final="?"), 0.0, 0.2),
        (critique(R, W, between=" then ", final="?"), 0.0, 0.0),
    ],
)
def test_the_verifiers_format_score(text: str, score: float, uncounted: float) -> None:
    assert read(text).format(2) == pytest.approx(score)
    assert read(text).format(2, counted=False) == pytest.approx(uncounted)


@pytest.mark.parametrize(
    "unit", ["<step>", "</step>", r"\boxed{", r"\boxed{CORRECT}", "<step_verification>", " ", "\n"]
)
def test_a_megabyte_of_nonsense_is_read_at_once(unit: str) -> None:
    text = "<step_verification>" + unit * (1_000_000 // len(unit))
    began = time.monotonic()
    for hostile in (text, text + "</step_verification>", critique(unit * 50_000)):
        read(hostile).format(3)
        solution_format(hostile)
        spans(hostile, "lines")
    assert time.monotonic() - began < 5
