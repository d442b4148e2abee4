"""The native engine: drives the very module that trains, with our own KV cache.

A prompt shared by n samples is prefilled once and forked; finished rows leave the batch; what they leave behind is
kept until the weights change, so a judgement, a forced answer or a continuation that starts with any prefix of a
finished rollout is computed from where that prefix ends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from twofold.engines.base import check_prompts
from twofold.engines.kv import KV
from twofold.engines.sampling import draw, uniforms
from twofold.maths.attention import install
from twofold.types import Completion, Sampling


@dataclass(slots=True)
class Usage:
    """Tokens since the engine was made: ``computed`` in forward passes, ``reused`` from a kept cache."""

    computed: int = 0
    reused: int = 0


class Kept:
    """The cache left behind by a generate call: its rows' tokens, found by the prompt that began them."""

    def __init__(self, kv: KV, prompts: list[tuple[int, ...]], tokens: list[list[int]]) -> None:
        self.kv = kv
        rows: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row, prompt in enumerate(prompts):
            rows[prompt].append(row)
        self._found = {p: (r, _matrix([tokens[i] for i in r])) for p, r in rows.items()}
        self._sizes = {len(p) for p in rows}

    def longest(self, tokens: Sequence[int]) -> tuple[int, int]:
        """(row, length) of the longest kept prefix of ``tokens``; length 0 when there is none."""
        best = (0, 0)
        for size in self._sizes:
            if found := self._found.get(tuple(tokens[:size])):
                rows, kept = found
                width = min(kept.shape[1], len(tokens))
                same = (kept[:, :width] == np.asarray(tokens[:width])).cumprod(1).sum(1)
                if same.max() > best[1]:
                    best = (rows[int(same.argmax())], int(same.max()))
        return best


def _matrix(rows: list[list[int]]) -> np.ndarray:
    """Token lists as one array, -1 behind the short ones."""
    out = np.full((len(rows), max(map(len, rows))), -1)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


@dataclass(frozen=True, slots=True)
class Part:
    """Some prompts of a call, which are run together: prompt i begins with ``starts[i]`` tokens of row ``rows[i]`` of ``kv``."""

    indices: list[int]
    prompts: list[Sequence[int]]
    kv: KV | None
    rows: list[int]
    starts: list[int]
    device: torch.device

    def pieces(self) -> list[Sequence[int]]:
        """What has still to be run."""
        return [p[s:] for p, s in zip(self.prompts, self.starts, strict=True)]

    def begin(self, room: int) -> KV:
        """A cache of these beginnings with ``room`` more tokens per row."""
        starts = torch.tensor(self.starts)
        return KV(starts, room, self.device) if self.kv is None else self.kv.fork(torch.tensor(self.rows), starts, room)


