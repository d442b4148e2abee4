"""The papers' evaluations by one command: what runs, what is saved, and what stands beside the papers' numbers."""

from __future__ import annotations

import io
import json
import math
from bisect import bisect_left
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from random_models import random_model
from rich.console import Console
from test_known import ROWS

from twofold import cli, run
from twofold import suite as module
from twofold.compute.judge import Judging
from twofold.compute.probe import Prover
from twofold.engines.native import NativeEngine
from twofold.evals.beside import _mean, beside, print_suite
from twofold.evals.critic import Critic, check_cases, predict
from twofold.evals.pools import POOLS, Header, read_pools
from twofold.evals.probes import Probing
from twofold.evals.records import Evaluation
from twofold.evals.report import summarise
from twofold.evals.run import Eval
from twofold.evals.suites import MRT, RLV, SUITES, TANGO, Part, Row, Suite, Table
from twofold.evals.texts import Texts
from twofold.maths.processbench import ProcessScore
from twofold.maths.stats import Estimate
from twofold.maths.votes import ks
from twofold.suite import run_suite
from twofold.tasks.known import NAMED
from twofold.tasks.processbench import as_case
from twofold.types import Context

MATHS = [{"problem": f"{i} + {i}?", "answer": str(2 * i), "unique_id": f"u{i}"} for i in range(3)]
CASES = [
    {"id": f"c{i}", "generator": "g", "problem": "1+1+1?", "steps": ["1+1=2", "2+1=3"], "final_answer_correct": True, "label": -i}
    for i in range(2)
]  # fmt: skip
SMALL = Suite(
    name="small",
    paper="A paper",
    parts=(
        Part("math500", 500, Eval(n=4, max_tokens=8)),
        Part("cruxeval", 800, Eval(n=1, temperature=0.0, max_tokens=8, judge=Judging("none"))),
        Part("processbench_gsm8k", 400, Critic(max_tokens=8)),
    ),
    tables=(
        Table(
            "Votes", ("with V", "without"), "Table 1",
            (Row("math500", "weighted@64", (79.0, None)), Row("math500", "weighted@2", (60.0, 50.0), cap=4)),
        ),
        Table(
            "Greedy", ("a model",), "Table 2", (Row("math500", "pass@1", (40.0,)), Row("cruxeval", "pass@1", (50.0,))), (45.0,)
        ),
        Table("Critic", ("a model",), "Table 3", (Row("processbench_gsm8k", "F1", (53.1,)),)),
    ),
    notes=("Something is another way.",),
)  # fmt: skip


