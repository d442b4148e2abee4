"""Reports from saved pools: hand-computed numbers, files that survive a crash, and a page that needs nothing else."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import subprocess
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from twofold.compute.plan import Plan
from twofold.durable import Lines
from twofold.evals.calibrated import halves, posterior_curve, replay_halves
from twofold.evals.pools import Header, PoolError, finished_ids, read_header, read_pools, write_header, write_pool
from twofold.evals.records import Report, TaskReport
from twofold.evals.report import print_table, report, summarise
from twofold.maths.stopping import Posterior
from twofold.types import Grade, Pool, Problem

GRADES = {
    "c": Grade(1.0, "correct"),
    "w": Grade(0.0, "wrong"),
    "n": Grade(0.0, "no_answer"),
    "t": Grade(None, "timeout"),
}


def make_pool(i: int, answers: Sequence[str | None], scores: Sequence[float | None], **meta: Any) -> Pool:
    """Return a pool whose right answer is 42. ``"?"`` is an answer on which the grader timed out."""
    kinds = ["n" if a is None else "t" if a == "?" else "c" if a == "42" else "w" for a in answers]
    problem = Problem(f"p{i}", f"Question {i}: is 6 < 7 & <script>alert({i})</script>?", "42", meta)
    n = len(answers)
    return Pool(problem, list(answers), [GRADES[k] for k in kinds], list(scores), [10] * n, [3] * n, 0.5 * n)


def save(directory: Path, pools: Sequence[Pool], name: str, **changes: Any) -> Path:
    judged = any(score is not None for pool in pools for score in pool.scores)
    header: dict[str, Any] = {
        **{"name": name, "model": "tiny", "task": "chains", "split": "test", "n": len(pools[0].answers)},
        **{"temperature": 1.0, "top_p": 1.0, "max_tokens": 32, "seed": 0, "engine": "native"},
        **{"versions": {"twofold": "0.1.0"}, "judge": "p_yes" if judged else None, "seconds": 12.0},
    }
    write_header(directory, Header(**(header | changes)))
    (directory / "pools.jsonl").unlink(missing_ok=True)
    with Lines(directory / "pools.jsonl") as file:
        for pool in pools:
            write_pool(file, pool)
    return directory


def synthetic(seed: int, problems: int, n: int, judge: float | None) -> list[Pool]:
    """Return random pools. Scores are ``judge`` above 1/2 if correct, below it if not, on average (None: not judged)."""
    rng = np.random.default_rng(seed)
    pools = []
    for i in range(problems):
        chance = rng.uniform(0.1, 0.7)
        answers: list[str | None] = []
        for _ in range(n):
            u = rng.random()
            answers.append("42" if u < chance else None if u > 0.95 else str(rng.integers(3)))
        noise = rng.uniform(-0.25, 0.25, n)
        scores = [
            None if judge is None else float(0.5 + (judge if a == "42" else -judge) + e)
            for a, e in zip(answers, noise, strict=True)
        ]
        pools.append(make_pool(i, answers, scores, level=1 + i % 3))
    return pools


HAND = [
    # majority of all: 7 (2 of 4), wrong; weighted: 42 (.9 against .5); best: 42
    make_pool(0, ["42", "7", "7", None], [0.9, 0.3, 0.2, None], level=1),
    # everything wrong or missing
    make_pool(1, ["7", "7", None, None], [0.6, 0.4, None, None], level=1),
    # majority: 42 (3 of 4); the verifier prefers the 8 to all of them: weighted and best are wrong
    make_pool(2, ["42", "42", "42", "8"], [0.1, 0.1, 0.1, 0.8], level=2),
]


@pytest.fixture(scope="module")
def hand(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report on HAND, read from its JSON."""
    tmp_path = tmp_path_factory.mktemp("hand")
    save(tmp_path / "run" / "evals" / "test", HAND, "hand")
    report([tmp_path / "run"], tmp_path / "out")
    return json.loads((tmp_path / "out" / "report.json").read_text())


