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
from twofold.tasks.stream import check_gradable
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
    b'{"question": "q", "answer": "' + b"1" * (1 << 20) + b'"}': "a row of more than",
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
    (tmp_path / "set.json").write_text('{\n"question": "q"}')
    with pytest.raises(ValueError, match="a list of objects, or one per line, is needed"):
        load(tmp_path / "set.json")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="no rows"):
        load(tmp_path / "empty.jsonl")
    (tmp_path / "set.txt").write_text("")
    with pytest.raises(ValueError, match=r"not one of .jsonl"):
        load(tmp_path / "set.txt")
    with pytest.raises(
        ValueError, match=r"sum: no such task, set or file; did you mean sums\? There are sums, .*gsm8k"
    ):
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


# ---------------------------------------------------------------- the whole question is posed, or the row refused

FOUR = ["4", "6", "7", "9"]
POSED = "Which is prime?\n\n(A) 4\n(B) 6\n(C) 7\n(D) 9"


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"choices": FOUR, "answer": 2}, "C"),  # MMLU: a number from 0, not the option "2"
        ({"choices": FOUR, "answer": 2.0}, "C"),
        ({"choices": FOUR, "answer": "C"}, "C"),
        ({"choices": FOUR, "answer": "(c)".upper()}, "C"),
        ({"choices": FOUR, "answer": "7"}, "C"),  # a text is an option's text
        ({"options": FOUR, "answer": "C", "answer_index": 2}, "C"),  # MMLU-Pro
        ({"options": ["(A)4", "(B)6", "(C)7", "(D)9"], "label": "C", "answer": None, "passage": None}, "C"),  # AGIEval
        ({"options": ["A) 4", "B) 6", "C) 7", "D) 9"], "answer": "C) 7"}, "C"),
        ({"options": {"A": "4", "B": "6", "C": "7", "D": "9"}, "answer": "7", "answer_idx": "C"}, "C"),  # MedQA
        ({"choices": {"text": FOUR, "label": ["A", "B", "C", "D"]}, "answerKey": "C"}, "C"),  # ARC
        ({"choices": {"text": FOUR, "label": ["1", "2", "3", "4"]}, "answerKey": "3"}, "C"),
        ({"A": "4", "B": "6", "C": "7", "D": "9", "answer": "C"}, "C"),  # C-Eval
        ({"A": 4, "B": 6, "C": 7, "D": 9, "answer": "C"}, "C"),
    ],
)
def test_options_are_posed_and_the_answer_is_a_letter(tmp_path: Path, row: dict[str, Any], answer: str) -> None:
    data = load(write(tmp_path / "set.jsonl", {"question": "Which is prime?"} | row))
    problem = data.problem("test", 0)
    assert (problem.question, problem.answer) == (POSED, answer)
    assert data.grade(problem, r"\boxed{C}")[1].label == "correct"
    assert data.grade(problem, r"\boxed{B}")[1].label == "wrong"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"choices": FOUR, "answer": 4}, "the answer 4 is none of the 4 options"),
        ({"choices": FOUR, "answer": -1}, "the answer -1 is none"),
        ({"choices": FOUR, "answer": "2"}, "the answer '2' is none"),
        ({"choices": FOUR, "answer": "E"}, "the answer 'E' is none"),
        ({"choices": ["4", "4"], "answer": "4"}, "is none of the 2 options"),  # which of them?
        ({"choices": "4 or 6", "answer": "4"}, "'choices' holds no list of options"),
        ({"choices": ["4"], "answer": 0}, "1 options"),
        ({"choices": [str(i) for i in range(11)], "answer": 0}, "11 options; a question has 2 to 10"),
        ({"choices": ["4", ""], "answer": 0}, "empty 'an option'"),
        ({"image": "x.png", "answer": 1}, "'image' is a part of the question that cannot be posed"),
        ({"context": {"a": 1}, "answer": 1}, "'context' comes before the question and is no text"),
        ({"prompt": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "answer": 1}, None),
    ],
)
def test_a_question_that_cannot_be_posed_whole_is_refused(
    tmp_path: Path, row: dict[str, Any], said: str | None
) -> None:
    question = {} if "prompt" in row else {"question": "Which?"}
    with pytest.raises(DataError, match=said or "a conversation of 2 user turns"):
        load(write(tmp_path / "set.jsonl", question | row))


