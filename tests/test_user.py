"""Users' own tasks and rewards are pinned by their file's hash and run under a deadline; a failure is never a silent 0."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from twofold import source
from twofold.tasks import user
from twofold.tasks.procedural import Sums
from twofold.tasks.user import FromSource, Guarded, Rewarded
from twofold.types import Grade, Problem

TASK = Sums(level=1, choice=0)
PROBLEM = TASK.problem("test", 0)
RIGHT, WRONG = f"\\boxed{{{PROBLEM.answer}}}", "\\boxed{-1}"


def write(path: Path, code: str) -> str:
    path.write_text("from twofold.types import Grade, Problem\n" + code)
    return str(path)


# ---------------------------------------------------------------- sources


def test_a_source_is_pinned_to_its_file(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", "x = 1\n")
    pinned = source.pin(f"{file}:x")
    assert source.load(pinned) == 1 and source.pin(pinned) == pinned
    write(tmp_path / "mine.py", "x = 2\n")
    assert source.load(f"{file}:x") == 2
    with pytest.raises(ValueError, match="has changed since it was recorded"):
        source.load(pinned)


@pytest.mark.parametrize(
    ("named", "error", "message"),
    [
        ("mine.py", ValueError, "write the file and what it defines, mine.py:Name"),
        ("gone.py:x", FileNotFoundError, "no such file"),
        ("mine.py:rewrad", ValueError, "has no rewrad; did you mean reward?"),
    ],
)
def test_what_is_no_source_is_said(named: str, error: type, message: str, tmp_path: Path, monkeypatch) -> None:
    write(tmp_path / "mine.py", "def reward(problem, text): return 1.0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        source.load(named)


def test_things_given_in_python_are_described() -> None:
    described = source.describe(TASK)
    assert described.startswith(f"{Path(source.__file__).parent}/tasks/procedural.py:Sums@sha256:")
    assert source.describe(Sums) == described


# ---------------------------------------------------------------- rewards


def test_a_number_pays_and_correctness_stays_the_tasks(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", "def brief(problem, text): return 1 - len(text) / 100\n")
    task = Rewarded(TASK, [f"{file}:brief"])
    for text, label in ((RIGHT, "correct"), (WRONG, "wrong"), ("so what", "no_answer")):
        assert task.grade(PROBLEM, text)[1] == Grade(pytest.approx(1 - len(text) / 100), label)


def test_several_are_summed_with_weights(tmp_path: Path) -> None:
    file = write(
        tmp_path / "mine.py",
        "def two(problem, text): return 2\n"
        "def grade(problem, text): return Grade(0.5, 'wrong')\n"
        "def question(problem, text): return float(len(problem.question))\n",
    )
    task = Rewarded(TASK, ["correct", f"{file}:two", f"{file}:question"], [1.0, 0.25, 2.0])
    assert task.grade(PROBLEM, RIGHT) == (PROBLEM.answer, Grade(1 + 0.5 + 2 * len(PROBLEM.question), "correct"))
    # the first Grade of a function says whether it is right
    assert Rewarded(TASK, ["correct", f"{file}:grade"]).grade(PROBLEM, RIGHT)[1] == Grade(1.5, "wrong")
    with pytest.raises(ValueError, match="reward names 2 functions, and reward_weights has 1 numbers"):
        Rewarded(TASK, ["correct", f"{file}:two"], [1.0])


@pytest.mark.parametrize(
    ("body", "label", "report"),
    [
        ("raise KeyError('gone')", "error", r"mine.py:reward@sha256:\w+ failed:\n(.|\n)*KeyError: 'gone'"),
        ("return 'much'", "error", "a reward is a number or a Grade, not 'much'"),
        ("return None", "error", "a reward is a number or a Grade, not None"),
        ("return float('nan')", "error", "a reward must be finite"),
        ("return Grade(1.0, 'splendid')", "error", "not 'splendid'"),
        ("import os; os._exit(3)", "error", r"ended its process \(exit status 3\)"),
        ("return sum(i for i in range(10**12))", "timeout", "took more than 0.2 s of a processor"),
        ("import re; return bool(re.match('(a+)+b', 'a' * 64))", "timeout", "took more than 0.2 s of a processor"),
        ("import time; time.sleep(60)", "timeout", "waited more than 2 s"),
    ],
)
def test_a_failure_is_a_label_and_is_logged_once(
    body: str, label: str, report: str, tmp_path: Path, monkeypatch, caplog
) -> None:
    """This also holds for code that keeps Python's lock or ends its process. The next call has an answer again."""
    monkeypatch.setattr(user, "DEADLINE", 0.2)
    monkeypatch.setattr(user, "WALL", 2.0)
    monkeypatch.setattr(user, "once", user.Once())
    file = write(tmp_path / "mine.py", f"def reward(problem, text):\n    if text == 'well': return 1.0\n    {body}\n")
    task = Rewarded(TASK, [f"{file}:reward"])
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            assert task.grade(PROBLEM, RIGHT) == (PROBLEM.answer, Grade(None, label))
    assert task.grade(PROBLEM, "well")[1].reward == 1.0
    (record,) = caplog.records
    assert re.search(report, record.getMessage()), record.getMessage()


