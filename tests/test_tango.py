"""Tango: whose update a step is, the credit of verdicts, the verifier's reward, and whole runs with one and two models.

The scripted engine and its task have known contents, so that every advantage can be computed by hand.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from words import credit

import twofold
from twofold import run, toml, training
from twofold.compute.judge import Judging, judge_all
from twofold.compute.plan import Plan, parse
from twofold.compute.rollout import candidate, forced, rollouts
from twofold.compute.search import Beam, beam
from twofold.compute.value import verification_value
from twofold.compute.verify import step_ends
from twofold.compute.verify import verify as verifications
from twofold.config import Config
from twofold.engines.base import Finished, ignore_finished, report_all
from twofold.engines.native import NativeEngine
from twofold.evals.plans import replayable
from twofold.evals.pools import read_header, read_pools
from twofold.evals.run import Eval
from twofold.maths.credit import grpo, standardise
from twofold.models.checkpoints import MANIFEST, OPTIMIZER, STATE
from twofold.recipes.tango import Recipe, Tango, monte_carlo, turn
from twofold.tasks.procedural import Sums
from twofold.text.chat import Chat
from twofold.text.prompts import CRITIQUE, SOLVE, VERIFY
from twofold.text.steps import read
from twofold.trainer import checkpoint
from twofold.types import Completion, Grade, Problem, Rollout, Sample, Sampling

ROOT = Path(__file__).parents[1]
ASK = "Check {steps}."


@pytest.fixture(scope="module")
def chat() -> Chat:
    return twofold.load("tiny").chat


@dataclass
class Scripted:
    """An engine that writes at its i-th call what ``script[i]`` says, prompt by prompt. A text that ends in "..." is cut."""

    chat: Chat
    script: Sequence[Sequence[Sequence[str]]]
    calls: list[tuple[list[str], Sampling]] = field(default_factory=list)
    scored: int = 0

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished = ignore_finished
    ) -> list[list[Completion]]:
        texts = self.script[len(self.calls)]
        self.calls.append(([self.chat.decode(p) for p in prompts], sampling))
        assert [len(t) for t in texts] == [sampling.n] * len(prompts)
        return report_all([[self.completion(t) for t in group] for group in texts], finished)

    def completion(self, text: str) -> Completion:
        cut = text.endswith("...")
        tokens = self.chat.encode(text, tags=True) + ([] if cut else [self.chat.stop[0]])
        return Completion(tokens, [-0.5] * len(tokens), [True] * len(tokens), "length" if cut else "stop")

    def logprobs(self, prompts: Any, continuations: Any, temperature: float = 1.0) -> list[list[float]]:
        self.scored += 1
        return [[-1.0] * len(c) for c in continuations]

    def load(self, weights: Mapping[str, Any]) -> None: ...

    def rest(self) -> None: ...


class Words:
    """Texts that contain "yes" are right; texts that contain "late" cannot be graded in time."""

    name = "words"

    def problem(self, split: str, i: int) -> Problem:
        return Problem(f"{split}-{i}", f"Q{i}", "yes")

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        if "late" in text:
            return text, Grade(None, "timeout")
        return text, Grade(1.0, "correct") if "yes" in text else Grade(0.0, "wrong")


def solution(steps: int, answer: str) -> str:
    body = "".join(f"<step>s{k}</step>" for k in range(steps))
    return f"<think>{body}</think><answer>\\boxed{{{answer}}}</answer>"


def critique(marks: str, final: str = "+") -> str:
    mark = {"+": "\\boxed{CORRECT}", "-": "\\boxed{INCORRECT}", "?": "who knows"}
    steps = "".join(f"<step>{mark[m]}</step>" for m in marks)
    return f"<step_verification>{steps}</step_verification><final_verification>{mark[final]}</final_verification>"


def collect(
    chat: Chat,
    script: Sequence[Sequence[Sequence[str]]],
    step: int = 0,
    questions: int = 1,
    total: int = 10,
    **options: Any,
) -> tuple[list[Sample], dict[str, float], Scripted]:
    engine = Scripted(chat, script)
    config = Tango(**({"rollouts": 3, "verifier_warmup": 0, "question": ASK} | options))
    recipe = Recipe(config, Words(), chat, Sampling(max_tokens=24, seed=5), total)
    problems = [Words().problem("train", i) for i in range(questions)]
    found = recipe.collect(engine, problems, step)
    samples, stats = found.samples, found.stats
    assert len(engine.calls) == len(script)
    return samples["policy"], stats, engine


def numbers(chat: Chat, sample: Sample) -> list[float]:
    return [a for _, a in credit(chat, sample)]


# ---------------------------------------------------------------- turns


def test_turns() -> None:
    roles = [turn(Tango(verifier_warmup=2), s)[0][0] for s in range(11)]
    assert "".join(roles) == "vv" + "gggv" + "gggv" + "g"
    for role in ("generator", "verifier"):
        counts = [n for r, n in (turn(Tango(verifier_warmup=2), s) for s in range(50)) if r == role]
        assert counts == list(range(len(counts)))
    assert {turn(Tango(generator_updates=0), s)[0] for s in range(60)} == {"verifier"}
    assert {turn(Tango(verifier_updates=0, verifier_warmup=0), s)[0] for s in range(60)} == {"generator"}


def test_the_published_run(chat: Chat) -> None:
    """440 steps are 40 of warm-up, 300 of the generator and 100 of the verifier; 200 of the generator take 306 steps."""
    engine = Scripted(chat, [])
    two = Recipe(Tango(share=False), Words(), chat, Sampling(), 440, engine)
    assert two.updates(440) == {"policy": 300, "verifier": 140}
    assert two.updates(306)["policy"] == 200
    assert Recipe(Tango(), Words(), chat, Sampling(), 440).updates(440) == {}  # one model has them all


# ---------------------------------------------------------------- the generator's update


SOLUTIONS = [solution(2, "no"), solution(4, "yes"), solution(1, "no")]
CRITIQUES = [[critique("+-")], [critique("++++")], [critique("-")]]


def test_the_worked_vector_token_by_token(chat: Chat) -> None:
    samples, stats, engine = collect(chat, [[SOLUTIONS], CRITIQUES])
    assert numbers(chat, samples[0]) == pytest.approx([-0.5196, -0.6122, -0.5196], abs=1e-4)
    assert numbers(chat, samples[1]) == pytest.approx([1.2244, 1.1781, 1.1318, 1.0855, 1.0392], abs=1e-4)
    assert numbers(chat, samples[2]) == pytest.approx([-0.7048, -0.5196], abs=1e-4)
    assert [text for text, _ in credit(chat, samples[0])] == [
        "<think><step>s0</step>", "<step>s1</step>", "</think><answer>\\boxed{no}</answer>",
    ]  # fmt: skip
    assert [text for text, _ in credit(chat, samples[1])][-1] == "</think><answer>\\boxed{yes}</answer>"
    (prompts, first), (asked, second) = engine.calls
    assert prompts == ["Q0"]
    assert asked == [f"Q0{s}Check {k}." for s, k in zip(SOLUTIONS, (2, 4, 1), strict=True)]
    assert (first.n, second.n, second.max_tokens) == (3, 1, 1024) and first.seed != second.seed
    assert (stats["tango/alpha"], stats["tango/judged"], stats["tango/verifier_turn"]) == (0.1, 1, 0)
    assert stats["tango/steps"] == pytest.approx(7 / 3) and stats["tango/accepted"] == pytest.approx(5 / 7)


def test_alpha_decays_with_the_generators_updates(chat: Chat) -> None:
    """Six steps in turns of 3 + 1 have five of the generator's; the last but one step is its fourth."""
    alphas = [collect(chat, [[SOLUTIONS], CRITIQUES], step, total=6)[1]["tango/alpha"] for step in (0, 1, 4)]
    assert alphas == pytest.approx([0.1, 0.1 * 0.01**0.2, 0.1 * 0.01**0.6])


