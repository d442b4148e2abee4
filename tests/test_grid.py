"""The grid of token caps and samples: by hand, against pools that were drawn under the cap, and in a report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from twofold import cli, run
from twofold.evals.grid import accuracy_grid
from twofold.evals.pools import read_header, read_pools
from twofold.evals.run import Eval
from twofold.maths import votes
from twofold.types import Grade, Pool, Problem

CONFIG = Eval(problems=6, n=4, max_tokens=40, batch=6)


def make_pool(name: str, answers: list[str], scores: list[float], tokens: list[int]) -> Pool:
    """Return a pool whose right answer is 42 and whose verdicts cost 2 tokens each."""
    grades = [Grade(1.0, "correct") if a == "42" else Grade(0.0, "wrong") for a in answers]
    return Pool(Problem(name, "?", "42"), [*answers], grades, [*scores], tokens, [2] * len(answers), 1.0)


# the last sample of the second ran into the limit of 10 with its answer written
HAND = [
    make_pool("a", ["7", "42", "42"], [0.9, 0.3, 0.5], [3, 5, 9]),
    make_pool("b", ["42", "42", "42"], [0.5, 0.5, 0.5], [2, 2, 10]),
]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.evaluate(run.load("tiny"), "sums", CONFIG, out=tmp_path_factory.mktemp("grid"))


def test_cells_are_the_hand_computed_ones(evaluated: Path) -> None:
    header = replace(read_header(evaluated), n=3, max_tokens=10)
    found = accuracy_grid(HAND, header, [4, 6, 10], "weighted")
    assert (found.ks, found.caps) == ([1, 2, 3], [4, 6, 10])
    assert found.ended == pytest.approx([3 / 6, 4 / 6, 1])
    # a under 4: only the 7; under 6: 7 (.9) and 42 (.3); under 10: 7 (.9), 42 (.3), 42 (.5). b: two 42s, then three
    of_a = [[0, 0, 0], [1 / 3, 1 / 3, 0], [2 / 3, 1 / 3, 0]]
    of_b = [[2 / 3, 1, 1], [2 / 3, 1, 1], [1, 1, 1]]
    expected = [(x + y) / 2 for row_a, row_b in zip(of_a, of_b, strict=True) for x, y in zip(row_a, row_b, strict=True)]
    assert [cell.accuracy.mean for cell in found.cells] == pytest.approx(expected)
    # all three samples, means of a and b; generated: (11 + 8) / 2, (14 + 10) / 2, (17 + 14) / 2; a verdict is 2
    whole = [cell for cell in found.cells if cell.k == 3]
    assert [cell.generated for cell in whole] == pytest.approx([9.5, 12, 15.5])
    assert [cell.verified for cell in whole] == pytest.approx([3, 4, 6])
    assert [cell.cumulated for cell in whole] == pytest.approx([12.5, 12.5 + 16, 12.5 + 16 + 21.5])
    assert found.cells[0].generated == pytest.approx(9.5 / 3)
    assert accuracy_grid(HAND, header, [4], "majority").cells[2].verified == 0  # a majority vote needs no verdict


def test_the_grid_is_what_drawing_under_each_cap_gives(evaluated: Path, tmp_path: Path) -> None:
    pools, header = read_pools(evaluated / "pools.jsonl"), read_header(evaluated)
    found = accuracy_grid(pools, header, [24, 40], "weighted")
    drawn = read_pools(
        run.evaluate(run.load("tiny"), "sums", replace(CONFIG, max_tokens=24), out=tmp_path) / "pools.jsonl"
    )
    short = next(cell for cell in found.cells if (cell.cap, cell.k) == (24, 4))
    assert short.generated == pytest.approx(sum(sum(pool.tokens) for pool in drawn) / len(drawn))
    assert 0 < found.ended[0] < 1  # else the cap would cut all samples or none
    for cut, pool in zip(drawn, pools, strict=True):
        for i, tokens in enumerate(pool.tokens):
            if tokens < 24:
                assert (cut.answers[i], cut.grades[i]) == (pool.answers[i], pool.grades[i])
                assert cut.scores[i] == pytest.approx(pool.scores[i], rel=1e-3)
            else:
                assert cut.tokens[i] == 24
    for column, k in enumerate(found.ks):  # the last cap cuts nothing, so it has the ordinary curve
        correct = [[g.label == "correct" for g in pool.grades] for pool in pools]
        exact = [votes.curves(p.answers, c, p.scores, [k])["weighted"][0] for p, c in zip(pools, correct, strict=True)]
        assert found.cells[len(found.ks) + column].accuracy.mean == pytest.approx(sum(exact) / len(exact))


@pytest.mark.parametrize(
    ("caps", "message"), [("24,16", "increasing"), ("16,64", "cut at 40"), ("16,x", "numbers of tokens")]
)
def test_caps_that_make_no_grid_are_refused(caps: str, message: str, evaluated: Path, capsys) -> None:
    for command in (["report", str(evaluated)], ["eval", "tiny", "--max_tokens", "40", "--out", str(evaluated)]):
        assert cli.main([*command, "--caps", caps]) == 2
        assert message in capsys.readouterr().err


def test_the_report_shows_the_grid_and_the_choice(evaluated: Path, tmp_path: Path, capsys) -> None:
    lines = (evaluated / "pools.jsonl").read_text().splitlines()
    (tmp_path / "eval.json").write_text((evaluated / "eval.json").read_text())
    copies = [json.loads(line) for line in lines for _ in range(2)]
    for i, row in enumerate(copies):  # the choice needs 12 problems
        row["problem"]["id"] = f"p{i}"
    (tmp_path / "pools.jsonl").write_text("".join(json.dumps(row) + "\n" for row in copies))
    assert cli.main(["report", str(tmp_path), "--caps", "24,40", "--optimal"]) == 0
    text = capsys.readouterr().out
    assert "by token cap" in text and "compute-optimal on" in text
    page = (tmp_path / "report.html").read_text()
    assert 'aria-label="Accuracy by token cap and number of samples"' in page and "<image" not in page
    assert "The compute-optimal choice" in page
    numbers = json.loads((tmp_path / "report.json").read_text())["tasks"][0]["evaluations"][0]
    assert [cell["k"] for cell in numbers["grid"]["cells"]] == [1, 2, 4] * 2
    assert [row["budget"] for row in numbers["optimal"]["rows"]] == [4]
    assert cli.main(["report", str(tmp_path)]) == 0
    assert "by token cap" not in capsys.readouterr().out
