"""A selection rule of your own: the answer whose best verdict, times how often it was given, is largest.

twofold solve tiny "Start with 7. Add 5. What is the result?" --plan examples/rule.py:best_times_count-16
twofold eval tiny --plan examples/rule.py:best_times_count-16 --plan weighted-16
"""

from __future__ import annotations

from twofold import Rule, Seen
from twofold.compute.rules import Settings


def weights(seen: Seen, plan: Settings) -> list[float]:
    """Weigh each sample by the best verdict on its answer, so that an answer's sum is that verdict times its count."""
    best: dict[str | None, float] = {}
    for answer, score in zip(seen.answers, seen.scores, strict=True):
        best[answer] = max(best.get(answer, 0.0), score or 0.0)
    return [best[answer] for answer in seen.answers]


best_times_count = Rule(weights, needs="verdicts")
