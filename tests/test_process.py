"""Step credit, class weights, and ProcessBench: its score, its files, its twin, and models as critics."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import twofold
from twofold import cli
from twofold.evals import critic
from twofold.evals.critic import (
    Critic,
    as_candidate,
    find_error_prompt,
    predict,
    predicted_step,
    prefix_values,
    score,
    tuned,
)
from twofold.maths.processbench import best_threshold, first_error, process_score
from twofold.maths.step_credit import class_weights, decayed, grpo_steps, rloo_steps, until_error
from twofold.tasks.datasets import DataError
from twofold.tasks.procedural import Countdown, Letters, Sums
from twofold.tasks.processbench import Case, Planted, load_cases
from twofold.text.chat import Chat
from twofold.text.prompts import CRITIQUE
from twofold.text.steps import read
from twofold.types import Completion, Sampling

VECTOR = [[1, -1], [1, 1, 1, 1], [-1]]
"""The worked example: verdicts of three solutions."""


def near(rows: Any, expected: Any, tolerance: float = 1e-4) -> bool:
    flat = lambda x: [v for row in x for v in (row if isinstance(row, Sequence) else [row])]  # noqa: E731
    assert [len(r) for r in rows] == [len(e) for e in expected]
    return flat(rows) == pytest.approx(flat(expected), abs=tolerance)


# ---------------------------------------------------------------- credit


def test_the_worked_vector() -> None:
    assert near(grpo_steps(VECTOR), [[0, -0.9258], [1.8516, 1.3887, 0.9258, 0.4629], [-1.8516]])


def test_fewer_steps_are_favoured_where_all_are_right_and_more_where_all_are_wrong() -> None:
    """Pooled z-scores are biased by the number of steps; the credit per response is not."""
    firsts = [row[0] for row in grpo_steps([[1] * 2, [1] * 4])]
    assert firsts == pytest.approx([2.58, -2.58], abs=0.01)
    firsts = [row[0] for row in grpo_steps([[1] * k for k in (1, 5, 8, 10, 15)])]
    assert firsts == pytest.approx([5.8, 2.4, -0.2, -1.9, -6.2], abs=0.05)
    assert grpo_steps([[-1] * 2, [-1] * 4])[0][0] == pytest.approx(-2.58, abs=0.01)
    for sign in (1, -1):
        assert near(grpo_steps([[sign] * k for k in (1, 5, 15)], "response"), [[0] * k for k in (1, 5, 15)])


def test_credit_per_response_by_hand() -> None:
    """The mean verdicts are 0, 1, -1, with mean 0 and standard deviation 1."""
    assert near(grpo_steps(VECTOR, "response"), [[0, -0.5], [1, 0.75, 0.5, 0.25], [-1]])
    assert grpo_steps([[1, -1]], "response") == [[0, 0]] and grpo_steps([], "response") == []


@given(st.lists(st.lists(st.sampled_from([-1.0, 1.0]), min_size=1, max_size=6), min_size=2, max_size=6))
def test_per_response_the_first_token_has_the_z_score_of_the_mean_verdict(verdicts: list[list[float]]) -> None:
    means = [sum(row) / len(row) for row in verdicts]
    mean = sum(means) / len(means)
    std = math.sqrt(sum((m - mean) ** 2 for m in means) / (len(means) - 1))
    expected = [(m - mean) / std if std > 1e-9 else 0 for m in means]
    assert [row[0] for row in grpo_steps(verdicts, "response")] == pytest.approx(expected, abs=1e-4)


def test_credit_by_the_first_error_by_hand() -> None:
    """The verdicts +1 -1 | +1 +1 | -1 -1 have mean 0 and standard deviation sqrt(6/5)."""
    assert until_error([1, -1, 1]) == [1, -1, -1]
    z = 1 / math.sqrt(6 / 5)
    assert near(grpo_steps([[1, -1], [1, 1], [-1, 1]], "first_error"), [[z, -z], [z, z], [-z, -z]])
    assert until_error([0.0, -0.5, 1.0]) == [1, -1, -1]  # a tie of two verifications is not an error


def test_leave_one_out_step_credit_by_hand() -> None:
    """Rewards 1/2, -1/2 | 1 minus the mean of the others are 1/4, -5/4 | 1. These are summed to go, times ten."""
    assert near(rloo_steps([[1, -1], [1]]), [[10 * (0.25 - 1.25), -12.5], [10.0]])
    assert rloo_steps([[1]]) == [[0]] and rloo_steps([]) == []


def test_alpha_decays_as_planned() -> None:
    assert [decayed(0.1, 1e-3, s, 300) for s in (0, 50, 100, 150, 199)] == pytest.approx(
        [0.1, 0.0464, 0.0215, 0.01, 0.0047], abs=5e-5
    )
    assert [decayed(0.1, 1e-3, s, 200) for s in (50, 100, 200, 999)] == pytest.approx(
        [0.0316, 0.01, 0.001, 0.001], abs=5e-5
    )
    assert decayed(0.0, 1e-3, 5, 10) == 0


def test_class_weights_by_hand() -> None:
    assert class_weights(10, 90, 10, 90) == pytest.approx((2.5, 0.8333), abs=1e-4)
    right, wrong = class_weights(30, 70, 10, 40)  # counts of this batch, other moving averages
    assert right / wrong == pytest.approx(2) and 0.3 * right + 0.7 * wrong == pytest.approx(1)
    assert class_weights(0, 8, 0, 8) == (0, 1) and class_weights(0, 0, 0, 0) == (0, 0)


# ---------------------------------------------------------------- the score


def test_f1_by_hand() -> None:
    found = process_score([0, 1, 2, -1, -1], [0, 2, None, -1, 0])
    assert (found.on_wrong, found.on_right) == (pytest.approx(1 / 3), 0.5)
    assert found.f1 == pytest.approx(0.4) and found.unreadable == 0.2 and found.cases == 5


def test_f1_is_guarded() -> None:
    assert process_score([0, -1], [1, 0]).f1 == 0
    assert math.isnan(process_score([0, 1], [0, 1]).f1)  # every case has an error
    assert process_score([0, -1], [0, -1]).f1 == 1
    with pytest.raises(ValueError, match="1 predictions for 2 cases"):
        process_score([0, -1], [0])


def test_the_interval_is_that_of_resampled_cases() -> None:
    labels, rng = [k % 4 - 1 for k in range(80)], random.Random(0)
    guesses = [label if rng.random() < 0.6 else 9 for label in labels]
    found = process_score(labels, guesses)
    again = []
    for _ in range(800):
        drawn = [rng.randrange(80) for _ in range(80)]
        again.append(process_score([labels[i] for i in drawn], [guesses[i] for i in drawn], n=1).f1)
    again.sort()
    assert (found.low, found.high) == pytest.approx((again[20], again[780]), abs=0.03)
    assert found.low < found.f1 < found.high


def test_the_best_threshold() -> None:
    values = [[0.9, 0.3, 0.2], [0.8, 0.7], [0.6, 0.9], [0.4, 0.9]]
    t = best_threshold(values, [1, -1, -1, 0])
    assert 0.4 < t < 0.6 and [first_error([v >= t for v in row]) for row in values] == [1, -1, -1, 0]
    assert best_threshold([[0.5], [0.5]], [-1, 0]) == 0.5  # equal values separate nothing, and every step passes
    with pytest.raises(ValueError, match="of one kind"):
        best_threshold([[0.5], [0.5]], [0, 0])


# ---------------------------------------------------------------- files


ROW = {
    "id": "gsm8k-0", "generator": "some-model", "problem": "1+1+1?", "steps": ["1+1=2", "2+1=4"],
    "final_answer_correct": False, "label": 1,
}  # fmt: skip


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_published_fields_are_loaded(tmp_path: Path) -> None:
    other = ROW | {"id": "gsm8k-1", "label": -1, "final_answer_correct": True}
    cases = load_cases(write(tmp_path / "gsm8k.jsonl", ROW, other))
    assert cases[0] == Case("gsm8k-0", "1+1+1?", ("1+1=2", "2+1=4"), 1, False, "some-model")
    assert [c.label for c in cases] == [1, -1]
    assert len(load_cases(tmp_path / "gsm8k.jsonl", limit=1)) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": 2}, "'label' must be -1 or the index of one of 2 steps, got 2"),
        ({"label": True}, "'label' must be"),
        ({"label": -2}, "'label' must be"),
        ({"steps": []}, "'steps' must be a list of texts"),
        ({"steps": "1+1=2"}, "'steps' must be a list of texts"),
        ({"steps": ["1", 2]}, "'steps' must be a list of texts"),
        ({"final_answer_correct": 1}, "'final_answer_correct' must be true or false, got 1"),
        ({"problem": " "}, "empty 'problem'"),
        ({"generator": None}, "no text under 'generator'"),
    ],
)
def test_a_row_that_is_no_case_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "cases.jsonl", ROW, ROW | change)
    with pytest.raises(DataError, match=f"cases.jsonl:2: {said}"):
        load_cases(path)


def test_a_source_that_is_neither_file_nor_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gsm9k is neither a file .* nor one of gsm8k, math"):
        load_cases("gsm9k")
    with pytest.raises(DataError, match="no rows"):
        load_cases(write(tmp_path / "none.jsonl"))


# ---------------------------------------------------------------- the twin


@pytest.mark.parametrize("task", [Sums(level=3), Letters(), Countdown()])
def test_planted_errors_are_where_the_label_says(task: Any) -> None:
    """The lines are checked by arithmetic that shares no code with what planted the errors."""
    cases = [Planted(task).case(i) for i in range(60)]
    assert cases == [Planted(task).case(i) for i in range(60)] != [Planted(task, seed=1).case(i) for i in range(60)]
    assert [c.label >= 0 for c in cases] == [i % 2 == 0 for i in range(60)]
    assert len({c.label for c in cases}) > 2
    for i, case in enumerate(cases):
        assert task.grade(task.problem("test", i), f"\\boxed{{{case.answer}}}")[1].reward == case.final_answer_correct
        asked = task.problem("test", i).meta.get("steps", [])
        right = [holds(line, asked[k] if k < len(asked) else None) for k, line in enumerate(case.steps)]
        if case.label < 0:
            assert all(right) and case.final_answer_correct
        else:
            assert all(right[: case.label])
            # in countdown a line does not show that its number was copied wrongly
            assert not right[case.label] or isinstance(task, Countdown)


def test_a_twin_that_could_plant_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no case would get its error"):
        Planted(Sums(), slip=0.0)


def holds(line: str, asked: tuple[str, int] | None) -> bool:
    """Return whether a line is true by itself, and does what was asked for if that is known."""
    if ":" in line:
        word, said = line.split(": ")
        return said.split(",")[0] == word[-1]
    if " vs " in line:
        a, b = line.split(" vs ")
        return a == b
    left, result = line.split("=")
    op = next(c for c in "+-*" if c in left[1:])
    at = left.index(op, 1)
    a, b = int(left[:at]), int(left[at + 1 :])
    return {"+": a + b, "-": a - b, "*": a * b}[op] == int(result) and asked in (None, (op, b))


# ---------------------------------------------------------------- critics


@pytest.fixture(scope="module")
def model() -> Any:
    return twofold.load("tiny")


class Says:
    """An engine that says these texts, prompt by prompt, and gives log-probs from a list."""

    def __init__(self, chat: Chat, texts: Sequence[Sequence[str]] = (), yes: Sequence[float] = ()) -> None:
        self.chat, self.texts, self.yes = chat, list(texts), list(yes)
        self.prompts: list[str] = []
        self.sampling: list[Sampling] = []

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[Completion]]:
        self.prompts += [self.chat.tokenizer.decode(list(p)) for p in prompts]
        self.sampling.append(sampling)
        return [[self.completion(t) for t in self.texts.pop(0)] for _ in prompts]

    def completion(self, text: str) -> Completion:
        tokens = self.chat.encode(text, tags=True)
        return Completion(tokens, [0.0] * len(tokens), [True] * len(tokens), "stop")

    def logprobs(self, prompts: Any, continuations: Any, temperature: float = 1.0) -> list[list[float]]:
        """``yes[i]`` is P(Yes) after the i-th of the different prompts."""
        texts = [self.chat.tokenizer.decode(list(p)) for p in prompts]
        self.prompts = list(dict.fromkeys(texts))
        yes = dict(zip(self.prompts, self.yes, strict=True))
        word = self.chat.yes_no_ids[0]
        return [[math.log(yes[t] if c[0] == word else 1 - yes[t])] for t, c in zip(texts, continuations, strict=True)]


CASES = [
    Case("a", "Q0", ("x", "y"), 1, False),
    Case("b", "Q1", ("x", "y", "z"), -1, True),
    Case("c", "Q2", ("x",), 0, False),
]


def critique(marks: str, final: str = "+") -> str:
    mark = {"+": r"\boxed{CORRECT}", "-": r"\boxed{INCORRECT}"}
    steps = "".join(f"<step>{mark[m]}</step>" for m in marks)
    return f"<step_verification>{steps}</step_verification><final_verification>{mark[final]}</final_verification>"


def test_the_verifier_as_critic(model: Any) -> None:
    engine = Says(model.chat, [[critique("+-")], [critique("+++", "-")], [critique("--")]])
    critic = Critic(question="Check {steps}.", batch=2)
    assert predict(engine, model.chat, CASES, critic) == [1, -1, None]  # two verdicts, one step
    assert engine.prompts[0] == (
        "<|user|>Q0<|end|><|assistant|><think>\n<step>x</step>\n<step>y</step>\n</think><|end|>"
        "<|user|>Check 2.<|end|><|assistant|>"
    )
    assert [s.temperature for s in engine.sampling] == [0, 0]  # in batches, greedily
    found = score(Says(model.chat, [[critique("+-")], [critique("+++")], [critique("--")]]), model.chat, CASES, critic)
    assert (found.on_wrong, found.on_right, found.unreadable) == (0.5, 1, pytest.approx(1 / 3))


def test_the_variant_that_asks_for_the_whole_to_be_right() -> None:
    assert [predicted_step(read(critique("++", f)), 2, whole) for f in "+-" for whole in (False, True)] == [
        -1,
        -1,
        -1,
        None,
    ]
    assert predicted_step(read(critique("-+", "-")), 2, True) == 0


def test_votes_of_several_verifications(model: Any) -> None:
    drawn = [critique("+-"), critique("--"), critique("-"), critique("+-")]
    engine = Says(model.chat, [drawn])
    assert predict(engine, model.chat, CASES[:1], Critic(votes=4, temperature=0.7)) == [1]
    assert (engine.sampling[0].n, engine.sampling[0].temperature) == (4, 0.7)


def test_a_prompted_critic(model: Any) -> None:
    engine = Says(model.chat, [[r"so \boxed{1}"], [r"\boxed{-1}"], [r"\boxed{7}"]])
    assert predict(engine, model.chat, CASES, Critic("prompted")) == [1, -1, None]
    text = find_error_prompt(Case("d", r"{solution} \1", ("{problem}", "b"), 0, False))
    assert "Problem:\n{solution} \\1\n" in text
    assert "<paragraph_0>\n{problem}\n</paragraph_0>\n\n<paragraph_1>\nb\n</paragraph_1>" in text


def test_thresholded_p_yes_at_prefixes(model: Any) -> None:
    cases = [CASES[0], CASES[2]]
    engine = Says(model.chat, yes=[0.9, 0.3, 0.4])
    assert predict(engine, model.chat, cases, Critic("p_yes", cut="lines")) == [1, 0]
    assert [p.split("<|end|>")[1] for p in engine.prompts[:3]] == [f"<|assistant|>{t}" for t in ("x", "x\ny", "x")]
    assert predict(engine, model.chat, cases, Critic("p_yes", threshold=0.2)) == [-1, -1]
    engine = Says(model.chat, yes=[0.9, 0.3, 0.8, 0.7, 0.6])
    assert tuned(engine, model.chat, CASES[:2], Critic("p_yes")).threshold == pytest.approx(0.45)


def test_critics_with_the_shipped_model(model: Any) -> None:
    """The model was taught critiques, so nearly all of them can be read."""
    cases = [Planted(Letters()).case(i) for i in range(24)]
    verifier = Critic(cut="lines", question=CRITIQUE, max_tokens=64)
    found = score(model.engine, model.chat, cases, verifier)
    assert found.unreadable < 0.1
    values = prefix_values(model.engine, model.chat, cases, "lines")
    assert [len(v) for v in values] == [len(c.steps) for c in cases] and all(0 <= v <= 1 for row in values for v in row)
    whole = as_candidate(model.chat, cases[1], "lines")
    assert values[1][-1] == pytest.approx(critic.p_yes(model.engine, model.chat, [whole], normalised=True)[0], abs=1e-4)


def test_the_command(model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = ROW | {"id": "gsm8k-1", "label": -1, "final_answer_correct": True}
    path = str(write(tmp_path / "cases.jsonl", ROW, other))
    assert cli.main(["critic", "tiny", path, "--cut=lines", f"--question={CRITIQUE}", "--max_tokens=64"]) == 0
    said = capsys.readouterr().out
    assert re.fullmatch(
        r"criticising: case 2/2\nF1 [\d.]+% \[[\d.]+%, [\d.]+%\] on 2 cases\n"
        r"cases with an error, .*\nreplies that could not be read: [\d.]+%\n",
        said,
    )
    assert cli.main(["critic", "tiny", "letters", "--how", "guess"]) == 2
    assert "how must be one of 'verifier', 'prompted', 'p_yes'" in capsys.readouterr().err


def test_a_threshold_is_chosen_on_other_cases(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threshold is chosen on a task's training side, which shares no question with its test side."""
    seen: list[set[str]] = []
    for name in ("tuned", "score"):
        plain = getattr(critic, name)
        monkeypatch.setattr(
            critic, name, lambda e, c, xs, *how, f=plain: seen.append({x.problem for x in xs}) or f(e, c, xs, *how)
        )
    words = ["critic", "tiny", "letters", "--number=6", "--how", "p_yes", "--cut", "lines", "--tune-on", "letters"]
    assert cli.main(words) == 0
    assert [len(x) for x in seen] == [6, 6] and not seen[0] & seen[1]
