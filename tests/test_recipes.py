"""Recipes: which tokens of a rollout get credit, which become targets, and how often the engine is called.

The scripted engine and the task have known contents, so that every advantage can be computed by hand.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from words import Words

from twofold.compute.judge import question
from twofold.compute.rollout import rollouts
from twofold.engines.base import Finished, ignore_finished, report_all
from twofold.engines.native import NativeEngine
from twofold.maths.credit import grpo, rloo
from twofold.maths.seeds import derive
from twofold.models.io import load_model
from twofold.recipes import pretrain, rlv, sft
from twofold.recipes.corpus import KINDS, WORDS, Mix, document
from twofold.recipes.rlv import RLV
from twofold.tasks.procedural import Countdown, Letters, Sums, apply, evaluate
from twofold.tasks.stream import Problems
from twofold.text.chat import Chat, Turn
from twofold.text.prompts import AGREE, CRITIQUE, JUDGE, STEPS_RIGHT
from twofold.types import Completion, Grade, Problem, Rollout, Sample, Sampling


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_model(tiny_model)[0]


@pytest.fixture(scope="module")
def chat(tiny_model: Path) -> Chat:
    return Chat(load_model(tiny_model)[1])


@dataclass
class Scripted:
    """An engine that writes what ``script`` says: prefix as text -> texts. A text that ends in "..." is cut."""

    chat: Chat
    script: Mapping[str, Sequence[str]]
    generated: list[tuple[list[list[int]], Sampling]] = field(default_factory=list)
    scored: list[list[list[int]]] = field(default_factory=list)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished = ignore_finished
    ) -> list[list[Completion]]:
        self.generated.append(([list(p) for p in prompts], sampling))
        return report_all([[self.completion(t) for t in self.script[self.chat.decode(p)]] for p in prompts], finished)

    def completion(self, text: str) -> Completion:
        tokens = self.chat.encode(text) + ([] if text.endswith("...") else [self.chat.stop[0]])
        finish = "length" if text.endswith("...") else "stop"
        return Completion(tokens, [-0.1 * (t + 1) for t in range(len(tokens))], [True] * len(tokens), finish)

    def logprobs(self, prompts: Any, continuations: Any, temperature: float = 1.0) -> list[list[float]]:
        self.scored.append([list(p) for p in prompts])
        return [[-1.0] * len(c) for c in continuations]

    def load(self, weights: Mapping[str, Any]) -> None: ...

    def rest(self) -> None: ...


PROBLEMS = [Words().problem("train", 0), Words().problem("train", 1)]
GROUPS = {"Q0": ["one yes", "two no", "three no", "four no"], "Q1": ["no one", "no", "maybe no", "so no"]}


def recipe(
    chat: Chat, temperature: float = 1.0, reference: Any = None, start: Any = None, **options: Any
) -> rlv.Recipe:
    config, sampling = RLV(**({"rollouts": 4} | options)), Sampling(temperature=temperature, max_tokens=16, seed=5)
    return rlv.Recipe(config, Words(), chat, sampling, reference, start=start)


def collect(
    chat: Chat, groups: Mapping[str, Sequence[str]] = GROUPS, step: int = 0, **options: Any
) -> tuple[dict[str, list[Sample]], dict[str, float], Scripted]:
    engine = Scripted(chat, groups)
    found = recipe(chat, **options).collect(engine, PROBLEMS, step)
    samples, stats = found.samples, found.stats
    return samples, stats, engine


def advantages(sample: Sample) -> list[float]:
    """Return the advantages of the sampled tokens."""
    assert not any(a for a, s in zip(sample.advantages, sample.sampled, strict=True) if not s)
    return [a for a, s in zip(sample.advantages, sample.sampled, strict=True) if s]


def verdicts(chat: Chat, samples: Sequence[Sample]) -> list[str | None]:
    """Return the text of the last token, if it is a target."""
    names = dict(zip(chat.yes_no_ids, ("Yes", "No"), strict=True))
    return [names[s.tokens[-1]] if s.targets[-1] else None for s in samples]


# ---------------------------------------------------------------- RL^V: one sample, two streams


def test_collect_with_a_real_engine(model, chat):
    """Tokens are prompt, completion, question and verdict; log-probs are the engine's; only the verdict is a target."""
    task, engine = Sums(level=1), NativeEngine(model)
    sampling = Sampling(temperature=0.7, max_tokens=10, seed=5)
    problems = [task.problem("train", i) for i in range(2)]
    config = RLV(rollouts=3, lam=0.5)
    found = rlv.Recipe(config, task, chat, sampling).collect(engine, problems, step=2)
    samples, stats = found.samples, found.stats
    assert set(samples) == {"policy"}
    assert (stats["lambda"], stats["reward"]) == (0.5, 0.0)  # a random model boxes nothing
    assert 0 < stats["completions/mean_length"] <= 10
    again = rollouts(
        NativeEngine(model), chat, task, problems, replace(sampling, n=3, stop=chat.stop, seed=derive(5, 2))
    )
    for sample, rollout in zip(samples["policy"], [r for g in again for r in g], strict=True):
        c, before = rollout.completion, len(rollout.prompt)
        behind = len(sample.tokens) - before - len(c.tokens)
        assert sample.tokens == [*question(chat, rollout), chat.yes_no_ids[1]]
        assert sample.sampled == [False] * before + [True] * len(c.tokens) + [False] * behind
        assert sample.logprobs == pytest.approx([0.0] * before + c.logprobs + [0.0] * behind, abs=1e-5)
        assert sample.targets == [0.0] * (len(sample.tokens) - 1) + [0.5]
        assert chat.tokenizer.decode(sample.tokens).endswith(f"{JUDGE}<|end|><|assistant|>No")


