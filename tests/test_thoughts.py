"""Thoughts stopped at budgets: by hand with a scripted engine, and against budget forcing with the shipped model."""

from __future__ import annotations

from typing import Any

import pytest
from test_mrt import ASKED, P0, P1, P2, PLAIN, SHIPPED, SHORT, TWO, Q, Scripted, Words

import twofold
from twofold.compute.think import Forcing, forcing
from twofold.evals.thoughts import measure
from twofold.maths.regret import normalised_regret
from twofold.tasks.procedural import Sums
from twofold.types import Sampling


@pytest.fixture(scope="module")
def model() -> Any:
    return twofold.load("tiny")


def test_a_thought_at_budgets_by_hand(model):
    """J = 0, 1/2, 1 behind 0, 1, 2 episodes, 1/4 where a budget ends in the second."""
    chat = model.chat
    size = [len(chat.encode(t, tags=True)) for t in ("a\n\n", "a\n\nWait b\n")]
    inside = size[0] + 1
    text = chat.decode(chat.encode(TWO, tags=True)[:inside])
    cut = f"Q0<think>\n{text}\n</think>\n"
    y, n = "yes", "no"
    answers = {ASKED[P0]: [n] * 4, ASKED[P1]: [n, n, y, y], cut: [n, n, n, y], ASKED[P2]: [y] * 4}
    engine = Scripted(chat, [{P0: [TWO]}, answers])
    [thought] = measure(engine, chat, Words(), [Q], Sampling(seed=3), PLAIN, SHORT, [inside, 100], 4)
    assert engine.calls[0][1].max_tokens == 100 and engine.calls[0][1].seed != engine.calls[1][1].seed
    assert (thought.ends, thought.values) == ([0, size[0], inside, size[1]], [0, 0.5, 0.25, 1])
    assert thought.value(inside) == 0.25 and thought.value(100) == 1  # it ended by itself
    assert thought.progress_values == [0, 0.5, 1]
    assert (thought.reward, thought.tokens) == (1, len(chat.encode(TWO, tags=True)) + 1)
    # "</think>\n" and an answer with its end token, and the line break before it where the cut is within a line
    closing = len(chat.encode("</think>\n", tags=True))
    yes, no = (len(chat.encode(t)) + 1 for t in (y, n))
    broken = len(chat.encode("\n</think>\n", tags=True)) - closing
    assert thought.closing == pytest.approx(closing + (7 * yes + 9 * no + 4 * broken) / 16)
    assert thought.spent(inside) == inside + thought.closing and thought.spent(100) == size[1] + thought.closing
    points = [(end + thought.closing, j) for end, j in ((0, 0.0), (size[0], 0.5), (size[1], 1.0))]
    assert normalised_regret(thought.points, 50) == pytest.approx(normalised_regret(points, 50))


def test_a_budget_is_that_of_budget_forcing(model):
    """Greedy: a thought stopped at a budget answers as it does when it may not be longer."""
    task = Sums(level=1, choice=1.0)
    problems = [task.problem("train", i) for i in range(8)]
    thoughts = measure(
        model.engine, model.chat, task, problems, Sampling(temperature=0), SHIPPED, SHORT, [30, 45, 120], 1
    )
    questions = [p.question for p in problems]
    for budget in (30, 45, 120):
        config = Forcing(opening="<think>\n", end="</think>", answer_tokens=8)
        made = forcing(model.engine, model.chat, questions, 1, Sampling(temperature=0, max_tokens=budget), config)
        rewards = [task.grade(p, m.candidates[0].text)[1].reward for p, m in zip(problems, made, strict=True)]
        assert [t.value(budget) for t in thoughts] == rewards
    assert len({t.value(30) for t in thoughts}) == 2 and sum(t.ends[-1] > 45 for t in thoughts) >= 2
