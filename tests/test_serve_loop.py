"""The scheduler, which serves many requests with one engine: each gets what it gets alone, and waits for no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.engines.native import NativeEngine
from twofold.models.io import load_model
from twofold.run import load
from twofold.serve.detokenize import Detokenizer, StopStrings
from twofold.serve.scheduler import Cancelled, RequestEngine, RequestState, Scheduler
from twofold.text.chat import Chat
from twofold.types import Completion, Sampling

PROMPTS = [[5, 17, 300, 42, 9], [8], [77, 78], list(range(100, 120)), [200, 3, 201], [9, 9, 9], [50], [60, 61]]
LONG = Sampling(n=2, max_tokens=800, seed=1)


@pytest.fixture(scope="module")
def module(tiny_model: Path) -> tuple[Any, Any]:
    return load_model(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def chat(module: tuple[Any, Any]) -> Chat:
    return Chat(module[1])


class Counting(NativeEngine):
    """The native engine, with a count of its steps and of the most samples in one step."""

    steps, most = 0, 0

    def step(self, runs: Any) -> None:
        self.steps += 1
        self.most = max(self.most, sum(len(run.tokens) for run in runs))
        super().step(runs)


@pytest.fixture
def engine(module: tuple[Any, Any]) -> Counting:
    return Counting(module[0], exact=True)


@pytest.fixture
def scheduler(engine: Counting) -> Iterator[Scheduler]:
    scheduler = Scheduler(engine)
    yield scheduler
    scheduler.close()


def state(chat: Chat, *stops: str, **more: Any) -> RequestState:
    return RequestState(StopStrings(stops, chat.decode), chat.yes_no_ids[0], 1024, **more)


def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.001)


def in_thread(request: RequestEngine, sampling: Sampling) -> Any:
    """Return the future of a generate call in another thread."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(request.generate, PROMPTS[:2], sampling)
    pool.shutdown(wait=False)
    return future


def test_every_request_gets_what_it_gets_alone(scheduler: Scheduler, engine: Counting, chat: Chat) -> None:
    """The results are bit for bit the same in exact mode, and take fewer steps than one request after the other."""
    plans = [Sampling(n=1 + i % 3, max_tokens=30 + i, seed=i, temperature=0.5 + i / 4) for i in range(8)]
    ready = threading.Barrier(8)

    def work(i: int) -> tuple[list[list[Completion]], list[list[float]]]:
        request = scheduler.request_engine(state(chat))
        ready.wait()
        done = request.generate([PROMPTS[i]], plans[i])
        return done, request.logprobs([[*PROMPTS[i], *done[0][0].tokens, 7]], [[8, 9]])

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    for i, (done, scored) in enumerate(found):
        alone = engine.session()
        assert done == alone.generate([PROMPTS[i]], plans[i])
        assert scored == alone.logprobs([[*PROMPTS[i], *done[0][0].tokens, 7]], [[8, 9]])
    assert engine.steps < 0.5 * sum(p.max_tokens for p in plans)


def test_a_judgement_reads_what_its_own_request_left(scheduler: Scheduler, chat: Chat) -> None:
    request, other = scheduler.request_engine(state(chat)), scheduler.request_engine(state(chat))
    (group,) = request.generate([PROMPTS[3]], Sampling(n=4, max_tokens=20))
    other.generate([PROMPTS[3]], Sampling(n=2, max_tokens=5, seed=3))
    before = request.session.usage.computed  # type: ignore[attr-defined]
    request.logprobs([[*PROMPTS[3], *c.tokens, 7, 8] for c in group], [[1]] * 4)
    assert request.session.usage.computed - before == 4 * 3  # type: ignore[attr-defined]


def test_a_cancelled_request_stops_at_once_and_the_others_continue(
    scheduler: Scheduler, engine: Counting, chat: Chat
) -> None:
    gone, stays = scheduler.request_engine(state(chat)), scheduler.request_engine(state(chat))
    leaving = in_thread(gone, LONG)
    until(lambda: bool(gone.progress) and len(gone.progress[0].tokens[0]) > 3)
    staying = in_thread(stays, Sampling(n=1, max_tokens=40))
    gone.state.cancelled.set()
    with pytest.raises(Cancelled):
        leaving.result(timeout=0.25)
    drawn = len(gone.progress[0].tokens[0])
    assert len(staying.result(timeout=5)[0][0].tokens) == 40
    assert len(gone.progress[0].tokens[0]) == drawn < 800
    until(lambda: scheduler.running_rows == 0)
    with pytest.raises(Cancelled):
        gone.logprobs([[1]], [[2]])


def test_an_engines_error_reaches_only_its_caller(scheduler: Scheduler, chat: Chat) -> None:
    with pytest.raises(ValueError, match="no tokens"):
        scheduler.request_engine(state(chat)).generate([[]], LONG)
    assert scheduler.request_engine(state(chat)).generate([], LONG) == []
    assert len(scheduler.request_engine(state(chat)).generate([[1]], Sampling(max_tokens=3))[0][0].tokens) == 3


def test_a_call_beyond_the_limits_is_refused(scheduler: Scheduler, chat: Chat) -> None:
    one = scheduler.request_engine(state(chat))
    with pytest.raises(ValueError, match="a prompt of 1024 tokens fills the context of 1024"):
        one.generate([[5] * 1024], Sampling())
    with pytest.raises(ValueError, match="3 x 342 samples in one call, more than 1024"):
        one.generate([[5]] * 3, Sampling(n=342))


