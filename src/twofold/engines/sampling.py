"""Random draws that depend on (seed, prompt, sample index, position) and on nothing else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn.functional import threshold

from twofold.models.fused import on_cuda
from twofold.models.logprobs import LEAST, shifted
from twofold.types import Sampling


def keys(prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[int]:
    """Return a number of 128 bits for each sample, those of one prompt together.

    It is a hash of the seed, the prompt's tokens, how often that prompt occurred earlier in this call, and the sample index.
    So neither the order nor the rest of the batch matters.
    """
    seen: Counter[bytes] = Counter()
    found = []
    for prompt in prompts:
        ids = np.asarray(prompt, dtype=np.int64).tobytes()
        for j in range(sampling.n):
            key = blake2b(b"%d/%d/%d/" % (sampling.seed, seen[ids], j) + ids, digest_size=16).digest()
            found.append(int.from_bytes(key, "little"))
        seen[ids] += 1
    return found


def uniforms(prompts: Sequence[Sequence[int]], sampling: Sampling) -> np.ndarray:
    """Return numbers in [0, 1), [len(prompts) * n, max_tokens]: one row per sample, drawn with its key."""
    rows = [np.random.Generator(np.random.Philox(key=k)).random(sampling.max_tokens) for k in keys(prompts, sampling)]
    return np.reshape(rows, (-1, sampling.max_tokens))


def draw(
    logits_A_V: Tensor, uniforms_A: Tensor, temperature: float, top_p: float, top_k: int = 0, min_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Draw a token per row by inversion of the cumulative distribution; return tokens [A] and their log-probs [A].

    ``temperature = 0`` takes the argmax and reports its log-prob at temperature 1. The filters come in vLLM's
    order: ``min_p`` (arXiv:2407.01082), ``top_k`` (ties with the k-th stay), ``top_p`` of what is left. The log-prob is that of
    the filtered, renormalised distribution, the one sampled from. A token whose logit, divided by the temperature, is more
    than ``-LEAST`` below the row's greatest is never drawn.
    """
    logp_A_V = threshold(shifted(logits_A_V, temperature or 1.0), LEAST, float("-inf")).log_softmax(-1)
    if temperature == 0:
        tokens_A = logits_A_V.argmax(-1)
        return tokens_A, logp_A_V.gather(1, tokens_A[:, None])[:, 0]
    if min_p > 0:
        likeliest_A_1 = logp_A_V.amax(-1, keepdim=True)
        logp_A_V = logp_A_V.masked_fill(logp_A_V < likeliest_A_1 + math.log(min_p), float("-inf")).log_softmax(-1)
    if 0 < top_k < logp_A_V.shape[-1]:
        least_A_1 = logp_A_V.topk(top_k).values[:, -1:]
        logp_A_V = logp_A_V.masked_fill(logp_A_V < least_A_1, float("-inf")).log_softmax(-1)
    if top_p < 1:
        order = logp_A_V.argsort(-1, descending=True)
        sorted_p = logp_A_V.gather(1, order).exp()
        outside = (sorted_p.cumsum(-1) - sorted_p) >= top_p  # the token that crosses top_p is kept
        logp_A_V = logp_A_V.masked_fill(outside.scatter(1, order, outside), float("-inf")).log_softmax(-1)
    cumulative = logp_A_V.softmax(-1).cumsum(-1, dtype=torch.float64)  # exp() is slow on CPUs at tiny ones
    target = uniforms_A.to(cumulative)[:, None] * cumulative[:, -1:]
    tokens_A = (cumulative <= target).sum(-1).clamp(max=logits_A_V.shape[1] - 1)
    return tokens_A, logp_A_V.gather(1, tokens_A[:, None])[:, 0]


@custom_op("twofold::draw_one", mutates_args=(), device_types="cpu")
def draw_one(logits_A_V: Tensor, uniforms_A: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Do ``draw`` without a filter. On a CUDA device this reads the logits once, and draws the token of ``draw`` unless the random
    number is within a rounding of the token's bounds."""
    return draw(logits_A_V, uniforms_A, temperature, 1.0)


draw_one.register_kernel("cuda", partial(on_cuda, "draw_one"))


def confidences(logits_A_V: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return (token confidence [A], token certainty [A]) of the rows' distributions, as ``Completion`` defines them.

    Raises ValueError if k exceeds the vocabulary. Example: four tokens of probability 1/4 and k = 2 give confidence
    ln 4 = 1.386 and certainty 0.
    """
    size = logits_A_V.shape[-1]
    if k > size:
        raise ValueError(f"confidence of the {k} likeliest tokens: the vocabulary has {size}")
    logp_A_V = logits_A_V.float().log_softmax(-1)
    return -logp_A_V.topk(k).values.mean(-1), -logp_A_V.mean(-1) - math.log(size)