@pytest.mark.parametrize("bad", ["+", "+-+", "+?", "", "who"])
def test_without_one_verdict_for_each_step_there_is_the_outcome_alone(chat: Chat, bad: str) -> None:
    text = "I think it is right." if bad == "who" else critique(bad)
    samples, stats, _ = collect(chat, [[SOLUTIONS], [[text], *CRITIQUES[1:]]])
    assert numbers(chat, samples[0]) == pytest.approx([0.9 * -0.5773], abs=1e-4)
    # the pool is that of the others: rewards 1/4 four times, -1: mean 0, standard deviation 0.559
    assert numbers(chat, samples[2]) == pytest.approx([-0.5196 - 0.1 / 0.559, -0.5196], abs=1e-3)
    assert stats["tango/judged"] == pytest.approx(2 / 3)


def test_a_solution_without_steps_is_not_asked_about(chat: Chat) -> None:
    samples, stats, engine = collect(chat, [[["no", SOLUTIONS[1], SOLUTIONS[2]]], CRITIQUES[1:]])
    assert len(engine.calls[1][0]) == 2 and stats["tango/steps"] == pytest.approx(5 / 3)
    assert numbers(chat, samples[0]) == pytest.approx([-0.5196], abs=1e-4)


def test_equal_outcomes_still_teach_steps(chat: Chat) -> None:
    texts = [solution(2, "no")] * 3
    samples, stats, _ = collect(chat, [[texts], [[critique("++")], [critique("+-")], [critique("-+")]]])
    assert stats["frac_reward_zero_std"] == 1 and all(any(s.advantages) for s in samples)


