"""A server with OpenAI's API behind the engine protocol: token ids in, token ids and log-probs out of ``/completions``.

What OpenAI's fields cannot say is said in vLLM's: prompts of token ids, ``stop_token_ids``, ``ignore_eos`` and
``return_tokens_as_token_ids``. Reuse of what was computed is the server's affair (vLLM: prefix caching, on by default).
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any

from twofold.engines.base import Finished, Scored, UpstreamError, check_prompts, unheard
from twofold.engines.wire import Wire
from twofold.types import Completion, Finish, Sampling

TICK = 0.02
"""Seconds that ``step`` waits for news at most."""
SAID = {
    "ignore_eos": True,  # only stop_token_ids end a completion
    "logprobs": 0,
    "return_tokens_as_token_ids": True,
    # what is left out, servers take from the model's generation_config.json
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
"""In every request."""


@dataclass(slots=True)
class Draw:
    """One sample as it arrives. ``logprobs`` are written before ``tokens``, which others read meanwhile."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """NaN where nothing was told: of a text's first token."""
    tops: list[dict[int, float]] = field(default_factory=list)
    """The likeliest tokens in each place, if they were asked for."""
    finish: str | None = None

    def add(self, choice: dict[str, Any]) -> None:
        if told := choice["logprobs"]:
            tokens = [_id(token) for token in told["tokens"]]
            values = [math.nan if x is None else float(x) for x in told["token_logprobs"]]
            if len(tokens) != len(values):
                raise ValueError(f"{len(tokens)} tokens with {len(values)} log-probs")
            self.tops += [{_id(t): float(x) for t, x in (top or {}).items()} for top in told.get("top_logprobs") or ()]
            self.logprobs += values
            self.tokens += tokens
        self.finish = choice["finish_reason"] or self.finish

    def check(self, stop: Sequence[int]) -> None:
        """Raises UpstreamError unless it is a whole sample."""
        if self.finish not in ("stop", "length") or not self.tokens or any(map(math.isnan, self.logprobs)):
            raise UpstreamError(502, f"the upstream ended a completion of {len(self.tokens)} tokens by {self.finish!r}")
        if self.finish == "stop" and self.tokens[-1] not in stop:
            raise UpstreamError(502, "the upstream leaves out the token that stopped a completion, or stops at others")

    def completion(self, stop: Sequence[int]) -> Completion:
        tokens = [*self.tokens]
        finish: Finish = "stop" if tokens and tokens[-1] in stop else "length"
        return Completion(tokens, self.logprobs[: len(tokens)], [True] * len(tokens), finish)


class Run:
    """A call under way. ``draws`` are its samples so far (none, if it scores)."""

    def __init__(self, future: Future[list[Any]], draws: Sequence[Draw], read: Callable[[], Any]) -> None:
        self.future, self._draws, self._read = future, draws, read

    @property
    def tokens(self) -> list[list[int]]:
        """The lists that grow."""
        return [draw.tokens for draw in self._draws]

    @property
    def logprobs(self) -> list[list[float]]:
        return [draw.logprobs for draw in self._draws]

    @property
    def done(self) -> bool:
        return self.future.done()

    @property
    def results(self) -> Any:
        """What there is; raises what the call failed with."""
        if self.future.done() and not self.future.cancelled():
            self.future.result()
        return self._read()

    def leave(self) -> None:
        """Close its connections: the server stops working on it."""
        self.future.cancel()


