"""Stopping rules against the papers' formulas and numbers worked out by hand or by simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.integrate import quad

from twofold.maths.posterior import Calibration, fit, posterior
from twofold.maths.stopping import (
    Adaptive,
    Consensus,
    Fixed,
    Lengths,
    Posterior,
    Windows,
    majority_confidence,
    rounds,
    should_stop,
)

PLAIN = Calibration(slope=1, intercept=0, alpha=1, beta=1, spread=1, overlap=0)


# ---------------------------------------------------------------- adaptive consistency


@pytest.mark.parametrize(
    ("votes", "expected", "stops"),
    [
        ((3, 0), 0.9375, False),
        ((4, 0), 0.96875, True),
        ((5, 1), 0.9375, False),
        ((6, 1), 0.96484, True),
        ((7, 2), 0.94531, False),
        ((8, 2), 0.96729, True),
    ],
)
def test_adaptive_consistency_by_hand(votes, expected, stops):
    assert majority_confidence(*votes) == pytest.approx(expected, abs=5e-6)
    answers = ["a"] * votes[0] + ["b"] * votes[1] + [None]
    assert should_stop(Adaptive(), answers, [None] * len(answers), PLAIN) == (len(answers) if stops else None)


@pytest.mark.parametrize(("first", "second"), [(1, 1), (9, 4), (20, 19)])
def test_adaptive_consistency_is_the_integral(first, second):
    def density(q):
        return q**first * (1 - q) ** second

    assert majority_confidence(first, second) == pytest.approx(quad(density, 0.5, 1)[0] / quad(density, 0, 1)[0])


def test_only_the_two_leading_answers_count():
    assert should_stop(Adaptive(), [*"aaaaaab", "c", "d"], [None] * 9, PLAIN) == 9  # (6, 1) stops, (6, 3) would not


# ---------------------------------------------------------------- ESC


def test_a_window_must_agree_wholly_and_answers_alone():
    rule = Windows(size=3)
    assert rounds(rule, 8) == [3, 6, 8]
    assert should_stop(rule, [*"aab"], [None] * 3, PLAIN) is None
    assert should_stop(rule, [*"aabbbb"], [None] * 6, PLAIN) == 3  # the window's answer is b, whatever came before
    assert should_stop(rule, ["a", "a", None], [None] * 3, PLAIN) is None
    assert should_stop(rule, [None] * 3, [None] * 3, PLAIN) is None
    assert should_stop(rule, [*"abbb"], [None] * 4, PLAIN) is None  # no window ends here


def expected_samples(chances: list[float], size: int, cap: int) -> float:
    """What ESC draws on average: with K = cap / size windows and q = sum_a p_a^size, the chance that a window agrees,
    size * [sum_{i=0}^{K-2} q (1-q)^i (i+1) + (1-q)^(K-1) K]."""
    q, windows = sum(p**size for p in chances), cap // size
    return size * (sum(q * (1 - q) ** i * (i + 1) for i in range(windows - 1)) + (1 - q) ** (windows - 1) * windows)


@pytest.mark.parametrize(
    ("chances", "expected"), [((0.8, 0.2), 14.60996), ((0.95, 0.05), 6.46173), ((0.5, 0.3, 0.2), 35.55029)]
)
def test_expected_samples_of_esc_by_hand_and_by_simulation(chances, expected):
    assert expected_samples(chances, 5, 40) == pytest.approx(expected, abs=5e-6)
    rng, rule, drawn = np.random.default_rng(0), Windows(size=5), []
    for _ in range(2000):
        answers = [str(a) for a in rng.choice(len(chances), 40, p=chances)]
        stops = (t for t in rounds(rule, 40) if should_stop(rule, answers[:t], [None] * t, PLAIN))
        drawn.append(next(stops, 40))
    assert np.mean(drawn) == pytest.approx(expected, abs=4 * np.std(drawn) / math.sqrt(2000))


# ---------------------------------------------------------------- consensus and the rest


def test_consensus_is_a_share_of_the_weighted_votes():
    answers, scores = ["a", "b", None], [0.9, 0.1, None]
    assert should_stop(Consensus(threshold=0.9), answers, scores, PLAIN) == 3
    assert should_stop(Consensus(threshold=0.91), answers, scores, PLAIN) is None
    assert should_stop(Consensus(), ["a"], [0.0], PLAIN) is None


def test_the_posteriors_threshold_falls_with_the_samples():
    """The leader's posterior is 0.5 after three samples (the example of ``posterior``): 0.6 * 3 ** -0.25 is 0.456."""
    one = Calibration(slope=1, intercept=0, alpha=1, beta=1, spread=1, overlap=0)
    answers, scores = ["7", "7", "8"], [0.5] * 3
    assert should_stop(Posterior(threshold=0.6), answers, scores, one) is None
    assert should_stop(Posterior(threshold=0.6, decay=0.1), answers, scores, one) is None  # 0.538
    assert should_stop(Posterior(threshold=0.6, decay=0.25), answers, scores, one) == 3
    assert should_stop(Posterior(threshold=0.6, decay=1), ["7"], [0.5], one) is None  # 0.6, whatever the decay


