"""The server under clients that ask for too much, leave, lie or flood it, and under signals that stop it."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import Served, chat_body, events, serving, until

from twofold.cli import main
from twofold.run import Model, load
from twofold.serve.schema import MAX_SAMPLES, MAX_TEXT
from twofold.serve.server import read_key
from twofold.serve.service import Limits

CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
SLOW = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 1500, "ignore_eos": True}  # seconds of work
SRC = Path(__file__).parents[1] / "src"


@pytest.fixture(scope="module")
def model() -> Model:
    return load("tiny")


@pytest.fixture(scope="module")
def served(model: Model) -> Iterator[Served]:
    with serving(model, Limits(body=200_000)) as running:
        yield running


# What is refused ------------------------------------------------------------------------------------------------------

WITH_PLAN = chat_body("tiny:weighted-4")
REFUSED = {
    "no such model": (CHAT, chat_body("gpt-4"), 404, "model"),
    "no such plan": (CHAT, chat_body("tiny:wieghted-4"), 400, "plan"),
    "a plan of too many": (CHAT, chat_body(f"tiny:weighted-{MAX_SAMPLES + 1}"), 400, "plan"),
    "a plan of unending search": (CHAT, chat_body("tiny:weighted-8:make=mcts,simulations=100000"), 400, "plan"),
    "a plan of unending votes": (CHAT, chat_body("tiny:majority-8:make=agglm,votes=1000"), 400, "plan"),
    "a plan of unending comparisons": (CHAT, chat_body("tiny:best-8:judge=pairs,budget=1000"), 400, "plan"),
    "a plan that does not divide": (CHAT, chat_body("tiny:weighted-7:make=beam"), 400, "plan"),
    "a plan of an unknown option": (CHAT, chat_body("tiny:weighted-7:stpo=posterior"), 400, "plan"),
    "a plan of very many": (CHAT, chat_body("tiny:weighted-" + "9" * 60), 400, "plan"),
    "two plans": (CHAT, {**WITH_PLAN, "plan": "best-4"}, 400, "plan"),
    "n beside a plan": (CHAT, {**WITH_PLAN, "n": 2}, 400, "n"),
    "logprobs of a plan": (CHAT, {**WITH_PLAN, "logprobs": True}, 400, "logprobs"),
    "a plan's unknown field": (CHAT, chat_body(plan={"samples": 4}), 400, "plan"),
    "a plan's text that is none": (CHAT, chat_body(plan={"make": "x,y=[1"}), 400, None),
    "a plan of parts that do not go together": (
        CHAT,
        chat_body(plan="majority-4:make=beam,stop=adaptive"),
        400,
        "plan",
    ),
    "a plan whose numbers make no sense": (CHAT, chat_body(plan="majority-4:temperature=-1"), 400, "plan"),
    "an unknown field": (CHAT, chat_body(best=3), 400, "best"),
    "a number as text": (CHAT, chat_body(n="2"), 400, "n"),
    "n beyond its limit": (CHAT, chat_body(n=MAX_SAMPLES + 1), 400, "n"),
    "n beyond any integer": (CHAT, chat_body(n=2**63), 400, "n"),
    "temperature": (CHAT, chat_body(temperature=2.1), 400, "temperature"),
    "no messages": (CHAT, {"model": "tiny", "messages": []}, 400, "messages"),
    "the last message": (CHAT, {"model": "tiny", "messages": [{"role": "assistant", "content": "x"}]}, 400, "messages"),
    "to continue a question": (CHAT, chat_body(continue_final_message=True), 400, "messages"),
    "to continue and to begin": (
        CHAT,
        chat_body(continue_final_message=True, add_generation_prompt=True),
        400,
        "add_generation_prompt",
    ),
    "neither to continue nor to begin": (CHAT, chat_body(add_generation_prompt=False), 400, "add_generation_prompt"),
    "to continue nothing": (
        CHAT,
        {"model": "tiny", "messages": [{"role": "assistant", "content": "x"}], "continue_final_message": True},
        400,
        "messages",
    ),
    "a plan that continues": (
        CHAT,
        {
            **WITH_PLAN,
            "messages": [*WITH_PLAN["messages"], {"role": "assistant", "content": "x"}],
            "continue_final_message": True,
        },
        400,
        "continue_final_message",
    ),
    "a plan's end": (CHAT, {**WITH_PLAN, "ignore_eos": True}, 400, "ignore_eos"),
    "a repetition penalty": (TEXTS, {"model": "tiny", "prompt": "x", "repetition_penalty": 1.1}, 400, None),
    "a message that calls": (
        CHAT,
        {"model": "tiny", "messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
        400,
        "messages.0.tool_calls",
    ),
    "an unknown field of a message": (
        CHAT,
        {"model": "tiny", "messages": [{"role": "user", "content": "x", "image": "y"}]},
        400,
        "messages.0.image",
    ),
    "min_p": (CHAT, chat_body(min_p=1.1), 400, "min_p"),
    "top_k": (TEXTS, {"model": "tiny", "prompt": "x", "top_k": -2}, 400, "top_k"),
    "top_logprobs of the likeliest": (CHAT, chat_body(logprobs=True, top_logprobs=3, top_k=5), 400, "top_k"),
    "an image": (
        CHAT,
        {"model": "tiny", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        None,
    ),
    "tools": (CHAT, chat_body(tools=[{"type": "function"}]), 400, "tools"),
    "top_logprobs beyond their limit": (CHAT, chat_body(logprobs=True, top_logprobs=21), 400, "top_logprobs"),
    "top_logprobs alone": (CHAT, chat_body(top_logprobs=3), 400, "top_logprobs"),
    "top_logprobs of a plan": (CHAT, {**WITH_PLAN, "top_logprobs": 3}, 400, "logprobs"),
    "top_logprobs of a part": (CHAT, chat_body(logprobs=True, top_logprobs=3, top_p=0.9), 400, "top_p"),
    "top_logprobs of too much": (CHAT, chat_body(logprobs=True, top_logprobs=20, n=4), 400, "max_tokens"),
    "a penalty": (CHAT, chat_body(presence_penalty=0.5), 400, "presence_penalty"),
    "stop strings": (CHAT, chat_body(stop=["x"] * 17), 400, None),
    "an empty stop string": (CHAT, chat_body(stop=""), 400, None),
    "no room": (CHAT, chat_body(max_tokens=2048), 400, "max_tokens"),
    "no tokens": (CHAT, chat_body(max_tokens=0), 400, "max_tokens"),
    "a token beyond the vocabulary": (TEXTS, {"model": "tiny", "prompt": [5, 512]}, 400, "prompt"),
    "an empty prompt": (TEXTS, {"model": "tiny", "prompt": ""}, 400, "prompt"),
    "a prompt beyond the context": (TEXTS, {"model": "tiny", "prompt": [5] * 2048}, 400, "max_tokens"),
    "too many at once": (TEXTS, {"model": "tiny", "prompt": [[5]] * 33, "n": 2}, 400, "n"),
    "a plan for a text": (TEXTS, {"model": "tiny:best-4", "prompt": "x"}, 400, "plan"),
    "nothing to do": (TEXTS, {"model": "tiny", "prompt": "x", "max_tokens": 0}, 400, "max_tokens"),
    "an echo in a stream": (TEXTS, {"model": "tiny", "prompt": "x", "echo": True, "stream": True}, 400, "echo"),
    "logprobs beyond their limit": (TEXTS, {"model": "tiny", "prompt": "x", "logprobs": 21}, 400, "logprobs"),
    "fields that are meant for a client": (CHAT, chat_body(extra_body={"n": 2}), 400, "extra_body"),
    "a text beyond its limit": (TEXTS, {"model": "tiny", "prompt": "x" * (MAX_TEXT + 1)}, 400, None),
    "no such path": ("/v1/embeddings", {}, 404, None),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_served_is_refused_in_openais_shape(served: Served, what: str) -> None:
    path, body, status, param = REFUSED[what]
    got, reply, _ = served.ask(path, body)
    assert got == status, reply
    error = reply["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert len(error["message"]) <= 400
    if param is not None:
        assert error["param"] == param


def test_what_is_at_its_limit_is_served(served: Served) -> None:
    assert served.ask(CHAT, chat_body(n=MAX_SAMPLES, max_tokens=1))[0] == 200
    assert served.ask(CHAT, chat_body(temperature=2, stop=["q" * 64] * 16, max_tokens=1))[0] == 200
    assert served.ask(TEXTS, {"model": "tiny", "prompt": [5] * 2047, "max_tokens": 1})[0] == 200
    neutral = dict(presence_penalty=0, frequency_penalty=0.0, logit_bias={}, tools=[], user="me", store=False)
    neutral |= dict(extra_body={})
    assert served.ask(CHAT, chat_body(max_tokens=1, **neutral, response_format={"type": "text"}))[0] == 200


NEUTRAL: dict[str, Any] = dict(
    top_k=-1, min_p=0, top_p=1, repetition_penalty=1, length_penalty=1.0, best_of=1, n=1, min_tokens=0, ignore_eos=False,
    stop=[], stop_token_ids=[], presence_penalty=0, frequency_penalty=0.0, logit_bias={}, use_beam_search=False,
    include_stop_str_in_output=False, skip_special_tokens=True, spaces_between_special_tokens=True, echo=False,
    return_tokens_as_token_ids=False, metadata={"run": "7"}, user="me", service_tier="auto", stream=False,
    stream_options=None, guided_json=None, prompt_logprobs=None, tools=None, suffix=None, reasoning_effort=None,
)  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, chat_body(seed=7)), (TEXTS, {"model": "tiny", "prompt": "x", "seed": 7})]
)
def test_neutral_values_change_nothing_on_either_route(served: Served, path: str, body: Any) -> None:
    """Clients send what they know of OpenAI's and vLLM's fields; a field that is null is as if it were left out."""
    status, plain, _ = served.ask(path, {**body, "max_tokens": 5})
    status_too, reply, _ = served.ask(path, {**body, "max_tokens": 5, **NEUTRAL})
    assert (status, status_too) == (200, 200), reply
    assert reply["choices"] == plain["choices"]


def test_a_model_is_found_by_its_name(served: Served) -> None:
    status, one, _ = served.ask("/v1/models/tiny")
    assert status == 200 and one == served.ask("/v1/models")[1]["data"][0]
    assert (one["id"], one["object"], one["max_model_len"]) == ("tiny", "model", 2048)
    assert "arithmetic" in one["description"]
    assert served.ask("/v1/models/tiny:posterior-40:stop=posterior")[1]["id"] == "tiny:posterior-40:stop=posterior"
    status, reply, _ = served.ask("/v1/models/gpt-4")
    assert (status, reply["error"]["code"]) == (404, "model_not_found")
    assert served.ask("/v1/models/tiny:wieghted-4")[0] == 400


def test_a_body_that_is_no_json_has_no_field_to_name(served: Served) -> None:
    status, reply, _ = served.ask(CHAT, b"{bad")
    assert status == 400 and reply["error"]["param"] is None and "no JSON" in reply["error"]["message"]


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 20_000,
        b'{"model":"tiny","prompt":"x","temperature":NaN}', b'{"model":"tiny","prompt":"x","n":1e400}',
        b'{"model":"tiny","prompt":"x","n":' + b"9" * 10_000 + b"}", b'{"model":"tiny","prompt":"\\ud800"}',
        b'{"\\ud800":1}', b'{"model":"tiny\\u0000","prompt":"x"}',
    ],
)  # fmt: skip
def test_a_body_that_is_no_request_is_refused(served: Served, raw: bytes) -> None:
    status, reply, _ = served.ask(TEXTS, raw)
    assert status in (400, 404)
    assert reply["error"]["message"]


def test_a_body_beyond_its_limit_is_not_read(served: Served) -> None:
    status, reply, _ = served.ask(TEXTS, b"x" * 200_001)
    assert status == 413 and reply["error"]["code"] == "too_large"
    with socket.create_connection(
        ("127.0.0.1", served.port), timeout=10
    ) as one:  # announces a gigabyte and sends nothing
        one.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000000\r\n\r\n")
        assert b" 413 " in one.recv(100)
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as one:  # in chunks, without a length
        one.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(5):
            one.sendall(b"c350\r\n" + b"x" * 50_000 + b"\r\n")
        assert b" 413 " in one.recv(100)


# Keys and logs --------------------------------------------------------------------------------------------------------


def test_every_route_needs_the_key(model: Model) -> None:
    with serving(model, key="s3cret") as served:
        schema = served.ask("/openapi.json")[1]
        paths = {*schema["paths"], "/openapi.json", "/docs", "/nowhere", "/v1/chat/completions/", "//", "/health/"}
        assert {CHAT, TEXTS, "/v1/models", "/metrics", "/health"} <= paths
        for path in paths - {"/health"}:
            for headers in (
                {},
                {"authorization": "Bearer wrong"},
                {"authorization": "s3cret"},
                {"authorization": "Bearer "},
            ):
                for method in ("GET", "POST", "OPTIONS", "DELETE"):
                    status, reply, _ = served.ask(path, method=method, headers=headers)
                    assert (status, reply["error"]["code"]) == (401, "invalid_api_key"), (path, method)
        assert served.ask("/health", headers={})[0] == 200
        assert served.ask("/", headers={})[0] == 200  # the page has no secrets, and asks for the key
        assert served.ask("/v1/models")[0] == 200
        assert served.ask(CHAT, chat_body(max_tokens=2))[0] == 200


def test_a_host_that_others_can_reach_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TWOFOLD_API_KEY", raising=False)
    assert read_key(None, "127.0.0.1") is read_key(None, "::1") is read_key(None, "localhost") is None
    for host in ("0.0.0.0", "::", "10.0.0.7", "example.org"):
        with pytest.raises(ValueError, match="clients need a key"):
            read_key(None, host)
    (tmp_path / "key").write_text("from-file\n")
    assert read_key(tmp_path / "key", "0.0.0.0") == "from-file"
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match="holds no key"):
        read_key(tmp_path / "empty", "127.0.0.1")
    monkeypatch.setenv("TWOFOLD_API_KEY", "from-env")
    assert read_key(None, "0.0.0.0") == "from-env"


def test_neither_prompts_nor_keys_are_logged(
    model: Model, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds at any log level, and when the server fails with an error that contains a request's text."""
    with serving(model, key="canary-key") as served, caplog.at_level(logging.DEBUG):
        canary = {"model": "tiny", "messages": [{"role": "user", "content": "canary-prompt"}], "max_tokens": 3}
        assert served.ask(CHAT, canary)[0] == 200
        assert served.ask(CHAT, {**canary, "n": 0})[0] == 400
        assert served.ask(CHAT, canary, headers={"authorization": "Bearer canary-wrong"})[0] == 401

        def fail(*args: Any) -> None:
            raise RuntimeError(f"no good: {args}")

        monkeypatch.setattr(model.chat.__class__, "decode", fail)
        status, reply, _ = served.ask(CHAT, canary)
        assert status == 500 and reply["error"]["type"] == "server_error"
        stream = served.ask(CHAT, {**canary, "stream": True})[1]
        assert events(stream)[-1]["error"]["type"] == "server_error"
        monkeypatch.undo()
        assert served.ask(CHAT, canary)[0] == 200
    said = caplog.text + "".join(capfd.readouterr())
    assert "RuntimeError" in said and "POST /v1/chat/completions 200" in said
    assert "canary" not in said + json.dumps(reply) + stream