def test_accuracies_are_the_hand_computed_ones(hand: dict[str, Any]) -> None:
    accuracy = {name: point["mean"] for name, point in hand["tasks"][0]["evaluations"][0]["accuracy"].items()}
    assert accuracy["pass@1"] == accuracy["maj@1"] == accuracy["best@1"] == pytest.approx((1 / 4 + 0 + 3 / 4) / 3)
    # two of four: p0 finds the 42 in 3 of 6 pairs; p2 in all
    assert accuracy["pass@2"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    # p0: pairs (42,7) x2 tie, 1/2 each, (42,None) wins: 2/6; p2: 3 pairs (42,42), 3 ties: 4.5/6
    assert accuracy["maj@2"] == pytest.approx((2 / 6 + 0 + 4.5 / 6) / 3)
    # p0: 42 wins all 3 of its pairs; p2: loses whenever the 8 is in
    assert accuracy["best@2"] == accuracy["weighted@2"] == pytest.approx((3 / 6 + 0 + 3 / 6) / 3)
    assert (accuracy["maj@4"], accuracy["weighted@4"], accuracy["pass@4"]) == pytest.approx((1 / 3, 1 / 3, 2 / 3))
    assert hand["tasks"][0]["at"] == 4  # the nearest to 16 of 1, 2 and 4


def test_verifier_is_measured_on_answered_samples_only(hand: dict[str, Any]) -> None:
    run = hand["tasks"][0]["evaluations"][0]
    correct, wrong = [0.9, 0.1, 0.1, 0.1], [0.3, 0.2, 0.6, 0.4, 0.8]
    pairs = [(c > w) + 0.5 * (c == w) for c, w in itertools.product(correct, wrong)]
    quality = run["verifier"]
    assert quality["n"] == 9 and quality["base_rate"] == pytest.approx(4 / 9)
    assert quality["auroc"] == pytest.approx(np.mean(pairs))  # 5 / 20
    assert (quality["tpr"], quality["tnr"]) == pytest.approx((1 / 4, 3 / 5))
    assert quality["brier"] == pytest.approx((0.1**2 + 3 * 0.9**2 + sum(w**2 for w in wrong)) / 9)
    assert quality["alarm"] is None
    assert sum(run["histogram"]["correct"]) == 4 and sum(run["histogram"]["wrong"]) == 5
    area = np.trapezoid([0, *run["roc"]["true_yes"]], [0, *run["roc"]["false_yes"]])
    assert area == pytest.approx(quality["auroc"])  # the drawn curve encloses the number printed beside it


def test_counts_costs_levels_and_changed_votes(hand: dict[str, Any]) -> None:
    run = hand["tasks"][0]["evaluations"][0]
    assert run["labels"] == pytest.approx(
        {"correct": 4 / 12, "wrong": 5 / 12, "no_answer": 3 / 12, "timeout": 0, "error": 0}
    )
    assert (run["tokens_per_sample"], run["judge_tokens_per_sample"], run["seconds_per_sample"]) == (10, 3, 0.5)
    assert run["at_token_limit"] == 0
    first, second = run["levels"]
    assert (first["level"], first["problems"], first["maj@4"]["mean"]) == ("1", 2, 0.0)
    assert second["maj@4"] == {"mean": 1.0, "low": None, "high": None}  # one problem: no interval
    changed = run["changed"]
    assert (changed["fixed"], changed["broken"]) == (1, 1)
    assert changed["examples"]["fixed"][0]["id"] == "p0" and changed["examples"]["broken"][0]["weighted"] == "8"


def test_votes_agree_with_brute_force_over_all_subsets(tmp_path: Path) -> None:
    pools = synthetic(3, problems=6, n=6, judge=0.1)
    result = summarise([save(tmp_path / "e", pools, "e")])
    accuracy = result.tasks[0].evaluations[0].accuracy
    for k in (1, 2, 4, 6):
        for rule, weighted in (("maj", False), ("weighted", True)):
            expected = np.mean([brute_force(pool, k, weighted) for pool in pools])
            assert accuracy[f"{rule}@{k}"].mean == pytest.approx(expected), (rule, k)


def brute_force(pool: Pool, k: int, weighted: bool) -> float:
    values = []
    for subset in itertools.combinations(range(len(pool.answers)), k):
        votes: dict[str, float] = defaultdict(float)
        for i in subset:
            if (answer := pool.answers[i]) is not None:
                score = pool.scores[i]
                assert score is not None
                votes[answer] += score if weighted else 1
        top = [a for a, v in votes.items() if v > max(votes.values()) - 1e-9]
        values.append(top.count("42") / len(top) if top else 0.0)
    return float(np.mean(values))


def test_runs_are_compared_with_the_baseline_on_the_same_problems(tmp_path: Path) -> None:
    base = save(tmp_path / "base", synthetic(1, 40, 16, judge=None), "grpo")
    good = save(tmp_path / "good", synthetic(1, 40, 16, judge=0.25), "rlv")
    task = summarise([good, base], baseline="grpo").tasks[0]
    key = ("rlv", "weighted", "grpo", "maj")
    row = next(r for r in task.comparisons if (r.run, r.rule, r.against, r.against_rule) == key)
    rlv, grpo = task.evaluations
    assert row.k == 16 and row.problems == 40
    gap = rlv.accuracy["weighted@16"].mean - grpo.accuracy["maj@16"].mean
    assert row.mean == pytest.approx(gap) and row.low > 0 and row.p < 0.01
    same = next(r for r in task.comparisons if r.rule == r.against_rule == "maj")
    assert same.mean == 0.0 and same.p == 1.0  # the two runs drew the same answers
    (saved,) = [r for r in task.efficiency if r.run == "rlv"]
    assert saved.baseline_rule == "maj" and saved.is_best_rule and saved.ratio > 2
    assert saved.ratio == pytest.approx(saved.base_k / saved.ours_k)
    assert "rlv" in task.headline and "grpo's majority vote" in task.headline and "AUROC" in task.headline


def three(folder: Path, base: float, rl: float) -> list[Path]:
    """Save three runs; the numbers are how much the verdicts of the first two are worth."""
    worth = {"base": base, "rl": rl, "rlv": 0.25}
    return [save(folder / name, synthetic(1, 40, 8, judge=worth[name]), name) for name in worth]


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, str]:
    """The report on three runs, and its page."""
    folder = tmp_path_factory.mktemp("trio")
    result = report(three(folder, base=0.03, rl=0.0), folder / "out", baseline="rl")
    return result, (folder / "out" / "report.html").read_text()


