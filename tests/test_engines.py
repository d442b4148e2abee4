"""One suite for every engine: what is sampled, scored and reused. The oracle is a full forward pass per text."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import transformers
from oracle import Oracle
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM

from twofold.engines.base import Engine
from twofold.engines.native import NativeEngine
from twofold.engines.sampling import draw, uniforms
from twofold.models import attention
from twofold.models.attention import Packing
from twofold.models.decoder import Decoder
from twofold.models.install import install
from twofold.models.io import load_model
from twofold.models.kv import DEEPEST, KV
from twofold.models.logprobs import token_logprobs
from twofold.types import COLDEST, Completion, Sampling

PROMPTS = [[5, 17, 300, 42, 9], [8], [77, 78], list(range(100, 120)), [200, 3, 201]]
MANY_STOPS = tuple(range(0, 512, 12))  # about one token in twelve ends a rollout
ROLLOUT = Sampling(n=3, max_tokens=10, stop=MANY_STOPS, seed=4)
SHORT = Sampling(n=2, max_tokens=5, stop=MANY_STOPS, seed=4)


TRACING = ["native", "static", "exact", "oracle"]  # these give confidences
APART = {
    "vllm": "vllm",
    "fleet": "ray",
}  # engine -> a package that the tests need not have: make test-vllm, make test-fleet
ENGINES = [*TRACING, *[kind for kind, package in APART.items() if find_spec(package)]]


@dataclass
class Pair:
    """The same weights twice: a model that ``transformers`` runs, and one prepared by ``install``."""

    plain: Any
    ours: Any

    @cached_property
    def vllm(self) -> Engine:
        from twofold.engines.vllm import VllmEngine

        return VllmEngine(self.ours, kv_gib=0.1, eager=True)

    @cached_property
    def fleet(self) -> Engine:
        from twofold.engines.fleet import FleetEngine

        return FleetEngine(self.ours, workers=2, cpus=0.5)

    def engine(self, kind: str) -> Engine:
        if kind in APART:
            return getattr(self, kind)
        if kind == "oracle":
            return Oracle(copy.deepcopy(self.plain))
        engine = NativeEngine(self.ours, exact=kind == "exact")
        engine.static = kind == "static"  # else on CUDA devices alone
        return engine


@pytest.fixture(scope="module", params=["tiny_model", "tiny_qwen"])
def pair(request: pytest.FixtureRequest) -> Pair:
    folder = request.getfixturevalue(request.param)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Pair(plain, load_model(folder, device="cpu")[0])


@pytest.fixture(params=ENGINES)
def engine(pair: Pair, request: pytest.FixtureRequest) -> Engine:
    return pair.engine(request.param)


@pytest.fixture(params=TRACING)
def tracing(pair: Pair, request: pytest.FixtureRequest) -> Engine:
    return pair.engine(request.param)


@pytest.fixture(params=["native", "static"])
def native(pair: Pair, request: pytest.FixtureRequest) -> NativeEngine:
    engine = pair.engine(request.param)
    assert isinstance(engine, NativeEngine)
    return engine


@torch.inference_mode()
def full_forward(
    model: Any, prompt: Sequence[int], tokens: Sequence[int], temperature: float = 1.0, top_p: float = 1.0
) -> list[float]:
    """Return each token's log-prob from one pass over the whole text, with the nucleus found token by token."""
    logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].double() / temperature
    out = []
    for row, token in zip(logits.softmax(-1), tokens, strict=True):
        nucleus, mass = [], 0.0
        for i in row.argsort(descending=True).tolist():
            nucleus.append(i)
            mass += float(row[i])
            if mass >= top_p:
                break
        assert token in nucleus
        out.append(float((row[token] / row[nucleus].sum()).log()))
    return out


def flat(groups: list[list[Completion]]) -> list[Completion]:
    return [c for group in groups for c in group]


def tokens_of(groups: list[list[Completion]]) -> list[list[list[int]]]:
    return [[c.tokens for c in group] for group in groups]


def logprobs_of(groups: list[list[Completion]]) -> list[float]:
    return [x for c in flat(groups) for x in c.logprobs]


def near(numbers: Any) -> Any:
    """Allow fp32 rounding. The wide random weights amplify 1e-7 to 2e-5 with AVX-512 products, and to 5.4e-5 with AVX2."""
    return pytest.approx(numbers, abs=1e-4, rel=0)


# What is sampled ------------------------------------------------------------------------------------------------------


def test_greedy_is_that_of_transformers(pair: Pair, engine: Engine) -> None:
    done = engine.generate(PROMPTS, Sampling(temperature=0, max_tokens=6))
    for prompt, (completion,) in zip(PROMPTS, done, strict=True):
        ids = torch.tensor([prompt])
        want = pair.plain.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert completion.tokens == want[0, len(prompt) :].tolist()
        assert completion.logprobs == near(full_forward(pair.plain, prompt, completion.tokens))


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.3, 0.7)])
def test_logprobs_are_those_of_the_distribution_sampled_from(
    pair: Pair, engine: Engine, temperature: float, top_p: float
) -> None:
    done = engine.generate(PROMPTS, replace(SHORT, temperature=temperature, top_p=top_p))
    for prompt, group in zip(PROMPTS, done, strict=True):
        assert len(group) == 2
        for c in group:
            assert c.sampled == [True] * len(c.tokens)
            assert c.logprobs == near(full_forward(pair.plain, prompt, c.tokens, temperature, top_p))


def test_filters_are_the_engines(pair: Pair, engine: Engine) -> None:
    """With one token left there is one way to draw, and it has probability 1."""
    greedy = engine.generate(PROMPTS, replace(SHORT, n=1, temperature=0))
    for only in ({"top_k": 1}, {"min_p": 1.0}):
        done = engine.generate(PROMPTS, replace(SHORT, n=1, **only))
        assert tokens_of(done) == tokens_of(greedy)
        assert set(logprobs_of(done)) == {0.0}


def test_engines_draw_the_same_tokens(pair: Pair) -> None:
    first, *others = (pair.engine(kind).generate(PROMPTS, ROLLOUT) for kind in ("native", "static", "exact", "oracle"))
    for other in others:
        assert tokens_of(other) == tokens_of(first)
        assert logprobs_of(other) == near(logprobs_of(first))


def test_the_stop_token_is_kept_and_last(engine: Engine) -> None:
    done = flat(engine.generate(PROMPTS, ROLLOUT))
    for c in done:
        assert 1 <= len(c.tokens) == len(c.logprobs) == len(c.sampled) <= 10
        assert not set(c.tokens[:-1]) & set(MANY_STOPS)
        assert (c.finish == "stop") == (c.tokens[-1] in MANY_STOPS)
        assert c.finish == "stop" or len(c.tokens) == 10
    assert {c.finish for c in done} == {"stop", "length"}


