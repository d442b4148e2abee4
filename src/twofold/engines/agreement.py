"""Whether an engine with a copy of the weights computes what the learner computes, by the log-probs of one text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twofold.engines.base import Engine
from twofold.models.attention import Packing
from twofold.models.decoder import network
from twofold.models.logprobs import token_logprobs
from twofold.types import Precision

PROBE = 64
"""Number of tokens in the text whose log-probs are compared after every load."""
TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.1}
"""The largest mean gap between two log-probs that counts as rounding, as a share of their standard deviation."""


class Mismatch(ArithmeticError):
    """An engine's log-probs are not those of the learner, whose weights it has taken."""


def check_agreement(who: str, engine: Engine, model: Any, precision: Precision, most: int | None) -> None:
    """Compare the log-probs of a text of random tokens, at most ``most``. Raises Mismatch, which names ``who``, if they differ by
    more than ``TOLERANCE`` allows."""
    ids, want = _probe(model, precision, most or PROBE)
    (found,) = engine.logprobs([ids[:1]], [ids[1:]])
    gaps = (torch.tensor(found) - want).abs()
    if not float(gaps.mean()) <= TOLERANCE[precision] * float(want.std()):
        raise Mismatch(
            f"after new weights were loaded, {who}'s log-probs of a text of {len(ids)} tokens are {float(gaps.mean()):.3g} nats "
            f"from the learner's in the mean and {float(gaps.max()):.3g} at most; their standard deviation is "
            f"{float(want.std()):.3g}. {who} did not take all weights, or computes another model: use the native engine"
        )


@torch.no_grad()
def _probe(model: Any, precision: Precision, most: int) -> tuple[list[int], Tensor]:
    """Return a text of random tokens, and the learner's log-probs of all but its first."""
    run = network(model, getattr(torch, precision))
    ids = torch.randint(run.vocabulary, (min(PROBE, most),), generator=torch.Generator().manual_seed(0))
    here = ids.to(model.device)
    layout = Packing([(0, [len(ids)])], here.device)
    with torch.autocast(here.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        hidden = run(here[None], layout.positions, layout)[0]
        ones = torch.ones(len(ids) - 1, device=here.device)
        return ids.tolist(), token_logprobs(run.head, run.vocabulary, hidden[:-1], here[1:], ones)[0].cpu()