def test_groups_are_normalised_apart_and_candidate_rollouts_left_out(chat: Chat) -> None:
    late = [solution(1, "late"), solution(1, "yes"), solution(1, "late")]
    script = [[late, SOLUTIONS], [[critique("-")], *CRITIQUES]]
    samples, _, engine = collect(chat, script, questions=2)
    assert len(samples) == 4 and len(engine.calls[1][0]) == 4
    assert numbers(chat, samples[0]) == [0]  # alone in its group
    assert numbers(chat, samples[1]) == pytest.approx([-0.5196, -0.6122, -0.5196], abs=1e-4)


def test_leave_one_out(chat: Chat) -> None:
    """Outcomes 0, 1, 0: -1/2, 1, -1/2. Step rewards 1/2, -1/2 | 1 | -1: means of the others -1/6, 1/6, -1/3, 1/3."""
    texts = [solution(2, "no"), solution(1, "yes"), solution(1, "no")]
    script = [[texts], [[critique("+-")], [critique("+")], [critique("-")]]]
    samples, _, _ = collect(chat, script, estimator="rloo")
    a, b = 10 * (1 / 2 + 1 / 6), 10 * (-1 / 2 - 1 / 6)
    assert numbers(chat, samples[0]) == pytest.approx([-0.45 + 0.1 * (a + b), -0.45 + 0.1 * b, -0.45])
    assert numbers(chat, samples[1]) == pytest.approx([0.9 + 0.1 * 10 * 4 / 3, 0.9])


def test_reinforce_pp_has_its_step_term(chat: Chat) -> None:
    """Credit is whitened over all tokens of the step. Rewards to go of the verdicts + - are 0, -1/2; of + it is 1."""
    texts = [solution(2, "no"), solution(1, "yes"), "no"]
    script = [[texts], [[critique("+-")], [critique("+")]]]
    samples, _, _ = collect(chat, script, estimator="reinforce++", alpha=0.5)
    sizes = [sum(s.sampled) for s in samples]
    outcome = standardise([0.0] * sizes[0] + [1.0] * sizes[1] + [0.0] * sizes[2])
    rows = [credit(chat, s) for s in samples]
    lengths = [[len(chat.encode(t, tags=True)) for t, _ in row] for row in rows]
    to_go = [0.0] * lengths[0][0] + [-0.5] * lengths[0][1] + [0.0] * (lengths[0][2] + 1)
    steps = standardise(to_go + [1.0] * lengths[1][0] + [0.0] * (lengths[1][1] + 1))
    expected = [0.5 * o + 0.5 * s for o, s in zip(outcome, steps, strict=False)]
    got = [a for s in samples[:2] for a, m in zip(s.advantages, s.sampled, strict=True) if m]
    assert got == pytest.approx(expected)
    assert [a for _, a in rows[2]] == pytest.approx([0.5 * outcome[-1]])  # nothing was judged there


@pytest.mark.parametrize(("how", "steps"), [("response", [0, -0.5]), ("first_error", [0.5855, -1.4638])])
def test_other_credit_by_hand(chat: Chat, how: str, steps: list[float]) -> None:
    """``first_error``: +1 -1 | +1 +1 +1 +1 | -1: mean 3/7, standard deviation 0.9759."""
    samples, _, _ = collect(chat, [[SOLUTIONS], CRITIQUES], credit=how)
    expected = [-0.5196 + 0.1 * z for z in (*steps, 0)]
    assert numbers(chat, samples[0]) == pytest.approx(expected, abs=1e-4)


def test_several_verifications_are_averaged(chat: Chat) -> None:
    """Means 1, 0 | 1 | -1, of which one verification cannot be used: step rewards 1/2, 0 | 1 | -1."""
    texts = [solution(2, "no"), solution(1, "yes"), solution(1, "no")]
    drawn = [[critique("+-"), critique("++")], [critique("+"), critique("+-")], [critique("-"), critique("-")]]
    samples, stats, _ = collect(chat, [[texts], drawn], verifications=2)
    z = standardise([0.5, 0.0, 1.0, -1.0])
    assert numbers(chat, samples[0]) == pytest.approx(
        [-0.5196 + 0.1 * (z[0] + z[1]), -0.5196 + 0.1 * z[1], -0.5196], abs=1e-4
    )
    assert stats["tango/accepted"] == pytest.approx((1 + 0.5 + 1 + 0) / 4)


def test_without_alpha_there_is_no_verification(chat: Chat) -> None:
    samples, stats, engine = collect(chat, [[SOLUTIONS]], alpha=0.0)
    assert [numbers(chat, s) for s in samples] == [[pytest.approx(a)] for a in grpo([0, 1, 0])]
    assert len(engine.calls) == 1 and stats["tango/alpha"] == 0


