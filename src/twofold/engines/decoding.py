"""The state of a ``generate`` call while its tokens are drawn, and the cache that the call leaves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twofold.engines.base import Finished
from twofold.engines.sampling import confidences, draw
from twofold.models.kv import KV
from twofold.types import Completion, Finish, Sampling


class PrefixCache:
    """The cache that a call left: row i holds the keys and values of ``tokens[i]``, which begin with ``prompts[i]``."""

    def __init__(self, kv: KV, prompts: list[tuple[int, ...]], tokens: list[list[int]]) -> None:
        self.kv = kv
        rows: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row, prompt in enumerate(prompts):
            rows[prompt].append(row)
        self._by_prompt = {p: (r, _padded([tokens[i] for i in r])) for p, r in rows.items()}
        self._prompt_lengths = {len(p) for p in rows}

    def longest_prefix(self, tokens: Sequence[int]) -> tuple[int, int]:
        """Return (row, length) of the longest kept prefix of ``tokens``, at least a prompt; length 0 if there is none."""
        best = (0, 0)
        for size in self._prompt_lengths:
            if found := self._by_prompt.get(tuple(tokens[:size])):
                rows, kept = found
                width = min(kept.shape[1], len(tokens))
                same = (kept[:, :width] == np.asarray(tokens[:width])).cumprod(1).sum(1)
                if same.max() > best[1]:
                    best = (rows[int(same.argmax())], int(same.max()))
        return best


def _padded(rows: list[list[int]]) -> np.ndarray:
    """Return token lists as one array [rows, longest], padded with -1 on the right."""
    out = np.full((len(rows), max(map(len, rows))), -1)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


@dataclass(frozen=True, slots=True)
class Part:
    """Prompts of a call that run together. Prompt i begins with the first ``starts[i]`` tokens of row ``rows[i]`` of ``kv``.

    ``indices[i]`` is its place in the call. Without a ``kv`` every start is 0.
    """

    indices: list[int]
    prompts: list[Sequence[int]]
    kv: KV | None
    rows: list[int]
    starts: list[int]

    def pieces(self) -> list[Sequence[int]]:
        """Return what is left to run of each prompt."""
        return [p[s:] for p, s in zip(self.prompts, self.starts, strict=True)]

    def begin(self, room: int, device: torch.device) -> KV:
        """Return a cache of the prompts' beginnings with ``room`` more tokens per row."""
        starts = torch.tensor(self.starts)
        return KV(starts, room, device) if self.kv is None else self.kv.fork(torch.tensor(self.rows), starts, room)


class Decoding:
    """The samples of a part while they are drawn: row r of R = prompts * n is sample r % n of prompt r // n."""

    def __init__(self, part: Part, sampling: Sampling, kv: KV, logits_R_V: Tensor, randoms_R_T: Tensor) -> None:
        self.part, self.sampling = part, sampling
        self.kv, self.logits, self.randoms = kv, logits_R_V, randoms_R_T
        rows = range(len(randoms_R_T))
        self.order = list(rows)  # order[i] is the sample in row i of the cache
        self.tokens: list[list[int]] = [[] for _ in rows]
        self.logprobs: list[list[float]] = [[] for _ in rows]
        self.confidence: list[list[float]] = [[] for _ in rows]
        self.certainty: list[list[float]] = [[] for _ in rows]
        self.steps = 0
        self.live = len(rows)  # samples that no stop token has ended
        self._ended: list[int] = []  # samples that ``report`` has not reported

    @property
    def done(self) -> bool:
        return self.live == 0 or self.steps == self.sampling.max_tokens

    def draw(self) -> list[int]:
        """Draw one more token for every active row, retire rows that end, and return the tokens to run next."""
        kv, s = self.kv, self.sampling
        chances = self.randoms[self.order[: kv.active], self.steps]
        drawn, logp = draw(self.logits, chances, s.temperature, s.top_p, s.top_k, s.min_p)
        found: list[tuple[list[list[Any]], Tensor]] = [(self.tokens, drawn), (self.logprobs, logp)]
        if s.trace_top:
            found += zip((self.confidence, self.certainty), confidences(self.logits, s.trace_top), strict=True)
        for lists, values in found:
            for i, value in zip(self.order, values.tolist(), strict=False):
                lists[i].append(value)
        new = drawn.tolist()
        finished = [i for i in range(kv.active) if new[i] in s.stop]
        self.end([self.order[i] for i in finished], steps=1)
        for i, j in self.retire(finished):
            new[i] = new[j]
        return [] if self.done else new[: kv.active]

    def extend(self, found: Sequence[Sequence[list[Any]]]) -> None:
        """Append new tokens, log-probs and what is traced, a list per active row of each, up to the row's first stop token."""
        lists: list[list[list[Any]]] = [self.tokens, self.logprobs, self.confidence, self.certainty]
        ended = []
        for r, new in zip(self.order, zip(*found, strict=True), strict=False):
            if not self.stopped(r):
                size = next((t for t, token in enumerate(new[0], 1) if token in self.sampling.stop), len(new[0]))
                for kept, values in zip(lists, new, strict=False):
                    kept[r] += values[:size]
                ended += [r] if self.stopped(r) else []
        self.end(ended, steps=len(found[0][0]))

    def end(self, samples: list[int], steps: int) -> None:
        """Take note of ``steps`` more tokens and of the samples that their stop tokens end."""
        self.steps += steps
        self.live -= len(samples)
        self._ended += samples

    def retire(self, rows: list[int]) -> list[tuple[int, int]]:
        """Swap these rows of the cache to places after the active ones; return the pairs of rows exchanged."""
        pairs = list(zip(*self.kv.retire(rows), strict=True)) if rows else []
        for i, j in pairs:
            self.order[i], self.order[j] = self.order[j], self.order[i]
        return pairs

    def report(self, finished: Finished) -> None:
        """Call ``finished`` for the samples that have ended since the last call."""
        ended, self._ended = self._ended, []
        cut = [r for r in self.order[: self.kv.active] if not self.stopped(r)] if self.done else []
        for r in (*ended, *cut):
            i, j = divmod(r, self.sampling.n)
            finished(self.part.indices[i], j, self.completion(r))

    def stopped(self, r: int) -> bool:
        """Return whether sample r ends in a stop token."""
        tokens = self.tokens[r]
        return bool(tokens) and tokens[-1] in self.sampling.stop

    def completion(self, r: int) -> Completion:
        """Return sample r as far as it is drawn."""
        tokens = [*self.tokens[r]]
        finish: Finish = "stop" if self.stopped(r) else "length"
        confidence = ([*self.confidence[r]], [*self.certainty[r]]) if self.sampling.trace_top else ()
        return Completion(tokens, [*self.logprobs[r]], [True] * len(tokens), finish, *confidence)

    def cache(self) -> PrefixCache:
        """Return the cache with the texts in it, without each sample's last token, which was never run."""
        prompts = [tuple(self.part.prompts[r // self.sampling.n]) for r in self.order]
        texts = [[*p, *self.tokens[r][:-1]] for p, r in zip(prompts, self.order, strict=True)]
        return PrefixCache(self.kv, prompts, texts)
