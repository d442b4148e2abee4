"""The scheduler: one thread owns the engine and advances the calls of all requests together.

With the native engine all requests share a forward pass per token, and take turns with their prompts; a remote engine leaves
it to its server.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from twofold.engines.base import DeadlinePassed, Finished, Run, Scored, StepEngine, ignore_finished, report_all
from twofold.serve.detokenize import StopStrings
from twofold.types import Completion, Sampling

OVERTIME = 1.0
"""Seconds that a strategy has to end after its deadline. Until then each of its generate calls returns one token per sample."""
MAX_CALL_SAMPLES = 1024
"""The most samples of one call."""


class Cancelled(Exception):
    """The client has left, or the server is stopping."""


@dataclass(slots=True)
class RequestState:
    """The state that the calls of one request share.

    From ``deadline`` (``time.monotonic``) on, generate calls return what they have, at least one token per sample.
    ``on_progress`` is called in the scheduler's thread whenever there are new tokens or verdicts; it must return at once.
    """

    stops: StopStrings
    yes: int
    """The token whose probability is a verdict."""
    context: int
    """The most tokens of a text; generate calls are cut to it."""
    deadline: float = float("inf")
    cancelled: threading.Event = field(default_factory=threading.Event)
    on_progress: Callable[[], None] = lambda: None

    def seconds_left(self) -> float:
        """Return the seconds until the deadline, below 0 after it; 0 if the request is cancelled."""
        return 0.0 if self.cancelled.is_set() else self.deadline - time.monotonic()


@dataclass(slots=True)
class Progress:
    """The progress of a generate call, with a row per sample, which other threads read.

    The lists of ``tokens`` and ``logprobs`` are the run's own and grow.
    """

    prompts: Sequence[list[int]]
    tokens: Sequence[list[int]]
    logprobs: Sequence[list[float]]
    ready: list[int]
    """How many of each row's tokens have been searched for stop strings and come before the end of any."""
    finished: int = 0
    """How many rows have ended."""
    verdicts: dict[int, float] = field(default_factory=dict)
    """Row -> P(Yes) of its text, where it was asked for."""

    def record_verdict(self, prompt: Sequence[int], p_yes: float) -> None:
        """Store a verdict in the row whose text ``prompt``, the judgement's, begins with."""
        for r, (start, row) in enumerate(zip(self.prompts, self.tokens, strict=True)):
            size = len(start) + len(row)
            if len(prompt) > size and list(prompt[len(start) : size]) == row and prompt[: len(start)] == start:
                self.verdicts[r] = p_yes


@dataclass(slots=True, eq=False)
class Call:
    """A call that waits for its turn. ``prompts`` has one prompt per sample, and none if the call scores."""

    engine: RequestEngine
    begin: Callable[[], Run[Any]]
    prompts: Sequence[list[int]] = ()
    sampling: Sampling = field(default_factory=Sampling)
    result: Future[Any] = field(default_factory=Future)

    @property
    def rows(self) -> int:
        return len(self.prompts)

    @property
    def cancelled(self) -> bool:
        return self.engine.state.cancelled.is_set()

    @property
    def late(self) -> float:
        """The seconds since the request's deadline, below 0 before it."""
        return time.monotonic() - self.engine.state.deadline


