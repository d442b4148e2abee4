"""Selection by the model's own certainty, without a verifier: numbers per token in, weights of votes out.

Sources: self-certainty with Borda votes (arXiv:2502.18581), DeepConf (arXiv:2508.15260). The weights are meant for
``votes.choose(answers, weights, "weighted")``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from twofold.ranges import Count, NonNegative, PositiveShare, checked

Trace = Literal["mean", "tail", "bottom", "lowest"]


@checked
class Traces:
    """How the rules ``borda`` and ``deepconf``, and DeepConf online, use the samples' token confidences.

    Raises ValueError for numbers outside their range.
    """

    top: Count = 20
    """The number of likeliest tokens from which the confidence of a step is computed."""
    window: Count = 64
    """Tokens of a group; published for long traces: 2048."""
    kind: Trace = "mean"
    keep: PositiveShare = 0.1
    """Share of the samples that ``deepconf`` lets vote, or that set the bar of DeepConf online (published: 0.1 and 0.9)."""
    power: NonNegative = 0.5
    """Exponent of the ranks of ``borda``."""


def borda(answers: Sequence[str | None], certainty: Sequence[float], power: float = 0.5) -> list[float]:
    """Return votes by rank: the r-th most certain of the N samples with an answer has ``(N - r + 1) ** power``.

    ``power = 0`` is the majority vote; a large power follows the most certain sample. Ties keep the samples' order.
    Samples without an answer have 0.

    >>> borda(["a", "b", "a", "a"], [-1.0, 3.0, 2.0, 0.0], power=1)  # a 6, b 4
    [1.0, 4.0, 3.0, 2.0]

    Raises ValueError for a negative power.
    """
    if power < 0:
        raise ValueError(f"power must be at least 0, got {power}")
    ranked = sorted((i for i, a in enumerate(answers) if a is not None), key=lambda i: -certainty[i])
    votes = [0.0] * len(answers)
    for rank, i in enumerate(ranked):
        votes[i] = float((len(ranked) - rank) ** power)
    return votes


def groups(confidence_T: Sequence[float], window: int) -> NDArray[np.float64]:
    """Return the mean confidence of every full window of tokens, stride 1; for a shorter trace, its mean alone.

    >>> groups([1.0, 2.0, 6.0], 2).tolist(), groups([1.0, 2.0, 6.0], 4).tolist()
    ([1.5, 4.0], [3.0])
    """
    values = np.asarray(confidence_T, dtype=float)
    if not len(values) or window < 1:
        raise ValueError(f"a trace needs a token and a window at least 1, got {len(values)} tokens, window {window}")
    if len(values) <= window:
        return values.mean(keepdims=True)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[window:] - sums[:-window]) / window


def trace(confidence_T: Sequence[float], kind: Trace, window: int) -> float:
    """Return one number for a trace, from the confidence of its tokens; larger is surer.

    * ``mean``: the mean of all tokens;
    * ``tail``: the mean of the last ``window`` tokens;
    * ``bottom``: the mean of the lowest tenth of the group values (at least one);
    * ``lowest``: the lowest group value.

    Raises ValueError for a trace without tokens.
    """
    values = groups(confidence_T, window)
    match kind:
        case "mean":
            return float(np.mean(confidence_T))
        case "tail":
            return float(np.mean(confidence_T[-window:]))
        case "bottom":
            return float(np.sort(values)[: max(1, len(values) // 10)].mean())
        case "lowest":
            return float(values.min())


def keep_top(answers: Sequence[str | None], confidence: Sequence[float], share: float) -> list[float]:
    """DeepConf offline: weigh the ``share`` of samples of highest confidence (with an answer; at least one) by it.

    The others have weight 0. The published shares are 0.1 and 0.9. Confidences are positive (see ``types.Completion``).

    >>> keep_top(["a", "b", None, "a"], [3.0, 5.0, 9.0, 4.0], share=0.67)
    [0.0, 5.0, 0.0, 4.0]

    Raises ValueError for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    ranked = sorted((i for i, a in enumerate(answers) if a is not None), key=lambda i: -confidence[i])
    kept = set(ranked[: max(1, round(share * len(ranked)))])
    return [confidence[i] if i in kept else 0.0 for i in range(len(answers))]