def test_a_completion_of_one_token(engine: Engine) -> None:
    (c,) = flat(engine.generate([[7, 8]], Sampling(max_tokens=1)))
    assert len(c.tokens) == len(c.logprobs) == 1


def test_samples_of_one_token_can_be_asked_about(pair: Pair, native: NativeEngine) -> None:
    """They leave a cache without a token of its own; equal samples read one row, so a fork copies it."""
    (group,) = native.generate([PROMPTS[0]], Sampling(n=4, max_tokens=1))
    asked = [[*PROMPTS[0], *c.tokens, 7] for c in group]
    for prompt, scores in zip(asked, native.logprobs(asked, [[8, 9]] * 4), strict=True):
        assert scores == near(full_forward(pair.plain, prompt, [8, 9]))


def test_a_cache_grows_with_its_samples(pair: Pair, native: NativeEngine) -> None:
    """It grows twice beyond its first memory, with and without a fork, and its memory follows the tokens, not the limit."""
    for n in (1, 2):
        (group,) = native.generate([PROMPTS[0]], Sampling(n=n, max_tokens=150, temperature=0.9))
        for c in group:
            assert c.logprobs == near(full_forward(pair.plain, PROMPTS[0], c.tokens, 0.9))
        run = native.start([PROMPTS[0]], Sampling(n=n, max_tokens=900))
        native.step([run])
        native.step([run])
        assert run.decodings[0].kv.keys[0].shape[2] <= 64


def test_every_completion_is_reported_once(engine: Engine) -> None:
    reported: list[tuple[tuple[int, int], Completion]] = []
    groups = engine.generate(PROMPTS, ROLLOUT, lambda i, j, completion: reported.append(((i, j), completion)))
    assert len(reported) == len(PROMPTS) * ROLLOUT.n
    assert dict(reported) == {(i, j): c for i, group in enumerate(groups) for j, c in enumerate(group)}


def test_a_completion_is_reported_when_it_ends(pair: Pair) -> None:
    """When a completion of k tokens is reported, no sample has run more than k; a sample's last token is never run."""
    native = NativeEngine(pair.ours)
    reported: list[tuple[int, int]] = []
    sampling = replace(ROLLOUT, n=8)
    (group,) = native.generate(
        PROMPTS[:1], sampling, lambda i, j, c: reported.append((len(c.tokens), native.usage.computed))
    )
    assert len({size for size, _ in reported}) > 2
    for size, computed in reported:
        assert computed == len(PROMPTS[0]) + sum(min(size, len(c.tokens) - 1) for c in group)


def test_seeds(engine: Engine) -> None:
    first = engine.generate(PROMPTS, SHORT)
    assert tokens_of(engine.generate(PROMPTS, SHORT)) == tokens_of(first)
    other = engine.generate(PROMPTS, replace(SHORT, seed=5))
    assert all(a != b for a, b in zip(tokens_of(other), tokens_of(first), strict=True))


def test_samples_of_a_group_and_of_a_repeated_prompt_differ(engine: Engine) -> None:
    groups = engine.generate([PROMPTS[0]] * 3, replace(SHORT, stop=()))
    assert len({tuple(c.tokens) for c in flat(groups)}) == 6


def test_neither_order_nor_company_matters(engine: Engine) -> None:
    together = tokens_of(engine.generate(PROMPTS, SHORT))
    assert tokens_of(engine.generate(PROMPTS[::-1], SHORT)) == together[::-1]
    assert [tokens_of(engine.generate([p], SHORT))[0] for p in PROMPTS] == together


def test_exact_mode_gives_the_same_bits_in_any_company(pair: Pair) -> None:
    def fresh(prompts: list[list[int]]) -> list[list[Completion]]:
        return pair.engine("exact").generate(prompts, ROLLOUT)

    together = fresh(PROMPTS)
    assert fresh(PROMPTS[::-1]) == together[::-1]
    assert [fresh([p])[0] for p in PROMPTS] == together
    continuations = [c.tokens for c in (group[0] for group in together)]
    scores = pair.engine("exact").logprobs(PROMPTS, continuations)
    assert pair.engine("exact").logprobs(PROMPTS[::-1], continuations[::-1]) == scores[::-1]
    alone = [pair.engine("exact").logprobs([p], [c])[0] for p, c in zip(PROMPTS, continuations, strict=True)]
    assert alone == scores


@pytest.mark.parametrize("max_rows", [16, 1024])
def test_retired_rows_leave_the_others_as_they_were(pair: Pair, max_rows: int) -> None:
    """Rows that finish at many different steps are swapped after the rest; each result is that of its prompt alone."""
    sampling = Sampling(n=8, max_tokens=30, stop=MANY_STOPS, seed=2)
    done = NativeEngine(pair.ours, max_rows=max_rows).generate(PROMPTS, sampling)
    assert len({len(c.tokens) for c in flat(done)}) >= 10
    alone = [NativeEngine(pair.ours).generate([p], sampling)[0] for p in PROMPTS]
    assert tokens_of(done) == tokens_of(alone)
    assert logprobs_of(done) == near(logprobs_of(alone))


def test_calls_taken_token_by_token_in_company_are_calls_alone(pair: Pair) -> None:
    """Three calls of two sessions begin at different times with different settings, and share one forward pass per token."""
    engine = NativeEngine(pair.ours)
    one, two = engine.session(), engine.session()
    settings = [ROLLOUT, Sampling(n=1, max_tokens=7, temperature=0), Sampling(n=2, max_tokens=5, top_p=0.8, seed=3)]
    runs = [one.start(PROMPTS[:2], settings[0])]
    engine.step(runs)
    assert [len(c.tokens) for c in flat(runs[0].results)] == [1] * 6
    runs.append(two.start(PROMPTS[2:4], settings[1]))
    engine.step(runs)
    runs.append(one.session().start(PROMPTS[4:], settings[2]))
    passes = 0
    while not all(run.done for run in runs):
        engine.step(runs)
        passes += 1
    assert passes <= 8  # the longest had eight tokens left
    for run, prompts, sampling in zip(runs, (PROMPTS[:2], PROMPTS[2:4], PROMPTS[4:]), settings, strict=True):
        alone = NativeEngine(pair.ours).generate(prompts, sampling)
        assert tokens_of(run.results) == tokens_of(alone)
        assert logprobs_of(run.results) == near(logprobs_of(alone))
    text = [*PROMPTS[0], *runs[0].results[0][1].tokens, 400]
    assert spent(one, lambda: one.logprobs([text], [[50]]))[1] == 2, "its session kept the cache"
    assert spent(two, lambda: two.logprobs([text], [[50]]))[1] == len(text), "and shares it with no other"


