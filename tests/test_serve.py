"""The server as its clients see it: replies equal what the library computes, and their costs are right."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import openai
import pytest
from serving import PUZZLE, Served, chat_body, events, exact, serving

from twofold.compute.plan import Plan, parse
from twofold.compute.solve import solve
from twofold.run import Model, same
from twofold.serve.jobs import Choice
from twofold.serve.render import ChatFormat
from twofold.serve.schema import ChatRequest
from twofold.text.extract import final_answer
from twofold.text.prompts import JUDGE
from twofold.types import Completion, Sampling

MESSAGES: Any = [{"role": "user", "content": PUZZLE}]


@pytest.fixture(scope="module")
def model() -> Model:
    return exact()


@pytest.fixture(scope="module")
def served(model: Model) -> Iterator[Served]:
    with serving(model) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as one:
        yield one


def sampled(model: Model, prompt: list[int] | None = None, **options: Any) -> list[Completion]:
    """Return what the engine samples when it is called directly."""
    sampling = Sampling(**{"stop": model.chat.stop, "max_tokens": 40, "seed": 7} | options)
    return model.engine.session().generate([prompt or model.chat.prompt(PUZZLE)], sampling)[0]


# Plain sampling -------------------------------------------------------------------------------------------------------


def test_chat_is_what_the_engine_samples(client: openai.OpenAI, model: Model) -> None:
    reply = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        n=3,
        seed=7,
        max_completion_tokens=40,
        temperature=0.8,
        top_p=0.9,
        logprobs=True,
    )
    want = sampled(model, n=3, temperature=0.8, top_p=0.9)
    assert [c.message.content for c in reply.choices] == [model.chat.decode(c.tokens) for c in want]
    assert [c.finish_reason for c in reply.choices] == [c.finish for c in want]
    found = [[t.logprob for t in c.logprobs.content] for c in reply.choices if c.logprobs and c.logprobs.content]
    assert found == [c.logprobs for c in want]
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == len(model.chat.prompt(PUZZLE))
    assert reply.usage.completion_tokens == sum(len(c.tokens) for c in want)


@pytest.mark.parametrize("stop", [None, ["\n54", "=27"]])
def test_a_stream_joins_to_the_whole_reply(client: openai.OpenAI, stop: Any) -> None:
    asked: dict[str, Any] = dict(model="tiny", messages=MESSAGES, n=4, seed=7, max_tokens=40, stop=stop)
    reply = client.chat.completions.create(**asked)
    texts, ends, usage = ["", "", "", ""], {}, None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason
        usage = chunk.usage
    assert texts == [c.message.content for c in reply.choices]
    assert [ends[i] for i in range(4)] == [c.finish_reason for c in reply.choices]
    assert usage is not None and reply.usage is not None and usage.prompt_tokens == reply.usage.prompt_tokens
    if stop:
        assert not any(s in text for s in stop for text in texts)
        assert len({len(t) for t in texts}) > 1


def test_text_arrives_while_it_is_sampled(client: openai.OpenAI) -> None:
    """It comes in many chunks, each with little of it, not all at the end."""
    parts = [
        chunk.choices[0].delta.content
        for chunk in client.chat.completions.create(
            model="tiny", messages=MESSAGES, seed=7, max_tokens=40, temperature=0, stream=True
        )
        if chunk.choices and chunk.choices[0].delta.content
    ]
    assert len(parts) > 5 and max(map(len, parts)) < 12


def test_without_a_seed_every_request_draws_other_samples(client: openai.OpenAI) -> None:
    replies = [client.chat.completions.create(model="tiny", messages=MESSAGES, n=4, max_tokens=30) for _ in range(2)]
    assert replies[0].choices != replies[1].choices


def test_a_conversation_goes_through_the_template(client: openai.OpenAI, model: Model) -> None:
    messages: Any = [
        {"role": "system", "content": "Be <|end|> brief."},
        {"role": "user", "content": "Start with 1. Add 1."},
        {"role": "assistant", "content": "1+1=2\n\\boxed{2}"},
        {"role": "user", "content": [{"type": "text", "text": "Start with 2. "}, {"type": "text", "text": "Add 2."}]},
    ]
    reply = client.chat.completions.create(model="tiny", messages=messages, seed=7, max_tokens=20)
    turns = [(m["role"], m["content"]) for m in messages[:-1]]
    prompt = model.chat.within(turns).prompt("Start with 2. Add 2.")
    assert prompt.count(model.chat.stop[0]) == 4  # one per message: the literal in the first is text
    assert reply.choices[0].message.content == model.chat.decode(sampled(model, prompt, max_tokens=20)[0].tokens)
    assert reply.usage is not None and reply.usage.prompt_tokens == len(prompt)


@pytest.mark.parametrize("model_name", ["tiny", "tiny:weighted-4"])
def test_a_reply_is_a_message_of_the_next_request(client: openai.OpenAI, model: Model, model_name: str) -> None:
    """The most ordinary thing a client does: as the object that came back, as all of its fields, and as other servers have it."""
    reply = client.chat.completions.create(model=model_name, messages=MESSAGES, seed=7, max_tokens=40)
    said = reply.choices[0].message
    more = {"type": "message", "tool_calls": [], "reasoning_content": None}
    asked: list[Any] = []
    for message in (said, said.model_dump(), {"role": "assistant", "content": said.content, **more}):
        messages: Any = [*MESSAGES, message, {"role": "user", "content": "Are you sure?"}]
        asked.append(client.chat.completions.create(model="tiny", messages=messages, seed=7, max_tokens=8))
    prompt = model.chat.within([("user", PUZZLE), ("assistant", str(said.content))]).prompt("Are you sure?")
    want = model.chat.decode(sampled(model, prompt, max_tokens=8)[0].tokens)
    assert [again.choices[0].message.content for again in asked] == [want] * 3


def test_a_reply_can_be_begun(client: openai.OpenAI, model: Model) -> None:
    """The continuation of a greedy solution's beginning is its rest."""
    whole = sampled(model, temperature=0, max_tokens=40)[0].tokens
    text = model.chat.decode(whole)
    begun = text[: text.index("\n") + 3]
    messages: Any = [*MESSAGES, {"role": "assistant", "content": begun}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    asked: dict[str, Any] = dict(model="tiny", messages=messages, temperature=0, max_tokens=40, extra_body=extra)
    reply = client.chat.completions.create(**asked)
    assert reply.choices[0].message.content == text.removeprefix(begun)
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == len(model.chat.prompt(PUZZLE)) + len(model.chat.encode(begun))
    chunks = [c.choices[0].delta.content or "" for c in client.chat.completions.create(**asked, stream=True)]
    assert "".join(chunks) == text.removeprefix(begun)


@pytest.mark.parametrize("filters", [{"top_k": 3}, {"min_p": 0.2}, {"top_k": 5, "min_p": 0.1, "top_p": 0.8}])
def test_filters_are_those_of_the_engine(client: openai.OpenAI, model: Model, filters: dict[str, Any]) -> None:
    extra = {name: value for name, value in filters.items() if name != "top_p"}
    reply = client.chat.completions.create(
        model="tiny", messages=MESSAGES, n=3, seed=7, max_tokens=20, temperature=2, top_p=filters.get("top_p", 1),
        logprobs=True, extra_body=extra,
    )  # fmt: skip
    want = sampled(model, n=3, temperature=2, max_tokens=20, **filters)
    found = [[t.logprob for t in c.logprobs.content] for c in reply.choices if c.logprobs and c.logprobs.content]
    assert found == [c.logprobs for c in want]
    assert found != [c.logprobs for c in sampled(model, n=3, temperature=2, max_tokens=20)]
    body = chat_body("tiny:majority-4", seed=3, max_tokens=20, temperature=2, **filters)
    plan = replace(parse("majority-4"), seed=3, max_tokens=20, temperature=2.0, **filters)
    assert client.post("/chat/completions", body=body, cast_to=object)["choices"][0]["candidates"] == [  # type: ignore[index]
        {"answer": a, "score": None} for a in solve(model.engine.session(), model.chat, [PUZZLE], plan, same)[0].answers
    ]


# Text completions -----------------------------------------------------------------------------------------------------


def test_completions_of_text_and_of_tokens(client: openai.OpenAI, model: Model) -> None:
    tokens = model.chat.prompt(PUZZLE)
    done = client.completions.create(model="tiny", prompt=[tokens, tokens[:5]], n=2, seed=7, max_tokens=12, logprobs=0)
    want = [*sampled(model, tokens, n=2, max_tokens=12), *sampled(model, tokens[:5], n=2, max_tokens=12)]
    assert [c.text for c in done.choices] == [model.chat.decode(c.tokens) for c in want]
    assert [c.logprobs.token_logprobs for c in done.choices if c.logprobs] == [c.logprobs for c in want]
    text = client.completions.create(model="tiny", prompt="Start with", seed=7, max_tokens=12)
    assert text.choices[0].text == model.chat.decode(
        sampled(model, model.chat.encode("Start with"), max_tokens=12)[0].tokens
    )


def test_echo_scores_the_prompt(client: openai.OpenAI, model: Model) -> None:
    tokens = model.chat.prompt(PUZZLE)
    done = client.completions.create(model="tiny", prompt=tokens, max_tokens=0, echo=True, logprobs=0)
    (want,) = model.engine.session().logprobs([tokens[:1]], [tokens[1:]])
    scored = done.choices[0].logprobs
    assert scored is not None and scored.token_logprobs is not None and scored.token_logprobs[0] is None
    assert scored.token_logprobs[1:] == want
    assert done.choices[0].text == model.chat.decode(tokens)
    longer = client.completions.create(model="tiny", prompt=tokens, max_tokens=6, echo=True, logprobs=0, seed=7)
    assert longer.choices[0].text == model.chat.decode([*tokens, *sampled(model, tokens, max_tokens=6)[0].tokens])


def test_the_likeliest_tokens_of_a_reply(client: openai.OpenAI, model: Model) -> None:
    """There are as many as were asked for, likeliest first; a token has the same log-prob as itself and among the likeliest.

    The server scores a reply on the cache that its samples left. A session that does the same gives the same bits. Other ways
    to the same log-probs multiply matrices of other shapes and differ by rounding: up to 1.2e-5 between decoding and scoring,
    and 4e-5 among the likeliest tokens, over 40 prompts in float32.
    """
    asked: dict[str, Any] = dict(model="tiny", messages=MESSAGES, seed=7, max_tokens=12, temperature=0.8, logprobs=True)
    reply = client.chat.completions.create(**asked, top_logprobs=3)
    session, prompt = model.engine.session(), model.chat.prompt(PUZZLE)
    ((want,),) = session.generate([prompt], Sampling(stop=model.chat.stop, max_tokens=12, seed=7, temperature=0.8))
    ((logprobs, tops),) = session.scored([prompt], [want.tokens], 0.8, 3)
    content = reply.choices[0].logprobs and reply.choices[0].logprobs.content
    assert content is not None and len(content) == len(want.tokens)
    assert [c.logprob for c in content] == logprobs == pytest.approx(want.logprobs, abs=1e-4)
    for entry, top in zip(content, tops, strict=True):
        assert [x.token for x in entry.top_logprobs] == [model.tokenizer.decode([t]) for t in top]
        assert [x.logprob for x in entry.top_logprobs] == [*top.values()]
        assert {x.logprob for x in entry.top_logprobs if x.token == entry.token} <= {entry.logprob}
    chunks = client.chat.completions.create(**asked, top_logprobs=3, stream=True)
    streamed = [c.choices[0].logprobs.content or [] for c in chunks if c.choices[0].logprobs]
    assert [entry for part in streamed for entry in part] == content


def test_the_likeliest_tokens_of_a_prompt(client: openai.OpenAI, model: Model) -> None:
    """Evaluation harnesses score texts with this request: is each token the likeliest in its place?"""
    greedy = sampled(model, temperature=0, max_tokens=8)[0].tokens
    start = model.chat.prompt(PUZZLE)
    other = [t if i != 3 else model.chat.yes_no_ids[0] for i, t in enumerate(greedy)]
    done = client.completions.create(
        model="tiny", prompt=[[*start, *greedy], [*start, *other]], max_tokens=1, echo=True, logprobs=1, temperature=0
    )
    found = []
    for choice in done.choices:
        scored = choice.logprobs
        assert scored is not None and scored.token_logprobs and scored.top_logprobs
        assert scored.top_logprobs[0] is None and len(scored.top_logprobs) == len(scored.token_logprobs)
        pairs = [*zip(scored.token_logprobs, scored.top_logprobs, strict=True)][len(start) : -1]
        assert all(x in top.values() for x, top in pairs)  # the token itself is always among them
        found.append([x == max(top.values()) for x, top in pairs])
    assert found[0] == [True] * 8
    assert found[1][:4] == [True, True, True, False]


def test_offsets_count_characters_and_bytes_are_the_tokens_own(client: openai.OpenAI, model: Model) -> None:
    """As OpenAI has it: the tokens of one character begin where it does, and their names are their bytes.

    The shipped tokenizer writes "é" as two tokens and "🍎" as four.
    """
    text = "aé 🍎b"
    assert len(model.chat.encode(text)) == 9
    done = client.completions.create(model="tiny", prompt=text, max_tokens=0, echo=True, logprobs=1)
    scored = done.choices[0].logprobs
    assert scored is not None and scored.tokens is not None and scored.text_offset is not None
    assert scored.text_offset == [0, 1, 1, 2, 3, 3, 3, 3, 4]
    assert scored.tokens == ["a", r"bytes:\xc3", r"bytes:\xa9", " ", *(rf"bytes:\x{b:02x}" for b in "🍎".encode()), "b"]
    asked: dict[str, Any] = dict(model="tiny", prompt=text, max_tokens=8, seed=7, logprobs=0, temperature=2)
    plain, echoed = client.completions.create(**asked), client.completions.create(**asked, echo=True)
    first, second = plain.choices[0], echoed.choices[0]
    assert first.logprobs and second.logprobs and first.logprobs.text_offset and second.logprobs.text_offset
    assert first.logprobs.text_offset == second.logprobs.text_offset[9:] and first.logprobs.text_offset[0] == len(text)
    streamed: list[int] = []
    for chunk in client.completions.create(**asked, stream=True):
        streamed += (chunk.choices[0].logprobs and chunk.choices[0].logprobs.text_offset) or []
    assert streamed == first.logprobs.text_offset


def test_bytes_of_a_chats_tokens_join_to_its_text(model: Model) -> None:
    """A part of a character is named by its bytes, as at OpenAI; a control token adds no bytes."""
    chat = model.chat
    tokens = [*chat.encode("é5"), chat.stop[0]]
    body = ChatRequest.model_validate(chat_body(logprobs=True))
    choice = Choice("é5", "stop", tokens, [-0.5] * 4, [{}] * 4)
    scored = ChatFormat(body, chat, has_plan=False).logprobs(choice)
    assert scored is not None
    assert [entry["token"] for entry in scored["content"]] == [r"\xc3", r"\xa9", "5", "<|end|>"]
    assert [entry["bytes"] for entry in scored["content"]] == [[0xC3], [0xA9], [0x35], []]


def test_stop_tokens(client: openai.OpenAI, model: Model) -> None:
    """Completions end at ``stop_token_ids`` and, unless ``ignore_eos``, at the tokenizer's own end, as in vLLM."""
    tokens = model.chat.prompt(PUZZLE)
    dot = model.chat.encode("=", tags=True)[0]
    extra = {"stop_token_ids": [dot], "ignore_eos": True, "return_tokens_as_token_ids": True}
    done = client.completions.create(model="tiny", prompt=tokens, max_tokens=40, logprobs=0, seed=7, extra_body=extra)
    want = sampled(model, tokens, stop=(dot,))[0]
    assert want.finish == "stop"
    assert done.choices[0].logprobs is not None
    assert done.choices[0].logprobs.tokens == [f"token_id:{t}" for t in want.tokens]


# Plans ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["majority", "best", "weighted"])
def test_a_plan_is_what_solve_gives(client: openai.OpenAI, model: Model, rule: Any) -> None:
    reply = client.chat.completions.create(model=f"tiny:{rule}-8", messages=MESSAGES, seed=3, max_tokens=48)
    want = solve(model.engine.session(), model.chat, [PUZZLE], Plan(8, rule, max_tokens=48, seed=3), same)[0]
    choice: Any = reply.choices[0]
    assert (choice.answer, choice.confidence, choice.votes) == (want.answer, want.confidence, want.votes)
    assert choice.message.content == want.text and choice.finish_reason == "stop"


@pytest.mark.parametrize(
    "spec",
    ["majority-16:stop=adaptive,threshold=0.9", "weighted-8:stop=lengths,caps=[16,40]", "borda-6", "weighted-4:make=beam",
     "weighted-4:make=correction", "posterior-8:stop=posterior,threshold=0.7", "weighted-6:judge=written,tokens=24",
     "best-3:judge=steps,votes=2,tokens=48"],
)  # fmt: skip
def test_every_kind_of_plan_is_what_solve_gives(served: Served, model: Model, spec: str) -> None:
    status, reply, _ = served.ask("/v1/chat/completions", chat_body(f"tiny:{spec}", seed=3, max_tokens=48))
    assert status == 200, reply
    want = solve(model.engine.session(), model.chat, [PUZZLE], replace(parse(spec), seed=3, max_tokens=48), same)[0]
    (choice,) = reply["choices"]
    assert (choice["answer"], choice["confidence"], choice["votes"]) == (want.answer, want.confidence, want.votes)
    assert [(c["answer"], c["score"]) for c in choice["candidates"]] == [*zip(want.answers, want.scores, strict=True)]
    cost = reply["twofold"]["cost"]
    assert {**cost, "seconds": 0} == {**asdict(want.cost), "seconds": 0}


def test_a_plan_whose_samples_were_all_cut_ends_by_its_length(served: Served) -> None:
    """No sample reaches an answer in 3 tokens. The text of the second plan was cut after its answer, the third's ended."""

    def finish(plan: str, limit: int) -> Any:
        status, reply, _ = served.ask("/v1/chat/completions", chat_body(plan, seed=3, max_tokens=limit))
        assert status == 200
        return reply["choices"][0]["answer"], reply["choices"][0]["finish_reason"]

    assert finish("tiny:weighted-4", 3) == (None, "length")
    assert finish("tiny:weighted-4", 48)[1] == "stop"


def test_usage_counts_every_token(client: openai.OpenAI, model: Model) -> None:
    reply: Any = client.chat.completions.create(model="tiny:weighted-8", messages=MESSAGES, seed=3, max_tokens=48)
    completions = sampled(model, n=8, seed=3, max_tokens=48)
    generated = sum(len(c.tokens) for c in completions)
    start = model.chat.prompt(PUZZLE)
    judged = [[*start, *c.tokens] for c in completions if final_answer(model.chat.decode(c.tokens)) is not None]
    verified = sum(len(model.chat.ask(s, JUDGE)) - len(s) + 1 for s in judged)  # the question, and the verdict
    assert 0 < len(judged) < 8  # a sample without an answer is not judged
    cost = reply.twofold["cost"]
    assert (cost["prompt"], cost["generated"], cost["verified"]) == (
        len(model.chat.prompt(PUZZLE)),
        generated,
        verified,
    )
    assert reply.usage.completion_tokens == generated + verified
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_plan_in_the_body(client: openai.OpenAI) -> None:
    by_name = client.chat.completions.create(model="tiny:majority-4", messages=MESSAGES, seed=3, max_tokens=48)
    as_text = client.chat.completions.create(
        model="tiny", messages=MESSAGES, seed=3, max_tokens=48, extra_body={"plan": "majority-4"}
    )
    plan = {"n": 4, "rule": "majority", "seed": 3, "max_tokens": 48, "stop": "fixed"}
    as_object = client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body={"plan": plan})
    first: Any = by_name.choices[0]
    for other in (as_text, as_object):
        choice: Any = other.choices[0]
        assert (choice.answer, choice.votes) == (first.answer, first.votes)


