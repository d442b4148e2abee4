"""The remote engine: a server gives what the model itself gives, and every failure of it is reported."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import flaky
import openai
import pytest
from flaky import Proxy, proxied
from serving import PUZZLE, Served, chat_body, events, exact, serving, until

from twofold.cli import main
from twofold.compute.judge import Judging, p_yes
from twofold.compute.rollout import draw
from twofold.engines import wire
from twofold.engines.base import UpstreamError
from twofold.evals.pools import read_header, read_pools
from twofold.run import Eval, Model, connect, evaluate, service, solve_many
from twofold.serve import scheduler
from twofold.types import Completion, Context, Sampling

PUZZLES = [PUZZLE, "Start with 47. Add 38. What is the result?", "Start with 3. Multiply by 5. What is the result?"]
SLOW = {"prompt": [5, 9, 40], "max_tokens": 1500, "ignore_eos": True}
"""At temperature 2 this takes long."""


@pytest.fixture(scope="module")
def model() -> Model:
    return exact()


@pytest.fixture(scope="module")
def upstream(model: Model) -> Iterator[Served]:
    with serving(model) as running:
        yield running


@pytest.fixture(scope="module")
def remote(upstream: Served) -> Iterator[Model]:
    found = connect(upstream.url)
    yield found
    found.engine.close()


@pytest.fixture(scope="module")
def front(remote: Model) -> Iterator[Served]:
    with serving(remote) as running:
        yield running


@pytest.fixture
def proxy(upstream: Served) -> Iterator[Proxy]:
    with proxied(upstream.port) as between:
        yield between


@pytest.fixture
def through(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    """The model through a proxy that does not fail yet."""
    monkeypatch.setattr(wire, "BACKOFF", 0.01)
    found = connect(proxy.url)
    proxy.seen.clear()
    yield found
    found.engine.close()


def prompts(model: Model) -> list[list[int]]:
    return [model.chat.prompt(p) for p in PUZZLES]


# The same as the model itself -----------------------------------------------------------------------------------------


def test_greedy_completions_are_the_models_own(remote: Model, model: Model) -> None:
    sampling = Sampling(temperature=0, max_tokens=40, stop=model.chat.stop)
    assert remote.engine.generate(prompts(model), sampling) == model.engine.session().generate(prompts(model), sampling)


def test_samples_come_with_the_log_probs_they_were_drawn_with(remote: Model, model: Model) -> None:
    sampling = Sampling(3, 1.5, max_tokens=30, stop=model.chat.stop, seed=5)
    groups = remote.engine.generate(prompts(model), sampling)
    reported: list[tuple[tuple[int, int], Completion]] = []
    again = remote.engine.generate(prompts(model), sampling, lambda i, j, c: reported.append(((i, j), c)))
    assert groups == again  # the seed is the same
    assert len(reported) == 3 * len(groups)
    assert dict(reported) == {(i, j): c for i, group in enumerate(groups) for j, c in enumerate(group)}
    assert groups != remote.engine.generate(prompts(model), replace(sampling, seed=6))
    assert len({tuple(c.tokens) for c in groups[0]}) == 3
    for prompt, group in zip(prompts(model), groups, strict=True):
        want = model.engine.session().logprobs([prompt] * 3, [c.tokens for c in group], 1.5)
        for c, logprobs in zip(group, want, strict=True):
            assert c.logprobs == pytest.approx(logprobs, abs=1e-4) and c.sampled == [True] * len(c.tokens)
            assert (c.finish == "stop") == (c.tokens[-1] in model.chat.stop) and len(c.tokens) <= 30


def test_equal_prompts_of_a_call_and_near_seeds_draw_apart(remote: Model, model: Model) -> None:
    """A server counts up from the seed, one per sample: seed 1 must not give the samples of seed 0, shifted by one."""
    sampling = Sampling(2, 1.5, max_tokens=30, stop=model.chat.stop)
    twice = remote.engine.generate([prompts(model)[0]] * 2, sampling)
    other = remote.engine.generate(prompts(model)[:1], replace(sampling, seed=1))
    texts = [tuple(c.tokens) for group in (*twice, *other) for c in group]
    assert len(set(texts)) == 6


def test_scores_are_the_models_own(remote: Model, model: Model) -> None:
    texts = [[40, 41, 42], [77], [], [9] * 30]
    starts = [*prompts(model), [7]]
    want = model.engine.session().logprobs(starts, texts)
    for got, own in zip(remote.engine.logprobs(starts, texts), want, strict=True):
        assert got == pytest.approx(own, abs=1e-5)


def test_verdicts_are_the_models_own(remote: Model, model: Model) -> None:
    sampling = Sampling(8, max_tokens=24, stop=model.chat.stop)
    everyone = [r for g in draw(remote.engine, remote.chat, PUZZLES[:2], sampling) for r in g]
    got = p_yes(remote.engine, remote.chat, everyone)
    assert got == pytest.approx(p_yes(model.engine.session(), model.chat, everyone), abs=1e-5)
    assert len(got) == 16 and max(got) - min(got) > 0.05


@pytest.mark.parametrize("plan", ["weighted-4", "weighted-2:make=beam,width=2"])
def test_plans_find_what_they_find_with_the_model(remote: Model, model: Model, plan: str) -> None:
    plan += ",temperature=0" if ":" in plan else ":temperature=0"
    got, want = solve_many(remote, PUZZLES[:2], plan), solve_many(model, PUZZLES[:2], plan)
    for a, b in zip(got, want, strict=True):
        assert (a.answer, a.text, a.answers) == (b.answer, b.text, b.answers)
        assert a.confidence == pytest.approx(b.confidence, abs=1e-4)
        assert replace(a.cost, seconds=0) == replace(b.cost, seconds=0)


def test_the_posterior_stops_through_a_server(remote: Model) -> None:
    (s,) = solve_many(remote, [PUZZLE], "posterior-8:stop=posterior,threshold=0.6")
    assert s.answer in s.answers and 1 <= s.samples <= 8 and s.cost.verified > 0
    assert all(score is not None for score, answer in zip(s.scores, s.answers, strict=True) if answer is not None)


# What is refused -----------------------------------------------------------------------------------------------------


def test_what_a_server_cannot_honour_is_refused(remote: Model) -> None:
    with pytest.raises(ValueError, match="returns no confidences"):
        remote.engine.generate([[5]], Sampling(trace_top=20))
    with pytest.raises(ValueError, match=r"temperature 1, not 0\.5"):
        remote.engine.logprobs([[5]], [[6]], 0.5)
    with pytest.raises(ValueError, match="prompt 1 of 2 has no tokens"):
        remote.engine.generate([[5], []], Sampling())
    with pytest.raises(ValueError, match="1 prompts but 2 continuations"):
        remote.engine.logprobs([[5]], [[6], [7]])
    with pytest.raises(ValueError, match="returns no confidences"):
        solve_many(remote, PUZZLES, "deepconf-4")


def test_another_model_or_tokenizer_is_noticed_at_the_start(upstream: Served, tiny_model: Path) -> None:
    with pytest.raises(ValueError, match=r"serves tiny, .*: not large"):
        connect(upstream.url, serves="large")
    with pytest.raises(ValueError, match="--upstream-model"):
        connect(upstream.url, tiny_model)
    with pytest.raises(ValueError, match="tokenizer is another"):
        connect(upstream.url, tiny_model, serves="tiny")
    with pytest.raises(ValueError, match="a URL such as"):
        connect("localhost:8000/v1")


@pytest.mark.parametrize("lacks", ["logprobs", "names", "ids", "models"])
def test_a_server_that_lacks_what_is_needed_is_noticed_at_the_start(
    proxy: Proxy, lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "BACKOFF", 0.01)

    def answer(handler: flaky.Handler, body: dict[str, Any]) -> flaky.Reply | None:
        if lacks == "ids" and not isinstance(body["prompt"], str):
            return flaky.error(400, "prompt: Input should be a valid string")
        body.pop({"logprobs": "logprobs", "names": "return_tokens_as_token_ids"}.get(lacks, ""), None)
        return None

    proxy.answer = answer
    url = proxy.url + "/no" if lacks == "models" else proxy.url
    words = r"ends in /v1\) \(HTTP 404\)" if lacks == "models" else "prompts of token ids, logprobs with echo"
    with pytest.raises(UpstreamError, match=words):
        connect(url)


def test_a_server_that_does_not_say_its_context_is_refused_as_upstream(remote: Model) -> None:
    engine = remote.engine
    known, engine.context = engine.context, Context(None, "")  # type: ignore[misc]
    try:
        with pytest.raises(ValueError, match="max_model_len of tiny"):
            service(remote)
    finally:
        engine.context = known  # type: ignore[misc]
    assert known.tokens == 2048


def test_the_key_goes_with_every_request(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(model, key="sesame") as locked:
        with pytest.raises(UpstreamError, match="set TWOFOLD_UPSTREAM_KEY"):
            connect(locked.url)
        monkeypatch.setenv("TWOFOLD_UPSTREAM_KEY", "sesame")
        found = connect(locked.url)
        assert len(found.engine.generate([[5]], Sampling(max_tokens=2))[0][0].tokens) <= 2
        found.engine.close()


# vLLM's dialect -------------------------------------------------------------------------------------------------------


def test_a_verdict_is_forced_where_the_server_reports_raw_log_probs(proxy: Proxy, model: Model) -> None:
    """vLLM reads no cached prefix for an echo. So the token is the only one allowed, and comes with its log-prob among all."""
    proxy.answer = flaky.vllm(model.engine)  # type: ignore[arg-type]
    found = connect(proxy.url)
    proxy.seen.clear()
    starts = prompts(model)
    got = found.engine.logprobs(starts, [[40], [41], [42, 43]])
    want = model.engine.session().logprobs(starts, [[40], [41], [42, 43]])
    assert [x for row in got for x in row] == pytest.approx([x for row in want for x in row], abs=1e-5)
    assert sum("echo" in body for body in proxy.seen) == 1
    assert all(body["top_k"] == -1 and body["repetition_penalty"] == 1 for body in proxy.seen)
    with serving(found) as raw:
        asked = {"model": "tiny", "prompt": [5, 9], "logprobs": 0, "max_tokens": 4}
        assert raw.ask("/v1/completions", asked)[0] == 200
        status, reply, _ = raw.ask("/v1/completions", {**asked, "temperature": 0.5})
        assert status == 400 and reply["error"]["param"] == "logprobs"
        assert raw.ask("/v1/completions", {**asked, "temperature": 0.5, "logprobs": None})[0] == 200
    found.engine.close()


# Failures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_request_is_repeated_while_the_server_is_busy(
    through: Model, proxy: Proxy, model: Model, status: int
) -> None:
    proxy.answer = flaky.times(3, flaky.error(status))
    sampling = Sampling(temperature=0, max_tokens=10)
    assert through.engine.generate([[5, 6]], sampling) == model.engine.session().generate([[5, 6]], sampling)
    assert len(proxy.seen) == 4


def test_a_server_may_say_how_long_to_wait(through: Model, proxy: Proxy) -> None:
    proxy.answer = flaky.times(1, flaky.error(429, **{"retry-after": "0.4"}))
    began = time.monotonic()
    through.engine.logprobs([[5]], [[6]])
    assert 0.4 <= time.monotonic() - began < 2


FAULTS: dict[str, tuple[Any, int, str, int]] = {
    "busy for good": (flaky.times(99, flaky.error(429, "full")), 429, r"too busy \(HTTP 429, attempt 5\): full", 5),
    "broken for good": (flaky.times(99, flaky.error(500, "boom")), 500, r"failed \(HTTP 500, attempt 5\): boom", 5),
    "refused": (flaky.times(99, flaky.error(400, "too long")), 400, r"refused a request \(HTTP 400\): too long", 1),
    "no JSON": (flaky.times(9, (200, {}, b"<html>")), 502, "a reply that cannot be read", 1),
    "another JSON": (flaky.times(9, (200, {}, b"[1, 2]")), 502, "a reply that cannot be read", 1),
    "no choices": (flaky.times(9, (200, {}, b'{"choices": []}')), 502, "completion of 0 tokens by None", 1),
    "cut off": (flaky.cut, 503, r"no answer .*attempt 5", 5),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_says_what_failed(through: Model, proxy: Proxy, fault: str) -> None:
    proxy.answer, status, words, requests = FAULTS[fault]
    with pytest.raises(UpstreamError, match=words) as failure:
        through.engine.generate([[5, 6]], Sampling(temperature=0, max_tokens=10))
    assert failure.value.status == status and len(proxy.seen) == requests


def test_a_silent_server_is_given_up(through: Model, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    through.engine.wire._client.timeout = wire.httpx2.Timeout(0.2, pool=None)  # type: ignore[union-attr]
    monkeypatch.setattr(through.engine.wire, "_silence", 0.2)  # type: ignore[union-attr]
    proxy.answer = flaky.hang
    with pytest.raises(UpstreamError, match=r"was silent for 0\.2 s") as failure:
        through.engine.generate([[5, 6]], Sampling(max_tokens=10))
    assert failure.value.status == 504 and len(proxy.seen) == 1


def test_one_failure_ends_the_call_and_its_other_requests(through: Model, proxy: Proxy, upstream: Served) -> None:
    def answer(handler: flaky.Handler, body: dict[str, Any]) -> flaky.Reply | None:
        if body["prompt"] == [6]:
            until(lambda: upstream.service.scheduler.running_rows == 1)
            return flaky.error(400, "not this one")
        return None

    proxy.answer = answer
    with pytest.raises(UpstreamError, match="not this one"):
        through.engine.generate([[5], [6]], Sampling(temperature=2, max_tokens=300))
    until(lambda: not upstream.service.requests, seconds=30)  # the proxy reads its whole reply


def test_the_command_line_reports_a_failure_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "BACKOFF", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    assert main(["solve", "tiny", PUZZLE, "--upstream", url]) == 2
    said = capsys.readouterr().err
    assert f"no answer from the upstream {url}" in said and "attempt 5" in said and len(said.splitlines()) == 1
    assert main(["solve", "tiny", PUZZLE, "--upstream-model", "x"]) == 2
    assert "give both" in capsys.readouterr().err


def test_solve_and_eval(upstream: Served, remote: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", "tiny", PUZZLE, "--plan", "weighted-2:temperature=0", "--upstream", upstream.url]) == 0
    (want,) = solve_many(remote, [PUZZLE], "weighted-2:temperature=0")
    assert f"answer {want.answer} " in capsys.readouterr().out
    out = evaluate(remote, "sums", Eval(problems=2, n=2, max_tokens=24), out=tmp_path / "e")
    header = read_header(out)
    assert (header.model, header.engine) == ("tiny", "RemoteEngine")
    for pool in read_pools(out / "pools.jsonl"):
        assert all(score is not None and 0 < score < 1 for score in pool.scores) and pool.tokens
    with pytest.raises(ValueError, match="an upstream and a fleet have none"):
        evaluate(remote, "sums", Eval(judge=Judging("head")), out=tmp_path / "b")


# In front of a server -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(front: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=front.url, api_key="none", max_retries=0) as one:
        yield one


def test_a_server_in_front_says_what_the_one_behind_says(front: Served, upstream: Served) -> None:
    asked = chat_body(temperature=0, max_tokens=40, logprobs=True)
    replies = [one.ask("/v1/chat/completions", asked)[1] for one in (front, upstream)]
    assert replies[0]["choices"] == replies[1]["choices"]
    assert replies[0]["usage"] == replies[1]["usage"]
    echo = {"model": "tiny", "prompt": PUZZLE, "echo": True, "logprobs": 0, "max_tokens": 0}
    scored = [one.ask("/v1/completions", echo)[1]["choices"][0]["logprobs"] for one in (front, upstream)]
    assert scored[0]["tokens"] == scored[1]["tokens"] and scored[0]["token_logprobs"][0] is None
    assert scored[0]["token_logprobs"][1:] == pytest.approx(scored[1]["token_logprobs"][1:])
    status, reply, _ = front.ask("/v1/completions", {**echo, "temperature": 0.5})
    assert status == 400 and reply["error"]["param"] == "temperature"


@pytest.mark.parametrize("plan", ["weighted-4", "posterior-6:stop=posterior"])
def test_plans_in_front_of_a_server(front: Served, upstream: Served, plan: str) -> None:
    asked = chat_body("tiny:" + plan, temperature=0, progress="samples", stream=True)
    found = []
    for one in (front, upstream):
        chunks = events(one.ask("/v1/chat/completions", asked)[1])
        choice = chunks[-1]["choices"][0]
        found.append((choice["answer"], [c["answer"] for c in choice["candidates"]]))
        news = [n for c in chunks for n in c.get("twofold", {}).get("progress", {}).get("news", [])]
        assert sum("verdict" in n for n in news) == len(choice["candidates"])
        text = "".join(n.get("text", "") for n in news if (n["batch"], n["sample"]) == (0, 0))
        assert choice["answer"] in text
    assert found[0] == found[1]


def test_text_arrives_while_the_server_behind_samples(client: openai.OpenAI, front: Served) -> None:
    asked: dict[str, Any] = dict(model="tiny", messages=[{"role": "user", "content": PUZZLE}], temperature=0, n=2)
    whole = client.chat.completions.create(**asked, logprobs=True)
    parts: list[list[str]] = [[], []]
    logprobs: list[list[float]] = [[], []]
    for chunk in client.chat.completions.create(**asked, logprobs=True, stream=True):
        for choice in chunk.choices:
            parts[choice.index].append(choice.delta.content or "")
            if choice.logprobs and choice.logprobs.content:
                logprobs[choice.index] += [t.logprob for t in choice.logprobs.content]
    assert ["".join(p) for p in parts] == [c.message.content for c in whole.choices]
    assert logprobs == [[t.logprob for t in c.logprobs.content] for c in whole.choices if c.logprobs]  # type: ignore[union-attr]
    assert min(sum(map(bool, p)) for p in parts) > 5


def test_stop_strings_are_ours(front: Served, upstream: Served) -> None:
    asked = chat_body(temperature=0, max_tokens=60, stop=["\n54", "=27"])
    texts = [one.ask("/v1/chat/completions", asked)[1]["choices"][0]["message"]["content"] for one in (front, upstream)]
    assert texts[0] == texts[1] == "18*3=54"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_client_that_leaves_ends_the_work_of_the_server_behind(front: Served, upstream: Served, path: str) -> None:
    body = {"model": "tiny", **SLOW, "n": 16} if path == "/v1/completions" else chat_body("tiny:weighted-16")
    behind = upstream.service.scheduler
    for _ in range(3):
        connection = front.open(path, {**body, "temperature": 2, "stream": True})
        until(lambda: behind.running_rows == 16)
        connection.close()
        assert until(lambda: not behind.running_rows and not front.service.requests) < 0.5
    until(lambda: not upstream.service.requests)
    assert front.ask("/v1/chat/completions", chat_body(max_tokens=2))[0] == 200


def test_at_its_deadline_a_request_gets_what_there_is(front: Served, upstream: Served) -> None:
    began = time.monotonic()
    asked = {"model": "tiny", **SLOW, "temperature": 2, "n": 4, "timeout": 0.5, "logprobs": 0}
    status, reply, _ = front.ask("/v1/completions", asked)
    assert status == 200 and time.monotonic() - began < 2 and reply["twofold"]["timed_out"]
    for choice in reply["choices"]:
        assert choice["finish_reason"] == "length" and 0 < len(choice["logprobs"]["tokens"]) < 1500
    until(lambda: not upstream.service.requests)


def test_many_at_once_do_not_wait_for_one_another(front: Served) -> None:
    """Short requests, which sample and judge, end while a long one is running."""
    slow = front.open("/v1/completions", {"model": "tiny", **SLOW, "temperature": 2})
    until(lambda: front.service.scheduler.running_rows == 1)
    with ThreadPoolExecutor(8) as pool:
        asked = chat_body("tiny:weighted-4", temperature=0)
        replies = list(pool.map(lambda _: front.ask("/v1/chat/completions", asked), range(6)))
    assert front.service.scheduler.running_rows == 1
    assert {status for status, _, _ in replies} == {200}
    assert len({str(reply["choices"]) for _, reply, _ in replies}) == 1
    slow.close()


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (flaky.times(99, flaky.error(429)), 503, "cannot be reached or is too busy"),
        (flaky.times(99, flaky.error(500)), 502, "failed on this request (status 500)"),
        (flaky.times(99, (200, {}, b"<html>")), 502, "failed on this request (status 502)"),
        (flaky.cut, 502, ""),
    ],
)
def test_a_failure_behind_is_the_gateways_error(
    through: Model, proxy: Proxy, fault: Callable[..., Any], status: int, words: str
) -> None:
    with serving(through) as front:
        proxy.answer = fault
        for body in (chat_body("tiny:weighted-4"), chat_body(max_tokens=4)):
            got, reply, _ = front.ask("/v1/chat/completions", body)
            assert 502 <= got <= 503 and words in reply["error"]["message"] and "127.0.0.1" not in str(reply)
            assert got == status or fault is flaky.cut
        last = events(front.ask("/v1/chat/completions", chat_body(max_tokens=4, stream=True))[1])[-1]
        assert words in last["error"]["message"]
        proxy.answer = lambda handler, body: None
        assert front.ask("/v1/chat/completions", chat_body(max_tokens=4))[0] == 200


def test_a_silent_server_behind_is_a_timeout(through: Model, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "OVERTIME", 0.2)
    with serving(through) as front:
        proxy.answer = flaky.hang
        status, reply, _ = front.ask("/v1/chat/completions", chat_body("tiny:weighted-4", timeout=0.1))
        assert status == 504 and "did not answer in time" in reply["error"]["message"]
        until(lambda: not front.service.requests)


def test_a_server_that_dies_fails_what_it_was_doing_and_no_more(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "BACKOFF", 0.01)
    with serving(model) as dying:
        found = connect(dying.url)
        with serving(found) as front:
            asked = {"model": "tiny", **SLOW, "temperature": 2}
            got: list[Any] = []
            waiting = threading.Thread(target=lambda: got.append(front.ask("/v1/completions", asked)))
            waiting.start()
            until(lambda: dying.service.scheduler.running_rows == 1)
            dying.service.close()  # its running request ends in an error event
            waiting.join(timeout=10)
            assert got[0][0] in (502, 503) and "upstream server" in got[0][1]["error"]["message"]
            assert front.ask("/health")[0] == 200 and not front.service.requests
        found.engine.close()
