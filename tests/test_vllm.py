"""The remote engine with vLLM itself (see ``vllm_process``)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from serving import PUZZLE, chat_body, events, serving, until
from vllm_process import VLLM, Running, running

from twofold.compute.judge import p_yes
from twofold.compute.rollout import draw
from twofold.run import Model, connect, load, shipped, solve_many
from twofold.types import Sampling

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not VLLM, reason="no vllm: make test-vllm, or set TWOFOLD_VLLM to its executable"),
]
PUZZLES = [PUZZLE, "Start with 47. Add 38. What is the result?", "Start with 3. Multiply by 5. What is the result?"]


@pytest.fixture(scope="module", params=["raw_logprobs", "processed_logprobs"])
def upstream(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """vLLM with the shipped model in single precision, once with either kind of log-probs."""
    log = tmp_path_factory.mktemp("vllm") / "log"
    with running(shipped(), log, "--max-model-len", "2048", "--logprobs-mode", request.param) as found:
        yield found


@pytest.fixture(scope="module")
def remote(upstream: Running) -> Iterator[Model]:
    found = connect(upstream.root + "/v1")
    yield found
    found.engine.close()


@pytest.fixture(scope="module")
def model() -> Model:
    return load("tiny")


def test_what_the_server_can_do_is_found_out(remote: Model, request: pytest.FixtureRequest) -> None:
    raw = "raw" in request.node.callspec.id
    engine: Any = remote.engine
    assert (engine.model, engine.context.tokens, engine.raw_logprobs, engine._can_force) == ("tiny", 2048, raw, raw)


def test_completions_and_their_log_probs(remote: Model, model: Model) -> None:
    prompts = [model.chat.prompt(p) for p in PUZZLES]
    greedy = Sampling(temperature=0, max_tokens=40, stop=model.chat.stop)
    for got, want in zip(remote.engine.generate(prompts, greedy), model.engine.generate(prompts, greedy), strict=True):
        assert (got[0].tokens, got[0].finish) == (want[0].tokens, want[0].finish)
        assert got[0].logprobs == pytest.approx(want[0].logprobs, abs=1e-3)
    hot = Sampling(4, 0.7, max_tokens=40, stop=model.chat.stop, seed=3)
    groups = remote.engine.generate(prompts, hot)
    assert groups[0] != remote.engine.generate(prompts[:1], Sampling(4, 0.7, max_tokens=40, stop=model.chat.stop))[0]
    temperature = 1.0 if remote.engine.raw_logprobs else 0.7  # type: ignore[union-attr]
    for prompt, group in zip(prompts, groups, strict=True):
        want_logprobs = model.engine.logprobs([prompt] * 4, [c.tokens for c in group], temperature)
        for c, logprobs in zip(group, want_logprobs, strict=True):
            assert c.logprobs == pytest.approx(logprobs, abs=1e-3)
            assert (c.finish == "stop") == (c.tokens[-1] in model.chat.stop)


def test_scores_and_verdicts(remote: Model, model: Model) -> None:
    prompts = [model.chat.prompt(p) for p in PUZZLES]
    texts = [[40, 41, 42], [77], []]
    got, want = (m.engine.logprobs(prompts, texts) for m in (remote, model))
    for a, b in zip(got, want, strict=True):
        assert a == pytest.approx(b, abs=1e-3)
    everyone = [r for g in draw(remote.engine, remote.chat, PUZZLES, Sampling(16, max_tokens=40)) for r in g]
    verdicts = [p_yes(m.engine, m.chat, everyone) for m in (remote, model)]
    assert verdicts[0] == pytest.approx(verdicts[1], abs=1e-3)


def test_plans(remote: Model, model: Model) -> None:
    for plan in ("weighted-4:temperature=0", "weighted-2:make=beam,width=2,temperature=0"):
        for a, b in zip(solve_many(remote, PUZZLES, plan), solve_many(model, PUZZLES, plan), strict=True):
            assert (a.answer, a.answers) == (b.answer, b.answers)
            assert a.confidence == pytest.approx(b.confidence, abs=1e-3)
    (s,) = solve_many(remote, [PUZZLE], "posterior-16:stop=posterior,threshold=0.6")
    assert s.answer in s.answers and s.cost.verified > 0


def test_a_server_in_front_of_it(remote: Model, upstream: Running) -> None:
    """Text arrives while it is sampled, and a client that leaves ends the work in vLLM."""
    with serving(remote) as front:
        chunks = events(front.ask("/v1/chat/completions", chat_body(temperature=0, max_tokens=40, stream=True))[1])
        texts = [c["choices"][0]["delta"].get("content") for c in chunks]
        whole = front.ask("/v1/chat/completions", chat_body(temperature=0, max_tokens=40))[1]
        assert "".join(filter(None, texts)) == whole["choices"][0]["message"]["content"]
        assert sum(map(bool, texts)) > 5
        slow = {"model": "tiny", "prompt": [5, 9, 40], "max_tokens": 1500, "ignore_eos": True, "temperature": 2, "n": 4}
        connection = front.open("/v1/completions", {**slow, "stream": True})
        until(lambda: upstream.gauge("num_requests_running") == 4)
        connection.close()
        until(lambda: upstream.gauge("num_requests_running") == 0, seconds=2)
        began = time.monotonic()
        cut = front.ask("/v1/completions", {**slow, "timeout": 1.0})[1]
        assert cut["twofold"]["timed_out"] and time.monotonic() - began < 3
        assert 4 <= cut["usage"]["completion_tokens"] < 4 * 1500


def test_a_verdict_reads_the_cache_of_its_solution(remote: Model, upstream: Running) -> None:
    """For a forced verdict vLLM computes only what is not in whole blocks of its prefix cache."""
    if not remote.engine.raw_logprobs:  # type: ignore[union-attr]
        pytest.skip("an echo reads no cache")
    sampling = Sampling(8, 2.0, max_tokens=500)
    everyone = draw(remote.engine, remote.chat, [PUZZLE], sampling)[0]
    before = upstream.gauge("prefix_cache_hits_total"), upstream.gauge("prefix_cache_queries_total")
    p_yes(remote.engine, remote.chat, everyone)
    after = upstream.gauge("prefix_cache_hits_total"), upstream.gauge("prefix_cache_queries_total")
    assert (after[0] - before[0]) / (after[1] - before[1]) > 0.7