def test_the_verdict_is_the_reward(chat):
    samples, _, _ = collect(chat)
    assert verdicts(chat, samples["policy"]) == ["Yes"] + ["No"] * 7
    assert all(s.targets == [0.0] * (len(s.tokens) - 1) + [1.0] for s in samples["policy"])


def test_lambda_warms_up(chat):
    weights = [
        collect(chat, step=step, lam=2.0, lam_warmup=4)[0]["policy"][0].targets[-1] for step in (0, 1, 3, 4, 100)
    ]
    assert weights == [0.5, 1.0, 2.0, 2.0, 2.0]


def test_the_verdict_is_learnt_on_the_starting_models_rollouts_until_the_warm_up_ends(chat):
    start, policy = Scripted(chat, GROUPS), Scripted(chat, GROUPS)
    warm = recipe(chat, verify_warmup=3, lam=2.0, start=start)
    samples = warm.collect(policy, PROBLEMS, 2).samples["policy"]
    assert not policy.generated and start.generated
    assert not any(any(s.sampled) for s in samples)  # no policy term, and no KL term
    assert set(verdicts(chat, samples)) == {"Yes", "No"}
    for s in samples:  # every token of the completion weighs 1, the verdict 2 for each of them
        own = [t for t in s.targets[:-1] if t]
        assert own == [1.0] * len(own) and s.targets[-1] == 2.0 * len(own)
    after = warm.collect(policy, PROBLEMS, 3).samples["policy"]
    assert policy.generated and all(any(s.sampled) for s in after) and verdicts(chat, after) == verdicts(chat, samples)
    for verify in ("none", "separate", "bce"):
        with pytest.raises(ValueError, match="verify_warmup teaches the verdict as a token"):
            RLV(verify=verify, verify_warmup=3)


def test_a_step_is_a_pure_function_of_its_number(chat):
    assert collect(chat, step=3, balance="balanced")[0] == collect(chat, step=3, balance="balanced")[0]
    seeds = [collect(chat, step=step)[2].generated[0][1].seed for step in range(10)]
    assert len(set(seeds)) == 10


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("rloo", rloo([1, 0, 0, 0])), ("grpo", grpo([1, 0, 0, 0])), ("dr_grpo", [0.75, -0.25, -0.25, -0.25])],
)
def test_outcome_advantages_fall_on_every_token_of_a_completion(chat, estimator, expected):
    samples, _, engine = collect(chat, estimator=estimator)
    lengths = [len(engine.completion(t).tokens) for t in GROUPS["Q0"]]
    assert [advantages(s) for s in samples["policy"][:4]] == [[a] * n for a, n in zip(expected, lengths, strict=True)]


def test_a_group_of_equals_teaches_the_judge_alone(chat):
    samples, stats, _ = collect(chat)
    assert all(not any(s.advantages) and any(s.sampled) and s.targets[-1] for s in samples["policy"][4:])
    assert stats["frac_reward_zero_std"] == 0.5