def test_at_its_deadline_a_request_gets_what_there_is(scheduler: Scheduler, engine: Counting, chat: Chat) -> None:
    request = scheduler.request_engine(state(chat, deadline=time.monotonic() + 0.2))
    began = time.monotonic()
    (group, _) = request.generate(PROMPTS[:2], LONG)
    assert time.monotonic() - began < 5  # all 800 tokens take longer
    assert [len(c.tokens) for c in request.generate([[4]], LONG)[0]] == [1, 1]  # the strategy ends with what it has
    whole = engine.session().generate(PROMPTS[:1], LONG)[0]
    for c, w in zip(group, whole, strict=True):
        assert 1 < len(c.tokens) < 800 and c.finish == "length"
        assert c.tokens == w.tokens[: len(c.tokens)]


def test_samples_wait_for_rows_in_order_and_scores_do_not(engine: Counting, chat: Chat) -> None:
    scheduler = Scheduler(engine, max_rows=4)
    first, second, scored = (scheduler.request_engine(state(chat)) for _ in range(3))
    running = in_thread(first, LONG)  # 2 prompts x 2 samples
    until(lambda: bool(first.progress))
    waiting = in_thread(second, Sampling(max_tokens=3))
    assert scored.logprobs([[1, 2]], [[3]])
    assert not second.progress and not running.done()
    first.state.cancelled.set()
    assert [len(g[0].tokens) for g in waiting.result(timeout=5)] == [3, 3]
    assert engine.most <= 4
    scheduler.close()


def test_closing_cancels_everything(engine: Counting, chat: Chat) -> None:
    scheduler = Scheduler(engine)
    request = scheduler.request_engine(state(chat))
    running = in_thread(request, LONG)
    until(lambda: bool(request.progress))
    scheduler.close()
    with pytest.raises(Cancelled):
        running.result(timeout=1)
    with pytest.raises(Cancelled):
        request.generate([[1]], LONG)


def test_an_engine_that_fails_loses_its_runs_and_not_the_server(engine: Counting, chat: Chat) -> None:
    class Broken(Counting):
        def step(self, runs: Any) -> None:
            super().step(runs)
            if self.steps == 3:
                raise MemoryError("no room")

    scheduler = Scheduler(Broken(engine.model))
    with pytest.raises(MemoryError):
        scheduler.request_engine(state(chat)).generate([[1, 2]], LONG)
    assert len(scheduler.request_engine(state(chat)).generate([[1, 2]], Sampling(max_tokens=5))[0][0].tokens) == 5
    scheduler.close()


# Stop strings and text ------------------------------------------------------------------------------------------------


def test_a_stop_string_ends_each_sample_where_it_is_complete() -> None:
    model = load("tiny")
    scheduler = Scheduler(model.engine)
    prompt = model.chat.prompt(
        "Start with 9, 18 or 24. Multiply by 3. Subtract 8. The result is 46. What was the start?"
    )
    sampling = Sampling(n=6, max_tokens=40, stop=model.chat.stop, seed=2)
    (whole,) = model.engine.session().generate([prompt], sampling)
    request = scheduler.request_engine(state(model.chat, "\n54", "=27"))
    (group,) = request.generate([prompt], sampling)
    dropped = 0
    for c, w in zip(group, whole, strict=True):
        text = model.chat.decode(w.tokens)
        hits = [i for s in ("\n54", "=27") if (i := text.find(s)) >= 0]
        if hits:
            assert c.tokens == w.tokens[: len(c.tokens)] and c.logprobs == pytest.approx(
                w.logprobs[: len(c.tokens)], abs=1e-4
            )
            assert c.finish == "stop"
            assert model.chat.decode(c.tokens) == text[: min(hits) + 3]
            assert request.state.stops.cut(model.chat.decode(c.tokens)) == text[: min(hits)]
            dropped += len(request.progress[0].tokens[group.index(c)]) - len(c.tokens)
        else:
            assert c.tokens == w.tokens
    assert any(len(c.tokens) < len(w.tokens) for c, w in zip(group, whole, strict=True))
    assert request.discarded >= 0 and sum(len(r) for r in request.progress[0].tokens) == request.discarded + sum(
        len(c.tokens) for c in group
    )
    scheduler.close()


TEXTS = st.text(alphabet="ab \né🍎<end|", max_size=12)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), text=TEXTS, stops=st.lists(st.text(alphabet="ab \né", min_size=1, max_size=3), max_size=2))
def test_pieces_of_a_stream_join_to_the_text(module: Any, data: Any, text: str, stops: list[str]) -> None:
    """This holds for any split and any bytes: characters of several tokens, stop strings over several pieces."""
    chat = Chat(module[1])
    tokens = chat.encode(text)
    tokens += data.draw(st.lists(st.integers(4, 511), max_size=4))  # any bytes, including those that are no character
    reader = Detokenizer(StopStrings(tuple(stops), chat.decode))
    ends = sorted(data.draw(st.sets(st.integers(0, len(tokens)), max_size=8)))
    pieces = [reader.read(tokens[:end]) for end in ends]
    pieces.append(reader.read(tokens, final=True))
    assert "".join(pieces) == reader.stops.cut(chat.decode(tokens))
