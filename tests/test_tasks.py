"""Procedural tasks: items are pure functions, sides of the divide never meet, and graders know right from wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import pytest

from twofold.tasks.code import Code
from twofold.tasks.procedural import Countdown, Letters, Sums, evaluate
from twofold.tasks.processbench import some_cases
from twofold.tasks.stream import first
from twofold.types import Problem

TASKS = [Sums(), Sums(level=1, choice=0.0), Countdown(), Letters(), Code()]
SPLITS = ["train", "test", "harder", "ood"]


def named(task: object) -> str:
    return f"{task.name}-{task.level}"


def items(task, split: str, n: int) -> Iterator[Problem]:
    return (task.problem(split, i) for i in range(n))


@pytest.mark.parametrize("task", TASKS, ids=named)
def test_an_item_is_a_pure_function_of_its_place(task):
    forwards = [task.problem(s, i) for s in SPLITS for i in range(20)]
    backwards = [replace(task).problem(s, i) for s in reversed(SPLITS) for i in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert task.problem("train", 3) != replace(task, seed=1).problem("train", 3)


def test_items_never_change():
    """The items are frozen: the shipped model was trained on them, and published numbers are about them."""
    assert Sums().problem("test", 0).question == (
        "Start with 20, 45, 22 or 59. Subtract 11. Multiply by 2. The result is 96. What was the start?"
    )
    assert Sums(choices=3).problem("test", 0).question == (
        "Start with 82, 84 or 87. Subtract 44. Subtract 26. The result is 12. What was the start?"
    )
    assert Countdown().problem("test", 0).question == "Reach 16 with 2, 6, 4, each used once, with + - *."
    assert Letters().problem("test", 0).question == "Take the last letters of gaguk, fusud, semar and join them."
    assert Code().problem("test", 0).question == (
        "Write a Python function f(xs) for a list xs of whole numbers. Add 6 to each. Multiply each by 6. Return the list. "
        "For example, f([1, 19, -16]) is [42, 150, -60] and f([5, 5, 8, 1]) is [66, 66, 84, 42]. Put it into a ```python block."
    )


@pytest.mark.parametrize("task", [Sums(), Countdown(), Letters(), Code()], ids=named)
def test_training_never_meets_a_test_question(task):
    """No seed and no level may train on what any level is tested on."""
    levels = (task.level, task.level + 1)
    train = {
        p.question
        for level in levels
        for seed in (0, 1)
        for p in items(replace(task, level=level, seed=seed), "train", 450)
    }
    test = {p.question for split in SPLITS[1:] for p in items(task, split, 1000)}
    assert len(train) > 1500 and len(test) > 1500
    assert not train & test


@pytest.mark.parametrize(
    "task", [Countdown(level=2), Sums(level=1, choice=0.0), Letters(level=1), Code(level=1)], ids=named
)
@pytest.mark.parametrize("split", SPLITS)
def test_an_id_stands_for_what_is_asked(task, split):
    """Wherever a problem is drawn, by whatever seed, its id is the same; two problems never share one."""

    def normal(p: Problem) -> object:
        return (p.meta["target"], sorted(p.meta["numbers"])) if task.name == "countdown" else p.question

    drawn = [p for seed in (0, 1) for p in items(replace(task, seed=seed), split, 200)]
    of_id: dict[str, object] = {}
    assert all(of_id.setdefault(p.id, normal(p)) == normal(p) for p in drawn)
    assert len(of_id) == len({str(normal(p)) for p in drawn})


def test_a_small_task_gives_different_problems_or_says_how_many_it_has():
    found = first(Countdown(level=2), "test", 25)
    assert len({(p.meta["target"], *sorted(p.meta["numbers"])) for p in found}) == 25
    assert found[:9] == [*items(Countdown(level=2), "test", 9)]  # the first repetition is at place 9
    with pytest.raises(ValueError, match="countdown has 25 different problems in its test split, fewer than 26"):
        first(Countdown(level=2), "test", 26)
    assert first(Sums(), "test", 440) == [*items(Sums(), "test", 440)]  # the published evaluations are of these
    cases = some_cases(Countdown(level=2), 25)
    assert len({case.problem for case in cases}) == 25


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'valid' is not one of train, test, harder, ood"):
        Sums().problem("valid", 0)


@pytest.mark.parametrize("task", [Sums(), Countdown(), Letters()], ids=named)
@pytest.mark.parametrize("split", SPLITS)
def test_the_reference_answer_is_right_and_another_is_wrong(task, split):
    for p in items(task, split, 30):
        answer, grade = task.grade(p, f"so \\boxed{{{p.answer}}}")
        assert (answer, grade.label, grade.reward) == (p.answer, "correct", 1.0)
        off = {"sums": lambda a: str(int(a) + 1), "countdown": lambda a: f"{a}+1", "letters": lambda a: a + "q"}[
            task.name
        ]
        wrong = task.grade(p, f"\\boxed{{{off(p.answer)}}}")[1]
        assert (wrong.label, wrong.reward) == ("wrong", 0.0)
        silent = task.grade(p, f"I think it is {p.answer}.")
        assert (silent[0], silent[1].label, silent[1].reward) == (None, "no_answer", 0.0)


# ---------------------------------------------------------------- sums


def follow(start: int, steps: list[tuple[str, str]], top: int) -> int | None:
    """Return the result of a question's own words from ``start``, or None if a value on the way is outside 0 .. top."""
    value = start
    for verb, operand in steps:
        value = {"Add": value + int(operand), "Subtract": value - int(operand), "Multiply by": value * int(operand)}[
            verb
        ]
        if not 0 <= value <= top:
            return None
    return value