def stepped(engine: NativeEngine, runs: list[Any], each: Any = lambda: None) -> None:
    """Advance the runs to their ends, and do ``each`` after every step."""
    while not all(run.done for run in runs):
        engine.step(runs)
        each()


LENGTHY = [[7, 8, *range(60, 130)], [5, 6], [9, *range(20, 57)], list(range(200, 216)), [300, 301]]


@pytest.mark.parametrize("n", [1, 3])
def test_prompts_run_in_chunks_give_what_whole_ones_give(pair: Pair, n: int) -> None:
    """A step has 16 tokens, so a prompt of 72 runs in nine chunks of 8 and short ones run together."""
    sampling = replace(ROLLOUT, n=n, temperature=0.8)
    engine = NativeEngine(pair.ours, step_tokens=16)
    session = engine.session()
    run = session.start(LENGTHY, sampling)
    stepped(engine, [run])
    alone = NativeEngine(pair.ours).generate(LENGTHY, sampling)
    assert tokens_of(run.results) == tokens_of(alone)
    assert logprobs_of(run.results) == near(logprobs_of(alone))
    for prompt, group in zip(LENGTHY, run.results, strict=True):
        assert group[0].logprobs == near(full_forward(pair.plain, prompt, group[0].tokens, 0.8))
    asked = [[*p, *c.tokens, 400, 401] for p, group in zip(LENGTHY, run.results, strict=True) for c in group]
    scores = session.score(asked, [[50]] * len(asked), 1.0, 0)
    stepped(engine, [scores])
    want = NativeEngine(pair.ours).logprobs(asked, [[50]] * len(asked))
    assert [x for logprobs, _ in scores.results for x in logprobs] == near([x for row in want for x in row])
    assert session.usage.reused > sum(map(len, LENGTHY)), "it read the caches"


def test_texts_scored_in_chunks_are_scored_whole(pair: Pair) -> None:
    """The chunks end within a prompt, at its end, and within a continuation, which two of the texts share."""
    engine = NativeEngine(pair.ours, step_tokens=16)
    prompts = [LENGTHY[0], LENGTHY[0], LENGTHY[2][:8], [5], [4, 4]]
    continuations = [LENGTHY[2], [*LENGTHY[2][:-1], 99], list(range(100, 130)), [], [1, 2]]
    run = engine.score(prompts, continuations, 0.7, 2)
    stepped(engine, [run])
    want = NativeEngine(pair.ours).scored(prompts, continuations, 0.7, 2)
    assert [len(tops) for _, tops in run.results] == [*map(len, continuations)]
    for (found, tops), (scores, best) in zip(run.results, want, strict=True):
        assert found == near(scores)
        assert [[*x] for x in tops] == [[*x] for x in best]


def test_a_step_has_no_more_tokens_than_it_may(pair: Pair) -> None:
    engine = NativeEngine(pair.ours, step_tokens=24)
    sessions = [engine.session() for _ in range(3)]
    runs = [s.start(LENGTHY, replace(ROLLOUT, n=2)) for s in sessions]
    runs.append(sessions[0].score([LENGTHY[0]] * 2, [[1, 2], [3, 4]], 1.0, 0))
    before, most = 0, []

    def count() -> None:
        nonlocal before
        now = engine.usage.computed + sum(s.usage.computed for s in sessions)
        most.append(now - before)
        before = now

    stepped(engine, runs, count)
    rows = 3 * 2 * len(LENGTHY)  # at most; these leave the prompts half of the tokens
    assert 12 < max(most) <= rows + 12 and max(most[:5]) <= 24
    assert len(most) > 3 * sum(map(len, LENGTHY)) // 24


def test_a_short_call_does_not_wait_for_a_long_one(pair: Pair) -> None:
    """Whoever comes first: calls take turns, chunk by chunk."""
    engine = NativeEngine(pair.ours, step_tokens=16)
    long = engine.session().start([list(range(5, 505))] * 2, Sampling(max_tokens=2))  # 125 chunks
    engine.step([long])
    others = [engine.session().start([[9, 8, 7 + i]], Sampling(max_tokens=2)) for i in range(3)]
    short = engine.session().score([[1, 2, 3]], [[4, 5]], 1.0, 0)
    for _ in range(6):
        engine.step([long, *others, short])
    assert all(run.done for run in (*others, short)) and not long.tokens[0]
    stepped(engine, [long])
    assert tokens_of(long.results) == tokens_of(
        NativeEngine(pair.ours).generate([list(range(5, 505))] * 2, Sampling(max_tokens=2))
    )


def test_exact_mode_keeps_its_bits_in_steps(pair: Pair) -> None:
    engine = NativeEngine(pair.ours, exact=True, step_tokens=16)
    one, two = engine.session(), engine.session()
    runs = [one.start(LENGTHY, ROLLOUT), two.start(PROMPTS, SHORT)]
    stepped(engine, runs)
    assert [run.results for run in runs] == [
        pair.engine("exact").generate(*x) for x in ((LENGTHY, ROLLOUT), (PROMPTS, SHORT))
    ]
    asked = [[*p, 400, 401] for p in LENGTHY]
    scores = two.score(asked, [[50, 51]] * 5, 1.0, 0)
    stepped(engine, [scores])
    assert [x for x, _ in scores.results] == pair.engine("exact").logprobs(asked, [[50, 51]] * 5)


