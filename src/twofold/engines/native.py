"""The native engine: it drives the very module that trains, with a KV cache of our own.

A prompt shared by n samples is prefilled once and forked, and finished rows leave the batch. The caches of the last call are kept
until the weights change, so a judgement, a forced answer or a continuation that begins with any prefix of a finished rollout is
computed from the end of that prefix.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from twofold.engines.base import Finished, Run, Scored, Usage, check_prompts, ignore_finished
from twofold.engines.decoding import Decoding, Part, PrefixCache
from twofold.engines.runs import NativeRun, NativeScores, Work, batches, by_prompt, stretches
from twofold.engines.sampling import uniforms
from twofold.engines.static import StaticDecoder, obstacle
from twofold.models.context import context
from twofold.models.decoder import Decoder, Module, network
from twofold.models.install import install
from twofold.models.kv import KV, JoinedKV
from twofold.models.logprobs import LOGITS, shifted
from twofold.models.sharding import sharded
from twofold.types import Completion, Context, Precision, Sampling

log = logging.getLogger(__name__)


def _last(hidden: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """Return the hidden state of each row's last token, [rows, D], from [rows, longest, D]."""
    return hidden[torch.arange(len(pieces)), torch.tensor([len(p) - 1 for p in pieces])]


class NativeEngine:
    """Implements ``PolicyEngine`` and ``StepEngine`` over a ``transformers`` causal LM with full attention.

    With ``exact`` a result is, bit for bit, a function of its prompt and settings, and its log-probs are those of a learner in
    exact mode (see ``models.exact``); this is slower. ``max_rows`` bounds the rows decoded at once; one prompt's samples stay
    together. ``step_tokens`` bounds the tokens that ``step`` runs.
    ``precision`` must be the learner's, so that what is sampled is what is scored: with ``bfloat16`` the model and its head
    run under autocast, or, where ``Decoder`` suits, as if they did. Call ``load`` after the weights have changed.

    On a CUDA device ``generate`` decodes with ``StaticDecoder``, unless ``exact`` is set; if it cannot, the log says why.

    Raises ValueError for a model that ``install`` refuses, and with ``exact``, once it is used, for one that is not of Llama's
    family.
    """

    def __init__(
        self,
        model: Any,
        *,
        exact: bool = False,
        max_rows: int = 1024,
        step_tokens: int = 512,
        precision: Precision = "float32",
    ) -> None:
        self.model = install(model)
        self.exact = exact
        self.max_rows, self.step_tokens = max_rows, step_tokens
        self.precision = precision
        self.usage = Usage()
        self._kept: list[PrefixCache] = []
        self._turns = itertools.count()  # the sessions' as well
        self._built: Decoder | Module | None = None
        self._built_static: StaticDecoder | None = None
        self.static = self._static_works()

    def _static_works(self) -> bool:
        """Return whether ``generate`` decodes with ``StaticDecoder``."""
        hindrance = obstacle(self.model)
        if hindrance and self.model.device.type == "cuda":
            log.warning("decoding takes several times as long as it could on this device: %s", hindrance)
        return not self.exact and not hindrance

    def load(self, weights: Mapping[str, Any]) -> None:
        """Drop what was computed from the old weights. The new ones are the module's own and already in place. If they are cut
        among ranks, all ranks must call this at the same time: each gathers a copy in the run's precision."""
        self.rest()
        if sharded(self.model):
            self.static = self._static_works()  # the model may have been on another device before it was cut
            _ = self._network

    def rest(self) -> None:
        self._kept, self._built, self._built_static = [], None, None

    @property
    def context(self) -> Context:
        """The most tokens of a text. Every call raises ValueError, before it begins, if one of its texts could be longer."""
        return context(self.model.config)

    @property
    @torch.inference_mode()
    def _network(self) -> Decoder | Module:
        if self._built is None:
            self._built = network(self.model, getattr(torch, self.precision), exact=self.exact)
        return self._built

    @property
    @torch.inference_mode()
    def _static(self) -> StaticDecoder:
        if self._built_static is None:
            assert isinstance(self._network, Decoder)
            self._built_static = StaticDecoder(self._network)
        return self._built_static

    def session(self) -> NativeEngine:
        """Return an engine on the same module with its own caches and usage, for one of many callers served at once."""
        assert self._static if self.static else self._network  # built once for all sessions
        other = copy.copy(self)
        other.usage, other._kept = Usage(), []
        return other

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished = ignore_finished
    ) -> list[list[Completion]]:
        size = max(1, self.max_rows // sampling.n)
        decodings = []
        with self._autocast():
            for part, randoms in self._take(prompts, sampling, size):
                pieces, kv = part.pieces(), self._prompt_cache(part, sampling, self.static)
                ends = _last(self._extend(kv, pieces), pieces)
                decoding = self._decoding(part, sampling, kv, ends, randoms, self.static)
                if self.static:
                    self.usage.computed += self._static.decode(decoding, finished)
                while not decoding.done:
                    self._advance([decoding])
                    decoding.report(finished)
                decodings.append(decoding)
        self._keep([d.cache() for d in decodings])
        return by_prompt(decodings)

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> NativeRun:
        """Begin a ``generate`` call. ``step`` runs its prompts and draws its tokens."""
        rows = range(len(prompts) * sampling.n)
        run = NativeRun(self._keep, sampling.n, [[] for _ in rows], [[] for _ in rows], [])
        run.work = Work(self._run_prompts(run, prompts, sampling), next(self._turns))
        return run

    @torch.inference_mode()
    def step(self, runs: Sequence[Run[Any]]) -> None:
        """Draw one more token for every unfinished sample of these runs, of whatever sessions, in one forward pass.

        Before that, the prompts and texts that wait are run, a chunk of each call in turn, while all this has at most
        ``step_tokens`` tokens. Prompts get at least half of them, however many samples there are. A chunk is one prompt or
        text, part of a long one, or several short ones of a call.

        A run that gets done leaves its caches to its session.
        """
        running = [run for run in runs if isinstance(run, NativeRun | NativeScores) and not run.done]
        drawing = [run for run in running if isinstance(run, NativeRun)]
        rows = sum(d.kv.active for run in drawing for d in run.decodings if not d.done)
        with self._autocast():
            self._run_chunks([run.work for run in running], max(self.step_tokens - rows, self.step_tokens // 2))
            decodings = [d for run in drawing if run.work.error is None for d in run.decodings if not d.done]
            self._advance(decodings)
        for run in drawing:
            if run.done:
                run.stop()

    def _keep(self, caches: list[PrefixCache]) -> None:
        self._kept = caches

    @property
    def _chunk(self) -> float:
        """The most tokens of a chunk."""
        return max(1, self.step_tokens // 2)

    def _run_chunks(self, works: Sequence[Work], tokens: int) -> None:
        """Run chunks of ``tokens`` tokens at most, but at least one. The call that has waited longest is the next."""
        left = tokens
        while waiting := [work for work in works if work.next]:
            work = min(waiting, key=lambda w: w.turn)
            if work.next > left < tokens:
                return
            left -= work.next
            work.advance(next(self._turns))

    def _run_prompts(self, run: NativeRun, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Generator[int]:
        """Run the prompts of a call and begin to decode them, chunk by chunk (see ``Work``)."""
        for part, randoms in self._take(prompts, sampling, max(1, len(prompts)), self._chunk):
            kv = None
            for _, stretch in stretches(part.pieces(), self._chunk):
                yield len(stretch) * max(map(len, stretch))
                kv = kv or self._prompt_cache(part, sampling)
                ends = _last(self._extend(kv, stretch), stretch)
            assert kv is not None
            run.begin(self._decoding(part, sampling, kv, ends, randoms))

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
        """Return the ``logprobs`` and the ``top`` likeliest tokens of each place with theirs."""
        found: dict[int, Scored] = {}
        with self._autocast():
            for _ in self._score_texts(found, prompts, continuations, temperature, top, math.inf):
                pass
        return [found[i] for i in range(len(prompts))]

    @torch.inference_mode()
    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float, top: int
    ) -> NativeScores:
        """Begin a ``scored`` call. ``step`` runs its texts."""
        run = NativeScores({})
        texts = self._score_texts(run.found, prompts, continuations, temperature, top, self._chunk)
        run.work = Work(texts, next(self._turns))
        return run

    def _score_texts(
        self,
        found: dict[int, Scored],
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        temperature: float,
        top: int,
        tokens: float,
    ) -> Generator[int]:
        """Fill ``found``, by the indices of the pairs, in chunks of at most ``tokens`` tokens (see ``Work``)."""
        if len(prompts) != len(continuations):
            raise ValueError(f"{len(prompts)} prompts but {len(continuations)} continuations")
        check_prompts(prompts)
        self.context.check(max((len(p) + len(c) for p, c in zip(prompts, continuations, strict=True)), default=0))
        found |= {i: ([], []) for i in range(len(prompts))}
        same_pass: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = defaultdict(list)
        for i, (p, c) in enumerate(zip(prompts, continuations, strict=True)):
            same_pass[tuple(p), tuple(c[:-1])].append(i)  # the last token is looked up, not run
        groups = [group for group in same_pass.values() if any(continuations[i] for i in group)]
        firsts, shared = [prompts[group[0]] for group in groups], [continuations[group[0]][:-1] for group in groups]
        for part in self._parts(firsts, self._kept, self.max_rows, tokens, [*map(len, shared)]):
            kv = None
            own = part.pieces()  # with the last prompt token: its logits predict the continuation's first token
            pieces = [[*p, *shared[j]] for p, j in zip(own, part.indices, strict=True)]
            for at, stretch in stretches(pieces, tokens):
                yield len(stretch) * max(map(len, stretch))
                kv = kv or part.begin(max(map(len, pieces)), self.model.device)
                for j, p, hidden_T_D in zip(part.indices, own, self._extend(kv, stretch), strict=True):
                    chosen = [continuations[i] for i in groups[j]]
                    scored = self._score_row(hidden_T_D, len(p) - 1 - at, chosen, temperature, top)
                    for i, (logprobs, likeliest) in zip(groups[j], scored, strict=True):
                        found[i][0].extend(logprobs)
                        found[i][1].extend(likeliest)

    @torch.inference_mode()
    def values(self, prompts: Sequence[Sequence[int]]) -> list[float]:
        """P(right) by the model's scalar head at the last token of each prompt (the head ablations of RL^V).

        Raises AttributeError if the model has no ``value_head``, ValueError if the head's kind is not known.
        """
        self.context.check(max(map(len, prompts), default=0))
        results: dict[int, float] = {}
        for part in self._parts(prompts, self._kept, self.max_rows):
            pieces = part.pieces()
            hidden = self._extend(part.begin(max(map(len, pieces)), self.model.device), pieces)
            scores = self.model.value_head.probability(_last(hidden, pieces)).tolist()
            results |= zip(part.indices, scores, strict=True)
        return [results[i] for i in range(len(prompts))]

    def _score_row(
        self, hidden_T_D: Tensor, first: int, continuations: Sequence[Sequence[int]], temperature: float, top: int
    ) -> list[Scored]:
        """Score the tokens of G continuations that these hidden states precede, with at most ``LOGITS`` logits at once.

        The state before the continuations' first token is at ``first``, which is negative if it was in an earlier stretch.
        """
        start, end = max(first, 0), min(first + max(map(len, continuations)), len(hidden_T_D))
        if start >= end:
            return [([], []) for _ in continuations]
        hidden_T_D, continuations = hidden_T_D[start:end], [c[start - first : end - first] for c in continuations]
        padded = [[*c, *[0] * (len(hidden_T_D) - len(c))] for c in continuations]
        ids_T_G = torch.tensor(padded, dtype=torch.long, device=hidden_T_D.device).T
        size = max(1, LOGITS // self._network.vocabulary)
        logprobs: list[Tensor] = []
        likeliest: list[dict[int, float]] = []
        for hidden_t_D, ids_t_G in zip(hidden_T_D.split(size), ids_T_G.split(size), strict=True):
            logp_t_V = shifted(self._head(hidden_t_D), temperature).log_softmax(-1)
            logprobs.append(logp_t_V.gather(1, ids_t_G))
            best = logp_t_V.topk(min(top, logp_t_V.shape[1]))
            likeliest += [
                dict(zip(tokens, values, strict=True))
                for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
        columns = torch.cat(logprobs).T.tolist()
        return [(x[: len(c)], likeliest[: len(c)]) for x, c in zip(columns, continuations, strict=True)]

    def _take(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, size: int, tokens: float = math.inf
    ) -> Iterator[tuple[Part, Tensor]]:
        """Yield the parts of a call, each with its random numbers [R, max_tokens]. The caches of the last call are dropped as
        soon as no part needs them."""
        check_prompts(prompts)
        self.context.check(max(map(len, prompts), default=0), sampling.max_tokens)
        randoms = torch.from_numpy(uniforms(prompts, sampling)).view(len(prompts), sampling.n, sampling.max_tokens)
        kept, self._kept = self._kept, []
        for part in self._parts(prompts, kept, size, tokens):
            yield part, randoms[part.indices].flatten(0, 1).to(self.model.device)

    def _prompt_cache(self, part: Part, sampling: Sampling, static: bool = False) -> KV:
        """Return the cache for a part's prompts, and for their samples as well if these need no fork (see ``_decoding``)."""
        longest = max(map(len, part.pieces()))
        even = self._is_even(part, sampling, static)
        return part.begin(longest + (sampling.max_tokens if even else 0), self.model.device)

    def _decoding(
        self,
        part: Part,
        sampling: Sampling,
        kv: KV,
        last_P_D: Tensor,
        randoms_R_T: Tensor,
        static: bool = False,
    ) -> Decoding:
        """Give every sample a row of the cache. ``last_P_D`` are the states of the prompts' last tokens. A static step reads one
        other cache, the prompts'."""
        n, prompts = sampling.n, part.prompts
        logits = self._head(last_P_D)
        if not self._is_even(part, sampling, static):
            prompt_of_R, lengths = torch.arange(len(prompts)).repeat_interleave(n), torch.tensor([*map(len, prompts)])
            kv = kv.whole(lengths) if static else kv
            kv = kv.fork(prompt_of_R, lengths[prompt_of_R], sampling.max_tokens)
            logits = logits[prompt_of_R.to(logits.device)]
        return Decoding(part, sampling, kv, logits, randoms_R_T)

    def _is_even(self, part: Part, sampling: Sampling, static: bool) -> bool:
        """Return whether samples can grow in their prompts' own rows."""
        return sampling.n == 1 and len({len(p) for p in part.pieces()}) == 1 and not static

    def _advance(self, decodings: Sequence[Decoding]) -> None:
        """Draw a token for every row and run those that are not their sample's last."""
        new = [x for d in decodings for x in d.draw()]
        running = [d for d in decodings if not d.done]
        if not running:
            return
        kv = running[0].kv if len(running) == 1 else JoinedKV([d.kv for d in running])
        logits = self._head(self._extend(kv, [[x] for x in new])[:, 0])
        for decoding, rows in zip(running, logits.split([d.kv.active for d in running]), strict=True):
            decoding.logits = rows

    def _parts(
        self,
        prompts: Sequence[Sequence[int]],
        kept: list[PrefixCache],
        size: int,
        tokens: float = math.inf,
        more: Sequence[int] | None = None,
    ) -> Iterator[Part]:
        """Yield the prompts in parts, each of prompts that begin in the same kept cache.

        A part has at most ``size`` prompts, and ``tokens`` tokens to run with the padding, unless it is one prompt. ``more[i]``
        tokens are run behind prompt i.
        """
        found: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for i, prompt in enumerate(prompts):
            prefixes = ((*cache.longest_prefix(prompt), which) for which, cache in enumerate(kept))
            row, length, which = max(prefixes, key=lambda prefix: prefix[1], default=(0, 0, -1))
            start = min(length, len(prompt) - 1)  # the last token is run again for its logits
            self.usage.reused += start
            found[which if start else -1].append((i, row, start))
        for which, members in found.items():
            lengths = [len(prompts[i]) - start + (more[i] if more else 0) for i, _, start in members]
            for these in batches(lengths, size, tokens):
                indices, rows, starts = map(list, zip(*members[these], strict=True))
                texts = [prompts[j] for j in indices]
                yield Part(indices, texts, None if which < 0 else kept[which].kv, rows, starts)

    def _extend(self, kv: KV | JoinedKV, pieces: Sequence[Sequence[int]]) -> Tensor:
        """Run the next tokens of every active row and return their hidden states [active, longest, D], right-padded."""
        counts = [len(p) for p in pieces]
        longest = max(counts)
        ids = torch.tensor([[*p, *[0] * (longest - len(p))] for p in pieces], device=self.model.device)
        self.usage.computed += sum(counts)
        return self._network(ids, kv.begin(counts), kv)

    def _autocast(self) -> torch.autocast:
        """Return the autocast that the learner scores under, to wrap a whole call: weights are cast once, not per token."""
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def _head(self, hidden: Tensor) -> Tensor:
        return self._network.head(hidden)
