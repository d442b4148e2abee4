"""The texts of an evaluation that a report shows: which are kept, how many there are, and that they stay texts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from test_report import HAND, make_pool, save

from twofold import run
from twofold.durable import Lines
from twofold.evals.pools import read_header, read_pools
from twofold.evals.report import report, summarise
from twofold.evals.run import Eval
from twofold.evals.texts import CHARACTERS, SHOWN, kind_of, write_texts
from twofold.tasks.procedural import Sums
from twofold.types import Completion, Pool, Rollout


def rollouts(pool: Pool, text: str = "text") -> list[Rollout]:
    """Rollouts whose numbers are a pool's and whose texts are ``text 0``, ``text 1``, ..."""
    of = zip(pool.answers, pool.grades, strict=True)
    return [
        Rollout([], Completion([1], [0.0], [True], "stop"), f"{text} {i}", a, pool.problem, g)
        for i, (a, g) in enumerate(of)
    ]


def saved(directory: Path, pools: Sequence[Pool], name: str = "e", text: str = "text") -> Path:
    save(directory, pools, name)
    with Lines(directory / "texts.jsonl") as file:
        for pool in pools:
            write_texts(file, rollouts(pool, text), pool.scores)
    return directory


def test_kinds_are_counted_over_all_samples_and_of_each_the_worst_is_kept(tmp_path: Path) -> None:
    pools = [
        # wrong: 0.6, 0.9, 0.5 are believed, 0.4 is not; right: 0.2 and 0.1 are doubted, 0.5 is not; a timeout is neither
        make_pool(0, ["7", "8", "7", "7", "42", "42", "42", None, "?"], [0.6, 0.9, 0.5, 0.4, 0.2, 0.1, 0.5, 0.3, 0.9]),
        make_pool(
            1, ["7", "42", None, None, "42", "42", "42", "42", "42"], [0.95, 0.3, 0.1, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9]
        ),
    ]
    texts = summarise([saved(tmp_path, pools)]).tasks[0].evaluations[0].texts
    assert texts.counts == {"believed": 4, "doubted": 3, "no_answer": 3} and texts.saved
    shown = {kind: [(x.problem, x.sample, x.text, x.score) for x in rows] for kind, rows in texts.shown.items()}
    assert shown == {  # those first whose verdict is the furthest off
        "believed": [("p1", 0, "text 0", 0.95), ("p0", 1, "text 1", 0.9)],
        "doubted": [("p0", 5, "text 5", 0.1), ("p1", 1, "text 1", 0.3)],
        "no_answer": [("p1", 3, "text 3", 0.8), ("p0", 7, "text 7", 0.3)],
    }


def test_an_old_evaluation_whose_texts_are_an_empty_file_has_saved_none(tmp_path: Path) -> None:
    """An older version wrote the pools without texts, and a new ``twofold eval`` that finds nothing to do makes the file."""
    (tmp_path / "texts.jsonl").touch()
    for answers, found in ((["7", "42"], False), (["42", "42"], True)):
        save(tmp_path, [make_pool(i, answers, [0.9, 0.9]) for i in range(2)], "e")
        assert summarise([tmp_path]).tasks[0].evaluations[0].texts.saved is found