@pytest.mark.parametrize(
    ("split", "more", "top"), [("train", 0, 99), ("test", 0, 99), ("harder", 1, 99), ("ood", 0, 199)]
)
def test_sums_questions_say_what_their_answers_compute(split, more, top):
    """Run forwards, the chain ends in the answer. With a choice of starts, only the answer's chain ends in the result."""
    task, seen = Sums(level=3), set()
    for p in items(task, split, 200):
        steps = re.findall(r"(Add|Subtract|Multiply by) (\d+)\.", p.question)
        assert len(steps) == 3 + more
        starts = [int(x) for x in re.findall(r"\d+", re.match(r"Start with ([^.]*)\.", p.question)[1])]
        ends = {start: follow(start, steps, top) for start in starts}
        assert len(ends) == len(starts) and all(2 <= start <= top for start in starts)
        if len(starts) == 1:
            assert p.question.endswith("What is the result?") and int(p.answer) == ends[starts[0]]
        else:
            result = int(re.search(r"The result is (\d+)\. What was the start\?$", p.question)[1])
            assert len(starts) == task.choices and None not in ends.values()
            assert [start for start, end in ends.items() if end == result] == [int(p.answer)]
        seen.add(len(starts))
    assert seen == {1, task.choices}


def test_sums_with_fewer_operations_and_smaller_numbers():
    task = Sums(level=3, choice=1.0, operations="+-", top=30)
    for split, top in (("train", 30), ("ood", 61)):
        questions = [p.question for p in items(task, split, 200)]
        assert not any("Multiply" in q for q in questions)
        assert 0.8 * top < max(int(n) for q in questions for n in re.findall(r"\d+", q)) <= top
    with pytest.raises(ValueError, match=r"operations must be some of \+ - \*, got '/'"):
        Sums(operations="/")
    with pytest.raises(ValueError, match="top must be at least 20"):
        Sums(top=5)


def test_the_share_of_choices_is_what_was_asked_for():
    shares = [
        sum("What was the start" in p.question for p in items(Sums(choice=c), "train", 400)) / 400
        for c in (0.0, 0.75, 1.0)
    ]
    assert shares[0] == 0 and shares[2] == 1 and shares[1] == pytest.approx(0.75, abs=0.08)


