"""Votes by the model's own certainty, against hand-computed numbers."""

from __future__ import annotations

import pytest

from twofold.maths.confidence import borda, groups, keep_top, trace
from twofold.maths.votes import choose, tally


@pytest.mark.parametrize(("power", "votes"), [(0, {"a": 3, "b": 1}), (1, {"a": 6, "b": 4}), (2, {"a": 14, "b": 16})])
def test_borda_by_hand(power, votes):
    answers = ["a", "b", "a", "a"]
    weights = borda(answers, [-1.0, 3.0, 2.0, 0.0], power)
    assert tally(answers, weights) == pytest.approx(votes)
    assert choose(answers, weights, "weighted") == max(votes, key=votes.__getitem__)


def test_samples_without_an_answer_have_no_rank():
    assert borda(["a", None, "b"], [1.0, 9.0, 2.0], power=1) == [1.0, 0.0, 2.0]
    with pytest.raises(ValueError, match="power"):
        borda(["a"], [1.0], power=-1)


CONFIDENCE = [4.0, 2.0, 1.0, 3.0, 6.0]  # windows of 2: 3, 1.5, 2, 4.5


def test_trace_scores_by_hand():
    assert groups(CONFIDENCE, 2).tolist() == [3.0, 1.5, 2.0, 4.5]
    assert trace(CONFIDENCE, "mean", 2) == pytest.approx(3.2)
    assert trace(CONFIDENCE, "tail", 2) == 4.5
    assert trace(CONFIDENCE, "lowest", 2) == 1.5
    assert trace(CONFIDENCE, "bottom", 2) == 1.5  # a tenth of 4 values: at least one
    assert trace([float(i) for i in range(21)], "bottom", 2) == pytest.approx((0.5 + 1.5) / 2)  # a tenth of 20


@pytest.mark.parametrize("kind", ["mean", "tail", "bottom", "lowest"])
def test_a_trace_shorter_than_a_window_has_its_plain_mean(kind):
    assert trace([1.0, 2.0, 6.0], kind, 100) == 3.0


def test_a_higher_confidence_is_kept():
    answers, confidence = [*"abbba", None], [9.0, 1.0, 1.0, 1.0, 8.0, 99.0]
    weights = keep_top(answers, confidence, 0.4)
    assert weights == [9.0, 0.0, 0.0, 0.0, 8.0, 0.0]
    assert choose(answers, weights, "weighted") == "a"
    assert choose(answers, keep_top(answers, confidence, 1.0), "majority") == "b"
    assert sum(w > 0 for w in keep_top(answers, confidence, 0.01)) == 1
    with pytest.raises(ValueError, match="share"):
        keep_top(answers, confidence, 0.0)


def test_bad_traces_are_refused():
    with pytest.raises(ValueError, match="0 tokens"):
        trace([], "mean", 3)
    with pytest.raises(ValueError, match="window 0"):
        trace([1.0], "lowest", 0)