def files(folder: Path, **sets: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def some(name: str) -> list[dict[str, Any]]:
    """Rows of a set of any suite, in its published columns."""
    if name.startswith("processbench_"):
        return CASES
    if name in ROWS:
        return [ROWS[name] | {"id": f"{i}"} for i in range(2)]
    if name == "gpqa_physics":
        wrong = {f"Incorrect Answer {k}": f"{k}" for k in (1, 2, 3)}
        return [{"Question": f"{i}?", "Correct Answer": "r", "High-level domain": "Physics"} | wrong for i in range(2)]
    return MATHS


def evaluation(name: str, how: Eval) -> Evaluation:
    """An evaluation of two problems whose every number is the widest that a cell may have."""
    wide = Estimate(1.0, 0.951, 1.0)
    accuracy = {f"{rule}@{k}": wide for rule in ("pass", "maj", "best", "weighted") for k in ks(how.n)}
    header = Header(name, "m", name, "test", how.n, how.temperature, 1.0, how.max_tokens, 0, "e", {}, None, 0.0)
    none: dict[str, Any] = dict.fromkeys(["strategies", "grid", "optimal", "thinking", "verifier", "attacks"])
    cost = {"at_token_limit": 0.0, "tokens_per_sample": 1.0, "judge_tokens_per_sample": 0.0, "seconds_per_sample": 0.1}
    return Evaluation(
        label="m", directory=name, header=header, rule="weighted", problems=100, samples=how.n, ks=ks(how.n), accuracy=accuracy,
        labels={}, levels=[], seconds=1.0, texts=Texts({}, {}, saved=False), **cost, **none,
    )  # fmt: skip


def test_a_suite_runs_saves_resumes_and_stands_beside_the_paper(
    tiny_qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = run.load(tiny_qwen), tmp_path / "out"
    data = files(tmp_path / "data", math500=MATHS, cruxeval=some("cruxeval"), processbench_gsm8k=CASES)
    seen: list[tuple[str, int, int]] = []
    page = run_suite(model, SMALL, ["max_tokens=6"], out=out, data=data, progress=lambda *told: seen.append(told))
    votes, greedy, critic = page.sections
    assert [line.paper for line in votes.lines] == [(0.79, None), (0.6, 0.5)]
    assert [(line.name, line.metric) for line in votes.lines[1:]] == [("math500, 4 tokens", "weighted@2")]
    saved = summarise([out / "math500"], caps=[4]).tasks[0].evaluations[0]
    assert saved.grid is not None
    assert votes.lines[0].measured == saved.accuracy["weighted@4"] and votes.lines[0].samples == 4  # not 64
    assert votes.lines[1].measured == saved.grid.cells[1].accuracy and votes.lines[1].samples is None
    pools = read_pools(out / "math500" / POOLS)
    correct = [sum(grade.correct for grade in pool.grades) / 4 for pool in pools]
    assert greedy.lines[0].measured is not None and math.isclose(greedy.lines[0].measured.mean, sum(correct) / 3)
    assert [(line.problems, line.size) for line in greedy.lines] == [(3, 500), (2, 800), (None, None)]
    assert greedy.lines[2].paper == (0.45,)
    assert page.changed == ["max_tokens=6 in all sets"]
    assert (critic.lines[0].name, critic.lines[0].problems) == ("gsm8k", 2)
    assert [json.loads(line)["label"] for line in (out / "processbench_gsm8k/predictions.jsonl").open()] == [0, -1]
    assert ("math500", 0, 3) in seen and seen[-1] == ("processbench_gsm8k", 2, 2)
    html = (out / "suite.html").read_text()
    assert '<a href="math500/report.html">' in html and "79.0" in html and "max_tokens=6" in html
    assert (out / "math500" / "report.html").is_file() and (out / "cruxeval" / "report.html").is_file()
    assert json.loads((out / "suite.json").read_text())["sections"][0]["lines"][0]["paper"] == [0.79, None]

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("sampled again")

    monkeypatch.setattr(NativeEngine, "generate", never)
    assert repr(run_suite(model, SMALL, ["max_tokens=6"], out=out, data=data)) == repr(page)  # by repr: NaN is not NaN
    with pytest.raises(ValueError, match="another critic"):
        run_suite(model, SMALL, ["max_tokens=5"], out=out, data=data, sets=["processbench_gsm8k"])


def test_an_average_adds_the_variances_of_its_sets() -> None:
    mean = _mean([Estimate(0.2, 0.14, 0.23), Estimate(0.6, 0.52, 0.64)])
    assert (mean.mean, mean.low, mean.high) == pytest.approx((0.4, 0.4 - 0.05, 0.4 + 0.025))


def test_regret_at_a_budget_and_beyond_the_limit(tmp_path: Path) -> None:
    probe = Probing(thoughts=1, answers=2, waits=1, each=4, prover=Prover(hurry="", answer="\n", tokens=4))
    suite = replace(
        SMALL,
        parts=(Part("aime25", 30, Eval(n=2, max_tokens=16, judge=Judging("none"), probe=probe)),),
        tables=(Table("Regret", ("m",), "", tuple(Row("aime25", "regret", (90.0,), cap) for cap in (8, 16, 20, 24))),),
    )
    model = run.load(random_model("Qwen2", tmp_path / "model"))
    page = run_suite(model, suite, out=tmp_path / "out", data=files(tmp_path / "data", aime25=MATHS))
    found = summarise([tmp_path / "out" / "aime25"]).tasks[0].evaluations[0].thinking
    assert found is not None and found.waits[1].budget == 20
    at = dict(zip(found.budgets, found.regret, strict=True))
    measured = [line.measured for line in page.sections[0].lines]
    assert measured == [at[8], at[16], found.waits[1].regret, None]  # 24 tokens were not reached
    assert page.sections[0].lines[0].name == "aime25, 8 tokens"


def test_what_cannot_be_loaded_is_listed_before_anything_is_sampled(tiny_model: Path, tmp_path: Path) -> None:
    model, out = run.load(tiny_model), tmp_path / "out"
    data = files(tmp_path / "data", math500=MATHS, processbench_gsm8k=[{"id": "c0"}])
    with pytest.raises(ValueError) as caught:  # offline, so the hub cannot help
        run_suite(model, SMALL, out=out, data=data)
    said = str(caught.value)
    assert said.startswith("2 of 3 sets of the suite small cannot be loaded; nothing was sampled:\n  cruxeval: ")
    assert "processbench_gsm8k.jsonl:1: 'steps' must be a list" in said
    assert "SET.jsonl" in said and "--data" in said and "--sets math500." in said
    with pytest.raises(ValueError, match="no set mathh500; it has math500, cruxeval, processbench_gsm8k"):
        run_suite(model, SMALL, out=out, data=data, sets=["mathh500"])
    with pytest.raises(ValueError, match="at least 2 of each set, got problems=1"):
        run_suite(model, SMALL, ["problems=1"], out=out, data=data, sets=["math500"])
    with pytest.raises(ValueError, match=r"(?s)math500, read by .* context is 1024 tokens .* 1024 generated .*--sets"):
        run_suite(model, RLV, out=out, data=data, sets=["math500"])
    files(data, aime25=MATHS, math500=MATHS[:1], processbench_gsm8k=CASES[:1])
    with pytest.raises(ValueError, match=r"(?s)2 of 2 sets .*math500: .* at least 2 .*, got 1\n.*gsm8k: .*, got 1\n"):
        run_suite(model, SMALL, out=out, data=data, sets=["math500", "processbench_gsm8k"])
    with pytest.raises(ValueError, match=r"aime25: end '</think>' must be a single token; .*--probe.thoughts 0"):
        run_suite(model, MRT, ["max_tokens=8"], out=out, data=data, sets=["aime25"])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        run_suite(model, SMALL, out=out, data=tmp_path / "nowhere")
    assert not out.exists()


def test_the_room_of_the_critic_and_of_the_verifier_is_checked_before_anything_is_sampled(
    tiny_model: Path, tmp_path: Path
) -> None:
    model, verifier, out = run.load(tiny_model), replace(run.load(tiny_model), name="judge"), tmp_path / "out"
    data = files(tmp_path / "data", math500=MATHS, cruxeval=some("cruxeval"), processbench_gsm8k=CASES)
    with pytest.raises(
        ValueError, match=r"not fit; nothing was sampled:\n  processbench_gsm8k, read by .* 1024 tokens"
    ):
        run_suite(model, TANGO, out=out, data=data, sets=["processbench_gsm8k"])
    verifier.engine.model.config.max_position_embeddings = 48
    with pytest.raises(ValueError) as caught:
        run_suite(model, SMALL, ["max_tokens=32"], out=out, data=data, verifier=verifier)
    said = [line.partition(": ")[0].strip() for line in str(caught.value).splitlines()[1:-1]]
    assert said == [f"{name}, read by judge" for name in ("math500", "cruxeval", "processbench_gsm8k")]
    with pytest.raises(ValueError, match="read by") as caught:
        run_suite(verifier, SMALL, ["max_tokens=60"], out=out, data=data, sets=["math500"])
    assert str(caught.value).count("read by") == 1
    assert not out.exists()


@pytest.mark.parametrize("how", ["verifier", "prompted", "p_yes"])
def test_the_room_that_a_critic_needs_is_what_its_engine_takes(tiny_model: Path, how: Any) -> None:
    model, critic = run.load(tiny_model), Critic(how=how, max_tokens=4)
    cases = [as_case(CASES[0]), as_case(CASES[1] | {"steps": ["1+1=2"] * 4})]

    def fits(tokens: int) -> bool:
        try:
            check_cases(Context(tokens, "x"), model.chat, cases, critic)
        except ValueError:
            return False
        return True

    least = bisect_left(range(1024), True, key=fits)
    model.engine.model.config.max_position_embeddings = least
    assert len(predict(model.engine, model.chat, cases, critic)) == 2
    model.engine.model.config.max_position_embeddings = least - 1
    with pytest.raises(ValueError, match="context is"):
        predict(model.engine, model.chat, cases, critic)


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_a_suite_is_consistent_and_its_sets_are_known(suite: Suite) -> None:
    parts = {part.name: part for part in suite.parts}
    assert all(name in NAMED for name in parts if not name.startswith("processbench_"))
    assert set(parts) == {row.part for table in suite.tables for row in table.rows}
    for table in suite.tables:
        for row in table.rows:
            assert len(row.paper) == len(table.columns)
            assert all(x is None or 1 < x < 100 for x in row.paper)
            rule, _, k = row.metric.partition("@")
            how = parts[row.part].how
            assert isinstance(how, Critic) == (row.metric == "F1")
            if isinstance(how, Eval):
                assert rule == "regret" or int(k) <= how.n
        if table.average:  # as printed, so each column is copied as it stands
            for i, mean in enumerate(table.average):
                column = [row.paper[i] for row in table.rows]
                assert mean == pytest.approx(sum(x or 0 for x in column) / len(column), abs=0.06), (table.title, i)


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_the_sets_of_a_suite_load_from_files_and_its_page_fits_a_terminal(suite: Suite, tmp_path: Path) -> None:
    data = files(tmp_path / "data", **{part.name: some(part.name) for part in suite.parts})
    jobs = module._load(suite, suite.parts, ["n=4", "temperature=0.5"], data)
    assert [job.name for job in jobs] == [part.name for part in suite.parts]
    assert all(job.how.n == 4 for job in jobs if isinstance(job, module.Solving))
    found = {}
    for job in jobs:  # no sampling: the widest numbers that a cell may have
        if isinstance(job, module.Solving):
            found[job.name] = evaluation(job.name, job.how)
        else:
            found[job.name] = ProcessScore(0.553, 0.501, 0.604, 0.5, 0.5, 0.0, 200)
    console = Console(file=io.StringIO(), width=80)
    print_suite(beside(suite, "m", {job.name: job.how for job in jobs}, found), console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in said and all(len(line) <= 80 for line in said.splitlines())
    assert "n=4, temperature=0.5" in said


def test_the_command_line(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = files(tmp_path / "data", aime24=MATHS), tmp_path / "out"
    words = ["eval", str(tiny_model), "--suite", "rlv", "--data", str(data), "--out", str(out)]
    small = ["--n", "2", "--max_tokens", "6", "--problems", "2"]
    assert cli.main([*words, "--sets", "aime24", *small, "--plan", "majority-2"]) == 0
    said = capsys.readouterr().out
    assert "aime24, 1024 tokens" in said and "13.0" in said and f"page: {out / 'suite.html'}" in said.replace("\n", "")
    assert "majority-2" in (out / "aime24" / "report.html").read_text()
    for wrong, message in (
        ([*words, "--reward", "mine.py:f"], "leave out --reward"),
        (["eval", str(tiny_model), "--sets", "aime24"], "belong to --suite"),
        ([*words, "--nn", "2"], "unknown option --nn"),
        ([*words, "--sets", ","], "an empty name in --sets ,: name sets as in --sets math500,math2"),
        ([*words, "--sets", ""], "an empty name in --sets"),
        ([*words, "--task", "countdown"], "argument --task: not allowed with argument --suite"),
    ):
        assert cli.main(wrong) == 2
        assert message in capsys.readouterr().err


def test_what_a_model_was_told_is_no_part_of_a_suite() -> None:
    how = next(part.how for part in RLV.parts if part.name == "math500")
    assert isinstance(how, Eval)
    found = evaluation("math500", how)
    assert beside(RLV, "m", {"math500": how}, {"math500": found}).changed == []
    told = replace(found, header=replace(found.header, system="Be brief.", enable_thinking=False))
    page = beside(RLV, "m", {"math500": how}, {"math500": told})
    assert page.changed == ["system='Be brief.', enable_thinking=False in all sets"]


def test_the_verifier_of_a_suite_is_prompted_as_the_command_line_says(
    tiny_qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, generate = files(tmp_path / "data", processbench_gsm8k=CASES), NativeEngine.generate
    prompts: list[list[int]] = []

    def watched(engine: NativeEngine, asked: Any, *rest: Any, **more: Any) -> Any:
        prompts.extend(asked)
        return generate(engine, asked, *rest, **more)

    monkeypatch.setattr(NativeEngine, "generate", watched)
    words = ["--suite", "tango", "--sets", "processbench_gsm8k", "--data", str(data), "--out", str(tmp_path / "out")]
    more = ["--verifier", str(tiny_qwen), "--system", "Be strict.", "--max_tokens", "4"]
    assert cli.main(["eval", str(tiny_qwen), *words, *more]) == 0
    chat = run.load(tiny_qwen).chat
    assert len(prompts) == 2 and all("Be strict." in chat.decode(prompt) for prompt in prompts)


def test_what_the_papers_are_sampled_with() -> None:
    """The settings that a page calls the suite's own."""
    how = {suite.name: {part.name: part.how for part in suite.parts} for suite in (RLV, TANGO, MRT)}
    rlv, tango, mrt = how["rlv"]["math500"], how["tango"]["cruxeval"], how["mrt"]["aime25"]
    assert isinstance(rlv, Eval) and isinstance(tango, Eval) and isinstance(mrt, Eval)
    assert (rlv.n, rlv.temperature, rlv.max_tokens, rlv.judge.name) == (64, 0.7, 1024, "p_yes")
    assert (tango.n, tango.temperature, tango.max_tokens, tango.judge.name) == (1, 0.0, 2048, "none")
    assert (mrt.n, mrt.temperature, mrt.top_p, mrt.max_tokens) == (20, 0.6, 0.95, 16384)
    assert (mrt.probe.thoughts, mrt.probe.answers, mrt.probe.waits, mrt.probe.each) == (16, 8, 8, 2048)
