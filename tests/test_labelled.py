"""Verdicts on pairs of answers that a person labelled, kind by kind, both ways round."""

from __future__ import annotations

import pytest
from labelled import KINDS, Pair, labels, pairs


def mistakes(asked: list[Pair]) -> list[tuple[Pair, tuple[str, str]]]:
    """Return the pairs that get another label than a person gives them, one way round or the other."""
    found = zip(asked, labels(asked), strict=True)
    return [(pair, both) for pair, both in found if any((label == "correct") != pair.same for label in both)]


def test_a_sample_of_every_kind_has_no_mistake() -> None:
    asked = pairs()
    sample = [
        p
        for kind in KINDS
        for same in (True, False)
        for p in [p for p in asked if p[0] == kind.__name__.replace("_", " ") and p.same == same][::40]
    ]
    assert len(sample) > 100
    assert mistakes(sample) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_of_all_pairs_at_most_one_in_a_thousand_is_accepted_and_one_in_a_hundred_rejected_wrongly() -> None:
    asked = pairs()
    assert len(asked) > 4_000
    wrong = mistakes(asked)
    different = sum(not pair.same for pair in asked)
    assert sum(not pair.same for pair, _ in wrong) <= different / 1_000, wrong
    assert sum(pair.same for pair, _ in wrong) <= (len(asked) - different) / 100, wrong
    assert not [pair for pair, both in wrong if (both[0] == "correct") != (both[1] == "correct")], wrong
