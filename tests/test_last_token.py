"""LaSeR's last-token score: its numbers by hand, what is learnt, what it costs, and what has none."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_float64 import Tiny, double, learner
from transformers import AutoModelForCausalLM

from twofold import run, training
from twofold.compute.judge import Judging, judge_all
from twofold.compute.last_token import clipped, ended
from twofold.compute.plan import parse
from twofold.compute.rollout import draw, rollouts
from twofold.compute.solve import solve
from twofold.config import Config, Rollouts, Train
from twofold.maths.credit import grpo
from twofold.maths.losses import Loss
from twofold.maths.schedule import Optim
from twofold.maths.step_credit import class_weights
from twofold.models.checkpoints import STATE
from twofold.models.io import ASKED_AS, asked_as, chat_options
from twofold.recipes.common import context_sample
from twofold.recipes.last_token import LastTokenOptions, Score, mixed
from twofold.recipes.rlv import RLV, Recipe
from twofold.run import Eval, Model
from twofold.tasks.procedural import Sums
from twofold.trainer.batch import batches
from twofold.trainer.learner import Learner
from twofold.types import LastToken, Sample, Sampling

PAD = 0
TASK = Sums(level=1)


@pytest.fixture(scope="module")
def model() -> Model:
    return run.load("tiny")


def sampling(model: Model, n: int = 2, tokens: int = 40) -> Sampling:
    return Sampling(n, max_tokens=tokens, stop=model.chat.stop)


def config(**options: object) -> Config:
    return Config(
        recipe=RLV(verify="last_token", rollouts=3, score_every=1, **options),  # type: ignore[arg-type]
        task=TASK, rollout=Rollouts(problems=2, max_tokens=30), optim=Optim(lr=1e-3), train=Train(steps=4, save_every=2),
    )  # fmt: skip


# ---------------------------------------------------------------- numbers by hand


def test_the_score_of_a_log_prob() -> None:
    how = LastToken(PAD, 0.1, -23.0)
    assert [clipped(how, x) for x in (-13.0, -18.0, -20.0, -23.0)] == pytest.approx([1.0, 0.5, 0.3, 0.0])
    assert clipped(how, -60.0) == 0.0 and clipped(how, -1.0) == 1.0


@pytest.mark.parametrize(("weights", "loss"), [((2 / 3, 2.0), 0.130), ((1.0, 1.0), 0.115)])
def test_the_loss_of_right_and_wrong_scores(model: Model, weights: tuple[float, float], loss: float) -> None:
    """Right solutions at .5, .8, .9 and a wrong one at .4, through the learner's own stream."""
    assert weights in (class_weights(3, 1, 3**2, 1**2), (1.0, 1.0))
    net, scores, right = Tiny("bce"), (0.5, 0.8, 0.9, 0.4), (True, True, True, False)
    texts = [[1, 2, 3], [1, 4, 5, 6], [7, 8], [5, 2, 6]]
    score, samples = Score(LastTokenOptions(), run.load("tiny").chat), []
    for tokens, s, correct in zip(texts, scores, right, strict=True):
        hidden = net(torch.tensor([tokens]), torch.arange(len(tokens))[None], None)[0, -1]
        logp = float(net.head(hidden).log_softmax(-1)[PAD].detach())
        score.how.reference = logp - s / score.how.scale  # so that this solution's score is s
        plain = Sample(tokens, [False] * len(tokens), *([0.0] * len(tokens) for _ in range(3)))
        samples.append(score.judged(plain, correct, weights[0] if correct else weights[1]))
    of = learner(net, Loss(), 1.0)
    for budget in (100, 4):
        parts = batches(samples, Loss(), budget, net.device, range(4))
        assert sum(float(of._losses(net, double(b), True)[1]["score_loss"].detach()) for b in parts) == pytest.approx(
            loss
        )


def test_mixed_advantages() -> None:
    reward, score = grpo([1, 0, 0, 0]), [0.9, 0.5, 0.1, 0.1]
    assert grpo(score) == pytest.approx([1.3056, 0.2611, -0.7833, -0.7833], abs=1e-4)
    assert mixed(reward, score, grpo, 0.1) == pytest.approx([1.4806, -0.4239, -0.5283, -0.5283], abs=1e-4)
    assert mixed(reward, [0.5, 0.45, 0.5, 0.45], grpo, 0.1) == reward  # they vary by .0289 only


