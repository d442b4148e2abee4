"""MRT: probes of a thought, and what each method learns from them, with every number computed by hand.

The scripted engine and its task have known contents. The shipped model has been trained on thoughts of several attempts.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from words import Words, credit

import twofold
from twofold import toml, training
from twofold.compute.cost import Cost
from twofold.compute.probe import Probe, Prover, boundaries, probe
from twofold.compute.rollout import rollouts
from twofold.config import Config
from twofold.engines.base import Finished, ignore_finished, report_all
from twofold.maths.credit import grpo
from twofold.recipes.mrt import MRT, Recipe, best_prefix, branch_advantages, penalised
from twofold.tasks.procedural import Sums
from twofold.text.chat import Chat
from twofold.text.segments import Episodes
from twofold.types import Completion, Grade, Rollout, Sample, Sampling

ROOT = Path(__file__).parents[1]
PLAIN = Prover(opening="<think>\n", hurry="", answer="\n", tokens=8)
SHIPPED = Prover(opening="<think>\n", hurry="", answer="\n\\boxed{", tokens=8)
SHORT = Episodes(shortest=1)


@pytest.fixture(scope="module")
def model() -> Any:
    return twofold.load("tiny")


@pytest.fixture(scope="module")
def chat(model: Any) -> Chat:
    return model.chat


@dataclass
class Scripted:
    """An engine that writes at its i-th call what ``script[i]`` says: prefix as text -> texts; "..." at an end is a cut."""

    chat: Chat
    script: Sequence[Mapping[str, Sequence[str]]]
    calls: list[tuple[list[str], Sampling]] = field(default_factory=list)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished = ignore_finished
    ) -> list[list[Completion]]:
        texts = self.script[len(self.calls)]
        self.calls.append(([self.chat.decode(p) for p in prompts], sampling))
        drawn = [[self.completion(t) for t in texts[self.chat.decode(p)]] for p in prompts]
        assert all(len(d) == sampling.n for d in drawn)
        return report_all(drawn, finished)

    def completion(self, text: str) -> Completion:
        cut = text.endswith("...")
        tokens = self.chat.encode(text, tags=True) + ([] if cut else [self.chat.stop[0]])
        return Completion(tokens, [-0.5] * len(tokens), [True] * len(tokens), "length" if cut else "stop")

    def logprobs(self, prompts: Any, continuations: Any, temperature: float = 1.0) -> list[list[float]]:
        raise AssertionError("nothing is judged here")

    def load(self, weights: Mapping[str, Any]) -> None: ...

    def rest(self) -> None: ...


Q = Words().problem("train", 0)
TWO = "a\n\nWait b\n</think>\nyes"
"""A thought of two episodes and a right answer."""
P0, P1, P2 = (f"Q0<think>\n{t}" for t in ("", "a\n\n", "a\n\nWait b\n"))
ASKED = {p: f"{p}</think>\n" for p in (P0, P1, P2)}


def collect(
    chat: Chat, script: Sequence[Mapping[str, Sequence[str]]], **options: Any
) -> tuple[list[Sample], dict[str, float], Scripted]:
    engine = Scripted(chat, script)
    config = MRT(**({"rollouts": 2, "prover": PLAIN, "episodes": SHORT} | options))
    recipe = Recipe(config, Words(), chat, Sampling(max_tokens=24, seed=5), engine)
    found = recipe.collect(engine, [Q], 0)
    samples, stats = found.samples, found.stats
    assert len(engine.calls) == len(script)
    return samples["policy"], stats, engine


def context(chat: Chat, sample: Sample) -> str:
    return chat.decode(sample.tokens[: sample.sampled.index(True)])


# ---------------------------------------------------------------- probes


def thought(chat: Chat, text: str, prompt: str = "Q0") -> Rollout:
    completion = Scripted(chat, []).completion(text)
    before = [*chat.prompt(prompt), *chat.encode("<think>\n", tags=True)]
    text = chat.decode(completion.tokens)
    return Rollout(before, completion, text, None, replace(Q, question=prompt), Grade(0.0, "wrong"))


def test_probes_by_hand(chat):
    """J of four answers per prefix is 0, then 1/2 with error sqrt(1/4 / 3), then 2/3 of the three that could be graded."""
    answers = {ASKED[P0]: ["no"] * 4, ASKED[P1]: ["yes", "no", "no", "yes"], ASKED[P2]: ["yes", "yes", "late", "no"]}
    engine, rollout = Scripted(chat, [answers]), thought(chat, TWO)
    ends = boundaries(chat, rollout, PLAIN, SHORT)
    assert [chat.decode(rollout.completion.tokens[:e]) for e in ends] == ["", "a\n\n", "a\n\nWait b\n"]
    [row] = probe(engine, chat, Words(), [rollout], [ends], PLAIN, Sampling(n=4))
    assert [p.value for p in row] == pytest.approx([0, 1 / 2, 2 / 3])
    assert [p.error for p in row] == pytest.approx([0, math.sqrt(1 / 12), math.sqrt(2 / 9 / 2)])
    assert row[1].answers[0].text == "a\n\n</think>\nyes"
    drawn = [s for s in row[1].answers[0].completion.sampled]
    size = [len(chat.encode(t, tags=True)) for t in ("a\n\n", "</think>\n", "yes")]
    assert drawn == [True] * size[0] + [False] * size[1] + [True] * (size[2] + 1)
    # the closing once, and each answer with its end token
    no, yes = (len(chat.encode(t)) + 1 for t in ("no", "yes"))
    assert row[1].cost.generated == row[1].cost.discarded == size[1] + 2 * yes + 2 * no


def test_equal_prefixes_are_asked_once(chat):
    answers = {ASKED[P0]: ["no", "yes"], ASKED[P1]: ["no", "yes"], ASKED[P2]: ["no", "yes"]}
    engine, rollout = Scripted(chat, [answers]), thought(chat, TWO)
    ends = boundaries(chat, rollout, PLAIN, SHORT)
    first, second = probe(engine, chat, Words(), [rollout, rollout], [ends, ends], PLAIN, Sampling(n=2))
    assert len(engine.calls[0][0]) == 3
    assert [p.value for p in first] == [p.value for p in second] == [0.5] * 3
    assert all(p.cost.generated > 0 for p in first) and all(p.cost == Cost() for p in second)


def test_a_cut_thought_is_hurried_and_a_whole_one_only_closed(chat):
    prover = Prover(opening="<think>\n", hurry="Time is up.", answer="\nSo ", tokens=8)
    asked = ["Q0<think>\nTime is up.\n</think>\nSo ", "Q0<think>\na b\n</think>\nSo "]
    engine, rollout = Scripted(chat, [{p: ["yes"] for p in asked}]), thought(chat, "a b</think>\nyes")
    ends = boundaries(chat, rollout, prover, SHORT)
    [row] = probe(engine, chat, Words(), [rollout], [ends], prover, Sampling())
    assert engine.calls[0][0] == asked
    assert math.isnan(row[0].error)  # one answer says nothing about its own error


def test_a_thought_that_never_closes_is_all_there_is(chat):
    for text, whole in (("a b...", "a b..."), ("a b", "a b")):
        rollout = thought(chat, text)
        last = boundaries(chat, rollout, PLAIN, SHORT)[-1]
        assert chat.decode(rollout.completion.tokens[:last]) == whole
        assert last == len(rollout.completion.tokens) - (text == whole == "a b")
    with pytest.raises(ValueError, match="must be a single token"):
        boundaries(chat, thought(chat, "a"), Prover(end="the end of it"), SHORT)


def real(model: Any, n: int, temperature: float) -> list[Rollout]:
    task = Sums(choice=1.0)
    sampling = Sampling(n=n, temperature=temperature, max_tokens=90, stop=model.chat.stop, seed=3)
    problems = [task.problem("train", i) for i in range(8)]
    groups = rollouts(model.engine, model.chat, task, problems, sampling, SHIPPED.opening)
    return [r for g in groups for r in g]


def test_prefixes_are_not_computed_again(model, chat):
    """The caches that the rollouts left are used again: exactly the tokens of the closings and answers are computed."""
    everyone = real(model, 4, 1.0)
    ends = [boundaries(chat, r, SHIPPED, SHORT) for r in everyone]
    assert sum(len(e) > 2 for e in ends) > 4  # thoughts of several episodes
    before, reused = model.engine.usage.computed, model.engine.usage.reused
    probes = probe(model.engine, chat, Sums(), everyone, ends, SHIPPED, Sampling(n=2, seed=4))
    computed = model.engine.usage.computed - before
    asked = [(r, p) for r, row in zip(everyone, probes, strict=True) for p in row if p.cost.generated]
    # the last token of an answer is drawn and never run
    most = sum(p.cost.generated - len(p.answers) for _, p in asked)
    assert computed <= most
    assert model.engine.usage.reused - reused >= sum(len(r.prompt) + p.end for r, p in asked)
    again, before = real(model, 1, 0.0), model.engine.usage.computed  # other caches now
    assert again
    probe(model.engine, chat, Sums(), everyone, ends, SHIPPED, Sampling(n=2, seed=4))
    assert model.engine.usage.computed - before > 3 * computed


def test_an_answer_forced_from_the_whole_thought_is_the_natural_one(model, chat):
    greedy = [r for r in real(model, 1, 0.0) if r.completion.finish == "stop"]
    ends = [boundaries(chat, r, SHIPPED, SHORT) for r in greedy]
    rows = probe(model.engine, chat, Sums(), greedy, ends, SHIPPED, Sampling(temperature=0))
    assert len(greedy) >= 4
    assert [row[-1].answers[0].completion.tokens for row in rows] == [r.completion.tokens for r in greedy]


# ---------------------------------------------------------------- MRT (RL)


def test_the_bonus_inside_one_group_is_grpo_and_nothing_else():
    """The trap: T is the same in the whole group, so subtracting the mean removes it, and dividing by the std removes 1 + alpha."""
    y, stop = [1.0, 0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0]
    value = sum(stop) / len(stop)
    for alpha in (0.25, 1.0, 4.0):
        inside = grpo([r + alpha * (r - value) for r in y])
        assert inside == pytest.approx(grpo(y), abs=1e-5)
    # neither published way out has this property
    for bonus in ("mixed", "termination"):
        assert branch_advantages(stop, y, bonus)[4:] != pytest.approx(grpo(y), abs=0.1)


def test_branch_advantages_by_hand():
    """With T = 0 the rewards are [0, 0 | 1, 0]: mean 1/4, std 1/2."""
    assert branch_advantages([0, 0], [1, 0], "mixed") == pytest.approx([-0.5, -0.5, 1.5, -0.5], abs=1e-5)
    assert branch_advantages([0, 0], [1, 0], "termination") == [0, 0, 1, 0]
    # T = 1/2
    assert branch_advantages([1, 0], [1, 1], "termination") == [0.5, -0.5, 0.5, 0.5]


@pytest.mark.parametrize("bonus", ["mixed", "termination"])
def test_no_progress_no_expected_bonus(bonus):
    """Both halves are right equally often, so the advantages of each half sum to 0."""
    a = branch_advantages([1, 0, 0, 1], [0, 1, 1, 0], bonus)
    assert sum(a[:4]) == pytest.approx(0) and sum(a[4:]) == pytest.approx(0)


ONE = "a\n</think>\nyes"
"""A thought of one episode: it can only be cut before its beginning."""


@pytest.mark.parametrize(("bonus", "expected"), [("mixed", [-0.5, -0.5, 1.5, -0.5]), ("termination", [0, 0, 1, 0])])
def test_half_stop_and_half_go_on(chat, bonus, expected):
    script = [{P0: [ONE, "no"]}, {ASKED[P0]: ["no", "no"], P0: ["b\n</think>\nyes", "no"]}]
    samples, stats, engine = collect(chat, script, bonus=bonus, alpha=2.0, branches=4)
    half = math.sqrt(0.5)  # outcome: rewards 1 and 0, mean 1/2, std sqrt(1/2)
    found = [credit(chat, s) for s in samples]
    assert [text for run in found for text, _ in run] == [ONE, "no", "no", "no", "b\n</think>\nyes", "no"]
    assert [a for run in found for _, a in run] == pytest.approx([half, -half, *(2 * a for a in expected)], abs=1e-5)
    assert [context(chat, s) for s in samples] == [P0] * 2 + [ASKED[P0]] * 2 + [P0] * 2
    assert (stats["mrt/stop_value"], stats["mrt/progress"], stats["mrt/cut_tokens"]) == (0, 0.5, 0)
    assert engine.calls[1][1].n == 2 and engine.calls[1][1].seed != engine.calls[0][1].seed


def test_those_that_stopped_may_be_the_baseline_and_nothing_else(chat):
    """T = 1/2 from [1, 0]: a right continuation has 1/2, a wrong one -1/2; the stopped branches are not learnt."""
    script = [{P0: [ONE, "no"]}, {ASKED[P0]: ["yes", "no"], P0: ["b\n</think>\nyes", "no"]}]
    samples, stats, _ = collect(chat, script, bonus="baseline", branches=4)
    assert [credit(chat, s) for s in samples[2:]] == [[("b\n</think>\nyes", 0.5)], [("no", -0.5)]]
    assert (stats["mrt/stop_value"], stats["mrt/progress"]) == (0.5, 0)


def test_the_thought_before_the_cut_is_context(chat):
    """At some step the thought is cut after its first episode, and no token of the prefix has credit."""
    script = [
        {P0: [TWO, "no"]},
        {ASKED[p]: ["no", "yes"] for p in (P0, P1)} | {P0: [TWO, "no"], P1: ["Wait no", "yes"]},
    ]
    seen = set()
    for seed in range(12):
        engine = Scripted(chat, script)
        config = MRT(rollouts=2, prover=PLAIN, episodes=SHORT)
        samples = Recipe(config, Words(), chat, Sampling(max_tokens=24, seed=seed)).collect(engine, [Q], 0).samples
        stopped, on = engine.calls[1][0]
        seen.add(on)
        assert [context(chat, s) for s in samples["policy"][2:]] == [stopped, stopped, on, on]
        assert stopped == ASKED[on]
    assert seen == {P0, P1}  # never after the last episode


def test_a_late_cut(chat):
    rollout = thought(chat, "a\n\nWait b\n\nWait c\n</think>\nyes")
    places = boundaries(chat, rollout, PLAIN, SHORT)[:-1]
    for where, shares in (("uniform", [1 / 3] * 3), ("late", [1 / 6, 2 / 6, 3 / 6])):
        recipe = Recipe(MRT(prover=PLAIN, episodes=SHORT, where=where), Words(), chat, Sampling())
        counts = Counter(recipe._cut(rollout, seed) for seed in range(1200))
        assert [counts[p] / 1200 for p in places] == pytest.approx(shares, abs=0.05)


def test_the_starting_model_thinks_the_prefix(chat):
    """With ``source = "start"`` the prefix is another engine's, and the branches are the policy's."""
    policy = Scripted(chat, [{P0: ["no", "no"]}, {ASKED[P0]: ["no"], P0: ["yes"]}])
    start = Scripted(chat, [{P0: [ONE]}])
    config = MRT(rollouts=2, branches=2, source="start", prover=PLAIN, episodes=SHORT)
    found = Recipe(config, Words(), chat, Sampling(max_tokens=24), start).collect(policy, [Q], 0)
    samples, stats = found.samples, found.stats
    assert (len(policy.calls), len(start.calls)) == (2, 1) and len(samples["policy"]) == 4
    assert stats["mrt/progress"] == 1
    with pytest.raises(ValueError, match="needs an engine of the starting model"):
        Recipe(config, Words(), chat, Sampling())


def test_branches_that_could_not_be_graded(chat):
    script = [{P0: [ONE, "no"]}, {ASKED[P0]: ["late", "no"], P0: ["late", "yes"]}]
    samples, _, _ = collect(chat, script, bonus="termination")
    assert [a for s in samples[2:] for _, a in credit(chat, s)] == [0, 1]
    script = [{P0: [ONE, "no"]}, {ASKED[P0]: ["late", "late"], P0: ["no", "yes"]}]
    assert len(collect(chat, script)[0]) == 2  # no value to compare with


def test_alpha_0_is_grpo(chat):
    script = [{P0: [TWO, "no"]}]
    expected, _, _ = collect(chat, script, method="grpo")
    assert collect(chat, script, method="rl", alpha=0.0)[0] == expected
    answers = {ASKED[p]: ["no", "yes"] for p in (P0, P1, P2)} | {"Q0<think>\nno\n</think>\n": ["no", "yes"]}
    assert collect(chat, [*script, answers], method="online", alpha=0.0, answers=2)[0] == expected


# ---------------------------------------------------------------- MRT-online


@pytest.mark.parametrize(("to_go", "bonus"), [(False, [0.75, -0.5]), (True, [0.25, -0.5])])
def test_every_episode_is_paid_its_own_progress(chat, to_go, bonus):
    """J is 0, 3/4, 1/4 in the first thought, and 0, 0 in the second, which has one episode."""
    y, n = "yes", "no"
    answers = {
        ASKED[P0]: [n] * 4,
        ASKED[P1]: [y, y, y, n],
        ASKED[P2]: [n, n, n, y],
        "Q0<think>\nno\n</think>\n": [n] * 4,
    }
    script = [{P0: [TWO, "no"]}, answers]
    (first, second), stats, engine = collect(chat, script, method="online", alpha=2.0, reward_to_go=to_go)
    half = math.sqrt(0.5)
    assert [t for t, _ in credit(chat, first)] == ["a\n\n", "Wait b\n", "</think>\nyes"]
    expected = [half + 2 * bonus[0], half + 2 * bonus[1], half]
    assert [a for _, a in credit(chat, first)] == pytest.approx(expected, abs=1e-5)
    assert [a for _, a in credit(chat, second)] == pytest.approx([-half], abs=1e-5)
    assert stats["mrt/progress"] == pytest.approx((0.75 - 0.5 + 0) / 3)
    assert stats["mrt/progress_negative"] == pytest.approx(1 / 3)
    assert (stats["mrt/value_first"], stats["mrt/value_last"], stats["mrt/episodes"]) == (0, 1 / 8, 1.5)
    assert engine.calls[1][1].n == 4


def test_a_thought_whose_value_is_unknown_is_left_out(chat):
    answers = {ASKED[P0]: ["no"], ASKED[P1]: ["late"], ASKED[P2]: ["no"], "Q0<think>\nno\n</think>\n": ["no"]}
    samples, _, _ = collect(chat, [{P0: [TWO, "no"]}, answers], method="online", answers=1)
    assert [credit(chat, s) for s in samples] == [[("no", 0.0)]]  # a group of one is left


# ---------------------------------------------------------------- STaR


def learnt(chat: Chat, samples: Sequence[Sample]) -> list[str]:
    """Return the text of the targets, which are the whole completion and nothing else."""
    assert not any(any(s.sampled) or any(s.advantages) for s in samples)
    texts = []
    for s in samples:
        start = s.targets.index(1.0)
        assert s.targets == [0.0] * start + [1.0] * (len(s.tokens) - start)
        assert chat.decode(s.tokens[:start]) == P0 and s.tokens[-1] == chat.stop[0]
        texts.append(chat.decode(s.tokens[start:]))
    return texts


def test_star_learns_every_right_rollout(chat):
    samples, stats, _ = collect(chat, [{P0: [TWO, "no", "late", "yes"]}], method="star", rollouts=4)
    assert learnt(chat, samples) == [TWO, "yes"] and stats["mrt/kept"] == 0.5


def test_mrt_star_learns_the_thought_up_to_where_it_is_worth_most(chat):
    """J is 0, 1/2, 1/2: the shorter prefix wins the tie, with its right answer. The second thought gains nothing."""
    answers = {ASKED[p]: ["no", "no"] for p in (P0,)} | {ASKED[p]: ["no", "ok yes"] for p in (P1, P2)}
    answers |= {"Q0<think>\nno\n</think>\n": ["no", "no"]}
    script = [{P0: [TWO, "no"]}, answers]
    samples, stats, _ = collect(chat, script, method="mrt_star", answers=2)
    assert learnt(chat, samples) == ["a\n</think>\nok yes"] and stats["mrt/kept"] == 0.5  # no blank line before the end


def test_what_is_learnt_is_not_hurried(chat):
    prover = replace(PLAIN, hurry="Time is up.")
    script = [
        {P0: [TWO]},
        {f"{p}Time is up.\n</think>\n": [w] for p, w in ((P0, "no"), (P1, "yes"))} | {ASKED[P2]: ["no"]},
    ]
    samples, _, _ = collect(chat, script, method="mrt_star", answers=1, rollouts=1, prover=prover)
    assert learnt(chat, samples) == ["a\n</think>\nyes"]


def test_nothing_to_learn(chat):
    samples, stats, _ = collect(chat, [{P0: ["no", "late"]}], method="star")
    assert samples == [] and stats["mrt/kept"] == 0


def row(values: Sequence[float]) -> list[Probe]:
    """Return probes of these values, which are in quarters."""
    ends = range(len(values))
    grades = Grade(1.0, "correct"), Grade(0.0, "wrong")
    right, wrong = (Rollout([], Completion([], [], [], "stop"), "", "", Q, grade) for grade in grades)
    return [
        Probe(e, [right] * int(4 * v) + [wrong] * (4 - int(4 * v)), Cost()) for e, v in zip(ends, values, strict=True)
    ]


@pytest.mark.parametrize(
    ("values", "by_value", "by_jump"),
    [
        ([0.25, 0.5, 0.75, 0.5], 2, 1),  # jumps .25 .25 -.25: the first of equals
        ([0.25, 0.0, 0.5, 0.75], 3, 2),
        ([0.5, 0.25, 0.5], None, None),  # never better than no thought at all
        ([0.0, 0.0], None, None),
        ([0.5, 0.0, 0.5, 0.75], 3, None),  # the largest jump ends where the empty prefix was
    ],
)
def test_readings_of_the_filter(values, by_value, by_jump):
    for keep, expected in (("value", by_value), ("problem", by_value), ("jump", by_jump)):
        found = best_prefix(row(values), keep)
        assert (found and found.end) == expected


def test_one_prefix_per_problem(chat):
    """Three thoughts have J = 1/2, 1, 1 at best; the shorter prefix of the last two is kept."""
    texts = ["a\n</think>\nno", "b b b\n</think>\nno", "b\n</think>\nno"]
    answers = {ASKED[P0]: ["no", "no"], "Q0<think>\na\n</think>\n": ["yes", "no"]}
    answers |= {f"Q0<think>\n{t}\n</think>\n": ["yes", "yes"] for t in ("b b b", "b")}
    script = [{P0: texts}, answers]
    samples, _, _ = collect(chat, script, method="mrt_star", keep="problem", answers=2, rollouts=3)
    assert learnt(chat, samples) == ["b\n</think>\nyes"]
    assert len(collect(chat, script, method="mrt_star", keep="value", answers=2, rollouts=3)[0]) == 3


# ---------------------------------------------------------------- baselines, options, whole runs


def test_shaped_rewards_do_not_decide_what_is_learnt(chat):
    """MRT (STaR) keeps the prefix with the most right answers, whatever they are paid; the length penalty scales the reward."""
    paid = [Grade(0.2, "correct"), Grade(0.9, "wrong")]
    right, wrong = (Rollout([], Completion([], [], [], "stop"), "", "", Q, grade) for grade in paid)
    probes = [Probe(e, [right] * n + [wrong] * (4 - n), Cost()) for e, n in enumerate((1, 0, 2, 1))]
    assert [p.success for p in probes] == [0.25, 0, 0.5, 0.25]
    for keep in ("value", "problem"):
        found = best_prefix(probes, keep)
        assert found is not None and found.end == 2
    assert best_prefix(probes[:2], "value") is None  # the reward alone rose, from 0.725 to 0.9
    completion = Completion([1] * 4, [0.0] * 4, [True] * 4, "stop")
    group = [
        Rollout([1], completion, "", None, Q, Grade(r, k))
        for r, k in ((2.0, "correct"), (0.3, "correct"), (0.5, "wrong"))
    ]
    assert penalised(group, 0.5) == pytest.approx([1.5, 0.225, 0.5])  # right ones of equal length lose a quarter


def test_the_length_penalty_by_hand():
    """Right rollouts of 2 and 6 tokens: mean 4, std 2, sigmoid(-1) = .26894, sigmoid(1) = .73106. A wrong one stays at 0."""

    def rollout(tokens: int, reward: float) -> Rollout:
        completion = Completion([1] * tokens, [0.0] * tokens, [True] * tokens, "stop")
        return Rollout([1], completion, "", None, Q, Grade(reward, "correct" if reward else "wrong"))

    group = [rollout(2, 1.0), rollout(6, 1.0), rollout(100_000, 0.0)]
    assert penalised(group, 0.5) == pytest.approx([1 - 0.5 * 0.2689414, 1 - 0.5 * 0.7310586, 0])
    assert penalised([rollout(5, 1.0)] * 2, 0.5) == [0.75, 0.75]
    assert penalised([rollout(5, 0.0)], 0.5) == [0]


def test_the_length_penalty_prefers_the_shorter_of_two_right_rollouts(chat):
    samples, _, _ = collect(chat, [{P0: [TWO, "yes"]}], method="length")
    (_, longer), (_, shorter) = (run for s in samples for run in credit(chat, s))
    assert longer < 0 < shorter


@pytest.mark.parametrize("wrong", [{"branches": 3}, {"branches": 0}, {"rollouts": 0}, {"answers": 0}, {"penalty": 2.0}])
def test_bad_options_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        MRT(**wrong)


@pytest.mark.parametrize(
    "settings",
    [
        ["recipe.method=rl", "recipe.source=start", "loss.beta=0.1"],
        ["recipe.method=online"],
        ["recipe.method=mrt_star", "recipe.source=start"],
    ],
)
def test_the_config_in_the_repository_runs(settings, tmp_path):
    base = toml.load(Config, ROOT / "configs" / "mrt-sums.toml")
    config = toml.override(base, [*settings, "train.steps=2", "rollout.problems=2", "rollout.max_tokens=60"])
    training.train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(line["skipped"] == 0 for line in lines)
    if config.recipe.method != "mrt_star":  # what is sampled is what is scored, also after forced tokens
        assert lines[0]["mismatch"] < 1e-4
    else:
        assert lines[1]["target_loss"] > 0
