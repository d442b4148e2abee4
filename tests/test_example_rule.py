"""The selection rule in ``examples/``: chosen by hand, solved with, replayed over pools, pinned and never run by a server."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_plans import make_pool

import twofold as tf
from twofold import cli
from twofold.compute.plan import parse
from twofold.compute.rules import rule_named
from twofold.compute.select import select
from twofold.evals.plans import noted, replay, strategies
from twofold.evals.pools import read_header, read_pools
from twofold.serve.parse import read_plan
from twofold.serve.schema import Refused
from twofold.toml import ConfigError

FILE = Path(__file__).parents[1] / "examples" / "rule.py"
RULE = f"{FILE}:best_times_count"
ANSWERS, SCORES = "aabbbc.", [0.9, 0.1, 0.5, 0.4, 0.4, 0.95, 1.0]
"""Best verdict times count: a 0.9 x 2 = 1.8, b 0.5 x 3 = 1.5, c 0.95 x 1. By count b wins, by sum b (1.3), by best c."""


def test_the_answer_of_the_largest_product_wins():
    seen = tf.Seen([None if a == "." else a for a in ANSWERS], [*SCORES])
    answer, confidence, votes = select(tf.Plan(7, RULE), seen)
    assert (answer, votes) == ("a", pytest.approx({"a": 1.8, "b": 1.5, "c": 0.95}))
    assert [*votes] == ["a", "b", "c"] and confidence == pytest.approx(1.8 / 4.25)
    assert [select(tf.Plan(7, rule), seen)[0] for rule in ("majority", "weighted", "best")] == ["b", "b", "c"]


def test_it_replays_over_saved_pools_and_pays_for_its_verdicts():
    pool = make_pool(ANSWERS, SCORES, right="a")
    found = replay([pool], parse(f"{RULE}-7"))
    assert (found.correct_P_K[0, -1], found.generated_P_K[0, -1], found.verified_P_K[0, -1]) == (1, 70, 6 * 3)
    assert replay([pool], parse("weighted-7")).correct_P_K[0, -1] == 0
    with pytest.raises(ValueError, match="was not judged"):
        replay([make_pool(ANSWERS, [None] * 7)], parse(f"{RULE}-7"))  # type: ignore[list-item]


def test_a_plan_with_it_has_a_short_form():
    plan = parse(f"{RULE}-9:stop=consensus,step=3,max_tokens=40")
    assert (plan.rule, plan.n, plan.judged, plan.traced) == (RULE, 9, True, False)
    assert parse(str(plan)) == plan == tf.Plan(9, RULE, stop=plan.stop, max_tokens=40)


def test_it_solves_on_the_command_line(capsys: pytest.CaptureFixture[str]):
    assert (
        cli.main(["solve", "tiny", "Start with 7. Add 5. What is the result?", "--plan", f"{RULE}-4:max_tokens=40"])
        == 0
    )
    said = capsys.readouterr().out
    assert "4 samples" in said and " 0 to judge" not in said


def test_an_evaluation_records_which_version_of_the_file_it_used(tmp_path: Path):
    mine = tmp_path / "mine.py"
    mine.write_text(FILE.read_text())
    config = tf.Eval(problems=2, n=2, max_tokens=24)
    out = tf.evaluate(tf.load("tiny"), "sums", config, out=tmp_path / "e", plans=[f"{mine}:best_times_count-2"])
    (plan,) = noted(out)
    assert plan.rule.startswith(f"{mine}:best_times_count@sha256:")
    pools, header = read_pools(out / "pools.jsonl"), read_header(out)
    assert [row.how for row in strategies(out, pools, header).plans] == ["replayed"]
    mine.write_text(FILE.read_text() + "\n")
    with pytest.raises(ValueError, match="has changed since it was recorded"):
        strategies(out, pools, header)


def test_what_is_no_rule_is_refused():
    with pytest.raises(ValueError, match="must be a Rule, such as Rule"):
        rule_named(f"{FILE}:weights")
    with pytest.raises(ValueError, match="has no best_by_count; did you mean best_times_count"):
        rule_named(f"{FILE}:best_by_count")
    with pytest.raises(ConfigError, match=r"rule must be one of 'majority', .*, or FILE\.py:NAME"):
        parse("mine-4")


def test_a_request_cannot_have_a_file_run(tmp_path: Path):
    ran = tmp_path / "ran"
    mine = tmp_path / "mine.py"
    mine.write_text(f"open({str(ran)!r}, 'w').close()\nfrom twofold import Rule\nrule = Rule(lambda seen, plan: [])\n")
    with pytest.raises(Refused, match="a server runs no file"):
        read_plan(f"{mine}:rule-4:stop=consensus,judge=none")
    assert not ran.exists()
    rule_named(f"{mine}:rule")
    assert ran.exists()
