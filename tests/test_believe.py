"""Progress by likelihood: P(known answer) at each end of a thought, and MRT-online's credit from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM

from twofold import run
from twofold.compute.believe import believed
from twofold.compute.probe import Prover, boundaries, probe, stopped
from twofold.compute.rollout import rollouts
from twofold.maths.credit import grpo
from twofold.recipes.mrt import MRT, Recipe
from twofold.run import Model
from twofold.tasks.procedural import Sums
from twofold.text.segments import Episodes
from twofold.types import Rollout, Sampling

TASK = Sums(level=1, choice=1.0, choices=3)
PROVER = Prover(opening="<think>\n", hurry="", answer="\n\\boxed{", tokens=4)
EPISODES = Episodes(shortest=1, most=5)


@pytest.fixture(scope="module")
def model() -> Model:
    return run.load("tiny")


@pytest.fixture(scope="module")
def thoughts(model: Model) -> list[Rollout]:
    how = Sampling(2, max_tokens=60, stop=model.chat.stop)
    problems = [TASK.problem("train", i) for i in range(3)]
    return [r for g in rollouts(model.engine, model.chat, TASK, problems, how, PROVER.opening) for r in g]


def ends_of(model: Model, thoughts: Sequence[Rollout]) -> list[list[int]]:
    return [boundaries(model.chat, r, PROVER, EPISODES) for r in thoughts]


def test_it_is_the_probability_of_the_answer(model: Model, thoughts: list[Rollout]) -> None:
    ends = ends_of(model, thoughts)
    assert max(map(len, ends)) > 2
    oracle = AutoModelForCausalLM.from_pretrained(run.shipped(), dtype=torch.float32)
    for r, own, row in zip(thoughts, ends, believed(model.engine, model.chat, thoughts, ends, PROVER), strict=True):
        for end, belief in zip(own, row, strict=True):
            begun = stopped(model.chat, r, end, PROVER, cut=end < own[-1])
            answer = model.chat.encode(r.problem.answer + "}")
            before = [*begun.prompt, *begun.completion.tokens]
            with torch.inference_mode():
                logp = oracle(torch.tensor([[*before, *answer]])).logits[0].double().log_softmax(-1)
            expected = math.exp(sum(float(logp[len(before) + i - 1, t]) for i, t in enumerate(answer)))
            assert belief.end == end and belief.value == pytest.approx(expected, abs=1e-4)
            assert belief.cost.verified == len(begun.completion.tokens) - end + len(answer)
            assert belief.cost.generated == 0


def test_two_tokens_of_a_half_and_four_fifths_are_two_fifths(model: Model, thoughts: list[Rollout]) -> None:
    class Fixed:
        def logprobs(self, prompts: Sequence[object], answers: Sequence[Sequence[int]], t: float) -> list[list[float]]:
            return [[math.log(0.5), math.log(0.8)] for _ in prompts]

    (row,) = believed(Fixed(), model.chat, thoughts[:1], [[0]], PROVER)  # type: ignore[arg-type]
    assert row[0].value == pytest.approx(0.4)


def test_drawn_answers_estimate_it(model: Model, thoughts: list[Rollout]) -> None:
    ends, n = ends_of(model, thoughts[:2]), 100
    likely = believed(model.engine, model.chat, thoughts[:2], ends, PROVER)
    how = Sampling(n, stop=model.chat.stop, seed=5)
    drawn = probe(model.engine, model.chat, TASK, thoughts[:2], ends, PROVER, how)
    for a, b in zip([x for row in likely for x in row], [x for row in drawn for x in row], strict=True):
        assert abs(a.value - b.value) < 5 * math.sqrt(max(a.value * (1 - a.value), 0.01) / n)


def test_online_credits_its_differences(model: Model) -> None:
    config = MRT(method="online", progress="likelihood", rollouts=3, alpha=2.0, prover=PROVER, episodes=EPISODES)
    recipe = Recipe(config, TASK, model.chat, Sampling(max_tokens=60, seed=2))
    found = recipe.collect(model.engine, [TASK.problem("train", i) for i in range(3)], 0)
    everyone = [r for g in found.groups for r in g]
    outcome = [a for g in found.groups for a in grpo([r.grade.known for r in g])]
    rows = believed(model.engine, model.chat, everyone, ends_of(model, everyone), PROVER)
    assert any(outcome)
    for r, a, row, sample in zip(everyone, outcome, rows, found.samples["policy"], strict=True):
        credit = [a] * len(r.completion.tokens)
        for before, after in pairwise(row):
            for t in range(before.end, after.end):
                credit[t] += 2.0 * (after.value - before.value)
        assert sample.advantages[len(r.prompt) :] == pytest.approx(credit, abs=1e-4)
    assert 0 < found.stats["mrt/value_last"] < 1
    assert found.stats["mrt/probe_tokens"] == pytest.approx(
        sum(b.cost.verified for row in rows for b in row) / len(rows)
    )


def test_what_cannot_be_valued_is_refused(model: Model, thoughts: list[Rollout]) -> None:
    with pytest.raises(ValueError, match=r"prover.answer that ends in \\boxed\{"):
        believed(model.engine, model.chat, thoughts, ends_of(model, thoughts), replace(PROVER, answer="So "))
    with pytest.raises(ValueError, match='is for method = "online": rl'):
        MRT(progress="likelihood")
    with pytest.raises(ValueError, match="draws no answers: leave out answers"):
        MRT(method="online", progress="likelihood", answers=8)