def test_a_call_that_fails_while_its_prompts_run_fails_alone(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, extend = NativeEngine(pair.ours, step_tokens=16), NativeEngine._extend

    def full(self: NativeEngine, kv: Any, pieces: Any) -> torch.Tensor:
        if any(511 in piece for piece in pieces):
            raise MemoryError("no room")
        return extend(self, kv, pieces)

    monkeypatch.setattr(NativeEngine, "_extend", full)
    bad = [engine.session().start([[5] * 30 + [511]], ROLLOUT), engine.session().score([[511, 6]], [[7]], 1.0, 0)]
    good = engine.session().start(PROMPTS, ROLLOUT)
    stepped(engine, [bad[0], good, bad[1]])
    assert tokens_of(good.results) == tokens_of(NativeEngine(pair.ours).generate(PROMPTS, ROLLOUT))
    for run in bad:
        with pytest.raises(MemoryError):
            _ = run.results


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_confidence_of_tokens_by_a_full_forward_pass(pair: Pair, tracing: Engine, temperature: float) -> None:
    """At temperature 1, confidence is minus the mean ln p of the 3 likeliest and certainty is KL(uniform || p)."""
    done = tracing.generate(PROMPTS[:3], replace(ROLLOUT, temperature=temperature, trace_top=3))
    for prompt, group in zip(PROMPTS[:3], done, strict=True):
        for c in group:
            with torch.inference_mode():
                logits = pair.plain(torch.tensor([[*prompt, *c.tokens]])).logits[0, len(prompt) - 1 : -1].double()
            logp = logits.log_softmax(-1)
            assert c.token_confidence == near([-float(row.sort().values[-3:].mean()) for row in logp])
            assert c.token_certainty == near([float(-row.mean()) - math.log(512) for row in logp])


def test_confidence_of_more_tokens_than_there_are_is_refused(tracing: Engine) -> None:
    with pytest.raises(ValueError, match="513 likeliest tokens: the vocabulary has 512"):
        tracing.generate([[5]], Sampling(trace_top=513))


# What is scored -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_of_ragged_pairs(pair: Pair, engine: Engine, temperature: float) -> None:
    continuations = [[1], [2, 3, 4, 5, 6, 7], [], [9, 9, 9], [11, 12]]
    scores = engine.logprobs(PROMPTS, continuations, temperature)
    assert scores[2] == []
    for prompt, continuation, score in zip(PROMPTS, continuations, scores, strict=True):
        assert score == near(full_forward(pair.plain, prompt, continuation, temperature))


def test_the_likeliest_tokens_of_each_place(pair: Pair, native: NativeEngine) -> None:
    """This holds for continuations of two lengths, one from a kept cache; the probabilities of the whole vocabulary sum to 1."""
    (group,) = native.generate(PROMPTS[:1], Sampling(max_tokens=3))
    tokens = group[0].tokens
    prompts, continuations = [PROMPTS[0], [*PROMPTS[0], *tokens]], [tokens, [9, 8, 7, 6]]
    found = native.scored(prompts, continuations, 0.7, top=5)
    assert [logprobs for logprobs, _ in found] == native.logprobs(prompts, continuations, 0.7)
    for prompt, continuation, (logprobs, tops) in zip(prompts, continuations, found, strict=True):
        for t, (token, logprob, top) in enumerate(zip(continuation, logprobs, tops, strict=True)):
            logits = pair.plain(torch.tensor([[*prompt, *continuation[:t]]])).logits[0, -1]
            best = (logits / 0.7).log_softmax(-1).topk(5)
            assert [*top] == best.indices.tolist()
            assert [*top.values()] == near(best.values.tolist())
            assert top.get(token, logprob) == logprob, "one number, not two that differ by a rounding"
    ((_, (everything,)),) = native.scored([[5]], [[6]], top=1000)
    assert len(everything) == 512 and sum(map(math.exp, everything.values())) == pytest.approx(1, abs=1e-5)


def test_scores_of_what_was_sampled_are_its_logprobs(engine: Engine) -> None:
    """So the gap that the trainer prints at step 0 is rounding only."""
    (group,) = engine.generate(PROMPTS[:1], replace(ROLLOUT, temperature=0.8))
    scores = engine.logprobs(PROMPTS[:1] * 3, [c.tokens for c in group], 0.8)
    assert [x for row in scores for x in row] == near(logprobs_of([group]))


def test_continuations_that_differ_in_their_last_token_are_one_pass(pair: Pair, native: NativeEngine) -> None:
    """One pass of (5 7) serves the continuations 1, 2 and none; (5 7) with 1 4 is another pass."""
    prompts = [[5, 7], [9, 8, 7], [5, 7], [5, 7], [5, 7]]
    continuations = [[1], [3], [2], [1, 4], []]
    scores, computed, _ = spent(native, lambda: native.logprobs(prompts, continuations, 0.7))
    assert computed == 2 + 3 + 3
    for found, prompt, continuation in zip(scores, prompts, continuations, strict=True):
        assert found == near(full_forward(pair.plain, prompt, continuation, 0.7))


def test_nothing_asked_nothing_answered(engine: Engine) -> None:
    assert engine.generate([], ROLLOUT) == []
    assert engine.logprobs([], []) == []
    assert engine.logprobs([[5]], [[]]) == [[]]


def test_a_prompt_without_tokens_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="prompt 1 of 2 has no tokens"):
        engine.generate([[1], []], ROLLOUT)
    with pytest.raises(ValueError, match="prompt 0 of 1 has no tokens"):
        engine.logprobs([[]], [[1, 2]])