def check_headline(task: TaskReport, ahead: str) -> None:
    """``ahead`` is the run with the best rule of all but rlv's."""
    mean: dict[tuple[str, str], float] = {
        (e.label, rule): e.accuracy[f"{rule}@8"].mean
        for e in task.evaluations
        for rule in ("weighted", "maj", "best", "posterior")
    }
    best = {name: max((key for key in mean if key[0] == name), key=mean.__getitem__) for name in ("base", "rl")}
    assert max(best, key=lambda name: mean[best[name]]) == ahead
    second = ("rl", "weighted") if ahead == "base" else best["base"]
    assert task.rivals("rlv") == [best[ahead], second]
    for label, rule in task.rivals("rlv"):
        gain = re.escape(f"{100 * (mean['rlv', 'weighted'] - mean[label, rule]):+.1f}")
        name = {"maj": "majority vote", "weighted": "weighted vote", "posterior": "posterior"}[rule]
        assert re.search(rf"{gain} (points )?\[\S+, \S+\] over {label}'s {name}", task.headline)
    (saved,) = [r for r in task.efficiency if r.run == "rlv" and r.is_best_rule]
    assert (saved.baseline, saved.baseline_rule) == best[ahead]
    assert f"the best other rule (equal with {saved.ratio:.1f}x fewer samples)" in task.headline
    assert len(textwrap.wrap(task.headline, 80)) <= 3


def test_the_headline_compares_with_what_one_would_choose(trio: tuple[Report, str], tmp_path: Path) -> None:
    """The best rule of all other runs, and the baseline's weighted vote; if the baseline has that rule, the base's best one."""
    check_headline(trio[0].tasks[0], "base")
    check_headline(summarise(three(tmp_path, base=0.0, rl=0.03), baseline="rl").tasks[0], "rl")


