"""The server under load: what is admitted, how long it may take, who waits for whom, and what remains of it."""

from __future__ import annotations

import gc
import json
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args, get_type_hints

import pytest
from serving import Served, chat_body, serving, until

from twofold import run
from twofold.compute.judge import ASKED
from twofold.compute.plan import Plan, settings
from twofold.compute.rules import RULES
from twofold.compute.solve import solve
from twofold.engines.base import DeadlinePassed
from twofold.engines.native import NativeEngine
from twofold.models.kv import KV
from twofold.run import Model, load
from twofold.serve import server, service
from twofold.serve.parse import PLAN_LIMITS, read_plan
from twofold.serve.schema import MAX_TOKENS, Refused
from twofold.serve.service import Limits, Throughput
from twofold.tasks import grading
from twofold.types import Sampling

CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
SLOW = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 1500, "ignore_eos": True}  # seconds of work
SMALL = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 2}


def large(prompts: int = 64, tokens: int = 2000) -> dict[str, Any]:
    """Return a request of many seconds of work, whose prompts share no beginning."""
    return {"model": "tiny", "prompt": [[5 + i] * tokens for i in range(prompts)], "max_tokens": 1}


@pytest.fixture(scope="module")
def model() -> Model:
    return load("tiny")


@pytest.fixture(scope="module")
def served(model: Model) -> Iterator[Served]:
    with serving(model) as running:
        yield running


