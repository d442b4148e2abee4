"""HTTP to one server: requests that are repeated while it is too busy or away, and errors that say what to do."""

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
"""The environment variable with the server's API key, if it needs one."""
ATTEMPTS = 5
BACKOFF = 0.5
"""Seconds before the second attempt; they double with each attempt, or are longer if the server asks for it."""
MAX_BACKOFF = 30.0
"""The most seconds between two attempts."""
CONNECT_TIMEOUT = 10.0
"""Seconds to connect in."""
SILENCE = 3600.0
"""Seconds without a byte after which a request is given up."""
MAX_CONNECTIONS = 128
"""The most requests under way at once; the others wait for their turn."""
RETRIED = {429, 500, 502, 503, 504}
"""HTTP statuses after which a request is repeated."""

OnObject = Callable[[dict[str, Any]], None]
"""A callback for every JSON object of a reply."""


class Wire:
    """A client whose requests run in a thread of its own. Cancelling a future of ``submit`` closes its connections at once.

    A request without a byte for ``silence`` seconds is given up. Raises ValueError if ``url`` is not a URL.
    """

    def __init__(self, url: str, silence: float = SILENCE) -> None:
        try:
            valid = httpx2.URL(url).scheme in ("http", "https")
        except httpx2.InvalidURL:
            valid = False
        if not valid:
            raise ValueError(f"upstream {url!r}: a URL such as http://127.0.0.1:8000/v1 is needed")
        self.url, self._silence = url.rstrip("/"), silence
        key = os.environ.get(KEY, "").strip()
        self._client = httpx2.AsyncClient(
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(silence, connect=CONNECT_TIMEOUT, pool=None),
            limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="twofold-upstream", daemon=True)
        self._thread.start()

    def submit(self, requests: Iterable[Coroutine[Any, Any, Any]]) -> Future[list[Any]]:
        """Run all of these at once and return a future of their results; the first error cancels the others."""
        return asyncio.run_coroutine_threadsafe(_gather([*requests]), self._loop)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def request(self, path: str, body: dict[str, Any] | None, on_object: OnObject) -> None:
        """POST ``body`` (GET without one) and pass the reply to ``on_object``: one JSON object, or each one of a stream.

        Repeats the request after 429, 5xx and lost connections, unless an object has arrived. Raises UpstreamError.
        """
        for attempt in range(1, ATTEMPTS + 1):
            received, wait = 0, BACKOFF * 2 ** (attempt - 1)
            try:
                async with self._client.stream("GET" if body is None else "POST", self.url + path, json=body) as reply:
                    if reply.status_code == 200:
                        async for text in _objects(reply):
                            self._parse(path, text, on_object)
                            received += 1
                        return
                    await reply.aread()
                    error = self._refusal(reply, attempt)
                    wait = max(wait, _retry_after(reply))
            except httpx2.ReadTimeout:
                raise UpstreamError(504, f"the upstream {self.url} was silent for {self._silence:g} s") from None
            except httpx2.RequestError as lost:
                kind = f"{type(lost).__name__}: {lost}".rstrip(": ")
                error = UpstreamError(503, f"no answer from the upstream {self.url}: {kind} (attempt {attempt})")
            if attempt == ATTEMPTS or received or error.status not in RETRIED:
                raise error
            await asyncio.sleep(min(wait, MAX_BACKOFF))

    def _parse(self, path: str, text: str, on_object: OnObject) -> None:
        """Pass a JSON text to ``on_object``. Raises UpstreamError if it is an error, or if ``on_object`` cannot read it."""
        try:
            payload = json.loads(text)
            if "error" in payload:
                raise UpstreamError(502, f"the upstream {self.url} failed while it replied: {_message(payload)}")
            on_object(payload)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"[:200]
            raise UpstreamError(502, f"{self.url}{path} gave a reply that cannot be read ({what})") from error

    def _refusal(self, reply: httpx2.Response, attempt: int) -> UpstreamError:
        """Return the error for a reply whose status is not 200."""
        status = reply.status_code
        try:
            said = _message(reply.json())
        except (ValueError, AttributeError):
            said = reply.text[:300]
        if status in (401, 403):
            words = f"needs an API key, or another one: set {KEY}"
        elif status == 404:
            words = f"has no {reply.request.url.path} (the URL of a vLLM server ends in /v1)"
        elif status == 429:
            words = "is too busy"
        else:
            words = "failed" if status >= 500 else "refused a request"
        tries = f", attempt {attempt}" if status in RETRIED else ""
        return UpstreamError(status, f"the upstream {self.url} {words} (HTTP {status}{tries}): {said}")


async def _gather(requests: list[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Await all of these; an error or a cancellation cancels the others."""
    tasks = [asyncio.ensure_future(one) for one in requests]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _objects(reply: httpx2.Response) -> AsyncIterator[str]:
    """Yield the JSON texts of a reply: each server-sent event's, or the whole body."""
    if not reply.headers.get("content-type", "").startswith("text/event-stream"):
        yield (await reply.aread()).decode()
        return
    async for line in reply.aiter_lines():
        if line.startswith("data:") and (text := line[5:].strip()) != "[DONE]":
            yield text


def _message(payload: Any) -> str:
    """Return an error's message, in OpenAI's shape or vLLM's older one."""
    error = payload.get("error", payload)
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]


def _retry_after(reply: httpx2.Response) -> float:
    """Return the seconds that the server asks to wait, 0 if it asks for none or gives a date."""
    try:
        seconds = float(reply.headers.get("retry-after", "0"))
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0
