"""Who is let in, and what is done for them: every request has a thread that runs its strategy against the loop."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from twofold.compute.select import Same
from twofold.serve.jobs import Answer
from twofold.serve.metrics import Metrics
from twofold.serve.scheduler import Cancelled, Client, Loop, Ticket
from twofold.serve.schema import Refused
from twofold.text.chat import Chat


@dataclass(frozen=True, slots=True)
class Limits:
    """``concurrent`` requests are worked on at once and ``queue`` more may wait; ``body`` is in bytes; after ``seconds``,
    or ``grace`` seconds of shutting down, requests still running are answered with what they have."""

    concurrent: int = 64
    queue: int = 64
    body: int = 1 << 20
    grace: float = 30.0
    seconds: float = 600.0


class Work:
    """One request that was let in. ``news`` is set whenever its client has new tokens or verdicts."""

    def __init__(self, ticket: Ticket, client: Client) -> None:
        self.ticket, self.client = ticket, client
        self.news = asyncio.Event()
        self.future: asyncio.Future[Answer]

    def cancel(self) -> None:
        self.ticket.cancelled.set()
        self.future.cancel()  # if no thread has begun it


class Service:
    """The model as the routes see it. ``context`` is the most tokens of a prompt with its solution and judgement;
    ``same`` tells whether two answers are equal; ``raw``: log-probs are those at temperature 1, whatever is sampled from."""

    def __init__(
        self,
        name: str,
        chat: Chat,
        loop: Loop,
        context: int,
        same: Same,
        limits: Limits | None = None,
        raw: bool = False,
    ) -> None:
        self.name, self.chat, self.loop, self.context, self.same, self.raw = name, chat, loop, context, same, raw
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self.began = int(time.time())
        self.draining = False
        self.works: set[Work] = set()
        self._seconds = 1.0  # of a request, a moving mean
        self._pool = ThreadPoolExecutor(self.limits.concurrent, "twofold-request")

    def begin(self, job: Callable[[Client], Answer], ticket: Ticket) -> Work:
        """Let a request in; its answer is ``future``. Raises Refused if the server is full or stopping."""
        if self.draining:
            raise Refused(503, "the server is shutting down", "shutting_down", retry_after=int(self.limits.grace) + 1)
        if len(self.works) >= self.limits.concurrent + self.limits.queue:
            raise Refused(429, "too many requests at once: try again later", "overloaded", retry_after=self._wait())
        loop = asyncio.get_running_loop()
        work = Work(ticket, self.loop.client(ticket))
        ticket.watch = lambda: _tell(loop, work)

        def run() -> Answer:
            if ticket.cancelled.is_set():
                raise Cancelled("the request was cancelled")
            began = time.monotonic()
            answer = job(work.client)
            self._seconds += 0.1 * (time.monotonic() - began - self._seconds)
            self.metrics.spent(answer.cost)
            return answer

        work.future = loop.run_in_executor(self._pool, run)
        self.works.add(work)
        work.future.add_done_callback(lambda future: self._over(work, future))
        return work

    def hurry(self) -> None:
        """Have every request answered with what it has."""
        for work in self.works:
            work.ticket.deadline = min(work.ticket.deadline, time.monotonic())

    def close(self) -> None:
        """Cancel what is left and end every thread."""
        for work in self.works:
            work.ticket.cancelled.set()
        self.loop.close()
        self._pool.shutdown(cancel_futures=True)

    def gauges(self) -> dict[str, float]:
        running = min(len(self.works), self.limits.concurrent)
        return {
            "requests_running": running,
            "requests_waiting": len(self.works) - running,
            "samples_running": self.loop.live_rows,
        }

    def _wait(self) -> int:
        """Seconds until a place should be free."""
        return max(1, math.ceil(self._seconds))

    def _over(self, work: Work, future: asyncio.Future[Any]) -> None:
        self.works.discard(work)
        if not future.cancelled():
            future.exception()  # read, or asyncio complains of a client that left before it failed


def _tell(loop: asyncio.AbstractEventLoop, work: Work) -> None:
    """From the loop's thread: at most one wake-up is under way."""
    if not work.news.is_set():
        with suppress(RuntimeError):  # a second SIGTERM has closed it: nobody waits for news
            loop.call_soon_threadsafe(work.news.set)
