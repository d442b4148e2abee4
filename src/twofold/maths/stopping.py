"""Rules that decide when enough samples have been drawn. They read the samples of one problem in the order they came.

The same functions run online and over a saved pool. ``should_stop`` returns None to draw more samples, or a number m to stop
and let the last m samples vote: all of them, except for ESC, whose deciding window votes alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from twofold.maths.posterior import Calibration, posterior
from twofold.maths.votes import tally
from twofold.ranges import Count, PositiveShare, Range, Share, checked


@checked
class Fixed:
    """All n samples, in one call."""

    name: Literal["fixed"] = "fixed"


@checked
class Adaptive:
    """Adaptive consistency (arXiv:2305.11860): stop when P(the leader is the majority of all samples) reaches ``threshold``."""

    name: Literal["adaptive"] = "adaptive"
    threshold: PositiveShare = 0.95
    step: Count = 1
    """Samples between two looks."""


@checked
class Windows:
    """Early-stopping self-consistency, ESC (arXiv:2401.10480): stop when a window of samples agrees."""

    name: Literal["windows"] = "windows"
    size: Annotated[int, Range(ge=2)] = 5
    """Samples of a window. A single one would always agree with itself."""

    @property
    def step(self) -> int:
        return self.size


@checked
class Consensus:
    """Stop when the leader holds the share ``threshold`` of the weighted votes (DeepConf, arXiv:2508.15260, section 3.3)."""

    name: Literal["consensus"] = "consensus"
    threshold: PositiveShare = 0.95
    step: Count = 8
    """Samples between two looks, and before the first."""


@checked
class Posterior:
    """Ours: stop when the leading answer's posterior (see ``maths.posterior``) reaches ``threshold * n ** -decay`` after n samples.

    A problem that is still undecided after many samples gains little by one more, so a falling threshold leaves more samples
    to the others.
    """

    name: Literal["posterior"] = "posterior"
    threshold: PositiveShare = 0.9
    decay: Share = 0.0
    """0: the threshold stays. 0.25 halves it by the 16th sample."""
    step: Count = 1
    """Samples between two looks, at least."""
    growth: Share = 0.0
    """Samples between two looks, as a share of those there are: 1 looks after 1, 2, 4, 8 ..., so that few calls follow one another."""


@checked
class Lengths:
    """Adaptive length (RL^V, arXiv:2505.04842 Fig. 1): draw n samples and cut them at the first of ``caps`` tokens.

    The cut ones continue to the next cap while the leader's votes are below the share ``threshold`` of n. An unfinished
    sample does not vote.
    """

    name: Literal["lengths"] = "lengths"
    caps: tuple[Count, ...] = (64, 128, 256)
    threshold: Share = 0.6

    def __post_init__(self) -> None:
        if not self.caps or list(self.caps) != sorted(set(self.caps)):
            raise ValueError(f"caps must be increasing numbers of tokens, got {list(self.caps)}")

    def cumulated(self, cap: int) -> int:
        """Return the tokens per sample if every length up to ``cap`` had been drawn again: the other way to count the cost."""
        return sum(c for c in self.caps if c <= cap)


Number = Fixed | Adaptive | Windows | Consensus | Posterior
"""Rules for how many samples."""
Stop = Number | Lengths


def rounds(rule: Number, n: int) -> list[int]:
    """Return how many samples there are each time the rule is asked, up to ``n``.

    >>> rounds(Windows(size=5), 12), rounds(Fixed(), 12), rounds(Posterior(growth=1), 12)
    ([5, 10, 12], [12], [1, 2, 4, 8, 12])
    """
    if isinstance(rule, Fixed):
        return [n]
    growth = rule.growth if isinstance(rule, Posterior) else 0
    looks = [rule.step]
    while looks[-1] < n:
        looks.append(looks[-1] + max(rule.step, int(growth * looks[-1])))
    return [*looks[:-1], n]


def should_stop(
    rule: Number, answers: Sequence[str | None], scores: Sequence[float | None], calibration: Calibration
) -> int | None:
    """Return how many of the last samples vote, or None to draw more. ``answers`` and ``scores`` are all so far.

    ``scores`` are read by ``Consensus`` (the weights of the vote; None counts 0) and ``Posterior`` (P(Yes)).
    """
    if not answers:
        return None
    match rule:
        case Fixed():
            return None
        case Windows(size=size):
            window = set(answers[-size:])
            agreed = len(answers) % size == 0 and len(window) == 1 and None not in window
            return size if agreed else None
        case Adaptive():
            first, second, *_ = *sorted(tally(answers).values(), reverse=True), 0, 0
            confidence = majority_confidence(int(first), int(second))
        case Consensus():
            votes = tally(answers, [s or 0.0 for s in scores]).values()
            confidence = max(votes) / sum(votes) if sum(votes) else 0.0
        case Posterior():
            leader = max(posterior(answers, scores, calibration).values(), default=0.0)
            confidence = leader * len(answers) ** rule.decay
    return len(answers) if confidence >= rule.threshold else None


def majority_confidence(first: int, second: int) -> float:
    """Return P(most samples would say the leader) after ``first`` >= ``second`` votes for the two leading answers.

    ``int_{1/2}^1 q^first (1-q)^second dq / int_0^1`` of the same, a Beta(first + 1, second + 1) tail: with
    m = first + second + 1 it is ``1 - 2^-m sum_{j > first} C(m, j)``.

    >>> majority_confidence(3, 0), majority_confidence(4, 0)
    (0.9375, 0.96875)
    """
    m = first + second + 1
    return 1 - sum(math.comb(m, j) for j in range(first + 1, m + 1)) / 2**m
