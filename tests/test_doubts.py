"""Grades that say little are said loudly: in a report, while loading, and in a training, which they may end."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from twofold import cli, run, training
from twofold.compute.select import classes
from twofold.config import Config, Data, Rollouts, Train
from twofold.recipes.rlv import RLV
from twofold.tasks.datasets import DataError, load
from twofold.tasks.doubts import Watch, doubts
from twofold.tasks.procedural import Countdown, Letters, Sums
from twofold.tasks.user import form_of
from twofold.types import Completion, Grade, Group, Pool, Problem, Rollout

GRADE = {"c": "correct", "w": "wrong", "n": "no_answer", "e": "error", "t": "timeout"}


def group(labels: str, i: int = 0, text: str = "") -> Group:
    """Return a group with one rollout for each letter of GRADE."""
    problem = Problem(f"p{i}", "?", "$t(0,4]$")
    done = Completion([1], [0.0], [True], "stop")
    return [
        Rollout([1], done, text, None if c == "n" else "7", problem, Grade(None if c in "et" else 0.0, GRADE[c]))  # type: ignore[arg-type]
        for c in labels
    ]


def pool(labels: str) -> Pool:
    found = group(labels)
    n = len(found)
    return Pool(
        found[0].problem, [r.answer for r in found], [r.grade for r in found], [None] * n, [1] * n, [0] * n, 1.0
    )


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_evaluation_is_doubtful_above_five_per_cent_of_errors_and_half_without_an_answer() -> None:
    assert doubts([pool("c" * 19 + "e")]) == doubts([pool("cn")]) == []
    (errors,) = doubts([pool("c" * 9 + "e")])
    assert errors.startswith("10% OF THE GRADES ARE ERRORS") and "'p0' with the reference '$t(0,4]$'" in errors
    (silent,) = doubts([pool("cnn")])
    assert silent.startswith("67% OF THE SOLUTIONS GIVE NO ANSWER") and 'extract = "stated"' in silent


def test_a_training_whose_grades_are_errors_is_stopped() -> None:
    said: list[str] = []
    with pytest.raises(
        ValueError, match=r"16 of the 16 grades of this step are errors.*'p1' with the reference '\$t\(0,4\]\$'"
    ):
        Watch(said.append)([group("e" * 8, 1), group("e" * 8, 2)])
    watch = Watch(said.append)
    watch([group("e" * 8), *(group("wcwcwcwc", i) for i in range(15))])  # one problem of 16, in the first step
    for step in range(200):  # one problem of 32: 3%
        watch([*([group("e" * 8)] if step % 2 else []), *(group("wcwcwcwc", i) for i in range(16))])
    with pytest.raises(ValueError, match="grades of this step are errors"):
        for _ in range(40):  # from now on, one of 8
            watch([group("e" * 8), *(group("wcwcwcwc", i) for i in range(7))])
    with pytest.raises(ValueError, match=r"128 of the 128 grades .* 128 of 21888 so far"):  # a reward's server is gone
        watch = Watch(said.append)
        for labels in [*["wcwcwcwc"] * 170, "e" * 8]:
            watch([group(labels, i) for i in range(16)])
    watch = Watch(said.append)
    for _ in range(10):
        watch([group("tttt"), []])  # too slow is no error
    assert said == []


def test_a_first_step_without_answers_is_said_once() -> None:
    said: list[str] = []
    watch = Watch(said.append)
    watch([group("nnnn", text="Answer: 5"), group("nwnn", text="no idea")])
    watch([group("nnnn")])
    (words,) = said
    assert words.startswith("7 of the 8 solutions of this step give no answer") and "4 of them state one" in words
    assert 'extract = "stated"' in words


def test_a_real_training_stops_before_it_learns_from_errors(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def broken(problem, text):\n    raise RuntimeError('no server')\n")
    config = Config(
        model=str(tiny_model), recipe=RLV(rollouts=2), rollout=Rollouts(problems=2, max_tokens=6), train=Train(steps=3),
        reward=(f"{tmp_path / 'mine.py'}:broken",),
    )  # fmt: skip
    with pytest.raises(ValueError, match="4 of the 4 grades of this step are errors"):
        training.train(config, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""


QUESTION = "Start with {}. Add 5. Subtract 26. What is the result?"  # the shipped model boxes an answer


def test_an_evaluation_says_loudly_that_its_references_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "odd.jsonl", [{"question": QUESTION.format(n), "answer": f"$t(0,{n}]$"} for n in (70, 80)])
    with caplog.at_level(logging.WARNING):
        assert cli.main(["eval", "tiny", "--task", str(path), "--n", "2", "--out", str(tmp_path / "e")]) == 0
    assert "2 of 2 references cannot be read" in caplog.text and "odd.jsonl:2: $t(0,80]$" in caplog.text
    printed = " ".join(capsys.readouterr().out.split())
    assert "100% OF THE GRADES ARE ERRORS" in printed
    assert printed.index("ARE ERRORS") < printed.index("problems by")
    assert json.loads((tmp_path / "e" / "report.json").read_text())["headline"].startswith("tiny: 100% OF THE GRADES")


def test_references_that_can_be_read_are_loaded_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answers = ["5", "2 3/4", r"$(-\infty,0)\cup\{1\}$.", "b > a > c", r"m_{\max}=n^2-1", "Mrs. Hilt", "5:15 p.m."]
    path = write(tmp_path / "good.jsonl", [{"question": f"{a}?", "answer": a} for a in answers])
    with caplog.at_level(logging.WARNING):
        load(path)
    assert caplog.text == ""


def test_a_worked_solution_with_several_answers_is_a_bad_row(tmp_path: Path) -> None:
    rows = [
        {"problem": "?", "solution": r"\boxed{4} apples, later \boxed{5}"},
        {"problem": "!", "solution": r"\boxed{1}, \boxed{2}"},
    ]
    with pytest.raises(DataError, match=r"two\.jsonl:1: 2 different boxed answers: 4; 5"):
        load(write(tmp_path / "two.jsonl", rows))
    data = load(tmp_path / "two.jsonl", skip_bad=True)
    assert [p.answer for p in data.problems] == ["1, 2"]


def test_where_an_answer_may_stand_is_an_option_of_a_data_set(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", [{"question": "2+3? End with Answer: $Answer", "answer": "5"}])
    texts = ["so\n\nAnswer: 5", "<answer>5</answer>", "2+3 makes 5", r"\boxed{5}"]
    graded = {}
    for how in ("boxed", "stated", "number"):
        task = run.make_task(replace(Data(source=str(path)), extract=how))
        graded[how] = [task.grade(task.problem("test", 0), text)[1].label for text in texts]
    assert graded == {
        "boxed": ["no_answer"] * 3 + ["correct"],
        "stated": ["correct", "correct", "no_answer", "correct"],
        "number": ["correct"] * 4,
    }


def test_votes_follow_what_a_task_calls_different(tmp_path: Path) -> None:
    """What one class of votes holds has one grade, as far as the task's own grader can tell."""
    cases = [
        (Letters(), Problem("l", "?", "kdr"), ["kdr", "drk", "rdk"]),
        (Sums(), Problem("s", "?", "76"), ["76", "97-21", "76.0"]),
        (
            Countdown(),
            Problem("c", "?", "", {"numbers": [4, 9, 7], "target": 6}),
            ["(9+4)-7", "(9 + 4) - 7", "6", "2*3"],
        ),
    ]
    for task, problem, answers in cases:
        form = form_of(task)
        assert form is not None
        labels: dict[str | None, set[str]] = {}
        for answer, name in zip(answers, classes(answers, None, form), strict=True):
            labels.setdefault(name, set()).add(task.grade(problem, rf"\boxed{{{answer}}}")[1].label)
        assert all(len(found) == 1 for found in labels.values()), labels
    assert len(set(classes(cases[2][2], None, form_of(Countdown())))) == 3
    assert form_of(load(write(tmp_path / "own.jsonl", [{"question": "?", "answer": "1"}]))) is None
    trace = load(write(tmp_path / "cruxeval.jsonl", [{"code": "f", "input": "1", "output": "[1, 2]", "id": "a"}]))
    assert classes(["[1,2]", "[1, 2]", "5", "2+3"], None, form_of(trace)) == ["[1, 2]", "[1, 2]", "5", "'2+3'"]
