"""Random draws that depend on (seed, prompt, sample index, position) and on nothing else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import threshold

from twofold.models.fused import chunk_sums
from twofold.models.logprobs import LEAST, shifted
from twofold.types import Sampling

CHUNK = 512
"""Tokens that ``draw_by_chunks`` takes together: about the square root of a large vocabulary."""


def uniforms(prompts: Sequence[Sequence[int]], sampling: Sampling) -> np.ndarray:
    """Return numbers in [0, 1), [len(prompts) * n, max_tokens]: one row per sample.

    A row's key is a hash of the seed, the prompt's tokens, how often that prompt occurred earlier in this call, and the sample
    index. So neither the order nor the rest of the batch matters.
    """
    seen: Counter[bytes] = Counter()
    rows = []
    for prompt in prompts:
        ids = np.asarray(prompt, dtype=np.int64).tobytes()
        for j in range(sampling.n):
            key = blake2b(b"%d/%d/%d/" % (sampling.seed, seen[ids], j) + ids, digest_size=16).digest()
            rows.append(
                np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(sampling.max_tokens)
            )
        seen[ids] += 1
    return np.reshape(rows, (-1, sampling.max_tokens))


def draw(logits_A_V: Tensor, uniforms_A: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Draw a token per row by inversion of the cumulative distribution; return tokens [A] and their log-probs [A].

    ``temperature = 0`` takes the argmax and reports its log-prob at temperature 1. With ``top_p < 1`` the log-prob is that of
    the truncated, renormalised distribution, the one sampled from. A token whose logit, divided by the temperature, is more
    than ``-LEAST`` below the row's greatest is never drawn.
    """
    logp_A_V = threshold(shifted(logits_A_V, temperature or 1.0), LEAST, float("-inf")).log_softmax(-1)
    if temperature == 0:
        tokens_A = logits_A_V.argmax(-1)
        return tokens_A, logp_A_V.gather(1, tokens_A[:, None])[:, 0]
    if top_p < 1:
        order = logp_A_V.argsort(-1, descending=True)
        sorted_p = logp_A_V.gather(1, order).exp()
        outside = (sorted_p.cumsum(-1) - sorted_p) >= top_p  # the token that crosses top_p is kept
        logp_A_V = logp_A_V.masked_fill(outside.scatter(1, order, outside), float("-inf")).log_softmax(-1)
    cumulative = logp_A_V.softmax(-1).cumsum(-1, dtype=torch.float64)  # exp() is slow on CPUs at tiny ones
    target = uniforms_A.to(cumulative)[:, None] * cumulative[:, -1:]
    tokens_A = (cumulative <= target).sum(-1).clamp(max=logits_A_V.shape[1] - 1)
    return tokens_A, logp_A_V.gather(1, tokens_A[:, None])[:, 0]


def draw_by_chunks(logits_A_V: Tensor, uniforms_A: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Do ``draw`` without top-p, reading all logits only once.

    First the chunk of ``CHUNK`` tokens is drawn, by the sums of all chunks, then the token within it. It is the token of
    ``draw``, unless the random number is within a rounding of the token's bounds.
    """
    size, scale = logits_A_V.shape[1], temperature or 1.0
    greatest_A_C, sums_A_C = chunk_sums(logits_A_V, scale, CHUNK)
    top_A_1 = greatest_A_C.amax(1, keepdim=True)
    weights_A_C = sums_A_C * _likely((greatest_A_C - top_A_1) / scale)
    if temperature == 0:
        chunk_A_1 = greatest_A_C.argmax(1, keepdim=True)
    else:
        chunk_A_1, shares_A_1 = _invert(weights_A_C, uniforms_A[:, None])
    tokens_A_W = chunk_A_1 * CHUNK + torch.arange(CHUNK, device=logits_A_V.device)
    x_A_W = (logits_A_V.gather(1, tokens_A_W.clamp(max=size - 1)).float() - top_A_1) / scale
    x_A_W = x_A_W.masked_fill_(tokens_A_W >= size, float("-inf"))
    place_A_1 = x_A_W.argmax(1, keepdim=True) if temperature == 0 else _invert(_likely(x_A_W), shares_A_1)[0]
    logp_A_1 = x_A_W.gather(1, place_A_1) - weights_A_C.sum(1, keepdim=True, dtype=torch.float64).log()
    return tokens_A_W.gather(1, place_A_1)[:, 0], logp_A_1[:, 0].float()


def _likely(x: Tensor) -> Tensor:
    """Return exp(x), and 0 below ``LEAST``."""
    return threshold(x, LEAST, float("-inf")).exp()


def _invert(weights_A_N: Tensor, shares_A_1: Tensor) -> tuple[Tensor, Tensor]:
    """Return into which of N weights a share of their sum, in [0, 1), falls, and how far into it, as a share of it.

    Example: 0.5 of the weights 1, 3 falls into the second, a third of it from its beginning.
    """
    weights = weights_A_N.double()
    cumulative = weights.cumsum(1)
    target = shares_A_1 * cumulative[:, -1:]  # less than the whole sum: rounding does not reach it
    which = (cumulative <= target).sum(1, keepdim=True)
    chosen = weights.gather(1, which)
    return which, ((target - cumulative.gather(1, which) + chosen) / chosen).clamp(0, 1 - 2**-53)


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
