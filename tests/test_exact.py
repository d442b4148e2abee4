"""Exact mode: the learner's log-probs have the bits of the engine's, and a result does not depend on its company.

``make torture`` compares a million tokens and ten thousand requests.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import random_model

from twofold.engines.native import NativeEngine
from twofold.models.io import load_model
from twofold.trainer.learner import Learner, Loss
from twofold.trainer.optim import Optim
from twofold.types import Completion, Sample, Sampling

STOP = (3, 60, 61, 62, 63)
LLAMA3 = dict(rope_type="llama3", rope_theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
DYNAMIC = dict(rope_type="dynamic", factor=2.0, rope_theta=1e4)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "grouped heads": ("Llama", {}),
    "odd sizes": ("Llama", dict(hidden_size=36, intermediate_size=50, num_attention_heads=3, num_key_value_heads=1)),
    "biases, tied embeddings": ("Qwen2", dict(tie_word_embeddings=True)),
    "norms of queries and keys": ("Qwen3", dict(head_dim=16)),
    "scaled rotations": ("Llama", dict(rope_parameters=LLAMA3 | dict(original_max_position_embeddings=32))),
    "rotations that grow": ("Llama", dict(rope_parameters=DYNAMIC, max_position_embeddings=700)),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(random_model("Llama", tmp_path_factory.mktemp("llama")), device="cpu")[0]


def prompts(rng: random.Random, n: int, longest: int = 90) -> list[list[int]]:
    """Return prompts of which some begin alike, as conversations do."""
    shared = [rng.randrange(20, 500) for _ in range(longest)]
    return [
        [*shared[: rng.choice([0, longest // 2])], *(rng.randrange(20, 500) for _ in range(rng.randint(1, longest // 2)))]
        for _ in range(n)
    ]  # fmt: skip


def samples_of(asked: list[list[int]], drawn: list[list[Completion]]) -> list[Sample]:
    """Return every completion as a sample of the policy, followed by a question with a target."""
    found = []
    for prompt, group in zip(asked, drawn, strict=True):
        for c in group:
            before, behind = [0.0] * len(prompt), [0.0] * 3
            zeros = [0.0] * (len(prompt) + len(c.tokens))
            found.append(
                Sample(
                    [*prompt, *c.tokens, 30, 31, 32],
                    [False] * len(prompt) + c.sampled + [False] * 3,
                    before + c.logprobs + behind,
                    before + [1.0] * len(c.tokens) + behind,
                    [*zeros, 0.0, 0.0, 1.0],
                )
            )
    return found


def mismatch(model: Any, samples: list[Sample], temperature: float, exact: bool = True, **options: Any) -> float:
    """Return the mean |log-prob of the learner - log-prob of the engine|: 0.0 if and only if all are equal."""
    options = {"steps": 1, "temperature": temperature, "exact": exact} | options
    return Learner(copy.deepcopy(model), Optim(lr=0.0), Loss(), **options).update(samples)["mismatch"]


@pytest.mark.parametrize("name", MODELS)
def test_the_learner_s_log_probs_have_the_bits_of_the_engine_s(name: str, tmp_path: Path) -> None:
    """Whatever shares a micro-batch, and whether prompts are shared. Without exact mode some bits differ."""
    family, options = MODELS[name]
    model = load_model(random_model(family, tmp_path, **options), device="cpu")[0]
    asked = prompts(random.Random(0), 5)
    for temperature, budget in ((1.0, 8192), (0.7, 300)):
        drawn = NativeEngine(model, exact=True).generate(asked, Sampling(3, temperature, max_tokens=24, stop=STOP))
        samples = samples_of(asked, drawn)
        assert mismatch(model, samples, temperature, micro_tokens=budget) == 0.0
    assert 0.0 < mismatch(model, samples, 0.7, exact=False) < 1e-5


@pytest.mark.parametrize("options", [{"checkpointing": True}, {"precision": "bfloat16"}])
def test_exact_mode_goes_with_other_options_of_the_learner(options: dict[str, Any], llama: Any) -> None:
    asked = prompts(random.Random(1), 4)
    engine = NativeEngine(llama, exact=True, precision=options.get("precision", "float32"))
    samples = samples_of(asked, engine.generate(asked, Sampling(2, max_tokens=16, stop=STOP)))
    assert mismatch(llama, samples, 1.0, micro_tokens=200, **options) == 0.0


def test_exact_mode_has_the_gradient_of_the_usual_pass(llama: Any) -> None:
    asked = prompts(random.Random(2), 4)
    samples = samples_of(asked, NativeEngine(llama).generate(asked, Sampling(2, max_tokens=16, stop=STOP)))
    found = []
    for exact in (True, False):
        learner = Learner(copy.deepcopy(llama), Optim(lr=0.0, beta1=0.0), Loss(), steps=1, exact=exact)
        learner.update(samples)
        state = learner.optimizer.state
        found.append(torch.cat([state[p]["exp_avg"].flatten() for p in learner.model.parameters() if p in state]))
    assert (found[0] - found[1]).norm() < 1e-5 * found[1].norm() and found[1].norm() > 0


def test_a_model_of_another_family_is_refused_in_words(tmp_path: Path) -> None:
    model = load_model(random_model("Olmo2", tmp_path), device="cpu")[0]
    with pytest.raises(ValueError, match="exact mode is for models of Llama's family, and Olmo2ForCausalLM is none"):
        NativeEngine(model, exact=True).generate([[20]], Sampling(max_tokens=1))


def company(
    model: Any, requests: int, seed: int = 0, kinds: int = 24, exact: bool = True
) -> Iterator[tuple[Completion, Completion]]:
    """Yield (a completion drawn in random company, the same one drawn alone).

    A request is a prompt with 1, 8 or 64 samples. It stands at a random place of a call of up to 64 prompts, or shares every
    forward pass with calls of other sessions that began at other times. The caches of earlier calls are kept or dropped, and
    questions about finished samples are asked in between, from those caches.
    """
    rng, known = random.Random(seed), prompts(random.Random(seed), kinds)
    settings = [Sampling(64, t, max_tokens=20, stop=STOP) for t in (1.0, 0.6)]
    alone = [[NativeEngine(model, exact=exact).generate([p], s)[0] for p in known] for s in settings]
    asked = [[*known[0], *alone[0][0][0].tokens, 30, 31]]
    verdict = NativeEngine(model, exact=exact).logprobs(asked, [[32, 33]])
    engine, done = NativeEngine(model, exact=exact, max_rows=rng.choice([64, 1024])), 0
    while done < requests:
        if rng.random() < 0.3:
            engine.rest()
        calls = []
        for _ in range(rng.choice([1, 1, 2, 3])):
            which = rng.randrange(2)
            n = rng.choice([1, 1, 1, 8, 8, 64])
            chosen = rng.sample(range(kinds), rng.randint(1, min(kinds, 64 // n + 1)))
            calls.append((which, n, chosen))
        if len(calls) == 1:
            how = Sampling(calls[0][1], settings[calls[0][0]].temperature, max_tokens=20, stop=STOP)
            results = [engine.generate([known[i] for i in calls[0][2]], how)]
        else:
            results = together(engine, known, calls, settings, rng)
        for (which, _, chosen), groups in zip(calls, results, strict=True):
            done += len(chosen)
            for i, group in zip(chosen, groups, strict=True):
                yield from zip(group, alone[which][i], strict=False)
        others = [[*known[i], *rng.choice(alone[0][i]).tokens, 30, 31] for i in rng.choices(range(kinds), k=5)]
        place = rng.randint(0, 5)
        found = engine.logprobs([*others[:place], *asked, *others[place:]], [[32, 33]] * 6)
        assert found[place] == verdict[0] or not exact


def together(
    engine: NativeEngine,
    known: list[list[int]],
    calls: list[tuple[int, int, list[int]]],
    settings: list[Sampling],
    rng: random.Random,
) -> list[list[list[Completion]]]:
    """Return the results of calls of as many sessions, which begin some tokens apart and then share their passes."""
    runs: list[Any] = []
    for which, n, chosen in calls:
        how = Sampling(n, settings[which].temperature, max_tokens=20, stop=STOP)
        runs.append(engine.session().start([known[i] for i in chosen], how))
        for _ in range(rng.randint(0, 4)):
            engine.step(runs)
    while not all(run.done for run in runs):
        engine.step(runs)
    return [run.results for run in runs]


def test_a_request_in_any_company_has_the_tokens_and_bits_that_it_has_alone(llama: Any) -> None:
    assert all(a == b for a, b in company(llama, 60, kinds=6))


def test_without_exact_mode_the_comparison_sees_a_difference(llama: Any) -> None:
    pairs = list(company(llama, 10, kinds=3, exact=False))
    assert any(a != b for a, b in pairs) and sum(a.tokens == b.tokens for a, b in pairs) > 0.9 * len(pairs)


# ---------------------------------------------------------------- in full


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_a_million_tokens_are_scored_as_they_were_sampled(llama: Any) -> None:
    """The model changes between the calls, as in training."""
    rng, tokens = random.Random(0), 0
    model, engine = llama, NativeEngine(llama, exact=True)
    for step in range(1000):
        asked = prompts(rng, 16)
        temperature = rng.choice([1.0, 0.7, 1.3])
        drawn = engine.generate(asked, Sampling(16, temperature, max_tokens=200, stop=STOP[:1], seed=step))
        samples = samples_of(asked, drawn)
        assert mismatch(model, samples, temperature, micro_tokens=rng.choice([500, 4096, 8192])) == 0.0
        tokens += sum(len(c.tokens) for group in drawn for c in group)
        if tokens >= 1_000_000:
            break
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1e-3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(step)))
        engine.load({})
    print(f"{tokens} tokens")
    assert tokens >= 1_000_000


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_ten_thousand_requests_in_any_company(llama: Any) -> None:
    compared = [a == b for a, b in company(llama, 10_000)]
    print(f"{len(compared)} completions")
    assert all(compared) and len(compared) >= 10_000
