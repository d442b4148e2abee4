"""RLCR: its numbers by hand, what is learnt from a stated confidence, and the judge that reads it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from twofold import run, toml
from twofold.compute.judge import Judging, judge_all
from twofold.compute.plan import parse
from twofold.compute.rollout import draw, rollouts
from twofold.compute.solve import solve
from twofold.compute.stated import DIGITS, parse_confidence
from twofold.compute.verify import asked
from twofold.config import Config
from twofold.maths.credit import rloo
from twofold.recipes.common import context_sample
from twofold.recipes.rlcr import RLCR, Recipe, brier, with_confidence
from twofold.run import Model
from twofold.tasks.procedural import Sums
from twofold.text.chat import Chat
from twofold.text.prompts import CONFIDENCE
from twofold.types import Collected, Completion, Sampling

TASK = Sums(level=1)
PROBLEMS = [TASK.problem("train", i) for i in range(5)]


@pytest.fixture(scope="module")
def model() -> Model:
    return run.load("tiny")


def collected(model: Model, **options: object) -> Collected:
    """One step at a temperature at which some confidences are no digits."""
    how = Sampling(temperature=1.5, max_tokens=40, seed=1)
    recipe = Recipe(RLCR(rollouts=4, **options), TASK, model.chat, how)  # type: ignore[arg-type]
    return recipe.collect(model.engine, PROBLEMS, 0)


# ---------------------------------------------------------------- numbers by hand


def test_rewards_by_hand() -> None:
    stated = [(1, 0.9), (1, 0.6), (0, 0.4), (0, 0.1)]
    paid = [right - brier(q, bool(right)) for right, q in stated]
    assert paid == pytest.approx([0.99, 0.84, -0.16, -0.01])
    assert rloo(paid) == pytest.approx([0.7667, 0.5667, -0.7667, -0.5667], abs=1e-4)
    assert brier(None, True) == brier(None, False) == 1.0


@pytest.mark.parametrize(("p", "best"), [(0.75, 0.75), (0.15, 0.15)])
def test_the_chance_itself_is_the_best_confidence(p: float, best: float) -> None:
    earned = {
        q: p * (1 - brier(q, True)) - (1 - p) * brier(q, False) for q in (parse_confidence(d) for d in DIGITS) if q
    }
    assert max(earned, key=earned.__getitem__) == pytest.approx(best)
    assert earned[best] == pytest.approx(p**2)


def test_only_one_digit_is_a_confidence() -> None:
    texts = ("0", "9", " 4\n", "", "10", "x", "-1", "٣")
    assert [parse_confidence(t) for t in texts] == [0.05, 0.95, 0.45, None, None, None, None, None]


# ---------------------------------------------------------------- what is learnt


def test_solution_and_confidence_are_paid_together(model: Model) -> None:
    found = collected(model, lam=0.5)
    assert found.stats["rlcr/unreadable"] not in (0, 1) and found.stats["rlcr/entropy"] > 0.5
    check(model, found, 0.5, joint=True)


def test_solution_and_confidence_are_paid_apart(model: Model) -> None:
    check(model, collected(model, lam=3.0, credit="split"), 3.0, joint=False)


def check(model: Model, found: Collected, lam: float, joint: bool) -> None:
    """Recompute every advantage from the texts, and every log-prob of a confidence by the engine."""
    samples = iter(found.samples["policy"])
    for group in found.groups:
        own = [next(samples) for _ in group]
        prompts = [asked(model.chat, r, CONFIDENCE) for r in group]
        said = [model.chat.decode(s.tokens[-1:]) for s in own]
        costs = [-lam * brier(parse_confidence(text), r.grade.correct) for text, r in zip(said, group, strict=True)]
        rewards = [r.grade.known for r in group]
        both = rloo([a + b for a, b in zip(rewards, costs, strict=True)])
        solving, stating = (both, both) if joint else (rloo(rewards), rloo(costs))
        scored = model.engine.logprobs(prompts, [s.tokens[-1:] for s in own], 1.5)
        for i, (r, s) in enumerate(zip(group, own, strict=True)):
            before, size = len(r.prompt), len(r.completion.tokens)
            assert s.tokens[:-1] == prompts[i] and s.tokens[: before + size] == [*r.prompt, *r.completion.tokens]
            question = len(prompts[i]) - before - size
            assert s.sampled == [False] * before + [True] * size + [False] * question + [True]
            expected = [0.0] * before + [solving[i]] * size + [0.0] * question + [stating[i]]
            assert s.advantages == pytest.approx(expected)
            assert s.logprobs[-1] == pytest.approx(scored[i][0], abs=1e-4) and not any(s.targets)
    assert next(samples, None) is None


def test_a_question_behind_other_tokens_is_a_sample_of_its_own(model: Model) -> None:
    """A judge does not read the control tokens inside a solution, which the policy still learns."""
    how = Sampling(1, max_tokens=40, stop=model.chat.stop)
    ((rollout,),) = rollouts(model.engine, model.chat, TASK, PROBLEMS[:1], how)
    tokens = [*rollout.completion.tokens[:3], model.chat.stop[0], *rollout.completion.tokens[3:]]
    strange = replace(rollout, completion=Completion(tokens, [-1.0] * len(tokens), [True] * len(tokens), "stop"))
    prompt = asked(model.chat, strange, CONFIDENCE)
    solution, question = with_confidence(
        context_sample(strange), prompt, Completion([7], [-2.0], [True], "length"), 0.25
    )
    assert solution.tokens == [*strange.prompt, *tokens]
    assert question.tokens == [*prompt, 7] and question.sampled == [False] * len(prompt) + [True]
    assert question.advantages[-1] == 0.25 and not any(question.advantages[:-1]) and question.logprobs[-1] == -2.0


def test_options_that_cannot_are_refused() -> None:
    with pytest.raises(ValueError, match="a group of one has no baseline"):
        RLCR(rollouts=1)
    assert isinstance(toml.override(Config(), ["recipe.name=rlcr", "recipe.credit=split"]).recipe, RLCR)


def test_digits_must_be_single_tokens() -> None:
    """The tokenizer has one token for each byte that is no digit."""
    letters = {c: i for i, c in enumerate(sorted({*pre_tokenizers.ByteLevel.alphabet()} - {*DIGITS}))}
    bytewise = Tokenizer(models.BPE(vocab=letters, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    chat = Chat(PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token="<|end|>"))
    with pytest.raises(ValueError, match="must be single, distinct tokens"):
        RLCR().build(SimpleNamespace(chat=chat))  # type: ignore[arg-type]


# ---------------------------------------------------------------- the judge


def test_the_judge_is_the_mean_over_the_digits(model: Model) -> None:
    how, questions = Sampling(2, max_tokens=40, stop=model.chat.stop), [p.question for p in PROBLEMS[:2]]
    group = [r for g in draw(model.engine, model.chat, questions, how) for r in g]
    prompts = [asked(model.chat, r, CONFIDENCE) for r in group]
    different = {tuple(p) for p in prompts}
    before = model.engine.usage.computed
    judged = judge_all(model.engine, model.chat, group, Judging("stated"))
    follow = len(model.chat.follow_up(CONFIDENCE))
    assert model.engine.usage.computed - before <= len(different) * (
        follow + 1
    )  # the question, on the solution's cache
    oracle = AutoModelForCausalLM.from_pretrained(run.shipped(), dtype=torch.float32)
    ids = model.chat.single_tokens(DIGITS)
    for prompt, r, (score, tokens) in zip(prompts, group, judged, strict=True):
        with torch.inference_mode():
            p = oracle(torch.tensor([prompt])).logits[0, -1].double()[ids].softmax(-1)
        assert score == pytest.approx(float((p * (torch.arange(10) + 0.5) / 10).sum()), abs=1e-4)
        assert tokens == len(prompt) - len(r.prompt) - len(r.completion.tokens) + 1


def test_it_judges_for_every_rule_and_maker(model: Model) -> None:
    question = PROBLEMS[0].question
    for text in ("weighted-3:judge=stated", "best-4:judge=stated,make=forcing", "posterior-3:judge=stated"):
        (found,) = solve(model.engine, model.chat, [question], parse(f"{text},max_tokens=30"))
        assert all(s is None or 0.05 <= s <= 0.95 for s in found.scores) and any(found.scores)
    with pytest.raises(ValueError, match="does not read question"):
        Judging("stated", question="Sure?")