def test_stats_by_hand(chat):
    groups = {"Q0": ["yes", "yes", "no", "late"], "Q1": ["yes", "cut...", "late", "late"]}
    _, stats, engine = collect(chat, groups)
    lengths = [len(engine.completion(t).tokens) for g in groups.values() for t in g]
    assert stats["reward"] == pytest.approx(3 / 5)
    assert stats["reward_std"] == pytest.approx((0.6 * 0.4) ** 0.5)
    assert stats["completions/mean_length"] == pytest.approx(sum(lengths) / 8)
    assert stats["completions/clipped_ratio"] == 1 / 8
    assert {k: v for k, v in stats.items() if k.startswith("labels/")} == {
        "labels/correct": 3 / 8, "labels/wrong": 2 / 8, "labels/no_answer": 0, "labels/timeout": 3 / 8, "labels/error": 0,
    }  # fmt: skip


def test_a_group_whose_known_rewards_are_equal_has_no_spread(chat):
    _, stats, _ = collect(chat, {"Q0": ["yes", "yes", "late", "yes"], "Q1": ["late"] * 4})
    assert stats["frac_reward_zero_std"] == 1


def test_a_balanced_draw_judges_as_many_right_as_wrong(chat):
    groups = {"Q0": ["a yes", "b no", "c no", "d no"], "Q1": ["e yes", "f no", "g no", "h no"]}
    drawn = set()
    for step in range(8):
        samples, _, _ = collect(chat, groups, step=step, balance="balanced")
        found = verdicts(chat, samples["policy"])
        assert Counter(found) == {"Yes": 2, "No": 2, None: 4}
        assert all(any(s.sampled) for s in samples["policy"])  # who is not judged still learns to solve
        drawn |= {i for i, v in enumerate(found) if v == "No"}
    assert len(drawn) > 4  # not the same ones every step
    samples, _, _ = collect(chat, {"Q0": ["no"] * 4, "Q1": ["no"] * 4}, balance="balanced")
    assert verdicts(chat, samples["policy"]) == [None] * 8


def test_rewards_that_could_not_be_computed_are_left_out_of_both_streams(chat):
    samples, _, _ = collect(chat, {"Q0": ["yes", "too late", "no", "so late"], "Q1": ["late", "late", "late", "yes"]})
    texts = [chat.decode([t for t, m in zip(s.tokens, s.sampled, strict=True) if m]) for s in samples["policy"]]
    assert texts == ["yes", "no", "yes"]
    assert [set(advantages(s)) for s in samples["policy"]] == [{1.0}, {-1.0}, {0.0}]  # the last is a group of one
    assert verdicts(chat, samples["policy"]) == ["Yes", "No", "Yes"]


def test_nothing_could_be_graded(chat):
    for estimator in ("rloo", "vineppo"):
        samples, stats, _ = collect(chat, {"Q0": ["late"] * 4, "Q1": ["late"] * 4}, estimator=estimator)
        assert samples["policy"] == [] and stats["labels/timeout"] == 1


def test_truncated_rollouts_are_wrong_or_left_out(chat):
    groups = {"Q0": ["yes", "no", "on and on...", "and on..."], "Q1": ["no"] * 4}
    wrong, _, _ = collect(chat, groups, truncated="wrong")
    assert verdicts(chat, wrong["policy"])[:4] == ["Yes", "No", "No", "No"]
    assert [advantages(s)[0] for s in wrong["policy"][:4]] == rloo([1, 0, 0, 0])
    excluded, stats, _ = collect(chat, groups, truncated="exclude")
    assert len(excluded["policy"]) == 6
    assert [advantages(s)[0] for s in excluded["policy"][:2]] == rloo([1, 0])
    assert stats["completions/clipped_ratio"] == 2 / 8


def test_a_cut_solution_is_asked_about_after_the_end_of_its_turn(chat):
    """The turn is closed exactly once, whether the model closed it or the token limit cut it."""
    samples, _, _ = collect(chat, {"Q0": ["no", "cut...", "no", "no"], "Q1": ["no"] * 4})
    texts = [chat.tokenizer.decode(s.tokens) for s in samples["policy"][:2]]
    assert texts[0] == f"<|user|>Q0<|end|><|assistant|>no<|end|><|user|>{JUDGE}<|end|><|assistant|>No"
    assert texts[1] == f"<|user|>Q0<|end|><|assistant|>cut...<|end|><|user|>{JUDGE}<|end|><|assistant|>No"


