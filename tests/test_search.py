"""Searches: arithmetic by hand, logic on a language whose best path is known, cost on the real model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import twofold
from twofold.compute.cost import Cost, Made
from twofold.compute.judge import p_yes
from twofold.compute.mcts import MCTS, mcts
from twofold.compute.rollout import candidate
from twofold.compute.search import DVTS, Beam, Particles, Rebase, beam, dvts, particles, rebase
from twofold.compute.tree import Steps
from twofold.compute.value import agreement, answers_here, outlook
from twofold.engines.base import Engine
from twofold.engines.sampling import uniforms
from twofold.maths.search import particle_probabilities, puct, rebase_allocation
from twofold.maths.votes import choose
from twofold.tasks.procedural import Sums
from twofold.text.chat import Chat
from twofold.text.prompts import JUDGE
from twofold.types import Completion, Rollout, Sampling

# ---------------------------------------------------------------- arithmetic


def test_rebase_shares_the_width_by_reward():
    assert rebase_allocation([0.9, 0.7, 0.3, 0.1], 16, 0.2) == [12, 4, 0, 0]
    assert rebase_allocation([0.1, 0.9, 0.3, 0.7], 16, 0.2) == [0, 12, 0, 4]  # whatever the order
    assert rebase_allocation([0.3] * 4, 8) == [2, 2, 2, 2]
    assert rebase_allocation([0.5, 0.5, 0.5], 4) == [2, 1, 1]
    assert rebase_allocation([0.5, 0.4], 0) == [0, 0]
    assert rebase_allocation([], 4) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 100), st.floats(1e-3, 10))
def test_rebase_gives_out_exactly_the_width_and_more_for_more(rewards, width, temperature):
    counts = rebase_allocation(rewards, width, temperature)
    assert sum(counts) == width
    assert min(counts) >= 0
    ranked = [count for _, count in sorted(zip(rewards, counts, strict=True), key=lambda x: -x[0])]
    assert all(b <= a + 1 for a, b in pairwise(ranked))  # one more only where the remainder is given out


def test_particle_weights_are_of_the_logit():
    assert particle_probabilities([0.9, 0.5, 0.1]) == pytest.approx([0.890, 0.099, 0.011], abs=5e-4)
    # at temperature 2 the odds 9 : 1 : 1/9 become 3 : 1 : 1/3
    assert particle_probabilities([0.9, 0.5, 0.1], 2.0) == pytest.approx([9 / 13, 3 / 13, 1 / 13])
    certain = particle_probabilities([1.0, 0.0])
    assert certain == pytest.approx([1, 0], abs=1e-12)
    assert certain[1] > 0


def test_puct():
    assert puct(q=0.4, prior=0.5, parent_visits=10, visits=3, c_init=1.25) == pytest.approx(0.89433, abs=5e-6)
    assert puct(q=0.4, prior=0.5, parent_visits=0, visits=0) == 0.4  # before the first visit only the value counts


@pytest.mark.parametrize(
    "call",
    [
        lambda: rebase_allocation([0.5], -1),
        lambda: rebase_allocation([0.5], 4, 0.0),
        lambda: particle_probabilities([0.5], 0.0),
        lambda: Steps(tokens=0),
        lambda: Steps(depth=0),
        lambda: MCTS(children=0),
    ],
)
def test_bad_numbers_are_refused(call):
    with pytest.raises(ValueError, match=r"at least|above"):
        call()


# ---------------------------------------------------------------- a language whose best path is known

LEVELS = 5
BEST = "R" * LEVELS
LEFT = 0.6
"""Chance of an L at every fork."""


class Corridor:
    """Five lines, each "L" (likelier) or "R", then the path in a box. P(Yes) falls by a factor of 4 with every L.

    So the likeliest path is the worst, and the best is one sample in a hundred.
    """

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.calls: list[int] = []

    def path(self, tokens: Sequence[int]) -> str:
        """Return the turns so far, of a prompt with or without a judgement question after the solution."""
        text = self.chat.tokenizer.decode(list(tokens)).split("<|assistant|>")[1]
        return "".join(line for line in text.split("\n") if line in ("L", "R"))

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[Completion]]:
        self.calls.append(len(prompts) * sampling.n)
        draws = iter(uniforms(prompts, sampling))
        return [[self._one(list(p), sampling, next(draws)) for _ in range(sampling.n)] for p in prompts]

    def _one(self, prompt: list[int], sampling: Sampling, draws: Any) -> Completion:
        said = len(prompt) - prompt.index(self.chat.tokenizer.convert_tokens_to_ids("<|assistant|>")) - 1
        path = self.path(prompt)
        path += "".join("L" if u < LEFT else "R" for u in draws[: LEVELS - len(path)])
        text: list[int] = []
        logprobs: list[float] = []
        for turn in path:
            text += self.chat.encode(turn + "\n")
            logprobs += [math.log(LEFT if turn == "L" else 1 - LEFT), 0.0]
        text += [*self.chat.encode(f"\\boxed{{{path}}}"), self.chat.stop[0]]
        logprobs += [0.0] * (len(text) - len(logprobs))
        ends = [i for i, t in enumerate(text) if i >= said and t in sampling.stop]
        until = min(ends[0] + 1, said + sampling.max_tokens)
        finish = "stop" if text[until - 1] in sampling.stop else "length"
        return Completion(text[said:until], logprobs[said:until], [True] * (until - said), finish)

    def logprobs(self, prompts: Any, continuations: Any, temperature: float = 1.0) -> list[list[float]]:
        return [[math.log(0.9) - math.log(4) * self.path(p).count("L")] for p in prompts]

    def load(self, weights: Any) -> None: ...

    def rest(self) -> None: ...


@pytest.fixture(scope="module")
def chat(tiny_model: Path) -> Chat:
    return Chat(AutoTokenizer.from_pretrained(tiny_model))


MAKERS: dict[str, tuple[Callable[..., list[Made]], Any]] = {
    "beam": (beam, Beam()),
    "dvts": (dvts, DVTS()),
    "rebase": (rebase, Rebase()),
    "particles": (particles, Particles()),
    "mcts": (mcts, MCTS()),
}
each_maker = pytest.mark.parametrize("name", MAKERS)


def make(name: str, engine: Engine, chat: Chat, questions: list[str], n: int, seed: int = 0, **changes: Any):
    maker, config = MAKERS[name]
    sampling = Sampling(
        max_tokens=changes.pop("max_tokens", 64), seed=seed, temperature=changes.pop("temperature", 1.0)
    )
    value = changes.pop("value_of", None)
    return maker(engine, chat, questions, n, sampling, replace(config, **changes), value=value)


def independent(chat: Chat, seed: int, n: int) -> list[str | None]:
    sampling = Sampling(n=n, max_tokens=64, stop=chat.stop, seed=seed)
    (group,) = Corridor(chat).generate([chat.prompt("Where?")], sampling)
    return [candidate(chat, [], c).answer for c in group]


@each_maker
def test_search_finds_what_independent_samples_of_the_same_number_do_not(name, chat):
    seeds = range(20)
    found, sampled = 0, 0
    for seed in seeds:
        (made,) = make(name, Corridor(chat), chat, ["Where?"], 8, seed)
        found += choose([r.answer for r in made.candidates], made.scores, "best") == BEST
        sampled += BEST in independent(chat, seed, 8)
    assert sampled <= 4  # 1 - (63/64)^8 = 12%
    # dvts has two trees with four tries at each level, the others one with eight
    assert found >= (10 if name == "dvts" else 12)


@each_maker
def test_scores_are_the_value_of_the_whole_solution(name, chat):
    (made,) = make(name, Corridor(chat), chat, ["Where?"], 8)
    assert made.scores == pytest.approx([0.9 / 4 ** r.answer.count("L") for r in made.candidates])
    for r in made.candidates:
        assert r.completion.finish == "stop"
        assert r.completion.tokens[-1] in chat.stop
        assert r.text == "\n".join([*r.answer, f"\\boxed{{{r.answer}}}"])


@each_maker
def test_a_search_depends_on_seed_and_question_and_not_on_company(name, chat):
    def texts(questions: list[str], seed: int) -> list[list[str]]:
        made = make(name, Corridor(chat), chat, questions, 8, seed)
        return [[r.text for r in m.candidates] for m in made]

    alone, among = texts(["Where?"], 3), texts(["Which way?", "Where?", "And now?"], 3)
    assert among[1] == alone[0]
    assert texts(["Where?"], 3) == alone
    assert any(texts(["Where?"], seed) != alone for seed in range(4, 8))


@each_maker
def test_questions_share_their_engine_calls(name, chat):
    one, many = Corridor(chat), Corridor(chat)
    made = make(name, many, chat, [f"Where is {i}?" for i in range(5)], 8)
    make(name, one, chat, ["Where is 0?"], 8)
    if name == "mcts":  # its searches differ in length; there are as many rounds as the longest takes
        assert len(many.calls) < 2 * len(one.calls)
    else:
        assert len(many.calls) == LEVELS + 1
    assert len(made) == 5


def test_counts_of_a_tree_by_hand(chat):
    """One tree of width 4 has five levels of 4 lines, of which one is kept, and 4 ends: 5 * 3 lines are discarded."""
    (made,) = make("dvts", Corridor(chat), chat, ["Where?"], 4)
    line, judge = len(chat.encode("L\n")), len(chat.follow_up(JUDGE)) + 1
    (end,) = {len(r.completion.tokens) - 5 * line for r in made.candidates}
    assert (made.cost.generated, made.cost.discarded) == (20 * line + 4 * end, 15 * line)
    assert made.cost.prompt == len(chat.prompt("Where?"))
    # equal texts are judged once: one or two at each level, and one end, which closes its turn itself
    assert made.cost.verified - (judge - 1) in [k * judge for k in range(5, 11)]


def test_one_particle_or_one_leaf_is_plain_sampling_and_wastes_nothing(chat):
    for name in ("particles", "rebase"):
        (made,) = make(name, Corridor(chat), chat, ["Where?"], 1)
        assert len(made.candidates) == 1
        assert made.cost.discarded == 0


def test_rebase_ends_in_n_leaves_and_particles_in_n_particles(chat):
    for name in ("rebase", "particles"):
        (made,) = make(name, Corridor(chat), chat, ["Where?"], 8)
        assert len(made.candidates) == 8


def test_mcts_visits_each_candidate_once(chat):
    (made,) = make("mcts", Corridor(chat), chat, ["Where?"], 4, simulations=30)
    assert len({r.text for r in made.candidates}) == len(made.candidates) == 4


def test_the_last_step_runs_to_the_end(chat):
    engine = Corridor(chat)
    (made,) = make("beam", engine, chat, ["Where?"], 8, steps=Steps(depth=2))
    assert len(engine.calls) == 2
    assert all(len(r.answer or "") == LEVELS for r in made.candidates)


def test_steps_of_a_number_of_tokens(chat):
    engine = Corridor(chat)
    (made,) = make("particles", engine, chat, ["Where?"], 4, steps=Steps(unit="tokens", tokens=4))
    longest = max(len(r.completion.tokens) for r in made.candidates)
    assert len(engine.calls) == math.ceil(longest / 4)
    assert all(r.text == "\n".join([*r.answer, f"\\boxed{{{r.answer}}}"]) for r in made.candidates)


def test_a_process_verifier_takes_the_model_s_place(chat):
    def likes_left(engine: Engine, chat: Chat, partials: Sequence[Rollout]) -> list[tuple[float, int]]:
        return [(0.9 / 4 ** r.text.count("R"), 7) for r in partials]

    (made,) = make("beam", Corridor(chat), chat, ["Where?"], 8, value_of=likes_left)
    assert made.candidates[0].answer == "L" * LEVELS
    assert made.cost.verified % 7 == 0


def test_solutions_are_cut_at_the_limit_and_the_cut_tokens_are_discarded(chat):
    (made,) = make("particles", Corridor(chat), chat, ["Where?"], 4, max_tokens=8, steps=Steps(unit="tokens", tokens=5))
    assert {len(r.completion.tokens) for r in made.candidates} == {8}
    assert all(r.answer is None and r.completion.finish == "length" for r in made.candidates)


@pytest.mark.parametrize("name", ["beam", "dvts"])
def test_a_width_that_does_not_divide_n_is_refused(name, chat):
    with pytest.raises(ValueError, match="n = 6 must be a multiple of the width, 4"):
        make(name, Corridor(chat), chat, ["Where?"], 6)


def test_line_ends_are_the_tokens_with_a_line_break(chat):
    assert chat.line_ends
    assert all("\n" in chat.tokenizer.decode([t]) for t in chat.line_ends)
    assert set(chat.encode("one\ntwo\n\nthree")) & set(chat.line_ends)
    assert not set(chat.encode("one two")) & set(chat.line_ends)


# ---------------------------------------------------------------- the shipped model


class Counting:
    """An engine that records the calls to the real one."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.generated = 0
        self.texts: set[tuple[int, ...]] = set()
        self.judged: list[tuple[int, ...]] = []

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[Completion]]:
        out = self.engine.generate(prompts, sampling)
        self.generated += sum(len(c.tokens) for g in out for c in g)
        self.texts |= {(*p, *c.tokens) for p, g in zip(prompts, out, strict=True) for c in g}
        return out

    def logprobs(self, prompts: Any, continuations: Any, temperature: float = 1.0) -> list[list[float]]:
        self.judged += map(tuple, prompts)
        return self.engine.logprobs(prompts, continuations, temperature)

    def judge_tokens(self, chat: Chat) -> int:
        """Return the tokens read beyond the generated ones: question and verdict, without the turn's closing if the model wrote it."""
        follow = chat.follow_up(JUDGE)
        closed = sum(p[: 1 - len(follow)] in self.texts for p in self.judged)
        return len(self.judged) * (len(follow) + 1) - closed

    def load(self, weights: Any) -> None:
        self.engine.load(weights)

    def rest(self) -> None:
        self.engine.rest()


