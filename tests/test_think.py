"""Budget forcing, extrapolation and self-correction on the shipped model, which has seen thoughts between <think> tags."""

from __future__ import annotations

from typing import Any

import pytest

import twofold
from twofold.compute.cost import Cost, Made
from twofold.compute.judge import p_yes
from twofold.compute.judge import question as judgement
from twofold.compute.rollout import forced, join, split
from twofold.compute.think import Correction, Forcing, correction, forcing
from twofold.tasks.procedural import Sums
from twofold.text.prompts import EXTRAPOLATION, JUDGE
from twofold.types import Completion, Sampling

THINK = dict(opening="<think>\n", end="</think>", answer="")
"""The shipped model writes its box after </think> by itself."""
GREEDY = Sampling(temperature=0, max_tokens=120)


@pytest.fixture(scope="module")
def model() -> Any:
    return twofold.load("tiny")


@pytest.fixture(scope="module")
def questions() -> list[str]:
    return [Sums(choices=3).problem("test", i).question for i in range(4)]


def drawn(made: list[Made]) -> list[str]:
    return [r.text for m in made for r in m.candidates]


def said(model: Any, completion: Completion) -> list[str]:
    """Return the forced parts of a completion, one text for each run of forced tokens."""
    runs: list[list[int]] = []
    for t, (token, sampled) in enumerate(zip(completion.tokens, completion.sampled, strict=True)):
        if not sampled:
            if t == 0 or completion.sampled[t - 1]:
                runs.append([])
            runs[-1].append(token)
    return [model.chat.decode(r) for r in runs]


# ---------------------------------------------------------------- pieces of completions