# ---------------------------------------------------------------- the paper's ablations


def test_without_verification_there_is_only_the_solution(chat):
    samples, _, engine = collect(chat, verify="none")
    assert not any(any(s.targets) or s.values for s in samples["policy"])
    assert [s.sampled[-1] for s in samples["policy"]] == [True] * 8
    assert engine.scored == []


def test_a_separate_verifier_gets_the_verdicts_and_the_policy_none(chat):
    joint, apart = (collect(chat, verify=v)[0] for v in ("generative", "separate"))
    plain = collect(chat, verify="none")[0]
    assert apart["policy"] == plain["policy"]
    for judged, both in zip(apart["verifier"], joint["policy"], strict=True):
        assert (judged.tokens, judged.targets) == (both.tokens, both.targets)
        assert not any(judged.sampled) and not any(judged.advantages)


@pytest.mark.parametrize("verify", ["bce", "regression"])
def test_a_scalar_head_reads_the_last_token_of_the_question(chat, verify):
    joint, scalar = (collect(chat, verify=v, lam=0.5)[0]["policy"] for v in ("generative", verify))
    for ours, theirs, label in zip(scalar, joint, [1.0] + [0.0] * 7, strict=True):
        assert ours.tokens == theirs.tokens[:-1]
        assert ours.values == [(len(ours.tokens) - 1, label, 0.5)]
        assert not any(ours.targets)
        assert advantages(ours) == advantages(theirs)


# ---------------------------------------------------------------- VinePPO


def vine(chat: Chat) -> tuple[rlv.Recipe, Scripted]:
    """Two rollouts, "a\\nb\\nyes" and "c\\nno"; the script says how many of four continuations of each prefix are right."""
    y, n = "yes", "no"
    script = {
        "Q0": [y, n, n, n],  # 1/4
        "Q0a\n": [y, y, n, n],  # 1/2
        "Q0a\nb\n": [y, y, y, "late"],  # 3/3: what could not be graded says nothing
        "Q0c\n": [n, n, n, "on..."],  # 0/4: a cut continuation is wrong
    }
    engine = Scripted(chat, script)
    first, plain = [engine.completion("a\nb\nyes"), engine.completion("c\nno")], engine.generate

    def generate(
        prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished = ignore_finished
    ) -> list[list[Completion]]:
        out = plain(prompts, sampling)
        return report_all(out if len(engine.generated) > 1 else [first], finished)

    engine.generate = generate  # type: ignore[method-assign]
    return recipe(chat, estimator="vineppo", rollouts=2, vine_k=4, verify="none"), engine


def test_vineppo_credits_steps_with_what_they_changed(chat):
    r, engine = vine(chat)
    samples = r.collect(engine, PROBLEMS[:1], 0).samples
    size = {text: len(chat.encode(text)) for text in ("a\n", "b\n", "yes", "c\n", "no")}
    # values 1/4, 1/2, 1, then the outcome 1
    assert advantages(samples["policy"][0]) == [0.25] * size["a\n"] + [0.5] * size["b\n"] + [0.0] * (size["yes"] + 1)
    # values 1/4, 0, then the outcome 0
    assert advantages(samples["policy"][1]) == [-0.25] * size["c\n"] + [0.0] * (size["no"] + 1)


def test_a_value_that_could_not_be_computed_is_left_out(chat):
    """Values 1/4, unknown, 1, then the outcome 1: the first two steps are one. Without a first value they have no credit."""
    rollout = Rollout(
        [1], Completion([7] * 6, [0.0] * 6, [True] * 6, "stop"), "", None, PROBLEMS[0], Grade(1.0, "correct")
    )
    unknown = float("nan")
    assert rlv.vine_credit(rollout, [0, 2, 3], [0.25, unknown, 1.0]) == [0.75] * 3 + [0.0] * 3
    assert rlv.vine_credit(rollout, [0, 2, 3], [unknown, 0.5, 0.25]) == [0.0] * 2 + [-0.25] + [0.75] * 3
    assert rlv.vine_credit(rollout, [0, 2, 3], [0.5, 0.5, unknown]) == [0.0] * 2 + [0.5] * 4
    assert rlv.vine_credit(rollout, [0, 2, 3], [unknown] * 3) == [0.0] * 6


