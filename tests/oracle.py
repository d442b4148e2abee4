"""The slow and obvious engine that the fast ones are tested against: ``transformers.generate`` behind the engine protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from twofold.engines.base import Finished, check_prompts, ignore_finished
from twofold.engines.sampling import confidences, draw, uniforms
from twofold.types import Completion, Finish, Sampling


class Oracle:
    """Implements ``PolicyEngine`` one sample at a time, and with one full forward pass per text that is scored.

    It uses the native engine's random numbers, so that both draw the same tokens.
    """

    def __init__(self, model: Any) -> None:
        from transformers import GenerationConfig

        self.model = model
        model.generation_config = GenerationConfig()  # the model's own would add penalties and stop tokens

    def load(self, weights: Mapping[str, Any]) -> None:
        self.model.load_state_dict(weights)

    def rest(self) -> None:
        pass

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished = ignore_finished
    ) -> list[list[Completion]]:
        check_prompts(prompts)
        randoms = torch.from_numpy(uniforms(prompts, sampling)).view(len(prompts), sampling.n, sampling.max_tokens)
        groups: list[list[Completion]] = [[] for _ in prompts]
        for i, (prompt, us) in enumerate(zip(prompts, randoms, strict=True)):
            for j, u in enumerate(us):
                groups[i].append(self._sample(prompt, sampling, u))
                finished(i, j, groups[i][j])
        return groups

    def _sample(self, prompt: Sequence[int], sampling: Sampling, uniforms_T: Tensor) -> Completion:
        logprobs: list[float] = []
        confidence: list[list[float]] = [[], []]  # and certainty

        def force(ids: Tensor, scores: Tensor) -> Tensor:
            """Draw a token with our own random number, and mask all others so that ``generate`` takes it."""
            s = sampling
            token, logp = draw(scores, uniforms_T[None, len(logprobs)], s.temperature, s.top_p, s.top_k, s.min_p)
            logprobs.append(float(logp))
            if sampling.trace_top:
                for values, value in zip(confidence, confidences(scores, sampling.trace_top), strict=True):
                    values.append(float(value))
            return torch.full_like(scores, float("-inf")).scatter(1, token[:, None], 0.0)

        ids = torch.tensor([list(prompt)], device=self.model.device)
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=sampling.max_tokens,
            do_sample=False,
            eos_token_id=list(sampling.stop) or None,
            pad_token_id=0,
            logits_processor=[force],
        )
        tokens = out[0, len(prompt) :].tolist()
        finish: Finish = "stop" if tokens[-1] in sampling.stop else "length"
        return Completion(tokens, logprobs, [True] * len(tokens), finish, *(confidence if sampling.trace_top else ()))

    @torch.inference_mode()
    def logprobs(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> list[list[float]]:
        check_prompts(prompts)
        out = []
        for p, c in zip(prompts, continuations, strict=True):
            logits = self.model(torch.tensor([[*p, *c]], device=self.model.device)).logits[0]
            logp = (logits.float() / temperature).log_softmax(-1)
            out.append([float(logp[len(p) + t - 1, token]) for t, token in enumerate(c)])
        return out
