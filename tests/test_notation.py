r"""Answers as people and models write them: one notation, one normal form, and the right grade, kind by kind."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from twofold.tasks.grading import equal, equal_exactly, unreadable
from twofold.text.notation import MAX_ANSWER, canonical, for_parser, latex, words

Pairs = list[tuple[str, str]]
KINDS: dict[str, tuple[Pairs, Pairs]] = {
    "units behind ties": (
        [("10", r"10~\mathrm{m}"), (r"10~\mathrm{m}", "10"), ("288", r"288 \mathrm{~cm}^3"), ("10", r"10\,\text{cm}"),
         ("9.8", r"9.8\ \mathrm{m}\,\mathrm{s}^{-2}"), ("9.8", r"9.8~\frac{\mathrm{m}}{\mathrm{s}^2}"),
         ("300000000", r"3\times10^8\ \mathrm{m/s}"), ("5", r"5\ \mu\mathrm{m}"), ("20", r"20\ \mathrm{k}\Omega"),
         (r"2x", r"2x \text{ cm}"), (r"35 \text{ cm}, 4", "35, 4"), ("51", "51 (trucks)"), ("9 (apples)", "9")],
        [("10", r"11~\mathrm{m}"), ("x=2", r"x=\text{even}"), ("5", r"5 \text{ or } 6"), ("3", "3(abc)")],
    ),
    "units of one letter": (
        [pair for u in "VJNKCLAWTFH" for pair in (("10", rf"10\ \mathrm{{{u}}}"), (rf"10\,\text{{{u}}}", "10"), ("10", f"10 {u}"))],
        [("2m", "2"), ("7", "7x"), (r"2\mathrm{e}", "2"), (r"\pi r^2 h", r"\pi r^2"), ("2t", "2")],
    ),
    "mixed numbers": (
        [("2.75", "2 3/4"), ("2 3/4", r"\frac{11}{4}"), ("2 3/4", r"2\frac{3}{4}"), ("-2 3/4", "-2.75"), ("2 3/4", "2.75 cups"),
         ("2.75", "2 3/4 cups"), ("2.5", "2½")],
        [("2 3/4", "5/4"), ("2 3/4", "1.5"), ("2 3/4", "2, 3/4")],
    ),
    "lists and thousands": (
        [("3, 104", "104, 3"), ("3,104", "3104"), ("1,234, 5", "1234, 5"), ("3, 104", r"\{3,104\}"), ("(3,104)", "(3, 104)"),
         ("1000", r"1\,000"), ("1000", "1 000"), ("1000", "1\u202f000"), ("32349", r"32,\! 349"),
         (r"\frac{1,000}{3}", r"\frac{1000}{3}"),
         (r"[-36,104]", "[-36, 104]")],
        [("3104", "3, 104"), ("3, 104", "3104"), ("3,104", "3, 104"), ("(3,104)", "3104"), ("12", "1 2")],
    ),
    "times of the day": (
        [(r"5:15 \text{ p.m.}", "5:15 PM"), ("5:15 p.m.", "5:15"), ("5:15 p.m.", "17:15"), ("12:30 a.m.", "0:30"),
         ("5 p.m.", "5:00 pm"),
         ("9:03:36 a.m.", "9:03:36")],
        [(r"5:15 \text{ p.m.}", r"5:15 \text{ a.m.}"), ("5 p.m.", "5 a.m."), ("12:00", "1:00"), ("5:15 p.m.", "5:16 p.m."),
         ("5:15 p.m.", "315"), ("12:30 a.m.", "12:30 p.m.")],
    ),
    "upright letters": (
        [(r"1-1/\mathrm{e}", r"1-\frac1e"), (r"2\mathrm{e}-3", "-3+2e"), (r"\mathrm{e}^2", "e^2"), (r"2\mathrm{e}", "2e"),
         (r"{\rm e}", "e"), (r"\mathrm e^{-1}", r"\frac{1}{e}"), (r"3+2\mathrm{i}", "3+2i"), (r"\text{e}^{x}", "e^x"),
         ("E_{1},E_{2}", "E_1, E_2"), (r"\mathbf{v}", "v")],
        [(r"2\mathrm{e}-3", "0.002"), (r"1-1/\mathrm{e}", r"1+1/\mathrm{e}")],
    ),
    "unions, or, and": (
        [(r"(-\infty,0)\cup\{1\}", r"x<0 \text{ or } x=1"), (r"x<1 \text{ or } x>2", r"(-\infty,1)\cup(2,\infty)"),
         (r"(-\infty,1)\cup(2,\infty)", "x<1 or x>2"), ("x>2 or x<1", "x<1 or x>2"), ("[1,2]", r"x\ge1\text{ and }x\le2"),
         (r"(-\infty,1)\cup(2,\infty)", r"x\in(2,\infty)\cup(-\infty,1)"), (r"x\neq1", r"(-\infty,1)\cup(1,\infty)"),
         (r"\mathbb{R}\setminus\{1\}", r"(-\infty,1)\cup(1,\infty)"), ("x=1 or x=2", r"\{1,2\}"),
         (r"1\le x\le 2", r"x\ge1\text{ and }x\le2")],
        [("x<1 or x>2", "x<1 and x>2"), ("x<1 or x>2", "x<1 or x>3"), (r"(-\infty,1)\cup(2,\infty)", r"(-\infty,1)\cup(3,\infty)"),
         (r"(-\infty,0)\cup\{1\}", r"(-\infty,0)")],
    ),
    "empty sets": (
        [(r"\emptyset", r"\varnothing"), (r"\emptyset", r"\{\}"), ("∅", r"\text{no solution}"), (r"\emptyset", "No real solutions.")],
        [(r"\emptyset", "0"), ("0", r"\emptyset"), (r"\emptyset", r"\{0\}"), (r"\{\}", r"\{1\}")],
    ),
    "Unicode": (
        [("70", "70°"), (r"70^\circ", "70°"), (r"\sqrt{2}", "√2"), (r"\frac{\sqrt{3}}{2}", "√3/2"), (r"\sqrt{x+1}", "√(x+1)"),
         (r"\sqrt[3]{2}", "∛2"), ("1/2", "½"), ("x^2", "x²"), ("x_1", "x₁"), (r"\infty", "∞"), ("300000000", "3×10⁸"),
         ("10^{-3}", "10⁻³"),
         (r"2\pi", "2π"), (r"x\le 2", "x ≤ 2"), ("-5", "−5"), (r"(-\infty,1]\cup[2,\infty)", "(−∞, 1] ∪ [2, ∞)"), ("37", "37°C")],
        [("x^2", "x2"), ("√2", "2"), ("½", "12"), ("3×10⁸", "3×108")],
    ),
    "currency": (
        [("29", "29 €"), ("29 €", "29"), ("29", "€29"), ("29", "£29"), ("29", "29 euros"), (r"\$18.90", "18.9"),
         ("1000.99", "1,000.99$")],
        [("29 €", "30 €")],
    ),
    "number words": (
        [("5 million", "5,000,000"), (r"5\text{ million}", "5000000"), ("28%", "28 percent"), (r"28\%", r"28\text{ percent}")],
        [("5 million", "5"), ("28%", "29 percent")],
    ),
    "per cent": (
        [("17.5%", "17.5"), ("17.5%", "0.175"), ("0.5", r"50\%"), ("50", "50%"), ("50%", "50.0 %")],
        [("50%", "0.5%"), ("5000", "50%"), ("50%", "5000")],
    ),
    "functions in plain text": (
        [("sin x", r"\sin x"), (r"\frac{\pi}{2}", "pi/2"), ("2*pi", r"2\pi"), ("np.arcsin(10/13)", r"\arcsin(10/13)"), ("x**2", "x^2"),
         ("sqrt(x+1)", r"\sqrt{x+1}"), (r"x^{\mathrm{T}} y", "x^T y"), (r"\text{10 cm}", "10"), (r"\text{5 or 6}", "5, 6")],
        [("sin x", "cos x"), ("pi/2", "ip/2")],
    ),
    "letters of options": (
        [("C", r"\text{(C)}"), ("C", r"\text{Option C}"), ("(C)", "C"), (r"\textbf{(C)}", "C.")],
        [("C", "D"), ("(A)", r"\text{Option B}"), ("C", "A or B or C")],
    ),
    "words": (
        [("Mrs. Hilt", r"\text{Mrs. Hilt}"), ("yes", r"\text{Yes}"), ("Evelyn", "evelyn"), ("xy", "yx"), ("abc", r"a\cdot b\cdot c")],
        [("kdr", "drk"), ("listen", "silent"), ("Mrs. Hilt", "5"), ("The 60th caller.", "60"), (r"\text{even}", "odd")],
    ),
    "references that could not be read": (
        [(r"$(-\infty,0)\cup\{1\}$.", r"(-\infty,0)\cup\{1\}"), (r"\{x|-2\le x<1\}", "[-2,1)"), (r"\{x|-2\le x<1\}", r"-2\le x<1"),
         (r"\{x \in \mathbb{R} : x \ne 3\}", r"x\ne 3"), ("b > a > c", "c<a<b"), (r"m_{\max}=n^2-1", r"(n-1)(n+1)"),
         (r"x_{\text{max}}=3", "3"), (r"0.\overline{36}", r"\frac{4}{11}"), (r"0.1\overline{6}", "1/6"),
         (r"0.\dot{1}4285\dot{7}", "1/7"),
         ("(1,2)", r"\langle 1,2\rangle"), (r"k\pi, k\in\mathbb{Z}", r"k\pi \text{ for } k \in \mathbb{Z}"), ("FF_{16}", "FF_{16}")],
        [(r"$(-\infty,0)\cup\{1\}$.", r"(-\infty,0)"), (r"\{x|-2\le x<1\}", "[-2,1]"), ("b > a > c", "a>b>c"),
         (r"m_{\max}=n^2-1", "n^2"), (r"0.\overline{36}", "0.36"), ("a_{12}", "10")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_every_kind_are_graded_right(kind: str) -> None:
    right, wrong = KINDS[kind]
    for label, pairs in (("correct", right), ("wrong", wrong)):
        for gold, answer in pairs:
            assert equal(gold, answer, deadline=10.0) == label, (gold, answer)
            assert label == "correct" or canonical(gold) != canonical(answer), "a vote would merge them"
    for gold in {gold for gold, _ in right}:
        assert equal(gold, gold) == equal_exactly(gold, f"${gold}$.") == "correct"


def test_votes_see_one_answer_in_every_notation() -> None:
    for group in (
        ["2 3/4", r"2\frac{3}{4}", "2.75", "11/4", "2¾"],
        ["3, 104", "3,  104", r"$3$, $104$", r"3,\ 104"],
        [r"5:15 \text{ p.m.}", "5:15 PM", "5:15pm", "05:15 p.m."],
        [r"70^\circ", "70°", r"70^{\circ}", r"70\degree"],
        ["x^2", "x²", "x^{2}", r"$x^2$."],
        ["C", "(C)", r"\text{(C)}", r"\textbf{C}", "Option C"],
        [r"10\ \mathrm{m}", "10 m", r"10~\text{m}"],
        [r"\emptyset", "∅", r"\{\}", "no solution"],
        [r"0.\overline{36}", "4/11", r"\frac{36}{99}"],
        [r"(-\infty,1]\cup[2,\infty)", "(−∞, 1] ∪ [2, ∞)", r"$\left(-\infty, 1\right] \cup \left[2, \infty\right)$."],
    ):
        assert {canonical(answer) for answer in group} == {canonical(group[0])}


ALPHABET = "019.,:/%+-=<> xeEAm{}()[]\\^_°²½√€π…"
PIECES = st.sampled_from(
    [*ALPHABET, r"\frac", r"\text{", r"\mathrm{e}", r"\,", r"\overline{3}", " or ", "p.m.", ", ", "000", r"\{x|"]
)


@settings(derandomize=True)
@given(st.lists(PIECES, max_size=25).map("".join))
@example(r"… \overline{3}")  # dots before it make it no repeating decimal
def test_forms_settle(text: str) -> None:
    form = canonical(canonical(text))  # nonsense such as √$0 takes two readings
    assert canonical(form) == form
    for_parser(text)
    words(text)


def test_formulas_that_were_read_before_stay_as_they_were() -> None:
    rows = r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}"
    assert latex(rows) == rows  # the end of a row is no spacing command
    assert latex("1, 2, ...") == "1, 2, ..."
    assert equal(rows, r"\begin{pmatrix} -\frac{1}{3} \\ \frac{2}{3} \end{pmatrix}", deadline=10.0) == "correct"


@pytest.mark.parametrize(
    "piece", ["~", " ", "$", "9", "{", r"\text{a}", r"\mathrm{m}/", "x>", "²", "no ", "1 000 ", "a or ", ", "]
)
def test_hostile_answers_take_no_time(piece: str) -> None:
    for answer in ((piece * MAX_ANSWER)[:MAX_ANSWER], ("1" + piece * MAX_ANSWER)[: MAX_ANSWER - 1] + "x"):
        start = time.perf_counter()
        canonical(answer)
        for_parser(answer)
        assert time.perf_counter() - start < 2  # cubic time took minutes


def test_references_that_cannot_be_read_are_found() -> None:
    readable = [
        "5",
        "1/2",
        r"\sqrt{2}",
        r"\{x|-2\le x<1\}",
        "b > a > c",
        "Mrs. Hilt",
        r"0.\overline{36}",
        "1, 2, \\ldots",
    ]
    assert unreadable([*readable, r"\frac{", "$t(0,4]$"]) == {r"\frac{", "$t(0,4]$"}
    assert unreadable([]) == set()
