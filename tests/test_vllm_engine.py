"""What only the vLLM engine promises, with vLLM itself: ``make test-vllm`` runs this and the suite of all engines."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from twofold import run, training
from twofold.compute.judge import p_yes, question
from twofold.compute.rollout import draw
from twofold.config import Config, LoraOptions, Rollouts, Train
from twofold.engine_options import Vllm
from twofold.engines.native import NativeEngine
from twofold.maths.losses import Loss
from twofold.maths.schedule import Optim
from twofold.models.io import load_model
from twofold.recipes.rlv import RLV
from twofold.tasks.procedural import Sums
from twofold.types import Sampling

vllm = pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")
from twofold.engines.agreement import Mismatch  # noqa: E402
from twofold.engines.vllm import VllmEngine  # noqa: E402

pytestmark = pytest.mark.timeout(900)
SMALL: dict[str, Any] = {"kv_gib": 0.1, "eager": True}
TEXTS = [[*range(7, 80)], [*range(90, 200)], [9, 8]]  # the longer ones fill blocks of the prefix cache


def near(numbers: Any) -> Any:
    """Allow fp32 rounding: the widely spread random weights amplify it, and here they are scaled up."""
    return pytest.approx(numbers, abs=1e-3, rel=0)


def scores(engine: Any, temperature: float = 1.0) -> list[float]:
    """Log-probs of one token after each text, which read the prefix cache, and of three tokens, which do not."""
    found = engine.logprobs([*TEXTS, *TEXTS], [[5]] * 3 + [[5, 6, 7]] * 3, temperature)
    return [x for row in found for x in row]


@pytest.mark.parametrize("fixture", ["tiny_model", "tiny_qwen"])
def test_new_weights_leave_nothing_stale(fixture: str, request: pytest.FixtureRequest) -> None:
    """This holds for tied embeddings (``tiny_qwen``), and for a text whose prefix was cached under the old weights."""
    model = load_model(request.getfixturevalue(fixture))[0]
    engine = VllmEngine(model, **SMALL)
    before = scores(engine)
    assert before == near(scores(NativeEngine(model)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert scores(engine) == near(before)  # the engine has a copy of its own
    reused = engine.usage.reused
    assert reused > 0
    engine.load(model.state_dict())
    after = scores(engine)
    assert after == near(scores(NativeEngine(model)))
    assert all(abs(a - b) > 1e-2 for a, b in zip(after, before, strict=True))
    assert engine.usage.reused == reused, "nothing was read from the old cache"
    engine.rest()
    assert scores(engine, 0.7) == near(scores(NativeEngine(model), 0.7))


@pytest.fixture(scope="module")
def shipped() -> run.Model:
    return run.load("tiny")


@pytest.fixture(scope="module")
def engine(shipped: run.Model) -> VllmEngine:
    return VllmEngine(shipped.engine.model, tokens=512, **SMALL)  # type: ignore[union-attr]


def test_weights_that_did_not_arrive_are_an_error_with_numbers(engine: VllmEngine) -> None:
    model = engine.model
    own = copy.deepcopy(model.state_dict())
    wrong = {name: tensor * 1.2 if "layers.0." in name else tensor for name, tensor in own.items()}
    with pytest.raises(Mismatch, match=r"text of 64 tokens are \d\.\d+ nats from the learner's in the mean and \d"):
        engine.load(wrong)
    engine.load(own)


def test_a_judgement_reads_the_cache_of_its_solution(engine: VllmEngine, shipped: run.Model) -> None:
    """Only what is in no whole block of 32 tokens is computed: the question and less than a block of the solution."""
    puzzle = Sums().problem("train", 3).question
    (group,) = draw(engine, shipped.chat, [puzzle], Sampling(8, 1.5, max_tokens=200, seed=1))
    computed, reused = engine.usage.computed, engine.usage.reused
    found = p_yes(engine, shipped.chat, group)
    asked = [question(shipped.chat, r) for r in group]
    read = sum(map(len, asked))
    assert engine.usage.computed - computed + engine.usage.reused - reused == read
    own = [len(r.prompt) + len(r.completion.tokens) for r in group]
    # a rollout's last token was drawn and not run; the prompt with its end of turn is shared
    assert engine.usage.reused - reused >= sum((n - 1) // 32 * 32 for n in own) > 0
    assert found == pytest.approx(p_yes(shipped.engine, shipped.chat, group), abs=1e-4)


def test_what_vllm_cannot_do_is_refused(engine: VllmEngine) -> None:
    with pytest.raises(ValueError, match="vLLM returns no confidences"):
        engine.generate([[5]], Sampling(trace_top=3))
    with pytest.raises(ValueError, match=r"temperature 0 or at least 0\.01, not 0\.005"):
        engine.generate([[5]], Sampling(temperature=0.005))
    with pytest.raises(ValueError, match=re.escape("context is 512 tokens (engine.context)")):
        engine.generate([[5]], Sampling(max_tokens=512))
    with pytest.raises(ValueError, match=re.escape("context is 512 tokens (engine.context)")):
        engine.logprobs([[5] * 512], [[6]])
    assert len(engine.logprobs([[5]], [[6] * 511])[0]) == 511


def test_the_options_reach_vllm(shipped: run.Model) -> None:
    """This is in bfloat16: the comparison at the start allows its rounding."""
    options = Vllm(context=300, max_rows=7, kv_gib=0.125, eager=True, deadline=99.0)
    engine: Any = options.build(shipped.engine.model, "bfloat16")  # type: ignore[union-attr]
    found = engine._llm.llm_engine.vllm_config
    assert (found.model_config.max_model_len, engine.context.tokens, found.model_config.dtype) == (
        300,
        300,
        torch.bfloat16,
    )
    assert (found.scheduler_config.max_num_seqs, found.cache_config.kv_cache_memory_bytes) == (7, 2**27)
    assert found.model_config.enforce_eager and engine._thread.deadline == 99


def test_more_prompts_than_fit_one_pass(engine: VllmEngine, shipped: run.Model) -> None:
    """3200 prompt tokens; at 2048 vLLM would cut a prompt in two, which it cannot do with seeds on a CPU."""
    prompts = [[i, *range(100, 199)] for i in range(10, 42)]
    for prompt, (c,) in zip(prompts, engine.generate(prompts, Sampling(max_tokens=2, seed=1)), strict=True):
        assert c.logprobs == near(shipped.engine.logprobs([prompt], [c.tokens])[0])


def test_an_error_in_a_callback_leaves_nothing_running(engine: VllmEngine) -> None:
    def broken(i: int, j: int, completion: Any) -> None:
        raise KeyError(i)

    with pytest.raises(KeyError):
        engine.generate([[5], [6]], Sampling(4, max_tokens=30), broken)
    engine.load(engine.model.state_dict())  # it would raise if a request were still running
    assert len(engine.generate([[5]], Sampling(2, max_tokens=3))[0]) == 2


def test_an_old_vllm_is_refused_by_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, shipped: run.Model
) -> None:
    model = shipped.engine.model  # type: ignore[union-attr]
    monkeypatch.setattr(vllm, "__version__", "0.27.1")
    with pytest.raises(ImportError, match=r"this is 0\.27\.1: install vLLM 0\.28 or newer: pip install"):
        VllmEngine(model)
    monkeypatch.setattr(vllm, "__version__", "0.30.0")
    monkeypatch.delattr(vllm.LLM, "apply_model")
    with pytest.raises(ImportError, match=r"this is 0\.30\.0, and lacks LLM\.apply_model"):
        VllmEngine(model)


def test_silence_beyond_the_deadline_is_an_error_that_names_vllm(shipped: run.Model) -> None:
    engine = VllmEngine(shipped.engine.model, **SMALL)  # type: ignore[union-attr]
    engine._thread.deadline = 1e-4
    with pytest.raises(
        TimeoutError, match=r"vLLM \(in this process, for Llama\) was asked to draw samples and has given no"
    ):
        engine.generate([[5]] * 8, Sampling(8, max_tokens=200))
    with pytest.raises(TimeoutError, match="did not answer an earlier call"):
        engine.generate([[5]], Sampling())


def config(**changes: Any) -> Config:
    run = Config(
        recipe=RLV(rollouts=4),
        task=Sums(level=1),
        rollout=Rollouts(problems=4, max_tokens=24),
        engine=Vllm(context=512, kv_gib=0.1, eager=True),
        loss=Loss(correction="token_truncate", beta=0.1),
        optim=Optim(lr=1e-3),
        train=Train(steps=4, save_every=2),
    )
    return replace(run, **changes)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    training.train(config(), out)
    return out


def test_a_training_with_vllm_samples_what_its_learner_scores(trained: Path) -> None:
    lines = metrics(trained)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert all(line["mismatch"] < 1e-4 for line in lines)
    assert all(line["correction"] == pytest.approx(1, abs=1e-3) and line["correction_capped"] == 0 for line in lines)
    assert lines[0]["kl"] < 1e-6 < lines[-1]["kl"]  # the reference is the native engine's


def test_a_resumed_training_samples_from_the_saved_weights(trained: Path, tmp_path: Path) -> None:
    """The engine is built before the checkpoint is read."""
    out = tmp_path / "run"
    training.train(config(train=Train(steps=2, save_every=2)), out)
    training.train(config(train=Train(steps=4, save_every=2)), out, resume=True)
    assert [line["mismatch"] < 1e-4 for line in metrics(out)] == [True] * 4


def test_one_step_ahead_with_adapters(tmp_path: Path) -> None:
    """vLLM samples from the sum of the frozen weights and the adapter, with the adapter from before the last update."""
    ahead = config(train=Train(steps=4, save_every=2, ahead=1), lora=LoraOptions(rank=4))
    training.train(ahead, tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert [line.get("staleness", 0) for line in lines] == [0, 1, 0, 1]
    assert [line["mismatch"] < 1e-4 for line in lines] == [True, False, True, False]


def test_a_trained_checkpoint_is_what_vllm_loads(trained: Path) -> None:
    """vLLM starts on a checkpoint's folder as it is, and says of a text what we say, which is not what the base model says."""
    folder = trained / "checkpoints" / "step-4"
    llm = vllm.LLM(str(folder), dtype="float32", enforce_eager=True, kv_cache_memory_bytes=1 << 27, max_model_len=512)
    text = "Start with 47. Add 38. What is the result?"
    ours, base = run.load(folder), run.load("tiny")
    prompt = ours.chat.prompt(text)
    asked = vllm.SamplingParams(max_tokens=24, temperature=0, logprobs=0, stop_token_ids=[*ours.chat.stop])
    (done,) = llm.chat([{"role": "user", "content": text}], asked, use_tqdm=False)
    assert done.prompt_token_ids == prompt
    ((want,),) = ours.engine.generate([prompt], Sampling(max_tokens=24, temperature=0, stop=ours.chat.stop))
    assert [*done.outputs[0].token_ids] == want.tokens
    found = [row[t].logprob for row, t in zip(done.outputs[0].logprobs, want.tokens, strict=True)]
    assert found == near(want.logprobs)
    assert max(abs(a - b) for a, b in zip(base.engine.logprobs([prompt], [want.tokens])[0], found, strict=True)) > 1e-2


def test_a_scalar_head_is_refused_with_vllm(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only the native engine reads a scalar head"):
        training.train(config(recipe=RLV(verify="bce")), tmp_path / "run")