def test_a_long_text_is_scored_with_few_logits_at_a_time(native: NativeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [[7, 8, 9, 10, 11, 12, 13], [7, 8, 9, 10, 11, 12, 14], [20], []]
    prompts = [[5, 6]] * 3 + [[5]]
    want = native.scored(prompts, texts, temperature=0.7, top=2)
    sizes, head = [], NativeEngine._head
    monkeypatch.setattr("twofold.engines.native.LOGITS", 3 * 512)
    monkeypatch.setattr(NativeEngine, "_head", lambda self, hidden: sizes.append(len(hidden)) or head(self, hidden))
    found = native.scored(prompts, texts, temperature=0.7, top=2)
    assert max(sizes) == 3 and sum(sizes) == 7 + 1
    assert [x for row, _ in found for x in row] == near([x for row, _ in want for x in row])
    assert [[list(x) for x in tops] for _, tops in found] == [[list(x) for x in tops] for _, tops in want]


def test_logprobs_of_unequal_lists_are_refused(engine: Engine) -> None:
    with pytest.raises(ValueError):
        engine.logprobs([[1], [2]], [[3]])


def test_the_models_own_generation_settings_do_not_matter(pair: Pair) -> None:
    """A hub model may come with a penalty and stop tokens, which are no part of the policy in training."""
    sampling = replace(ROLLOUT, stop=())
    want = pair.engine("native").generate(PROMPTS[:2], sampling)
    model = copy.deepcopy(pair.plain)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.eos_token_id = want[0][0].tokens[3]
    assert tokens_of(Oracle(model).generate(PROMPTS[:2], sampling)) == tokens_of(want)


def test_bfloat16_samples_what_a_bfloat16_learner_scores(pair: Pair) -> None:
    """The learner's forward pass is packed, with model and head under autocast. fp32 log-probs are ten times as far off."""
    engine, module = NativeEngine(pair.ours, precision="bfloat16"), install(copy.deepcopy(pair.plain))
    done = engine.generate(PROMPTS, ROLLOUT)
    texts = [[*p, *c.tokens] for p, group in zip(PROMPTS, done, strict=True) for c in group]
    starts = [len(p) for p, group in zip(PROMPTS, done, strict=True) for _ in group]

    def packed(enabled: bool) -> torch.Tensor:
        layout = Packing([(0, [len(t) for t in texts])])
        ids = torch.tensor([x for t in texts for x in t])
        first = torch.tensor([0, *(len(t) for t in texts[:-1])]).cumsum(0).tolist()
        at = torch.tensor([f + i for f, s, t in zip(first, starts, texts, strict=True) for i in range(s, len(t))])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            hidden = module.base_model(
                input_ids=ids[None], position_ids=layout.positions, use_cache=False, layout=layout
            ).last_hidden_state[0]
            head = module.get_output_embeddings()
            return token_logprobs(head, len(head.weight), hidden[at - 1], ids[at], torch.ones(len(at)))[0]

    sampled = torch.tensor(logprobs_of(done))
    gap, rounding = ((sampled - packed(enabled)).abs().mean() for enabled in (True, False))
    assert gap < 0.2 * rounding
    scores = engine.logprobs(
        [t[:s] for t, s in zip(texts, starts, strict=True)], [t[s:] for t, s in zip(texts, starts, strict=True)]
    )
    assert (torch.tensor([x for row in scores for x in row]) - sampled).abs().mean() < 0.2 * rounding


# What is reused -------------------------------------------------------------------------------------------------------


def spent(engine: NativeEngine, call: Any) -> tuple[Any, int, int]:
    """Do one call; return (its result, tokens computed, tokens reused)."""
    before = replace(engine.usage)
    result = call()
    return result, engine.usage.computed - before.computed, engine.usage.reused - before.reused


def test_a_shared_prompt_is_prefilled_once(native: NativeEngine) -> None:
    """The 5 prompt tokens run once for 4 samples, and 5 of each sample's 6 tokens, without the last: 5 + 4 * 5."""
    _, computed, reused = spent(native, lambda: native.generate([PROMPTS[0]], Sampling(n=4, max_tokens=6)))
    assert (computed, reused) == (5 + 4 * 5, 0)


@pytest.mark.parametrize("max_rows", [8, 1024])
def test_a_judgement_computes_the_question_and_one_token_more(pair: Pair, max_rows: int) -> None:
    """The rollout's last token was drawn but never run, so it runs with the question. The verdict itself is not run."""
    native = NativeEngine(pair.ours, max_rows=max_rows)
    done = native.generate(PROMPTS, ROLLOUT)
    question = [400, 401, 402, 403, 404, 405, 406]
    prompts = [[*p, *c.tokens, *question] for p, group in zip(PROMPTS, done, strict=True) for c in group]
    random.Random(0).shuffle(prompts)  # not in the order of the caches they continue
    scores, computed, reused = spent(native, lambda: native.logprobs(prompts, [[50]] * len(prompts)))
    assert computed == len(prompts) * (len(question) + 1)
    assert reused == sum(map(len, prompts)) - computed
    fresh = NativeEngine(pair.ours).logprobs(prompts, [[50]] * len(prompts))
    assert [s for (s,) in scores] == near([s for (s,) in fresh])
    # a second question and then a written judgement also read the rollouts' caches
    assert spent(native, lambda: native.logprobs(prompts, [[51]] * len(prompts)))[1:] == (computed, reused)
    critique = Sampling(n=2, max_tokens=4, seed=1)
    written, more, again = spent(native, lambda: native.generate(prompts, critique))
    assert (more, again) == (computed + len(prompts) * 2 * 3, reused)
    assert tokens_of(written) == tokens_of(NativeEngine(pair.ours).generate(prompts, critique))


def test_a_probe_from_any_cut_computes_one_token(pair: Pair, native: NativeEngine) -> None:
    (group,) = native.generate([PROMPTS[0]], ROLLOUT)
    cuts = [[*PROMPTS[0], *c.tokens[:k]] for c in group for k in range(len(c.tokens) + 1)]
    probe = Sampling(n=2, max_tokens=3, seed=9)
    probed, computed, reused = spent(native, lambda: native.generate(cuts, probe))
    assert computed == len(cuts) + 2 * len(cuts) * 2  # a last token each, then two samples' first two of three tokens
    assert reused == sum(map(len, cuts)) - len(cuts)
    fresh = NativeEngine(pair.ours).generate(cuts, probe)
    assert tokens_of(probed) == tokens_of(fresh)
    assert logprobs_of(probed) == near(logprobs_of(fresh))


def test_another_text_reuses_only_what_it_shares(pair: Pair, native: NativeEngine) -> None:
    prompt = PROMPTS[3]
    (group,) = native.generate([prompt], replace(ROLLOUT, stop=()))
    kept = group[1].tokens
    assert all(c.tokens[:4] != kept[:4] for c in (group[0], group[2]))
    astray = [*prompt, *kept[:4], (kept[4] + 1) % 512, 7, 7]
    for text, shared in ((astray, 24), ([1, *astray], 0), (prompt[:-1], 0), (prompt, 19)):
        score, computed, reused = spent(native, lambda text=text: native.logprobs([text], [[3]]))
        assert (computed, reused) == (len(text) - shared, shared)
        assert score[0] == near(full_forward(pair.plain, text, [3]))


def test_new_weights_leave_nothing_stale(pair: Pair) -> None:
    model = copy.deepcopy(pair.ours)
    engine = NativeEngine(model)
    done = engine.generate(PROMPTS, ROLLOUT)
    prompts = [[*p, *group[0].tokens, 60, 61] for p, group in zip(PROMPTS, done, strict=True)]
    stale = engine.logprobs(prompts, [[50]] * len(prompts))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    engine.load(model.state_dict())
    scores, _, reused = spent(engine, lambda: engine.logprobs(prompts, [[50]] * len(prompts)))
    assert reused == 0
    assert scores == NativeEngine(copy.deepcopy(model)).logprobs(prompts, [[50]] * len(prompts))
    assert all(abs(a[0] - b[0]) > 1e-3 for a, b in zip(scores, stale, strict=True))


def test_the_oracle_takes_new_weights(pair: Pair) -> None:
    other = copy.deepcopy(pair.plain)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.05)
    engine = pair.engine("oracle")
    engine.load(other.state_dict())
    assert engine.logprobs([[1, 2]], [[3]])[0] == near(full_forward(other, [1, 2], [3]))


def test_rest_forgets_but_changes_nothing(native: NativeEngine) -> None:
    first = native.generate(PROMPTS, ROLLOUT)
    native.rest()
    again, computed, reused = spent(native, lambda: native.generate(PROMPTS, ROLLOUT))
    assert again == first
    assert reused == 0 and computed > sum(map(len, PROMPTS))


def run(pair: Pair, kv: KV, pieces: list[list[int]]) -> torch.Tensor:
    """Append the next tokens of every row; return their logits [rows, longest, V]."""
    longest = max(map(len, pieces))
    ids = torch.tensor([p + [0] * (longest - len(p)) for p in pieces])
    with torch.inference_mode():
        positions = kv.begin([len(p) for p in pieces])
        decoder = Decoder(pair.ours, torch.float32)
        return linear(decoder(ids, positions, kv), *decoder.output)