def test_steps_by_lines(chat: Chat) -> None:
    texts = ["1+1=2\n2+2=5\n\\boxed{no}", "1+1=2\n\\boxed{yes}", "\\boxed{no}"]
    samples, _, engine = collect(chat, [[texts], [[critique("+-")], [critique("+")]]], cut="lines")
    assert [text for text, _ in credit(chat, samples[0])] == ["1+1=2\n", "2+2=5\n", "\\boxed{no}"]
    assert engine.calls[1][0] == [f"Q0{texts[0]}Check 2.", f"Q0{texts[1]}Check 1."]


# ---------------------------------------------------------------- the verifier's update


def paid(chat: Chat, config: Tango, text: str, right: bool, labels: Any = (None,) * 3) -> float:
    """Return the reward of a verification of a solution of three steps."""
    return Recipe(config, Words(), chat, Sampling(), 10).reward(read(text), right, 3, True, labels)


@pytest.mark.parametrize(
    ("text", "right", "reward"),
    [
        (critique("+++", "+"), True, 1.8),
        (critique("+++", "+"), False, 0.8),
        (critique("+-+", "-"), False, 1.8),
        (critique("--", "-"), False, 1 + 0.8 * 0.2),
        (critique("--", "+"), False, 0.8 * 0.2),
        ("so " + critique("---", "-"), False, 1.0),  # the form is lost, the verdict is not
        (critique("---", "?"), False, 0.0),  # no final verdict: nothing, though the solution is wrong
        (critique("---", "?"), True, 0.0),
        ("", False, 0.0),
    ],
)
def test_the_verifiers_reward(chat: Chat, text: str, right: bool, reward: float) -> None:
    assert paid(chat, Tango(), text, right) == pytest.approx(reward)


def test_rewards_beyond_the_paper(chat: Chat) -> None:
    assert paid(chat, Tango(consistency=0.5), critique("+-+", "-"), True) == pytest.approx(0.8 + 0.5)
    assert paid(chat, Tango(consistency=0.5), critique("+-+", "+"), True) == pytest.approx(1.8)
    assert paid(chat, Tango(consistency=0.5), critique("+-", "-"), True) == pytest.approx(
        0.8 * 0.2
    )  # no verdict on step 3
    config = Tango(step_labels=2.0)
    assert paid(chat, config, critique("+-+", "-"), False, labels=[True, False, False]) == pytest.approx(
        1.8 + 2 * 2 / 3
    )
    assert paid(chat, config, critique("+-+", "-"), False, labels=[True, None, False]) == pytest.approx(1.8 + 2 * 1 / 2)
    assert paid(chat, config, critique("+-+", "-"), False, labels=[None] * 3) == pytest.approx(1.8)


def verify(chat: Chat, **options: Any) -> tuple[list[Sample], dict[str, float], Scripted]:
    """Two of three questions are solved, and each solution has three verifications."""
    texts = [[solution(3, "yes")], [solution(3, "no")], [solution(3, "yes")]]
    drawn = [
        [critique("+++"), critique("++-", "-"), "so " + critique("+++", "-")],  # 1.8, 0.8, 0
        [critique("--", "-"), critique("+++"), critique("---", "-")],  # 1.16, 0.8, 1.8
        [critique("+++"), critique("+++"), critique("+++")],
    ]
    return collect(chat, [texts, drawn], questions=3, **({"generator_updates": 0} | options))


def test_verifications_are_compared_with_those_of_the_same_solution(chat: Chat) -> None:
    samples, stats, engine = verify(chat, class_weights=False)
    expected = [*grpo([1.8, 0.8, 0.0]), *grpo([1.16, 0.8, 1.8]), 0, 0, 0]
    assert [numbers(chat, s) for s in samples] == [[pytest.approx(a)] for a in expected]
    assert [text for s in samples[:1] for text, _ in credit(chat, s)] == [critique("+++")]
    assert chat.decode(samples[0].tokens[: samples[0].sampled.index(True)]) == f"Q0{solution(3, 'yes')}Check 3."
    (_, first), (_, second) = engine.calls
    assert (first.n, second.n) == (1, 3)
    assert stats["verifier/reward"] == pytest.approx((1.8 * 5 + 0.8 * 2 + 1.16) / 9)
    assert stats["verifier/frac_reward_zero_std"] == pytest.approx(1 / 3) and stats["tango/verifier_turn"] == 1


def test_what_is_logged_of_the_verifier(chat: Chat) -> None:
    _, stats, _ = verify(chat)
    assert stats["verifier/recall_right"] == pytest.approx(4 / 6)
    assert stats["verifier/recall_wrong"] == pytest.approx(2 / 3)
    assert stats["verifier/balanced_accuracy"] == pytest.approx(2 / 3)
    assert stats["verifier/f1"] == pytest.approx(2 * 2 / (4 + 3))  # wrong ones found: precision 2/4, recall 2/3
    assert stats["verifier/readable"] == 1 and stats["verifier/matched"] == pytest.approx(8 / 9)
    assert (stats["reward"], stats["tango/steps"]) == (pytest.approx(2 / 3), 3)