class RemoteEngine:
    """Implements ``Engine`` over the server at ``url``; its key is read from the variable ``TWOFOLD_UPSTREAM_KEY``.

    ``model`` is the server's name for it; without one, the first of ``likely`` that it serves, or its only one.
    ``text`` and its token ids ``ids`` (several, without control tokens) show that both sides mean the same tokens.

    ``raw``: ``generate`` tells log-probs of the softmax at temperature 1, whatever was sampled from: vLLM's default
    (``--logprobs-mode processed_logprobs`` mends it). ``context``: most tokens of a text, None if the server does not say.

    Every call may raise UpstreamError (an OSError). So does making one, if the server lacks what is needed; a model
    that it does not serve or another tokenizer is a ValueError.
    """

    def __init__(
        self,
        url: str,
        *,
        text: str,
        ids: Sequence[int],
        model: str | None = None,
        likely: Sequence[str] = (),
        timeout: float = 3600.0,
    ) -> None:
        self.wire = Wire(url, timeout)
        self.raw, self._quick = True, False
        self._news = threading.Event()
        try:
            self.model, self.context = self._find(model, likely)
            self._probe(text, list(ids))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.wire.close()

    def session(self) -> RemoteEngine:
        """Calls share nothing: one engine serves every request."""
        return self

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished = unheard
    ) -> list[list[Completion]]:
        """Raises ValueError if ``sampling`` asks for confidences: a server tells no whole distributions."""
        return self._whole(self._start(prompts, sampling, stream=False, finished=finished))

    def logprobs(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> list[list[float]]:
        """Raises ValueError for another temperature than 1."""
        return [values for values, _ in self._whole(self.score(prompts, continuations, temperature, 0))]

    def start(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Run:
        """A ``generate`` call whose tokens arrive one by one."""
        return self._start(prompts, sampling, stream=True)

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float, top: int
    ) -> Run:
        """A ``logprobs`` call under way, with the ``top`` likeliest tokens of each place: its results are ``Scored``."""
        if len(prompts) != len(continuations):
            raise ValueError(f"{len(prompts)} prompts but {len(continuations)} continuations")
        check_prompts(prompts)
        if temperature != 1:
            raise ValueError(f"an upstream scores texts at temperature 1, not {temperature}")
        future = self.wire.submit(self._score([*p], [*c], top) for p, c in zip(prompts, continuations, strict=True))
        return self._run(future, [], future.result)

    def step(self, runs: Sequence[Run]) -> None:
        """Wait for news of any call, for a moment."""
        self._news.wait(TICK)
        self._news.clear()

    def _start(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, stream: bool, finished: Finished = unheard
    ) -> Run:
        check_prompts(prompts)
        if sampling.trace_top:
            raise ValueError("an upstream tells no confidences: certain, borda and deepconf need the model itself")
        seen: Counter[bytes] = Counter()
        work, groups = [], []
        for i, prompt in enumerate(prompts):
            key = b"%d " * len(prompt) % tuple(prompt)
            if sampling.temperature == 0:  # all are one, and vLLM refuses more
                groups.append([Draw()] * sampling.n)
            else:
                groups.append([Draw() for _ in range(sampling.n)])
            seed = _seed(sampling.seed, seen[key], key)
            work.append(self._draw([*prompt], sampling, seed, groups[-1], stream, partial(finished, i)))
            seen[key] += 1
        return self._run(
            self.wire.submit(work),
            [draw for group in groups for draw in group],
            lambda: [[draw.completion(sampling.stop) for draw in group] for group in groups],
        )

    def _run(self, future: Future[list[Any]], draws: Sequence[Draw], read: Callable[[], Any]) -> Run:
        future.add_done_callback(lambda _: self._news.set())
        return Run(future, draws, read)

    def _whole(self, run: Run) -> Any:
        try:
            run.future.result()
            return run.results
        finally:
            run.leave()  # of Ctrl-C: nobody waits for it any more

    async def _draw(
        self,
        prompt: list[int],
        sampling: Sampling,
        seed: int,
        group: list[Draw],
        stream: bool,
        finished: Callable[[int, Completion], None],
    ) -> None:
        """One request: a prompt with its samples."""
        limits: dict[str, Any] = {
            "n": sampling.n if sampling.temperature else 1,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
        }
        limits |= {"max_tokens": sampling.max_tokens, "stop_token_ids": [*sampling.stop], "stream": stream}
        await self._ask({"prompt": prompt, **limits}, group)
        for draw in group:
            draw.check(sampling.stop)
        for j, draw in enumerate(group):
            finished(j, draw.completion(sampling.stop))

    async def _score(self, prompt: list[int], continuation: list[int], top: int = 0) -> Scored:
        """A single token is forced: that reads the server's cache of the prompt, which an echo does not."""
        if not continuation:
            return [], []
        draw, skip = Draw(), len(prompt)
        if self._quick and len(continuation) == 1 and not top:
            skip = 0
            forced: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "allowed_token_ids": continuation}
            await self._ask({"prompt": prompt, **forced}, [draw])
        else:
            echo = {"max_tokens": 0, "echo": True, "logprobs": top}
            await self._ask({"prompt": [*prompt, *continuation], **echo}, [draw])
        values = draw.logprobs[skip:]
        tops = [_likeliest(found, top) for found in draw.tops[skip:]] if top else [{} for _ in values]
        if draw.tokens[skip:] != continuation or any(map(math.isnan, values)):
            raise UpstreamError(502, "the upstream scored other tokens than it was asked to")
        if len(tops) != len(values):
            raise UpstreamError(502, f"the upstream told the likeliest tokens of {len(tops)} places, not {len(values)}")
        return values, tops

    async def _ask(self, body: dict[str, Any], draws: Sequence[Draw]) -> None:
        def take(payload: dict[str, Any]) -> None:
            for choice in payload["choices"]:
                draws[choice["index"]].add(choice)
            self._news.set()

        await self.wire.ask("/completions", {"model": self.model, **SAID, **body}, take)

    def _find(self, model: str | None, likely: Sequence[str]) -> tuple[str, int | None]:
        """The server's name of the model, and its context."""
        found: dict[str, int | None] = {}

        def take(payload: dict[str, Any]) -> None:
            found.update((str(one["id"]), one.get("max_model_len")) for one in payload["data"])

        self.wire.submit([self.wire.ask("/models", None, take)]).result()
        wanted = [model] if model else likely
        name = next((n for n in wanted if n in found), None)
        if name is None and not model and len(found) == 1:
            name = next(iter(found))
        if name is None:
            asked = f"not {model}" if model else "say which is meant (--upstream-model)"
            raise ValueError(f"the upstream {self.wire.url} serves {', '.join(found) or 'no model'}: {asked}")
        return name, found[name]

    def _probe(self, text: str, ids: list[int]) -> None:
        """What the server can do, found by asking: log-probs of a text, ids in and out, a distribution cut to one token,
        and a token that is forced."""
        said = Draw()
        try:
            self._now(self._ask({"prompt": text, "max_tokens": 0, "echo": True}, [said]))
            if not said.tokens:
                raise UpstreamError(502, f"the upstream {self.wire.url} tells no log-probs of a text")
            ((values, _),) = self._now(self._score(ids, [ids[0], ids[0]]))
            (greedy,) = self._whole(self._start([ids], Sampling(top_p=1e-6, max_tokens=8), stream=False))
        except UpstreamError as error:
            if error.status not in (400, 422, 502):
                raise
            raise UpstreamError(
                error.status,
                f"{error}. What is needed of its /completions: prompts of token ids, logprobs with echo and max_tokens 0, "
                "return_tokens_as_token_ids, ignore_eos, stop_token_ids (vLLM has all of them)",
            ) from error
        if said.tokens[-len(ids) :] != ids:  # a token that begins every text may stand in front
            raise ValueError(
                f"the upstream's tokenizer is another: {text!r} is {said.tokens} there, {ids} here. Give the model "
                "directory, or the name, of the model it serves"
            )
        self.raw = any(x < -1e-4 for x in greedy[0].logprobs)
        if self.raw:
            self._quick = self._can_force(ids, values[0])

    def _can_force(self, ids: list[int], logprob: float) -> bool:
        """Whether a token that is the only one allowed is told with the probability it has among all."""
        self._quick = True
        try:
            (((forced,), _),) = self._now(self._score(ids, ids[:1]))
        except UpstreamError as error:
            if error.status not in (400, 422, 502):  # unknown to it, or ignored
                raise
            return False
        return abs(forced - logprob) <= 0.1 + 0.02 * abs(logprob)  # two ways through half-precision kernels

    def _now(self, work: Any) -> list[Any]:
        return self.wire.submit([work]).result()


def _id(token: str) -> int:
    return int(token.removeprefix("token_id:"))


def _likeliest(found: dict[int, float], top: int) -> dict[int, float]:
    """Servers add the text's own token, however unlikely."""
    return dict(sorted(found.items(), key=lambda pair: -pair[1])[:top])


def _seed(seed: int, nth: int, prompt: bytes) -> int:
    """Of the samples of one prompt, the nth of its kind in a call. Servers number samples on from it, so that near seeds
    of the user's would draw the same ones: hence a hash. 52 bits: with some more it is exact in any JSON."""
    return int.from_bytes(blake2b(b"%d/%d/%s" % (seed, nth, prompt), digest_size=8).digest(), "little") >> 12
