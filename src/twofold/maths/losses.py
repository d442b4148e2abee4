"""The loss of every policy token, and its options. Nothing is averaged here: see ``weights``.

A new kind of policy loss needs changes in this file only: a name in ``Kind``, its options in ``Loss`` and ``READS``, a function
and its line in ``policy_loss``. All tensors have the shape [N], with an entry for each sampled token. Losses are minimised.
A kind's function returns (loss of each token, whether the token's gradient is cut).
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Literal

from twofold.maths.weights import Normalise
from twofold.ranges import Count, NonNegative, Positive, Share, checked

if TYPE_CHECKING:  # the options are read where torch is not wanted
    from torch import Tensor

Kind = Literal["clip", "cispo", "gspo"]
READS: dict[Kind, set[str]] = {"clip": {"clip_low", "clip_high"}, "cispo": {"cap"}, "gspo": {"clip_low", "clip_high"}}
"""The options that a kind reads, of those that only some kinds read."""
Correction = Literal["none", "token_truncate", "sequence_mask"]


@checked
class Loss:
    """The objective's kind and constants. Raises ValueError if an option is set that ``kind`` does not read."""

    kind: Kind = "clip"
    """PPO's clip by token (GRPO; DAPO with ``clip_high = 0.28``), CISPO's capped weights, or GSPO's clip by sequence."""
    clip_low: Share = 0.2
    clip_high: NonNegative = 0.2
    """The ratio is clipped to 1 - ``clip_low`` .. 1 + ``clip_high``. GSPO's published bounds are 3e-4 and 4e-4."""
    cap: Positive = 5.0
    """CISPO: the largest weight of a token's gradient. It is the ratio itself, not a distance from 1."""
    normalise: Normalise = "token"
    """How tokens are averaged. GSPO as published takes ``sequence``."""
    constant: Count = 1024
    """Dr. GRPO's length, for ``normalise = "constant"``."""
    correction: Correction = "none"
    """Weigh the policy's loss by p_learner / p_engine, for an engine whose probabilities are not quite the learner's (vLLM):
    that of each token, at most the cap (``token_truncate``, TIS), or the product over the sample, 0 above the cap
    (``sequence_mask``, the default of TRL with a cap of 3)."""
    correction_cap: Positive = 2.0
    beta: NonNegative = 0.0
    """Weight of the k3 KL to the reference policy (0: no reference model is kept)."""

    def __post_init__(self) -> None:
        unread = set().union(*READS.values()) - READS[self.kind]
        if changed := [f.name for f in fields(self) if f.name in unread and getattr(self, f.name) != f.default]:
            raise ValueError(f'kind = "{self.kind}" does not read {", ".join(changed)}: leave it out')
        if self.correction == "none" and self.correction_cap != 2.0:
            raise ValueError('correction = "none" does not read correction_cap: leave it out')


def policy_loss(
    options: Loss, logp: Tensor, behaviour: Tensor, advantages: Tensor, sample: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the loss of ``options.kind``. Equal numbers in ``sample`` mark the tokens of one sample, which must all be there."""
    match options.kind:
        case "clip":
            return clipped(logp, behaviour, advantages, options.clip_low, options.clip_high)
        case "cispo":
            return cispo(logp, behaviour, advantages, options.cap)
        case "gspo":
            return gspo(logp, behaviour, advantages, sample, options.clip_low, options.clip_high)


def corrected(options: Loss, logp: Tensor, behaviour: Tensor, sample: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (log-probs that ``policy_loss`` forms its ratios with, weight of each token's loss, whether the cap changed it).

    Without a correction these are ``behaviour``, 1 and no. With one, ratios are to the learner's own log-probs, which must be
    from before the step's first update, and the weight makes up for the engine's, as in TRL and verl: no gradient flows
    through it. Log-probs -1 where the engine said -1.5 have the ratio 1.6487. Four such tokens of one sample have the product
    7.389: with a cap of 2 ``token_truncate`` weighs each by 1.6487, and ``sequence_mask`` by 0.
    """
    if options.correction == "none":
        return behaviour, logp.new_ones(logp.shape), logp.new_zeros(logp.shape)
    old = logp.detach()
    log_ratio = old - behaviour
    if options.correction == "sequence_mask":
        log_ratio = sample.bincount(log_ratio)[sample]
    ratio, cap = log_ratio.exp(), options.correction_cap
    weight = ratio.clamp(max=cap) if options.correction == "token_truncate" else ratio.masked_fill(ratio > cap, 0.0)
    return old, weight, ratio > cap


def clipped(
    logp: Tensor, behaviour: Tensor, advantages: Tensor, low: float = 0.2, high: float = 0.2
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate: -min(rho A, clip(rho, 1 - low, 1 + high) A), rho = exp(logp - behaviour).

    rho 1.5, A 1, high 0.2 gives -1.2, cut; rho 1.5, A -1 gives 1.5 (the pessimistic side is never clipped).
    """
    return _clipped_ratio(logp - behaviour, advantages, low, high)


def cispo(logp: Tensor, behaviour: Tensor, advantages: Tensor, cap: float = 5.0) -> tuple[Tensor, Tensor]:
    """CISPO (MiniMax-M1, arXiv:2506.13585): -min(rho, cap) A logp, where no gradient flows through the weight.

    Every token keeps a gradient; where rho > cap it is cut to that of rho = cap. rho 6, cap 5, A 1, logp -1 gives 5, cut.
    """
    ratio = (logp.detach() - behaviour).exp()
    return -ratio.clamp(max=cap) * advantages * logp, (ratio > cap) & (advantages != 0)


def gspo(
    logp: Tensor, behaviour: Tensor, advantages: Tensor, sample: Tensor, low: float = 3e-4, high: float = 4e-4
) -> tuple[Tensor, Tensor]:
    """GSPO (arXiv:2507.18071): PPO's surrogate of s = exp(mean of the sample's log rho), one ratio for all its tokens.

    A token's gradient is that of s pi / sg(pi) (GSPO-token): averaged over the sample, the gradient of s A. Log ratios 0.1,
    -0.2, 0.4 make s = 1.10517: A 1, high 4e-4 gives -1.0004 at each token, cut; A -1 gives 1.10517.
    """
    mean = (sample.bincount(logp.detach() - behaviour) / sample.bincount())[sample]
    return _clipped_ratio(mean + (logp - logp.detach()), advantages, low, high)


def _clipped_ratio(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    ratio = log_ratio.exp()
    loss = -(ratio * advantages).minimum(ratio.clamp(1 - low, 1 + high) * advantages)
    return loss, ((ratio < 1 - low) & (advantages < 0)) | ((ratio > 1 + high) & (advantages > 0))


def k3(logp: Tensor, reference: Tensor) -> Tensor:
    """Schulman's k3 estimator of KL(policy || reference) at sampled tokens: r - log r - 1, r = p_ref / p >= 0."""
    log_ratio = reference - logp
    return log_ratio.exp() - log_ratio - 1