def test_the_rarer_class_is_heard(chat: Chat) -> None:
    """Two right and one wrong give 1 / sqrt(2) and 1, scaled to a mean of 1; later the counts are moving averages."""
    samples, _, _ = verify(chat)
    mean = (2 / math.sqrt(2) + 1) / 3
    plain = verify(chat, class_weights=False)[0]
    weights = [
        a[0] / b[0]
        for a, b in ((numbers(chat, s), numbers(chat, p)) for s, p in zip(samples, plain, strict=True))
        if b[0]
    ]
    assert weights == pytest.approx([1 / math.sqrt(2) / mean] * 3 + [1 / mean] * 3, rel=1e-4)
    recipe = Recipe(Tango(), Words(), chat, Sampling(), 10)
    assert recipe._weights([True, False, False, False]) == pytest.approx(
        [x / (0.25 + 0.75 / math.sqrt(3)) for x in (1, *[1 / math.sqrt(3)] * 3)]
    )
    recipe._weights([True, True, False, False])
    assert recipe.state() == pytest.approx({"right": 0.8 * 1 + 0.2 * 2, "wrong": 0.8 * 3 + 0.2 * 2})


def test_a_miscount_costs_only_where_steps_can_be_counted_on(chat: Chat) -> None:
    """An answer that is not boxed between tags brings the solution's own format score below 0.6."""
    text = "<think><step>a</step><step>b</step><step>c</step></think>yes"
    drawn = [[critique("+"), critique("+++"), critique("+++")]]
    _, stats, _ = collect(chat, [[[text]], drawn], generator_updates=0)
    assert stats["verifier/reward"] == pytest.approx(1.8)


def test_labels_of_steps_are_of_correctness(chat: Chat) -> None:
    """Two continuations from each end of a solution of three lines: right 2, 1, 0 and 0 of 2, and paid 0.9 when they are wrong."""

    class Shaped(Words):
        def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
            answer, grade = super().grade(problem, text)
            return answer, Grade(0.1 if grade.correct else 0.9, grade.label)

    config = Tango(cut="lines", continuations=2, step_labels=1.0)
    recipe = Recipe(config, Shaped(), chat, Sampling(max_tokens=24, seed=5), 10)
    solution = Scripted(chat, []).completion("a\nb\nno")
    rollout = Rollout(chat.prompt("Q0"), solution, "a\nb\nno", None, Words().problem("train", 0), Grade(0.9, "wrong"))
    ends = [step_ends(chat, rollout, "lines")]
    engine = Scripted(chat, [[["yes", "yes"], ["yes", "no"], ["no", "no"], ["no", "no"]]])
    labels, _ = recipe._labels(engine, [rollout], ends, Sampling(max_tokens=24))
    assert labels == [[True, False, False]]


def test_labels_from_continuations(chat: Chat) -> None:
    """Two continuations each give the values 1/2, 1/2, 1 and 0: the third step is wrong, and saying so is rewarded."""
    text = solution(3, "no")
    more = [["yes", "no"], ["no", "yes"], ["yes", "late"], ["no", "no"]]
    drawn = [[critique("++-", "-"), critique("+++", "-"), critique("---", "-")]]
    samples, stats, engine = collect(
        chat, [[[text]], more, drawn], generator_updates=0, step_labels=1.0, continuations=2, class_weights=False
    )
    written = [text, *(t for pair in more for t in pair)]
    assert stats["tango/tokens"] == sum(len(chat.encode(t, tags=True)) + 1 for t in written)
    assert [numbers(chat, s)[0] for s in samples] == pytest.approx(grpo([1, 2 / 3, 1 / 3]))
    assert engine.calls[1][0] == ["Q0"] + [
        "Q0<think>" + "".join(f"<step>s{j}</step>" for j in range(k)) for k in (1, 2, 3)
    ]
    assert len({s.seed for _, s in engine.calls}) == 3


def test_monte_carlo_labels_by_hand() -> None:
    nan = math.nan
    assert monte_carlo([1, 0.5, 0, 0.25]) == [True, False, True]
    assert monte_carlo([1, 0.5, 0.5, 0.25], ratio=0.6) == [False, True, False]
    assert monte_carlo([0, 0, 0.25], ratio=0.6) == [False, True]
    assert monte_carlo([1, nan, 1]) == [None, None]


