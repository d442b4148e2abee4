"""Evaluations that probe thoughts: the prompts, the files, and the numbers and figures of a report, by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from test_mrt import ASKED, P0, P1, P2, PLAIN, SHIPPED, SHORT, TWO, Scripted, Words
from test_report import make_pool, printed, save

import twofold
from twofold import run
from twofold.compute.judge import Judging
from twofold.compute.rollout import rollouts, split
from twofold.compute.think import Forcing, continue_thoughts, forcing
from twofold.evals.pools import Header, PoolError, read_header, read_lines
from twofold.evals.probes import Prefix, Probing, Thought, probed
from twofold.evals.report import report, summarise
from twofold.evals.thinking import Thinking, read_curves
from twofold.maths.regret import maj_at_prefix, stop_regret
from twofold.tasks.procedural import Sums
from twofold.text.chat import Chat
from twofold.types import Completion, Sampling

Q = Words().problem("train", 0)


@pytest.fixture(scope="module")
def chat() -> Chat:
    return twofold.load("tiny").chat


# ---------------------------------------------------------------- what is asked and saved


def test_probes_of_a_thought_by_hand(chat):
    script = [
        {P0: [TWO]},
        {ASKED[P0]: ["no", "no"], ASKED[P1]: ["yes", "no"], ASKED[P2]: ["yes", "late"]},
    ]
    engine = Scripted(chat, script)
    config = Probing(thoughts=1, answers=2, prover=PLAIN, episodes=SHORT)
    (thought,) = probed(engine, chat, Words(), [Q], config, Sampling(max_tokens=30, stop=chat.stop, seed=3))
    assert (thought.label, thought.tokens) == (
        "correct",
        len(chat.encode(f"<think>\n{TWO}", tags=True)) + len(chat.prompt("Q0")) + 1,
    )
    assert [p.tokens for p in thought.prefixes] == [
        len(chat.prompt("Q0")) + len(chat.encode(ASKED[p].removeprefix("Q0"), tags=True)) for p in (P0, P1, P2)
    ]
    assert [p.value for p in thought.prefixes] == [0, 0.5, 1]  # an answer that was not graded in time is not wrong
    assert thought.prefixes[2].labels == ["correct", "timeout"]
    assert len(set(thought.prefixes[0].answers)) == 1 and len(set(thought.prefixes[1].answers)) == 2
    assert thought.prefixes[0].lengths == [len(chat.encode("no")) + 1] * 2
    assert thought.prefixes[0].logprobs == [-0.5, -0.5]
    assert engine.calls[0][1].seed != engine.calls[1][1].seed


def test_a_thought_at_budgets_by_hand(chat):
    """J is 0, 1/2, 1 after 0, 1, 2 episodes, and 1/4 where a budget ends in the second."""
    size = [len(chat.encode(t, tags=True)) for t in ("a\n\n", "a\n\nWait b\n")]
    inside = size[0] + 1
    cut = f"Q0<think>\n{chat.decode(chat.encode(TWO, tags=True)[:inside])}\n</think>\n"
    answers = {ASKED[P0]: ["no"] * 4, ASKED[P1]: ["no", "no", "yes", "yes"], ASKED[P2]: ["yes"] * 4}
    engine = Scripted(chat, [{P0: [TWO]}, answers | {cut: ["no", "no", "no", "yes"]}])
    config = Probing(answers=4, budgets=(inside, size[0], 30), prover=PLAIN, episodes=SHORT)
    (thought,) = probed(engine, chat, Words(), [Q], config, Sampling(max_tokens=30, stop=chat.stop, seed=3))
    assert [(p.end, p.value, p.within) for p in thought.prefixes] == [
        (0, 0, False), (size[0], 0.5, False), (inside, 0.25, True), (size[1], 1, False)
    ]  # fmt: skip
    assert [p.value for p in thought.own] == [0, 0.5, 1]  # a budget is not an episode
    assert thought.at(inside).value == 0.25 and thought.at(30).value == 1  # it ended by itself
    # a thought cut within a line costs one more line break
    closing = [p.tokens - p.end - thought.prompt for p in thought.prefixes]
    broken = len(chat.encode("\n</think>\n", tags=True)) - len(chat.encode("</think>\n", tags=True))
    assert [c - closing[0] for c in closing] == [0, 0, broken, 0] and broken > 0


def test_a_budget_is_that_of_budget_forcing():
    """With greedy sampling, a thought stopped at a budget answers like one that may not be longer."""
    model, task = twofold.load("tiny"), Sums(level=1, choice=1.0)
    problems, budgets = [task.problem("train", i) for i in range(8)], (30, 45, 120)
    config = Probing(answers=1, budgets=budgets, prover=SHIPPED, episodes=SHORT)
    greedy = Sampling(temperature=0, max_tokens=120, stop=model.chat.stop)
    thoughts = probed(model.engine, model.chat, task, problems, config, greedy)
    questions = [p.question for p in problems]
    for budget in budgets:
        plan = Forcing(opening="<think>\n", end="</think>", answer_tokens=8)
        made = forcing(model.engine, model.chat, questions, 1, replace(greedy, max_tokens=budget), plan)
        rewards = [task.grade(p, m.candidates[0].text)[1].reward for p, m in zip(problems, made, strict=True)]
        assert [t.at(budget).value for t in thoughts] == rewards
    assert len({t.at(30).value for t in thoughts}) == 2 and sum(t.prefixes[-1].end > 45 for t in thoughts) >= 2


def test_a_thought_is_made_to_go_on(chat):
    """The thought continues twice: once to an end of its own, once until it is cut after its last whole paragraph."""
    on = "Q0<think>\na\nWait"
    script = [
        {P0: ["a\n</think>\nno"]},
        {ASKED[P0]: ["no"], "Q0<think>\na\n</think>\n": ["no"]},
        {on: [" b</think>"]},
        {f"{on} b\n</think>\n": ["yes"]},
        {f"{on} b\nBut wait": [" c\n\nd..."]},
        {f"{on} b\nBut wait c\n\n</think>\n": ["no"]},
    ]
    engine, end = Closing(chat, script), chat.encode("</think>", tags=True)
    config = Probing(thoughts=1, answers=1, waits=2, each=9, prover=PLAIN, episodes=SHORT)
    (thought,) = probed(engine, chat, Words(), [Q], config, Sampling(max_tokens=30, stop=chat.stop))
    assert [(p.waits, p.value) for p in thought.prefixes] == [(0, 0), (0, 0), (1, 1), (2, 0)]
    assert engine.calls[2][1].max_tokens == engine.calls[4][1].max_tokens == 9
    assert set(engine.calls[2][1].stop) == {*end, *chat.stop}
    assert [p.waits for p in thought.own] == [0, 0]


class Closing(Scripted):
    """An engine whose texts that end with ``</think>`` stop at this token."""

    def completion(self, text: str) -> Completion:
        c = super().completion(text)
        return replace(split(c, len(c.tokens) - 1)[0], finish="stop") if text.endswith("</think>") else c


def test_words_that_lead_nowhere_are_taken_back(chat):
    engine = Scripted(chat, [{P0: ["a\n</think>\nno"]}, {"Q0<think>\na\nWait": [" b..."]}])
    (group,) = rollouts(engine, chat, Words(), [Q], Sampling(stop=chat.stop), PLAIN.opening)
    thought = replace(group[0], completion=split(group[0].completion, 2)[0])
    assert chat.decode(thought.completion.tokens) == "a\n"
    (again,) = continue_thoughts(engine, chat, [thought], "Wait", Sampling(max_tokens=9, stop=chat.stop))
    assert again.completion == thought.completion


SMALL = run.Eval(
    problems=2, n=2, max_tokens=60, batch=1, judge=Judging("none"),
    probe=Probing(thoughts=2, answers=8, waits=1, each=20, prover=SHIPPED, episodes=SHORT),
)  # fmt: skip


def test_an_evaluation_with_probes_is_saved_resumed_and_drawn(tmp_path):
    model = twofold.load("tiny")
    cut = run.evaluate(model, "sums:choice=1", replace(SMALL, problems=1), out=tmp_path / "e", name="tiny")
    before = (cut / "probes.jsonl").read_text()
    run.evaluate(model, "sums:choice=1", SMALL, out=tmp_path / "e", name="tiny")
    assert (cut / "probes.jsonl").read_text().startswith(before)  # nothing was done twice
    straight = run.evaluate(model, "sums:choice=1", SMALL, out=tmp_path / "straight", name="again")
    rows, other = (
        [p["answers"] for row in read_lines(d / "probes.jsonl") for t in row["thoughts"] for p in t["prefixes"]]
        for d in (cut, straight)
    )
    assert rows == other and len(read_lines(cut / "probes.jsonl")) == 2
    with pytest.raises(ValueError, match="probes of other settings"):
        run.evaluate(
            model, "sums:choice=1", replace(SMALL, probe=replace(SMALL.probe, answers=2)), out=cut, name="tiny"
        )
    result = report([cut, straight], tmp_path / "out")
    found = result.tasks[0].evaluations[0].thinking
    assert found.thoughts == 4 and len(found.waits) == 2 and found.problems == 2
    page = (tmp_path / "out" / "report.html").read_text()
    for title in ("Accuracy and regret against the token budget", "Votes at each prefix", "Progress of episodes"):
        assert f'aria-label="{title}"' in page
    assert page.count('aria-label="Votes at each prefix"') == 2 and "thoughts stopped by force" in printed(result)
    (saved,) = result.tasks[0].tokens_saved
    assert saved.ratio == 1.0  # the same thoughts


# ---------------------------------------------------------------- numbers


def prefix(tokens: int, right: int, of: int = 8, waits: int = 0) -> Prefix:
    """Return a prefix with ``right`` right answers of ``of``, the others all the same wrong one.

    An answer has 10 tokens, and the prefix 10 fewer than ``tokens``.
    """
    labels = ["correct"] * right + ["wrong"] * (of - right)
    answers = ["7" if label == "correct" else "8" for label in labels]
    return Prefix(tokens, tokens - 10, waits, answers, labels, [0.0] * of, [10] * of, within=False)


SPEC = Thought([prefix(1000, 0), prefix(3000, 4), prefix(6000, 8)], "correct", 6000, 0)
"""A thought with the points of the regret test: (1000, 0), (3000, 1/2), (6000, 1)."""
FLAT = Thought([prefix(1000, 2), prefix(2000, 2)], "wrong", 2000, 0)


def write(
    directory: Path, thoughts: dict[str, list[Thought]], name: str = "e", limit: int = 4000, waits: int = 0
) -> Path:
    save(directory, [make_pool(i, ["42", "7"], [None] * 2) for i in range(2)], name, max_tokens=limit)
    (directory / "probes.json").write_text(json.dumps({"waits": waits, "each": 64}))
    with (directory / "probes.jsonl").open("w") as file:
        for problem, mine in thoughts.items():
            file.write(json.dumps({"id": problem, "thoughts": [asdict(t) for t in mine], "seconds": 1.0}) + "\n")
    return directory


@pytest.fixture(scope="module")
def hand(tmp_path_factory: pytest.TempPathFactory) -> Thinking:
    directory = write(tmp_path_factory.mktemp("hand"), {"p0": [SPEC, SPEC], "p1": [SPEC, FLAT]})
    return summarise([directory]).tasks[0].evaluations[0].thinking


def test_regret_against_the_budget(hand):
    """SPEC has .7291667 at 4000 and .40625 at 8000. FLAT rises to 1/4 at 1000 and stays: 1 - (1/4)(n - 500) / n."""
    regret = {b: r.mean for b, r in zip(hand.budgets, hand.regret, strict=True)}
    assert len(regret) == 32 and max(regret) == 8000
    for budget, spec in ((4000, 0.7291667), (8000, 0.40625)):
        flat = 1 - (budget - 500) / budget / 4
        assert regret[budget] == pytest.approx((spec + (spec + flat) / 2) / 2, abs=1e-7)
    accuracy = {b: a.mean for b, a in zip(hand.budgets, hand.accuracy, strict=True)}
    assert accuracy[500] == pytest.approx((0 + (0 + 1 / 8) / 2) / 2)  # half way up to the first point
    assert accuracy[8000] == pytest.approx((1 + (1 + 1 / 4) / 2) / 2)


def test_progress_and_what_stopping_at_once_is_worth(hand):
    """Episodes gain 1/2 and 1/2 in SPEC, and nothing in FLAT: p0 has a mean of 1/2, p1 of 1/3."""
    progress = hand.progress
    assert progress.mean == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert (progress.negative, progress.positive) == (0, pytest.approx(6 / 7))
    counts = {
        round((a + b) / 2, 3): n for a, b, n in zip(progress.edges, progress.edges[1:], progress.counts, strict=False)
    }
    assert {value: n for value, n in counts.items() if n} == {0.0: 1, 0.5: 6}
    assert (hand.first.mean, hand.last.mean) == pytest.approx((1 / 16, (1 + 5 / 8) / 2))
    assert hand.natural.mean == 0.75 and hand.episodes == 7 / 4 and hand.unanswered == 0


def test_votes_at_each_prefix_by_number_of_episodes(hand):
    flat, spec = hand.buckets
    assert [(b.low, b.high, b.thoughts) for b in (flat, spec)] == [(1, 1, 1), (2, 2, 3)]
    assert [[p.p for p in branch] for branch in spec.points] == [[1, 2, 4, 8]] * 3
    assert [p.tokens for p in spec.points[1]] == [2990 + p * 10 for p in (1, 2, 4, 8)]
    assert [p.accuracy for p in spec.points[1]] == pytest.approx([0.5] * 4)  # four against four
    # 2 of 8 are right: of two answers both (1/28) or one (12/28, half); of four two (15/70, half); of eight none
    branch = [p.accuracy for p in flat.points[0]]
    assert branch == pytest.approx([1 / 4, 1 / 28 + 12 / 56, 15 / 140, 0])


def test_what_thinking_on_loses(hand):
    """FLAT and SPEC have one episode, only SPEC has two. Expected is the formula on exact votes."""
    rows = [[maj_at_prefix(p.answers, p.correct, p.logprobs) for p in t.own] for t in (SPEC, FLAT)]
    one, two = hand.stopping
    assert (one.budget, one.thoughts, two.budget, two.thoughts) == (1, 4, 2, 3)
    assert one.value == pytest.approx((3 * stop_regret(rows[0], 1) + stop_regret(rows[1], 1)) / 4)
    assert two.value == pytest.approx(stop_regret(rows[0], 2))


def test_waiting_is_measured_at_a_budget_of_its_own(tmp_path):
    """A thought is right half the time at 100 tokens, and always at 300 after one wait.

    Without waits its curve stays at 1/2 after 100: an area of 12.5 + 30 up to 160. With one it rises to 1 at 300, and by
    124 / 400 up to 224.
    """
    on = Thought([prefix(50, 0), prefix(100, 4), prefix(300, 8, waits=1)], "wrong", 100, 0)
    directory = write(tmp_path, {"p0": [on], "p1": [on]}, limit=160, waits=1)
    found = summarise([directory]).tasks[0].evaluations[0].thinking
    assert [(w.waits, w.tokens, w.budget) for w in found.waits] == [(0, 90, 160), (1, 290, 224)]
    assert [w.accuracy.mean for w in found.waits] == [0.5, 1.0]
    area = 12.5 + 124 * (0.5 + 0.5 + 124 / 400) / 2
    expected = [1 - 42.5 / 160, 1 - area / 224]
    assert [w.regret.mean for w in found.waits] == pytest.approx(expected)
    assert {a.mean for b, a in zip(found.budgets, found.accuracy, strict=True) if b >= 100} == {0.5}
    assert found.progress.counts[12] == 2 and found.last.mean == 0.5


def test_tokens_at_equal_accuracy(tmp_path):
    """Ours rises to 1 by 1000 tokens, the baseline by 2000. Budgets are multiples of 250."""
    slow, fast = (Thought([prefix(20, 0), prefix(n, 8)], "correct", n, 0) for n in (2000, 1000))
    runs = [write(tmp_path / name, {"p0": [t], "p1": [t]}, name) for name, t in (("slow", slow), ("fast", fast))]
    (row,) = summarise(runs).tasks[0].tokens_saved
    assert (row.run, row.baseline) == ("fast", "slow")
    assert row.ratio == pytest.approx(2, rel=0.01) and row.target == pytest.approx(0.995)
    write(tmp_path / "short", {"p0": [fast], "p1": [fast]}, "short", limit=2000)
    assert summarise([runs[0], tmp_path / "short"]).tasks[0].tokens_saved == []  # other budgets


def test_prefixes_that_cost_no_more_than_the_one_before(tmp_path):
    """A longer prefix may have shorter answers, so the curve is ordered by cost."""
    thought = Thought([prefix(100, 0), prefix(100, 2), prefix(80, 8)], "correct", 100, 0)
    assert thought.points() == [(80, 1.0), (100, 0.25)]


def test_files_that_are_not_whole_are_refused(tmp_path):
    directory = write(tmp_path, {"p0": [SPEC], "p1": [SPEC]})
    path = directory / "probes.jsonl"
    path.write_text(path.read_text() + '{"id": ')
    with pytest.raises(PoolError, match=r"probes\.jsonl:3: truncated last line"):
        summarise([directory])
    write(tmp_path / "one", {"p0": [SPEC]})
    with pytest.raises(PoolError, match=r"1 problems.*at least 2"):
        summarise([tmp_path / "one"])


def test_without_probes_there_is_nothing(tmp_path):
    directory = save(tmp_path, [make_pool(i, ["42", "7"], [None] * 2) for i in range(2)], "e")
    assert read_curves(directory, read_header(directory)) is None
    task = summarise([directory]).tasks[0]
    assert task.evaluations[0].thinking is None and task.tokens_saved == []
    assert isinstance(read_header(directory), Header)


@pytest.mark.parametrize("wrong", [{"thoughts": -1}, {"answers": 0}, {"waits": -1}, {"each": 0}, {"budgets": (9, 0)}])
def test_bad_options_are_refused(wrong):
    with pytest.raises(ValueError, match="must be at least"):
        Probing(**wrong)
