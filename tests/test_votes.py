"""Selection rules and their estimators, against brute force over every subset and every way to break a tie."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.maths.votes import best_of_k, choose, curves, ks, pass_at_k, tally, vote_at_k

# ---------------------------------------------------------------- choose and tally

ANSWERS = ["7", "8", "8", "9", "9", None]
SCORES = [0.8, 0.3, 0.3, 0.5, 0.4, 1.0]


def test_the_three_rules_can_give_three_answers():
    answers, scores = ["7", "8", "8", "8", "9", "9"], [0.8, 0.1, 0.1, 0.1, 0.5, 0.4]
    assert choose(answers, None, "majority") == "8"
    assert choose(answers, scores, "best") == "7"
    assert choose(answers, scores, "weighted") == "9"  # 7: .8, 8: .3, 9: .9


def test_tally_adds_up_and_drops_none():
    assert tally(ANSWERS) == {"7": 1, "8": 2, "9": 2}
    assert tally(ANSWERS, SCORES) == pytest.approx({"7": 0.8, "8": 0.6, "9": 0.9})
    assert tally([None, None]) == {}


@pytest.mark.parametrize("rule", ["majority", "best", "weighted"])
def test_none_never_wins_unless_alone(rule):
    assert choose([None, None, None, "4"], [0.9, 0.9, 0.9, 0.0], rule) == "4"
    assert choose([None, None], [0.9, 0.1], rule) is None
    assert choose([], [], rule) is None


def test_an_answer_of_score_zero_still_beats_no_answer_and_ties_with_its_like():
    picked = {choose(["1", "2", None], [0.0, 0.0, 1.0], "weighted", seed) for seed in range(50)}
    assert picked == {"1", "2"}


def test_ties_are_broken_evenly_and_reproducibly():
    majority = Counter(choose(["a", "b", "c", "a", "b"], None, "majority", seed) for seed in range(2000))
    assert set(majority) == {"a", "b"}
    assert abs(majority["a"] / 2000 - 1 / 2) < 0.05
    best = Counter(choose(["a", "b", "a", "c"], [0.9, 0.9, 0.9, 0.1], "best", seed) for seed in range(2000))
    assert abs(best["a"] / 2000 - 2 / 3) < 0.05  # between tied samples, two of three of which say a
    assert choose(["a", "b"], None, "majority", 3) == choose(["a", "b"], None, "majority", 3)


def test_a_tie_of_floats_is_a_tie_whatever_the_order_of_summation():
    picked = {choose(["a", "a", "b"], [0.1, 0.2, 0.3], "weighted", seed) for seed in range(50)}
    assert picked == {"a", "b"}  # .1 + .2 > .3 in floating point


def test_best_takes_log_probabilities_too():
    assert choose(["a", None, "b"], [-5.0, -0.1, -3.0], "best") == "b"


@pytest.mark.parametrize(
    ("scores", "rule", "message"),
    [
        ([0.5, 0.5], "weigthed", "did you mean 'weighted'"),
        ([0.5, 0.5], "zzz", "expected one of majority, best, weighted"),
        (None, "best", "needs one score per answer"),
        ([0.5], "weighted", r"scores must have one entry per sample, shape \(2,\)"),
        ([0.5, float("nan")], "best", r"samples \[1\] are NaN"),
        ([None, 0.5], "weighted", r"samples \[0\] are NaN or missing"),
        ([0.5, -2.0], "weighted", "sample 1 has -2.0"),
        ([0.5, float("inf")], "weighted", "sample 1 has inf"),
    ],
)
def test_bad_input_is_refused_in_words(scores, rule, message):
    with pytest.raises(ValueError, match=message):
        choose(["a", "b"], scores, rule)


# ---------------------------------------------------------------- pass@k


def test_pass_at_k_by_hand():
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(10, 0, 10) == 0
    assert pass_at_k(10, 1, 10) == 1
    assert pass_at_k(10, 8, 3) == 1  # only 2 wrong ones: 3 draws cannot miss


@pytest.mark.parametrize(("n", "c", "k"), [(512, 1, 511), (512, 300, 256), (4096, 1, 1), (4096, 17, 1000)])
def test_pass_at_k_is_exact_for_large_n(n, c, k):
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert pass_at_k(n, c, k) == pytest.approx(float(exact), rel=1e-11)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match=r"must be in"):
        pass_at_k(n, c, k)


# ---------------------------------------------------------------- best-of-k and votes against brute force


def brute_best(scores, correct, valid, k):
    """Return the mean over subsets of the mean correctness of the tied best valid samples."""
    total, subsets = 0.0, list(itertools.combinations(range(len(scores)), k))
    for subset in subsets:
        top = max((scores[i] for i in subset if valid[i]), default=None)
        tied = [correct[i] for i in subset if valid[i] and scores[i] == top]
        total += sum(tied) / len(tied) if tied else 0.0
    return total / len(subsets)


def brute_vote(classes, correct, weights, k):
    """Return the mean over subsets of the share of tied leading classes that are correct, in exact arithmetic."""
    total, subsets = Fraction(0), list(itertools.combinations(range(len(classes)), k))
    right = {c: y for c, y in zip(classes, correct, strict=True)}
    for subset in subsets:
        votes: dict[int, Fraction] = {}
        for i in subset:
            if classes[i] >= 0:
                votes[classes[i]] = votes.get(classes[i], Fraction(0)) + Fraction(weights[i])
        leaders = [right[c] for c, v in votes.items() if v == max(votes.values())]
        total += Fraction(sum(leaders), len(leaders)) if leaders else 0
    return float(total / len(subsets))


@st.composite
def pools(draw):
    """Small pools full of ties: scores in quarters, few classes, some without an answer."""
    n = draw(st.integers(1, 7))
    classes = draw(st.lists(st.integers(-1, 3), min_size=n, max_size=n))
    right = draw(st.sets(st.integers(0, 3)))
    scores = [q / 4 for q in draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))]
    return classes, [c in right for c in classes], scores, draw(st.integers(1, n))


@settings(max_examples=150, deadline=None)
@given(pools())
def test_estimators_agree_with_every_subset(pool):
    classes, correct, scores, k = pool
    valid = [c >= 0 for c in classes]
    assert best_of_k(scores, correct, valid, k) == pytest.approx(brute_best(scores, correct, valid, k), abs=1e-12)
    for weights in (None, scores):
        expected = brute_vote(classes, correct, weights or [1] * len(classes), k)
        assert vote_at_k(classes, correct, weights, k) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 12), st.randoms(use_true_random=False), st.data())
def test_best_of_k_is_the_published_formula_when_nothing_ties(n, random, data):
    k = data.draw(st.integers(1, n))
    scores = random.sample(range(100), n)
    correct = [random.random() < 0.5 for _ in range(n)]
    alpha = [correct[i] for i in sorted(range(n), key=lambda i: -scores[i])]
    published = sum(math.comb(n - i - 1, k - 1) * alpha[i] for i in range(n - k + 1)) / math.comb(n, k)
    assert best_of_k(scores, correct, [True] * n, k) == pytest.approx(published, abs=1e-12)


def test_best_of_k_by_hand():
    assert best_of_k([0.9, 0.5, 0.5], [0, 1, 0], [1, 1, 1], 2) == pytest.approx(1 / 6)
    # a correct, unparsed sample with the top score neither wins nor scores
    assert best_of_k([0.9, 0.1], [1, 0], [0, 1], 2) == 0
    assert best_of_k([0.9, 0.1], [0, 1], [0, 1], 2) == 1
    assert best_of_k([0.9, 0.1], [0, 1], [0, 1], 1) == pytest.approx(1 / 2)
    assert best_of_k([0.9, 0.1], [1, 1], [0, 0], 1) == 0


def test_a_constant_verifier_is_worth_pass_at_1_whatever_k():
    correct = [1, 0, 0, 1, 0, 0, 0, 0]
    for k in range(1, 9):
        assert best_of_k([0.5] * 8, correct, [1] * 8, k) == pytest.approx(2 / 8)


def test_a_perfect_verifier_is_worth_pass_at_k():
    correct = [1, 0, 0, 1, 0, 0, 0, 0]
    for k in range(1, 9):
        assert best_of_k(correct, correct, [1] * 8, k) == pytest.approx(pass_at_k(8, 2, k))


def test_vote_by_hand():
    assert vote_at_k([0, 0, 1], [1, 1, 0], None, 1) == pytest.approx(2 / 3)
    assert vote_at_k([0, 0, 1], [1, 1, 0], None, 2) == pytest.approx(2 / 3)
    assert vote_at_k([0, 0, 1], [1, 1, 0], None, 3) == 1
    assert vote_at_k([0, 0, 1], [1, 1, 0], [0.2, 0.2, 0.5], 3) == 0
    assert vote_at_k([0, 1, 2, -1], [1, 0, 0, 0], None, 4) == pytest.approx(1 / 3)
    assert vote_at_k([-1, -1], [0, 0], None, 2) == 0
    assert vote_at_k([0, 1], [1, 0], [0.0, 0.0], 2) == pytest.approx(1 / 2)


def test_random_subsets_estimate_the_exact_value():
    rng = np.random.default_rng(0)
    classes, scores = rng.integers(-1, 4, 16), rng.random(16)
    correct = classes == 0
    for weights in (None, scores):
        exact = vote_at_k(classes, correct, weights, 8, draws=math.comb(16, 8))
        assert vote_at_k(classes, correct, weights, 8, draws=5000, seed=1) == pytest.approx(exact, abs=0.025)
        assert exact not in (0.0, 1.0)
    assert vote_at_k(classes, correct, None, 8, seed=1) == vote_at_k(classes, correct, None, 8, seed=1)


def test_k_of_1_is_exact_with_more_samples_than_draws():
    classes = np.arange(300) % 3
    assert vote_at_k(classes, classes == 0, None, 1, draws=10) == pytest.approx(1 / 3, abs=1e-12)


def test_vote_refuses_bad_input():
    with pytest.raises(ValueError, match=r"k must be in 1\.\.2"):
        vote_at_k([0, 1], [1, 0], None, 3)
    with pytest.raises(ValueError, match="correct must have one entry"):
        vote_at_k([0, 1], [1], None, 1)
    with pytest.raises(ValueError, match="draws must be at least 1"):
        vote_at_k([0, 1], [1, 0], None, 1, draws=0)


# ---------------------------------------------------------------- curves


def test_ks():
    assert [ks(n) for n in (1, 2, 3, 8, 12)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]
    with pytest.raises(ValueError, match="at least one sample"):
        ks(0)


def test_curves_of_one_problem():
    answers, correct = ["5", "5", "3", None], [True, True, False, False]
    scores = [0.5, 0.25, 0.75, 1.0]
    got = curves(answers, correct, scores, [1, 4])
    assert set(got) == {"pass@k", "majority", "best", "weighted"}
    assert got["pass@k"] == [0.5, 1]
    assert got["majority"] == [0.5, 1]
    assert got["best"] == [0.5, 0]
    assert got["weighted"] == [0.5, 0.5]  # .5 + .25 ties with .75
    assert set(curves(answers, correct, None, [1, 4])) == {"pass@k", "majority"}


def test_the_end_of_a_curve_is_what_choose_does():
    rng = np.random.default_rng(1)
    for _ in range(20):
        answers = [None if a == 0 else str(a) for a in rng.integers(0, 4, 9)]
        correct, scores = [a == "1" for a in answers], rng.random(9).tolist()
        got = curves(answers, correct, scores, [9])
        for rule in ("best", "weighted"):
            assert got[rule] == [float(choose(answers, scores, rule) == "1")]


def test_an_evaluation_of_200_problems_takes_seconds():
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(200):
        answers = [str(a) for a in rng.integers(0, 20, 64)]
        curves(answers, [a == "0" for a in answers], rng.random(64).tolist(), ks(64))
    assert time.perf_counter() - start < 10
