"""Plans on one pool are replayed exactly as they would have run, run where they must be, and shown beside the oracle."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from twofold import cli, run
from twofold.compute.judge import Judging
from twofold.compute.plan import parse
from twofold.evals import optimal
from twofold.evals.optimal import compute_optimal
from twofold.evals.plans import noted, replay, replayable, strategies
from twofold.evals.pools import PoolError, read_header, read_pools
from twofold.evals.run import Eval
from twofold.maths import votes
from twofold.toml import ConfigError
from twofold.types import Grade, Pool, Problem

GRADES = {True: Grade(1.0, "correct"), False: Grade(0.0, "wrong")}


def make_pool(answers: str, scores: list[float], right: str = "r", **more) -> Pool:
    """Make a pool with one character per sample; "." has no answer. A sample costs 10 tokens, a verdict 3, the pool 1 second."""
    found = [None if a == "." else a for a in answers]
    n = len(found)
    return Pool(
        Problem("p", "?", right, {}), found, [GRADES[a == right] for a in found], scores, [10] * n, [3] * n, 1.0, **more
    )


def random_pool(seed: int, n: int = 16) -> Pool:
    rng = np.random.default_rng(seed)
    return make_pool("".join(rng.choice([*"rrabc."], n)), rng.random(n).tolist())


def test_a_fixed_vote_is_the_exact_curve_of_the_pool():
    pools = [random_pool(i) for i in range(40)]
    for name, rule in (("majority", "majority"), ("weighted", "weighted"), ("best", "best")):
        found = replay(pools, parse(f"{name}-16"), orders=60)
        for column, k in zip(found.correct_P_K.T, found.ks, strict=True):
            correct = [[g.label == "correct" for g in p.grades] for p in pools]
            exact = [votes.curves(p.answers, c, p.scores, [k])[rule][0] for p, c in zip(pools, correct, strict=True)]
            assert column.mean() == pytest.approx(np.mean(exact), abs=0.03)
        assert found.samples_P_K.tolist() == [found.ks] * 40
        assert found.generated_P_K[0].tolist() == [10 * k for k in found.ks]
        assert found.seconds_P_K[0].tolist() == pytest.approx([k / 16 for k in found.ks])


def test_only_verdicts_that_were_asked_for_are_paid():
    pool = make_pool("rr..", [0.9] * 4)
    assert replay([pool], parse("majority-4")).verified_P_K[0, -1] == 0
    assert replay([pool], parse("weighted-4")).verified_P_K[0, -1] == 6
    assert replay([pool], parse("majority-4:stop=posterior,threshold=1")).verified_P_K[0, -1] == 6


def test_a_stopping_rule_is_cut_at_every_k_and_stops_for_good():
    unanimous, split = make_pool("r" * 12, [0.5] * 12), make_pool("ra" * 6, [0.5] * 12)
    found = replay([unanimous, split], parse("majority-12:stop=adaptive"))
    assert found.ks == [1, 2, 4, 8, 12]
    assert found.samples_P_K[0].tolist() == [1, 2, 4, 4, 4]  # (4, 0) is enough
    assert found.samples_P_K[1, -1] > 8 and found.correct_P_K[0].tolist() == [1.0] * 5
    windows = replay([unanimous], parse("majority-12:stop=windows,size=5"))
    assert windows.samples_P_K[0].tolist() == [1, 2, 4, 5, 5]


def test_certainty_is_read_from_the_pool():
    pool = make_pool("rab", [0.1] * 3, certainty=[5.0, 1.0, 2.0], traces={"mean": [1.0, 9.0, 2.0]})
    assert replay([pool], parse("certain-3")).correct_P_K[0, -1] == 1
    assert replay([pool], parse("deepconf-3")).correct_P_K[0, -1] == 0
    with pytest.raises(ValueError, match="--trace_top 20"):
        replay([make_pool("rab", [0.1] * 3)], parse("borda-3"))
    with pytest.raises(ValueError, match="was not judged"):
        replay([replace(pool, scores=[None] * 3)], parse("weighted-3"))
    with pytest.raises(ValueError, match="has 3 samples: raise --n"):
        replay([pool], parse("majority-4"))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    plans = ["majority-4", "posterior-4:stop=posterior", "borda-4", "weighted-2:stop=lengths,caps=[12,24]"]
    config = Eval(problems=4, n=4, max_tokens=24, batch=4)
    return run.evaluate(run.load("tiny"), "sums", config, out=tmp_path_factory.mktemp("plans"), plans=plans)


def test_plans_are_replayed_or_run_and_never_done_twice(evaluated: Path):
    header, pools = read_header(evaluated), read_pools(evaluated / "pools.jsonl")
    found = strategies(evaluated, pools, header)
    assert [row.how for row in found.plans] == ["replayed"] * 3 + ["run"]
    assert found.plans[0].plan == "majority-4:max_tokens=24"
    rows = [json.loads(line) for line in (evaluated / "plans.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [pool.problem.id for pool in pools]
    point = found.plans[3].points[0]
    assert point.accuracy.mean == np.mean([row["label"] == "correct" for row in rows])
    assert point.generated == np.mean([row["cost"]["generated"] for row in rows])
    reached = [row["length"] for row in rows]
    assert found.plans[3].lengths.reached == np.mean(reached)
    assert found.plans[3].lengths.cumulated == 2 * np.mean([{12: 12, 24: 36}[cap] for cap in reached])
    assert [p.k for p in found.oracle] == [1, 2, 4]
    before = (evaluated / "plans.jsonl").read_text()
    again = Eval(problems=4, n=4, max_tokens=24, batch=4, trace_top=20)
    plans = ["weighted-2:stop=lengths,caps=[12,24]", "best-4"]
    run.evaluate(run.load("tiny"), "sums", again, out=evaluated, plans=plans)
    assert (evaluated / "plans.jsonl").read_text() == before
    assert len(strategies(evaluated, pools, header).plans) == 5


def test_the_report_shows_plans_and_the_oracle(evaluated: Path, tmp_path: Path, capsys):
    assert cli.main(["report", str(evaluated), "--out", str(tmp_path)]) == 0
    assert "posterior-4:stop=posterior,max_tokens=24" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert "weighted-2:stop=lengths,caps=[12,24],max_tokens=24" in page and "an oracle, no strategy" in page
    assert "with every shorter cap: at most" in page
    assert json.loads((tmp_path / "report.json").read_text())["tasks"][0]["evaluations"][0]["strategies"]["oracle"]


def test_a_plan_that_was_not_run_to_its_end_is_said(evaluated: Path, tmp_path: Path):
    for name in ("plans.json", "eval.json", "pools.jsonl", "plans.jsonl"):
        (tmp_path / name).write_text((evaluated / name).read_text())
    lines = (tmp_path / "plans.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "plans.jsonl").write_text("".join(lines[:-1]))
    header, pools = read_header(tmp_path), read_pools(tmp_path / "pools.jsonl")
    with pytest.raises(PoolError, match="has not been run on"):
        strategies(tmp_path, pools, header)


def test_what_can_be_replayed(evaluated: Path):
    header = read_header(evaluated)
    like = "max_tokens=24"
    assert replayable(parse(f"majority-4:{like},stop=windows"), header)
    for other in (
        "majority-4",
        f"weighted-4:{like},judge=written",
        f"weighted-4:{like},make=prune",
        f"best-4:{like},top_p=0.5",
    ):
        assert not replayable(parse(other), header)


def test_calibrate_prints_options_of_a_plan(evaluated: Path, tmp_path: Path, capsys):
    shutil.copytree(evaluated, tmp_path / "run" / "evals" / "test")
    assert cli.main(["calibrate", str(tmp_path / "run")]) == 0  # a run directory stands for its evaluations
    of_run = capsys.readouterr().out
    assert cli.main(["calibrate", str(evaluated)]) == 0
    assert capsys.readouterr().out == of_run
    assert parse(f"posterior-4:{of_run.strip()}").calibration.slope >= 0


@pytest.mark.parametrize("judge", ["none", "bce", "regression", "head"])
def test_a_judge_that_a_plan_cannot_use_is_refused(judge: str, tmp_path: Path):
    model, config = run.load("tiny"), Eval(problems=2, n=2, max_tokens=8, judge=Judging(judge))  # type: ignore[arg-type]
    message = f"weighted-2:.*cannot ask for verdicts by judge={judge}: give it one of p_yes, normalised, written, steps"
    with pytest.raises(ValueError, match=message):
        run.evaluate(model, "sums", config, out=tmp_path, plans=["majority-2", "weighted-2"])
    assert not list(tmp_path.iterdir())
    if judge == "none":
        out = run.evaluate(model, "sums", config, out=tmp_path, plans=["majority-2"])
        assert [replayable(plan, read_header(out)) for plan in noted(out)] == [True]


def test_pools_of_another_question_or_cut_are_told_apart(tmp_path: Path):
    """The standard question leaves no trace in the header, so that older pools stay the same; another one does."""
    model, config = run.load("tiny"), Eval(problems=2, n=2, max_tokens=8)
    own = replace(model, chat=model.chat.asking("Is it right?"))
    plain = read_header(run.evaluate(model, "sums", config, out=tmp_path / "plain"))
    other = read_header(run.evaluate(own, "sums", config, out=tmp_path / "own", plans=["weighted-2"]))
    assert (plain.judge_question, plain.judge_cut, other.judge_question) == (None, None, "Is it right?")
    assert [replayable(plan, other) for plan in noted(tmp_path / "own")] == [True]
    assert not replayable(parse("weighted-2:max_tokens=8"), other)
    with pytest.raises(ValueError, match="another evaluation"):
        run.evaluate(own, "sums", config, out=tmp_path / "plain")


def test_a_plan_of_more_samples_than_the_pool_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="draws 4 samples"):
        run.evaluate(run.load("tiny"), "sums", Eval(problems=2, n=4), out=tmp_path, plans=["majority-8"])


# ---------------------------------------------------------------- the compute-optimal table


def two_kinds(i: int) -> Pool:
    """Even problems: the pilot is sure, and the majority is right. Odd ones: unsure, and only the best-scored is."""
    n = 8
    if i % 2 == 0:
        return make_pool("rrrrrrab", [0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.9, 0.9])
    return make_pool("raaaaaaa", [0.5] + [0.2] * (n - 1))


def test_each_difficulty_gets_the_plan_that_suits_it():
    pools = [replace(two_kinds(i), problem=Problem(f"p{i}", "?", "r", {})) for i in range(24)]
    found = compute_optimal(pools, [parse("majority-8"), parse("best-8")], [8], pilot=2, bins=2)
    assert found.best == [[1], [0]]  # the hard half by the best score, the easy half by majority
    assert found.adaptive_P_B_2[..., 0].mean() == 1.0
    assert found.single_P_B_2[..., 0].mean() == 0.5


def test_a_pilot_pays_for_its_verdicts_whatever_it_chooses():
    """8 samples of 10 tokens each; 8 verdicts of 3 tokens where the best score answers, only the pilot's 2 where the majority does."""
    pools = [replace(two_kinds(i), problem=Problem(f"p{i}", "?", "r", {})) for i in range(24)]
    found = compute_optimal(pools, [parse("majority-8"), parse("best-8")], [8], pilot=2, bins=2)
    assert found.adaptive_P_B_2[:, 0, 1].tolist() == [80 + 2 * 3, 80 + 8 * 3] * 12
    assert set(found.single_P_B_2[:, 0, 1].tolist()) <= {80, 80 + 8 * 3}
    mute = [make_pool("........", [0.9] * 8) for _ in range(24)]  # nothing to ask about
    found = compute_optimal(mute, [parse("majority-8"), parse("best-8")], [8], pilot=2, bins=2)
    assert found.adaptive_P_B_2[:, 0].tolist() == found.single_P_B_2[:, 0].tolist() == [[0, 80]] * 24