# ---------------------------------------------------------------- the judge


def test_it_runs_the_end_token_only(model: Model) -> None:
    chat = model.chat
    how = chat.asking(chat.question)
    how.last_token = LastToken(PAD, 0.1, -21.6)
    asked = [TASK.problem("train", i).question for i in range(4)]
    group = [r for g in draw(model.engine, chat, asked, sampling(model)) for r in g if ended(chat, r)]
    assert len(group) >= 4
    before = model.engine.usage.computed
    judged = judge_all(model.engine, how, group, Judging("last_token"))
    different = {(*r.prompt, *r.completion.tokens) for r in group}
    assert model.engine.usage.computed - before == len(different)
    assert [tokens for _, tokens in judged] == [1] * len(group)
    oracle = AutoModelForCausalLM.from_pretrained(run.shipped(), dtype=torch.float32)
    for r, (score, _) in zip(group, judged, strict=True):
        with torch.inference_mode():
            logits = oracle(torch.tensor([[*r.prompt, *r.completion.tokens]])).logits[0, -1]
        assert score == pytest.approx(clipped(how.last_token, float(logits.log_softmax(-1)[PAD])), abs=1e-4)


def test_a_cut_solution_has_no_score(model: Model) -> None:
    chat = model.chat.asking(model.chat.question)
    chat.last_token = LastToken(PAD, 0.1, -60.0)  # so that any log-prob would score above 0
    (group,) = draw(model.engine, chat, ["Start with 3. Add 4."], sampling(model, tokens=5))
    assert judge_all(model.engine, chat, group, Judging("last_token")) == [(0.0, 0)] * 2
    graded = [
        r for g in rollouts(model.engine, chat, TASK, [TASK.problem("train", 0)], sampling(model, 4, 20)) for r in g
    ]
    recipe = Recipe(RLV(verify="last_token"), TASK, chat, sampling(model))
    assert recipe.last is not None
    recipe.last.how.reference = -21.0
    assert set(recipe._judged(graded, 0)) == {i for i, r in enumerate(graded) if r.completion.finish == "stop"}


def test_models_and_options_that_cannot_are_refused(model: Model) -> None:
    with pytest.raises(ValueError, match=r'no last-token score: train it with recipe.verify = "last_token"'):
        solve(model.engine, model.chat, ["1+1?"], parse("weighted-2:judge=last_token"))
    with pytest.raises(ValueError, match="does not read question"):
        Judging("last_token", question="Right?")
    for used in ("<|user|>", "<|end|>", "hello"):
        with pytest.raises(ValueError, match="needs a token that nothing uses"):
            model.chat.unused(used)
    assert model.chat.unused() == PAD and model.chat.unused("<think>") == model.chat.codec.added["<think>"]
    for options, why in (
        ({"verify": "none", "last_token": LastTokenOptions(mix=0.1)}, "reads last_token"),
        ({"verify": "last_token", "adversarial": 0.1}, "set recipe.adversarial=0"),
        ({"verify": "last_token", "estimator": "vineppo", "last_token": LastTokenOptions(mix=0.1)}, "whole rollouts"),
    ):
        with pytest.raises(ValueError, match=why):
            RLV(**options)  # type: ignore[arg-type]


def test_a_scale_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scale = 0.05 puts the score 1 at a log-prob of -?1\.\d, above -4"):
        training.train(config(last_token=LastTokenOptions(scale=0.05)), tmp_path)


# ---------------------------------------------------------------- runs