# Clients that leave, and overload -------------------------------------------------------------------------------------


PLANNED = chat_body("tiny:weighted-32", temperature=2, seed=1)  # at this temperature the samples are long


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [(TEXTS, {**SLOW, "n": 32}), (CHAT, PLANNED)], ids=["samples", "plan"])
def test_a_client_that_leaves_takes_its_work_with_it(served: Served, path: str, body: Any, stream: bool) -> None:
    threads = len(served.service._pool._threads)
    for _ in range(3):
        connection = served.open(path, {**body, "stream": stream})
        until(lambda: served.service.scheduler.running_rows == 32)
        (request,) = served.service.requests
        connection.close()
        assert until(lambda: not served.service.scheduler.running_rows and not served.service.requests) < 2
        assert request.state.cancelled.is_set()
    assert served.ask(CHAT, chat_body(max_tokens=2))[0] == 200
    assert len(served.service._pool._threads) <= threads + 2


def test_requests_beyond_the_queue_are_refused_at_once(model: Model) -> None:
    with serving(model, Limits(concurrent=1, queue=1)) as served:
        running = served.open(TEXTS, SLOW)
        until(lambda: served.service.scheduler.running_rows == 1)
        waiting = served.open(CHAT, chat_body(max_tokens=2))
        until(lambda: len(served.service.requests) == 2)
        status, reply, headers = served.ask(CHAT, chat_body(max_tokens=2))
        assert status == 429 and reply["error"]["type"] == "rate_limit_error" and int(headers["retry-after"]) >= 1
        assert "requests_waiting 1" in served.ask("/metrics")[1]
        running.close()  # the waiting request takes its place
        assert b" 200 " in waiting.recv(100)
        waiting.close()
        assert served.ask(CHAT, chat_body(max_tokens=2))[0] == 200