def test_the_table_is_measured_on_problems_it_was_not_chosen_on():
    """Pure noise: what looks best on one half is worth no more than any plan on the other."""
    rng = np.random.default_rng(0)
    pools = [make_pool("ra" * 4, rng.random(8).tolist()) for _ in range(200)]
    plans = [parse("majority-8"), parse("best-8"), parse("weighted-8")]
    found = compute_optimal(pools, plans, [4, 8], bins=4)
    assert found.adaptive_P_B_2[..., 0].mean() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(("plan", "budget"), [("majority-8:stop=windows", 8), ("majority-8", 2)])
def test_unequal_budgets_are_refused(plan, budget):
    with pytest.raises(ValueError, match="budgets"):
        compute_optimal([random_pool(i) for i in range(16)], [parse(plan)], [budget])


def test_a_choice_needs_verdicts_problems_and_plans():
    pools = [random_pool(i) for i in range(12)]
    unjudged = [replace(pool, scores=[None] * 16) for pool in pools]
    with pytest.raises(ValueError, match="not judged: evaluate with a judge"):
        compute_optimal(unjudged, [parse("majority-8")], [8])
    with pytest.raises(ValueError, match="at least 12 problems"):
        compute_optimal(pools[:11], [parse("majority-8")], [8])
    with pytest.raises(ValueError, match="at least two plans of at least 4 samples, got majority-8"):
        optimal.optimal_table(pools, [parse("majority-8")])
    with pytest.raises(ValueError, match="at least 4 samples, got majority-8, weighted-2"):
        optimal.optimal_table(pools, [parse("majority-8"), parse("weighted-2")])
    with pytest.raises(ValueError, match="--trace_top 20"):
        optimal.optimal_table(pools, [parse("majority-8"), parse("borda-8")])