def test_join_and_split_undo_each_other():
    a = Completion([1, 2, 3], [-1.0, -2.0, -3.0], [True] * 3, "length", [1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    b = Completion([4], [-4.0], [True], "stop", [7.0], [8.0])
    whole = join(a, forced([9, 9]), b)
    assert whole.tokens == [1, 2, 3, 9, 9, 4]
    assert whole.logprobs == [-1.0, -2.0, -3.0, 0.0, 0.0, -4.0]
    assert whole.sampled == [True, True, True, False, False, True]
    assert (whole.token_confidence, whole.token_certainty) == (
        [1.0, 2.0, 3.0, 0.0, 0.0, 7.0],
        [4.0, 5.0, 6.0, 0.0, 0.0, 8.0],
    )
    assert whole.finish == "stop"
    head, tail = split(whole, 3)
    assert (head, tail.tokens, tail.finish) == (a, [9, 9, 4], "stop")
    assert join(head, tail) == whole
    assert split(whole, 6) == (whole, forced([]))
    assert join(forced([1]), forced([2])).token_confidence is None


# ---------------------------------------------------------------- budget forcing


def test_nothing_forced_is_plain_sampling(model, questions):
    made = forcing(model.engine, model.chat, questions, 1, GREEDY, Forcing())
    prompts = [model.chat.prompt(q) for q in questions]
    plain = model.engine.generate(prompts, Sampling(temperature=0, max_tokens=120, stop=model.chat.stop))
    for m, (c,) in zip(made, plain, strict=True):
        (r,) = m.candidates
        assert (r.completion.tokens, r.completion.sampled, r.completion.finish) == (c.tokens, c.sampled, c.finish)
        assert (m.cost.generated, m.cost.discarded, m.cost.verified, m.scores) == (len(c.tokens), 0, 0, None)


@pytest.mark.parametrize("style", [{}, THINK], ids=["plain", "tags"])
def test_the_end_is_suppressed_that_many_times(style, model, questions):
    sampling = Sampling(max_tokens=400, seed=1)
    made = forcing(model.engine, model.chat, questions, 2, sampling, Forcing(**style, times=2))
    opening = ["<think>\n"] if style else []
    whole = [r for m in made for r in m.candidates if len(said(model, r.completion)) == len(opening) + 2]
    assert len(whole) >= 6  # the others ran into the limit
    for r in whole:
        assert [s.strip() for s in said(model, r.completion)] == [s.strip() for s in opening] + ["Wait", "Wait"]
        assert not style or r.text.count("</think>") == 1  # a suppressed end is not in the text
        assert r.completion.tokens[-1] in model.chat.stop
        assert not set(r.completion.tokens[:-1]) & set(model.chat.stop)


def test_log_probs_are_those_of_the_text_with_what_was_forced(model, questions):
    """The log-prob of a drawn token is that of a new scoring, given all tokens before it, forced ones too. Forced tokens have 0."""
    made = forcing(model.engine, model.chat, questions[:2], 2, Sampling(max_tokens=60), Forcing(**THINK, times=1))
    rollouts = [r for m in made for r in m.candidates]
    model.engine.load({})
    scored = model.engine.logprobs([r.prompt for r in rollouts], [r.completion.tokens for r in rollouts])
    for r, logprobs in zip(rollouts, scored, strict=True):
        expected = [x if s else 0.0 for x, s in zip(logprobs, r.completion.sampled, strict=True)]
        assert r.completion.logprobs == pytest.approx(expected, abs=1e-4)


def test_a_thought_over_its_limit_is_closed_and_answers(model, questions):
    config = Forcing(opening="<think>\n", end="</think>", answer="\\boxed{", answer_tokens=7)
    made = forcing(model.engine, model.chat, questions, 2, Sampling(max_tokens=12), config)
    for r in (r for m in made for r in m.candidates):
        assert said(model, r.completion)[1].strip() == "</think>\n\\boxed{"
        inside = r.completion.sampled.index(True)
        assert r.completion.sampled[inside : inside + 13] == [True] * 12 + [False]
        assert sum(r.completion.sampled) <= 12 + 7


def test_with_the_right_closing_nearly_all_that_were_cut_answer(model):
    """The thought is cut after 12 tokens, in the middle of a line; the shipped model then answers after this string."""
    questions = [Sums().problem("test", i).question for i in range(40)]
    config = Forcing(answer="</think>\n\\boxed{", answer_tokens=16)
    made = forcing(model.engine, model.chat, questions, 1, Sampling(max_tokens=12), config)
    assert sum(m.candidates[0].answer is not None for m in made) >= 38


def test_continuations_share_one_limit(model, questions):
    config = Forcing(**THINK, times=8, answer_tokens=1)
    made = forcing(model.engine, model.chat, questions, 2, Sampling(max_tokens=100), config)
    assert all(sum(r.completion.sampled) <= 100 + 1 + 8 for m in made for r in m.candidates)  # at least one token each


def test_extrapolation_strings_take_turns_each_with_its_own_limit(model, questions):
    config = Forcing(**THINK, times=6, waits=EXTRAPOLATION, each=60)
    made = forcing(model.engine, model.chat, questions, 2, Sampling(max_tokens=200, seed=3), config)
    cycle = [*EXTRAPOLATION, *EXTRAPOLATION[:2]]
    several = 0
    for r in (r for m in made for r in m.candidates):
        strings = [s.strip() for s in said(model, r.completion)[1:] if "</think>" not in s]
        places = iter(cycle)
        assert all(s in places for s in strings)  # in this order; a string whose paragraph was cut is dropped
        several += len(strings) > 1
    assert several >= 2


def test_continuations_without_a_whole_paragraph_leave_no_trace(model):
    """A continuation of one token is never a paragraph, so the thought stays as it was; its cost is counted."""
    sampling = Sampling(temperature=0, max_tokens=200)
    asked = [Sums(choice=1.0, choices=3).problem("test", i).question for i in range(10)]
    plain = forcing(model.engine, model.chat, asked, 1, sampling, Forcing(**THINK))
    ended = [i for i, made in enumerate(plain) if len(made.candidates[0].completion.tokens) < 150][:3]
    assert len(ended) == 3  # thoughts that end by themselves
    brief = Forcing(**THINK, times=2, waits=("Wait",), each=1)
    cut = forcing(model.engine, model.chat, [asked[i] for i in ended], 1, sampling, brief)
    for a, b in zip([plain[i] for i in ended], cut, strict=True):
        thought = a.candidates[0].text.split("</think>")[0]
        assert b.candidates[0].text.split("</think>")[0].strip() == thought.strip()
        # the suppressed end, and twice a forced string with its one token
        wait = len(model.chat.encode("Wait" if thought.endswith("\n") else "\nWait"))
        assert b.cost.discarded == 1 + 2 * (wait + 1)


def test_costs_of_forcing_are_drawn_and_forced_tokens(model, questions):
    counted = Counter(model.engine)
    made = forcing(counted, model.chat, questions, 2, Sampling(max_tokens=60), Forcing(**THINK, times=2))
    total = sum((m.cost for m in made), Cost())
    words = sum(r.completion.sampled.count(False) for m in made for r in m.candidates)  # no forced token was dropped
    assert total.generated == counted.generated + words
    assert total.generated - total.discarded == sum(len(r.completion.tokens) for m in made for r in m.candidates)


def test_forcing_depends_on_its_seed(model, questions):
    def run(seed: int) -> list[str]:
        return drawn(
            forcing(model.engine, model.chat, questions, 3, Sampling(max_tokens=60, seed=seed), Forcing(times=1))
        )

    assert run(0) == run(0) != run(1)


def test_what_cannot_be_is_refused(model, questions):
    with pytest.raises(ValueError, match="single token"):
        forcing(model.engine, model.chat, questions, 1, GREEDY, Forcing(end="the end of it"))
    with pytest.raises(ValueError, match="a string in waits"):
        Forcing(times=1, waits=())
    with pytest.raises(ValueError, match="at least 0"):
        Forcing(times=-1)
    with pytest.raises(ValueError, match=r"accept must be from 0 to 1"):
        Correction(accept=1.5)


# ---------------------------------------------------------------- self-correction


class Counter:
    """An engine that counts the tokens that the real one draws."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.generated = engine, 0

    def generate(self, prompts: Any, sampling: Sampling) -> list[list[Completion]]:
        out = self.engine.generate(prompts, sampling)
        self.generated += sum(len(c.tokens) for g in out for c in g)
        return out

    def logprobs(self, prompts: Any, continuations: Any, temperature: float = 1.0) -> list[list[float]]:
        return self.engine.logprobs(prompts, continuations, temperature)

    def load(self, weights: Any) -> None: ...

    def rest(self) -> None: ...


def test_accepted_solutions_are_not_tried_again(model, questions):
    sampling = Sampling(max_tokens=60)
    made = correction(model.engine, model.chat, questions, 3, sampling, Correction(rounds=3, accept=0.0))
    prompts = [model.chat.prompt(q) for q in questions]
    plain = model.engine.generate(prompts, Sampling(n=3, max_tokens=60, stop=model.chat.stop))
    for m, prompt, completions in zip(made, prompts, plain, strict=True):
        assert [(r.prompt, r.completion.tokens) for r in m.candidates] == [(prompt, c.tokens) for c in completions]
        assert (m.cost.generated, m.cost.discarded) == (sum(len(c.tokens) for c in completions), 0)


def test_rejected_solutions_are_tried_again_with_the_verdict_in_context(model, questions):
    chat = model.chat
    sampling = Sampling(max_tokens=60)
    first = correction(model.engine, chat, questions, 2, sampling, Correction(rounds=0))
    again = correction(model.engine, chat, questions, 2, sampling, Correction(rounds=1, accept=1.0))
    for q, a, b in zip(questions, first, again, strict=True):
        for before, after in zip(a.candidates, b.candidates, strict=True):
            judged = [*judgement(chat, before), chat.yes_no_ids[1]]
            assert after.prompt == chat.ask(judged, f"Solve the problem again: {q}")
        assert b.scores == pytest.approx(p_yes(model.engine, chat, b.candidates), abs=1e-5)


def test_the_best_attempt_is_at_least_the_last(model, questions):
    def scores(keep: Any) -> list[float]:
        config = Correction(rounds=2, accept=1.0, keep=keep)
        made = correction(model.engine, model.chat, questions, 4, Sampling(max_tokens=60), config)
        return [s for m in made for s in m.scores or []]

    last, best = scores("last"), scores("best")
    assert all(b >= a for a, b in zip(last, best, strict=True))
    assert any(b > a for a, b in zip(last, best, strict=True))


def test_costs_of_correction(model, questions):
    """Three attempts each cost what was drawn, and two follow-ups: the question and the closing after the forced No."""
    counted = Counter(model.engine)
    config = Correction(rounds=2, accept=1.0, retry="Solve the problem again.")
    made = correction(counted, model.chat, questions, 2, Sampling(max_tokens=60), config)
    follow = len(model.chat.follow_up("Solve the problem again."))
    total = sum((m.cost for m in made), Cost())
    assert total.generated == counted.generated + len(questions) * 2 * 2 * follow
    assert total.generated - total.discarded == sum(len(r.completion.tokens) for m in made for r in m.candidates)
    judge = len(model.chat.follow_up(JUDGE)) + 1  # one less where the solution closed its own turn
    attempts = len(questions) * 2 * 3
    assert attempts * (judge - 1) <= total.verified <= attempts * judge
