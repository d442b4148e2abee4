"""Users' own tasks and rewards are pinned by their file's hash and run under a deadline; a failure is never a silent 0."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from twofold import source
from twofold.tasks import grading, user, workers
from twofold.tasks.procedural import Sums
from twofold.tasks.user import FromSource, Guarded, Rewarded
from twofold.types import Grade, Problem

TASK = Sums(level=1, choice=0)
PROBLEM = TASK.problem("test", 0)
RIGHT, WRONG = f"\\boxed{{{PROBLEM.answer}}}", "\\boxed{-1}"
ERROR = Grade(None, "error")


@pytest.fixture(autouse=True)
def nothing_is_logged_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user, "logged", set())


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
    """A class by its file, which ``load`` finds again; an object with its fields, which ``load`` refuses."""
    described = source.describe(Sums)
    assert described.startswith(f"{Path(source.__file__).parent}/tasks/procedural.py:Sums@sha256:")
    assert source.describe(TASK).startswith(f"<python>:{described}Sums(level=1, choice=0")
    with pytest.raises(ValueError, match="was given in Python"):
        source.load(source.describe(TASK))


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
    monkeypatch.setattr(workers, "DEADLINE", 0.2)
    monkeypatch.setattr(workers, "WALL", 2.0)
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


@pytest.mark.parametrize(
    ("value", "reward"),
    [
        ("np.float32(0.5)", 0.5),
        ("np.int64(2)", 2.0),
        ("np.bool_(True)", 1.0),
        ("np.array(0.25)", 0.25),
        ("Fraction(1, 4)", 0.25),
        ("True", 1.0),
        ("Grade(np.float16(0.5), 'wrong')", 0.5),
        ("np.float32('nan')", None),
        ("float('inf')", None),
        ("1j", None),
        ("np.array([1.0, 2.0])", None),
    ],
)
def test_every_real_number_is_a_reward(value: str, reward: float | None, tmp_path: Path) -> None:
    code = f"import numpy as np\nfrom fractions import Fraction\ndef reward(problem, text): return {value}\n"
    file = write(tmp_path / "mine.py", code)
    assert Rewarded(TASK, [f"{file}:reward"]).grade(PROBLEM, RIGHT)[1].reward == reward


def test_a_scalar_of_torch_is_a_reward() -> None:
    assert user.number(torch.tensor(0.5)) == 0.5


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("reward = 1.0", "1.0 is not a callable object"),
        ("class reward:\n    def grade(self, problem, text): return 1.0", "it is a class"),
        ("def reward(text): return 1.0", "too many positional arguments"),
        ("def reward(problem, text, *, scale): return 1.0", "missing a required (keyword-only )?argument: 'scale'"),
    ],
)
def test_what_is_no_reward_is_found_before_anything_is_sampled(code: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", code + "\n")
    with pytest.raises(ValueError, match=rf"mine.py:reward is no reward, a function \(problem, text\).*: {message}"):
        Rewarded(TASK, [f"{file}:reward"])


def test_a_reward_may_be_an_object_with_a_grade(tmp_path: Path) -> None:
    """A reward is called, whatever else it has."""
    code = "class Both:\n    grade = None\n    def __call__(self, problem, text): return 2\nreward = Both()\n"
    task = Rewarded(TASK, [f"{write(tmp_path / 'mine.py', code)}:reward"])
    assert task.grade(PROBLEM, RIGHT)[1] == Grade(2.0, "correct")


def test_one_kind_of_exception_is_logged_once_whatever_its_text(tmp_path: Path, caplog) -> None:
    file = write(tmp_path / "mine.py", "def reward(problem, text):\n    raise ValueError(text)\n")
    task = Rewarded(TASK, [f"{file}:reward"])
    for i in range(3):
        assert task.grade(PROBLEM, f"solution {i}")[1] == ERROR
    (record,) = caplog.records
    assert "ValueError: solution 0" in record.getMessage() and len(user.logged) == 1
    assert "fail like this are labelled error and left out of training" in record.getMessage()


def test_a_worker_that_died_between_calls_is_replaced(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(workers, "PROCESSES", 1)
    file = write(tmp_path / "mine.py", "def reward(problem, text): return 1.0\n")
    task = Rewarded(TASK, [f"{file}:reward"])
    assert task.grade(PROBLEM, RIGHT)[1].reward == 1.0
    (pool,) = task.functions
    assert pool is not None
    worker = pool.idle.queue[0]
    assert worker is not None
    worker.process.kill()
    worker.process.wait()
    assert [task.grade(PROBLEM, RIGHT)[1].reward for _ in range(2)] == [None, 1.0]


@pytest.mark.parametrize(
    ("code", "start", "report"),
    [
        ("raise KeyError('gone')", 60, "KeyError: 'gone'"),
        ("os._exit(3)", 60, r"ended its process \(exit status 3\)"),
        ("import time; time.sleep(60)", 3, "waited more than 3 s"),
    ],
)
def test_a_file_that_fails_only_in_the_worker_is_loaded_there_once(
    code: str, start: float, report: str, tmp_path: Path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(grading, "START", start)
    monkeypatch.setattr(workers, "PROCESSES", 1)
    (tmp_path / "loads").write_text("")
    file = write(
        tmp_path / "mine.py",
        f"import os\nif os.getpid() != {os.getpid()}:\n"
        f"    print(file=open({str(tmp_path / 'loads')!r}, 'a'))\n    {code}\n"
        "def reward(problem, text): return 1.0\n",
    )
    task = Rewarded(TASK, [f"{file}:reward"])
    before = open_files()
    for _ in range(3):
        assert task.grade(PROBLEM, RIGHT) == (PROBLEM.answer, ERROR)
    assert open_files() <= before  # fewer if an earlier test's were waiting to be collected
    assert len((tmp_path / "loads").read_text()) <= 1
    (record,) = caplog.records
    assert re.search(rf"cannot be loaded in a process of its own:\n(.|\n)*{report}", record.getMessage())


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("value", [{1, 2}, object()])
def test_a_meta_that_is_no_json_is_an_error_that_names_the_key(value: object, tmp_path: Path, caplog) -> None:
    file = write(tmp_path / "mine.py", "def reward(problem, text): return 1.0\n")
    problem = replace(PROBLEM, meta={"i": 1, "seen": value})
    assert Rewarded(TASK, [f"{file}:reward"]).grade(problem, RIGHT) == (PROBLEM.answer, ERROR)
    assert "problem.meta['seen'] cannot be sent as JSON" in caplog.text


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
    with pytest.raises(ValueError, match="is no task: it has no problem"):
        FromSource(f"{file}:Task")
    with pytest.raises(ValueError, match="it has no name and no problem"):
        FromSource(f"{file}:f")
    with pytest.raises(ValueError, match="object is no task: it has no name and no problem"):
        Guarded(object())


def test_an_object_is_guarded_too(monkeypatch) -> None:
    class Own:
        name = "own"

        def problem(self, split: str, i: int) -> Problem:
            return Problem(str(i), "", "")

        def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
            if text == "hang":
                workers.threading.Event().wait(3)
            return text, Grade(1 / len(text), "correct")

    monkeypatch.setattr(workers, "WALL", 0.2)
    task = Guarded(Own())
    assert task.grade(task.problem("test", 0), "ab") == ("ab", Grade(0.5, "correct"))
    assert task.grade(task.problem("test", 0), "") == (None, Grade(None, "error"))
    assert task.grade(task.problem("test", 0), "hang") == (None, Grade(None, "timeout"))


def both(code: str, folder: Path) -> list[Guarded]:
    """A class ``Task`` as a task of a file and as an object."""
    file = write(folder / "mine.py", code)
    return [FromSource(f"{file}:Task"), Guarded(source.load(f"{file}:Task")())]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("'2', 1.0", r"grade must return \(answer, Grade\).*it returned \('2', 1.0\)"),
        ("1.0", r"grade must return \(answer, Grade\).*it returned 1.0"),
        ("2, Grade(1.0, 'correct')", "with the answer as a str or None; it returned "),
        ("{1}, Grade(1.0, 'correct')", "with the answer as a str or None; it returned "),
        ("'2', Grade(float('nan'), 'correct')", "a reward must be finite, not nan"),
        ("'2', Grade('much', 'correct')", "a reward is a number or a Grade, not 'much'"),
        ("'2', Grade(1.0, 'splendid')", "a Grade's label is one of correct, .*, not 'splendid'"),
    ],
)
def test_what_a_grade_returns_is_checked(returned: str, message: str, tmp_path: Path, caplog) -> None:
    for task in both(OWN + f"\n    def grade(self, problem, text): return {returned}\n", tmp_path):
        caplog.clear()
        assert task.grade(task.problem("test", 7), "7") == (None, ERROR)
        assert re.search(message, caplog.text), caplog.text


def test_what_a_grade_may_return(tmp_path: Path) -> None:
    code = "import numpy as np\n" + OWN + "\n    def grade(self, problem, text): return eval(text)\n"
    for task in both(code, tmp_path):
        problem = task.problem("test", 7)
        answer, grade = task.grade(problem, "'2', Grade(np.float32(0.5), 'wrong')")
        assert (answer, grade) == ("2", Grade(0.5, "wrong")) and type(grade.reward) is float
        assert task.grade(problem, "None, Grade(None, 'timeout')") == (None, Grade(None, "timeout"))


def test_an_object_without_a_grade_compares_answers(tmp_path: Path) -> None:
    for task in both(OWN, tmp_path):
        assert task.grade(task.problem("test", 7), r"\boxed{14/2}") == ("14/2", Grade(1.0, "correct"))


def test_an_object_that_exits_is_an_error(tmp_path: Path) -> None:
    for task in both(OWN + "\n    def grade(self, problem, text): raise SystemExit(0)\n", tmp_path):
        assert task.grade(task.problem("test", 7), "7") == (None, ERROR)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return {}[split]", r"failed: KeyError at .*mine.py:\d+: 'train'"),
        ("return split", "must return a Problem, made of three texts and a dict, not 'train'"),
        ("return Problem('a', 'b', i)", "must return a Problem, made of three texts and a dict, not Problem"),
    ],
)
def test_a_problem_that_fails_is_named(body: str, message: str, tmp_path: Path) -> None:
    code = f"class Task:\n    name = 'x'\n    def problem(self, split, i):\n        {body}\n"
    for task in both(code, tmp_path):
        with pytest.raises(ValueError, match=rf"Task: problem\('train', 3\) {message}") as raised:
            task.problem("train", 3)
        assert isinstance(raised.value.__cause__, KeyError) == ("failed" in message)
