"""The server process: its address, its API key, and how it stops."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from twofold.serve.api import app
from twofold.serve.middleware import App, is_loopback
from twofold.serve.service import Service

KEY = "TWOFOLD_API_KEY"
"""The environment variable with the API key, read if no file is given."""
HEAD_SECONDS = 10.0
"""Seconds in which the head of a request (its first line and its headers) must arrive."""
READ_SECONDS = 60.0
"""Seconds after which a client that does not read its reply loses its connection."""

FULL_SECONDS = 0.03
"""Seconds after which a full server looks again for new connections, so that it refuses them in batches."""
BATCH = 64
"""The most connections that are accepted in one turn of the event loop."""
log = logging.getLogger("twofold.serve")


def read_key(file: Path | None, host: str) -> str | None:
    """Return the API key from a file or the environment, None if there is none.

    Raises ValueError if there is none but ``host`` is reachable from other machines, or if the key cannot be used.
    """
    key = file.read_text(encoding="utf-8").strip() if file else os.environ.get(KEY, "").strip()
    if file and not key:
        raise ValueError(f"{file} holds no key")
    if key and not key.isascii():
        raise ValueError("the API key must be ASCII, because it is sent in a header")
    if not key and not is_loopback(host):
        raise ValueError(f"other machines can reach {host}, so clients need a key: set {KEY}, or give --api-key-file")
    return key or None


def serve(service: Service, host: str, port: int, key: str | None) -> None:
    """Serve until SIGTERM or SIGINT. Then requests under way are answered and new ones refused; a second signal ends at once.

    Raises OSError if it cannot listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family, backlog=2048) as listening:
            Server(service, key).run(sockets=[listening])
    finally:
        service.close()


class Protocol(H11Protocol):
    """Uvicorn's HTTP/1.1, without waiting for ever: neither for the head of a request nor for a client that does not read."""

    _head: asyncio.TimerHandle | None = None  # runs while the head of a request is expected
    _reading: asyncio.TimerHandle | None = None  # runs while the client reads more slowly than we write

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head = self.loop.call_later(HEAD_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.trailing_data[0] and self._between_requests():  # the beginning of a head
            self._head = self._head or self.loop.call_later(HEAD_SECONDS, self.transport.abort)
        elif self._head:
            self._head.cancel()
            self._head = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._head, self._reading):
            if timer:
                timer.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading:
            self._reading.cancel()

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete


class Server(uvicorn.Server):
    """Uvicorn, which on SIGTERM lets the requests under way end within the service's grace time."""

    def __init__(self, service: Service, key: str | None) -> None:
        self.guard = app(service, key)
        super().__init__(_config(self.guard))
        self.service = service
        self._grace_ends = float("inf")
        self._opening = set[asyncio.Task[object]]()  # connections that were accepted and not refused

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        assert sockets
        await super().startup([])  # uvicorn accepts nothing
        (self._listening,) = sockets
        self._listening.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._listen()
        url = _url(sockets)
        print(f"ready: {self.service.name} at {url}/v1, page {url}/", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop.remove_reader(self._listening)
        await super().shutdown(sockets)

    def _listen(self) -> None:
        if not self.should_exit:
            self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        """Accept the connections that wait. A full server refuses those whose request has come whole, and looks again a little later.

        At ten times the capacity, to parse each head, and to take a turn of the event loop for each, would take a fifth of the
        interpreter's time from the engine.
        """
        pause = 0.0
        for _ in range(BATCH):
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                break
            except OSError as error:  # too many open files
                log.error("cannot accept a connection: %s", error.strerror)
                pause = 1.0
                break
            connection.setblocking(False)
            if self._refuse(connection):
                pause = FULL_SECONDS
                continue
            opening = self._loop.create_task(self._loop.connect_accepted_socket(self._protocol, connection))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)
        if pause:
            self._loop.remove_reader(self._listening)
            self._loop.call_later(pause, self._listen)

    def _refuse(self, connection: socket.socket) -> bool:
        """Refuse a request if there is no room for it and it has come whole. Return whether it was refused; if so, close it."""
        try:
            request = connection.recv(1 << 16, socket.MSG_PEEK)
        except OSError:
            return False
        if not is_whole_post(request) or not (reply := self.guard.refusal(request)):
            return False
        with connection, suppress(OSError):
            connection.recv(len(request))  # nothing is left unread, so that the client gets the reply and no reset
            connection.sendall(reply)
        return True

    def _protocol(self) -> Protocol:
        return Protocol(self.config, self.server_state, self.lifespan.state)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Refuse new requests at the first signal, and stop at the second."""
        if self.service.draining:
            self.should_exit = self.force_exit = True
        else:
            self.service.draining = True
            self._grace_ends = time.monotonic() + self.service.limits.grace

    async def on_tick(self, counter: int) -> bool:
        """Stop when the last request has ended, or 2 s after the grace time."""
        if self.service.draining:
            late = time.monotonic() - self._grace_ends
            if late >= 0:
                self.service.expire_all()
            self.should_exit |= not self.service.requests or late >= 2
        return await super().on_tick(counter)


class PageServer(uvicorn.Server):
    """Uvicorn for one page, such as that of ``twofold watch``. The first SIGTERM or SIGINT ends it."""

    def __init__(self, page: App, title: str) -> None:
        super().__init__(_config(page))
        self.title = title

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(f"ready: {self.title} at {_url(sockets)}/", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True


def _config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", ws="none", server_header=False,
        timeout_graceful_shutdown=5, http=Protocol,
    )  # fmt: skip


def _url(sockets: list[socket.socket] | None) -> str:
    assert sockets
    host, port = sockets[0].getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_whole_post(request: bytes) -> bool:
    r"""Return whether this is a POST request with its whole body, to its last byte.

    >>> [is_whole_post(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n" + body) for body in (b"{", b"{}", b"{}GET")]
    [False, True, False]
    """
    head, _, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: *(\d{1,9})(?:\r\n|$)", head, re.IGNORECASE)
    return head.startswith(b"POST ") and length is not None and int(length[1]) == len(body)
