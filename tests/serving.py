"""A real server on a free port, in a thread of the test's own process."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from twofold.engines.native import NativeEngine
from twofold.run import Model, load, service
from twofold.serve.server import Server
from twofold.serve.service import Limits, Service

PUZZLE = "Start with 9, 18 or 24. Multiply by 3. Subtract 8. The result is 46. What was the start?"


class Served:
    """A running server: its own ``service``, and the ``port`` where it listens."""

    def __init__(self, service: Service, port: int, key: str | None) -> None:
        self.service, self.port, self.key = service, port, key
        self.url = f"http://127.0.0.1:{port}/v1"

    def ask(
        self, path: str, body: Any = None, method: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Send one request on a new connection; return (status, decoded JSON or text, headers)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        default = {"content-type": "application/json"} | ({"authorization": f"Bearer {self.key}"} if self.key else {})
        connection.request(
            method or ("GET" if body is None else "POST"), path, sent, default if headers is None else headers
        )
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        try:
            return reply.status, json.loads(text), dict(reply.getheaders())
        except json.JSONDecodeError:
            return reply.status, text, dict(reply.getheaders())

    def open(self, path: str, body: Any) -> socket.socket:
        """Send a request and return the connection, on which nothing was read."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        sent = json.dumps(body).encode()
        key = f"authorization: Bearer {self.key}\r\n" if self.key else ""
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{key}content-type: application/json\r\ncontent-length: {len(sent)}\r\n\r\n"
        connection.sendall(head.encode() + sent)
        return connection


def exact() -> Model:
    """Return the shipped model in exact mode, so that other requests change no bit of a reply."""
    tiny = load("tiny")
    return Model("tiny", NativeEngine(tiny.engine.model, exact=True), tiny.chat, tiny.tokenizer)


@contextmanager
def serving(model: Model, limits: Limits | None = None, key: str | None = None) -> Iterator[Served]:
    """Run a server until the block ends."""
    state = service(model, limits)
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        server = Server(state, key)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        until(lambda: server.started)
        try:
            yield Served(state, listening.getsockname()[1], key)
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            state.close()
            assert not thread.is_alive()


def until(true: Callable[[], bool], seconds: float = 10.0) -> float:
    """Wait until ``true`` holds; return the seconds it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"did not happen within {seconds} s"
        time.sleep(0.002)
    return time.monotonic() - began


def chat_body(model: str = "tiny", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": PUZZLE}], **more}


def events(text: str) -> list[Any]:
    """Return the JSON of server-sent events; the last event must be [DONE]."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]", lines[-1]
    return [json.loads(line) for line in lines[:-1]]
