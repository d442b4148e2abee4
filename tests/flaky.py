"""A proxy before a real server, which can fail requests or answer as vLLM does. It uses plain sockets and does nothing else."""

from __future__ import annotations

import http.client
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from twofold.engines.native import NativeEngine

Reply = tuple[int, dict[str, str], bytes]
Answer = Callable[["Handler", dict[str, Any]], Reply | None]


class Proxy(ThreadingHTTPServer):
    """The proxy. ``answer`` may reply in the server's place; ``seen`` are the bodies of all requests for completions."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind, self.seen = port, list[dict[str, Any]]()
        self.answer: Answer = lambda handler, body: None
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: the client has left, or the test wants the fault."""


class Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._reply(self.forward(None))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.seen.append(body)
        self._reply(self.server.answer(self, body) or self.forward(body))

    def forward(self, body: dict[str, Any] | None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=30)
        headers = {"content-type": "application/json", "authorization": self.headers.get("authorization", "")}
        sent = None if body is None else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", self.path, sent, headers)
        reply = connection.getresponse()
        data = reply.read()
        connection.close()
        return reply.status, {"content-type": reply.headers["content-type"] or ""}, data

    def _reply(self, reply: Reply) -> None:
        status, headers, data = reply
        self.send_response(status)
        for name, value in ({"content-length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def proxied(port: int) -> Iterator[Proxy]:
    with Proxy(port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def error(status: int, message: str = "no", **headers: str) -> Reply:
    said = {"error": {"message": message, "type": "x", "param": None, "code": status}}
    return status, {"content-type": "application/json", **headers}, json.dumps(said).encode()


def times(n: int, reply: Reply) -> Answer:
    """Give this reply to the first ``n`` requests."""
    left = iter(range(n))
    return lambda handler, body: reply if next(left, None) is not None else None


def hang(handler: Handler, body: dict[str, Any]) -> Reply | None:
    """Reply after 3 s."""
    time.sleep(3)
    return error(500)


def cut(handler: Handler, body: dict[str, Any]) -> Reply | None:
    """Break the connection in the middle of the reply."""
    status, headers, data = handler.forward(body)
    handler.close_connection = True
    return status, headers | {"content-length": str(len(data))}, data[: len(data) // 2]


def vllm(engine: NativeEngine) -> Answer:
    """Answer as vLLM does where our server differs: log-probs are those at temperature 1, and a token can be forced."""

    def answer(handler: Handler, body: dict[str, Any]) -> Reply | None:
        forced = body.pop("allowed_token_ids", None)
        if forced:
            asked = {"prompt": [*body["prompt"], *forced], "echo": True, "max_tokens": 0, "temperature": 1.0}
            status, headers, data = handler.forward(body | asked)
            choice = json.loads(data)["choices"][0]
            last = {name: choice["logprobs"][name][-1:] for name in ("tokens", "token_logprobs")}
            done = {"choices": [{"index": 0, "text": "", "logprobs": last, "finish_reason": "length"}]}
            return 200, headers, json.dumps(done).encode()
        if body.get("echo") or body.get("stream"):
            return None
        status, headers, data = handler.forward(body)
        reply = json.loads(data)
        for choice in reply["choices"]:
            tokens = [int(t.removeprefix("token_id:")) for t in choice["logprobs"]["tokens"]]
            (raw,) = engine.session().logprobs([body["prompt"]], [tokens])
            choice["logprobs"]["token_logprobs"] = raw
            assert all(map(math.isfinite, raw))
        return status, headers, json.dumps(reply).encode()

    return answer
