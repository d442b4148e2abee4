"""The remote engine: a server with OpenAI's API, which takes and returns token ids with log-probs at ``/completions``.

It uses vLLM's fields where OpenAI has none: ``stop_token_ids``, ``ignore_eos`` and ``return_tokens_as_token_ids``. The server
decides what it computes again (vLLM keeps prefixes by default).
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any, Generic, TypeVar

from twofold.engines.base import Finished, Run, Scored, UpstreamError, check_prompts, ignore_finished
from twofold.engines.wire import SILENCE, Wire
from twofold.types import Completion, Context, Finish, Sampling

TICK = 0.02
"""The most seconds that ``step`` waits for tokens."""
FIXED_FIELDS = {
    "ignore_eos": True,  # only stop_token_ids end a completion
    "logprobs": 0,
    "return_tokens_as_token_ids": True,
    # servers take fields that are left out from the model's generation_config.json
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
"""Fields of every request."""
UNSUPPORTED = (400, 422, 502)
"""HTTP statuses of a server that refused or ignored a field. When it is tried out, they mean that it lacks something."""

T = TypeVar("T")


@dataclass(slots=True)
class RemoteSample:
    """One sample as it arrives. Another thread reads it meanwhile, so ``logprobs`` are written before ``tokens``."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """NaN where the server gives none: at a text's first token."""
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    """The likeliest tokens of each place, if they were asked for."""
    finish: str | None = None

    def add(self, choice: dict[str, Any]) -> None:
        """Append what a reply, or a chunk of a stream, adds."""
        if found := choice["logprobs"]:
            tokens = [_id(token) for token in found["tokens"]]
            values = [math.nan if x is None else float(x) for x in found["token_logprobs"]]
            if len(tokens) != len(values):
                raise ValueError(f"{len(tokens)} tokens with {len(values)} log-probs")
            for top in found.get("top_logprobs") or ():
                self.top_logprobs.append({_id(t): float(x) for t, x in (top or {}).items()})
            self.logprobs += values
            self.tokens += tokens
        self.finish = choice["finish_reason"] or self.finish

    def check(self, stop: Sequence[int]) -> None:
        """Raise UpstreamError unless this is a whole sample."""
        if self.finish not in ("stop", "length") or not self.tokens or any(map(math.isnan, self.logprobs)):
            raise UpstreamError(502, f"the upstream ended a completion of {len(self.tokens)} tokens by {self.finish!r}")
        if self.finish == "stop" and self.tokens[-1] not in stop:
            raise UpstreamError(502, "the upstream leaves out a completion's stop token, or stops at other tokens")

    def completion(self, stop: Sequence[int]) -> Completion:
        """Return the sample as far as it has arrived."""
        tokens = [*self.tokens]
        finish: Finish = "stop" if tokens and tokens[-1] in stop else "length"
        return Completion(tokens, self.logprobs[: len(tokens)], [True] * len(tokens), finish)


class RemoteRun(Generic[T]):
    """A call under way. Implements ``Run``.

    ``future`` is its requests; ``samples`` arrive meanwhile (none, if it scores); ``read`` returns the results so far.
    """

    def __init__(self, future: Future[list[Any]], samples: Sequence[RemoteSample], read: Callable[[], T]) -> None:
        self._future, self._samples, self._read = future, samples, read

    @property
    def tokens(self) -> list[list[int]]:
        return [sample.tokens for sample in self._samples]

    @property
    def logprobs(self) -> list[list[float]]:
        return [sample.logprobs for sample in self._samples]

    @property
    def done(self) -> bool:
        return self._future.done()

    @property
    def results(self) -> T:
        if self._future.done() and not self._future.cancelled():
            self._future.result()
        return self._read()

    def stop(self) -> None:
        """Close the call's connections, so that the server stops working on it."""
        self._future.cancel()

    def wait(self) -> T:
        """Return the whole results. Closes the connections if the wait is interrupted, as by Ctrl-C."""
        try:
            self._future.result()
            return self.results
        finally:
            self.stop()


