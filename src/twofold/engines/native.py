"""The native engine: drives the very module that trains, with our own KV cache.

A prompt shared by n samples is prefilled once and forked; finished rows leave the batch; what they leave behind is
kept until the weights change, so a judgement, a forced answer or a continuation that starts with any prefix of a
finished rollout is computed from where that prefix ends.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from twofold.engines.base import Finished, Scored, check_prompts, unheard
from twofold.engines.kv import KV, Together
from twofold.engines.sampling import confidences, draw, uniforms
from twofold.models.attention import install
from twofold.models.decoder import Decoder, Module, network
from twofold.models.logprobs import LOGITS
from twofold.types import Completion, Finish, Sampling


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

    def pieces(self) -> list[Sequence[int]]:
        """What has still to be run."""
        return [p[s:] for p, s in zip(self.prompts, self.starts, strict=True)]

    def begin(self, room: int, device: torch.device) -> KV:
        """A cache of these beginnings with ``room`` more tokens per row."""
        starts = torch.tensor(self.starts)
        return KV(starts, room, device) if self.kv is None else self.kv.fork(torch.tensor(self.rows), starts, room)


class Decoding:
    """The samples of a part while they are drawn: row r of R = prompts * n is sample r % n of prompt r // n."""

    def __init__(self, part: Part, sampling: Sampling, kv: KV, logits_R_V: Tensor, randoms_R_T: Tensor) -> None:
        self.part, self.sampling = part, sampling
        self.kv, self.logits, self.randoms = kv, logits_R_V, randoms_R_T
        rows = range(len(randoms_R_T))
        self.order = list(rows)  # order[i] is the sample that row i of the cache holds
        self.tokens: list[list[int]] = [[] for _ in rows]
        self.logprobs: list[list[float]] = [[] for _ in rows]
        self.confidence: list[list[float]] = [[] for _ in rows]
        self.certainty: list[list[float]] = [[] for _ in rows]
        self.steps = 0
        self.running = len(rows)  # how many samples ``tell`` has not told of

    @property
    def done(self) -> bool:
        return self.kv.active == 0 or self.steps == self.sampling.max_tokens

    def draw(self) -> list[int]:
        """One more token for every active row. Rows that end are retired; what the others drew has to be run next."""
        kv, s = self.kv, self.sampling
        drawn, logp = draw(self.logits, self.randoms[self.order[: kv.active], self.steps], s.temperature, s.top_p)
        found: list[tuple[list[list[Any]], Tensor]] = [(self.tokens, drawn), (self.logprobs, logp)]
        if s.trace_top:
            found += zip((self.confidence, self.certainty), confidences(self.logits, s.trace_top), strict=True)
        for lists, values in found:
            for i, value in zip(self.order, values.tolist(), strict=False):
                lists[i].append(value)
        new = drawn.tolist()
        if finished := [i for i in range(kv.active) if new[i] in s.stop]:
            for i, j in zip(*kv.retire(finished), strict=True):
                self.order[i], self.order[j], new[i] = self.order[j], self.order[i], new[j]
        self.steps += 1
        return [] if self.done else new[: kv.active]

    def completions(self) -> list[list[Completion]]:
        """What has been drawn, by prompt."""
        done, n = [self._completion(r) for r in range(len(self.tokens))], self.sampling.n
        return [done[i : i + n] for i in range(0, len(done), n)]

    def tell(self, finished: Finished) -> None:
        """Tell of the samples that have ended since it was last asked."""
        running = 0 if self.done else self.kv.active
        for r in self.order[running : self.running]:
            i, j = divmod(r, self.sampling.n)
            finished(self.part.indices[i], j, self._completion(r))
        self.running = running

    def _completion(self, r: int) -> Completion:
        tokens = [*self.tokens[r]]
        finish: Finish = "stop" if tokens and tokens[-1] in self.sampling.stop else "length"
        more = ([*self.confidence[r]], [*self.certainty[r]]) if self.sampling.trace_top else ()
        return Completion(tokens, [*self.logprobs[r]], [True] * len(tokens), finish, *more)

    def kept(self) -> Kept:
        """The cache with the texts in it: the last token drawn was never run."""
        prompts = [tuple(self.part.prompts[r // self.sampling.n]) for r in self.order]
        return Kept(self.kv, prompts, [[*p, *self.tokens[r][:-1]] for p, r in zip(prompts, self.order, strict=True)])


@dataclass(slots=True)
class Run:
    """A ``generate`` call that is taken token by token, see ``NativeEngine.step``."""

    session: NativeEngine
    decodings: list[Decoding]

    @property
    def done(self) -> bool:
        return all(d.done for d in self.decodings)

    @property
    def tokens(self) -> list[list[int]]:
        """Every sample's tokens so far, those of one prompt together: the lists that grow, not copies."""
        return self._rows("tokens")

    @property
    def logprobs(self) -> list[list[float]]:
        """Those of ``tokens``."""
        return self._rows("logprobs")

    @property
    def results(self) -> list[list[Completion]]:
        """All completions as far as they are drawn, by prompt."""
        groups = {i: g for d in self.decodings for i, g in zip(d.part.indices, d.completions(), strict=True)}
        return [groups[i] for i in range(len(groups))]

    def leave(self) -> None:
        """Leave the caches to the session: done when the run is, and by who ends it early."""
        self.session._kept = [d.kept() for d in self.decodings]

    def _rows(self, name: str) -> list[list[Any]]:
        found: dict[int, list[list[Any]]] = {}
        for d in self.decodings:
            n = d.sampling.n
            found |= {i: getattr(d, name)[j * n : (j + 1) * n] for j, i in enumerate(d.part.indices)}
        return [row for i in range(len(found)) for row in found[i]]


@dataclass(frozen=True, slots=True)
class Scoring:
    """A ``scored`` call in the shape of a run: it is done at once."""

    results: list[Scored]
    tokens: tuple[()] = ()
    logprobs: tuple[()] = ()
    done: bool = True

    def leave(self) -> None:
        pass


def _last(hidden: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """The hidden state of each row's last token, [rows, D]."""
    return hidden[torch.arange(len(pieces)), torch.tensor([len(p) - 1 for p in pieces])]


class NativeEngine:
    """Implements ``Engine`` over a ``transformers`` causal LM with full attention.

    ``exact``: every prompt (with its n samples) runs as a batch of its own, so that company cannot change a
    result by a rounding; slower. ``max_rows`` bounds the rows decoded at once (one prompt's samples stay together).
    ``precision`` must be the learner's, so that what is sampled is what is scored: with ``bfloat16`` the model and
    its head run under autocast, or, where ``Decoder`` suits, as if they did. Call ``load`` when weights have changed.
    Raises ValueError for a model that ``install`` refuses.
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
        self._made: Decoder | Module | None = None

    def load(self, weights: Mapping[str, Any]) -> None:
        """The weights are the module's own and already in place; only what was made of them is stale now."""
        self._kept, self._made = [], None

    def rest(self) -> None:
        self._kept, self._made = [], None

    @property
    def context(self) -> int | None:
        """Most tokens of a text, if the model's config says."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    @torch.inference_mode()
    def _network(self) -> Decoder | Module:
        if self._made is None:
            self._made = network(self.model, getattr(torch, self.precision))
        return self._made

    def session(self) -> NativeEngine:
        """An engine on the same module with caches and a count of its own, for a caller that is served beside others."""
        assert self._network  # made once for all sessions
        other = copy.copy(self)
        other.usage, other._kept = Usage(), []
        return other

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished = unheard
    ) -> list[list[Completion]]:
        size = 1 if self.exact else max(1, self.max_rows // sampling.n)
        run = Run(self, [])
        with self._autocast():
            for part, randoms in self._take(prompts, sampling, size):
                decoding = self._begin(part, sampling, randoms)
                while not decoding.done:
                    self._advance([decoding])
                    decoding.tell(finished)
                run.decodings.append(decoding)
        self._kept = [d.kept() for d in run.decodings]
        return run.results

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Run:
        """A ``generate`` call whose prompts have been run and whose tokens ``step`` will draw."""
        with self._autocast():
            parts = self._take(prompts, sampling, 1 if self.exact else max(1, len(prompts)))
            return Run(self, [self._begin(part, sampling, randoms) for part, randoms in parts])

    @torch.inference_mode()
    def step(self, runs: Sequence[Run]) -> None:
        """One more token for every unfinished sample of these runs, of whatever sessions, in one forward pass.

        A run that is done leaves its caches to its session.
        """
        waiting = [run for run in runs if not run.done]
        decodings = [d for run in waiting for d in run.decodings if not d.done]
        with self._autocast():
            for together in [[d] for d in decodings] if self.exact else [decodings]:
                self._advance(together)
        for run in waiting:
            if run.done:
                run.leave()

    def logprobs(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> list[list[float]]:
        return [logprobs for logprobs, _ in self.scored(prompts, continuations, temperature)]

    @torch.inference_mode()
    def scored(
        self,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        temperature: float = 1.0,
        top: int = 0,
    ) -> list[Scored]:
        """``logprobs``, and in each place the ``top`` likeliest tokens with theirs."""
        if len(prompts) != len(continuations):
            raise ValueError(f"{len(prompts)} prompts but {len(continuations)} continuations")
        check_prompts(prompts)
        alike: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = defaultdict(list)
        for i, (p, c) in enumerate(zip(prompts, continuations, strict=True)):
            alike[tuple(p), tuple(c[:-1])].append(i)  # what is run: the last token is only asked about
        groups = list(alike.values())
        results: dict[int, Scored] = {}
        with self._autocast():
            firsts = [prompts[group[0]] for group in groups]
            for part in self._parts(firsts, self._kept, 1 if self.exact else self.max_rows):
                chosen = [[continuations[i] for i in groups[j]] for j in part.indices]
                for j, found in zip(part.indices, self._scored(part, chosen, temperature, top), strict=True):
                    results |= zip(groups[j], found, strict=True)
        return [results[i] for i in range(len(prompts))]

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float, top: int
    ) -> Scoring:
        return Scoring(self.scored(prompts, continuations, temperature, top))

    @torch.inference_mode()
    def values(self, prompts: Sequence[Sequence[int]]) -> list[float]:
        """Output of the model's scalar head at the last token of each prompt (the head ablations of RL^V).

        Raises AttributeError if the model has no ``value_head``.
        """
        results: dict[int, float] = {}
        for part in self._parts(prompts, self._kept, self.max_rows):
            pieces = part.pieces()
            hidden = self._extend(part.begin(max(map(len, pieces)), self.model.device), pieces)
            scores = self.model.value_head(_last(hidden, pieces).float())[:, 0].tolist()
            results |= zip(part.indices, scores, strict=True)
        return [results[i] for i in range(len(prompts))]

    def _scored(
        self, part: Part, continuations: Sequence[Sequence[Sequence[int]]], temperature: float, top: int
    ) -> list[list[Scored]]:
        """Of every prompt its continuations, which differ in their last token alone: each prompt is run once, from where
        its kept prefix ends."""
        if not any(c for group in continuations for c in group):
            return [[([], []) for _ in group] for group in continuations]
        # at least the last prompt token is run again: its logits predict the first token asked about
        own = part.pieces()
        pieces = [[*p, *group[0][:-1]] for p, group in zip(own, continuations, strict=True)]
        hidden = self._extend(part.begin(max(map(len, pieces)), self.model.device), pieces)
        results = []
        size = max(1, LOGITS // self._network.vocabulary)
        for row, (p, group) in enumerate(zip(own, continuations, strict=True)):
            most = max(map(len, group))
            ids_T_G = torch.tensor(
                [[*c, *[0] * (most - len(c))] for c in group], dtype=torch.long, device=hidden.device
            ).T
            rows_T_D = hidden[row, len(p) - 1 : len(p) - 1 + most]
            found: list[Tensor] = []
            tops: list[dict[int, float]] = []
            for part_t_D, ids_t_G in zip(rows_T_D.split(size), ids_T_G.split(size), strict=True):
                logp = (self._head(part_t_D).float() / temperature).log_softmax(-1)
                best = logp.topk(min(top, logp.shape[1]))
                pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                tops += [dict(zip(i, x, strict=True)) for i, x in pairs]
                found.append(logp.gather(1, ids_t_G))
            columns = torch.cat(found).T.tolist()
            results.append([(x[: len(c)], tops[: len(c)]) for x, c in zip(columns, group, strict=True)])
        return results

    def _take(self, prompts: Sequence[Sequence[int]], sampling: Sampling, size: int) -> Iterator[tuple[Part, Tensor]]:
        """The parts of a call with their random numbers; what was kept of the call before is held no longer than needed."""
        check_prompts(prompts)
        randoms = torch.from_numpy(uniforms(prompts, sampling)).view(len(prompts), sampling.n, sampling.max_tokens)
        kept, self._kept = self._kept, []
        for part in self._parts(prompts, kept, size):
            yield part, randoms[part.indices].flatten(0, 1).to(self.model.device)

    def _begin(self, part: Part, sampling: Sampling, randoms_R_T: Tensor) -> Decoding:
        """Run the prompts, each once, and give every sample a row."""
        n, prompts, pieces = sampling.n, part.prompts, part.pieces()
        longest = max(map(len, pieces))
        even = n == 1 and longest == min(map(len, pieces))
        kv = part.begin(longest + (sampling.max_tokens if even else 0), self.model.device)
        logits = self._head(_last(self._extend(kv, pieces), pieces))
        if not even:
            fan = torch.arange(len(prompts)).repeat_interleave(n)
            kv = kv.fork(fan, torch.tensor([len(p) for p in prompts])[fan], sampling.max_tokens)
            logits = logits[fan.to(logits.device)]
        return Decoding(part, sampling, kv, logits, randoms_R_T)

    def _advance(self, decodings: Sequence[Decoding]) -> None:
        """Draw a token for every row, and run those that are not the last."""
        new = [x for d in decodings for x in d.draw()]
        live = [d for d in decodings if not d.done]
        if not live:
            return
        kv = live[0].kv if len(live) == 1 else Together([d.kv for d in live])
        logits = self._head(self._extend(kv, [[x] for x in new])[:, 0])
        for decoding, rows in zip(live, logits.split([d.kv.active for d in live]), strict=True):
            decoding.logits = rows

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
                texts = [prompts[j] for j in indices]
                yield Part(indices, texts, None if which < 0 else kept[which].kv, rows, starts)

    def _extend(self, kv: KV | Together, pieces: Sequence[Sequence[int]]) -> Tensor:
        """Run the next tokens of every active row; hidden states [active, longest, D], right-padded."""
        counts = [len(p) for p in pieces]
        longest = max(counts)
        ids = torch.tensor([[*p, *[0] * (longest - len(p))] for p in pieces], device=self.model.device)
        self.usage.computed += sum(counts)
        return self._network(ids, kv.begin(counts), kv)

    def _autocast(self) -> torch.autocast:
        """What the learner scores under. Around a whole call, so that weights are cast once and not per token."""
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def _head(self, hidden: Tensor) -> Tensor:
        return self._network.head(hidden)