def test_a_stream_of_a_plan_reports_its_progress(served: Served) -> None:
    body = chat_body("tiny:weighted-6", seed=3, max_tokens=48, stream=True, progress="samples")
    status, whole, _ = served.ask("/v1/chat/completions", {**body, "stream": False, "progress": None})
    assert status == 200
    status, text, headers = served.ask("/v1/chat/completions", body)
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    chunks = events(text)
    reports = [c["twofold"]["progress"] for c in chunks if "progress" in c.get("twofold", {})]
    for count in ("tokens", "finished", "judged"):
        numbers = [r[count] for r in reports]
        assert numbers == sorted(numbers)
    answered = sum(c["answer"] is not None for c in whole["choices"][0]["candidates"])
    assert reports[-1]["samples"] == reports[-1]["finished"] == 6
    assert reports[-1]["judged"] == answered == 5  # the one without an answer is not judged
    assert reports[-1]["tokens"] == whole["twofold"]["cost"]["generated"]
    assert len(reports) > 2
    texts, verdicts = [""] * 6, [0.0] * 6
    for news in (news for r in reports for news in r["news"]):
        texts[news["sample"]] += news.get("text", "")
        verdicts[news["sample"]] = news.get("verdict", verdicts[news["sample"]])
    content = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    assert content == whole["choices"][0]["message"]["content"]
    assert content in texts
    assert sum(verdicts) == pytest.approx(sum(whole["choices"][0]["votes"].values()))
    last = chunks[-1]
    assert last["choices"][0]["answer"] == whole["choices"][0]["answer"]
    assert last["twofold"]["cost"]["verified"] == whole["twofold"]["cost"]["verified"]