def test_the_right_start_stands_anywhere():
    """The right start is about equally often in each place of the list."""
    places = [p.meta["starts"].index(int(p.answer)) for p in items(Sums(choice=1.0), "train", 600)]
    assert all(places.count(k) == pytest.approx(200, abs=60) for k in range(3))


def test_sums_wants_the_number_itself():
    """Writing the sum down must not earn what computing it earns."""
    texts = ["\\boxed{42}", "\\boxed{41} no, \\boxed{ 42 }", "#### 42", "\\boxed{40+2}", "\\boxed{24}", "42"]
    labels = [Sums().grade(Problem("", "", "42"), text)[1].label for text in texts]
    assert labels == ["correct", "correct", "correct", "wrong", "wrong", "no_answer"]


# ---------------------------------------------------------------- countdown

REACH_10 = Problem("", "", "(2*3)+4", {"numbers": [4, 3, 2], "target": 10})


@pytest.mark.parametrize("answer", ["(2*3)+4", "4+3*2", "4 + 2 * 3", "((4))+(3*2)"])
def test_countdown_takes_any_right_expression(answer):
    assert Countdown().grade(REACH_10, f"\\boxed{{{answer}}}")[1].label == "correct"


@pytest.mark.parametrize("answer", ["10", "2+2+3+3", "4+3*2+2-2", "4+6", "2*3*4", "4+3*2=10", "4+3**2-3", "-4+3+2"])
def test_countdown_refuses_the_rest(answer):
    """Wrong are a bare target, a number used twice, left out or not given, a wrong value, an equation, a power and a sign."""
    assert Countdown().grade(REACH_10, f"\\boxed{{{answer}}}")[1].label == "wrong"


def test_countdown_items_have_the_numbers_of_their_level():
    for split, size, low, high in [("train", 3, 2, 12), ("harder", 4, 2, 12), ("ood", 3, 13, 20)]:
        for p in items(Countdown(), split, 30):
            assert len(p.meta["numbers"]) == size and all(low <= n <= high for n in p.meta["numbers"])
            assert evaluate(p.answer) == (p.meta["target"], [int(n) for n in re.findall(r"\d+", p.answer)])


def test_evaluate_is_exact():
    assert evaluate(" (3+7)*2 ") == (Fraction(20), [3, 7, 2])
    assert evaluate("1/3+1/3+1/3")[0] == 1
    assert evaluate("7-10/4") == (Fraction(9, 2), [7, 10, 4])


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').getcwd()", "print(1)", "(1).real", "a+1", "2**9", "9**9**9**9", "1//2", "7%3", "-3", "~3", "1/0", "1/(2-2)",
        "1.5",
        "True+1", "'a'*9", "[1]", "1 if 1 else 2", "1<2", "lambda: 1", "1000000000", "1j", "1e3", "(x:=1)", "1;2", "", "1+", "\x00",
        "9" * 5000, "(" * 150 + "1" + ")" * 150, "+".join(["1"] * 101), "+" * 198 + "1",
    ],
)  # fmt: skip
def test_evaluate_refuses_everything_else_with_a_value_error(expression):
    with pytest.raises(ValueError):
        evaluate(expression)


# ---------------------------------------------------------------- letters


def test_letters_joins_last_letters():
    for p in items(Letters(), "train", 50):
        words = re.match(r"Take the last letters of (.*) and join them\.", p.question)[1].split(", ")
        assert len(words) == 3 and p.answer == "".join(w[-1] for w in words)


@pytest.mark.parametrize(
    ("answer", "label"), [("abc", "correct"), (" abc ", "correct"), ("acb", "wrong"), ("ABC", "wrong"), ("ab", "wrong")]
)
def test_letters_compares_letter_by_letter(answer, label):
    """Letters are not read as mathematics, where abc and acb are one product."""
    assert Letters().grade(Problem("", "", "abc"), f"\\boxed{{{answer}}}")[1].label == label