class RunningCall:
    """A call that has begun."""

    def __init__(self, call: Call, run: Run[Any]) -> None:
        self.call, self.run, self.state = call, run, call.engine.state
        self.progress = Progress(call.prompts, run.tokens, run.logprobs, [0] * call.rows)
        self._searched = dict.fromkeys(range(call.rows), 0)
        """Row that still grows -> tokens that stop strings have been looked for in."""
        self._stopped: dict[int, int] = {}
        """Row -> tokens until a stop string was complete."""

    def update(self, done: bool) -> None:
        """Look for stop strings and ends in the new tokens, and report progress. ``done``: no more tokens will come."""
        if not self.call.rows:
            return
        progress, sampling = self.progress, self.call.sampling
        before = sum(progress.ready)
        for r, searched in tuple(self._searched.items()):
            row = progress.tokens[r]
            size = len(row)
            if end := self.state.stops.first_end(row, searched, size):
                self._stopped[r] = end
            if end or size >= sampling.max_tokens or (size and row[size - 1] in sampling.stop):
                del self._searched[r]
            else:
                self._searched[r] = size
            progress.ready[r] = end or size
        progress.finished = self.call.rows if done else self.call.rows - len(self._searched)
        if done or sum(progress.ready) > before:
            self.state.on_progress()

    def has_enough(self, late: bool) -> bool:
        """Return whether the call can end before its run is done: stop strings ended its last rows, or it is ``late`` and every
        row has a token."""
        if not self.call.rows:
            return False
        return bool(self._stopped and not self._searched) or (late and all(self.progress.tokens))

    def collect(self) -> Any:
        """Return the results, each completion cut where a stop string ended it. Raises what the run failed with."""
        if not self.run.done:
            self.run.stop()
        results = self.run.results
        n = self.call.sampling.n
        for r, size in self._stopped.items():
            completion = results[r // n][r % n]
            self.call.engine.discarded += len(completion.tokens) - size
            results[r // n][r % n] = _cut(completion, size)
        return results

    def fail(self, error: Exception) -> None:
        """End the call early with ``error``."""
        self.run.stop()
        self.call.result.set_exception(error)


class RequestEngine:
    """Implements ``Engine`` for one request: the scheduler carries out its calls together with those of the other requests.

    Every call may raise ``Cancelled``; ``DeadlinePassed``, if the deadline was over ``OVERTIME`` seconds ago; and whatever the
    engine raises. ``close`` frees the caches.
    """

    def __init__(self, scheduler: Scheduler, session: StepEngine, state: RequestState) -> None:
        self.scheduler, self.session, self.state = scheduler, session, state
        self.progress: list[Progress] = []
        """One entry per generate call that has begun."""
        self.discarded = 0
        """Tokens drawn after a stop string was complete, which no completion contains."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished = ignore_finished
    ) -> list[list[Completion]]:
        if not prompts:
            return []
        late = time.monotonic() - self.state.deadline
        if late > OVERTIME:
            raise DeadlinePassed
        room = 1 if late >= 0 else self.state.context - max(map(len, prompts))
        if room < 1:
            raise ValueError(f"a prompt of {max(map(len, prompts))} tokens fills the context of {self.state.context}")
        if len(prompts) * sampling.n > MAX_CALL_SAMPLES:
            raise ValueError(f"{len(prompts)} x {sampling.n} samples in one call, more than {MAX_CALL_SAMPLES}")
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        rows = [list(p) for p in prompts for _ in range(sampling.n)]
        groups = self.scheduler.execute(Call(self, lambda: self.session.start(prompts, sampling), rows, sampling))
        return report_all(groups, finished)

    @property
    def generated(self) -> int:
        """The tokens of all samples so far, with those that were discarded."""
        return sum(len(row) for progress in self.progress for row in progress.tokens)

    def close(self) -> None:
        """Free what the session holds. No call may follow."""
        del self.session

    def logprobs(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> list[list[float]]:
        found = [logprobs for logprobs, _ in self.scored(prompts, continuations, temperature, 0)]
        for prompt, continuation, logprobs in zip(prompts, continuations, found, strict=True):
            if list(continuation) == [self.state.yes] and self.progress:
                self.progress[-1].record_verdict(list(prompt), math.exp(logprobs[0]))
        self.state.on_progress()
        return found

    def scored(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float, top: int
    ) -> list[Scored]:
        """Return the ``logprobs`` and the ``top`` likeliest tokens of each place with theirs."""
        return self.scheduler.execute(Call(self, lambda: self.session.score(prompts, continuations, temperature, top)))


class Scheduler:
    """Carries out the calls of all requests. At most ``max_rows`` samples are decoded at once; later calls wait in order.

    A call that waits until its request's deadline begins then, because it draws only one token per sample.
    """

    def __init__(self, engine: StepEngine, max_rows: int = 256) -> None:
        self.engine, self.max_rows = engine, max_rows
        self._waiting: deque[Call] = deque()
        self._running: list[RunningCall] = []
        self._closed = False
        self._changed = threading.Condition()  # guards _waiting and _closed
        self._thread = threading.Thread(target=self._work, name="twofold-scheduler", daemon=True)
        self._thread.start()

    @property
    def running_rows(self) -> int:
        return sum(running.call.rows for running in self._running)

    def request_engine(self, state: RequestState) -> RequestEngine:
        """Return an engine for one request."""
        return RequestEngine(self, self.engine.session(), state)

    def execute(self, call: Call) -> Any:
        """Wait until the scheduler's thread has carried out the call; return its result."""
        with self._changed:
            if self._closed:
                raise Cancelled("the server is stopping")
            self._waiting.append(call)
            self._changed.notify()
        return call.result.result()

    def close(self) -> None:
        """Cancel every call and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._running or self._closed)
                if self._closed:
                    break
                admitted = self._admit()
            while admitted:
                self._begin(admitted.popleft())  # and keep no reference to it
            self._step()
        for running in self._running:
            running.fail(Cancelled("the server is stopping"))
        for call in self._waiting:
            call.result.set_exception(Cancelled("the server is stopping"))
        self._running = []

    def _admit(self) -> deque[Call]:
        """Take the calls that can begin: scoring at once, generate calls in order while there are rows for them."""
        admitted, blocked = deque[Call](), deque[Call]()
        rows = self.running_rows
        for call in self._waiting:
            fits = call.rows == 0 or (not blocked and (rows == 0 or rows + call.rows <= self.max_rows))
            if fits or call.cancelled or call.late >= 0:
                admitted.append(call)
                rows += call.rows
            else:
                blocked.append(call)
        self._waiting = blocked
        return admitted

    def _begin(self, call: Call) -> None:
        if call.cancelled:
            call.result.set_exception(Cancelled("the request was cancelled"))
            return
        try:
            running = RunningCall(call, call.begin())
        except Exception as error:  # it belongs to this caller, whatever it is; the other calls continue
            call.result.set_exception(error)
            return
        if call.rows:
            call.engine.progress.append(running.progress)
        self._running.append(running)
        if running.run.done:
            running.update(done=True)
            self._end(running)

    def _step(self) -> None:
        """Advance every running call, and end those that are done, cancelled, or too late."""
        for running in tuple(self._running):
            if running.call.cancelled:
                self._running.remove(running)
                running.fail(Cancelled("the request was cancelled"))
        if not self._running:
            return
        try:
            self.engine.step([running.run for running in self._running])
        except Exception as error:  # such as out of memory: the runs are lost, the server is not
            for running in self._running:
                running.call.result.set_exception(error)
            self._running = []
            return
        for running in tuple(self._running):
            late = running.call.late
            done = running.run.done  # read before the update, which then sees every token of a run that is done
            running.update(done)
            if done or running.has_enough(late=late >= 0):
                self._end(running)
            elif late > OVERTIME:
                self._running.remove(running)
                running.fail(DeadlinePassed())

    def _end(self, running: RunningCall) -> None:
        self._running.remove(running)
        try:
            running.call.result.set_result(running.collect())
        except Exception as error:  # what the call failed with
            running.call.result.set_exception(error)


def _cut(completion: Completion, size: int) -> Completion:
    """Return the first ``size`` tokens of a completion, which a stop string ended."""
    c = completion
    confidence, certainty = (None if x is None else x[:size] for x in (c.token_confidence, c.token_certainty))
    return Completion(c.tokens[:size], c.logprobs[:size], c.sampled[:size], "stop", confidence, certainty)
