"""The requests that are let in. Each gets a thread, which runs its job with an engine of the scheduler."""

from __future__ import annotations

import asyncio
import ctypes
import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from twofold.engines.base import DeadlinePassed
from twofold.serve.jobs import Answer, Job, Same
from twofold.serve.metrics import Metrics
from twofold.serve.scheduler import Cancelled, RequestEngine, RequestState, Scheduler
from twofold.serve.schema import Refused
from twofold.text.chat import Chat

LARGE = 1 << 14
"""The memory of a request with more tokens than this, prompts and samples, is given back to the system when it has ended."""
_libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a server.

    ``concurrent`` requests run at once and ``queue`` more may wait. The prompts of them all have at most ``prompt_tokens`` tokens,
    unless it is one request alone. ``body`` is the most bytes of a request's body. Requests still running ``seconds`` after they came,
    or ``grace`` seconds after SIGTERM, are answered with what they have.
    """

    concurrent: int = 64
    queue: int = 64
    prompt_tokens: int = 1 << 17
    body: int = 1 << 20
    grace: float = 30.0
    seconds: float = 600.0


class ActiveRequest:
    """A request that was let in. ``future`` is its answer; ``progress`` is set when its engine has new tokens or verdicts."""

    def __init__(self, state: RequestState, engine: RequestEngine, tokens: int) -> None:
        self.state, self.engine, self.tokens = state, engine, tokens
        self.progress = asyncio.Event()
        self.future: asyncio.Future[Answer]

    def cancel(self) -> None:
        self.state.cancelled.set()
        self.future.cancel()  # takes effect if no thread has begun it


class Throughput:
    """How fast requests end, by those that have ended last, while there is any. A server that is idle forgets it."""

    def __init__(self) -> None:
        self._ended: deque[tuple[float, int]] = deque(maxlen=65)
        """The time at which counting began, then the times at which requests ended, with the tokens of their prompts."""

    def begin(self) -> None:
        """Begin to count: the first request has come."""
        self._ended.clear()
        self._ended.append((time.monotonic(), 0))

    def count(self, tokens: int) -> None:
        """Count a request that has ended."""
        self._ended.append((time.monotonic(), tokens))

    def seconds(self, requests: int, tokens: int, running: int = 0) -> float:
        """Return the time in which so many requests, and tokens of prompts, end at the present rate.

        Those ``running`` now count as half done. If that is less than one, one is expected in as much time as has passed.
        """
        (began, _), *ended = self._ended
        passed = time.monotonic() - began
        done = sum(size for _, size in ended)
        return passed * max(requests / max(1, len(ended) + running / 2), tokens / done if done else 1.0)


class Service:
    """The model as the routes see it.

    ``context`` is the most tokens of a prompt with its solution and judgement. ``same`` decides whether two answers are equal.
    ``raw_logprobs``: the engine reports log-probs at temperature 1, whatever is sampled from. ``description`` says in a
    sentence what the model knows, if that is known.
    """

    def __init__(
        self,
        name: str,
        chat: Chat,
        scheduler: Scheduler,
        context: int,
        same: Same,
        limits: Limits | None = None,
        raw_logprobs: bool = False,
        description: str = "",
    ) -> None:
        self.name, self.chat, self.scheduler, self.context, self.same = name, chat, scheduler, context, same
        self.limits, self.raw_logprobs, self.description = limits or Limits(), raw_logprobs, description
        self.metrics = Metrics()
        self.created = int(time.time())
        self.draining = False
        self.requests: set[ActiveRequest] = set()
        self._entering = 0  # requests that are read
        self._throughput = Throughput()
        self._pool = ThreadPoolExecutor(self.limits.concurrent, "twofold-request")

    def check_room(self) -> None:
        """Raise Refused if the server is full or stopping."""
        if self.draining:
            raise Refused(503, "the server is shutting down", "shutting_down", retry_after=int(self.limits.grace) + 1)
        if len(self.requests) + self._entering >= self.limits.concurrent + self.limits.queue:
            message = "too many requests at once: try again later"
            raise Refused(429, message, "overloaded", retry_after=self.retry_after())

    @contextmanager
    def entering(self) -> Iterator[None]:
        """Hold a place for a request that is read, until ``begin`` has let it in. Raises Refused as ``check_room``."""
        self.check_room()
        self._entering += 1
        try:
            yield
        finally:
            self._entering -= 1

    def begin(self, job: Job, state: RequestState) -> ActiveRequest:
        """Let a request in and start its job. Raises Refused if the prompts of all have too many tokens."""
        over = sum(r.tokens for r in self.requests) + job.tokens - self.limits.prompt_tokens
        if self.requests and over > 0:
            message = f"the prompts of the requests under way have too many tokens to add {job.tokens}: try again later"
            raise Refused(429, message, "overloaded", retry_after=self.retry_after(over))
        if not self.requests:
            self._throughput.begin()
        loop = asyncio.get_running_loop()
        request = ActiveRequest(state, self.scheduler.request_engine(state), job.tokens)
        state.on_progress = lambda: _wake(loop, request)

        def run() -> Answer:
            if state.cancelled.is_set():
                raise Cancelled("the request was cancelled")
            if state.seconds_left() <= 0:
                raise DeadlinePassed
            try:
                answer = job.run(request.engine)
            finally:
                request.engine.close()
            self.metrics.count_tokens(answer.cost)
            return answer

        work = self._pool.submit(run)
        request.future = asyncio.wrap_future(work)
        expiry = loop.call_later(min(state.seconds_left(), self.limits.seconds), work.cancel)  # if it has not begun
        self.requests.add(request)
        request.future.add_done_callback(lambda future: self._forget(request, future, expiry))
        return request

    def result(self, request: ActiveRequest) -> Answer:
        """Return the answer of a request that has ended. Raises what it failed with."""
        try:
            if request.future.cancelled() and not request.state.cancelled.is_set():
                raise DeadlinePassed
            return request.future.result()
        except DeadlinePassed as error:
            message = "the model did not answer in time: the request's timeout is over, and no answer was complete"
            raise Refused(504, message, "timeout", retry_after=self.retry_after()) from error

    def retry_after(self, tokens: int = 0) -> int:
        """Return in how many seconds the requests that wait now, and so many tokens of prompts, will be done."""
        running = min(len(self.requests), self.limits.concurrent)
        waiting = max(1, len(self.requests) - running)
        seconds = self._throughput.seconds(waiting, tokens, running) if self.requests else 1.0
        return math.ceil(min(max(1.0, seconds), self.limits.seconds))

    def expire_all(self) -> None:
        """Set every deadline to now, so that all requests are answered with what they have."""
        for request in self.requests:
            request.state.deadline = min(request.state.deadline, time.monotonic())

    def close(self) -> None:
        """Cancel the remaining requests and end every thread."""
        for request in self.requests:
            request.state.cancelled.set()
        self.scheduler.close()
        self._pool.shutdown(cancel_futures=True)

    def gauges(self) -> dict[str, float]:
        running = min(len(self.requests), self.limits.concurrent)
        return {
            "requests_running": running,
            "requests_waiting": len(self.requests) - running,
            "samples_running": self.scheduler.running_rows,
        }

    def _forget(self, request: ActiveRequest, future: asyncio.Future[Any], expiry: asyncio.TimerHandle) -> None:
        expiry.cancel()
        self.requests.discard(request)
        if request.tokens + request.engine.generated > LARGE:  # in a moment, when the scheduler has let go of it, too
            future.get_loop().call_later(1.0, _give_memory_back)
        if not future.cancelled():
            self._throughput.count(request.tokens)
            future.exception()  # mark it as seen, or asyncio logs the error of a request whose client has left


def _wake(loop: asyncio.AbstractEventLoop, request: ActiveRequest) -> None:
    """Set ``progress`` from the scheduler's thread, by at most one wake-up at a time."""
    if not request.progress.is_set():
        with suppress(RuntimeError):  # the event loop is closed after a second SIGTERM; then nobody waits
            loop.call_soon_threadsafe(request.progress.set)


def _give_memory_back() -> None:
    """Return freed memory to the system, which glibc keeps for the next large request."""
    if hasattr(_libc, "malloc_trim"):
        threading.Thread(target=_libc.malloc_trim, args=(0,)).start()