def test_it_is_saved_resumed_and_used(tmp_path: Path) -> None:
    """The reference outlives a resume, which gives the bits of an undivided run; the checkpoint brings what the judge needs."""
    settings = config(balance="weights", lam=5.0, last_token=LastTokenOptions(mix=0.2, mix_after=1))
    last = training.train(settings, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-4")
    resumed = training.train(settings, tmp_path / "again", resume=True)
    assert (last / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()]
    assert ["last_token/reference" in row for row in rows] == [True, False, False, False]
    assert all(row["score_loss"] > 0 and 0 <= row["verifier/ece"] <= 1 for row in rows)
    reference = rows[0]["last_token/reference"]
    model = run.load(resumed)
    assert -25 < reference < -18 and model.chat.last_token == LastToken(PAD, 0.1, reference)
    settings_of_eval = Eval(problems=2, n=2, max_tokens=30, judge=Judging("last_token"))
    plan = parse("best-2:judge=last_token,max_tokens=30")
    done = run.evaluate(model, TASK, settings_of_eval, out=tmp_path / "eval", plans=[plan])
    pools = [json.loads(line) for line in (done / "pools.jsonl").read_text().splitlines()]
    assert {tokens for pool in pools for tokens in pool["judge_tokens"]} <= {0, 1}
    assert json.loads((done / "eval.json").read_text())["judge"] == "last_token"
    with pytest.raises(ValueError, match="leave out the verifier"):
        run.evaluate(model, TASK, settings_of_eval, out=tmp_path / "other", verifier=model)


def test_the_score_is_regressed_on_the_reward() -> None:
    """A few updates on the score's term alone: right solutions rise above wrong ones, by an engine that reads the weights."""
    model = run.load("tiny")
    engine, chat = model.engine, model.chat
    problems = [TASK.problem("train", i) for i in range(6)]
    drawn = [r for g in rollouts(engine, chat, TASK, problems, sampling(model)) for r in g if ended(chat, r)]
    score = Score(LastTokenOptions(reference=-21.5), chat)
    samples = [score.judged(context_sample(r), r.grade.correct, 1.0) for r in drawn]
    assert 0 < sum(r.grade.correct for r in drawn) < len(drawn)
    of = Learner(engine.model, Optim(lr=3e-4, warmup=0), Loss(), steps=16)
    losses = [of.update(samples)["score_loss"] for _ in range(16)]
    engine.load(of.weights())
    found = score.scores(engine, drawn)
    right, wrong = (
        [s for s, r in zip(found, drawn, strict=True) if r.grade.correct == is_right] for is_right in (True, False)
    )
    assert losses[-1] < 0.5 * losses[0]
    assert sum(right) / len(right) > sum(wrong) / len(wrong) + 0.3


def test_a_warm_up_learns_the_score_and_keeps_the_policy(model: Model) -> None:
    """The rollouts are the start's, each of their tokens weighs 1, and the score's error lambda; the reference is measured first."""
    options = RLV(verify="last_token", rollouts=3, verify_warmup=2, lam=5.0, balance="weights")
    recipe = Recipe(options, TASK, model.chat, sampling(model), start=model.engine)
    found = recipe.collect(model.engine, [TASK.problem("train", i) for i in range(4)], 0)
    reference, samples = found.stats["last_token/reference"], found.samples["policy"]
    rollouts = [r for g in found.groups for r in g]
    whole = [(s, r) for s, r in zip(samples, rollouts, strict=True) if ended(model.chat, r)]
    right = sum(r.grade.correct for _, r in whole)
    share = class_weights(right, len(whole) - right, right**2, (len(whole) - right) ** 2)
    assert 0 < right < len(whole)
    for s, r in whole:
        (index, token, label, weight) = s.fits[0]
        assert [t for t in s.targets if t] == [1.0] * len(r.completion.tokens) and not any(s.sampled)
        assert (index, token) == (len(s.tokens) - 1, PAD) and label == reference + 10 * r.grade.correct
        assert weight == pytest.approx(5.0 * share[0 if r.grade.correct else 1] / 100)


def test_steps_before_after_learn_no_score(tmp_path: Path) -> None:
    settings = replace(
        config(last_token=LastTokenOptions(after=1, reference=-20.0)), train=Train(steps=2, save_every=0)
    )
    training.train(settings, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert ["score_loss" in row for row in rows] == [False, True]
    assert not any(math.isnan(v) for row in rows for v in row.values() if isinstance(v, float))
    assert run.load(tmp_path).chat.last_token == LastToken(PAD, 0.1, -20.0)


def test_a_copy_without_trainer_files_still_knows_how_the_score_is_read(tmp_path: Path) -> None:
    saved, copied = tmp_path / "step-1", tmp_path / "copy"
    (saved / STATE).parent.mkdir(parents=True)
    copied.mkdir()
    recipe = {"last_token": 7, "scale": 0.1, "reference": -12.5}
    (saved / STATE).write_text(json.dumps({"question": "Is it?", "recipe": recipe}))
    (copied / ASKED_AS).write_text(json.dumps(asked_as(saved)))
    assert chat_options(copied) == chat_options(saved)
    assert chat_options(copied)["last_token"] == LastToken(7, 0.1, -12.5)
