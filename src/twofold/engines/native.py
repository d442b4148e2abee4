"""The native engine: drives the very module that trains, with our own KV cache.

A prompt shared by n samples is prefilled once and forked; finished rows leave the batch; what they leave behind is
kept until the weights change, so a judgement, a forced answer or a continuation that starts with any prefix of a
finished rollout is computed from where that prefix ends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from twofold.engines.base import check_prompts
from twofold.engines.sampling import draw, uniforms
from twofold.maths.attention import KV, install
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
        groups: list[list[Completion]] = []
        left: list[Kept] = []
        with self._autocast():
            for i in range(0, len(prompts), size):
                part = slice(i, i + size)
                done, behind = self._generate(kept, prompts[part], sampling, randoms[part].flatten(0, 1))
                groups += done
                left.append(behind)
        self._kept = left
        return groups

    @torch.inference_mode()
    def logprobs(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> list[list[float]]:
        if len(prompts) != len(continuations):
            raise ValueError(f"{len(prompts)} prompts but {len(continuations)} continuations")
        check_prompts(prompts)
        results: list[list[float]] = []
        size = 1 if self.exact else self.max_rows
        with self._autocast():
            for i in range(0, len(prompts), size):
                part = slice(i, i + size)
                results += self._logprobs(prompts[part], continuations[part], temperature)
        return results

    @torch.inference_mode()
    def values(self, prompts: Sequence[Sequence[int]]) -> list[float]:
        """Output of the model's scalar head at the last token of each prompt (the head ablations of RL^V).

        Raises AttributeError if the model has no ``value_head``.
        """
        results: list[float] = []
        for i in range(0, len(prompts), self.max_rows):
            part = prompts[i : i + self.max_rows]
            kv, starts = self._prefixes(part, self._kept, max(map(len, part)) + 1)
            hidden = self._extend(kv, [p[s:] for p, s in zip(part, starts, strict=True)])
            last = torch.tensor([len(p) - s - 1 for p, s in zip(part, starts, strict=True)])
            results += self.model.value_head(hidden[torch.arange(len(part)), last].float())[:, 0].tolist()
        return results

    def _logprobs(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float
    ) -> list[list[float]]:
        """All pairs at once, each from where the kept prefix of its prompt ends."""
        if not any(map(len, continuations)):
            return [[] for _ in prompts]
        texts = [[*p, *c] for p, c in zip(prompts, continuations, strict=True)]
        # at least the last prompt token is run again: its logits predict the first token asked about
        kv, starts = self._prefixes(prompts, self._kept, max(map(len, texts)))
        hidden = self._extend(kv, [t[s:-1] for t, s in zip(texts, starts, strict=True)])
        results = []
        for row, (p, c, start) in enumerate(zip(prompts, continuations, starts, strict=True)):
            first = len(p) - 1 - start
            logp = (self._head(hidden[row, first : first + len(c)]).float() / temperature).log_softmax(-1)
            ids = torch.tensor(list(c), dtype=torch.long, device=logp.device)
            results.append(logp.gather(1, ids[:, None])[:, 0].tolist())
        return results

    def _generate(
        self, kept: list[Kept], prompts: Sequence[Sequence[int]], sampling: Sampling, randoms_R_T: Tensor
    ) -> tuple[list[list[Completion]], Kept]:
        """Decode all samples of some prompts; row r of R = len(prompts) * n is sample r % n of prompt r // n."""
        n, R = sampling.n, len(randoms_R_T)
        device = self.model.device
        room = max(map(len, prompts)) + sampling.max_tokens
        kv, starts = self._prefixes(prompts, kept, room)
        hidden = self._extend(kv, [p[s:] for p, s in zip(prompts, starts, strict=True)])
        last = torch.tensor([len(p) - s - 1 for p, s in zip(prompts, starts, strict=True)], device=device)
        fan = torch.arange(len(prompts), device=device).repeat_interleave(n)
        logits = self._head(hidden[torch.arange(len(prompts), device=device), last])[fan]
        if n > 1:
            kv = kv.fork(fan, kv.lengths[fan], room)
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

    def _prefixes(self, prompts: Sequence[Sequence[int]], kept: list[Kept], room: int) -> tuple[KV, list[int]]:
        """A cache with one row per prompt, begun from what was kept; and where each prompt has still to be run from."""
        if not kept:
            return KV(len(prompts), room, self.model.device), [0] * len(prompts)
        found = [max(((k, *k.longest(p)) for k in kept), key=lambda f: f[2]) for p in prompts]
        starts = [min(length, len(p) - 1) for (_, _, length), p in zip(found, prompts, strict=True)]
        self.usage.reused += sum(starts)
        parts, order = [], []
        for source in kept:
            mine = [i for i, f in enumerate(found) if f[0] is source]
            if mine:
                rows, lengths = torch.tensor([found[i][1] for i in mine]), torch.tensor([starts[i] for i in mine])
                parts.append(source.kv.fork(rows, lengths, room))
                order += mine
        return KV.join(parts, order), starts

    def _extend(self, kv: KV, pieces: Sequence[Sequence[int]]) -> Tensor:
        """Run the next tokens of every active row; hidden states [active, longest, D], right-padded."""
        device = self.model.device
        counts = torch.tensor([len(p) for p in pieces], device=device)
        longest = int(counts.max())
        ids = torch.tensor([[*p, *[0] * (longest - len(p))] for p in pieces], device=device)
        positions = kv.begin(counts)
        self.usage.computed += int(counts.sum())
        out = self.model.base_model(input_ids=ids, position_ids=positions, use_cache=False, layout=kv)
        kv.end(counts)
        return out.last_hidden_state

    def _autocast(self) -> torch.autocast:
        """What the learner scores under. Around a whole call, so that weights are cast once and not per token."""
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def _head(self, hidden: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(hidden)
