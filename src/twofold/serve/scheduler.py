"""One thread owns the engine. What all requests ask to generate becomes one forward pass per token, or goes to a server
that sees to it (``engines/remote.py``)."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from twofold.engines.base import Engine, Finished, Scored, UpstreamError, told, unheard
from twofold.serve.detokenize import Stops
from twofold.types import Completion, Sampling

LATE = 5.0
"""Seconds that a strategy has to end after its deadline, in which every generate call gives one token."""
MOST = 1024
"""Most samples of one call."""


class Cancelled(Exception):
    """Whoever asked is gone, or the server is stopping."""


class Run(Protocol):
    """A call that is taken step by step. ``tokens`` are its samples' so far (none, if it scores) and ``logprobs`` theirs, in
    lists that grow; ``results`` raises what it failed with; ``leave`` ends it early."""

    @property
    def done(self) -> bool: ...
    @property
    def tokens(self) -> Sequence[list[int]]: ...
    @property
    def logprobs(self) -> Sequence[list[float]]: ...
    @property
    def results(self) -> Any: ...
    def leave(self) -> None: ...


class Stepper(Engine, Protocol):
    """An engine whose calls can be taken together: ``start`` is a generate call, ``score`` a logprobs call with the ``top``
    likeliest tokens of each place (its results are ``Scored``), a ``step`` one more token, or a moment's wait for news."""

    def session(self) -> Stepper: ...
    def start(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Run: ...
    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float, top: int
    ) -> Run: ...
    def step(self, runs: Sequence[Any]) -> None: ...


@dataclass(slots=True)
class Ticket:
    """What a request wants of all its calls.

    From ``deadline`` (``time.monotonic``) on, generate calls return what they have, at least a token per sample.
    ``watch`` is called in the loop's thread whenever there are new tokens, and has to be quick.
    """

    stops: Stops
    yes: int
    """The token whose probability is a verdict."""
    context: int
    """Most tokens of a text; generate calls are cut to it."""
    deadline: float = float("inf")
    cancelled: threading.Event = field(default_factory=threading.Event)
    watch: Callable[[], None] = lambda: None


@dataclass(slots=True, eq=False)
class Call:
    """``begin`` gives a Run of as many rows as there are ``prompts``; without any, it scores."""

    client: Client
    begin: Callable[[], Run]
    prompts: Sequence[list[int]] = ()
    sampling: Sampling = field(default_factory=Sampling)
    result: Future[Any] = field(default_factory=Future)
    run: Any = None
    ends: dict[int, int] = field(default_factory=dict)
    """Row -> tokens until a stop string was complete."""
    seen: dict[int, int] = field(default_factory=dict)
    """Row that still grows -> tokens that stop strings have been looked for in."""

    @property
    def rows(self) -> int:
        return len(self.prompts)


@dataclass(slots=True)
class Batch:
    """One generate call as it can be watched. The lists of ``rows`` are the tokens of every sample, and grow; those of
    ``logprobs`` are theirs."""

    prompts: Sequence[list[int]]
    rows: Sequence[list[int]]
    logprobs: Sequence[list[float]]
    ready: list[int]
    """Tokens of each row that are known to be in front of a stop string's end."""
    finished: int = 0
    """How many rows have ended."""
    verdicts: dict[int, float] = field(default_factory=dict)
    """Row -> P(Yes) on its text, where it was asked."""

    def note(self, prompt: Sequence[int], p_yes: float) -> None:
        """The verdict belongs to the row whose text the judgement's prompt begins with."""
        for r, (start, row) in enumerate(zip(self.prompts, self.rows, strict=True)):
            size = len(start) + len(row)
            if len(prompt) > size and list(prompt[len(start) : size]) == row and prompt[: len(start)] == start:
                self.verdicts[r] = p_yes


