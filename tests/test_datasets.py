"""Loading problem sets: usual columns are recognised, and no row is lost without a word."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from twofold.tasks.datasets import NAMED, DataError, Dataset, load
from twofold.tasks.gym import GymTask
from twofold.types import Grade

REAL = Path(os.environ.get("TWOFOLD_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]


@pytest.mark.parametrize(
    ("row", "question", "answer", "columns"),
    [
        ({"question": "1+1?", "answer": "It is 2.\n#### 2"}, "1+1?", "2", "'question', answer from 'answer'"),
        ({"problem": "1+1?", "solution": "so $1+1=\\boxed{2}$."}, "1+1?", "2", "'problem', answer from 'solution'"),
        ({"problem": "1+1?", "solution": "long", "answer": "2"}, "1+1?", "2", "'problem', answer from 'answer'"),
        ({"problem": "p", "question": "q", "answer": 27.0}, "p", "27", "'problem'"),
        ({"question": "q", "answer": -0.5}, "q", "-0.5", "'question'"),
        ({"question": "q", "final_answer": ["2", "$3$"], "solution": ["s"]}, "q", "2, $3$", "'final_answer'"),
        (
            {"prompt": CHAT, "reward_model": {"style": "rule", "ground_truth": "2"}},
            "1+1?",
            "2",
            "reward_model.ground_truth",
        ),
        ({"prompt": "1+1?", "reward_spec": {"ground_truth": "2"}}, "1+1?", "2", "reward_spec.ground_truth"),
        ({"prompt": "1+1?", "label": "2", "metadata": {}}, "1+1?", "2", "'label'"),
    ],
)
def test_columns_of_known_sets(tmp_path: Path, row: dict[str, Any], question: str, answer: str, columns: str) -> None:
    data = load(write(tmp_path / "set.jsonl", row))
    assert (data.problem("test", 0).question, data.problem("test", 0).answer) == (question, answer)
    assert columns in data.columns


def test_named_columns_win_and_missing_ones_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", {"question": "q", "answer": "1", "deep": {"er": "2"}})
    assert load(path, answer_column="deep.er").problem("test", 0).answer == "2"
    with pytest.raises(ValueError, match=r"set.jsonl:1 has no 'nope'; it has question, answer, deep"):
        load(path, prompt_column="nope")
    with pytest.raises(ValueError, match="answer_column"):
        load(write(tmp_path / "other.jsonl", {"question": "q", "text": "1"}))


def test_ids_order_and_splits(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": i, **({"unique_id": f"u/{i}"} if i else {})} for i in range(3)]
    data = load(write(tmp_path / "set.jsonl", *rows))
    assert [problem.id for problem in data.problems] == ["set-0", "set-u/1", "set-u/2"]
    assert len(data) == 3
    assert data.problem("train", 4) == data.problem("test", 1)  # "train" begins again
    with pytest.raises(IndexError, match="3 problems"):
        data.problem("test", 3)
    assert len(load(tmp_path / "set.jsonl", limit=2)) == 2


def test_the_same_rows_from_every_format(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"id": f"a{i}", "question": f"What, is\n{i}?", "answer": f"{i}é"} for i in range(300)]
    write(tmp_path / "set.jsonl", *rows)
    (tmp_path / "set.json").write_text(json.dumps(rows), encoding="utf-8")
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    with (tmp_path / "set.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", "question", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    sets = [load(tmp_path / f"set.{kind}").problems for kind in ("jsonl", "json", "parquet", "csv")]
    assert sets[0][299].answer == "299é"
    assert all(one == sets[0] for one in sets)


BAD = {
    b'{"question": "q", "answer": ': "not JSON",
    b'{"question": "q\xff", "answer": "1"}': "not UTF-8 at byte 15",
    b'{"question": "q\\u0000", "answer": "1"}': "NUL",
    b'{"question": "q\\ud800", "answer": "1"}': "surrogate",
    b'{"question": "q"}': "no answer",
    b'{"answer": "1"}': "no question",
    b'{"question": " ", "answer": "1"}': "empty 'question'",
    b'{"question": "q", "answer": ""}': "empty 'answer'",
    b'{"question": "q", "answer": "1", "id": 7}': "id 'set-7' was used before, at set.jsonl:1",
    b'{"question": "q", "answer": "' + b"1" * (1 << 20) + b'"}': "bytes, more than",
    b'["q", "1"]': "a JSON list, not an object",
    b'{"question": "q", "answer": "a long\\nstory"}': "without \\boxed{}",
    b'{"question": "q", "answer": {"value": 1}}': "no answer",
    b"[" * 100_000: "not JSON",
}


def test_every_bad_row_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    good = b'{"question": "q", "answer": "1", "id": 7}', b'{"question": "q2", "answer": "2"}'
    path.write_bytes(b"\n".join([good[0], *BAD, good[1]]) + b"\n")
    with pytest.raises(DataError) as caught:
        load(path)
    assert len(caught.value.bad) == len(BAD)
    for line, (bad, reason) in enumerate(zip(caught.value.bad, BAD.values(), strict=True), 2):
        assert bad.startswith(f"set.jsonl:{line}: ") and reason in bad
    message = str(caught.value)
    assert f"{len(BAD)} unusable row(s)" in message and f"{len(BAD) - 10} more" in message
    data = load(path, skip_bad=True)
    assert [problem.question for problem in data.problems] == ["q", "q2"]
    assert list(data.skipped) == caught.value.bad
    assert data.problems[1].id == f"set-{len(BAD) + 1}"  # skipped rows count in the numbers of the others


def test_bad_rows_of_other_formats(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_bytes(b"question,answer\nq,1\nq\xff,2\nq,3,4\nq,\n")
    with pytest.raises(DataError) as caught:
        load(tmp_path / "set.csv")
    assert [bad.split(" ")[0] for bad in caught.value.bad] == ["set.csv:3:", "set.csv:4:", "set.csv:5:"]
    (tmp_path / "set.json").write_text('{"question": "q"}')
    with pytest.raises(ValueError, match="a list of objects is needed"):
        load(tmp_path / "set.json")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="no rows"):
        load(tmp_path / "empty.jsonl")
    (tmp_path / "set.txt").write_text("")
    with pytest.raises(ValueError, match=r"not one of .jsonl"):
        load(tmp_path / "set.txt")
    with pytest.raises(ValueError, match=r"sum: no such task, set or file; there are sums, .*gsm8k"):
        load("sum")  # and no hub is asked


def gpqa(i: int) -> dict[str, str]:
    return {"Question": f"Which is {i}?", "Correct Answer": f"right {i}\n"} | {
        f"Incorrect Answer {k}": f"wrong {i}.{k}" for k in (1, 2, 3)
    }


def test_multiple_choice(tmp_path: Path) -> None:
    data = load(write(tmp_path / "set.jsonl", *map(gpqa, range(40))))
    again = load(write(tmp_path / "other.jsonl", *map(gpqa, reversed(range(40)))))
    for i in range(40):
        problem = data.problem("test", i)
        assert f"({problem.answer}) right {i}" in problem.question.splitlines()
        assert problem.question == again.problem("test", 39 - i).question  # seeded by the text
        assert data.grade(problem, f"So the answer is ({problem.answer}).") == (problem.answer, Grade(1.0, "correct"))
    assert {problem.answer for problem in data.problems} == set("ABCD")
    assert data.grade(data.problem("test", 0), "no idea") == (None, Grade(0.0, "no_answer"))


def test_grading_of_a_loaded_problem(tmp_path: Path) -> None:
    data = load(write(tmp_path / "set.jsonl", {"question": "half?", "answer": "1/2"}))
    assert data.grade(data.problem("test", 0), r"\boxed{0.5}") == ("0.5", Grade(1.0, "correct"))
    assert data.grade(data.problem("test", 0), "0.5") == (None, Grade(0.0, "no_answer"))


COUNTS = {"gsm8k": 1319, "aime24": 30, "amc23": 40, "minerva_math": 272, "olympiadbench": 675}


@pytest.mark.parametrize("name", COUNTS)
def test_real_sets_load_whole_and_grade_themselves_right(name: str) -> None:
    path = REAL / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here; put the public sets there or set TWOFOLD_TEST_DATA")
    data = load(path)
    assert isinstance(data, Dataset) and len(data) == COUNTS[name]
    for problem in data.problems:
        assert data.grade(problem, rf"so \boxed{{{problem.answer}}}")[1].label == "correct", problem.id
    if name == "amc23":
        assert data.problem("test", 0).answer == "27"


def test_the_named_sets_are_hub_repositories() -> None:
    assert {"gsm8k", "math500", "math", "aime24", "aime25", "amc23", "math2", "gpqa"} <= set(NAMED)
    assert all(named.repo.count("/") == 1 for named in NAMED.values())


def test_gym() -> None:
    if importlib.util.find_spec("reasoning_gym") is None:
        with pytest.raises(ImportError, match=r"\.\[envs\]"):
            GymTask("chain_sum")
        pytest.skip("reasoning-gym is not installed: only its absence was tested")
    task = GymTask("chain_sum", seed=1, options={"min_terms": 3})
    problem = task.problem("test", 5)
    assert problem == GymTask("chain_sum", seed=1, options={"min_terms": 3}).problem("test", 5)
    assert len({task.problem(split, i).question for split in ("train", "test") for i in range(50)}) == 100
    assert task.grade(problem, rf"\boxed{{{problem.answer}}}") == (problem.answer, Grade(1.0, "correct"))
    assert task.grade(problem, rf"\boxed{{{problem.answer}1}}")[1] == Grade(0.0, "wrong")
    assert task.grade(problem, problem.answer) == (None, Grade(0.0, "no_answer"))
    with pytest.raises(ValueError, match="runs eval"):
        GymTask("countdown")
    with pytest.raises(ValueError, match="has no task 'nope'"):
        GymTask("nope")
