"""Plain ASGI around all routes: checks the key, limits the body, counts and logs."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import re
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
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
"""Paths that need no key: the page, which asks for one, and the health check."""
BODY_SECONDS = 30.0
"""Seconds in which the body must arrive."""
log = logging.getLogger("twofold.serve")


class Guard:
    """Wrap the application in a check of key, host and body. Every request is counted and logged, but never a prompt or a key.

    ``paths`` are those that are logged by name; ``body`` is the most bytes of a body. ``check_room`` raises Refused if no
    request with a body can be let in now; then its body is not read.
    """

    def __init__(
        self,
        app: App,
        paths: frozenset[str],
        metrics: Metrics,
        key: str | None,
        body: int,
        check_room: Callable[[], None],
    ) -> None:
        self.app, self.paths, self.metrics, self.body, self.check_room = app, paths, metrics, body, check_room
        self.key = None if key is None else key.encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 499  # unless a reply begins, the client has left

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check_head(scope)
            await self.app(scope, await self._read_body(scope, receive), send_noting_status)
        except Refused as refused:
            await _reply(refused, send_noting_status)
        except Exception as error:
            if status == 499:
                await _reply(to_refused(error), send_noting_status)
        finally:
            self._count(scope["method"], scope["path"], status, began)

    def refusal(self, request: bytes) -> bytes | None:
        """Return the whole reply to a POST request if there is no room for it, None if there is.

        Only its path is read, to be counted: neither its key nor its Host changes the reply. The connection ends with it.
        """
        began = time.monotonic()
        try:
            self.check_room()
        except Refused as refused:
            self._count(
                "POST", request.split(maxsplit=2)[1].partition(b"?")[0].decode("latin-1"), refused.status, began
            )
            body = json.dumps(refused.body).encode()
            fields = {"content-type": "application/json", "content-length": len(body), "connection": "close"}
            first = f"HTTP/1.1 {refused.status} {HTTPStatus(refused.status).phrase}"
            return (
                "\r\n".join([first, *(f"{k}: {v}" for k, v in (fields | refused.headers).items()), "", ""]).encode()
                + body
            )
        return None

    def _count(self, method: str, path: str, status: int, began: float) -> None:
        path = path if path in self.paths else "other"
        seconds = time.monotonic() - began
        self.metrics.count_request(path, status, seconds)
        log.info("%s %s %d %.3f s", method, path, status, seconds)

    def _check_head(self, scope: MutableMapping[str, Any]) -> None:
        """Raise Refused for a head that is ambiguous, that comes from a foreign page or without the key, or when there is no room.

        Without a key, only programs of this machine can connect. But a browser of this machine runs pages from everywhere, and
        a page may give its own host name our address (DNS rebinding). Its requests still name its own host.
        """
        headers = dict(scope["headers"])
        if (
            b"transfer-encoding" in headers and b"content-length" in headers
        ):  # a proxy may read the other (RFC 9112, 6.1)
            raise Refused(400, "a request has a Content-Length or a Transfer-Encoding, not both", close=True)
        if self.key is None and not is_loopback(_name_in(headers.get(b"host", b""))):
            message = "without an API key this server answers only to localhost, 127.0.0.1 and ::1 as its Host"
            raise Refused(421, message, "wrong_host")
        self._check_key(scope["path"], headers.get(b"authorization", b""))
        if scope["method"] == "POST":
            self.check_room()

    def _check_key(self, path: str, given: bytes) -> None:
        if self.key is None or path in OPEN:
            return
        if not hmac.compare_digest(given, b"Bearer " + self.key):
            raise Refused(
                401, "this server needs a valid API key, sent as Authorization: Bearer KEY", "invalid_api_key"
            )

    async def _read_body(self, scope: MutableMapping[str, Any], receive: Receive) -> Receive:
        """Read the whole body, up to its limit; return a ``receive`` that gives it and then what follows it."""
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
            raise Refused(408, f"the body did not arrive within {BODY_SECONDS:.0f} seconds", "timeout") from None
        body = [{"type": "http.request", "body": bytes(read), "more_body": False}]

        async def body_first() -> Message:
            return body.pop() if body else await receive()

        return body_first

    def _too_large(self) -> Refused:
        return Refused(413, f"the body may have at most {self.body} bytes", "too_large", close=True)


def to_refused(error: BaseException) -> Refused:
    """Return the reply to any error. An unexpected error is logged without its message, which may contain a prompt."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Cancelled | asyncio.CancelledError):
        return Refused(503, "the server is shutting down", "shutting_down")
    if isinstance(error, UpstreamError):
        log.error("the upstream server failed: status %d", error.status)
        if error.status in (429, 503):
            message = "the upstream server cannot be reached or is too busy"
            return Refused(503, message, "upstream_unavailable", retry_after=5)
        late = error.status == 504
        words = "did not answer in time" if late else f"failed on this request (status {error.status})"
        return Refused(504 if late else 502, f"the upstream server {words}", "upstream_failed")
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s, message withheld, at\n%s", type(error).__name__, frames)
    return Refused(500, "the server failed on this request; its log says where", "internal_error")


async def _reply(refused: Refused, send: Send) -> None:
    body = json.dumps(refused.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in refused.headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address is this machine's own, which no other machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name_in(host: bytes) -> str:
    """Return the name or address in a Host header, without the port and the brackets of IPv6.

    >>> _name_in(b"[::1]:8000"), _name_in(b"LocalHost:8000"), _name_in(b"::1")
    ('::1', 'localhost', '')
    """
    found = re.fullmatch(rb"(?:\[([0-9a-f:.]+)\]|([^:]+))(?::[0-9]*)?", host.lower())
    return (found[1] or found[2]).decode("latin-1") if found else ""