def test_a_verifier_that_learns_by_imitation(chat: Chat) -> None:
    """The right solution has one right, well-formed verification, which is a target; the wrong solution has none."""
    solutions = [[solution(1, "yes")], [solution(1, "no")]]
    critiques = [[critique("+"), critique("+", "-"), critique("++")], [critique("+"), critique("?", "-"), ""]]
    samples, stats, _ = collect(chat, [solutions, critiques], 0, 2, verifier_warmup=1, verifier_learns="sft")
    (sample,) = samples
    assert not any(sample.sampled) and not any(sample.advantages)
    assert chat.decode([t for t, w in zip(sample.tokens, sample.targets, strict=True) if w]) == critique("+")
    assert {w for w in sample.targets if w} == {1.0}  # one right and one wrong solution: both classes weigh 1
    assert stats["verifier/learnt"] == pytest.approx(1 / 6)
    written = [len(chat.encode(t, tags=True)) + 1 for t in [x for g in critiques for x in g]]
    assert stats["verifier/tokens"] == sum(written)
    assert stats["tango/tokens"] == sum(len(chat.encode(g[0], tags=True)) + 1 for g in solutions)


def test_nothing_to_judge(chat: Chat) -> None:
    late = [[solution(1, "late")]]
    samples, stats, _ = collect(chat, [late], generator_updates=0)
    assert samples == [] and math.isnan(stats["verifier/reward"])


# ---------------------------------------------------------------- two models, references, refusals


def test_two_models(chat: Chat) -> None:
    """The generator writes solutions, the verifier writes verifications, and each learns from its own samples."""
    config = Tango(share=False, rollouts=3, verifier_warmup=1, generator_updates=1, question=ASK)
    texts = [[solution(3, "yes")]]
    g, v = Scripted(chat, [texts, [SOLUTIONS]]), Scripted(chat, [[[critique("+++")] * 3], CRITIQUES])
    references = {"policy": Scripted(chat, []), "verifier": Scripted(chat, [])}
    recipe = Recipe(config, Words(), chat, Sampling(max_tokens=24), 2, v, references)
    first = recipe.collect(g, [Words().problem("train", 0)], 0).samples
    assert list(first) == ["verifier"] and (references["policy"].scored, references["verifier"].scored) == (0, 1)
    second = recipe.collect(g, [Words().problem("train", 0)], 1).samples
    assert list(second) == ["policy"] and (references["policy"].scored, references["verifier"].scored) == (1, 1)
    assert (len(g.calls), len(v.calls)) == (2, 2)
    sample = second["policy"][0]
    assert sample.reference == [-1.0 if s else 0.0 for s in sample.sampled]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rollouts": 1}, "rollouts must be at least 2"),
        ({"verifications": 0}, "must be at least 1"),
        ({"generator_updates": 0, "verifier_updates": 0}, "a turn needs an update"),
        ({"verifier_warmup": -1}, "must be at least 0"),
        ({"alpha": 1.5}, "alpha must be"),
        ({"alpha": 0.0005}, "alpha_min, which must be at most 0.0005"),
        ({"ema": 1.0}, "ema must be"),
        ({"estimator": "rloo", "credit": "response"}, 'goes with estimator = "grpo" only'),
        ({"verifier": "tiny"}, "share = true has one model"),
    ],
)
def test_bad_options_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Tango(**wrong)


def test_roles_without_their_models_are_refused(chat: Chat) -> None:
    engine = Scripted(chat, [])
    for config, second in ((Tango(share=False), None), (Tango(), engine)):
        with pytest.raises(ValueError, match="share = false needs an engine"):
            Recipe(config, Words(), chat, Sampling(), 10, second)
    with pytest.raises(ValueError, match="top_p"):
        Recipe(Tango(), Words(), chat, Sampling(top_p=0.9), 10)


def test_one_model_reads_only_the_question(chat: Chat) -> None:
    """The solutions' caches are used again, so a verification computes only the question and what it writes."""
    task, engine = Sums(), twofold.load("tiny").engine
    problems = [task.problem("train", i) for i in range(2)]
    groups = rollouts(engine, chat, task, problems, Sampling(n=2, max_tokens=40, stop=chat.stop))
    everyone = [r for g in groups for r in g]
    counts = [len(step_ends(chat, r, "lines")) for r in everyone]
    before = engine.usage.computed
    found = verifications(engine, chat, everyone, counts, ASK, Sampling(n=3, max_tokens=24, stop=chat.stop))
    # the last token that was drawn is not in the cache, and that of a verification is never run
    read = sum(
        len(v[0].prompt) - len(r.prompt) - len(r.completion.tokens) + 1 for r, v in zip(everyone, found, strict=True)
    )
    assert engine.usage.computed - before == read + sum(len(x.completion.tokens) - 1 for v in found for x in v)


# ---------------------------------------------------------------- at test time


