"""Pairs: the tournament's numbers by hand, the question in both orders, what is learnt, what it costs, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from twofold import run, training
from twofold.compute.judge import Judging, judge_all
from twofold.compute.pairs import first_right, question, ranked
from twofold.compute.plan import Plan, parse
from twofold.compute.rollout import draw, forced, rollouts
from twofold.compute.room import after
from twofold.compute.solve import solve
from twofold.config import Config, Rollouts, Train
from twofold.evals.audit import Audit
from twofold.maths.losses import Loss
from twofold.maths.pairs import Game, Tournament, margin, next_round, standings
from twofold.maths.schedule import Optim
from twofold.recipes.common import context_sample
from twofold.recipes.rlv import RLV, Recipe
from twofold.run import Eval, Model
from twofold.serve.parse import chat_job
from twofold.serve.schema import ChatRequest
from twofold.tasks.procedural import Sums
from twofold.text.chat import Chat
from twofold.text.prompts import PAIR
from twofold.trainer.learner import Learner
from twofold.types import Candidate, Rollout, Sampling

TASK = Sums(level=1)
FOUR = list("abcd")


@pytest.fixture(scope="module")
def model() -> Model:
    return run.load("tiny")


def sampling(model: Model, n: int = 4) -> Sampling:
    return Sampling(n, max_tokens=40, stop=model.chat.stop)


def drawn(model: Model, problems: int = 4, n: int = 4) -> list[list[Rollout]]:
    asked = [TASK.problem("train", i) for i in range(problems)]
    return rollouts(model.engine, model.chat, TASK, asked, sampling(model, n))


# ---------------------------------------------------------------- numbers by hand


def test_standings_of_ratings() -> None:
    """1 rated 9 against 2 rated 3, 1 rated 5 against 3 rated 6."""
    games = [(0, 1, margin(9, 3)), (0, 2, margin(5, 6))]
    assert [abs(m) for _, _, m in games] == pytest.approx([0.6667, 0.1111], abs=1e-4)
    assert standings(3, games, floor=0.1) == pytest.approx([0.857143, 0.0, 1.0], abs=1e-6)
    assert standings(3, [], 0.1) == [0.5] * 3
    assert standings(2, [(0, 1, 0.0)], 0.1) == [0.5, 0.5]  # a draw weighs the floor


def test_coverage_pairs_the_ones_who_have_met_fewest() -> None:
    how = Tournament(budget=1)
    assert next_round(FOUR, [], how) == [(0, 1), (2, 3)]
    games: list[Game] = [(0, 1, margin(8, 2)), (2, 3, margin(4, 6))]
    assert standings(4, games, 0.1) == [1, 0, 0, 1]
    assert next_round(FOUR, games, how) == [(0, 3), (1, 2)]
    games += [(0, 3, 0.1), (1, 2, 0.1)]
    assert next_round(FOUR, games, how) == []  # four comparisons, the budget of one each


def test_refinement_pairs_neighbours_who_have_not_met() -> None:
    """Standings .9, .85, .4, .1 of which the first two have met: in the paper they meet again."""
    games: list[Game] = [(0, 1, 1e-9)]
    for i, mu in enumerate((0.9, 0.85, 0.4, 0.1)):
        games += [(i, 4 + i, mu), (8 + i, i, 1 - mu)]
    kinds = [*FOUR, *"x" * 8]
    assert standings(12, games, 0.0)[:4] == pytest.approx([0.9, 0.85, 0.4, 0.1])
    first = Tournament(budget=9, degree=0, floor=0, nearby=8)
    outsiders = [(i, j, 0.0) for i in range(4) for j in range(4, 12)]  # only the four are left to meet
    assert next_round(kinds, [*games, *outsiders], first) == [(0, 2), (1, 3)]
    games = [(0, 1, 1.0), (2, 3, 1.0), (0, 2, 1.0), (1, 3, 1.0), (1, 2, 1.0)]
    assert standings(4, games, 0.1) == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert next_round(FOUR, games, Tournament(degree=0)) == [(0, 3)]
    assert next_round(FOUR, games, Tournament(degree=0, nearby=2)) == []  # the one it has not met is three ranks below


def test_it_ends_when_everyone_has_met_whom_they_may() -> None:
    assert next_round("ab", [], Tournament()) == [(0, 1)]
    assert next_round("ab", [(0, 1, 1.0)], Tournament()) == []
    assert next_round("aaa", [], Tournament()) == [] == next_round("a", [], Tournament(within=True))
    assert next_round("aaa", [], Tournament(within=True)) == [(0, 1)]
    assert next_round("aab", [(0, 2, 1.0)], Tournament()) == [(1, 2)]
    assert next_round(FOUR, [], Tournament(budget=0.3)) == [(0, 1)]  # a round is cut at the budget
    games: list[Game] = []
    while pairs := next_round("aaabbbcc", games, Tournament(budget=99)):
        assert len({i for pair in pairs for i in pair}) == 2 * len(pairs)
        games += [(i, j, 1.0 if i < j else -1.0) for i, j in pairs]
    assert len({frozenset(g[:2]) for g in games}) == len(games) == 3 * 3 + 2 * 6  # all who are not of one kind


def test_swiss_is_without_coverage_and_counts_every_result_alike() -> None:
    swiss, games = Tournament(degree=0, floor=1), list[Game]()
    strength = {0: 1, 1: 4, 2: 2, 3: 3}
    rounds = []
    while pairs := next_round(FOUR, games, swiss):
        rounds.append(pairs)
        games += [(i, j, 0.2 if strength[i] > strength[j] else -0.2) for i, j in pairs]
    assert rounds == [[(0, 1), (2, 3)], [(1, 3), (0, 2)], [(1, 2), (3, 0)]]
    assert standings(4, games, swiss.floor) == pytest.approx([0, 1, 1 / 3, 2 / 3])


# ---------------------------------------------------------------- the question


def test_the_probability_is_that_of_the_model_and_costs_what_is_counted(model: Model) -> None:
    chat = model.chat
    group = draw(model.engine, chat, [TASK.problem("train", 1).question], sampling(model))[0]
    a, b = group[0], next(c for c in group if c.text != group[0].text)
    before = model.engine.usage.computed
    (p, tokens), (q, _) = first_right(model.engine, chat, [(a, b), (b, a)])
    assert model.engine.usage.computed - before == tokens  # a solution's end token is run in the verdict's place
    assert p == pytest.approx(1 - q)
    oracle = AutoModelForCausalLM.from_pretrained(run.shipped(), dtype=torch.float32)
    first, second = chat.a_b_ids
    assert (chat.decode([first]), chat.decode([second])) == ("A", "B")

    def says_a(x: Candidate, y: Candidate) -> float:
        text = chat.decode(question(chat, x, y))
        assert text.endswith(PAIR.replace("{solution}", y.text.strip())) and x.text in text
        with torch.inference_mode():
            logp = oracle(torch.tensor([question(chat, x, y)])).logits[0, -1].log_softmax(-1)
        return float(logp[first].exp() / (logp[first].exp() + logp[second].exp()))

    assert p == pytest.approx((says_a(a, b) + 1 - says_a(b, a)) / 2, abs=1e-4)
    assert first_right(model.engine, chat, [(a, b)], both=False)[0][0] == pytest.approx(says_a(a, b), abs=1e-4)
    assert first_right(model.engine, chat, [(a, a)])[0][0] == pytest.approx(0.5)


def test_the_other_solution_is_quoted_without_its_thoughts(model: Model) -> None:
    chat = Chat(model.tokenizer, think_end="</think>")
    first = Candidate(chat.prompt("1+1?"), forced(chat.encode("2")), "2", "2")
    for text in ("<think>\nNo, wait.\n</think>\n\nIt is 3.", "It is 3."):
        asked = chat.decode(question(chat, first, replace(first, text=text)))
        assert "B:\nIt is 3.\nWhich is right?" in asked and "No, wait." not in asked


class Longest:
    """An engine that says of two solutions that the longer one is right, as the question counts them."""

    def __init__(self, model: Model) -> None:
        self.chat, self.calls = model.chat, 0

    def logprobs(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> list[list[float]]:
        self.calls += 1
        head, tail = PAIR.split("{solution}")
        own = [self.chat.decode(p).split(head) for p in prompts]
        bits = [len(a.split("?")[-1]) - len(b.removesuffix(tail)) for a, b in own]
        return [[x / 99 if c == [self.chat.a_b_ids[0]] else 0.0] for x, c in zip(bits, continuations, strict=True)]


@pytest.mark.parametrize(
    "how", [Tournament(), Tournament(degree=0, floor=1), Tournament(budget=1, both=False), Tournament(answers=True)]
)
def test_the_best_of_every_problem_is_found(model: Model, how: Tournament) -> None:
    chat, engine = model.chat, Longest(model)
    prompt = chat.prompt("Which?")
    sizes = [[3, 9, 1, 5], [2, 4], [7], [8, 6, 4, 2, 0, 5]]
    groups = [[Candidate(prompt, forced(chat.encode("x" * s)), "x" * s, str(s)) for s in own] for own in sizes]
    kinds = [[c.answer for c in group] for group in groups]
    found = ranked(engine, chat, groups, kinds, how, seed=3)  # type: ignore[arg-type]
    for own, (mu, tokens) in zip(sizes, found, strict=True):
        assert own[mu.index(max(mu))] == max(own)
        assert (tokens == 0) == (len(own) == 1) and len(mu) == len(own)
    assert engine.calls <= how.budget * 6  # a call is a round of all problems
    assert ranked(engine, chat, groups[:1], [["5"] * 4], how) == [([0.5] * 4, 0)]  # type: ignore[arg-type]


def test_one_sample_of_each_answer_may_enter(model: Model) -> None:
    engine, prompt, sizes = Longest(model), model.chat.prompt("Which?"), [3, 9, 1, 9, 3, 9, 9, 9]
    group = [Candidate(prompt, forced(model.chat.encode("x" * s)), "x" * s, str(s)) for s in sizes]
    kinds = [c.answer for c in group]
    every, few = (
        ranked(engine, model.chat, [group], [kinds], Tournament(answers=answers))[0]  # type: ignore[arg-type]
        for answers in (False, True)
    )
    assert few[0] == [0.5 if s == 3 else float(s == 9) for s in sizes] and few[1] < every[1] / 3
    with pytest.raises(ValueError, match="leaves within nothing to compare"):
        Tournament(answers=True, within=True)


# ---------------------------------------------------------------- plans


def test_a_plan_has_a_tournament_and_pays_for_it(model: Model) -> None:
    plan = parse("best-6:judge=pairs,budget=1,both=false,max_tokens=40")
    assert plan.tournament == Tournament(budget=1, both=False) and parse(str(plan)) == plan
    with pytest.raises(ValueError, match="go with judge=pairs only"):
        parse("best-6:budget=1")
    questions = [TASK.problem("train", i).question for i in range(3)]
    solved = solve(model.engine, model.chat, questions, plan)
    alike = solve(model.engine, model.chat, questions, parse("majority-6:max_tokens=40"))
    assert [s.answers for s in solved] == [s.answers for s in alike]
    for s in solved:
        assert s.scores[s.answers.index(s.answer)] is not None
        assert (s.cost.verified == 0) == (len({*s.answers} - {None}) < 2)
    assert any(s.cost.verified > 0 for s in solved)


def test_what_compares_nothing_is_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compares all samples of a problem, but stop=posterior"):
        parse("best-8:judge=pairs,stop=posterior")
    with pytest.raises(ValueError, match="must say where the other solution stands"):
        parse("best-8:judge=pairs,judge.question=Which?")
    with pytest.raises(ValueError, match="name it in a plan, such as --plan best-16:judge=pairs"):
        Eval(judge=Judging("pairs"))
    with pytest.raises(ValueError, match="audit cannot judge by pairs: it asks about one text"):
        run.audit(model, "sums", Audit(judge=Judging("pairs")), out=tmp_path)
    with pytest.raises(ValueError, match="judge=pairs scores no single solution"):
        judge_all(model.engine, model.chat, [], Judging("pairs"))
    with pytest.raises(ValueError, match="as many right solutions as wrong ones"):
        RLV(verify="pairs", balance="weights")
    with pytest.raises(ValueError, match="does not go with last_token, pairs or weights"):
        RLV(verify="pairs", adversarial=0.1)
    asked = after(model.chat, Judging("pairs"))
    assert after(model.chat, Judging("pairs"), 100) == asked + 100
    with pytest.raises(ValueError, match="context is 2048 tokens"):
        run.solve(model, "1+1?", Plan(4, judge=Judging("pairs"), max_tokens=1010))
    assert run.solve(model, "1+1?", Plan(1, judge=Judging("pairs"), max_tokens=900)).cost.verified == 0


def test_there_must_be_room_for_the_other_solution(model: Model, tmp_path: Path) -> None:
    """Of 2,048 tokens: P(Yes) about 1,200 fits, a comparison with 1,200 more does not."""
    long, few = "context is 2048 tokens.* less than", Train(steps=1, save_every=0)
    with pytest.raises(ValueError, match=long):
        run.evaluate(model, TASK, Eval(1, 2, max_tokens=1200), out=tmp_path / "eval", plans=["best-2:judge=pairs"])
    settings = Config(recipe=RLV(verify="pairs"), task=TASK, rollout=Rollouts(problems=1, max_tokens=1200), train=few)
    with pytest.raises(ValueError, match=long):
        training.train(settings, tmp_path / "run")
    body = ChatRequest.model_validate(
        {"model": "tiny:best-4:judge=pairs", "messages": [{"role": "user", "content": "1+1?"}]}
    )
    job, plan = chat_job(body, "tiny", model.chat, 300, run.same)
    assert plan is not None and 2 * plan.max_tokens + job.tokens + after(model.chat, plan.judge) in (299, 300)


# ---------------------------------------------------------------- training


def test_every_pair_is_asked_in_both_orders_in_the_words_of_test_time(model: Model) -> None:
    groups = drawn(model, 6)
    everyone = [r for g in groups for r in g]
    recipe = Recipe(RLV(verify="pairs", lam=0.5), TASK, model.chat, sampling(model))
    assert recipe.pairs is not None
    judged = recipe._judged(everyone, 3)
    assert len(judged) == sum(2 * min(n, len(g) - n) for g in groups for n in [sum(r.grade.correct for r in g)]) > 0
    asked = {}
    for i in judged:
        r = everyone[i]
        sample = recipe._judge(context_sample(r), r, 0.5, [])
        assert sample.targets == [0.0] * (len(sample.tokens) - 1) + [0.5]
        assert sample.tokens[-1] == model.chat.a_b_ids[0 if r.grade.correct else 1]
        asked[tuple(sample.tokens[:-1])] = i
    for right, wrong in recipe.pairs.met:
        assert right.problem == wrong.problem and right.grade.correct and not wrong.grade.correct
        for a, b in ((right, wrong), (wrong, right)):
            assert everyone[asked.pop(tuple(question(model.chat, a, b)))] is a
    assert not asked
    assert recipe._judged(everyone, 3) == judged != recipe._judged(everyone, 4)


def test_a_run_learns_and_logs_it(tmp_path: Path) -> None:
    recipe = RLV(verify="pairs", rollouts=4, score_every=1)
    settings = Config(
        recipe=recipe, task=TASK, rollout=Rollouts(problems=4, max_tokens=30), train=Train(steps=2, save_every=0)
    )
    last = training.train(settings, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["target_loss"] > 0 and 0 <= row["pairs/accuracy"] <= 1 and 0 < row["pairs/first"] < 1
    plans = ["best-2:judge=pairs", "majority-2"]
    out = run.evaluate(run.load(last), TASK, Eval(problems=2, n=2, max_tokens=30), out=tmp_path / "eval", plans=plans)
    ran = [json.loads(line)["plan"] for line in (out / "plans.jsonl").read_text().splitlines()]
    assert ran == ["best-2:judge=pairs,max_tokens=30"] * 2  # a vote is computed from the pool, a tournament is not


def test_it_learns_which_of_two_is_right() -> None:
    """A few updates on the pairs' term alone: the right one of a pair is told by an engine that reads the weights."""
    model = run.load("tiny")
    everyone = [r for g in drawn(model, 6) for r in g]
    recipe = Recipe(RLV(verify="pairs"), TASK, model.chat, sampling(model))
    assert recipe.pairs is not None
    judged = recipe._judged(everyone, 0)
    samples = [recipe._judge(context_sample(everyone[i]), everyone[i], 1.0, []) for i in judged]
    of = Learner(model.engine.model, Optim(lr=5e-4, warmup=0), Loss(), steps=20)
    losses = [of.update(samples)["target_loss"] for _ in range(20)]
    model.engine.load(of.weights())
    assert losses[-1] < 0.5 * losses[0]
    assert recipe.pairs.scores(model.engine)["pairs/accuracy"] > 0.9
