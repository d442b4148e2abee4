"""Value a thought by how likely the model finds the known answer behind it, where ``compute.probe`` draws answers.

The likelihood of the known answer as a measure of progress is that of PACR (arXiv:2510.22255) and PCS (arXiv:2605.24396). Here it
takes the place of J in MRT (arXiv:2503.07572).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from twofold.compute.cost import Cost
from twofold.compute.probe import Prover, stopped
from twofold.engines.base import Engine
from twofold.text.chat import Chat
from twofold.text.prompts import ANSWER
from twofold.types import Rollout


@dataclass(frozen=True, slots=True)
class Belief:
    """P(the known answer) behind a thought that was stopped after ``end`` tokens; ``cost`` counts the closing and the answer."""

    end: int
    value: float
    cost: Cost


def believed(
    engine: Engine,
    chat: Chat,
    rollouts: Sequence[Rollout],
    ends: Sequence[Sequence[int]],
    prover: Prover,
    temperature: float = 1.0,
) -> list[list[Belief]]:
    r"""Return P(known answer and its closing brace | thought up to each end, closing) of every rollout, in one engine call.

    ``ends`` and closings are those of ``compute.probe.probe``. An engine that still has the rollouts' caches reads the closing
    and the answer only. One spelling of the answer counts, the reference's own. If every answer that the model can be made
    to give has one spelling, this is what the mean reward of forced answers is an estimate of.

    ln(0.5) and ln(0.8) for the two tokens of ``7}`` are a value of 0.4. Raises ValueError if the prover's closing does not
    end in ``\boxed{``: what follows it would not be the answer alone.
    """
    if not prover.answer.endswith(ANSWER):
        raise ValueError(
            rf"the likelihood of an answer needs a prover.answer that ends in \boxed{{, got {prover.answer!r}"
        )
    began = time.monotonic()
    begun = [
        stopped(chat, r, end, prover, cut=end < own[-1]) for r, own in zip(rollouts, ends, strict=True) for end in own
    ]
    answers = [chat.encode(r.problem.answer + "}") for r in begun]
    found = engine.logprobs([[*r.prompt, *r.completion.tokens] for r in begun], answers, temperature)
    share = (time.monotonic() - began) / max(1, len(begun))
    flat = []
    for r, end, answer, logps in zip(begun, (end for own in ends for end in own), answers, found, strict=True):
        read = len(r.completion.tokens) - end + len(answer)
        flat.append(Belief(end, math.exp(sum(logps)), Cost(verified=read, seconds=share)))
    beliefs = iter(flat)
    return [[next(beliefs) for _ in own] for own in ends]
