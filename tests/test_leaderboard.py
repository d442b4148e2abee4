"""The leaderboard's study, end to end at the smallest size, and the numbers of its table from result files made by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

STUDIES = Path(__file__).parents[1] / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    monkeypatch.chdir(STUDIES.parent)
    import leaderboard

    return leaderboard


def result(
    out: Path, method: str, seed: int, rules: dict[str, tuple[list[int], list[float], list[list[float]]]]
) -> None:
    """Write a result file: rule -> (ks, tokens per k, accuracy per problem and k)."""
    named = {rule: dict(zip(("ks", "tokens", "correct"), of, strict=True)) for rule, of in rules.items()}
    about = {"method": method, "title": method, "seed": seed, "problems": ["a", "b"], "training": {}, "rules": named}
    numbers = {"auroc": 0.5, "balanced_accuracy": 0.5, "ece": 0.1, "drawn": 10.0, "read": 5.0, "keys": None}
    (out / f"{method}-{seed}.json").write_text(json.dumps(about | numbers))


def test_a_line_at_a_budget_lies_between_two_sizes_and_ends_at_the_last(study, tmp_path: Path) -> None:
    rules = {"maj": ([1, 2, 4], [10.0, 20.0, 40.0], [[0.0, 0.5, 1.0], [1.0, 1.0, 0.0]])}
    result(tmp_path, "rl", 0, rules)
    result(tmp_path, "rl", 1, rules)
    (line,), _ = study.leaderboard_table.read(tmp_path)
    assert line.at(9.9) is None  # not one sample
    between = line.at(10 * 2**1.5)  # tokens half way from 20 to 40 in log2
    assert np.allclose(between, [[0.75, 0.5]] * 2)
    assert np.allclose(line.at(1000.0), [[1.0, 0.0]] * 2)
    assert line.at(40.0, "seconds") is None  # not measured


def test_verdicts_are_compared_with_twice_the_samples_and_at_equal_tokens(study, tmp_path: Path) -> None:
    """The weighted vote of 2 costs 30 tokens and is right on both problems; the majority of 4 costs 40 and is right on one."""
    majority = ([1, 2, 4], [10.0, 20.0, 40.0], [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    weighted = ([1, 2, 4], [15.0, 30.0, 60.0], [[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    for method in ("rl", "rlv"):
        result(tmp_path, method, 0, {"pass": majority, "maj": majority, "weighted": weighted})
    lines, _ = study.leaderboard_table.read(tmp_path)
    rows = study.leaderboard_table.standings(lines)
    cells = [cell.strip() for cell in next(row for row in rows if row.startswith("| rlv | weighted")).split("|")[1:-1]]
    assert rows[0].split("|")[3].strip() == "40 tokens"  # of the majority of 4
    assert cells[2].startswith("100.0 ") and cells[3].startswith("+50.0 ") and cells[4].startswith("+0.0 ")
    assert cells[5].startswith("0.7 ")  # the majority is at its best with 10 tokens, the weighted vote with 15
    assert cells[-1].startswith("+50.0 ") and cells[-1].endswith("k=2")


def test_a_rule_that_stops_has_points_and_no_k(study, tmp_path: Path) -> None:
    """It spends 25 tokens, half way from 12.5 to 50 in log2, and has seconds of its own."""
    majority = ([1, 2, 4], [10.0, 20.0, 25.0], [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    stops = ([], [12.5, 50.0], [[1.0, 1.0], [0.0, 1.0]])
    result(tmp_path, "rl", 0, {"pass": majority, "maj": majority, "maj_stop": stops})
    (tmp_path / "rl.time.json").write_text(json.dumps({"drawn": [1, 2, 4], "maj_stop": [2, 8]}))
    lines, _ = study.leaderboard_table.read(tmp_path)
    (line,) = (x for x in lines if x.rule == "maj_stop")
    assert np.allclose(line.at(25.0), [[1.0, 0.5]]) and np.allclose(line.at(4.0, "seconds"), [[1.0, 0.5]])
    (row,) = (row for row in study.leaderboard_table.standings(lines) if "adaptive consistency" in row)
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[2].startswith("75.0 ") and cells[3].startswith("+25.0 ") and cells[-1] == ""


def test_results_of_other_problems_are_refused(study, tmp_path: Path) -> None:
    rules = {"maj": ([1, 2], [10.0, 20.0], [[0.0, 0.5], [1.0, 1.0]])}
    result(tmp_path, "rl", 0, rules)
    result(tmp_path, "rlv", 1, rules)
    with pytest.raises(ValueError, match="same seeds and problems"):
        study.leaderboard_table.read(tmp_path)


def test_the_study_runs_continues_and_makes_its_table_from_the_results_alone(study, tmp_path: Path, capsys) -> None:
    out = tmp_path / "all"
    small = ["train.steps=1", "rollout.problems=1", "rollout.max_tokens=32", "recipe.rollouts=2"]
    words = [
        "--out",
        str(out),
        "--methods",
        "none",
        "rlv",
        "--seeds",
        "0",
        "--problems",
        "4",
        "--n",
        "2",
        "--timed",
        "1",
    ]
    assert study.main([*words, "--set", *small]) == 0
    said = capsys.readouterr().out
    assert "1/2 one rlv 0" in said and "2/2 one none 0" in said and "2/2 clock rlv 0" in said
    assert (out / "figure.png").stat().st_size > 10_000
    found = json.loads((out / "rlv-0.json").read_text())
    assert found["training"]["steps"] == 1 and found["training"]["computed"] > found["training"]["learnt"] / 2 > 0
    assert found["rules"]["weighted"]["tokens"][0] == pytest.approx(
        found["rules"]["maj"]["tokens"][0] + found["read"]  # one verdict more
    )
    table = (out / "table.md").read_text()
    assert "| RL^V, generative | weighted |" in table and "| the start | majority |" in table

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in out.glob("*.json"):
        path.rename(elsewhere / path.name)
    assert study.main(["--out", str(elsewhere), "--table"]) == 0
    assert (elsewhere / "table.md").read_text() == table


def test_methods_that_think_begin_with_a_thought_trained_or_not(study, tmp_path: Path) -> None:
    args = study.arguments(["--out", str(tmp_path)])
    mrt, start = (study.config_of(name, 1, args) for name in ("mrt", "think"))
    assert (mrt.chat.opening, mrt.rollout.max_tokens, start.rollout.max_tokens) == ("<think>\n", 128, 40)
    model, _ = study.loaded(Path("tiny"), start)
    assert model.chat.decode(model.chat.prompt("Add 1.")).endswith("<think>\n")


def test_what_this_twofold_does_not_know_is_left_out_in_words(
    study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    odd = study.Method("odd", ("recipe.verify=tarot",))
    plan = study.Method("plan", plans=("majority-{k}:make=tarot",))
    monkeypatch.setattr(study, "METHODS", {**study.METHODS, "odd": odd, "plan": plan})
    args = study.arguments(["--out", str(tmp_path)])
    assert study.known(["odd", "plan", "rl"], args) == ["plan", "rl"]
    said = capsys.readouterr().out
    assert study.eval_of("plan", 0, study.arguments(["--most", "1"]))[1] == {}  # a plan of one sample is no strategy
    assert "left out odd: " in said and "left out plan, majority-{k}:make=tarot: " in said and "tarot" in said
    assert sys.modules["leaderboard"] is study


@pytest.mark.parametrize(("folder", "table", "rows"), [("sums", 0, 34), ("smollm2", 2, 12)])
def test_the_published_accuracies_are_those_of_the_result_files(study, folder: str, table: int, rows: int) -> None:
    """Every accuracy in the page's main tables, from ``studies/results`` alone."""
    lines, _ = study.leaderboard_table.read(STUDIES / "results" / folder)
    named = {(x.title, study.leaderboard_table.RULES.get(x.rule)): x for x in lines}
    base, sizes = study.leaderboard_table.yardstick({(x.method, x.rule): x for x in lines})
    budgets = [base.tokens_K[base.ks.index(k)] for k in sizes]
    page = (STUDIES.parent / "docs/results/leaderboard.md").read_text()
    text = page.split("| method | rule | at ")[table + 1].splitlines()
    title, checked = "", 0
    for row in text[2 : text.index("")]:
        name, rule, *cells = (cell.strip() for cell in row.replace("**", "").split("|")[1:-1])
        title = name.partition(", with the KL")[0] or title
        line = named[title, "weighted" if rule.startswith("weighted") else rule]
        assert cells[: len(budgets)] == [study.leaderboard_table.shown(line.at(b)) for b in budgets], row
        checked += 1
    assert checked == rows