def sent(port: int, text: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(text.replace("\n", "\r\n").encode())
    return connection


def all_of(connection: socket.socket) -> bytes:
    """Return what comes until the server closes the connection."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    connection.close()
    return b"".join(parts)


# Heads ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:1", 200),
        ("127.8.8.8", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("evil.example", 421),
        ("localhost.evil.example:8000", 421),
        ("127.0.0.1.evil.example", 421),
        ("10.0.0.7", 421),
        ("[2001:db8::1]", 421),
        ("localhost@evil.example", 421),
        ("", 421),
    ],
)
def test_without_a_key_only_this_machines_names_are_answered(served: Served, host: str, status: int) -> None:
    """A page of another host, to whose name a browser was given our address (DNS rebinding), is refused on every route."""
    for path in ("/", "/health", "/v1/models", "/metrics", "/nowhere"):
        reply = all_of(sent(served.port, f"GET {path} HTTP/1.1\nhost: {host}\nconnection: close\n\n"))
        wanted = 404 if (path, status) == ("/nowhere", 200) else status
        assert reply.startswith(f"HTTP/1.1 {wanted} ".encode()), (path, reply[:80])
    if status == 421:
        assert json.loads(reply.split(b"\r\n\r\n")[1])["error"]["code"] == "wrong_host"


def test_with_a_key_a_proxy_may_name_any_host(model: Model) -> None:
    with serving(model, key="k") as served:
        headers = {"host": "models.example.org", "authorization": "Bearer k"}
        assert served.ask("/v1/models", headers=headers)[0] == 200
        assert served.ask("/v1/models", headers={"host": "models.example.org"})[0] == 401


def test_a_foreign_page_cannot_post_without_asking_first(served: Served) -> None:
    """Browsers send a plain form to any host without asking it; a JSON body they do not."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert served.ask(TEXTS, SMALL, headers={"content-type": kind})[0] == 400
    preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert served.ask(TEXTS, method="OPTIONS", headers=preflight)[0] == 405


def test_a_length_and_an_encoding_together_are_refused(served: Served) -> None:
    """One of two servers in a row may read the length and the other the chunks: then a second request hides in the first."""
    body = json.dumps(SMALL)
    chunked = f"{len(body):x}\r\n{body}\r\n0\r\n\r\n"
    head = f"POST {TEXTS} HTTP/1.1\nhost: localhost\ncontent-type: application/json\n"
    for both in ("content-length: 4\ntransfer-encoding: chunked", "Transfer-Encoding: chunked\nContent-Length: 4"):
        connection = sent(served.port, f"{head}{both}\n\n")
        connection.sendall(chunked.encode() + b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        reply = all_of(connection)  # to the end: the connection is closed
        assert reply.startswith(b"HTTP/1.1 400 ") and reply.count(b"HTTP/1.1") == 1, reply
    connection = sent(served.port, f"{head}transfer-encoding: chunked\nconnection: close\n\n")
    connection.sendall(chunked.encode())
    assert all_of(connection).startswith(b"HTTP/1.1 200 ")
    twice = sent(served.port, f"{head}content-length: 4\ncontent-length: 5\n\nabcd")
    assert all_of(twice).startswith(b"HTTP/1.1 400 ")


def test_slow_heads_are_closed_and_nobody_waits_for_them(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that send nothing, a part of a head, or a byte now and then; and a part of a second head behind a request."""
    monkeypatch.setattr(server, "HEAD_SECONDS", 1.5)
    with serving(model) as served:
        slow = [sent(served.port, "") for _ in range(20)]
        slow += [sent(served.port, "GET /health HTTP/1.1\nhost: local") for _ in range(20)]
        second = sent(served.port, "GET /health HTTP/1.1\nhost: localhost\n\n")
        assert second.recv(1000).endswith(b'{"status":"ok"}')
        second.sendall(b"GET /health HTTP/1.1\r\nho")
        dripping = sent(served.port, "GET / HTTP/1.1\n")
        closed = threading.Event()

        def drip() -> None:
            while not closed.wait(0.1):
                try:
                    dripping.sendall(b"x: y\r\n")
                except OSError:
                    closed.set()

        thread = threading.Thread(target=drip)
        thread.start()
        assert served.ask(TEXTS, SMALL)[0] == 200
        assert [all_of(one) for one in slow] == [b""] * 40
        assert all_of(second) == b""
        assert closed.wait(20)
        thread.join()
        dripping.close()
        assert served.ask("/health")[0] == 200


def test_a_request_is_not_a_slow_head(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither while it works nor while its body comes; and a connection may be used again."""
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    with serving(model) as served:
        body = json.dumps({**SLOW, "max_tokens": 400})
        head = (
            f"POST {TEXTS} HTTP/1.1\nhost: localhost\ncontent-type: application/json\ncontent-length: {len(body)}\n\n"
        )
        connection = sent(served.port, head)
        for _ in range(2):
            time.sleep(0.5)
            connection.sendall(body.encode())
            reply = connection.recv(1 << 16)
            assert reply.startswith(b"HTTP/1.1 200 ")
            connection.sendall(head.replace("\n", "\r\n").encode())
        connection.close()


def test_a_client_that_does_not_read_is_let_go(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "READ_SECONDS", 0.3)
    with serving(model) as served:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", served.port))
        try:
            for _ in range(2000):  # more replies than any buffer between us holds
                connection.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n")
        except OSError:
            pass
        until(lambda: is_reset(connection), seconds=30)
        assert served.ask("/health")[0] == 200


def is_reset(connection: socket.socket) -> bool:
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0 or connection.fileno() < 0 or gone(connection)


def gone(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"x")
    except OSError:
        return True
    return False


# Admission ------------------------------------------------------------------------------------------------------------


def test_prompts_under_way_have_so_many_tokens_and_no_more(model: Model) -> None:
    with serving(model, Limits(prompt_tokens=6000)) as served:
        alone = served.open(TEXTS, large(4))  # 8000 tokens: a request alone may have more
        until(lambda: len(served.service.requests) == 1)
        status, reply, headers = served.ask(TEXTS, {**large(1, 1000)})
        assert (status, reply["error"]["code"]) == (429, "overloaded") and int(headers["retry-after"]) >= 1
        alone.close()
        until(lambda: not served.service.requests)
        first = served.open(TEXTS, large(2))
        until(lambda: len(served.service.requests) == 1)
        assert served.ask(TEXTS, large(1, 2001 - 4))[0] == 200  # 5997 together
        first.close()


def test_a_full_server_does_not_read_what_it_refuses(model: Model) -> None:
    with serving(model, Limits(concurrent=1, queue=0)) as served:
        running = served.open(TEXTS, SLOW)
        until(lambda: served.service.scheduler.running_rows == 1)
        waiting = sent(served.port, f"POST {TEXTS} HTTP/1.1\nhost: localhost\ncontent-length: 900000\n\n")
        assert waiting.recv(1000).startswith(b"HTTP/1.1 429 ")  # though no byte of its body was sent
        waiting.close()
        running.close()


def test_many_at_once_get_no_more_places_than_there_are(model: Model) -> None:
    """Those that are still being read count as well."""
    with serving(model, Limits(concurrent=2, queue=2)) as served, ThreadPoolExecutor(24) as pool:
        most, stop = 0, threading.Event()

        def watch() -> None:
            nonlocal most
            while not stop.wait(0.001):
                most = max(most, len(served.service.requests))

        watching = threading.Thread(target=watch)
        watching.start()
        replies = list(pool.map(lambda i: served.ask(TEXTS, {**SMALL, "max_tokens": 60, "seed": i}), range(24)))
        stop.set()
        watching.join()
        statuses = [status for status, _, _ in replies]
        assert set(statuses) <= {200, 429} and statuses.count(200) >= 4 and most <= 4
        assert all(int(headers["retry-after"]) >= 1 for status, _, headers in replies if status == 429)


def test_when_to_come_back_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate is that of the requests that ended since the server was last idle, at most of the last 64."""
    now = 100.0
    monkeypatch.setattr(service.time, "monotonic", lambda: now)
    rate = Throughput()
    rate.begin()
    now = 103.0
    assert rate.seconds(2, 0) == rate.seconds(2, 0, running=1) == 6.0, "none has ended in 3 s"
    assert rate.seconds(8, 0, running=8) == 6.0, "eight run, so four may have been done by now"
    rate.count(tokens=50)
    now = 110.0
    rate.count(tokens=150)
    assert rate.seconds(5, 0) == 25.0, "2 in 10 s"
    assert rate.seconds(1, 1000) == 50.0, "200 tokens in 10 s"
    now = 120.0
    assert rate.seconds(5, 0) == 50.0, "they have become slower"
    for _ in range(200):
        now += 1
        rate.count(tokens=10)
    assert rate.seconds(3, 0) == 3.0, "the slow beginning is forgotten"
    rate.begin()
    now += 1
    assert rate.seconds(1, 0) == 1.0


# Deadlines ------------------------------------------------------------------------------------------------------------


def test_a_large_request_holds_up_nobody(served: Served) -> None:
    """128,000 tokens of prompts take many seconds; others begin and end meanwhile, and get what they get alone."""
    alone = [served.ask(*request)[1]["choices"] for request in small_requests()]
    long = served.open(TEXTS, large())
    until(lambda: bool(served.service.scheduler._running))
    (first,) = served.service.requests
    with ThreadPoolExecutor(3) as pool:
        found = [reply["choices"] for _, reply, _ in pool.map(lambda request: served.ask(*request), small_requests())]
    assert first in served.service.requests, "it is still at work"
    assert found == alone
    long.close()
    until(lambda: not served.service.requests and not served.service.scheduler._running)


def small_requests() -> list[tuple[str, Any]]:
    plan = chat_body("tiny:weighted-4", temperature=0, max_tokens=30)
    return [(TEXTS, {**SMALL, "temperature": 0}), (CHAT, plan), (TEXTS, {**SMALL, "seed": 3})]


@pytest.mark.parametrize("scores", [False, True])
def test_a_timeout_ends_a_request_whose_prompts_are_still_run(served: Served, scores: bool) -> None:
    body = large() | {"timeout": 0.5} | ({"max_tokens": 0, "echo": True, "logprobs": 0} if scores else {})
    status, reply, headers = served.ask(TEXTS, body)
    assert (status, reply["error"]["code"]) == (504, "timeout") and int(headers["retry-after"]) >= 1
    assert not served.service.scheduler._running and not served.service.requests
    assert served.ask(TEXTS, SMALL)[0] == 200


def test_a_timeout_counts_while_a_request_waits_for_its_turn(model: Model) -> None:
    with serving(model, Limits(concurrent=1, queue=4)) as served:
        running = served.open(TEXTS, {**SLOW, "n": 8})
        until(lambda: served.service.scheduler.running_rows == 8)
        status, reply, headers = served.ask(TEXTS, {**SMALL, "timeout": 0.3})
        assert served.service.scheduler.running_rows == 8, "it did not wait for the other"
        assert (status, reply["error"]["code"]) == (504, "timeout") and int(headers["retry-after"]) >= 1
        running.close()
        assert served.ask(TEXTS, SMALL)[0] == 200


def test_a_timeout_counts_while_samples_wait_for_rows(model: Model) -> None:
    """At its deadline a request draws one token per sample, whoever has the rows."""
    with serving(model) as served:
        served.service.scheduler.max_rows = 8
        running = served.open(TEXTS, {**SLOW, "n": 8})
        until(lambda: served.service.scheduler.running_rows == 8)
        status, reply, _ = served.ask(TEXTS, {**SMALL, "n": 2, "timeout": 0.3, "max_tokens": 9, "ignore_eos": True})
        assert status == 200 and reply["twofold"]["timed_out"] and reply["usage"]["completion_tokens"] == 2
        assert len(served.service.requests) == 1
        running.close()


# Comparisons ----------------------------------------------------------------------------------------------------------

APART = chat_body("tiny:majority-16", temperature=2, seed=1, max_tokens=40)
"""At this temperature the samples have several answers."""


class Endless:
    """Compares answers for as long as it may, and counts the comparisons under way."""

    def __init__(self) -> None:
        self.asked, self.under_way = 0, 0

    def __call__(self, a: str, b: str, left: Callable[[], float]) -> bool:
        self.asked += 1
        self.under_way += 1
        while left() > 0:
            time.sleep(0.005)
        self.under_way -= 1
        return False


@pytest.fixture
def endless(served: Served, monkeypatch: pytest.MonkeyPatch) -> Endless:
    same = Endless()
    monkeypatch.setattr(served.service, "same", same)
    return same


def test_a_timeout_ends_the_comparison_of_answers(served: Served, endless: Endless) -> None:
    """The votes are counted by the comparisons that were made; those left over find different answers."""
    status, reply, _ = served.ask(CHAT, {**APART, "timeout": 1})
    assert status == 200 and reply["twofold"]["timed_out"]
    (choice,) = reply["choices"]
    assert choice["answer"] in choice["votes"] and len(choice["votes"]) > 2
    assert endless.asked > 1 and endless.under_way == 0


def test_a_client_that_leaves_ends_the_comparison_of_answers(served: Served, endless: Endless) -> None:
    connections = [served.open(CHAT, APART) for _ in range(4)]
    until(lambda: endless.under_way == 4, seconds=60)
    for connection in connections:
        connection.close()
    until(lambda: endless.under_way == 0)
    assert served.ask(TEXTS, SMALL)[0] == 200


def test_a_pair_of_answers_is_compared_once_in_all_rounds(model: Model) -> None:
    """A stopping rule looks at the same answers after every round."""
    pairs: list[tuple[str, str]] = []

    def same(a: str, b: str) -> bool:
        pairs.append((a, b))
        return False

    plan = Plan(
        12,
        "majority",
        temperature=2,
        seed=1,
        max_tokens=40,
        stop=run.parse("majority-2:stop=adaptive,threshold=1").stop,
    )
    (solution,) = solve(model.engine, model.chat, [APART["messages"][0]["content"]], plan, same)
    assert solution.samples > 4 and len(set(pairs)) > 2
    assert len(pairs) == len(set(pairs))


def test_the_grader_stops_when_its_caller_has_no_time() -> None:
    """It decides what it can exactly. Else it waits neither for a free worker nor for one at work."""
    assert grading.equal("1/2", "0.5", left=lambda: 0) == "correct"
    assert grading.equal("x+1", "1+x", left=lambda: 0) == "timeout"
    grading.warm()
    hostile = "9^{9^{9^{9}}}"
    with ThreadPoolExecutor(grading.WORKERS) as threads:  # all workers are busy
        busy = [threads.submit(grading.equal, "5", hostile, deadline=4.0) for _ in range(grading.WORKERS)]
        time.sleep(0.5)
        end = time.monotonic() + 0.3
        assert grading.equal("x+1", "1+x", left=lambda: end - time.monotonic()) == "timeout"
        assert not any(job.done() for job in busy)
    assert [job.result() for job in busy] == ["timeout"] * grading.WORKERS
    assert grading.equal("x+1", "1+x", left=lambda: 60) == "correct"
    assert grading.equal("5", "9^{9^{9^{9}}}", left=lambda: 0.2) == "timeout"


# Plans ----------------------------------------------------------------------------------------------------------------


def options() -> Iterator[str]:
    """Yield the short forms of plans with every option of every part at the ends of its range and beyond."""
    hints = get_type_hints(Plan)
    heads = [f"weighted-4:{part}={kind().name}" for part in ("make", "stop") for kind in get_args(hints[part])]
    heads += [f"weighted-4:judge={name}" for name in ASKED] + [f"{rule}-4:seed=1" for rule in RULES]
    seen = set()
    for head in heads:
        for place, value, _ in settings(run.parse(head)):
            most = PLAN_LIMITS.get(place, PLAN_LIMITS.get(place.rpartition(".")[2], MAX_TOKENS))
            numbers = [0, -1, 0.5, most, most + 1, "nan", "inf", "9" * 30]
            lists = ["[]", "[0]", "[-1,3]", "x", '""']
            for v in lists if isinstance(value, str | tuple) else numbers:
                if (key := (place, v, head if place.startswith(("make", "stop")) else "")) not in seen:
                    seen.add(key)
                    yield f"{head},{place}={v}"


def test_every_option_of_a_plan_has_its_range() -> None:
    """A plan is read or refused with an error that says why, never with another error."""
    read = refused = 0
    for spec in options():
        try:
            read_plan(spec)
            read += 1
        except Refused as error:
            assert error.status == 400 and error.message
            refused += 1
    assert read > 80 and refused > 250


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_is_in_its_range_can_be_run(served: Served) -> None:
    """The server answers such a plan, or says why it cannot run."""
    answers = [served.ask(CHAT, chat_body(plan=spec, max_tokens=6, seed=1, timeout=20)) for spec in options()]
    assert {status for status, _, _ in answers} == {200, 400}
    assert sum(status == 200 for status, _, _ in answers) > 100


# What there is at the deadline ----------------------------------------------------------------------------------------


class Late:
    """The real engine, until the time is over: after so many calls."""

    def __init__(self, engine: NativeEngine, calls: int) -> None:
        self.engine, self.calls = engine, calls

    def _count(self) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise DeadlinePassed

    def generate(self, prompts: Any, sampling: Sampling, *finished: Any) -> Any:
        self._count()
        return self.engine.generate(prompts, sampling, *finished)

    def logprobs(self, prompts: Any, continuations: Any, temperature: float = 1.0) -> Any:
        self._count()
        return self.engine.logprobs(prompts, continuations, temperature)


def test_an_answer_is_made_from_the_samples_there_are(model: Model) -> None:
    question = APART["messages"][0]["content"]
    weighted = run.parse("weighted-6:stop=adaptive,threshold=1,temperature=1.5,max_tokens=40")
    assert isinstance(model.engine, NativeEngine)
    for calls, samples, judged in ((1, 1, 0), (2, 1, 1), (7, 4, 3), (99, 6, 6)):
        (found,) = solve(Late(model.engine.session(), calls), model.chat, [question], weighted, None)
        answered = [s for a, s in zip(found.answers, found.scores, strict=True) if a is not None]
        assert found.samples == samples
        assert sum(s is not None for s in answered) <= judged
        if calls == 1 and answered:
            assert found.votes == {found.answer: 1.0}, "without verdicts the samples vote alike"
    with pytest.raises(DeadlinePassed):
        solve(Late(model.engine.session(), 0), model.chat, [question], weighted, None)


# Memory ---------------------------------------------------------------------------------------------------------------


def test_nothing_of_a_request_outlives_it(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caches are freed when it ends, is cut, fails or loses its client: not when the garbage is collected some time."""
    made: list[weakref.ref[KV]] = []
    make = KV.__init__

    def noted(self: KV, *args: Any) -> None:
        made.append(weakref.ref(self))
        make(self, *args)

    def caches() -> int:
        return sum(one() is not None for one in tuple(made))

    monkeypatch.setattr(KV, "__init__", noted)
    gc.disable()
    try:
        plan = chat_body("tiny:weighted-8", temperature=1, max_tokens=60)
        assert served.ask(CHAT, plan)[0] == 200
        assert served.ask(CHAT, {**plan, "stream": True})[0] == 200
        assert served.ask(TEXTS, {**large(), "timeout": 0.3})[0] == 504
        assert served.ask(TEXTS, {**SLOW, "n": 8, "timeout": 0.3})[0] == 200
        until(lambda: caches() == 0)
        for body in (large(), {**SLOW, "n": 8}):
            connection = served.open(TEXTS, body)
            until(lambda: caches() > 0)
            connection.close()
            until(lambda: caches() == 0)
        assert len(made) >= 8
    finally:
        gc.enable()


def test_answers_compared_for_one_request_are_known_to_the_next_and_keep_nothing_of_it() -> None:
    class Caller:
        def left(self) -> float:
            return 60.0

    caller = Caller()
    gone = weakref.ref(caller)
    assert run.same("x+2", "2+x", caller.left)
    del caller
    assert gone() is None
    assert run.same("x+2", "2+x", lambda: 0)
    assert not run.same("x+3", "3+x", lambda: 0) and run.same("x+3", "3+x")  # no time is no verdict