def test_a_timeout_answers_with_what_there_is(served: Served) -> None:
    body = chat_body("tiny:weighted-8", timeout=0.1, max_tokens=1500, temperature=2.0, seed=1)
    status, reply, _ = served.ask("/v1/chat/completions", body)
    assert status == 200 and reply["twofold"]["timed_out"] is True
    assert reply["twofold"]["cost"]["generated"] < 8 * 1500
    assert reply["choices"][0]["finish_reason"] == "length"


# Requests at once -----------------------------------------------------------------------------------------------------


def test_requests_at_once_never_see_each_other(served: Served, model: Model) -> None:
    """Each of 32 requests at once, of different kinds, gets bit for bit the reply that it gets alone."""

    def body(i: int) -> dict[str, Any]:
        messages = [{"role": "system", "content": f"canary {i}"}, {"role": "user", "content": f"{PUZZLE} {i}"}]
        kind = ["tiny", "tiny:weighted-3", "tiny:majority-2", "tiny"][i % 4]
        more = {"n": 2, "logprobs": True} if kind == "tiny" else {}
        return {"model": kind, "messages": messages, "seed": i, "temperature": 0.5 + i / 40, "max_tokens": 12, **more}

    def ask(i: int) -> Any:
        status, reply, _ = served.ask("/v1/chat/completions", body(i))
        assert status == 200, reply
        return reply["choices"], reply["usage"]

    alone = [ask(i) for i in range(32)]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(ask, range(32))) == alone


def test_models_health_and_metrics(client: openai.OpenAI, served: Served) -> None:
    assert [m.id for m in client.models.list()][:2] == ["tiny", "tiny:majority-16"]
    assert served.ask("/health")[:2] == (200, {"status": "ok"})
    served.ask("/v1/completions", {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True})
    before = counters(served)
    served.ask("/v1/completions", {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True})
    after = counters(served)
    grown = {name: after[name] - value for name, value in before.items() if after[name] != value}
    assert grown['twofold_tokens_total{kind="generated"}'] == 4
    assert grown['twofold_tokens_total{kind="prompt"}'] == 3
    assert grown['twofold_requests_total{path="/v1/completions",status="200"}'] == 1


def counters(served: Served) -> dict[str, float]:
    lines = [line for line in served.ask("/metrics")[1].splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}