def test_a_fixed_number_never_stops_early():
    assert rounds(Fixed(), 7) == [7]
    assert should_stop(Fixed(), ["a"] * 7, [1.0] * 7, PLAIN) is None


@pytest.mark.parametrize("rule", [Fixed(), Adaptive(), Windows(), Consensus(), Posterior()])
def test_nothing_and_only_answerless_samples_are_no_reason_to_stop(rule):
    assert should_stop(rule, [], [], PLAIN) is None
    assert should_stop(rule, [None] * 5, [None] * 5, PLAIN) is None


def test_the_two_costs_of_growing_lengths():
    assert [Lengths(caps=(1, 2, 4)).cumulated(c) for c in (1, 2, 4)] == [1, 3, 7]


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Adaptive(threshold=1.5),
        lambda: Adaptive(step=0),
        lambda: Windows(size=1),
        lambda: Lengths(caps=(4, 2)),
        lambda: Lengths(caps=()),
        lambda: Lengths(threshold=2),
        lambda: Calibration(overlap=2),
        lambda: Calibration(spread=0),
    ],
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match=r"must|needed"):
        bad()


# ---------------------------------------------------------------- the posterior (ours)


def test_a_verdict_alone_is_taken_at_its_calibrated_word():
    assert posterior(["7"], [0.9], PLAIN) == pytest.approx({"7": 0.9})
    assert posterior(["7", None], [0.9, None], PLAIN) == pytest.approx({"7": 0.9})  # no answer says nothing
    half = Calibration(slope=0.5, intercept=0, alpha=1, beta=1, spread=1, overlap=0)
    assert posterior(["7"], [0.9], half) == pytest.approx({"7": 3 / 4})  # odds 9 ** .5 = 3
    biased = Calibration(slope=1, intercept=-math.log(9), alpha=1, beta=1, spread=1, overlap=0)
    assert posterior(["7"], [0.9], biased) == pytest.approx({"7": 1 / 2})


def test_agreement_alone_by_hand():
    """If all verdicts are 1/2, the weights are B(1 + n, 1 + N - n) / [(n - 1)! (N - n)!] and B(1, 1 + N) / N!."""
    assert posterior(["a", "a"], [0.5, 0.5], PLAIN) == pytest.approx({"a": 2 / 3})  # 1/3 against 1/3 / 2
    assert posterior(["a", "b"], [0.5, 0.5], PLAIN) == pytest.approx({"a": 1 / 3, "b": 1 / 3})
    assert posterior(["a", "a", "b"], [0.5] * 3, PLAIN) == pytest.approx({"a": 1 / 2, "b": 1 / 4})


def test_wrong_answers_that_repeat_make_agreement_worth_less():
    spread = [Calibration(spread=s, slope=0) for s in (0.1, 10.0)]
    shared, scattered = (posterior(["a"] * 4, [0.5] * 4, c)["a"] for c in spread)
    ratio = [(s + 3) * (s + 2) * (s + 1) / 6 for s in (0.1, 10.0)]  # w_a / w_0
    assert [shared, scattered] == pytest.approx([r / (1 + r) for r in ratio])  # 0.54 and 0.997


def test_verdicts_that_err_together_count_once():
    once = Calibration(slope=1, intercept=0, alpha=1, beta=1, spread=1, overlap=1)
    odds = [p["a"] / (1 - p["a"]) for p in (posterior(["a"] * 2, [s] * 2, once) for s in (0.5, 0.9))]
    assert odds[1] / odds[0] == pytest.approx(9)
    odds = [p["a"] / (1 - p["a"]) for p in (posterior(["a"] * 2, [s] * 2, PLAIN) for s in (0.5, 0.9))]
    assert odds[1] / odds[0] == pytest.approx(81)