def empty(rows: int, room: int) -> KV:
    return KV(torch.zeros(rows, dtype=torch.long), room)


@pytest.mark.parametrize("rounds", [1, 2, DEEPEST, DEEPEST + 3])
def test_forks_of_forks_are_the_texts_they_stand_for(pair: Pair, rounds: int) -> None:
    """Every round forks rows several times, in another order and at shorter prefixes (also empty ones), prefills ragged
    pieces, forks again and decodes two tokens, with one row retired between them."""
    rng = random.Random(rounds)
    texts = [[rng.randrange(3, 90) for _ in range(size)] for size in (5, 3, 6)]
    kv = empty(3, 6)
    run(pair, kv, texts)
    for _ in range(rounds):
        rows = [rng.randrange(len(texts)) for _ in range(4)]
        lengths = [rng.randint(0, len(texts[r])) for r in rows]
        texts = [texts[r][:n] for r, n in zip(rows, lengths, strict=True)]
        kv = kv.fork(torch.tensor(rows), torch.tensor(lengths), 3)
        for n in (0, 1, 1):
            pieces = [[rng.randrange(3, 90) for _ in range(n or rng.randint(1, 3))] for _ in range(kv.active)]
            if not n:
                out = run(pair, kv, pieces)
                texts = [t + p for t, p in zip(texts, pieces, strict=True)]
                kv = kv.fork(torch.arange(len(texts)), torch.tensor([len(t) for t in texts]), 2)
            else:
                out = run(pair, kv, pieces)
                texts[: kv.active] = [t + p for t, p in zip(texts, pieces, strict=False)]
            for i, piece in enumerate(pieces):
                with torch.inference_mode():
                    want = pair.plain(torch.tensor([texts[i]])).logits[0, -len(piece) :]
                torch.testing.assert_close(out[i, : len(piece)], want, atol=3e-5, rtol=0)
            if n and kv.active == 4:
                with torch.inference_mode():
                    swapped = kv.retire([1])
                for i, j in zip(*swapped, strict=True):
                    texts[i], texts[j] = texts[j], texts[i]
    assert kv.depth <= DEEPEST + 1


def test_a_fork_of_a_few_rows_lets_go_of_the_others(pair: Pair) -> None:
    """One row of eight is copied; its text continues as before."""
    texts = [[5 + i, 6, 7, 8 + i] for i in range(8)]
    kv = empty(8, 4)
    run(pair, kv, texts)
    child = kv.fork(torch.tensor([6, 6]), torch.tensor([3, 4]), 1)
    assert child.parent is not kv and child.parent is not None
    assert [x.shape[0] for x in child.parent.keys] == [1] * len(kv.keys)
    out = run(pair, child, [[9], [10]])
    with torch.inference_mode():
        for row, text in enumerate(([11, 6, 7, 9], [11, 6, 7, 14, 10])):
            want = pair.plain(torch.tensor([text])).logits[0, -1]
            torch.testing.assert_close(out[row, 0], want, atol=3e-5, rtol=0)


def test_what_a_cache_cannot_take_is_refused(pair: Pair) -> None:
    kv = empty(2, 3)
    run(pair, kv, [[5, 6], [7, 8]])
    with pytest.raises(ValueError, match="fork this one"):
        kv.begin([2, 1])
    run(pair, kv, [[5], [6]])
    with pytest.raises(ValueError, match="a row would hold 4 tokens, the cache has room for 3"):
        kv.begin([1, 1])
    kv = empty(2, 3)
    run(pair, kv, [[5, 6], [7]])
    with pytest.raises(ValueError, match="equally long"):
        kv.begin([1, 1])


# Random numbers -------------------------------------------------------------------------------------------------------

P = [0.1, 0.4, 0.2, 0.3]
GRID = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000


def counts(
    probabilities: list[float], temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0
) -> tuple[list[int], torch.Tensor]:
    """Draw with 1000 evenly spaced uniforms; return how often each token is drawn, and the draws' log-probs."""
    logits = torch.tensor(probabilities).log().expand(1000, -1)
    tokens, logp = draw(logits, GRID, temperature, top_p, top_k, min_p)
    return torch.bincount(tokens, minlength=len(probabilities)).tolist(), logp


def test_a_grid_of_uniforms_gives_the_probabilities() -> None:
    drawn, logp = counts(P)
    assert drawn == [100, 400, 200, 300]
    assert sorted({round(x, 4) for x in logp.exp().tolist()}) == [0.1, 0.2, 0.3, 0.4]


def test_temperature_by_hand() -> None:
    """Temperature 1/2 squares probabilities: 1, 16, 4 and 9 of 30."""
    drawn, logp = counts(P, temperature=0.5)
    assert drawn == pytest.approx([1000 * x / 30 for x in (1, 16, 4, 9)], abs=1)
    assert float(logp.exp().max()) == pytest.approx(16 / 30)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.05, [1]),
        (0.39, [1]),
        (0.41, [1, 3]),
        (0.69, [1, 3]),
        (0.71, [1, 3, 2]),
        (0.91, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_top_p_by_hand(top_p: float, kept: list[int]) -> None:
    """In order 0.4, 0.3, 0.2, 0.1, the token that crosses top_p is kept, and those kept are renormalised."""
    mass = sum(P[i] for i in kept)
    drawn, logp = counts(P, top_p=top_p)
    assert drawn == pytest.approx([1000 * P[i] / mass if i in kept else 0 for i in range(4)], abs=1)
    assert float(logp.exp().max()) == pytest.approx(0.4 / mass)


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 4}, [0, 1, 2, 3]),
        ({"top_k": 9}, [0, 1, 2, 3]),  # more than the vocabulary has
        ({"min_p": 0.25}, [0, 1, 2, 3]),  # 0.1 is a quarter of 0.4
        ({"min_p": 0.26}, [1, 2, 3]),
        ({"min_p": 0.51}, [1, 3]),
        ({"min_p": 1.0}, [1]),
        ({"top_k": 3, "min_p": 0.6}, [1, 3]),
        ({"top_k": 2, "top_p": 0.58}, [1, 3]),  # 0.4 of 0.7 is 0.571: top_p is a share of what top_k left
        ({"top_k": 2, "top_p": 0.57}, [1]),
    ],
)
def test_top_k_and_min_p_by_hand(filters: dict[str, Any], kept: list[int]) -> None:
    """The probabilities of those kept are renormalised, and the log-probs are theirs."""
    mass = sum(P[i] for i in kept)
    drawn, logp = counts(P, **filters)
    assert drawn == pytest.approx([1000 * P[i] / mass if i in kept else 0 for i in range(4)], abs=1)
    assert float(logp.exp().max()) == pytest.approx(0.4 / mass)