def test_only_the_rows_that_answer_a_question_are_printed(trio: tuple[Report, str]) -> None:
    """What verdicts add to each run, and each run by its own rule against its rivals. All rows are in the page."""
    result, page = trio
    (task,) = result.tasks
    own = [(run, "weighted", run, "maj") for run in ("base", "rl", "rlv")]
    rivals = [("rlv", "weighted", *rival) for rival in task.rivals("rlv")]
    assert len(rivals) == 2
    wanted = {*own, ("base", "weighted", "rl", "weighted"), *rivals}
    assert {(c.run, c.rule, c.against, c.against_rule) for c in task.main} == wanted
    rest = len(task.comparisons) - 6
    text = printed(result)
    assert rest > 6 and f"{rest} more pairs" in page and f"{rest} more in report.html" in text
    assert "seconds depend on the machine and its load" in text and "load at the time" in page


@pytest.mark.parametrize("columns", [None, 80])
def test_printed_tables_fit(trio: tuple[Report, str], columns: int | None) -> None:
    """A pipe has 100 columns, a terminal its own. No interval in a table is broken."""
    out = io.StringIO()
    console = Console(file=out) if columns is None else Console(file=out, width=80, force_terminal=True, no_color=True)
    print_table(trio[0], console)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines()
    assert max(map(len, lines)) <= (columns or 100)
    assert not any(re.search(r"\[[\d.+-]+,$", line.rstrip()) for line in lines[5:])


def test_runs_that_were_not_sampled_alike_are_named(tmp_path: Path) -> None:
    a = save(tmp_path / "a", synthetic(1, 12, 4, judge=None), "a", enable_thinking=False)
    b = save(tmp_path / "b", synthetic(2, 12, 4, judge=None), "b", temperature=0.7, system="Be brief.")
    result = report([a, b], tmp_path / "out")
    assert result.tasks[0].unlike == [
        "temperature 1.0 (a), 0.7 (b)", "system none (a), 'Be brief.' (b)", "enable_thinking False (a), none (b)"
    ]  # fmt: skip
    assert "Not sampled alike: temperature 1.0 (a), 0.7 (b);" in " ".join(printed(result).split())
    assert "Not sampled alike" in (tmp_path / "out" / "report.html").read_text()
    assert summarise([a]).tasks[0].unlike == []


def test_a_problems_posterior_is_calibrated_on_the_other_half(tmp_path: Path) -> None:
    """Verdicts that are upside down on one half: a fit on the other half trusts them where it should not, and the reverse."""
    pools = synthetic(3, 40, 8, judge=0.25)
    turned = [
        replace(p, scores=[None if s is None else 1 - s for s in p.scores]) if i % 2 else p for i, p in enumerate(pools)
    ]
    honest, mixed = (
        summarise([save(tmp_path / name, p, name)]).tasks[0].evaluations[0]
        for name, p in (("honest", pools), ("mixed", turned))
    )
    assert honest.accuracy["posterior@8"].mean > honest.accuracy["maj@8"].mean + 0.1
    found = posterior_curve(turned)[:, -1]
    assert found[0::2].mean() < honest.accuracy["maj@8"].mean + 0.1  # fitted where verdicts lie, they are not believed
    assert mixed.accuracy["posterior@8"].mean == pytest.approx(found.mean())


def test_a_plan_that_stops_is_replayed_with_the_calibration_of_the_other_half() -> None:
    """Even problems have the numbers of odd ones, whose verdicts are upside down: they believe none and draw on."""
    pools = synthetic(3, 40, 8, judge=0.25)
    turned = [
        replace(p, scores=[None if s is None else 1 - s for s in p.scores]) if i % 2 else p for i, p in enumerate(pools)
    ]
    calibrations = halves(turned)
    assert calibrations is not None
    found = replay_halves(turned, Plan(8, "posterior", stop=Posterior(threshold=0.8)), calibrations)
    even, odd = found.samples_P_K[0::2, -1].mean(), found.samples_P_K[1::2, -1].mean()
    assert 1 <= odd < even - 1 and even > 7
    longest = max(max(p.tokens) for p in turned)
    assert (found.generated_P_K <= longest * found.samples_P_K).all() and found.ks == [1, 2, 4, 8]


def test_few_problems_have_no_posterior(tmp_path: Path) -> None:
    accuracy = (
        summarise([save(tmp_path / "few", synthetic(3, 19, 4, judge=0.25), "few")]).tasks[0].evaluations[0].accuracy
    )
    assert "weighted@4" in accuracy and "posterior@4" not in accuracy


