"""The requests that are let in. Each gets a thread, which runs its job with an engine of the scheduler."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from twofold.serve.jobs import Answer, Same
from twofold.serve.metrics import Metrics
from twofold.serve.scheduler import Cancelled, RequestEngine, RequestState, Scheduler
from twofold.serve.schema import Refused
from twofold.text.chat import Chat


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a server.

    ``concurrent`` requests run at once and ``queue`` more may wait. ``body`` is the most bytes of a request's body. Requests
    still running ``seconds`` after they came, or ``grace`` seconds after SIGTERM, are answered with what they have.
    """

    concurrent: int = 64
    queue: int = 64
    body: int = 1 << 20
    grace: float = 30.0
    seconds: float = 600.0


class ActiveRequest:
    """A request that was let in. ``future`` is its answer; ``progress`` is set when its engine has new tokens or verdicts."""

    def __init__(self, state: RequestState, engine: RequestEngine) -> None:
        self.state, self.engine = state, engine
        self.progress = asyncio.Event()
        self.future: asyncio.Future[Answer]

    def cancel(self) -> None:
        self.state.cancelled.set()
        self.future.cancel()  # takes effect if no thread has begun it


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
        self._mean_seconds = 1.0  # of a request, a moving mean
        self._pool = ThreadPoolExecutor(self.limits.concurrent, "twofold-request")

    def begin(self, job: Callable[[RequestEngine], Answer], state: RequestState) -> ActiveRequest:
        """Let a request in and start its job. Raises Refused if the server is full or stopping."""
        if self.draining:
            raise Refused(503, "the server is shutting down", "shutting_down", retry_after=int(self.limits.grace) + 1)
        if len(self.requests) >= self.limits.concurrent + self.limits.queue:
            wait = max(1, math.ceil(self._mean_seconds))
            raise Refused(429, "too many requests at once: try again later", "overloaded", retry_after=wait)
        loop = asyncio.get_running_loop()
        request = ActiveRequest(state, self.scheduler.request_engine(state))
        state.on_progress = lambda: _wake(loop, request)

        def run() -> Answer:
            if state.cancelled.is_set():
                raise Cancelled("the request was cancelled")
            began = time.monotonic()
            answer = job(request.engine)
            self._mean_seconds += 0.1 * (time.monotonic() - began - self._mean_seconds)
            self.metrics.count_tokens(answer.cost)
            return answer

        request.future = loop.run_in_executor(self._pool, run)
        self.requests.add(request)
        request.future.add_done_callback(lambda future: self._forget(request, future))
        return request

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

    def _forget(self, request: ActiveRequest, future: asyncio.Future[Any]) -> None:
        self.requests.discard(request)
        if not future.cancelled():
            future.exception()  # mark it as seen, or asyncio logs the error of a request whose client has left


def _wake(loop: asyncio.AbstractEventLoop, request: ActiveRequest) -> None:
    """Set ``progress`` from the scheduler's thread, by at most one wake-up at a time."""
    if not request.progress.is_set():
        with suppress(RuntimeError):  # the event loop is closed after a second SIGTERM; then nobody waits
            loop.call_soon_threadsafe(request.progress.set)