def _last(hidden: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """The hidden state of each row's last token, [rows, D]."""
    return hidden[torch.arange(len(pieces)), torch.tensor([len(p) - 1 for p in pieces])]


class NativeEngine:
    """Implements ``Engine`` over a ``transformers`` causal LM with full attention.

    ``exact``: every prompt (with its n samples) runs as a batch of its own, so that company cannot change a
    result by a rounding; slower. ``max_rows`` bounds the rows decoded at once (one prompt's samples stay together).
    ``precision`` must be the learner's, so that what is sampled is what is scored: with ``bfloat16`` the model and
    its head run under autocast. Raises ValueError for a model that ``install`` refuses.
    """

    def __init__(
        self,
        model: Any,
        *,
        exact: bool = False,
        max_rows: int = 1024,
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        self.model = install(model)
        self.exact = exact
        self.max_rows = max_rows
        self.precision = precision
        self.usage = Usage()
        self._kept: list[Kept] = []

    def load(self, weights: Mapping[str, Any]) -> None:
        """The weights are the module's own and already in place; only the caches are stale now."""
        self._kept = []

    def rest(self) -> None:
        self._kept = []

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[Completion]]:
        check_prompts(prompts)
        if not prompts:
            return []
        randoms = torch.from_numpy(uniforms(prompts, sampling)).view(len(prompts), sampling.n, sampling.max_tokens)
        size = 1 if self.exact else max(1, self.max_rows // sampling.n)
        kept, self._kept = self._kept, []
        groups: dict[int, list[Completion]] = {}
        left: list[Kept] = []
        with self._autocast():
            for part in self._parts(prompts, kept, size):
                done, behind = self._generate(part, sampling, randoms[part.indices].flatten(0, 1))
                groups |= zip(part.indices, done, strict=True)
                left.append(behind)
        self._kept = left
        return [groups[i] for i in range(len(prompts))]

    @torch.inference_mode()
    def logprobs(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> list[list[float]]:
        if len(prompts) != len(continuations):
            raise ValueError(f"{len(prompts)} prompts but {len(continuations)} continuations")
        check_prompts(prompts)
        results: dict[int, list[float]] = {}
        with self._autocast():
            for part in self._parts(prompts, self._kept, 1 if self.exact else self.max_rows):
                chosen = [continuations[i] for i in part.indices]
                results |= zip(part.indices, self._logprobs(part, chosen, temperature), strict=True)
        return [results[i] for i in range(len(prompts))]

    @torch.inference_mode()
    def values(self, prompts: Sequence[Sequence[int]]) -> list[float]:
        """Output of the model's scalar head at the last token of each prompt (the head ablations of RL^V).

        Raises AttributeError if the model has no ``value_head``.
        """
        results: dict[int, float] = {}
        for part in self._parts(prompts, self._kept, self.max_rows):
            pieces = part.pieces()
            hidden = self._extend(part.begin(max(map(len, pieces))), pieces)
            scores = self.model.value_head(_last(hidden, pieces).float())[:, 0].tolist()
            results |= zip(part.indices, scores, strict=True)
        return [results[i] for i in range(len(prompts))]

    def _logprobs(self, part: Part, continuations: Sequence[Sequence[int]], temperature: float) -> list[list[float]]:
        """All pairs at once, each from where the kept prefix of its prompt ends."""
        if not any(map(len, continuations)):
            return [[] for _ in continuations]
        # at least the last prompt token is run again: its logits predict the first token asked about
        own = part.pieces()
        pieces = [[*p, *c][:-1] if c else [*p] for p, c in zip(own, continuations, strict=True)]
        hidden = self._extend(part.begin(max(map(len, pieces))), pieces)
        results = []
        for row, (p, c) in enumerate(zip(own, continuations, strict=True)):
            logp = (self._head(hidden[row, len(p) - 1 : len(p) - 1 + len(c)]).float() / temperature).log_softmax(-1)
            ids = torch.tensor(list(c), dtype=torch.long, device=logp.device)
            results.append(logp.gather(1, ids[:, None])[:, 0].tolist())
        return results

    def _generate(self, part: Part, sampling: Sampling, randoms_R_T: Tensor) -> tuple[list[list[Completion]], Kept]:
        """Decode all samples of some prompts; row r of R = len(prompts) * n is sample r % n of prompt r // n."""
        n, R = sampling.n, len(randoms_R_T)
        device = self.model.device
        prompts, pieces = part.prompts, part.pieces()
        longest = max(map(len, pieces))
        even = n == 1 and longest == min(map(len, pieces))
        kv = part.begin(longest + (sampling.max_tokens if even else 0))
        hidden = self._extend(kv, pieces)
        logits = self._head(_last(hidden, pieces))
        if not even:
            fan = torch.arange(len(prompts)).repeat_interleave(n)
            kv = kv.fork(fan, torch.tensor([len(p) for p in prompts])[fan], sampling.max_tokens)
            logits = logits[fan.to(device)]
        order = list(range(R))  # order[i] is the sample that row i of the cache holds
        tokens: list[list[int]] = [[] for _ in range(R)]
        logps: list[list[float]] = [[] for _ in range(R)]
        stop = set(sampling.stop)
        randoms = randoms_R_T.to(device)
        for t in range(sampling.max_tokens):
            drawn, logp = draw(logits, randoms[order[: kv.active], t], sampling.temperature, sampling.top_p)
            new, new_logp = drawn.tolist(), logp.tolist()
            for i in range(kv.active):
                tokens[order[i]].append(new[i])
                logps[order[i]].append(new_logp[i])
            if finished := [i for i in range(kv.active) if new[i] in stop]:
                for i, j in zip(*kv.retire(finished), strict=True):
                    order[i], order[j], new[i] = order[j], order[i], new[j]
            if kv.active == 0 or t + 1 == sampling.max_tokens:
                break
            logits = self._head(self._extend(kv, [[x] for x in new[: kv.active]])[:, 0])
        # the last token drawn was never run, so it is not in the cache
        behind = Kept(kv, [tuple(prompts[r // n]) for r in order], [[*prompts[r // n], *tokens[r][:-1]] for r in order])
        done = [
            Completion(tokens[r], logps[r], [True] * len(tokens[r]), "stop" if tokens[r][-1] in stop else "length")
            for r in range(R)
        ]
        return [done[i : i + n] for i in range(0, R, n)], behind

    def _parts(self, prompts: Sequence[Sequence[int]], kept: list[Kept], size: int) -> Iterator[Part]:
        """The prompts, at most ``size`` at a time, those that begin in one kept cache together."""
        found: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for i, prompt in enumerate(prompts):
            best = max(
                ((*k.longest(prompt), which) for which, k in enumerate(kept)), key=lambda f: f[1], default=(0, 0, -1)
            )
            row, length, which = best
            start = min(length, len(prompt) - 1)  # the last token is run: its logits are wanted
            self.usage.reused += start
            found[which if start else -1].append((i, row, start))
        for which, mine in found.items():
            for i in range(0, len(mine), size):
                indices, rows, starts = map(list, zip(*mine[i : i + size], strict=True))
                yield Part(
                    indices,
                    [prompts[j] for j in indices],
                    None if which < 0 else kept[which].kv,
                    rows,
                    starts,
                    self.model.device,
                )

    def _extend(self, kv: KV, pieces: Sequence[Sequence[int]]) -> Tensor:
        """Run the next tokens of every active row; hidden states [active, longest, D], right-padded."""
        counts = [len(p) for p in pieces]
        longest = max(counts)
        ids = torch.tensor([[*p, *[0] * (longest - len(p))] for p in pieces], device=self.model.device)
        self.usage.computed += sum(counts)
        out = self.model.base_model(input_ids=ids, position_ids=kv.begin(counts), use_cache=False, layout=kv)
        return out.last_hidden_state

    def _autocast(self) -> torch.autocast:
        """What the learner scores under. Around a whole call, so that weights are cast once and not per token."""
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def _head(self, hidden: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(hidden)
