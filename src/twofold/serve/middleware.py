"""In front of every route: the key, the size of the body, the count and the log. Plain ASGI."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from twofold.engines.base import UpstreamError
from twofold.serve.metrics import Metrics
from twofold.serve.scheduler import Cancelled
from twofold.serve.schema import Refused

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OPEN = ("/", "/health")
"""Served without a key: the page, which asks for one, and whether the server lives."""
BODY_SECONDS = 30.0
log = logging.getLogger("twofold.serve")


class Guard:
    """Neither a prompt nor a key is ever logged."""

    def __init__(self, app: App, paths: frozenset[str], metrics: Metrics, key: str | None, body: int) -> None:
        self.app, self.paths, self.metrics, self.body = app, paths, metrics, body
        self.key = None if key is None else key.encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 499  # of a client that left

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check_key(scope)
            await self.app(scope, await self._whole(scope, receive), tell)
        except Refused as refused:
            await _reply(refused, tell)
        except Exception as error:
            if status == 499:
                await _reply(failure(error), tell)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            seconds = time.monotonic() - began
            self.metrics.request(path, status, seconds)
            log.info("%s %s %d %.3f s", scope["method"], path, status, seconds)

    def _check_key(self, scope: MutableMapping[str, Any]) -> None:
        if self.key is None or scope["path"] in OPEN:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, b"Bearer " + self.key):
            raise Refused(401, "a valid API key is needed: Authorization: Bearer KEY", "invalid_api_key")

    async def _whole(self, scope: MutableMapping[str, Any], receive: Receive) -> Receive:
        """The body, read up to its limit, and then whatever comes behind it."""
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 15 or int(length) > self.body:
            raise self._too_large()
        read = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        break
                    read += message.get("body", b"")
                    if len(read) > self.body:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise Refused(408, f"the body did not come within {BODY_SECONDS:.0f} seconds", "timeout") from None
        first = [{"type": "http.request", "body": bytes(read), "more_body": False}]

        async def again() -> Message:
            return first.pop() if first else await receive()

        return again

    def _too_large(self) -> Refused:
        return Refused(413, f"the body may have at most {self.body} bytes", "too_large")


def failure(error: BaseException) -> Refused:
    """What to tell of an error of ours. Its message could hold a prompt, so only where it came from is logged."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Cancelled | asyncio.CancelledError):
        return Refused(503, "the server is shutting down", "shutting_down")
    if isinstance(error, UpstreamError):
        log.error("the upstream failed: status %d", error.status)
        if error.status in (429, 503):
            return Refused(503, "the server behind this one is away or too busy", "upstream_unavailable", retry_after=5)
        late = error.status == 504
        words = "did not answer in time" if late else f"failed on this request (status {error.status})"
        return Refused(504 if late else 502, f"the server behind this one {words}", "upstream_failed")
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s, message withheld, at\n%s", type(error).__name__, frames)
    return Refused(500, "the server failed on this request; its log says where", "internal_error")


async def _reply(refused: Refused, send: Send) -> None:
    body = json.dumps(refused.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.status == 413:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