@pytest.mark.parametrize(
    ("row", "question", "columns"),
    [
        (
            {"Body": "There are 3.", "Question": "How many?", "Answer": 3.0},
            "There are 3.\nHow many?",
            "'Body' and 'Question'",
        ),
        (
            {"body": "There are 3.", "question": "How many?", "answer": "3"},
            "There are 3.\nHow many?",
            "'body' and 'question'",
        ),
        (
            {"context": "Let x = 3.", "question": "x?", "final_answer": ["3"]},
            "Let x = 3.\nx?",
            "'context' and 'question'",
        ),
        ({"context": None, "question": "3?", "answer": 3}, "3?", "question from 'question'"),
        (
            {"context": "", "image": None, "choices": [], "question": "3?", "answer": 3},
            "3?",
            "question from 'question'",
        ),
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "3?"}]}], "answer": 3}, "3?", "'prompt'"),
    ],
)
def test_what_comes_before_a_question_is_posed(
    tmp_path: Path, row: dict[str, Any], question: str, columns: str
) -> None:
    data = load(write(tmp_path / "set.jsonl", row))
    assert (data.problem("test", 0).question, data.problem("test", 0).answer) == (question, "3")
    assert columns in data.columns


def test_system_turns_are_left_out_in_words(tmp_path: Path) -> None:
    assert "system turns are left out" in load(write(tmp_path / "set.jsonl", {"prompt": CHAT, "answer": "2"})).columns


# ---------------------------------------------------------------- files as people have them


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
@pytest.mark.parametrize("name", ["set.json", "set.jsonl"])
def test_json_is_read_as_it_is_not_as_it_is_called(tmp_path: Path, name: str, mark: bytes) -> None:
    rows = [{"question": "q", "answer": "1"}, {"question": "r", "answer": "2"}]
    path = tmp_path / name
    lines = "\n".join(map(json.dumps, rows)).encode()
    for text in (lines, b"\n" + lines, json.dumps(rows).encode(), json.dumps(rows, indent=1).encode()):
        path.write_bytes(mark + text)
        assert [p.question for p in load(path).problems] == ["q", "r"]


def test_a_csv_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_bytes(b"\xef\xbb\xbfquestion,answer\nq,1\n")
    assert load(tmp_path / "set.csv").problem("test", 0).answer == "1"


def test_answers_that_are_none_are_bad_rows_and_one_of_them_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [float("nan"), float("inf"), "NaN", "", " ", [], ["2", ""], None, "#### ", r"so \boxed{}"]
    rows = [{"question": f"q{i}", "answer": answer, "level": float("nan")} for i, answer in enumerate([*bad, 5])]
    path = write(tmp_path / "set.jsonl", *rows)
    with pytest.raises(DataError, match=r"(?s)10 unusable row.*--skip-bad.*task\.skip_bad.*skip_bad=True") as caught:
        load(path)
    assert [line.split(" ")[0] for line in caught.value.bad] == [f"set.jsonl:{i}:" for i in range(1, 11)]
    data = load(path, skip_bad=True)  # the first row has no answer, and does not decide the columns
    assert [p.question for p in data.problems] == ["q10"]
    assert "10 of 11 rows" in caplog.text and "set.jsonl:3: the answer is NaN" in caplog.text
    assert data.problems[0].meta == {}  # NaN is no JSON: the pool of an evaluation could not be saved
    with pytest.raises(DataError):
        load(write(tmp_path / "none.jsonl", *rows[:3]), skip_bad=True)  # nothing is left


@pytest.mark.parametrize(
    "answer", [r"so \boxed{nan}", "-nan", "$NaN$", "inf", "-Infinity"[:4], ["2", "nan"], r"#### nan"]
)
def test_a_reference_that_is_no_number_is_refused_in_any_spelling(tmp_path: Path, answer: Any) -> None:
    r"""A model could satisfy it by \boxed{nan}."""
    with pytest.raises(DataError, match=r"set\.jsonl:1: the answer is .*, not a number"):
        load(write(tmp_path / "set.jsonl", {"question": "q", "answer": answer}))


