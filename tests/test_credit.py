"""Credit assignment on numbers worked out by hand, and the identities the papers rest on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.maths.credit import differences, grpo, rloo, spread, standardise, to_go

REWARDS = st.lists(st.sampled_from([0.0, 0.5, 1.0, -1.0]), min_size=2, max_size=16)
VALUES = st.lists(st.floats(-5, 5), min_size=1, max_size=10)


def near(values: list[float], tolerance: float = 1e-5) -> object:
    return pytest.approx(values, abs=tolerance)


# ---------------------------------------------------------------- a number per rollout


def test_standardise_uses_the_unbiased_deviation():
    # mean 1/3, deviation sqrt((1/9 + 4/9 + 1/9) / 2) = 0.57735; the biased one would give 1.4142
    assert standardise([0, 1, 0]) == near([-0.57735, 1.15470, -0.57735])


def test_standardise_adds_epsilon_to_the_deviation():
    # mean 1e-6, deviation sqrt(2) * 1e-6: without epsilon the result would be 1 / sqrt(2)
    assert standardise([0, 2e-6]) == near([-1 / (math.sqrt(2) + 1), 1 / (math.sqrt(2) + 1)])


def test_nothing_to_compare_with_is_no_credit():
    assert standardise([]) == []
    assert standardise([7.0]) == [0.0]
    assert standardise([1, 1, 1]) == [0.0, 0.0, 0.0]
    assert grpo([0, 0]) == [0.0, 0.0]
    assert rloo([1, 1, 1]) == [0.0, 0.0, 0.0]


def test_grpo():
    # mean 1/4, deviation 1/2
    assert grpo([1, 0, 0, 0]) == near([1.5, -0.5, -0.5, -0.5])


def test_dr_grpo_does_not_divide_by_the_deviation():
    assert grpo([1, 0, 0, 0], std=False) == [0.75, -0.25, -0.25, -0.25]


def test_rloo_subtracts_the_mean_of_the_others():
    # for the first: 1 - (0 + 0 + 1) / 3; for the second: 0 - (1 + 0 + 1) / 3
    assert rloo([1, 0, 0, 1]) == near([2 / 3, -2 / 3, -2 / 3, 2 / 3])
    assert rloo([3, 1]) == [2.0, -2.0]


@pytest.mark.parametrize("estimator", [grpo, rloo])
@pytest.mark.parametrize("rewards", [[], [1.0]])
def test_a_group_of_one_has_no_baseline(estimator, rewards):
    with pytest.raises(ValueError, match=r"group of one.*at least 2"):
        estimator(rewards)


@settings(deadline=None, max_examples=50)
@given(REWARDS)
def test_advantages_sum_to_zero(rewards):
    for advantages in (grpo(rewards), grpo(rewards, std=False), rloo(rewards)):
        assert sum(advantages) == pytest.approx(0, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(REWARDS)
def test_rloo_is_dr_grpo_scaled(rewards):
    k = len(rewards)
    assert rloo(rewards) == near([k / (k - 1) * a for a in grpo(rewards, std=False)], 1e-12)


@settings(deadline=None, max_examples=50)
@given(REWARDS, st.floats(-3, 3), st.floats(0.1, 10))
def test_what_rewards_are_counted_from_does_not_matter(rewards, shift, scale):
    moved = [scale * r + shift for r in rewards]
    std = np.std(rewards, ddof=1)
    same = (std + 1e-6) / (std + 1e-6 / scale)  # the term that keeps the division finite is not scaled
    assert grpo(moved) == near([same * a for a in grpo(rewards)], 1e-9)
    assert rloo(moved) == near([scale * a for a in rloo(rewards)])


def test_equal_values_with_a_rounded_mean_give_exactly_no_credit():
    # the mean of three 0.1 is not 0.1 in binary; a division by nearly 0 must not enlarge the difference
    assert grpo([0.1] * 3) == near([0, 0, 0], 1e-9)
    assert grpo([0.7] * 7) == near([0] * 7, 1e-9)


# ---------------------------------------------------------------- a number per step


def test_differences_are_what_each_step_changed():
    assert differences([0.5, 0.75, 0.25], final=1.0) == [0.25, -0.5, 0.75]
    assert differences([0.25], final=0.0) == [-0.25]


@settings(deadline=None, max_examples=50)
@given(VALUES, st.sampled_from([0.0, 1.0]))
def test_differences_telescope(values, final):
    assert sum(differences(values, final)) == pytest.approx(final - values[0], abs=1e-9)


def test_to_go_sums_this_and_all_later_steps():
    assert to_go([1, -2, 3]) == [2.0, 1.0, 3.0]
    assert to_go([]) == []


@settings(deadline=None, max_examples=50)
@given(VALUES, st.sampled_from([0.0, 1.0]))
def test_the_differences_still_to_come_are_the_outcome_minus_the_value(values, final):
    """VinePPO's credit, summed over the rest of a solution, is the usual advantage at that point."""
    assert to_go(differences(values, final)) == near([final - v for v in values], 1e-9)