def test_extreme_verdicts_and_many_samples_stay_finite():
    many = posterior(["a"] * 500 + ["b"] * 500, [1.0] * 500 + [0.0] * 500, Calibration())
    assert many["a"] == pytest.approx(1) and many["b"] == pytest.approx(0, abs=1e-9)


def test_an_answer_needs_a_probability():
    with pytest.raises(ValueError, match="sample 1 has an answer but not a P"):
        posterior(["a", "b"], [0.5, None], PLAIN)
    with pytest.raises(ValueError, match="sample 0"):
        posterior(["a"], [-3.0], PLAIN)


def simulated(c: Calibration, problems: int, n: int, seed: int):
    """Draw samples from the model itself: theta, a Chinese restaurant process of wrong answers, noisy verdicts."""
    rng = np.random.default_rng(seed)
    for _ in range(problems):
        theta, tables = rng.beta(c.alpha, c.beta), []
        answers, scores = [], []
        for _ in range(n):
            if right := rng.random() < theta:
                answers.append("right")
            else:
                weights = np.array([*tables, c.spread])
                table = int(rng.choice(len(weights), p=weights / weights.sum()))
                tables = [*tables, 0] if table == len(tables) else tables
                tables[table] += 1
                answers.append(f"wrong {table}")
            # logit(s) ~ N(+-m, 2m / slope): the log-likelihood ratio is slope * logit(s)
            scores.append(1 / (1 + math.exp(-rng.normal(1.0 if right else -1.0, math.sqrt(2 / c.slope)))))
        yield answers, [a == "right" for a in answers], scores


def test_the_posterior_means_what_it_says_where_its_model_holds():
    truth = Calibration(slope=1.5, intercept=0, alpha=0.8, beta=1.2, spread=0.7, overlap=0)
    said, came_true = [], []
    for answers, _, scores in simulated(truth, 1500, 6, seed=0):
        p = posterior(answers, scores, truth)
        said += [*p.values()]
        came_true += [a == "right" for a in p]
    said, came_true = np.array(said), np.array(came_true)
    for low, high in itertools.pairwise([0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]):
        inside = (said >= low) & (said <= high)
        error = math.sqrt(0.25 / inside.sum())
        assert came_true[inside].mean() == pytest.approx(said[inside].mean(), abs=3 * error)


def test_fitting_finds_the_calibration_that_samples_were_drawn_with():
    truth = Calibration(slope=1.5, intercept=0, alpha=2.0, beta=1.0, spread=0.7, overlap=0)
    found = fit([*simulated(truth, 500, 16, seed=1)], draws=2)
    assert found.slope == pytest.approx(1.5, abs=0.25) and found.intercept == pytest.approx(0, abs=0.2)
    assert found.overlap < 0.15
    assert found.alpha / found.beta == pytest.approx(2, rel=0.3) and found.spread == pytest.approx(0.7, rel=0.3)


def alike(problems: int, n: int, seed: int) -> Iterator[tuple[list[str], list[bool], list[float]]]:
    """Samples whose verdicts know nothing of their own solution: nearly the same for all samples of an answer."""
    rng = np.random.default_rng(seed)
    names = ["right", "a", "b", "c", "d"]
    for _ in range(problems):
        share = rng.beta(3, 2)
        answers = rng.choice(names, size=n, p=[share, *np.array([0.6, 0.2, 0.15, 0.05]) * (1 - share)]).tolist()
        usual = {a: 0.12 + 0.05 * rng.normal() + 0.015 * (a == "right") for a in names}
        logits = np.array([usual[a] for a in answers]) + 0.05 * rng.normal(size=n)
        yield answers, [a == "right" for a in answers], (1 / (1 + np.exp(-logits))).tolist()


def test_a_fit_holds_for_as_many_samples_as_it_was_given():
    """Fitted on fewer than 64 of 64, such verdicts outvote the answers' counts in the end."""

    def known(calibration: Calibration) -> float:
        others = alike(100, 64, seed=10)
        return np.mean([math.log(max(posterior(a, s, calibration).get("right", 0), 1e-9)) for a, _, s in others])

    given = [*alike(40, 64, seed=0)]
    assert known(fit(given)) > known(fit(given, sizes=(1, 2, 4, 8, 16, 32))) + 0.03


def test_fitting_needs_something_to_fit():
    with pytest.raises(ValueError, match="no sample has an answer"):
        fit([([None, None], [False, False], [None, None])])
    with pytest.raises(ValueError, match="has an answer but no score"):
        fit([(["a"], [True], [None])])