def test_infinity_and_names_with_nan_are_answers(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": answer} for i, answer in enumerate([r"\infty", "Nancy", "infinity"])]
    assert [p.answer for p in load(write(tmp_path / "set.jsonl", *rows)).problems] == [r"\infty", "Nancy", "infinity"]


HOSTILE = {
    "digits.jsonl": (b'{"question": "q", "answer": ' + b"1" * 5000 + b"}", r"digits\.jsonl:1: not JSON: .*4300 digits"),
    "twice.jsonl": (b'{"question": "q", "answer": 1, "answer": 2}', r"twice\.jsonl:1: not JSON: 'answer' is there twice"),
    "deep.jsonl": (
        b'{"question": "q", "answer": ' + b"[" * 400 + b"1" + b"]" * 400 + b"}", r"deep\.jsonl:1: maximum recursion"),
    "long.jsonl": (
        b'{"question": "' + b"a" * 60_000_000 + b'"}\n{"question": "q", "answer": 1}', r"long\.jsonl:1: a row of more than"),
    "utf16.jsonl": ('{"question": "q", "answer": "1"}'.encode("utf-16"), r"utf16\.jsonl:1: not UTF-8"),
    "deep.json": (b"[" * 60_000_000, r"deep\.json: not UTF-8 JSON"),
    "twice.csv": (b"question,answer,answer\nq,1,2\n", r"twice\.csv has two columns 'answer': rename one"),
    "quote.csv": (
        b'question,answer\nq,1\nq,"2\n' + b"q,3\n" * 15_000_000, r"quote\.csv:3: not CSV: .*is a quote not closed"),
    "quote_at_the_end.csv": (b'question,answer\nq,"' + b"a" * 60_000_000, r"end\.csv:2: not CSV: .* is a quote not closed"),
    "nul.csv": (b"question,answer\nq\0,1\n", r"nul\.csv:2: a NUL character"),
    "evil.parquet": (b"PAR1evil", r"evil\.parquet cannot be read as parquet"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_its_name_and_line(tmp_path: Path, name: str) -> None:
    content, reason = HOSTILE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        load(tmp_path / name)


def test_a_pipe_is_no_data_set(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "set.jsonl")
    with pytest.raises(ValueError, match=r"set\.jsonl is no file"):
        load(tmp_path / "set.jsonl")


def test_two_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table([["q"], ["1"], ["2"]], names=["question", "answer", "answer"])
    parquet.write_table(table, tmp_path / "set.parquet")
    with pytest.raises(ValueError, match="has two columns 'answer'"):
        load(tmp_path / "set.parquet")


def test_meta_that_no_file_can_hold_is_left_out(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "1", "level": "\ud800", "nul": "a\0b", "kind": "sum"}
    assert load(write(tmp_path / "set.jsonl", row)).problem("test", 0).meta == {"kind": "sum"}


# ---------------------------------------------------------------- worked solutions

ASKED = [{"role": "user", "content": "1+1?"}]
REPLY = {"role": "assistant", "content": "It is \\boxed{2}."}


@pytest.mark.parametrize(
    ("row", "options", "solution", "answer"),
    [
        ({"question": "1+1?", "answer": "1+1=2\n#### 2"}, {}, "1+1=2\n#### 2", "2"),  # GSM8K
        ({"problem": "1+1?", "solution": "so $\\boxed{2}$."}, {}, "so $\\boxed{2}$.", "2"),  # MATH
        ({"problem": "1+1?", "solution": "It is two.", "answer": "2"}, {}, "It is two.", "2"),
        ({"messages": [*ASKED, REPLY]}, {}, "It is \\boxed{2}.", "2"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "Two."}]}, {}, "Two.", ""),
        ({"question": "1+1?", "text": "Two."}, {"solution_column": "text"}, "Two.", ""),
        ({"question": "1+1?", "solution": "Two."}, {"solution_column": "solution"}, "Two.", ""),
        ({"prompt": "1+1?", "done": [REPLY], "answer": "2"}, {"solution_column": "done"}, "It is \\boxed{2}.", "2"),
        ({"question": "1+1?", "answer": "2"}, {}, None, "2"),
    ],
)
def test_worked_solutions_of_every_form(
    tmp_path: Path, row: dict[str, Any], options: dict[str, str], solution: str | None, answer: str
) -> None:
    data = load(write(tmp_path / "set.jsonl", row), **options)
    problem = data.problem("train", 0)
    assert (problem.question, problem.answer, problem.meta.get("solution")) == ("1+1?", answer, solution)
    if answer:
        check_gradable([problem])
    else:
        with pytest.raises(ValueError, match=f"problem {problem.id} has no answer to grade by: .* SFT only"):
            check_gradable([problem])


def test_a_solution_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", {"question": "q", "answer": "1", "why": "w"}, {"question": "r", "answer": "1"})
    with pytest.raises(ValueError, match=r"set.jsonl:1 has no 'nope'; .*task\.solution_column"):
        load(path, solution_column="nope")
    with pytest.raises(DataError, match=r"set\.jsonl:2: no worked solution"):
        load(path, solution_column="why")
