"""HTTP to one server: requests that are tried again while it is too busy or away, and errors that say what to do."""

from __future__ import annotations

import asyncio
import json
import math
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import Future
from typing import Any

import httpx2

from twofold.engines.base import UpstreamError

KEY = "TWOFOLD_UPSTREAM_KEY"
"""Environment variable that may hold the server's API key."""
ATTEMPTS = 5
BACKOFF = 0.5
"""Seconds before the second attempt; then twice as many each time, or as many as the server asks for."""
PATIENCE = 30.0
"""Most seconds between two attempts."""
CONNECT = 10.0
"""Seconds to connect in."""
CONNECTIONS = 128
"""Requests under way at once; more wait for their turn."""
AGAIN = {429, 500, 502, 503, 504}

Take = Callable[[dict[str, Any]], None]


class Wire:
    """Requests run in a thread of their own; to cancel a future that ``submit`` gave closes its connections at once.

    ``timeout``: seconds of silence after which a request is given up. Raises ValueError for what is no URL.
    """

    def __init__(self, url: str, timeout: float) -> None:
        try:
            known = httpx2.URL(url).scheme in ("http", "https")
        except httpx2.InvalidURL:
            known = False
        if not known:
            raise ValueError(f"upstream {url!r}: a URL such as http://127.0.0.1:8000/v1 is needed")
        self.url, self.timeout = url.rstrip("/"), timeout
        key = os.environ.get(KEY, "").strip()
        self._client = httpx2.AsyncClient(
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(timeout, connect=CONNECT, pool=None),
            limits=httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="twofold-upstream", daemon=True)
        self._thread.start()

    def submit(self, work: Iterable[Coroutine[Any, Any, Any]]) -> Future[list[Any]]:
        """All of these at once; the first error ends the others."""
        return asyncio.run_coroutine_threadsafe(_together([*work]), self._loop)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def ask(self, path: str, body: dict[str, Any] | None, take: Take) -> None:
        """POST ``body`` (GET without one) and ``take`` the reply: one JSON object, or those of a stream as they come.

        Asked again after 429, 5xx and lost connections, unless something was taken. Raises UpstreamError.
        """
        for attempt in range(1, ATTEMPTS + 1):
            taken, wait = 0, BACKOFF * 2 ** (attempt - 1)
            try:
                async with self._client.stream("POST" if body else "GET", self.url + path, json=body) as reply:
                    if reply.status_code == 200:
                        async for text in _objects(reply):
                            self._give(path, text, take)
                            taken += 1
                        return
                    await reply.aread()
                    error = self._refusal(reply, attempt)
                    wait = max(wait, _retry_after(reply))
            except httpx2.ReadTimeout:
                raise UpstreamError(504, f"the upstream {self.url} was silent for {self.timeout:g} s") from None
            except httpx2.RequestError as lost:
                kind = f"{type(lost).__name__}: {lost}".rstrip(": ")
                error = UpstreamError(503, f"no answer from the upstream {self.url}: {kind} (attempt {attempt})")
            if attempt == ATTEMPTS or taken or error.status not in AGAIN:
                raise error
            await asyncio.sleep(min(wait, PATIENCE))

    def _give(self, path: str, text: str, take: Take) -> None:
        try:
            payload = json.loads(text)
            if "error" in payload:
                raise UpstreamError(502, f"the upstream {self.url} failed under way: {_message(payload)}")
            take(payload)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"[:200]
            raise UpstreamError(502, f"{self.url}{path} gave what cannot be read as its reply ({what})") from error

    def _refusal(self, reply: httpx2.Response, attempt: int) -> UpstreamError:
        status = reply.status_code
        try:
            said = _message(reply.json())
        except (ValueError, AttributeError):
            said = reply.text[:300]
        if status in (401, 403):
            words = f"asks for a key, or for another one: set {KEY}"
        elif status == 404:
            words = f"has no {reply.request.url.path} (the URL of a vLLM server ends in /v1)"
        elif status == 429:
            words = "is too busy"
        else:
            words = "failed" if status >= 500 else "refused a request"
        tries = f", attempt {attempt}" if status in AGAIN else ""
        return UpstreamError(status, f"the upstream {self.url} {words} (HTTP {status}{tries}): {said}")


async def _together(work: list[Coroutine[Any, Any, Any]]) -> list[Any]:
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _objects(reply: httpx2.Response) -> AsyncIterator[str]:
    """The JSON texts of a reply: of every server-sent event, or the whole body."""
    if not reply.headers.get("content-type", "").startswith("text/event-stream"):
        yield (await reply.aread()).decode()
        return
    async for line in reply.aiter_lines():
        if line.startswith("data:") and (text := line[5:].strip()) != "[DONE]":
            yield text


def _message(payload: Any) -> str:
    """What an error says, in OpenAI's shape or vLLM's older one."""
    error = payload.get("error", payload)
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]


def _retry_after(reply: httpx2.Response) -> float:
    """Seconds that the server asks to wait; 0 if it does not (a date is not understood)."""
    try:
        seconds = float(reply.headers.get("retry-after", "0"))
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0