def test_efficiency_is_also_measured_against_the_baselines_best_rule(tmp_path: Path) -> None:
    base = save(tmp_path / "base", synthetic(1, 40, 16, judge=0.2), "judge")
    good = save(tmp_path / "good", synthetic(2, 40, 16, judge=0.25), "rlv")
    task = summarise([base, good]).tasks[0]
    rules = {r.baseline_rule: r.is_best_rule for r in task.efficiency if r.run == "rlv"}
    assert len(rules) == 2 and rules["maj"] is False


def test_there_is_no_ratio_to_a_baseline_that_solves_nothing(tmp_path: Path) -> None:
    """A target half a point below an accuracy of 0 would be reached at once, as with the shipped model on GSM8K."""
    lost = save(tmp_path / "lost", [make_pool(i, ["7", "8", None, "7"], [0.5] * 4) for i in range(40)], "lost")
    good = save(tmp_path / "good", synthetic(2, 40, 4, judge=0.25), "rlv")
    result = summarise([lost, good], baseline="lost")
    assert result.tasks[0].efficiency == []
    assert "fewer samples" not in result.headline


def test_an_indifferent_verifier_raises_the_alarm_and_an_honest_headline(tmp_path: Path) -> None:
    pools = [make_pool(i, ["42", "7", "8", "42"], [0.99, 0.99, 0.99, 0.99]) for i in range(5)]
    result = report([save(tmp_path / "e", pools, "yes-man")], tmp_path / "out")
    run = result.tasks[0].evaluations[0]
    assert "says Yes to 100.0%" in run.verifier.alarm and run.verifier.auroc == 0.5
    assert "no clear difference from its own majority vote" in result.headline
    assert "says Yes to 100.0%" in (tmp_path / "out" / "report.html").read_text()
    assert "ALARM yes-man" in printed(result)


def test_one_class_only_is_not_a_number_but_still_a_report(tmp_path: Path) -> None:
    pools = [make_pool(i, ["7", None], [0.2, None]) for i in range(3)]
    result = report([save(tmp_path / "e", pools, "hopeless")], tmp_path / "out")
    assert math.isnan(result.tasks[0].evaluations[0].verifier.auroc)
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved["tasks"][0]["evaluations"][0]["verifier"]["auroc"] is None
    assert "AUROC n/a" in result.headline
    assert "n/a" in printed(result)


def test_samples_the_grader_gave_up_on_do_not_judge_the_verifier(tmp_path: Path) -> None:
    pools = [make_pool(i, ["42", "7", "?"], [0.9, 0.1, 0.9]) for i in range(3)]
    run = summarise([save(tmp_path / "e", pools, "e")]).tasks[0].evaluations[0]
    assert run.verifier.n == 6 and run.verifier.auroc == 1.0
    assert run.labels["timeout"] == pytest.approx(1 / 3)


def printed(result: Report) -> str:
    out = io.StringIO()
    print_table(result, Console(file=out))
    return out.getvalue()


