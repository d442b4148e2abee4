"""An engine of your own: token ids in, token ids and log-probs out. This one counts what another engine draws.

    twofold train configs/rlv-sums.toml --engine.name python --engine.source examples/engine.py:Counting --out runs/counted

An engine is called with the module that trains, once for each role. ``generate`` and ``logprobs`` are all that sampling and
judging need; ``load`` and ``rest`` belong to training: new weights are in place, and memory is wanted by the learner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twofold.engines.base import Finished, ignore_finished
from twofold.engines.native import NativeEngine
from twofold.types import Completion, Sampling


class Counting:
    def __init__(self, model: Any) -> None:
        self.engine = NativeEngine(model)
        self.drawn = 0

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished = ignore_finished
    ) -> list[list[Completion]]:
        groups = self.engine.generate(prompts, sampling, finished)
        self.drawn += sum(len(c.tokens) for group in groups for c in group)
        return groups

    def logprobs(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> list[list[float]]:
        return self.engine.logprobs(prompts, continuations, temperature)

    def load(self, weights: Mapping[str, Any]) -> None:
        self.engine.load(weights)

    def rest(self) -> None:
        print(f"{self.drawn} tokens drawn so far")
        self.engine.rest()