def test_vineppo_asks_for_all_continuations_at_once(chat):
    r, engine = vine(chat)
    r.collect(engine, PROBLEMS[:1], 0)
    assert len(engine.generated) == 2
    (_, rolled), (prefixes, branched) = engine.generated
    assert [chat.decode(p) for p in prefixes] == ["Q0", "Q0a\n", "Q0a\nb\n", "Q0", "Q0c\n"]
    assert (rolled.n, branched.n) == (2, 4)
    assert branched == replace(rolled, n=4, seed=branched.seed)
    # with the rollouts' own seed the continuations of a bare prompt would be the rollouts over again
    assert branched.seed != rolled.seed


# ---------------------------------------------------------------- engine calls, reference, refusals


def test_the_engine_is_asked_once_per_phase(chat):
    for step, scored in ((0, 1), (1, 0), (5, 1)):
        _, stats, engine = collect(chat, step=step)
        assert (len(engine.generated), len(engine.scored)) == (1, scored)
        assert ("verifier/auroc" in stats) == bool(scored)
    prompts, sampling = engine.generated[0]
    assert len(prompts) == 2 and sampling.n == 4 and sampling.stop == chat.stop
    assert stats["verifier/auroc"] == 0.5  # this judge gives every solution exp(-1)


def test_a_step_may_have_one_problem(chat):
    engine = Scripted(chat, GROUPS)
    stats = recipe(chat).collect(engine, PROBLEMS[:1], 0).stats
    assert stats["verifier/auroc"] == 0.5 and stats["verifier/balanced_accuracy"] == 0.5
    stats = recipe(chat).collect(Scripted(chat, {"Q0": ["yes", "late", "late", "late"]}), PROBLEMS[:1], 0).stats
    assert stats["reward"] == 1 and "verifier/auroc" not in stats  # a single solution says nothing about a judge