def test_the_page_stands_alone_and_escapes_what_problems_say(tmp_path: Path) -> None:
    runs = []
    for name, judge in (("grpo <b>", None), ("rlv", 0.2)):
        save(tmp_path / name / "evals" / "test", [*synthetic(1, 12, 8, judge)], name)
        save(tmp_path / name / "evals" / "ood", HAND, name, split="ood")
        rows = [{"step": s, "reward": s / 9, "verifier/auroc": 0.5, "completions/mean_length": 9.0} for s in range(9)]
        text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "rew'  # still being written
        (tmp_path / name / "metrics.jsonl").write_text(text)
        runs.append(tmp_path / name)
    result = report(runs, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert {(t.task, t.split) for t in result.tasks} == {("chains", "test"), ("chains", "ood")}
    assert result.training[0].metrics["reward"].steps == list(range(9))
    assert not re.search(r"https?:|//\w|<script|<link|@import|<img|\bsrc=", page)
    assert {m for m in re.findall(r'href="([^"]*)"', page) if not m.startswith("#")} == set()
    assert "&lt;script&gt;alert(0)" in page and "grpo &lt;b&gt;" in page and "grpo <b>" not in page
    assert page.count("<svg") >= 10 and page.count("<svg") == page.count("</svg>")
    for title in ("Accuracy against number of samples", "Verifier: calibration and ROC", "Training curves"):
        assert f'aria-label="{title}"' in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    figures_of_ids = {i for i, count in Counter(ids).items() if count > 1}
    assert not figures_of_ids  # a clip path of one figure must not cut another


NAMES = [
    r"$\frac{$", r"$\alpha_{", "$", "[red]", "[/]", "[bold", "a\\", "<script>alert(1)</script>", '"><img src=x onerror=1>',
    "{{ 7 * 7 }}", "\x1b[31mred\x1b]0;title\x07", "\u202egnp", "_hidden", "%s %d {0}", "=cmd()|A1", "a|b|c", "two\nlines", "\0",
    "#010101", "&amp;", "--ink", "é🍎",
]  # fmt: skip


def test_no_name_breaks_a_report(tmp_path: Path) -> None:
    """Not in a figure (mathtext), on the page (HTML), in the terminal (markup, escapes), or as a title."""
    for i in range(0, len(NAMES), 6):
        names = NAMES[i : i + 6]
        runs = [save(tmp_path / name.encode().hex(), synthetic(1, 4, 4, 0.2), name, task=names[0]) for name in names]
        found = report(runs, tmp_path / "out")
        page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
        assert "<script" not in page and "<img" not in page and "mathdefault" not in page, names
        assert len(re.findall(r"<svg[^>]*>", page)) == page.count("</svg>") >= 2, names
        assert not set(printed(found)) & {"\x1b", "\x07", "\u202e", "\0"}, names
        print_table(found, Console(file=io.StringIO(), force_terminal=True))
        assert all(escape(name, quote=False) in page for name in names if name.isprintable() and '"' not in name)


def test_report_json_has_the_names_of_the_records(hand: dict[str, Any], tmp_path: Path) -> None:
    """There is one exception: a level's accuracies stand beside its other keys."""
    evaluation = (
        "label directory header rule problems samples ks accuracy labels at_token_limit tokens_per_sample "
        "judge_tokens_per_sample seconds_per_sample seconds levels strategies grid optimal thinking verifier attacks texts"
    )
    task = hand["tasks"][0]
    judged = task["evaluations"][0]
    assert " ".join(hand) == "headline labels tasks training"
    assert " ".join(task) == "task split baseline at evaluations comparisons efficiency tokens_saved headline"
    assert " ".join(judged) == f"{evaluation} calibration histogram roc mean_score changed"
    assert " ".join(judged["levels"][0]) == "level problems pass@1 maj@4 best@4 weighted@4"
    assert " ".join(task["comparisons"][0]) == "run rule against against_rule k problems mean low high p"
    report([save(tmp_path / "e", synthetic(1, 4, 4, judge=None), "e")], tmp_path)
    saved = json.loads((tmp_path / "report.json").read_text())["tasks"][0]["evaluations"][0]
    assert " ".join(saved) == evaluation and saved["verifier"] is None and saved["header"]["n"] == 4


def test_equal_names_are_told_apart_by_the_run_and_clashes_refused(tmp_path: Path) -> None:
    a = save(tmp_path / "a" / "evals" / "final", HAND, "final")
    save(tmp_path / "b" / "evals" / "final", HAND, "final")
    result = summarise([tmp_path / "a", tmp_path / "b"])
    assert result.labels == ["a/final", "b/final"]
    save(tmp_path / "a" / "evals" / "again", HAND, "final")
    with pytest.raises(PoolError, match="both named 'a/final'"):
        summarise([tmp_path / "a"])
    with pytest.raises(ValueError, match=r"no evaluation is named 'nobody'.*found final"):
        summarise([a], baseline="nobody")
    with pytest.raises(PoolError, match="no evaluation here"):
        summarise([tmp_path / "out"])


def test_one_id_for_two_questions_is_refused(tmp_path: Path) -> None:
    other = [*HAND[:2], make_pool(7, HAND[2].answers, HAND[2].scores)]
    renamed = Problem("p2", other[2].problem.question, "42")
    other[2] = Pool(renamed, other[2].answers, other[2].grades, other[2].scores, [1] * 4, [1] * 4, 1.0)
    with pytest.raises(PoolError, match="'p2' is a different question"):
        summarise([save(tmp_path / "a", HAND, "a"), save(tmp_path / "b", other, "b")])


def test_missing_scores_and_wrong_n_name_the_problem(tmp_path: Path) -> None:
    half = [HAND[0], make_pool(1, ["7", "7", "7", "7"], [0.5, None, 0.5, 0.5])]
    with pytest.raises(PoolError, match="'p1' has an answer without a score"):
        summarise([save(tmp_path / "a", half, "a")])
    with pytest.raises(PoolError, match=r"'p0' has 4 samples, eval\.json says n = 8"):
        summarise([save(tmp_path / "b", HAND, "b", n=8)])
    with pytest.raises(PoolError, match="at least 2"):
        summarise([save(tmp_path / "c", HAND[:1], "c")])


def test_pools_and_header_come_back_as_written(tmp_path: Path) -> None:
    strange = make_pool(
        9, ["\u2028 \U0001f600 \r\n", None, "42", "?"], [0.0, None, 1.0, 0.5], numbers=[1, 2], level="hard"
    )
    path = save(tmp_path, [*HAND, strange], "e") / "pools.jsonl"
    assert read_pools(path) == [*HAND, strange]
    header = read_header(tmp_path)
    assert (header.name, header.n, header.versions) == ("e", 4, {"twofold": "0.1.0"})


def test_resume_after_a_crash_cuts_off_the_half_written_line(tmp_path: Path) -> None:
    path = save(tmp_path, HAND, "e") / "pools.jsonl"
    whole = path.read_bytes()
    assert finished_ids(tmp_path / "absent.jsonl") == set()
    for cut in (1, 30, len(whole.split(b"\n")[2])):
        path.write_bytes(whole[:-cut])
        with pytest.raises(PoolError, match=r"pools\.jsonl:3: truncated last line"):
            read_pools(path)
        assert finished_ids(path) == {"p0", "p1"}
        with Lines(path) as file:
            assert read_pools(path) == HAND[:2]
            write_pool(file, HAND[2])
        assert path.read_bytes() == whole and finished_ids(path) == {"p0", "p1", "p2"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("tokens"), r"missing keys \['tokens'\]"),
        (lambda r: r.update(extra=1), r"unknown keys \['extra'\]"),
        (lambda r: r["labels"].pop(), "one length"),
        (lambda r: r["labels"].__setitem__(0, "great"), r"unknown label \['great'\]"),
        (lambda r: r["scores"].__setitem__(0, float("nan")), r"probabilities in \[0, 1\]"),
        (lambda r: r["scores"].__setitem__(0, -3.0), r"probabilities in \[0, 1\]"),
        (lambda r: r["problem"].pop("id"), r"problem: missing keys \['id'\]"),
        (lambda r: r["problem"].update(id="p0"), "problem 'p0' was already on line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, change: Any, message: str) -> None:
    path = save(tmp_path, HAND, "e") / "pools.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[1])
    change(record)
    path.write_text("\n".join([lines[0], json.dumps(record), lines[2]]) + "\n")
    for read in (read_pools, finished_ids):
        with pytest.raises(PoolError, match=r"pools\.jsonl:2: .*" + message):
            read(path)
    path.write_text("\n".join([lines[0], "{half a line", lines[2]]) + "\n")
    with pytest.raises(PoolError, match=r"pools\.jsonl:2: not JSON"):
        finished_ids(path)  # a crash spoils only the last line, so a bad one in the middle is not cut
    assert path.read_text().count("\n") == 3


def test_a_header_with_other_keys_is_refused(tmp_path: Path) -> None:
    save(tmp_path, HAND, "e")
    values = json.loads((tmp_path / "eval.json").read_text())
    (tmp_path / "eval.json").write_text(json.dumps({**values, "temprature": 1.0}))
    with pytest.raises(PoolError, match=r"eval\.json: missing keys \[\], unknown keys \['temprature'\]"):
        read_header(tmp_path)
    with pytest.raises(PoolError, match="not found"):
        read_header(tmp_path / "nowhere")


def test_a_report_needs_no_torch() -> None:
    heavy = "('torch', 'transformers', 'matplotlib')"
    code = f"import sys, twofold.evals.report; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
