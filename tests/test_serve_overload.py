"""A full server: what it refuses, how, and that this costs the requests under way nothing."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from serving import Served, chat_body, serving, until

from twofold import run
from twofold.run import Model, load
from twofold.serve.service import Limits

CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
SLOW = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 1500, "ignore_eos": True}  # seconds of work


@pytest.fixture(scope="module")
def model() -> Model:
    return load("tiny")


def request(path: str, body: Any, *fields: str) -> bytes:
    data = json.dumps(body).encode()
    known = ["host: localhost", "content-type: application/json", f"content-length: {len(data)}"]
    return "\r\n".join([f"POST {path} HTTP/1.1", *known, *fields, "", ""]).encode() + data


def reply_to(served: Served, *parts: bytes) -> tuple[bytes, bytes]:
    """Send the parts of a request, one after another; return the head and the body of all that comes until the server closes."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.05)
        head, _, body = b"".join(iter(lambda: connection.recv(1 << 16), b"")).partition(b"\r\n\r\n")
        return head, body


def test_a_full_server_refuses_whole_requests_and_those_in_parts_alike(model: Model) -> None:
    """The one is refused when its connection is accepted, the other when its head has come. Other routes are answered."""
    with serving(model, Limits(concurrent=1, queue=0)) as served:
        running = served.open(TEXTS, SLOW)
        until(lambda: served.service.scheduler.running_rows == 1)
        whole = request(CHAT, chat_body(), "connection: close")
        at = whole.index(b"{")
        for parts in ((whole,), (whole[:at], whole[at:]), (whole[:7], whole[7:])):
            head, body = reply_to(served, *parts)
            assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n"), head
            assert re.search(rb"\r\nretry-after: [1-9]", head) and b"\r\nconnection: close" in head.lower()
            assert f"content-length: {len(body)}".encode() in head and json.loads(body)["error"]["code"] == "overloaded"
        assert served.ask("/health")[0] == 200
        assert f'twofold_requests_total{{path="{CHAT}",status="429"}} 3\n' in served.ask("/metrics")[1]
        running.close()
        until(lambda: not served.service.requests)
        assert reply_to(served, whole)[0].startswith(b"HTTP/1.1 200 OK\r\n")


def test_hundreds_of_refusals_at_once_all_arrive(model: Model) -> None:
    with serving(model, Limits(concurrent=1, queue=0)) as served:
        running = served.open(TEXTS, SLOW)
        until(lambda: served.service.scheduler.running_rows == 1)
        clients = Clients(served.port)
        for seed in range(300):
            clients.send(seed)
        while clients.open:
            clients.wait(10.0)
        assert [reply.status for reply in clients.replies] == [429] * 300
        running.close()


# Ten times the capacity -----------------------------------------------------------------------------------------------

PHASE, PHASES = 15.0, 4
"""Seconds at capacity, and then in overload, and how often: what else the machine does is the same for both."""
CONCURRENT, QUEUE = 8, 8


@dataclass
class Reply:
    status: int
    seconds: float
    retry_after: int


class Clients:
    """Clients that send one request each, on plain sockets: they share the processors with the server."""

    def __init__(self, port: int) -> None:
        self.port, self.poll = port, select.epoll()
        self.open: dict[int, tuple[socket.socket, float, bytearray]] = {}
        """Descriptor -> the connection, when its request was begun, and what has come of its reply."""
        self.replies: list[Reply] = []

    def send(self, seed: int) -> None:
        began = time.monotonic()
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(request(CHAT, chat_body(seed=seed, max_tokens=40, ignore_eos=True), "connection: close"))
        self.open[connection.fileno()] = connection, began, bytearray()
        self.poll.register(connection, select.EPOLLIN)

    def wait(self, seconds: float) -> int:
        """Wait until something comes, at most so long. Return how many replies it completed."""
        before = len(self.replies)
        for descriptor, _ in self.poll.poll(max(0.0, seconds)):
            connection, began, reply = self.open[descriptor]
            reply += (part := connection.recv(1 << 16))
            if not part:
                after = re.search(rb"retry-after: (\d+)", reply)
                self.replies.append(Reply(int(reply[9:12]), time.monotonic() - began, int(after[1]) if after else 0))
                del self.open[descriptor]
                connection.close()
        return len(self.replies) - before


def at_capacity(port: int) -> list[Reply]:
    """Fill every place of the server and no more."""
    end, clients, sent = time.monotonic() + PHASE, Clients(port), 0
    free = CONCURRENT + QUEUE
    while free or clients.open:
        for _ in range(free if time.monotonic() < end else 0):
            clients.send(sent)
            sent += 1
        free = clients.wait(1.0)
    return clients.replies


def at_rate(port: int, rate: float) -> list[Reply]:
    """Send requests at a rate, whatever the replies are."""
    began, clients, sent = time.monotonic(), Clients(port), 0
    while (more := sent < int(PHASE * rate)) or clients.open:
        until_next = began + sent / rate - time.monotonic() if more else 1.0
        if until_next <= 0:
            clients.send(sent)
            sent += 1
        else:
            clients.wait(until_next)
    return clients.replies


def p99(replies: list[Reply]) -> float:
    return sorted(reply.seconds for reply in replies)[len(replies) * 99 // 100]


def megabytes(pid: int) -> int:
    """Return the resident memory of a process."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) // 1024  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_overload_does_not_slow_down_what_is_accepted() -> None:
    """At ten times the capacity, the accepted requests take as long as at capacity, the others are refused at once."""
    places = ["--concurrent", str(CONCURRENT), "--queue", str(QUEUE)]
    code = [sys.executable, "-m", "twofold.cli", "serve", "tiny", "--port", "0", *places]
    environment = os.environ | {"PYTHONPATH": str(Path(run.__file__).parents[1])}
    one = subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    try:
        assert one.stdout is not None
        port = int(one.stdout.readline().split("/v1")[0].rsplit(":")[-1])
        full, flood, memory = [], [], []
        for _ in range(PHASES):
            now = at_capacity(port)
            memory.append(megabytes(one.pid))
            flood += at_rate(port, 10 * len(now) / PHASE)
            full += now
        memory.append(megabytes(one.pid))
    finally:
        one.kill()
        one.communicate()
    accepted = [reply for reply in flood if reply.status == 200]
    refused = [reply for reply in flood if reply.status == 429]
    after = sorted(r.retry_after for r in refused)
    print(
        f"at capacity {len(full) / PHASE / PHASES:.1f}/s, p99 {p99(full):.2f} s; of {len(flood)} at ten times that "
        f"{len(accepted)} were accepted, p99 {p99(accepted):.2f} s, {len(refused)} refused, p99 {p99(refused) * 1000:.0f} ms, "
        f"to come back after {after[0]} to {after[-1]} s; memory {memory} MB"
    )
    assert {reply.status for reply in full} == {200}
    assert len(accepted) + len(refused) == len(flood) and len(accepted) > 0.6 * len(full)
    assert p99(accepted) <= 1.2 * p99(full)
    assert p99(refused) <= 0.1
    rate = len(full) / PHASE / PHASES
    assert all(1 <= r.retry_after <= 2 + 3 * QUEUE / rate for r in refused), "the time in which the queue is worked off"
    assert memory[-1] <= memory[0] + 20