def test_verdicts_as_a_value_by_hand(chat: Chat) -> None:
    """Verdicts on two steps are + + | + - | + alone: one of two says that the second step is right, two of three the whole."""
    drawn = [
        [critique("++"), critique("+-"), critique("+", "-")],
        ["", critique("-", "-"), critique("+")],
        ["", "", ""],
    ]
    partials = [
        candidate(chat, chat.prompt("Q0"), forced(chat.encode(solution(k, "yes"), tags=True))) for k in (2, 1, 1)
    ]
    sampling = Sampling(n=3, max_tokens=9)
    for of, expected in (("steps", [0.5, 0.5, 0.0]), ("final", [2 / 3, 1 / 3, 0.0])):
        engine = Scripted(chat, [drawn])
        found = verification_value(ASK, sampling, of=of)(engine, chat, partials)  # type: ignore[arg-type]
        assert [v for v, _ in found] == pytest.approx(expected)
        assert engine.calls[0][1] == replace(sampling, stop=chat.stop)
    texts = [engine.completion(t).tokens for t in drawn[2]]
    asked = len(chat.ask([5], "Check 1.")) - 1
    assert found[2][1] == asked + sum(map(len, texts))


def test_search_led_by_written_verdicts() -> None:
    """A process verifier replaces P(Yes) in a beam search, and the cost of its verifications is counted."""
    model = twofold.load("tiny")
    problem = Sums().problem("test", 3)
    value = verification_value(
        "Check each step, then the whole solution.", Sampling(n=1, temperature=0, max_tokens=64), "lines"
    )
    [made] = beam(model.engine, model.chat, [problem.question], 4, Sampling(max_tokens=40, seed=1), Beam(), value)
    assert made.candidates and made.scores is not None and set(made.scores) <= {0.0, 1.0}
    assert made.cost.verified > 20
    sampling = Sampling(max_tokens=24, seed=1)
    [named] = beam(model.engine, model.chat, [problem.question], 2, sampling, Beam(width=2, value="steps"))
    shares = {i / j for j in range(1, 5) for i in range(j + 1)}  # of up to four verifications that could be read
    assert named.scores is not None and all(any(abs(s - x) < 1e-9 for x in shares) for s in named.scores)
    assert named.cost.verified > 20


def test_the_judge_by_steps_cuts_and_asks_as_it_is_told(chat: Chat) -> None:
    """Steps in tags: + + | + - | + (not counted), so the least is 1/2. On lines: + + | - + | + +, so 2/3. Each pays for its own."""
    texts = [solution(2, "yes"), "1+1=2\n2+2=4\n\\boxed{4}"]
    group = [candidate(chat, chat.prompt("Q0"), forced(chat.encode(t, tags=True))) for t in texts]
    drawn = [[[critique("++"), critique("+-"), critique("+")]], [[critique("++"), critique("-+"), critique("++")]]]
    engine = Scripted(chat, drawn)
    asked = [Judging("steps", cut=cut, tokens=50, votes=3) for cut in ("tags", "lines")]
    judged = [judge_all(engine, chat, [r], judging, seed=3)[0] for r, judging in zip(group, asked, strict=True)]
    assert [score for score, _ in judged] == pytest.approx([1 / 2, 2 / 3])
    assert [s for _, s in engine.calls] == [Sampling(3, 1.0, max_tokens=50, stop=chat.stop, seed=3)] * 2
    assert "has 2 steps" in engine.calls[0][0][0] and engine.calls[1][0][0].endswith(CRITIQUE)
    for (_, tokens), question, (said,) in zip(judged, (VERIFY.replace("{steps}", "2"), CRITIQUE), drawn, strict=True):
        assert tokens == len(chat.ask([5], question)) - 1 + sum(len(engine.completion(t).tokens) for t in said)
    own = Judging("steps", question="Right? {steps}")
    judge_all(other := Scripted(chat, [[[critique("+")]]]), chat, group[1:], own)
    assert other.calls[0][0][0].endswith("Right? 2")


def test_plans_and_evaluations_by_written_verdicts(tmp_path: Path) -> None:
    """A plan that judges as the pool did is replayed, another one is run; the tokens of verifications are counted."""
    model = twofold.load("tiny")
    plan = "weighted-2:judge=steps,cut=tags,votes=2"
    assert str(parse(plan)) == plan and parse(plan).judge == Judging("steps", cut="tags", votes=2)
    assert parse("best-4:make=beam,value=steps").make == Beam(value="steps")
    config = Eval(problems=2, n=2, max_tokens=40, judge=Judging("steps", votes=2))
    out = run.evaluate(model, "sums", config, out=tmp_path, plans=["weighted-2", "weighted-2:votes=1"])
    pools, header = read_pools(out / "pools.jsonl"), read_header(out)
    assert all(s is not None and 0 <= s <= 1 for p in pools for s in p.scores)
    assert all(
        tokens > 40 for p in pools for tokens in p.judge_tokens
    )  # two critiques of some 25 tokens, and the request
    like = Plan(max_tokens=40, judge=Judging("steps", votes=2))
    assert replayable(like, header) and not replayable(replace(like, judge=Judging("steps")), header)
    for change in ({"cut": "tags"}, {"question": "Right?"}):
        assert not replayable(replace(like, judge=replace(like.judge, **change)), header)
    assert len((out / "plans.jsonl").read_text().splitlines()) == 2  # a line per problem of the plan that was run
    with pytest.raises(ValueError, match=r"judge\.votes must be at least 1, got 0"):
        parse("weighted-2:judge=steps,votes=0")