def test_the_report_shows_a_bounded_number_and_says_of_how_many(tmp_path: Path) -> None:
    pools = [make_pool(i, ["7", "7", "42", None], [0.9, 0.8, 0.9, 0.1]) for i in range(30)]
    evil = "</pre><script>alert(1)</script><input id=t1-1-believed>\u202e" + "long " * 2000
    report([saved(tmp_path / "e", pools, text=evil)], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "60 wrong, but believed; 0 right, but doubted; 30 no answer" in " ".join(page.split())
    assert f"wrong, but believed ({SHOWN} of 60 shown)" in page and f"no answer ({SHOWN} of 30 shown)" in page
    assert "right, but doubted (0 of 0 shown)" in page
    assert page.count('class="sample"') == 2 * SHOWN and page.count("characters left out") == 2 * SHOWN
    texts = re.findall(r"<pre>(.*?)</pre>", page.partition("Samples to read")[2], re.DOTALL)
    assert all(len(text) < 2 * CHARACTERS for text in texts[: 2 * SHOWN])
    assert "<script" not in page and "<input id=" not in page and "\u202e" not in page and r"\u202e" in page
    ids = re.findall(r'<input type="radio" name="t1-1" id="([^"]+)"', page)
    assert ids == ["t1-1-believed", "t1-1-doubted", "t1-1-no_answer"] and all(f'<label for="{i}">' in page for i in ids)


def test_an_evaluation_without_texts_is_counted_and_says_so(tmp_path: Path) -> None:
    report([save(tmp_path / "old", HAND, "old")], tmp_path)
    page = " ".join((tmp_path / "report.html").read_text().split())
    # p1's 0.6 and p2's 0.8; three of p2 at 0.1; three None
    assert "2 wrong, but believed; 3 right, but doubted; 3 no answer" in page and "saved no texts" in page
    assert "Load of the machine" not in page  # it is from before the load was recorded
    figure = re.search(r'<svg[^>]*aria-label="Accuracy against number of samples".*?</svg>', page)
    assert figure and all(f">{name}<" in figure[0] for name in ("oracle", "majority", "best-of-n", "weighted"))


@pytest.mark.parametrize(
    ("judge", "name"), [("p_yes", "P(Yes)"), ("normalised of other", "P(Yes)"), ("stated", "score")]
)
def test_a_score_is_called_what_its_judge_gives(judge: str, name: str, tmp_path: Path) -> None:
    saved(tmp_path, HAND)
    save(tmp_path, HAND, "e", judge=judge)
    report([tmp_path])
    page = (tmp_path / "report.html").read_text()
    assert f"<span>{name} 0.80</span>" in page and f"mean {name}<br>" in page and f">{name}</text>" in page
    assert ("P(Yes)" in page) == (name == "P(Yes)")


def test_without_a_judge_there_is_only_the_missing_answer(tmp_path: Path) -> None:
    pools = [make_pool(i, ["7", "42", None], [None] * 3) for i in range(3)]
    texts = summarise([saved(tmp_path, pools)]).tasks[0].evaluations[0].texts
    assert texts.counts == {"believed": 0, "doubted": 0, "no_answer": 3}


def test_a_busy_machine_is_named_beside_its_seconds(tmp_path: Path) -> None:
    quiet, busy = (save(tmp_path / name, HAND, name, load=load) for name, load in (("quiet", 0.9), ("busy", 3.0)))
    pages = {}
    for runs in ([quiet], [quiet, busy]):
        report(runs, tmp_path / "out")
        pages[len(pages)] = " ".join((tmp_path / "out" / "report.html").read_text().split())
    assert "quiet 0.90. No program had to wait" in pages[0]
    assert "quiet 0.90, busy 3.00. <b>Above 1, programs wait for one another:</b>" in pages[1]


def test_a_real_evaluation_keeps_texts_that_earn_the_grades_of_its_pools(tmp_path: Path) -> None:
    model, task = run.load("tiny"), Sums()
    settings = Eval(problems=4, n=4, max_tokens=40, batch=2)
    out = run.evaluate(model, "sums", settings, out=tmp_path)
    pools = {pool.problem.id: pool for pool in read_pools(out / "pools.jsonl")}
    rows = [json.loads(line) for line in (out / "texts.jsonl").read_text().splitlines()]
    wanted = {
        (p.problem.id, kind)
        for p in pools.values()
        for g, s in zip(p.grades, p.scores, strict=True)
        if (kind := kind_of(g.label, s))
    }
    found = []
    for row in rows:
        pool, i = pools[row["problem"]], row["sample"]
        answer, grade = task.grade(pool.problem, row["text"])
        assert (answer, grade.label) == (pool.answers[i], pool.grades[i].label)
        found.append((row["problem"], kind_of(grade.label, pool.scores[i])))
    assert wanted and sorted(found) == sorted(wanted)
    load = read_header(out).load
    assert load is not None and load >= 0
    before = (out / "texts.jsonl").read_bytes()
    run.evaluate(
        model, "sums", settings, out=tmp_path
    )  # all is there: another load does not make it another evaluation
    assert (out / "texts.jsonl").read_bytes() == before
    with pytest.raises(ValueError, match="holds another evaluation"):
        run.evaluate(model, "sums", replace(settings, seed=1), out=tmp_path)