class Client:
    """The engine as one request sees it: its calls are carried out in the loop's thread, in step with all others'.

    Every call may raise ``Cancelled``, and whatever the engine raises.
    """

    def __init__(self, loop: Loop, session: Stepper, ticket: Ticket) -> None:
        self.loop, self.session, self.ticket = loop, session, ticket
        self.batches: list[Batch] = []
        """Its generate calls so far."""
        self.dropped = 0
        """Tokens drawn behind stop strings, which no completion contains."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished = unheard
    ) -> list[list[Completion]]:
        if not prompts:
            return []
        late = time.monotonic() - self.ticket.deadline
        if late > LATE:
            raise TimeoutError("the strategy did not end by itself after its deadline")
        room = 1 if late >= 0 else self.ticket.context - max(map(len, prompts))
        if room < 1 or len(prompts) * sampling.n > MOST:
            raise ValueError(
                f"{len(prompts)} x {sampling.n} samples with {room} tokens left each: more than is allowed"
            )
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        rows = [list(p) for p in prompts for _ in range(sampling.n)]
        groups = self.loop.do(Call(self, lambda: self.session.start(prompts, sampling), rows, sampling))
        return told(groups, finished)

    def logprobs(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> list[list[float]]:
        done = [values for values, _ in self.scored(prompts, continuations, temperature, 0)]
        for prompt, continuation, values in zip(prompts, continuations, done, strict=True):
            if list(continuation) == [self.ticket.yes] and self.batches:
                self.batches[-1].note(list(prompt), math.exp(values[0]))
        self.ticket.watch()
        return done

    def scored(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float, top: int
    ) -> list[Scored]:
        """``logprobs``, and the ``top`` likeliest tokens of each place with theirs."""
        return self.loop.do(Call(self, lambda: self.session.score(prompts, continuations, temperature, top)))


class Loop:
    """Carries out the calls of its clients; at most ``max_rows`` samples are decoded at once, the others wait in order."""

    def __init__(self, engine: Stepper, max_rows: int = 256) -> None:
        self.engine, self.max_rows = engine, max_rows
        self._waiting: deque[Call] = deque()
        self._live: list[Call] = []
        self._closed = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="twofold-loop", daemon=True)
        self._thread.start()

    @property
    def live_rows(self) -> int:
        return sum(call.rows for call in self._live)

    def client(self, ticket: Ticket) -> Client:
        return Client(self, self.engine.session(), ticket)

    def do(self, call: Call) -> Any:
        """Blocks until the loop's thread has carried it out."""
        with self._news:
            if self._closed:
                raise Cancelled("the server is stopping")
            self._waiting.append(call)
            self._news.notify()
        return call.result.result()

    def close(self) -> None:
        """Cancel every call and end the thread."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._live or self._closed)
                if self._closed:
                    break
                ready = self._admit()
            for call in ready:
                self._begin(call)
            self._step()
        for call in self._live:
            call.run.leave()
        for call in (*self._live, *self._waiting):
            call.result.set_exception(Cancelled("the server is stopping"))
        self._live = []

    def _admit(self) -> list[Call]:
        """Calls whose turn it is: scoring at once, samples in order while there are rows for them."""
        ready, blocked = [], deque[Call]()
        rows = self.live_rows
        for call in self._waiting:
            fits = call.rows == 0 or (not blocked and (rows == 0 or rows + call.rows <= self.max_rows))
            if fits or call.client.ticket.cancelled.is_set():
                ready.append(call)
                rows += call.rows
            else:
                blocked.append(call)
        self._waiting = blocked
        return ready

    def _begin(self, call: Call) -> None:
        client = call.client
        if client.ticket.cancelled.is_set():
            call.result.set_exception(Cancelled("the request was cancelled"))
            return
        try:
            call.run = call.begin()
        except Exception as error:  # it is the caller's, whatever it is; the others' calls go on
            call.result.set_exception(error)
            return
        if call.rows:
            client.batches.append(Batch(call.prompts, call.run.tokens, call.run.logprobs, [0] * call.rows))
            call.seen = dict.fromkeys(range(call.rows), 0)
        self._live.append(call)
        if call.run.done:
            self._end(call)

    def _step(self) -> None:
        for call in [c for c in self._live if c.client.ticket.cancelled.is_set()]:
            self._live.remove(call)
            call.run.leave()
            call.result.set_exception(Cancelled("the request was cancelled"))
        if not self._live:
            return
        try:
            self.engine.step([call.run for call in self._live])
        except Exception as error:  # such as out of memory: the runs are lost, the server is not
            for call in self._live:
                call.result.set_exception(error)
            self._live = []
            return
        now = time.monotonic()
        for call in tuple(self._live):
            ticket = call.client.ticket
            done = call.run.done  # asked first: then what there is to look at is all there will be
            late = now - ticket.deadline
            if done | self._look(call, done, late >= 0):
                self._end(call)
            elif late > LATE:
                self._live.remove(call)
                call.run.leave()
                call.result.set_exception(UpstreamError(504, "the engine gave no answer, long after the deadline"))

    def _look(self, call: Call, done: bool, late: bool) -> bool:
        """Find which rows have ended, in what is new. Whether that will do: all have, one by a stop string; or it is late
        and all have begun."""
        if not call.rows:
            return False
        batch, stops, sampling = call.client.batches[-1], call.client.ticket.stops, call.sampling
        before = sum(batch.ready)
        for r, seen in tuple(call.seen.items()):
            row = batch.rows[r]
            size = len(row)
            if end := stops.first(row, seen, size):
                call.ends[r] = end
            if end or size >= sampling.max_tokens or (size and row[size - 1] in sampling.stop):
                del call.seen[r]
            else:
                call.seen[r] = size
            batch.ready[r] = end or size
        batch.finished = call.rows if done else call.rows - len(call.seen)
        if done or sum(batch.ready) > before:
            call.client.ticket.watch()
        return bool(call.ends and not call.seen) or (late and all(batch.rows))

    def _end(self, call: Call) -> None:
        self._live.remove(call)
        try:
            call.result.set_result(self._collect(call))
        except Exception as error:  # what the call failed with
            call.result.set_exception(error)

    def _collect(self, call: Call) -> Any:
        if not call.run.done:
            call.run.leave()
        groups = call.run.results
        if not call.rows:
            return groups
        n = call.sampling.n
        for r, size in call.ends.items():
            whole = groups[r // n][r % n]
            call.client.dropped += len(whole.tokens) - size
            groups[r // n][r % n] = _first(whole, size)
        return groups


def _first(whole: Completion, size: int) -> Completion:
    """The first tokens of a completion, which a stop string ended."""
    more = [None if x is None else x[:size] for x in (whole.token_confidence, whole.token_certainty)]
    return Completion(whole.tokens[:size], whole.logprobs[:size], whole.sampled[:size], "stop", *more)
