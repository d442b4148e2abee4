r"""The sets that are known by name: rows in the published columns become questions, and answers are compared as the set asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from twofold.tasks import datasets
from twofold.tasks.datasets import DataError, Dataset, load
from twofold.tasks.known import NAMED, literal, same_text, same_value
from twofold.text.notation import MAX_ANSWER

TABLE = {"columns": ["town", "people"], "data": [["Abbeyfield", 1250], ["New Cross", 980]]}
ROWS: dict[str, dict[str, Any]] = {
    "boardgameqa": {
        "example": "The otter owes the heron a coin. Rule1: who owes a coin sings. Does the otter sing?", "label": "proved",
        "proof": "...", "rules": "...", "preferences": "", "theory": "...", "goal": "(otter, sing)", "facts": "...",
        "config": "Main-depth1",
    },
    "cruxeval": {
        "code": "def f(d, k):\n    d.pop(k)\n    return d", "input": "{'a': 1, '####': 2}, 'a'", "output": "{'####': 2}",
        "id": "sample_0",
    },
    "strategyqa": {
        "qid": "a1", "term": "Heron", "description": "a bird", "question": "Could a heron read a map?", "answer": False,
        "facts": ["A heron is a bird.", "Birds do not read."], "decomposition": ["What is a heron?", "Can #1 read?"],
    },
    "tablebench": {
        "id": "b2", "qtype": "FactChecking", "qsubtype": "MatchBased", "table": TABLE, "question": "Which town is larger?",
        "answer": "Abbeyfield", "chart_type": None,
    },
}  # fmt: skip


def one(folder: Path, name: str, *rows: dict[str, Any], kind: str = "jsonl") -> Dataset:
    path = folder / f"{name}.{kind}"
    path.write_text(json.dumps(rows) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    return load(path)


@pytest.mark.parametrize(
    ("name", "answer", "parts"),
    [
        ("boardgameqa", "True", ["Does the otter sing?", "True, False or Uncertain"]),
        ("cruxeval", "{'####': 2}", ["    d.pop(k)\n    return d\n", "{'a': 1, '####': 2}, 'a'"]),
        ("strategyqa", "False", ["1. A heron is a bird.\n2. Birds do not read.\n", "Could a heron read a map?"]),
        ("tablebench", "Abbeyfield", [json.dumps(TABLE), "Which town is larger?"]),
    ],
)
def test_a_file_of_a_known_name_is_posed_as_that_set(tmp_path: Path, name: str, answer: str, parts: list[str]) -> None:
    data = one(tmp_path, name, ROWS[name], kind="json" if name == "strategyqa" else "jsonl")
    problem = data.problem("test", 0)
    assert problem.answer == answer
    assert all(part in problem.question for part in parts)
    assert data.grade(problem, rf"so \boxed{{{answer}}}")[1].label == "correct"
    assert data.grade(problem, r"so \boxed{True or False}")[1].label == "wrong"
    assert data.grade(problem, "I cannot tell.")[1].label == "no_answer"


def test_the_labels_of_boardgameqa_are_the_words_that_are_asked_for(tmp_path: Path) -> None:
    labels = ["proved", "disproved", "unknown"]
    data = one(tmp_path, "boardgameqa", *(ROWS["boardgameqa"] | {"label": label} for label in labels))
    assert [p.answer for p in data.problems] == ["True", "False", "Uncertain"]
    assert data.grade(data.problems[2], r"\boxed{\text{Uncertain}}")[1].label == "correct"


def test_tablebench_keeps_two_kinds_of_questions_and_reads_tables_as_text(tmp_path: Path) -> None:
    kinds = ["NumericalReasoning", "DataAnalysis", "FactChecking", "Visualization"]
    rows = [ROWS["tablebench"] | {"qtype": kind, "id": kind, "answer": 2230} for kind in kinds]
    data = one(tmp_path, "tablebench", *rows, ROWS["tablebench"] | {"table": json.dumps(TABLE)})
    assert [p.meta["qtype"] for p in data.problems] == ["NumericalReasoning", "FactChecking", "FactChecking"]
    assert data.problems[0].answer == "2230" and json.dumps(TABLE) in data.problems[2].question
    assert data.grade(data.problems[0], r"\boxed{2,230}")[1].label == "correct"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("boardgameqa", {"label": "maybe"}, "'label' must be one of proved, disproved, unknown, got 'maybe'"),
        ("cruxeval", {"input": None}, "no text in 'input'"),
        ("strategyqa", {"facts": []}, "'facts' must be a list"),
        ("strategyqa", {"answer": "yes"}, "'answer' must be true or false, got 'yes'"),
        ("tablebench", {"table": None}, "'table' must be an object"),
        ("tablebench", {"answer": ["a"]}, "'answer' must be a text or a number"),
    ],
)
def test_a_row_that_lacks_something_is_named(tmp_path: Path, name: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=f"{name}.jsonl:2: .*{said}"):
        one(tmp_path, name, ROWS[name], ROWS[name] | change | {"id": "other"})


def test_other_columns_are_taken_in_a_copy_of_a_mathematical_set_but_not_where_a_question_is_posed(
    tmp_path: Path,
) -> None:
    copy = one(tmp_path, "minerva_math", {"problem": "1+1?", "solution": r"It is \boxed{2}.", "type": "t"})
    assert (copy.problems[0].question, copy.problems[0].answer) == ("1+1?", "2")
    with pytest.raises(
        ValueError, match=r"cruxeval.jsonl:1 has no 'code'; it has question, answer. .*because of its name"
    ):
        one(tmp_path, "cruxeval", {"question": "q", "answer": "1"})


def test_a_file_of_ones_own_with_a_known_name_is_an_ordinary_one_if_a_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"read as the published set strategyqa, because of its name.* rename it.*--prompt-column"
    ):
        one(tmp_path, "strategyqa", {"question": "1+1?", "answer": "2", "hard": "2+2?"})
    for named, question in (({"prompt_column": "hard"}, "2+2?"), ({"answer_column": "answer"}, "1+1?")):
        data = load(tmp_path / "strategyqa.jsonl", **named)
        assert (data.problems[0].question, data.problems[0].answer) == (question, "2")
        assert data.grade(data.problems[0], r"\boxed{\frac{4}{2}}")[1].label == "correct"  # mathematics, not words


def test_a_file_of_all_gpqa_gives_the_physics_questions(tmp_path: Path) -> None:
    wrong = {f"Incorrect Answer {k}": f"{k}" for k in (1, 2, 3)}
    rows = [
        {"Question": f"{field}?", "Correct Answer": "right", "High-level domain": field, **wrong}
        for field in ("Biology", "Physics", "Chemistry")
    ]
    assert [p.meta["High-level domain"] for p in one(tmp_path, "gpqa_physics", *rows).problems] == ["Physics"]


def test_a_set_that_is_one_file_of_its_repository_is_read_from_that_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repo: str, file: str, repo_type: str) -> str:
        asked.append((repo, file, repo_type))
        (tmp_path / file).write_text(json.dumps([ROWS["strategyqa"]]))
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert load("strategyqa").problems[0].answer == "False"
    assert load("strategyqa", prompt_column="term").problems[0].question == "Heron"
    assert asked == [("tasksource/strategy-qa", "strategyQA_train.json", "dataset")] * 2


def test_a_set_that_cannot_be_fetched_is_an_error_that_a_caller_can_expect() -> None:
    for name in ("cruxeval", "tablebench"):  # by datasets, and a file by itself; tests are offline
        with pytest.raises((OSError, ValueError)):
            load(name)


@pytest.mark.parametrize(
    ("reference", "answer", "equal"),
    [
        ("[1, 2]", "[1,2]", True),
        ("'ab c'", '"ab c"', True),
        ("'ab c'", "ab c", True),  # without its quotes a text stands for itself
        ("'abc'", "ab c", False),
        ("['listen']", "['silent']", False),
        ("{'a': 1, 'b': 2}", "{'b': 2, 'a': 1}", True),
        ("(1,)", "[1]", False),
        ("1", "1.0", True),
        ("'1'", "1", False),
        ("None", "none", False),
        ("[]", "f(x)", False),
        ("[]", "[" * 1500, False),
        ("[]", "-" * 1500 + "1", False),
        ("[]", "{[]}", False),
        ("1", "9" * 2000, False),
    ],
)
def test_python_values(reference: str, answer: str, equal: bool) -> None:
    assert same_value(reference, answer) is equal


def test_an_answer_is_never_run(tmp_path: Path) -> None:
    written = f"open({str(tmp_path / 'made')!r}, 'w')"
    assert literal(written) == written and not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("reference", "answer", "equal"),
    [
        ("True", r"\text{True}", True),
        ("True", "true", False),
        ("Uncertain", "False", False),
        ("New Cross", "New  Cross.", True),
        ("New Cross", "NewCross", True),
        ("no lemon", "no melon", False),
        ("1,250", "1250", True),
        ("0.5", "1/2", True),
        ("12.5", r"12.5\%", True),
        ("3.33", "3.34", False),
        ('"Yes"', "Yes", True),
        ("2010, 2012", "2010,2012", True),
    ],
)
def test_words_cells_and_numbers(reference: str, answer: str, equal: bool) -> None:
    assert same_text(reference, answer) is equal


def test_an_answer_beyond_all_measure_is_wrong(tmp_path: Path) -> None:
    data = one(tmp_path, "cruxeval", ROWS["cruxeval"] | {"output": "[" + "0, " * MAX_ANSWER + "]"})
    problem = data.problems[0]
    assert data.grade(problem, rf"\boxed{{{problem.answer}}}")[1].label == "wrong"


def test_every_known_set_is_a_repository_and_the_posed_ones_compare_their_own_way() -> None:
    assert {name for name, named in NAMED.items() if named.pose} == set(ROWS)
    assert all((named.pose is None) == (named.same is None) for named in NAMED.values())
    assert datasets.NAMED is NAMED