@pytest.fixture(scope="module")
def model() -> Any:
    return twofold.load("tiny")


@pytest.fixture(scope="module")
def questions() -> list[str]:
    return [Sums().problem("test", i).question for i in range(3)]


@each_maker
def test_costs_are_what_the_engine_did(name, model, questions):
    engine = Counting(model.engine)
    made = make(name, engine, model.chat, questions, 4)
    total = sum((m.cost for m in made), Cost())
    assert total.generated == engine.generated
    assert total.verified == engine.judge_tokens(model.chat)
    assert total.prompt == sum(len(model.chat.prompt(q)) for q in questions)
    for m in made:
        assert 0 <= m.cost.discarded < m.cost.generated
        assert m.scores == pytest.approx(p_yes(model.engine, model.chat, m.candidates), abs=1e-5)


@pytest.mark.parametrize("steps", [Steps(), Steps(unit="tokens", tokens=5)], ids=["line", "tokens"])
@pytest.mark.parametrize("name", ["beam", "dvts", "rebase", "particles"])
def test_step_by_step_says_what_one_call_says(name, steps, model, questions):
    """With greedy sampling and n = 1, cutting into steps changes nothing."""
    changes = {"width": 1} if name in ("beam", "dvts") else {}
    made = make(name, model.engine, model.chat, questions, 1, temperature=0.0, steps=steps, **changes)
    prompts = [model.chat.prompt(q) for q in questions]
    plain = model.engine.generate(prompts, Sampling(temperature=0, max_tokens=64, stop=model.chat.stop))
    for m, (c,) in zip(made, plain, strict=True):
        (r,) = m.candidates
        assert (r.completion.tokens, r.completion.finish) == (c.tokens, c.finish)
        assert r.completion.logprobs == pytest.approx(c.logprobs, abs=1e-4)
        assert all(r.completion.sampled)


