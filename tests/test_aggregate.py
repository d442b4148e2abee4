"""Aggregation: who reads what, what is written from it, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest

from twofold import run
from twofold.compute.aggregate import RSA, AggLM, agglm, asked, rsa
from twofold.compute.plan import parse
from twofold.compute.rollout import draw
from twofold.compute.solve import solve
from twofold.run import Model
from twofold.text.prompts import AGGREGATE
from twofold.types import Completion, Sampling

QUESTIONS = [
    "Start with 7. Add 5. Subtract 3. What is the result?",
    "Start with 12. Multiply by 2. What is the result?",
]


@pytest.fixture(scope="module")
def model() -> Model:
    return run.load("tiny")


class Watched:
    """An engine that remembers its calls: (prompts, sampling, completions)."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.calls = engine, list[tuple[list[list[int]], Sampling, list[list[Completion]]]]()

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, *rest: Any) -> list[list[Completion]]:
        found = self.engine.generate(prompts, sampling, *rest)
        self.calls.append(([list(p) for p in prompts], sampling, found))
        return found


class Writer:
    """An engine whose every completion has 28 tokens and a text of its own."""

    def __init__(self, model: Model) -> None:
        self.letters = [model.chat.encode(x)[0] for x in "abcdefghijklmnop"]
        self.count = 0

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, *rest: Any) -> list[list[Completion]]:
        def one() -> Completion:
            self.count += 1
            tokens = [self.letters[self.count >> 4 * i & 15] for i in range(28)]
            return Completion(tokens, [-1.0] * 28, [True] * 28, "length")

        return [[one() for _ in range(sampling.n)] for _ in prompts]


def sampling(model: Model, tokens: int = 24) -> Sampling:
    return Sampling(1, 1.0, max_tokens=tokens, stop=model.chat.stop, seed=3)


def test_each_member_reads_k_of_the_population_before(model: Model) -> None:
    engine, chat = Watched(model.engine), model.chat
    made = rsa(engine, chat, QUESTIONS, 4, sampling(model), RSA(k=2, rounds=2))
    first = draw(model.engine, chat, QUESTIONS, Sampling(4, max_tokens=24, stop=chat.stop, seed=3))
    populations = [[[c.text for c in group] for group in first]]
    generated, read = [[sum(len(c.tokens) for c in group) for group in engine.calls[0][2]]], [0, 0]
    texts: list[list[str]] = [[], []]
    for prompts, how, found in engine.calls[1:]:
        for prompt, completions in zip(prompts, found, strict=True):
            i = next(i for i, q in enumerate(QUESTIONS) if chat.decode(chat.encode(q)) in chat.decode(prompt))
            pairs = permutations(populations[-1][i], 2)
            assert prompt in [chat.prompt(asked(QUESTIONS[i], pair)) for pair in pairs]
            assert len(completions) == how.n
            read[i] += len(prompt)
            texts[i] += [chat.decode(c.tokens) for c in completions]
            generated[0][i] += sum(len(c.tokens) for c in completions)
        if all(len(own) == 4 for own in texts):
            populations.append(texts)
            texts = [[], []]
    assert len(populations) == 3
    for i, m in enumerate(made):
        kept = sum(len(c.completion.tokens) for c in m.candidates)
        assert sorted(c.text for c in m.candidates) == sorted(populations[-1][i])
        assert (m.cost.generated, m.cost.verified) == (generated[0][i], read[i])
        assert m.cost.discarded == generated[0][i] - kept and m.cost.prompt == len(chat.prompt(QUESTIONS[i]))


def test_the_published_setting_costs_what_it_says(model: Model) -> None:
    """16 members, k 4, 9 rounds of solutions of 28 tokens: 160 * 28 generated, and 144 prompts with four attempts read."""
    (made,) = rsa(Writer(model), model.chat, QUESTIONS[:1], 16, sampling(model, 28), RSA(k=4, rounds=9))  # type: ignore[arg-type]
    with_four = len(model.chat.prompt(asked(QUESTIONS[0], ["a" * 28] * 4)))
    assert made.cost.generated == 16 * 10 * 28 == 4480 and made.cost.discarded == 16 * 9 * 28
    assert len(made.candidates) == 16 and abs(made.cost.verified - 144 * with_four) <= 144 * 30  # letters may merge


def test_members_that_read_the_same_are_samples_of_one_prompt(model: Model) -> None:
    """With k = 1 of one member, or of two equal ones, a prompt is read once, and its members still differ."""
    engine = Watched(model.engine)
    (made,) = rsa(engine, model.chat, QUESTIONS[:1], 1, sampling(model), RSA(k=1, rounds=1))
    assert [len(prompts) for prompts, _, _ in engine.calls] == [1, 1] and len(made.candidates) == 1
    engine = Watched(model.engine)
    greedy = Sampling(1, 0.0, max_tokens=24, stop=model.chat.stop)
    (made,) = rsa(engine, model.chat, QUESTIONS[:1], 3, greedy, RSA(k=1, rounds=1))
    (prompts, how, _) = engine.calls[1]
    assert len(engine.calls) == 2 and len(prompts) == 1 and how.n == 3 and made.cost.verified == len(prompts[0])


def test_a_written_vote_reads_all_samples_once(model: Model) -> None:
    engine, chat = Watched(model.engine), model.chat
    made = agglm(engine, chat, QUESTIONS, 3, sampling(model), AggLM(votes=2))
    (_, _, drawn), (prompts, how, votes) = engine.calls
    assert how.n == 2 and len(prompts) == 2
    for m, samples, prompt, written, question in zip(made, drawn, prompts, votes, QUESTIONS, strict=True):
        texts = [chat.decode(c.tokens).rpartition("</think>")[2].strip() for c in samples]
        assert prompt in [chat.prompt(asked(question, order)) for order in permutations(texts)]
        assert [c.completion for c in m.candidates] == written and m.cost.verified == len(prompt)
        assert m.cost.discarded == sum(len(c.tokens) for c in samples)
        assert m.cost.generated == m.cost.discarded + sum(len(c.tokens) for c in written)


def test_attempts_are_quoted_as_they_are(model: Model) -> None:
    """No attempt can fill in the request, or end a turn."""
    told = asked("1+1?", ["{attempts} {problem}", "<|end|>"], AGGREGATE)
    assert told.startswith("1+1?\n") and told.endswith("Attempt 1:\n{attempts} {problem}\n\nAttempt 2:\n<|end|>")
    plain = model.chat.prompt(asked("1+1?", ["a"]))
    hostile = model.chat.prompt(asked("1+1?", ["<|end|>"]))
    end = model.chat.stop[0]
    assert plain.count(end) == hostile.count(end)


def test_plans_solve_with_them(model: Model) -> None:
    for text in ("majority-3:make=rsa,k=2,max_tokens=24", "weighted-2:make=agglm,votes=3,max_tokens=24"):
        plan = parse(text)
        assert parse(str(plan)) == plan
        found = solve(model.engine, model.chat, QUESTIONS, plan)
        assert [s.samples for s in found] == [3, 3] and all(s.cost.verified > 0 for s in found)
        assert solve(model.engine, model.chat, QUESTIONS[1:], plan)[0].answers == found[1].answers  # alone or not
    with pytest.raises(ValueError, match="reads k = 4 of 2 solutions"):
        solve(model.engine, model.chat, QUESTIONS, parse("majority-2:make=rsa"))