def test_what_a_function_prints_is_no_answer(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", "def reward(problem, text):\n    print('{}')\n    return 3\n")
    assert Rewarded(TASK, [f"{file}:reward"]).grade(PROBLEM, RIGHT)[1].reward == 3.0


def test_a_wrong_name_is_found_before_anything_is_sampled(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", "def reward(problem, text): return 1.0\n")
    with pytest.raises(ValueError, match="has no bonus"):
        Rewarded(TASK, [f"{file}:bonus"])


# ---------------------------------------------------------------- tasks

OWN = """
class Task:
    name = "own"

    def problem(self, split, i):
        return Problem(f"{split}-{i}", f"Say {i}", str(i), {"i": i})
"""
GRADE = """
    def grade(self, problem, text):
        if text == "crash":
            raise RuntimeError("no")
        return text, Grade(0.5, "correct" if text == str(problem.meta["i"]) else "wrong")
"""


def test_a_task_from_a_file_grades_in_its_own_way(tmp_path: Path) -> None:
    task = FromSource(f"{write(tmp_path / 'mine.py', OWN + GRADE)}:Task")
    problem = task.problem("train", 7)
    assert (task.name, problem.id, problem.question) == ("own", "train-7", "Say 7")
    assert task.grade(problem, "7") == ("7", Grade(0.5, "correct"))
    assert task.grade(problem, "8") == ("8", Grade(0.5, "wrong"))
    assert task.grade(problem, "crash") == (None, Grade(None, "error"))


def test_without_a_grade_answers_are_compared(tmp_path: Path) -> None:
    task = FromSource(f"{write(tmp_path / 'mine.py', OWN)}:Task")
    assert task.grade(task.problem("test", 7), r"\boxed{14/2}") == ("14/2", Grade(1.0, "correct"))


def test_what_is_no_task_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", "class Task:\n    name = 'x'\ndef f(): ...\n")
    with pytest.raises(TypeError, match="is no task: it has no problem"):
        FromSource(f"{file}:Task")
    with pytest.raises(TypeError, match="it has no name and no problem"):
        FromSource(f"{file}:f")


def test_an_object_is_guarded_too(monkeypatch) -> None:
    class Own:
        name = "own"

        def problem(self, split: str, i: int) -> Problem:
            return Problem(str(i), "", "")

        def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
            if text == "hang":
                user.threading.Event().wait(3)
            return text, Grade(1 / len(text), "correct")

    monkeypatch.setattr(user, "WALL", 0.2)
    task = Guarded(Own())
    assert task.grade(task.problem("test", 0), "ab") == ("ab", Grade(0.5, "correct"))
    assert task.grade(task.problem("test", 0), "") == (None, Grade(None, "error"))
    assert task.grade(task.problem("test", 0), "hang") == (None, Grade(None, "timeout"))