def test_the_readme_s_table_is_that_of_the_result_files(study) -> None:
    """pass@1, the accuracies of 16 samples, and the verifier's AUROC, means over the seeds."""
    text = (STUDIES.parent / "README.md").read_text().split("| model, task |")[1].split("\n\n")[0].replace("**", "")
    rows = iter(text.splitlines()[2:])
    for folder, methods in (("smollm2", ("none", "rl", "rlv")), ("sums", ("none", "think", "rl", "rlv"))):
        lines, results = study.leaderboard_table.read(STUDIES / "results" / folder)
        named = {(x.method, x.rule): x for x in lines}
        for method in methods:
            shares = [("pass", 1), ("maj", 16), ("weighted", 16), ("posterior", 16)]
            cells = [f"{100 * named[method, rule].of(k).mean():.1f}" for rule, k in shares]
            cells.append(f"{np.mean([seed['auroc'] for seed in results[method]]):.2f}")
            assert [cell.strip() for cell in next(rows).split("|")[3:-1]] == cells
    assert not [*rows]


def test_the_figure_of_samples_is_drawn_from_the_result_files(study, tmp_path: Path) -> None:
    import samples

    samples.main([str(tmp_path / "figure.png"), f"a title={STUDIES / 'results' / 'sums'}"])
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
