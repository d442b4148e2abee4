"""Intervals, verifier quality and efficiency against closed forms, hand-computed numbers and scikit-learn."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, roc_auc_score

from twofold.maths.stats import (
    auroc,
    calibration_bins,
    cluster_bootstrap,
    ece,
    efficiency_ratio,
    paired_bootstrap,
    verifier_metrics,
    verifier_quality,
)

# ---------------------------------------------------------------- bootstraps


def test_interval_of_a_coin_is_the_normal_one():
    mean, low, high = cluster_bootstrap([0.0, 1.0] * 200)
    assert mean == 0.5
    half = 1.96 * 0.5 / math.sqrt(400)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.004)
    _, low80, high80 = cluster_bootstrap([0.0, 1.0] * 200, level=0.8)
    assert high80 - low80 == pytest.approx(2 * 1.2816 * 0.025, abs=0.006)


def test_95_percent_intervals_cover_about_95_percent_of_the_time():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        _, low, high = cluster_bootstrap(rng.random(60) < 0.3, n=500, seed=trial)
        covered += low <= 0.3 <= high
    assert 0.90 <= covered / 300 <= 0.985


def test_columns_get_their_own_interval_from_the_same_resamples():
    values = np.random.default_rng(0).random((50, 3))
    mean, low, high = cluster_bootstrap(values, seed=4)
    assert mean.shape == low.shape == high.shape == (3,)
    for column in range(3):
        alone = cluster_bootstrap(values[:, column], seed=4)
        assert [mean[column], low[column], high[column]] == pytest.approx([float(x) for x in alone])
    assert (low < mean).all()
    assert (mean < high).all()


def test_paired_bootstrap_sees_what_unpaired_intervals_hide():
    difficulty = np.random.default_rng(0).random(100)  # problems differ far more than the two models do
    gain = 0.02 + 0.01 * np.tile([-1, 1], 50)
    got = paired_bootstrap(difficulty + gain, difficulty)
    assert got.mean == pytest.approx(0.02)
    assert got.low == pytest.approx(0.02 - 1.96 * 0.001, abs=2e-4)
    assert got.high == pytest.approx(0.02 + 1.96 * 0.001, abs=2e-4)
    assert got.p == pytest.approx(2 / 4001)
    back = paired_bootstrap(difficulty, difficulty + gain)
    assert (back.mean, back.p) == (pytest.approx(-0.02), pytest.approx(2 / 4001))


def test_paired_p_value_is_the_z_test_for_many_problems():
    # a wins on 60 of 100 differing problems: z = .2 / sqrt(.96 / 100) = 2.04, two-sided p = .041
    a = np.array([1.0] * 60 + [0.0] * 40)
    got = paired_bootstrap(a, 1 - a)
    assert got.mean == pytest.approx(0.2)
    assert 0.025 < got.p < 0.065


def test_no_difference_has_p_one():
    got = paired_bootstrap([0.1, 0.7, 0.3], [0.1, 0.7, 0.3])
    assert (got.mean, got.low, got.high, got.p) == (0, 0, 0, 1)


def test_bootstraps_refuse_what_has_no_interval():
    with pytest.raises(ValueError, match="at least 2 problems, got 1"):
        cluster_bootstrap([0.5])
    with pytest.raises(ValueError, match=r"entry \[1\] is nan"):
        cluster_bootstrap([0.5, float("nan")])
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        paired_bootstrap([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="level must be between 0 and 1, got 95"):
        cluster_bootstrap([0.5, 0.1], level=95)


# ---------------------------------------------------------------- AUROC and calibration


def test_auroc_by_hand():
    assert auroc([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 0]) == 3.5 / 4
    assert auroc([0.5, 0.5, 0.5], [1, 0, 1]) == 0.5
    assert math.isnan(auroc([0.2, 0.4], [1, 1]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40))
def test_auroc_is_sklearns(pairs):
    scores, labels = [s / 6 for s, _ in pairs], [y for _, y in pairs]
    if len(set(labels)) == 2:
        assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_calibration_by_hand():
    scores, labels = [0.75, 0.125, 1.0, 0.375], [1, 0, 1, 1]
    assert calibration_bins(scores, labels, bins=2) == [(0.25, 0.5, 2), (0.875, 1.0, 2)]
    assert ece(scores, labels, bins=2) == pytest.approx(0.1875, abs=1e-12)
    assert ece(scores, labels) == pytest.approx((0.25 + 0.125 + 0.625 + 0) / 4, abs=1e-12)  # a bin each


def test_ece_closed_forms():
    # says .8 always, right 60% of the time
    assert ece([0.8] * 1000, [1] * 600 + [0] * 400) == pytest.approx(0.2, abs=1e-12)
    # 15 levels (i + .5) / 15 of 100 samples each, accuracy exactly i/20 + .1: the gaps average in closed form
    level = np.arange(15)
    scores = np.repeat((level + 0.5) / 15, 100)
    accuracy = (5 * level + 10) / 100
    labels = np.concatenate([np.arange(100) < 100 * a - 1e-9 for a in accuracy])
    assert ece(scores, labels) == pytest.approx(np.abs((level + 0.5) / 15 - accuracy).mean(), abs=1e-12)
    # a perfectly sure, perfectly right verifier
    assert ece([0.0, 1.0] * 50, [0, 1] * 50) == 0


def test_bins_have_equal_mass_and_ignore_the_order_of_ties():
    rng = np.random.default_rng(0)
    scores = np.where(rng.random(100) < 0.7, 1.0, rng.random(100))  # saturated: bin edges cut the tie at 1
    labels = (rng.random(100) < scores * 0.8).astype(int)
    table = calibration_bins(scores, labels)
    counts = [count for _, _, count in table]
    assert (len(table), sum(counts), max(counts) - min(counts)) == (15, 100, 1)
    shuffled = rng.permutation(100)
    assert ece(scores[shuffled], labels[shuffled]) == pytest.approx(ece(scores, labels), abs=1e-12)


# ---------------------------------------------------------------- verifier quality


def simulated(problems: int, samples: int, seed: int = 0, shift: float = 0.0):
    """Return scores uniform in [shift, 1], correct with probability score - shift, so that the ECE is ``shift``."""
    rng = np.random.default_rng(seed)
    scores = shift + (1 - shift) * rng.random(problems * samples)
    labels = rng.random(problems * samples) < scores - shift
    return scores, labels, [f"p{i // samples}" for i in range(problems * samples)]


def test_the_metrics_of_training_by_hand_and_as_in_the_whole():
    got = verifier_metrics([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 0])
    assert (got.auroc, got.balanced_accuracy, got.ece) == pytest.approx((3.5 / 4, 3 / 4, 0.05))
    assert verifier_metrics([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 0], threshold=0.95).balanced_accuracy == 1 / 2
    scores, labels, ids = simulated(50, 8, shift=0.1)
    got, whole = verifier_metrics(scores, labels), verifier_quality(scores, labels, ids)
    assert (got.auroc, got.balanced_accuracy, got.ece) == (whole.auroc, whole.balanced_accuracy, whole.ece)
    alone = verifier_metrics([0.9], [1])
    assert math.isnan(alone.auroc) and math.isnan(alone.balanced_accuracy) and alone.ece == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"probabilities in \[0, 1\]"):
        verifier_metrics([1.5], [1])


def test_quality_agrees_with_sklearn_and_its_intervals_hold_the_estimates():
    scores, labels, ids = simulated(100, 10, shift=0.2)
    got = verifier_quality(scores, labels, ids)
    assert (got.n, got.base_rate) == (1000, labels.mean())
    assert got.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert got.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, scores >= 0.5), abs=1e-12)
    assert got.brier == pytest.approx(brier_score_loss(labels, scores), abs=1e-12)
    assert got.tpr == (scores[labels] >= 0.5).mean()
    assert got.tnr == (scores[~labels] < 0.5).mean()
    assert got.says_yes == (scores >= 0.5).mean()
    assert got.alarm is None
    assert got.ece == pytest.approx(0.2, abs=0.04)
    for name in ("auroc", "balanced_accuracy", "ece", "brier"):
        low, high = getattr(got, f"{name}_interval")
        assert low < getattr(got, name) < high < low + 0.12


def test_the_input_order_does_not_matter():
    scores, labels, ids = simulated(20, 5)
    order = np.random.default_rng(1).permutation(100)
    a = verifier_quality(scores, labels, ids)
    b = verifier_quality(scores[order], labels[order], [ids[i] for i in order])
    assert a.auroc_interval == pytest.approx(b.auroc_interval)
    assert a.ece_interval == pytest.approx(b.ece_interval)


def test_intervals_are_as_wide_as_the_number_of_problems_says():
    # 40 problems, each copied 25 times: 1000 scores that know no more than 40
    scores, labels, _ = simulated(40, 1)
    once = verifier_quality(scores, labels, [str(i) for i in range(40)])
    copies = verifier_quality(np.repeat(scores, 25), np.repeat(labels, 25), [str(i // 25) for i in range(1000)])
    assert copies.auroc_interval == pytest.approx(once.auroc_interval)
    assert copies.auroc == pytest.approx(once.auroc)


def test_the_ece_interval_of_a_calibrated_verifier_does_not_rise_above_the_estimate():
    scores, labels, ids = simulated(100, 8)
    got = verifier_quality(scores, labels, ids)
    low, high = got.ece_interval
    assert 0 <= low < got.ece
    assert high < got.ece + 0.02


def test_a_verifier_that_always_says_the_same_raises_an_alarm():
    labels, ids = [1, 0] * 50, [str(i) for i in range(100)]
    yes = verifier_quality([0.9] * 99 + [0.1], labels, ids)
    assert yes.alarm == "the verifier says Yes to 99.0% of the solutions"
    no = verifier_quality([0.1] * 100, labels, ids)
    assert no.alarm == "the verifier says No to 100.0% of the solutions"
    assert (no.auroc, no.balanced_accuracy, no.tpr, no.tnr) == (0.5, 0.5, 0, 1)


def test_one_class_has_no_auroc():
    got = verifier_quality([0.9, 0.8, 0.2], [1, 1, 1], ["a", "b", "c"])
    assert all(math.isnan(x) for x in (got.auroc, got.balanced_accuracy, got.tnr, *got.auroc_interval))
    assert got.tpr == pytest.approx(2 / 3)
    assert got.brier == pytest.approx((0.01 + 0.04 + 0.64) / 3)


def test_ten_thousand_scores_take_seconds():
    scores, labels, ids = simulated(500, 20)
    start = time.perf_counter()
    verifier_quality(scores, labels, ids)
    assert time.perf_counter() - start < 8


@pytest.mark.parametrize(
    ("scores", "labels", "ids", "message"),
    [
        ([0.5, 1.5], [1, 0], ["a", "b"], r"probabilities in \[0, 1\]"),
        ([0.5, float("nan")], [1, 0], ["a", "b"], r"scores must be finite, entry \[1\]"),
        ([0.5, 0.5], [1, 2], ["a", "b"], r"labels must be 0 or 1, got \[2.0\]"),
        ([0.5, 0.5], [1], ["a", "b"], "one each per solution"),
        ([], [], [], "one each per solution"),
        ([0.5, 0.5], [1, 0], ["a"], "got 1 ids for 2 scores"),
        ([0.5, 0.5], [1, 0], ["a", "a"], "at least 2 problems"),
    ],
)
def test_quality_refuses_bad_input(scores, labels, ids, message):
    with pytest.raises(ValueError, match=message):
        verifier_quality(scores, labels, ids)


# ---------------------------------------------------------------- efficiency

KS = [1, 2, 4, 8, 16, 32]


def problems_like(curve, spread=0.05, problems=100):
    """Return problems whose mean is exactly ``curve``: half lie ``spread`` above it, half below."""
    return np.asarray(curve)[None] + spread * np.tile([1, -1], problems // 2)[:, None]


def test_efficiency_by_hand():
    got = efficiency_ratio(
        problems_like([0.5, 0.6, 0.7]), problems_like([0.6, 0.7, 0.8]), [1, 2, 4], n=200, tolerance=0
    )
    assert (got.target, got.base_k, got.ours_k, got.ratio) == pytest.approx((0.7, 4, 2, 2))
    assert (got.low, got.high) == pytest.approx(
        (2, 2)
    )  # a problem shifts both curves equally, so the ratio cannot move


def test_a_curve_log2_linear_in_k_interpolates_to_the_exact_crossing():
    # baseline .40 + .04 log2 k, ours .11 higher: reaches the baseline's .60 at log2 k = 2.25, ratio 2^(5 - 2.25)
    base = 0.40 + 0.04 * np.log2(KS)
    got = efficiency_ratio(problems_like(base), problems_like(base + 0.11), KS, n=200, tolerance=0)
    assert got.ours_k == pytest.approx(2**2.25)
    assert got.ratio == pytest.approx(2**2.75)


def test_equal_curves_have_ratio_one_with_any_tolerance():
    curve = problems_like([0.30, 0.45, 0.52, 0.55, 0.551, 0.549])
    for tolerance in (0.0, 0.005, 0.03):
        got = efficiency_ratio(curve, curve, KS, n=100, tolerance=tolerance)
        assert (got.ratio, got.low, got.high) == (1, 1, 1)


def test_a_noisy_plateau_does_not_inflate_the_ratio():
    base, ours = [0.30, 0.45, 0.55, 0.550, 0.550, 0.553], [0.55, 0.6, 0.6, 0.6, 0.6, 0.6]
    assert efficiency_ratio(problems_like(base), problems_like(ours), KS, n=50).base_k < 4
    naive = efficiency_ratio(problems_like(base), problems_like(ours), KS, n=50, tolerance=0)
    assert naive.base_k == pytest.approx(32)


def test_reaching_at_the_first_k_and_never():
    base = problems_like([0.30, 0.40, 0.50, 0.60, 0.70, 0.80])
    at_once = efficiency_ratio(base, problems_like([0.9] * 6), KS, n=50, tolerance=0)
    assert (at_once.ours_k, at_once.ratio) == (1, pytest.approx(32))
    never = efficiency_ratio(base, problems_like([0.2] * 6), KS, n=50, tolerance=0)
    assert (never.ratio, never.ours_k, never.target) == (None, None, pytest.approx(0.8))
    assert (never.low, never.high) == pytest.approx((0.5, 0.5))  # 32 / (2 * 32)


def test_rounding_does_not_keep_a_curve_from_reaching():
    got = efficiency_ratio([[0.1, 0.1 + 0.2]] * 2, [[0.1, 0.3]] * 2, [1, 2], n=10, tolerance=0)  # .1 + .2 > .3
    assert got.ratio == pytest.approx(1)


def test_the_interval_widens_with_noise_that_the_curves_do_not_share():
    rng = np.random.default_rng(0)
    base = np.clip(0.3 + 0.08 * np.log2(KS) + 0.2 * rng.standard_normal((200, 1)), 0, 1)
    ours = np.clip(0.45 + 0.08 * np.log2(KS) + 0.2 * rng.standard_normal((200, 1)), 0, 1)
    got = efficiency_ratio(base, ours, KS)
    assert got.ratio is not None
    assert 1 < got.low < got.ratio < got.high <= 32


def test_efficiency_refuses_bad_input():
    with pytest.raises(ValueError, match=r"\[problems, 2 ks\]"):
        efficiency_ratio(np.ones((5, 3)), np.ones((5, 3)), [1, 2])
    with pytest.raises(ValueError, match="increasing"):
        efficiency_ratio(np.ones((5, 2)), np.ones((5, 2)), [2, 1])
    with pytest.raises(ValueError, match="tolerance"):
        efficiency_ratio(np.ones((5, 2)), np.ones((5, 2)), [1, 2], tolerance=-0.1)