@pytest.mark.parametrize("filtered", [{"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.1}])
def test_sampling_that_leaves_tokens_out_is_refused(chat, filtered):
    with pytest.raises(ValueError, match="top_p must be 1, top_k and min_p 0"):
        rlv.Recipe(RLV(), Words(), chat, Sampling(**filtered))


def test_reference_logprobs_are_those_of_the_reference_model(model, chat):
    engine = NativeEngine(model)
    samples = recipe(chat, temperature=0.7, reference=engine).collect(Scripted(chat, GROUPS), PROBLEMS, 0).samples
    for s in samples["policy"]:
        start = s.sampled.index(True)
        expected = NativeEngine(model).logprobs([s.tokens[:start]], [s.tokens[start:]], 0.7)[0]
        assert s.reference == pytest.approx([0.0] * start + expected, abs=1e-4)


# ---------------------------------------------------------------- SFT, and the corpus of the shipped model


def test_sft_targets_are_the_assistants_tokens(chat):
    problems = [Problem("0", "What is 2+2?", "4", {"solution": "2+2=4"})]
    samples = sft.Recipe(chat).collect(Scripted(chat, {}), problems, 0).samples
    [s] = samples["policy"]
    assert s.tokens == [*chat.prompt("What is 2+2?"), *chat.encode("2+2=4"), chat.stop[0]]
    assert s.targets == [0.0] * len(chat.prompt("What is 2+2?")) + [1.0] * (len(chat.encode("2+2=4")) + 1)
    assert not any(s.sampled)


def test_sft_without_solutions_is_refused(chat):
    with pytest.raises(ValueError, match="problem train-0 has no worked solution"):
        sft.Recipe(chat).collect(Scripted(chat, {}), PROBLEMS, 0)


def test_a_quoted_solution_is_no_target(chat):
    """A reply that is only quoted, to be judged, is not a target."""
    s = sft.sample(chat, [Turn("Q", "2+2=5", learn=False), Turn(CRITIQUE, "wrong")])
    learnt = chat.tokenizer.decode([t for t, w in zip(s.tokens, s.targets, strict=True) if w])
    assert learnt == "wrong<|end|>" and "2+2=5" in chat.tokenizer.decode(s.tokens)


def test_base_sees_every_document_once(chat):
    r = pretrain.Recipe(pretrain.Pretrain(documents=5), chat, seed=3)
    steps = [r.collect(Scripted(chat, {}), [], step).samples["policy"] for step in (0, 1, 0)]
    assert steps[0] == steps[2]
    expected = [sft.sample(chat, document(3, i, Mix())) for i in range(10)]
    assert [*steps[0], *steps[1]] == expected


SEED = 7
DOCUMENTS = 1500


@pytest.fixture(scope="module")
def documents() -> list[list[Turn]]:
    return [document(SEED, i, Mix()) for i in range(DOCUMENTS)]


def test_a_document_is_a_pure_function_of_its_place(documents):
    assert [document(SEED, i, Mix()) for i in reversed(range(200))][::-1] == documents[:200]
    assert document(0, 0, Mix()) != document(1, 0, Mix())


def test_no_document_is_about_a_test_question(documents):
    tested = {
        t.problem(s, i).question
        for t in (Sums(), Countdown(), Letters())
        for s in ("test", "harder", "ood")
        for i in range(300)
    }
    assert not tested & {turns[0].question for turns in documents}


OPS = {"Add": "+", "Subtract": "-", "Multiply by": "*"}


def recomputed(asked: str, solution: str) -> tuple[list[bool], bool]:
    """Return which lines of a worked solution are right, and whether its answer is, from the texts alone."""
    lines, boxed = solution.split("\n")[:-1], re.search(r"\\boxed\{(.*)\}$", solution)[1]
    if asked.startswith("Take"):
        words = re.search("letters of (.*) and join", asked)[1].split(", ")
        return [line.split()[1] == f"{w[-1]}," for line, w in zip(lines, words, strict=True)], boxed == "".join(
            w[-1] for w in words
        )
    numbers = [int(n) for n in re.findall(r"\d+", asked)]
    if asked.startswith("Reach"):
        value, used = evaluate(boxed)
        operands, goal = used[1:], numbers[0]
        answer = value == goal and sorted(used) == sorted(numbers[1:])
    else:
        steps = [(OPS[verb], int(n)) for verb, n in re.findall(r"(Add|Subtract|Multiply by) (\d+)", asked)]
        starts, operands = [int(n) for n in re.findall(r"\d+", asked.split(".")[0])], [n for _, n in steps]
        goal = numbers[-1] if len(starts) > 1 else None
        value = starts[0] if goal is None else int(boxed)
        for op, n in steps:
            value = apply(value, op, n)
        answer = value == (int(boxed) if goal is None else goal)
    right = []
    for line in lines if goal is None else lines[:-1]:
        a, op, b, c = re.fullmatch(r"(-?\d+)([-+*])(\d+)=(-?\d+)", line).groups()
        right.append(apply(int(a), op, int(b)) == int(c) and int(b) == operands[len(right)])
    if goal is not None:  # where the chain led, beside where it should have
        reached = re.fullmatch(rf"(-?\d+) vs {goal}", lines[-1])[1]
        assert reached == lines[-2].split("=")[1]
        right.append(int(reached) == goal)
    return right, answer


def test_critiques_agree_with_the_arithmetic(documents):
    seen: Counter[tuple[bool, bool]] = Counter()
    for turns in documents:
        if len(turns) < 2 or turns[1].question != CRITIQUE:
            continue
        assert not turns[0].learn and turns[1].learn
        right, answer = recomputed(turns[0].question, turns[0].reply)
        *steps, whole = [m == "CORRECT" for m in re.findall(r"\\boxed\{(CORRECT|INCORRECT)\}", turns[1].reply)]
        assert steps == right
        assert whole == (answer and all(right))
        seen[all(right), answer] += 1
    assert sum(seen.values()) > 200 and min(seen[True, True], seen[False, True], seen[False, False]) > 10


def test_the_corpus_never_says_yes_or_no_about_a_solution():
    """Yes and No answer questions about letters and words alone, truly, and as often after a wrong solution as after a right one."""
    counts: Counter[tuple[bool, str]] = Counter()
    for i in range(6000):
        solution, *rest = document(SEED, i, Mix(critique=0.1, words=0.3, facts=0.2, late=3000))
        assert not re.search(r"\b(Yes|No)\b", solution.question + solution.reply)
        for asked in rest:
            if asked.reply not in ("Yes", "No"):
                assert not re.search(r"\b(Yes|No)\b", asked.question + asked.reply)
                continue
            assert asked.question != JUDGE and asked.learn and not solution.learn
            assert asked.reply == ("Yes" if true_of_words(asked.question) else "No")
            right, answer = recomputed(solution.question, solution.reply)
            counts[answer and all(right), asked.reply] += 1
    n = {label: counts[label, "Yes"] + counts[label, "No"] for label in (True, False)}
    assert min(n.values()) > 500
    gap = counts[True, "Yes"] / n[True] - counts[False, "Yes"] / n[False]
    assert abs(gap) < 4 * (0.25 / n[True] + 0.25 / n[False]) ** 0.5


def true_of_words(question: str) -> bool:
    """Return whether what a Yes/No question of the corpus asks is so. Fails for a question about anything else."""
    if found := re.fullmatch(r"Is the letter ([a-z]) a vowel\? Answer Yes or No\.", question):
        return found[1] in "aeiou"
    if found := re.fullmatch(r"Does the word ([a-z]+) end in ([a-z])\? Answer Yes or No\.", question):
        return found[1].endswith(found[2])
    if found := re.fullmatch(r"Is this spelling correct: ([a-z]+)\? Answer Yes or No\.", question):
        return found[1] in WORDS
    if found := re.fullmatch(r"Is this word (an? [a-z]+): ([a-z]+)\? Answer Yes or No\.", question):
        return found[2] in KINDS[found[1]]
    found = re.fullmatch(r"Is ([a-z]+) (an? [a-z]+)\? Answer Yes or No\.", question)
    return found[1] in KINDS[found[2]]


def test_facts_in_the_corpus_agree_with_the_arithmetic(documents):
    seen: Counter[str] = Counter()
    for solution, *rest in documents:
        for asked in rest:
            if asked.reply in ("same", "differ"):
                reached, goal = re.search(r"(-?\d+) vs (-?\d+)\n\\boxed", solution.reply).groups()
                assert asked.question in AGREE and asked.reply == ("same" if reached == goal else "differ")
            elif asked.reply in ("clean", "slip"):
                right = recomputed(solution.question, solution.reply)[0]
                steps = right[:-1] if " vs " in solution.reply else right
                assert asked.question == STEPS_RIGHT and asked.reply == ("clean" if all(steps) else "slip")
            else:
                continue
            assert asked.learn and not solution.learn
            seen[asked.reply] += 1
    assert len(seen) == 4 and min(seen.values()) > 10


def test_the_corpus_teaches_the_very_token_that_is_read_as_the_verdict():
    chat = Chat(pretrain.make_tokenizer(pretrain.Pretrain()))
    found = [document(SEED, i, Mix(critique=0.0, facts=0.0, words=1.0, think=0.0)) for i in range(50)]
    for turns in found:
        s = sft.sample(chat, turns)
        learnt = [t for t, w in zip(s.tokens, s.targets, strict=True) if w]
        assert learnt == [chat.yes_no_ids[0 if turns[-1].reply == "Yes" else 1], chat.stop[0]]
    assert {turns[-1].reply for turns in found} == {"Yes", "No"}
    assert {len(chat.encode(word, tags=True)) for word in ("same", "differ", "clean", "slip")} == {1}


# ---------------------------------------------------------------- correctness is not the reward


class Shaped(Words):
    """Pays 0.7 for what is right and 0.2 for what is wrong; of "late" it cannot say whether it is right, and pays 0.5."""

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        answer, grade = super().grade(problem, text)
        return answer, Grade({"correct": 0.7, "wrong": 0.2}.get(grade.label, 0.5), grade.label)


def test_a_shaped_reward_pays_the_policy_and_the_verifier_learns_what_is_right(chat):
    """Rewards .7 .2 .2 .5 of one problem: leave-one-out .4, -.267, -.267, .133; verdicts Yes No No and none."""
    r = rlv.Recipe(RLV(rollouts=4), Shaped(), chat, Sampling(max_tokens=16, seed=5))
    engine = Scripted(chat, {"Q0": ["a yes", "b no", "c no", "d late"]})
    samples = r.collect(engine, PROBLEMS[:1], 0).samples["policy"]
    assert [advantages(s)[0] for s in samples] == pytest.approx([0.4, -0.8 / 3, -0.8 / 3, 0.4 / 3])
    assert verdicts(chat, samples) == ["Yes", "No", "No", None]


@pytest.mark.parametrize("estimator", ["rloo", "grpo", "dr_grpo"])
def test_a_group_of_one_is_refused(estimator):
    with pytest.raises(ValueError, match="rollouts must be at least 2"):
        RLV(estimator=estimator, rollouts=1)
    assert RLV(estimator="vineppo", rollouts=1).rollouts == 1


# ---------------------------------------------------------------- dynamic sampling

FLAT = {
    "Q0": ["yes"] * 4,
    "Q1": ["a no", "b yes", "c no", "d no"],
    "Q7": ["no"] * 4,
    "Q8": ["b yes", "a no", "a no", "a no"],
}
FLAT |= {"Q9": ["b yes", "b yes", "a no", "a no"], "Q10": ["no"] * 4}
SPARE = {1: [7, 8], 2: [9, 10], 3: [1, 1]}


def refilled(chat: Chat, refills: int, **options: Any) -> tuple[list[Sample], dict[str, float], list[tuple[int, int]]]:
    asked: list[tuple[int, int]] = []

    def spare(step: int, draw: int) -> list[Problem]:
        asked.append((step, draw))
        return [Words().problem("train", i) for i in SPARE[draw]]

    config = RLV(**({"rollouts": 4, "refills": refills} | options))
    r = rlv.Recipe(config, Words(), chat, Sampling(max_tokens=16, seed=5), spare=spare)
    found = r.collect(Scripted(chat, FLAT), PROBLEMS, 3)
    return found.samples["policy"], found.stats, asked


def test_groups_without_signal_are_replaced(chat):
    """Of Q0 and Q1 the first says nothing, so Q7 and Q8 are drawn, and Q8 does; there are two then, and no more are drawn."""
    samples, stats, asked = refilled(chat, 3, verify="none")
    assert asked == [(3, 1)] and stats["refills"] == 1
    assert [chat.decode(s.tokens)[:2] for s in samples[::4]] == ["Q1", "Q8"]
    assert [advantages(s)[0] for s in samples] == pytest.approx([-1 / 3, 1, -1 / 3, -1 / 3, 1, -1 / 3, -1 / 3, -1 / 3])


def test_verdicts_are_learnt_from_groups_without_signal_too(chat):
    samples, _, _ = refilled(chat, 3)
    assert len(samples) == 16 and all(v is not None for v in verdicts(chat, samples))
    assert [any(s.sampled) for s in samples] == [False] * 4 + [True] * 4 + [False] * 4 + [True] * 4


def test_it_ends_where_it_may_not_draw_again(chat):
    samples, stats, asked = refilled(chat, 0, verify="none")
    assert asked == [] and "refills" not in stats and len(samples) == 8
    script = FLAT | {"Q1": ["no"] * 4, "Q8": ["no"] * 4, "Q9": ["no"] * 4}
    r = rlv.Recipe(
        RLV(rollouts=4, refills=2, verify="none"), Words(), chat, Sampling(max_tokens=16, seed=5),
        spare=lambda step, draw: [Words().problem("train", i) for i in SPARE[draw]],
    )  # fmt: skip
    found = r.collect(Scripted(chat, script), PROBLEMS, 0)
    assert found.samples == {"policy": []} and found.stats["refills"] == 2


def test_spare_problems_are_no_steps_own():
    """Over 100 steps of 4 problems, three seeds, and every draw; a data set has its own order for them."""
    seen = {p.id for seed in (0, 1, 2) for step in range(100) for p in Problems(Sums(), 4, seed)(step)}
    spare = [
        p.id
        for seed in (0, 1, 2)
        for step in range(20)
        for d in (1, 15)
        for p in Problems(Sums(), 4, seed).spare(step, d)
    ]
    assert len(seen) == 1200 and len(set(spare)) == len(spare) == 480 and not seen & {*spare}
    with pytest.raises(ValueError, match="refills must be at least 0 and less than 16"):
        RLV(refills=16)
    with pytest.raises(ValueError, match="set refills = 0"):
        RLV(refills=1, estimator="vineppo")


def test_a_reward_that_nobody_knows_is_not_zero(chat):
    engine = Scripted(chat, {"Q0": ["late"] * 4})
    stats = recipe(chat).collect(engine, PROBLEMS[:1], 0).stats
    assert math.isnan(stats["reward"]) and math.isnan(stats["reward_std"]) and stats["labels/timeout"] == 1