class RemoteEngine:
    """Implements ``StepEngine`` over the server at ``url``. The variable ``TWOFOLD_UPSTREAM_KEY`` may hold its API key.

    ``model`` is the server's name for the model; without it, the first of ``likely`` that the server has, or its only model.
    ``text`` and its token ids ``ids`` (several, without control tokens) show whether both sides use the same tokenizer. ``silence``
    is how long, in seconds, a request may stay without an answer.

    ``raw_logprobs`` is True if ``generate`` reports log-probs at temperature 1, whatever was sampled from. That is vLLM's
    default, which ``--logprobs-mode processed_logprobs`` changes. ``context`` is the most tokens of a text, as the server's list
    of models says. Longer texts are refused before they are sent.

    Every call may raise UpstreamError (an OSError). The constructor raises UpstreamError if the server cannot be reached or
    lacks what is needed, and ValueError if it has another model or another tokenizer.
    """

    def __init__(
        self,
        url: str,
        *,
        text: str | list[int],
        ids: Sequence[int],
        model: str | None = None,
        likely: Sequence[str] = (),
        silence: float = SILENCE,
    ) -> None:
        self.wire = Wire(url, silence)
        self.raw_logprobs, self._can_force = True, False
        self._arrived = threading.Event()
        try:
            self.model, tokens = self._find(model, likely)
            self.context = Context(tokens, "max_model_len of the upstream")
            self._probe(text, list(ids))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.wire.close()

    def session(self) -> RemoteEngine:
        """Return this engine: calls share nothing, so one engine serves every request."""
        return self

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished = ignore_finished
    ) -> list[list[Completion]]:
        """See ``Engine``. Raises ValueError if ``sampling`` asks for confidences: servers return no distributions."""
        return self._start(prompts, sampling, stream=False, finished=finished).wait()

    def logprobs(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> list[list[float]]:
        """See ``Engine``. Raises ValueError for another temperature than 1."""
        return [values for values, _ in self.score(prompts, continuations, temperature, 0).wait()]

    def start(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> RemoteRun[list[list[Completion]]]:
        """Begin a ``generate`` call whose tokens arrive one by one."""
        return self._start(prompts, sampling, stream=True)

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float, top: int
    ) -> RemoteRun[list[Scored]]:
        """Begin a ``logprobs`` call that also returns the ``top`` likeliest tokens of each place."""
        if len(prompts) != len(continuations):
            raise ValueError(f"{len(prompts)} prompts but {len(continuations)} continuations")
        check_prompts(prompts)
        self.context.check(max((len(p) + len(c) for p, c in zip(prompts, continuations, strict=True)), default=0))
        if temperature != 1:
            raise ValueError(f"an upstream server scores texts at temperature 1, not {temperature}")
        future = self.wire.submit(self._score([*p], [*c], top) for p, c in zip(prompts, continuations, strict=True))
        return self._run(future, [], future.result)

    def step(self, runs: Sequence[Run[Any]]) -> None:
        """Wait until tokens of any call arrive, at most ``TICK`` seconds."""
        self._arrived.wait(TICK)
        self._arrived.clear()

    def _start(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, stream: bool, finished: Finished = ignore_finished
    ) -> RemoteRun[list[list[Completion]]]:
        check_prompts(prompts)
        self.context.check(max(map(len, prompts), default=0), sampling.max_tokens)
        if sampling.trace_top:
            raise ValueError(
                "an upstream server returns no confidences: load the model itself for certain, borda and deepconf"
            )
        seen: Counter[bytes] = Counter()
        requests, groups = [], []
        for i, prompt in enumerate(prompts):
            key = b"%d " * len(prompt) % tuple(prompt)
            if sampling.temperature == 0:  # greedy samples are equal, and vLLM refuses to return several
                groups.append([RemoteSample()] * sampling.n)
            else:
                groups.append([RemoteSample() for _ in range(sampling.n)])
            seed = _seed(sampling.seed, seen[key], key)
            requests.append(self._sample([*prompt], sampling, seed, groups[-1], stream, partial(finished, i)))
            seen[key] += 1
        return self._run(
            self.wire.submit(requests),
            [sample for group in groups for sample in group],
            lambda: [[sample.completion(sampling.stop) for sample in group] for group in groups],
        )

    def _run(self, future: Future[list[Any]], samples: Sequence[RemoteSample], read: Callable[[], T]) -> RemoteRun[T]:
        future.add_done_callback(lambda _: self._arrived.set())
        return RemoteRun(future, samples, read)

    async def _sample(
        self,
        prompt: list[int],
        sampling: Sampling,
        seed: int,
        group: list[RemoteSample],
        stream: bool,
        finished: Callable[[int, Completion], None],
    ) -> None:
        """Send one request, a prompt with its samples, and fill ``group``."""
        body: dict[str, Any] = {
            "prompt": prompt,
            "n": sampling.n if sampling.temperature else 1,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "min_p": sampling.min_p,
            "seed": seed,
            "max_tokens": sampling.max_tokens,
            "stop_token_ids": [*sampling.stop],
            "stream": stream,
        }
        await self._request(body, group)
        for sample in group:
            sample.check(sampling.stop)
        for j, sample in enumerate(group):
            finished(j, sample.completion(sampling.stop))

    async def _score(self, prompt: list[int], continuation: list[int], top: int = 0) -> Scored:
        """Score one continuation. A single token is forced where the server can do that: it reads the server's cache of the
        prompt, which an echo does not."""
        if not continuation:
            return [], []
        sample, skip = RemoteSample(), len(prompt)
        if self._can_force and len(continuation) == 1 and not top:
            skip = 0
            forced: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "allowed_token_ids": continuation}
            await self._request({"prompt": prompt, **forced}, [sample])
        else:
            echo = {"max_tokens": 0, "echo": True, "logprobs": top}
            await self._request({"prompt": [*prompt, *continuation], **echo}, [sample])
        values = sample.logprobs[skip:]
        likeliest = [_likeliest(x, top) for x in sample.top_logprobs[skip:]] if top else [{} for _ in values]
        if sample.tokens[skip:] != continuation or any(map(math.isnan, values)):
            raise UpstreamError(502, "the upstream scored other tokens than it was asked to")
        if len(likeliest) != len(values):
            raise UpstreamError(
                502, f"the upstream gave the likeliest tokens of {len(likeliest)} places, not {len(values)}"
            )
        return values, likeliest

    async def _request(self, body: dict[str, Any], samples: Sequence[RemoteSample]) -> None:
        """Send a request for completions; choice i of its reply is added to ``samples[i]``."""

        def add(payload: dict[str, Any]) -> None:
            for choice in payload["choices"]:
                samples[choice["index"]].add(choice)
            self._arrived.set()

        await self.wire.request("/completions", {"model": self.model, **FIXED_FIELDS, **body}, add)

    def _find(self, model: str | None, likely: Sequence[str]) -> tuple[str, int | None]:
        """Return the server's name of the model, and its context."""
        found: dict[str, int | None] = {}

        def add(payload: dict[str, Any]) -> None:
            found.update((str(one["id"]), one.get("max_model_len")) for one in payload["data"])

        self._now(self.wire.request("/models", None, add))
        wanted = [model] if model else likely
        name = next((n for n in wanted if n in found), None)
        if name is None and not model and len(found) == 1:
            name = next(iter(found))
        if name is None:
            asked = f"not {model}" if model else "choose one with --upstream-model"
            raise ValueError(f"the upstream {self.wire.url} serves {', '.join(found) or 'no model'}: {asked}")
        return name, found[name]

    def _probe(self, text: str | list[int], ids: list[int]) -> None:
        """Try out what the server can do: score a text, take and return ids, report which log-probs, force a token."""
        echoed = RemoteSample()
        try:
            self._now(self._request({"prompt": text, "max_tokens": 0, "echo": True}, [echoed]))
            if not echoed.tokens:
                raise UpstreamError(502, f"the upstream {self.wire.url} returns no log-probs of a text")
            if echoed.tokens[-len(ids) :] != ids:  # the server may put a BOS before them
                raise ValueError(
                    f"the upstream's tokenizer is another: {text!r} is {echoed.tokens} there, {ids} here. Give the "
                    "directory or the name of the model it serves"
                )
            values, _ = self._now(self._score(ids, [ids[0], ids[0]]))
            ((nucleus,),) = self._start([ids], Sampling(top_p=1e-6, max_tokens=8), stream=False).wait()
        except UpstreamError as error:
            if error.status not in UNSUPPORTED:
                raise
            raise UpstreamError(
                error.status,
                f"{error}. Its /completions needs prompts of token ids, logprobs with echo and max_tokens 0, "
                "return_tokens_as_token_ids, ignore_eos and stop_token_ids (vLLM has all of them)",
            ) from error
        # of a nucleus of one token each log-prob is 0, unless it is that of the whole distribution
        self.raw_logprobs = any(x < -1e-4 for x in nucleus.logprobs)
        if self.raw_logprobs:
            self._try_forcing(ids, values[0])

    def _try_forcing(self, ids: list[int], logprob: float) -> None:
        """Force a token whose log-prob is known, and keep to forcing if the server reports its log-prob among all tokens."""
        self._can_force = True
        try:
            (forced,), _ = self._now(self._score(ids, ids[:1]))
        except UpstreamError as error:
            if error.status not in UNSUPPORTED:
                raise
            self._can_force = False
        else:
            self._can_force = abs(forced - logprob) <= 0.1 + 0.02 * abs(logprob)  # half-precision kernels differ

    def _now(self, request: Coroutine[Any, Any, T]) -> T:
        (result,) = self.wire.submit([request]).result()
        return result


def _id(token: str) -> int:
    return int(token.removeprefix("token_id:"))


def _likeliest(found: dict[int, float], top: int) -> dict[int, float]:
    """Return the ``top`` likeliest: servers add the text's own token, however unlikely it is."""
    return dict(sorted(found.items(), key=lambda pair: -pair[1])[:top])


def _seed(seed: int, nth: int, prompt: bytes) -> int:
    """Return the server's seed for the samples of a prompt that occurs for the nth time in a call.

    It is a hash, because servers count up from it, one per sample, and neighbouring seeds of the user's would draw the same
    samples. It has 52 bits, so that it and the numbers after it are exact in any JSON.
    """
    return int.from_bytes(blake2b(b"%d/%d/%s" % (seed, nth, prompt), digest_size=8).digest(), "little") >> 12