def test_min_p_is_of_the_tempered_distribution() -> None:
    """At temperature 1/2 the ratios to the likeliest are squares: 0.2 is a quarter of 0.4, and 0.3 nine sixteenths."""
    assert counts(P, temperature=0.5, min_p=0.3)[0] == pytest.approx([0, 640, 0, 360], abs=1)


@pytest.mark.parametrize(
    "field",
    [{"temperature": 1e-40}, {"temperature": math.nan}, {"top_p": 1e-7}, {"top_p": math.nan}, {"top_k": -1},
     {"min_p": math.nan}, {"min_p": 1.1}],
)  # fmt: skip
def test_what_single_precision_cannot_hold_is_refused(field: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        Sampling(**field)  # type: ignore[arg-type]


def test_the_coldest_temperature_draws_the_likeliest_token() -> None:
    tokens, logp = draw(torch.tensor([[5.0, 900.0, -900.0, 899.0]]), torch.tensor([0.999]), COLDEST, 1.0)
    assert tokens.tolist() == [1]
    assert logp.tolist() == [0.0]


def test_greedy_reports_the_untempered_logprob() -> None:
    tokens, logp = draw(torch.tensor([P]).log(), torch.tensor([0.0]), 0.0, 0.5)
    assert tokens.tolist() == [1]
    assert float(logp.exp()) == pytest.approx(0.4)


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(top_p: float) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]]).expand(2, -1)
    tokens, logp = draw(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), 1.0, top_p)
    assert tokens.tolist() == [1, 3]
    assert torch.isfinite(logp).all()


def test_impossible_tokens_are_never_drawn() -> None:
    drawn, _ = counts([0.0, 0.25, 0.0, 0.0, 0.75, 0.0])
    assert drawn == [0, 250, 0, 0, 750, 0]


def test_uniforms_depend_on_seed_prompt_repetition_and_sample() -> None:
    sampling = Sampling(n=2, max_tokens=4, seed=3)
    rows = uniforms([[1, 2], [3], [1, 2]], sampling)
    assert rows.shape == (6, 4) and ((rows >= 0) & (rows < 1)).all()
    assert len({tuple(r) for r in rows.tolist()}) == 6
    assert (uniforms([[3], [1, 2]], sampling)[[2, 3, 0, 1]] == rows[:4]).all()
    assert (uniforms([[3]], replace(sampling, n=1, max_tokens=2))[0] == rows[2, :2]).all(), "more room, same numbers"
    assert not (uniforms([[3]], replace(sampling, seed=4)) == rows[2:4]).any()


# Architectures --------------------------------------------------------------------------------------------------------

SHAPE = dict(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
SHAPE |= dict(num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.4)
SHAPE |= dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)


def tiny(config: str, **options: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = getattr(transformers, config)(**(SHAPE | options))
        return AutoModelForCausalLM.from_config(made).float().eval()


MLA = dict(q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8, num_key_value_heads=4)
MLA |= dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_group=1, topk_group=1)
ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    ("LlamaConfig", {}),
    ("Qwen2Config", dict(tie_word_embeddings=True)),
    ("Qwen3Config", dict(head_dim=16)),
    ("MistralConfig", dict(sliding_window=None)),
    ("Phi3Config", dict(pad_token_id=0)),
    ("Olmo2Config", dict(num_key_value_heads=4)),
    ("GPT2Config", dict(n_embd=32, n_layer=2, n_head=4)),
    ("Qwen3MoeConfig", dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8)),
    ("DeepseekV3Config", MLA),  # its keys are wider than its values
]


@pytest.mark.parametrize(("config", "options"), ACCEPTED, ids=[c for c, _ in ACCEPTED])
def test_any_full_attention_model_works(config: str, options: dict[str, Any]) -> None:
    model = tiny(config, **options)
    oracle, native = Oracle(copy.deepcopy(model)), NativeEngine(model)
    sampling = Sampling(n=2, max_tokens=6, stop=tuple(range(10)))
    prompts = [[5, 6, 70, 8], [9, 10]]
    done, want = native.generate(prompts, sampling), oracle.generate(prompts, sampling)
    assert tokens_of(done) == tokens_of(want)
    assert logprobs_of(done) == near(logprobs_of(want))
    texts = [[*p, *c.tokens, 20, 21] for p, group in zip(prompts, done, strict=True) for c in group]
    scores, expected = (e.logprobs(texts, [[30, 31]] * len(texts)) for e in (native, oracle))
    assert [x for row in scores for x in row] == near([x for row in expected for x in row])


def test_the_plain_forward_pass_is_for_unchanged_models_of_the_llama_family() -> None:
    """Other models, and one with a replaced layer (such as an adapter), run as they are."""
    found = {config: Decoder.suits(install(tiny(config, **options))) for config, options in ACCEPTED}
    assert [c for c, suits in found.items() if suits] == ["LlamaConfig", "Qwen2Config", "Qwen3Config", "MistralConfig"]

    class Doubled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = install(tiny("LlamaConfig"))
    before = NativeEngine(model).logprobs([[5, 6]], [[7]])
    model.base_model.layers[1].mlp.up_proj.__class__ = Doubled
    assert not Decoder.suits(model)
    assert abs(NativeEngine(model).logprobs([[5, 6]], [[7]])[0][0] - before[0][0]) > 1e-3


def test_changed_weights_are_seen_after_load() -> None:
    model = tiny("Qwen2Config")
    engine = NativeEngine(model)
    before = engine.logprobs([[5, 6]], [[7]])
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.9)
    engine.load(model.state_dict())
    after = engine.logprobs([[5, 6]], [[7]])
    assert after[0] == near(full_forward(model_without_layout(model), [5, 6], [7]))
    assert abs(after[0][0] - before[0][0]) > 1e-3


def model_without_layout(model: Any) -> Any:
    """Return a model with the same weights that ``transformers`` runs."""
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), attn_implementation="sdpa").float().eval()
    plain.load_state_dict(model.state_dict())
    return plain


