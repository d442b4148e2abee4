"""Extraction and normal forms: what is taken as the answer, and which answers count as equal."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.text.exact import exact
from twofold.text.extract import choice_letter, final_answer, last_boxed, only_answer
from twofold.text.notation import canonical


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{4} and \boxed{5", "4"),  # a box that was cut off is no answer
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),  # \{ is no brace: it needs no partner
        (r"\\boxed{6}", "6"),
        (r"\boxed {7}", "7"),
        ("#### 8\n\nDone.", "8"),
        ("#### 8\n#### 9", "9"),
        (r"#### 8 but \boxed{10}", "10"),
        (r"\boxed{}", None),
        (r"\boxed{2}, \boxed{3} and $\boxed{5}$", "2, 3, 5"),  # side by side: a list
        (r"\(\boxed{1}\) or \(\boxed{-2}\).", "1, -2"),
        (r"\boxed{1}\boxed{2}", "1, 2"),
        (r"$x = \boxed{\frac12}$, $\boxed{0.5}$", r"\frac12"),  # one answer in two notations
        ("\\boxed{4}\n\nNo, wait.\n\n\\boxed{5}", "5"),
        ("\\boxed{4}\n\\boxed{5}", "5"),
        ("The answer is 42. Final answer: 42", None),  # naming it is not answering
        ("####", None),
        ("", None),
    ],
)
def test_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@given(
    st.recursive(
        st.sampled_from(["x", "1", r"\{", r"\}", " + "]), lambda s: s.map(lambda x: "{" + x + "}"), max_leaves=8
    )
)
def test_any_balanced_content_comes_back(content: str) -> None:
    assert last_boxed("a { b \\boxed{" + content + "} c }") == content.strip()


@pytest.mark.parametrize(
    "text",
    [
        *("\\boxed{" * 150_000, "\\boxed{" * 70_000 + "}" * 70_000, "\\boxed{" + "{" * 10**6, "\\boxed" + " " * 10**6),
        *("\\" * 10**6, "{" * 10**6, "####" * 250_000, "#### " + " " * 10**6),
        *("answer" + " " * 10**6, "answer is " * 10**5),
    ],
    ids=lambda text: text[:12],
)
def test_a_megabyte_takes_no_time(text: str) -> None:
    start = time.perf_counter()
    final_answer(text)
    choice_letter(text)
    assert time.perf_counter() - start < 2  # quadratic time would take hours


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{C}", "C"),
        (r"\boxed{\text{(C)}}", "C"),
        (r"\boxed{\textbf{(C)}\ 14}", "C"),
        ("The correct answer is (B).", "B"),
        ("**Answer:** D", "D"),
        ("the answer is A. No: the answer is option B", "B"),
        (r"\boxed{A or B}", None),
        (r"\boxed{A, B}", None),
        ("the answer is A or B", None),
        ("the answer is a number", None),
        (r"the answer is B, that is \boxed{14}", None),  # a box is the commitment, and this one holds no letter
        ("A", "A"),
        ("Answer: $C$", "C"),
        (r"Answer: $\text{C}$", "C"),
        ("<answer>C</answer>", "C"),
        ("(C)", "C"),
        ("It is the third.\n\n**C**", "C"),
        (r"\boxed{\text{Option C}}", "C"),
        (r"\boxed{c}", "C"),
        ("The answer is A large number, so D", None),
        (r"\boxed{A large number}", None),
        ("The answer is A because it is prime", "A"),
        ("The answer is I think D", None),
        ("There are 5 cats", None),
    ],
)
def test_choice_letter(text: str, letter: str | None) -> None:
    assert choice_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "stated", "number"),
    [
        ("Answer: 5", "5", "5"),
        ("so <answer>5</answer>", "5", "5"),
        ("**Answer:** $\\frac{1}{2}$ of it", r"\frac{1}{2}", r"\frac{1}{2}"),
        ("The answer is 1,042. Checked.", "1,042", "1,042"),
        ("Final Answer: The final answer is $10,455$. I hope it is correct.", "10,455", "10,455"),
        ("Final Answer: The largest $n$ is 34.", "34", "34"),
        ("Answer: 4\nNo.\nAnswer: \\(5\\)", "5", "5"),
        ("That makes 7 and then -3/4 in all", None, "-3/4"),
        ("#### 8 apples, the answer is 9", "8 apples, the answer is 9", "8 apples, the answer is 9"),
        (r"\boxed{1}. The answer is 2", "1", "1"),  # a box is the commitment
        ("I do not know", None, None),
    ],
)
def test_other_places_of_an_answer_are_an_option(text: str, stated: str | None, number: str | None) -> None:
    assert final_answer(text, "stated") == stated
    assert final_answer(text, "number") == number
    assert final_answer(text) in (None, stated)


def test_a_reference_has_one_answer() -> None:
    assert only_answer(r"first \boxed{\textbf{(113) }}. Again \boxed{113}") == "113"
    assert only_answer(r"$\boxed{2}$ and $\boxed{3}$ solve it") == "2, 3"
    assert only_answer("6*7=42\n#### 42") == "42"
    with pytest.raises(ValueError, match="2 different boxed answers: 4; 5"):
        only_answer(r"\boxed{4} apples, for which \boxed{5} are paid")


SAME = [
    [
        "1/2",
        "0.5",
        "0.50",
        ".5",
        r"\frac12",
        r"\frac{1}{2}",
        r"\dfrac{1}{2}",
        "$1/2$",
        r"\(1/2\)",
        "1/2.",
        "2/4",
        "2^{-1}",
        "+0.5",
    ],
    ["1234", "1,234", "1{,}234", "1234.0", "1.234e3", r"1.234 \times 10^{3}", r"\$1,234", r"\text{1234}", " 1234 "],
    ["-3", "−3", "- 3", "-6/2", r"-\frac{6}{2}", r"\frac{-6}{2}"],
    ["22", "42_5", "42_{5}"],
    ["70", r"\frac{8!}{4!4!}".replace("4!4!", r"4! \cdot 4!"), r"\binom{8}{4}"],
    ["(1,2)", "( 1 , 2 )", r"\left(1, 2\right)", "$(1,2)$"],
    ["Evelyn", r"\text{Evelyn}", r"\textbf{ Evelyn }.", "$Evelyn$"],
    ["50%", r"50\%"],
]


@pytest.mark.parametrize("group", SAME, ids=lambda group: group[0])
def test_answers_written_differently_are_one(group: list[str]) -> None:
    assert {canonical(answer) for answer in group} == {canonical(group[0])}


def test_different_answers_stay_different() -> None:
    different = [group[0] for group in SAME] + [
        "50",
        "10 cm",
        "10 m",
        "x",
        "X",
        "12",
        "1 2",
        "1,2",
        "(1,234)",
        "2(3)",
        "5!!",
    ]
    assert len({canonical(answer) for answer in different}) == len(different)


@given(st.fractions(max_denominator=10**6))
def test_every_fraction_is_its_own_normal_form(value: Fraction) -> None:
    assert canonical(str(value)) == str(value)
    assert exact(rf"\frac{{{value.numerator}}}{{{value.denominator}}}") == value


@given(st.text(alphabet=r"0123456789+-*/^!(){}\._, $abfrcinomtex", max_size=40))
def test_normal_forms_are_stable_and_never_fail(text: str) -> None:
    assert len(canonical(text)) <= 210 + len(text)
    exact(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-2^2", -4),
        ("2^3^2", 512),
        ("8/4/2", 1),
        ("2-3-4", -5),
        ("-(1+2)*3", -9),
        ("3!^2", 36),
        ("1.2e-2", Fraction(3, 250)),
    ],
)
def test_exact_keeps_the_precedence_of_arithmetic(text: str, value: Fraction | int) -> None:
    assert exact(text) == value


@pytest.mark.parametrize("text", ["9^{9^9}", "((9!)!)!", "1/0", "49_5", "1 2", "--1", "x", "", "()", "(" * 200, "1,23"])
def test_exact_gives_up_on_what_it_does_not_know(text: str) -> None:
    assert exact(text) is None


def test_no_huge_number_is_written_out() -> None:
    assert canonical("2^{4000}") == "2^{4000}"
    assert exact("2^{4000}") == 2**4000
    assert canonical("7" * 5000) == "7" * 5000