def solved(model: Any, question: str) -> Rollout:
    prompt = model.chat.prompt(question)
    ((c,),) = model.engine.generate([prompt], Sampling(max_tokens=64, stop=model.chat.stop))
    return candidate(model.chat, prompt, c)


def test_values_of_a_finished_solution_are_its_own(model, questions):
    whole = solved(model, questions[0])
    assert whole.answer is not None
    ((value, read),) = outlook(model.engine, model.chat, [whole])
    assert value == pytest.approx(p_yes(model.engine, model.chat, [whole])[0], abs=1e-6)
    assert read == len(model.chat.follow_up(JUDGE))  # the question and the verdict; it closed its turn itself
    assert agreement(model.engine, model.chat, [whole]) == [(1.0, 0)]


def test_values_of_a_part_come_from_answers_forced_there(model, questions):
    whole = solved(model, questions[0])
    first = whole.completion.tokens[: whole.completion.tokens.index(model.chat.line_ends[0]) + 1]
    n = len(first)
    part = candidate(model.chat, whole.prompt, Completion(first, [0.0] * n, [True] * n, "length"))
    (group,), (spent,) = answers_here(model.engine, model.chat, [part], k=4)
    forced = model.chat.encode("\\boxed{", tags=True)
    assert all(r.completion.tokens[n : n + len(forced)] == forced for r in group)
    assert all(r.completion.sampled[n : n + len(forced)] == [False] * len(forced) for r in group)
    assert spent == sum(len(r.completion.tokens) - n for r in group)
    answers = [r.answer for r in group]
    ((share, _),) = agreement(model.engine, model.chat, [part], k=4)
    assert share == max(answers.count(a) for a in answers if a is not None) / 4
    ((value, read),) = outlook(model.engine, model.chat, [part], k=4)
    assert value == pytest.approx(sum(p_yes(model.engine, model.chat, group)) / 4, abs=1e-5)
    assert read > spent