# ---------------------------------------------------------------- whole runs


def small(*settings: str) -> Config:
    base = toml.load(Config, ROOT / "configs" / "tango-sums.toml")
    fast = ["recipe.verifier_warmup=1", "recipe.generator_updates=1", "recipe.rollouts=3", "train.steps=4"]
    return toml.override(base, [*fast, "rollout.problems=3", "train.save_every=2", *settings])


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "settings",
    [
        ["recipe.step_labels=1", "recipe.continuations=2", "recipe.consistency=0.5"],
        ["recipe.estimator=reinforce++", "recipe.alpha=0.5", "recipe.verifications=2", "loss.beta=0.1"],
    ],
)
def test_one_model_in_both_roles(settings: list[str], tmp_path: Path) -> None:
    training.train(small(*settings, "train.steps=2"), tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert [line["tango/verifier_turn"] for line in lines] == [1, 0]
    assert all(
        line["skipped"] == 0 and line["mismatch"] < 1e-4 for line in lines
    )  # sampled and scored alike in both roles
    assert all(line["verifier/readable"] > 0.8 for line in lines)  # the shipped model knows the form
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-2"]


def test_two_models_learn_apart_and_resume_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each model has its own weights, moments and learning rate; the recipe's state is saved with them."""
    loaded: list[bool] = []

    def load(engine: NativeEngine, weights: Mapping[str, Any]) -> None:
        name, own = next(iter(engine.model.named_parameters()))
        loaded.append(weights[name].data_ptr() == own.data_ptr())

    monkeypatch.setattr(NativeEngine, "load", load)
    config = small("recipe.share=false", "loss.beta=0.1", "optim.schedule=linear", "optim.warmup=0", "optim.final=0")
    straight = tmp_path / "straight"
    training.train(config, straight)
    assert loaded == [True] * 10  # at the start and after every step, each engine the weights of its own role
    lines = metrics(straight)
    assert ["lr" in line for line in lines] == [False, True, False, True]
    assert ["verifier/lr" in line for line in lines] == [True, False, True, False]
    peak = config.optim.lr
    assert [line.get("lr", line.get("verifier/lr")) for line in lines] == pytest.approx(
        [peak, peak, peak / 2, peak / 2]
    )
    assert all(line.get("mismatch", line.get("verifier/mismatch")) < 1e-4 for line in lines)
    killed = shutil.copytree(straight, tmp_path / "killed")
    shutil.rmtree(killed / "checkpoints" / "step-4")
    training.train(config, killed, resume=True)
    policy, again = (x / "checkpoints" / "step-4" for x in (straight, killed))
    verifier = policy / "verifier"
    for name in ("model.safetensors", OPTIMIZER, STATE, MANIFEST):
        for role in ("", "verifier/"):
            assert (policy / f"{role}{name}").read_bytes() == (again / f"{role}{name}").read_bytes()
    assert (policy / "model.safetensors").read_bytes() != (verifier / "model.safetensors").read_bytes()
    memory = checkpoint.read_state(policy)["recipe"]
    assert memory.keys() == {"right", "wrong"} and sum(memory.values()) == pytest.approx(3)
    assert twofold.load(verifier).chat.yes_no_ids  # a model as any other


def test_the_published_config_trains_two_models(tiny_qwen: Path, tmp_path: Path) -> None:
    """It trains random weights with that model's chat format: bfloat16, checkpointing, KL to two references, tagged steps."""
    rows = [{"problem": f"What is {i} + {i}?", "solution": f"It is $\\boxed{{{2 * i}}}$."} for i in range(4)]
    (tmp_path / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = toml.load(Config, ROOT / "configs" / "tango-qwen2.5-math-1.5b.toml")
    assert base.system == SOLVE and base.recipe == Tango(
        share=False, verifier="Qwen/Qwen2.5-1.5B", verifier_tokens=4096
    )
    config = toml.override(
        base,
        [f"model={tiny_qwen}", f"recipe.verifier={tiny_qwen}", f"task.source={tmp_path / 'math.jsonl'}", "train.steps=2",
         "rollout.problems=2", "rollout.max_tokens=12", "recipe.verifier_tokens=12", "recipe.verifier_warmup=1",
         "recipe.rollouts=2"],
    )  # fmt: skip
    training.train(config, tmp_path / "run")
    first, second = metrics(tmp_path / "run")
    assert (first["verifier/skipped"], second["skipped"]) == (0, 0)
    assert (first["verifier/kl"], second["kl"]) == (pytest.approx(0, abs=1e-3), pytest.approx(0, abs=1e-3))


def test_a_verifier_with_another_tokenizer_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has another tokenizer than tiny"):
        training.train(small("recipe.share=false", f"recipe.verifier={tiny_model}"), tmp_path / "run")