# ---------------------------------------------------------------- from steps to tokens


def test_spread_gives_every_token_its_steps_number():
    assert spread([1, 2, 3], ends=[1, 3, 5], length=5) == [1.0, 2.0, 2.0, 3.0, 3.0]


def test_the_last_step_takes_the_tokens_after_it():
    assert spread([0.5, -1.0], ends=[2, 3], length=5) == [0.5, 0.5, -1.0, -1.0, -1.0]  # the stop token among them


@pytest.mark.parametrize(("values", "ends"), [([], []), ([1.0], [1, 2]), ([1.0, 2.0], [2])])
def test_spread_wants_one_number_per_step(values, ends):
    with pytest.raises(ValueError, match=f"{len(values)} values for {len(ends)} segments"):
        spread(values, ends, 2)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 6)), min_size=1, max_size=8))
def test_spread_covers_all_tokens_once(steps):
    values, sizes = zip(*steps, strict=True)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    expected = [v for v, size in steps for _ in range(size)]
    assert spread(values, ends, ends[-1]) == expected


# ---------------------------------------------------------------- whole papers


def test_tango_is_standardised_verdicts_summed_to_go_and_mixed_with_the_outcome():
    """A worked example of Tango as we read it (arXiv:2505.15034, eq. 4-7): alpha 0.1, two tokens per step."""
    verdicts = [[1, -1], [1, 1, 1, 1], [-1]]
    step_rewards = [[v / len(vs) for v in vs] for vs in verdicts]
    outcome = standardise([0, 1, 0])
    z = iter(standardise([r for rs in step_rewards for r in rs]))
    steps = [to_go([next(z) for _ in rs]) for rs in step_rewards]
    assert outcome == near([-0.5773, 1.1547, -0.5773], 1e-4)
    assert steps[0] == near([0, -0.9258], 1e-4)
    assert steps[1] == near([1.8516, 1.3887, 0.9258, 0.4629], 1e-4)
    assert steps[2] == near([-1.8516], 1e-4)
    mixed = [
        spread(
            [0.9 * a + 0.1 * s for s in of_rollout], [2 * (k + 1) for k in range(len(of_rollout))], 2 * len(of_rollout)
        )
        for a, of_rollout in zip(outcome, steps, strict=True)
    ]
    assert mixed[0][::2] == near([-0.5196, -0.6122], 1e-4)
    assert mixed[1][1::2] == near([1.2244, 1.1781, 1.1318, 1.0855], 1e-4)
    assert mixed[2] == near([-0.7048, -0.7048], 1e-4)


@settings(deadline=None, max_examples=50)
@given(REWARDS, st.floats(0, 2), st.floats(0, 1))
def test_mrt_bonus_inside_one_group_is_plain_grpo(rewards, alpha, value):
    """The trap: y + alpha * (y - T) with one T per group is y scaled and shifted, which standardising undoes.

    The progress bonus says something only if T differs between the members of the group.
    """
    shaped = [y + alpha * (y - value) for y in rewards]
    assert grpo(shaped) == near(grpo(rewards))
    assert rloo(shaped) == near([(1 + alpha) * a for a in rloo(rewards)])


def test_mrt_bonus_says_something_where_prefix_values_differ():
    rewards, values = [1, 1, 0, 0], [0.9, 0.1, 0.9, 0.1]
    shaped = grpo([y + (y - t) for y, t in zip(rewards, values, strict=True)])
    assert shaped[1] > shaped[0] > shaped[3] > shaped[2]
