"""Episodes of a thought, and the measures of progress and regret, on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from twofold.maths.regret import (
    cumulative_regret,
    maj_at_prefix,
    normalised_regret,
    progress,
    stop_regret,
    token_efficiency,
    tokens_to_reach,
)
from twofold.text.segments import Episodes, episode_ends, episode_places

# ---------------------------------------------------------------- segmentation


def cut(text: str, **options: int) -> list[str]:
    ends = episode_places(text, Episodes(**options))
    return [text[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


THOUGHT = "\n\n".join(["A", "Wait, b", "c", "Wait, d", "e", "Wait, f", "Alternatively, g", "h", "i", "But wait, j"])


def test_a_mark_opens_an_episode_after_three_paragraphs():
    """Paragraphs 0 A, 1 Wait, 2 c, 3 Wait: the mark of 1 comes too early, that of 3 cuts, 5 is too early, 6 cuts, 9 cuts."""
    episodes = cut(THOUGHT)
    assert episodes == [
        "A\n\nWait, b\n\nc\n\n", "Wait, d\n\ne\n\nWait, f\n\n", "Alternatively, g\n\nh\n\ni\n\n", "But wait, j",
    ]  # fmt: skip
    assert "".join(episodes) == THOUGHT


def test_after_most_cuts_the_rest_is_one_episode():
    assert [e.split("\n\n")[0] for e in cut(THOUGHT, most=1)] == ["A", "Wait, d"]
    assert cut(THOUGHT, most=0) == [THOUGHT]


def test_groups_of_episodes():
    assert [e.split("\n\n")[0] for e in cut(THOUGHT, group=3)] == ["A", "But wait, j"]
    assert [e.split("\n\n")[0] for e in cut(THOUGHT, group=2)] == ["A", "Alternatively, g"]
    assert cut(THOUGHT, group=4) == cut(THOUGHT, group=9) == [THOUGHT]


def test_marks_are_at_the_beginning_of_a_paragraph_and_case_counts():
    assert len(cut("A\n\nwait\n\n Wait\n\nso Wait\n\nA\nWait", shortest=1)) == 1
    for mark in ("Is there another way to think about this? B", "But let me double-check. B", "But hold on. B"):
        assert cut(f"A\n\n{mark}", shortest=1) == ["A\n\n", mark]
    assert cut("", shortest=1) == [""]


def test_a_token_belongs_to_the_episode_in_which_it_begins():
    config = Episodes(shortest=1)
    assert episode_ends(["A", "\n\n", "Wait", " b"], config) == [2, 4]
    assert episode_ends(["A\n", "\nWait", " b\n\n", "But", " wait"], config) == [2, 3, 5]  # cut inside "\nWait"
    assert episode_ends(["A\n\nWait"], config) == [1]  # a cut inside the only token cannot be made
    assert episode_ends([], config) == [0]


def test_bad_episodes_are_refused():
    for wrong in ({"shortest": 0}, {"most": -1}, {"group": 0}):
        with pytest.raises(ValueError, match="at least"):
            Episodes(**wrong)


# ---------------------------------------------------------------- progress and regret


def test_progress_telescopes():
    values = [0.25, 0.75, 0.5, 1.0]
    assert progress(values) == [0.5, -0.25, 0.5]
    assert sum(progress(values)) == values[-1] - values[0]


def test_cumulative_regret_is_the_area_between_the_comparator_and_the_curve():
    assert cumulative_regret([0.25, 0.75, 1.0]) == [0.75, 1.0, 1.0]
    assert cumulative_regret([0.25, 0.75], best=0.75) == [0.5, 0.5]


POINTS = [(1000, 0.0), (3000, 0.5), (6000, 1.0)]


def test_normalised_regret():
    assert normalised_regret(POINTS, 4000) == pytest.approx(0.7291667, abs=1e-7)
    assert normalised_regret(POINTS, 8000) == pytest.approx(0.40625)
    assert normalised_regret(POINTS, 500) == 1.0  # before the first right answer
    assert normalised_regret([(10, 1.0)], 20) == pytest.approx(1 - (5 + 10) / 20)  # a rise, then held
    for points, budget in ((POINTS, 0), ([(10, 0.5), (10, 0.5)], 5), ([], 5)):
        with pytest.raises(ValueError, match="must"):
            normalised_regret(points, budget)


def test_regret_of_thinking_on_where_stopping_and_voting_was_better():
    rows = [[0.25, 0.3, 0.4, 0.5], [0.25, 0.25, 0.3, 0.3], [0.5] * 4]
    assert stop_regret(rows, 2) == pytest.approx(0.1554054, abs=1e-7)
    assert stop_regret(rows, 1) == pytest.approx(0.575 / 1.825)  # areas under O and B: 1.825 and 1.25
    assert math.isnan(stop_regret([[0.0] * 4] * 2, 1))
    with pytest.raises(ValueError, match="at least 4 rows"):
        stop_regret(rows, 3)


def test_votes_at_a_prefix_by_hand():
    """Answers 7 (right), 8, 8 and none; weights 0.9, 0.5, 0.5, 1. Of 6 pairs the right one wins all 3 that it is in;
    of 4 triples it wins 7 8 - twice and loses to 8 8; of all four it loses to 8 8 (0.9 against 1)."""
    answers, correct = ["7", "8", "8", None], [True, False, False, False]
    logprobs = [math.log(0.9), math.log(0.5), math.log(0.5), 0.0]
    assert maj_at_prefix(answers, correct, logprobs, (1, 2, 3, 4)) == pytest.approx([1 / 4, 3 / 6, 2 / 4, 0.0])
    # two spellings of the right answer vote together, a tie is half a win
    assert maj_at_prefix(["0.5", "1/2", "3"], [True, True, False], [0.0] * 3, (3,)) == [1.0]
    assert maj_at_prefix(["7", "8"], [True, False], [0.0] * 2, (2,)) == [0.5]


def test_tokens_at_equal_accuracy():
    ours, theirs = [(100, 0.4), (200, 0.6)], [(100, 0.3), (300, 0.5), (900, 0.5)]
    assert tokens_to_reach(ours, 0.2) == pytest.approx(50) and tokens_to_reach(ours, 0.5) == pytest.approx(150)
    assert tokens_to_reach(ours, 0.7) == math.inf
    assert token_efficiency(ours, theirs, 0.5) == pytest.approx(2.0)
    assert math.isnan(token_efficiency(ours, theirs, 0.55))  # they never get there