@pytest.mark.parametrize(
    ("config", "options", "reason"),
    [
        ("Lfm2Config", dict(layer_types=["conv", "full_attention"]), "Lfm2ForCausalLM uses conv"),
        (
            "Gemma2Config",
            dict(head_dim=8, final_logit_softcapping=None),
            "Gemma2Attention caps its attention",
        ),
        ("BloomConfig", dict(n_layer=2, n_head=4), "BloomForCausalLM has an attention of its own"),
        ("StableLmConfig", {}, "StableLmAttention got no layout"),
        ("GraniteConfig", dict(logits_scaling=8.0), "GraniteForCausalLM scales or caps its logits"),
        ("CohereConfig", {}, "CohereForCausalLM scales or caps its logits"),
    ],
)
def test_a_model_that_would_give_other_numbers_is_refused_by_name(
    config: str, options: dict[str, Any], reason: str
) -> None:
    model = tiny(config, **options)
    for _ in range(2):  # the second time for a caller that swallowed the first error
        with pytest.raises(ValueError, match=reason):
            install(model)


# Packing --------------------------------------------------------------------------------------------------------------


def samples_of(families: list[tuple[int, list[int]]]) -> tuple[list[list[int]], list[int]]:
    """Return random samples, which begin alike within a family, and the tokens as packed."""
    rng = random.Random(0)
    samples, laid = [], []
    for head, sizes in families:
        shared = [rng.randrange(3, 90) for _ in range(head)]
        own = [[rng.randrange(3, 90) for _ in range(size)] for size in sizes]
        samples += [shared + mine for mine in own]
        laid += shared + [x for mine in own for x in mine]
    return samples, laid


def plain_flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spans: Any, scale: float | None) -> torch.Tensor:
    """What FlashAttention's kernel computes: stretch by stretch, causality aligned to the end of the keys."""
    queries, keys = spans.query_starts.tolist(), spans.key_starts.tolist()
    assert (queries[-1], keys[-1]) == (len(q), len(k)), "the kernel leaves other rows as the memory was"
    assert spans.longest == tuple(max(b - a for a, b in itertools.pairwise(x)) for x in (queries, keys))
    parts = []
    for (a, b), (c, d) in zip(itertools.pairwise(queries), itertools.pairwise(keys), strict=True):
        mask = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a))
        stretch = (x.transpose(0, 1)[None] for x in (q[a:b], k[c:d], v[c:d]))
        out = torch.nn.functional.scaled_dot_product_attention(*stretch, attn_mask=mask, scale=scale, enable_gqa=True)
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("way", ["cpu", "attend_padded", "attend_flash"])
@pytest.mark.parametrize(
    ("families", "positions"),
    [
        ([(0, [4, 1, 7])], [0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 5, 6]),
        ([(2, [2, 1, 3]), (0, [2, 1]), (1, [1, 1])], [0, 1, 2, 3, 2, 2, 3, 4, 0, 1, 0, 0, 1, 1]),
        ([(0, [70, 130, 3]), (90, [80, 80])], None),  # several blocks of queries
    ],
)
def test_a_packed_batch_is_its_samples_one_by_one(
    pair: Pair, families: Any, positions: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden states and gradients are equal."""
    monkeypatch.setattr(attention, "BLOCK", 2**14)
    monkeypatch.setattr(attention, "flash", plain_flash)
    if way != "cpu":  # the paths for GPUs
        monkeypatch.setattr(Packing, "attend", lambda self, layer, *qkv: getattr(self, way)(*qkv))
    samples, laid = samples_of(families)
    packed, alone = install(copy.deepcopy(pair.plain)), copy.deepcopy(pair.plain)
    layout = Packing(families)
    assert positions is None or layout.positions.tolist() == [positions]
    ids = torch.tensor([laid])
    ours = packed.base_model(input_ids=ids, position_ids=layout.positions, use_cache=False, layout=layout)
    theirs = [alone.base_model(input_ids=torch.tensor([s])).last_hidden_state[0] for s in samples]
    hidden = torch.cat([ours.last_hidden_state[0][row[: len(s)]] for row, s in zip(layout.index, samples, strict=True)])
    # a long sample's sums have a rounding near 1e-5
    torch.testing.assert_close(hidden, torch.cat(theirs), atol=1e-5 if max(map(len, samples)) < 100 else 3e-5, rtol=0)
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    (hidden * weights).sum().backward()
    (torch.cat(theirs) * weights).sum().backward()
    gradients = {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}
    assert len(gradients) > 15
    for name, p in packed.named_parameters():
        if name in gradients:
            scale = float(gradients[name].abs().max())
            torch.testing.assert_close(
                p.grad, gradients[name], atol=1e-5 * scale, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)], ids=lambda h: f"{h[0]} heads, {h[1]} key heads")
@pytest.mark.parametrize(
    "families", [[(9, [30, 25, 41]), (0, [7, 3]), (1, [1]), (20, [12, 12])], [(0, [5, 60])]], ids=["shared", "alone"]
)
def test_flash_attention_is_the_attention_of_cpus(
    families: Any, heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And padding disturbs neither, though on a GPU it is a stretch of its own."""
    monkeypatch.setattr(attention, "flash", plain_flash)
    layout = Packing(families, padding=5)
    tokens = layout.positions.shape[1]
    rng = torch.Generator().manual_seed(0)
    sizes = [(1, h, tokens, 8) for h in (heads[0], heads[1], heads[1])]
    found = []
    qkv = [torch.randn(size, generator=rng) for size in sizes]
    weights = torch.randn(1, tokens, heads[0], 8, generator=rng)
    weights[:, -5:] = 0
    for attend in (layout.attend, lambda layer, *qkvs: layout.attend_flash(*qkvs)):
        leaves = [x.clone().requires_grad_() for x in qkv]
        out = attend(0, *leaves, 0.3)
        (out * weights).sum().backward()
        found.append([out[:, :-5], *(x.grad for x in leaves)])
    assert len(layout.spans.seen) > tokens or not any(prefix for prefix, _ in families)
    for ours, theirs, atol in zip(*found, (1e-5, 1e-4, 1e-4, 1e-4), strict=True):
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


def test_what_a_flash_call_reads_by_hand() -> None:
    """Of the second sample of the first family: tokens 3 and 4, which see the prompt, token 0, and themselves."""
    spans = Packing([(1, [2, 2]), (0, [2])], padding=3).spans
    assert spans.query_starts.tolist() == [0, 1, 3, 5, 7, 10]
    assert spans.key_starts.tolist() == [0, 1, 4, 7, 9, 12]
    assert spans.seen.tolist() == [0, 0, 1, 2, 0, 3, 4, 5, 6, 7, 8, 9]
    assert spans.longest == (3, 3)


def test_where_tokens_are_packed_by_hand() -> None:
    layout = Packing([(1, [3, 2]), (0, [2])])
    assert layout.positions.tolist() == [[0, 1, 2, 3, 1, 2, 0, 1]]
    assert layout.index.tolist() == [[0, 1, 2, 3], [0, 4, 5, 0], [6, 7, 0, 0]]
    assert layout.slots.tolist() == [0, 1, 2, 3, 5, 6, 8, 9]