# Signals --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes() -> Iterator[list[tuple[subprocess.Popen[str], Served]]]:
    """Two server processes, with grace times of half a second and of a minute."""
    code = [sys.executable, "-m", "twofold.cli", "serve", "tiny", "--port", "0", "--grace"]
    pipes: dict[str, Any] = dict(stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(SRC)})
    started = [subprocess.Popen([*code, grace], **pipes) for grace in ("0.5", "60")]
    try:
        lines = [one.stdout.readline() for one in started if one.stdout]
        assert all(line.startswith("ready: tiny at http://127.0.0.1:") for line in lines), lines
        ports = [int(line.split("/v1")[0].rsplit(":")[-1]) for line in lines]
        yield [(one, Served(None, port, None)) for one, port in zip(started, ports, strict=True)]  # type: ignore[arg-type]
    finally:
        for one in started:
            one.kill()
            one.communicate()


def test_sigterm_lets_requests_end(processes: list[tuple[subprocess.Popen[str], Served]]) -> None:
    """Streams get their final events within the grace time, new requests get 503, and the process exits with 0."""
    one, served = processes[0]
    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(served.ask, TEXTS, {**SLOW, "stream": True, "seed": i}) for i in range(8)]
        until(lambda: "samples_running 8" in served.ask("/metrics")[1])
        one.send_signal(signal.SIGTERM)
        until(lambda: served.ask("/health")[0] == 503)
        status, reply, headers = served.ask(CHAT, chat_body())
        assert status == 503 and reply["error"]["code"] == "shutting_down" and "retry-after" in headers
        for stream in streams:
            status, text, _ = stream.result(timeout=10)
            last = events(text)[-1]
            assert status == 200 and last["choices"][0]["finish_reason"] == "length" and last["twofold"]["timed_out"]
    assert one.wait(timeout=5) == 0


def test_a_second_sigterm_ends_it_at_once(processes: list[tuple[subprocess.Popen[str], Served]]) -> None:
    one, served = processes[1]
    connection = served.open(TEXTS, {**SLOW, "n": 64})
    until(lambda: "samples_running 64" in served.ask("/metrics")[1])
    one.send_signal(signal.SIGTERM)
    until(lambda: served.ask("/health")[0] == 503)
    one.send_signal(signal.SIGTERM)
    one.wait(timeout=20)  # the grace time is 60 s
    assert connection.recv(1 << 16).startswith(b"HTTP/1.1 50")  # an error, not an answer
    connection.close()


def test_errors_of_the_command_line_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TWOFOLD_API_KEY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for options, words in (
            (["tiny", "--host", "0.0.0.0"], "need a key"),
            (["tiny", "--port", str(taken.getsockname()[1])], "Address already in use"),
            (["nothing-here"], "no such model"),
            (["tiny", "--concurrent", "0"], "--concurrent: must be at least 1, got 0"),
        ):
            assert main(["serve", *options]) == 2
            said = capsys.readouterr().err
            assert words in said and len(said.strip().splitlines()) == 1