def test_the_choice_is_among_the_plans_that_were_given(evaluated: Path, tmp_path: Path):
    header = read_header(evaluated)
    assert [plan.rule for plan in optimal.candidates(evaluated, header)][:2] == ["majority", "borda"]
    assert [str(p) for p in optimal.candidates(tmp_path, header)] == [
        "majority-4",
        "best-4",
        "weighted-4",
        "posterior-4",
    ]
    found = optimal.optimal_table([random_pool(i) for i in range(40)], [parse("majority-8"), parse("weighted-16")])
    assert [row.budget for row in found.rows] == [4, 8] and found.plans == ["majority-8", "weighted-16"]
    for row in found.rows:
        assert row.difference.mean == pytest.approx(row.adaptive.mean - row.single.mean)
        assert {*row.best, row.best_single} <= {"majority", "weighted"} and len(row.best) == 3
        assert row.adaptive_tokens >= 10 * row.budget + 4  # of a pilot of 4, some 5 in 6 have an answer


# ---------------------------------------------------------------- files of before


def test_an_older_header_is_read_by_its_old_names(evaluated: Path, tmp_path: Path):
    values = json.loads((evaluated / "eval.json").read_text())
    assert (values["trace_top"], values["trace_window"]) == (20, 64)
    old = {"trace_top": "confidence", "trace_window": "window"}
    (tmp_path / "eval.json").write_text(json.dumps({old.get(key, key): value for key, value in values.items()}))
    assert read_header(tmp_path) == read_header(evaluated)


def test_saved_plans_with_an_old_option_are_refused_with_the_new_name(tmp_path: Path):
    (tmp_path / "plans.json").write_text('["majority-4:stop=adaptive,confidence=0.9"]')
    with pytest.raises(ConfigError, match="unknown option confidence; twofold calls it threshold"):
        noted(tmp_path)
