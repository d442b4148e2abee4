"""MRT-B: streams of attempts, their sliding window, and what each method learns from them, computed by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_mrt import Scripted, Words, context, credit

import twofold
from twofold import toml, training
from twofold.compute.backtrack import Backtracking, backtracking, tried
from twofold.compute.rollout import rollouts
from twofold.config import Config
from twofold.recipes.backtrack import MRTB, Recipe
from twofold.tasks.procedural import Sums
from twofold.text.chat import Chat
from twofold.text.prompts import BACKTRACK
from twofold.text.segments import attempts, line_starts
from twofold.types import Sample, Sampling

ROOT = Path(__file__).parents[1]
Q = Words().problem("train", 0)


@pytest.fixture(scope="module")
def model() -> Any:
    return twofold.load("tiny")


@pytest.fixture(scope="module")
def chat(model: Any) -> Chat:
    return model.chat


# ---------------------------------------------------------------- text


def texts(stream: Sequence[str]) -> list[str]:
    return ["".join(stream[i] for i in attempt) for attempt in attempts(stream)]


def test_a_new_attempt_shares_the_lines_before_the_one_that_is_taken_back():
    stream = "A\nB\nC\nBacktrack to line 2\nD\nE\nBacktrack to Line 3\nF"
    assert texts(stream) == ["A\nB\nC\n", "A\nD\nE\n", "A\nD\nF"]
    assert texts("A\nBacktrack to line 1\nB") == texts("A\nBacktrack to beginning\nB") == ["A\n", "B"]


def test_lines_are_those_of_the_attempt_and_blank_ones_do_not_count():
    assert texts("A\n\n \nB\nBacktrack to line 2\nC") == ["A\n\n \nB\n", "A\n\n \nC"]
    assert texts("A\nB\nBacktrack to line 9\nC") == ["A\nB\n", "A\nB\nC"]  # there is no line 9 to take back
    assert texts("A\nBacktrack to line 0\nC") == ["A\n", "C"]
    assert line_starts("A\n\n B\n") == [0, 3]


@pytest.mark.parametrize(
    "stream", ["", "A\nB", "A Backtrack to line 1\nB", "A\nBacktrack to line 1", "Backtrack to li"]
)
def test_what_is_no_mark(stream):
    assert texts(stream) == [stream]


def test_a_token_belongs_to_the_line_in_which_it_begins():
    stream = ["A", "\nB", "\n", "Back", "track to line 2\nC", "\n", "D"]  # the line break hides B, and the mark C
    assert texts(stream) == ["A\nB\n", "A\nB\nD"]


# ---------------------------------------------------------------- the sliding window


def test_the_window_slides_along_the_stream(chat):
    """The first window is full within the second attempt; the stream continues after that attempt alone."""
    first = "1\n\\boxed{1}\nBacktrack to line 1\n2..."
    engine = Scripted(chat, [{"Q0": [first], "Q1": ["\\boxed{7}"]}, {"Q02...": ["\n\\boxed{2}"]}])
    a, b = backtracking(engine, chat, ["Q0", "Q1"], 1, Sampling(max_tokens=30, stop=chat.stop), Backtracking(windows=2))
    assert [r.answer for m in (a, b) for r in m.candidates] == ["2", "7"]
    kept, more = (len(chat.encode(t, tags=True)) for t in ("2...", "\n\\boxed{2}"))
    assert engine.calls[1][1].max_tokens == 30 - kept
    assert a.candidates[0].text == "2...\n\\boxed{2}" and a.scores is None
    generated = len(chat.encode(first, tags=True)) + more + 1
    assert (a.cost.generated, a.cost.discarded) == (generated, generated - kept - more - 1)
    assert b.cost.discarded == 0 and len(engine.calls) == 2


def test_the_last_attempt_that_has_an_answer_stands(chat):
    first = "1\n\\boxed{1}\nBacktrack to line 1\n2..."
    engine = Scripted(chat, [{"Q0": [first]}, {"Q02...": ["3..."]}])
    (made,) = backtracking(engine, chat, ["Q0"], 1, Sampling(max_tokens=30, stop=chat.stop), Backtracking(windows=1))
    assert [r.text for r in made.candidates] == ["1\n\\boxed{1}"]


def test_an_attempt_that_fills_the_window_ends_the_stream(chat):
    engine = Scripted(chat, [{"Q0": ["1 2 3..."]}])
    size = len(chat.encode("1 2 3...", tags=True))
    (made,) = backtracking(engine, chat, ["Q0"], 1, Sampling(max_tokens=size, stop=chat.stop), Backtracking(windows=9))
    assert [r.text for r in made.candidates] == ["1 2 3..."] and len(engine.calls) == 1
    with pytest.raises(ValueError, match="at least 0"):
        Backtracking(windows=-1)


def test_attempts_keep_the_log_probs_of_their_tokens(chat):
    stream = Scripted(chat, []).completion("A\nB\nBacktrack to line 2\nC")
    stream = type(stream)(stream.tokens, [-float(i) for i in range(len(stream.tokens))], stream.sampled, "stop")
    first, second = tried(chat, stream)
    assert [chat.decode(c.tokens) for c in (first, second)] == ["A\nB", "A\nC"]
    assert (first.finish, second.finish) == ("length", "stop") and second.tokens[-1] == chat.stop[0]
    places = dict(zip(stream.logprobs, stream.tokens, strict=True))
    assert [places[x] for x in second.logprobs] == second.tokens


# ---------------------------------------------------------------- RL


def collect(
    chat: Chat, script: Sequence[Mapping[str, Sequence[str]]], **options: Any
) -> tuple[list[Sample], dict[str, float], Scripted]:
    engine = Scripted(chat, script)
    recipe = Recipe(MRTB(**({"rollouts": 2} | options)), Words(), chat, Sampling(max_tokens=24, seed=5), engine)
    found = recipe.collect(engine, [Q], 0)
    samples, stats = found.samples, found.stats
    assert len(engine.calls) == len(script)
    return samples["policy"], stats, engine


AGAIN = "\nBacktrack to line 1\nb\n"


@pytest.mark.parametrize(
    ("first", "second", "bonus", "expected"),
    [
        # z0 is wrong; of two streams one ends there and one mends it: rewards 0, 0 and 0, 1 have mean 1/4, std 1/2
        ("no", "yes", "mixed", [-0.5, 1.5]),
        ("no", "yes", "termination", [0, 1]),
        # z0 right; one stream breaks it
        ("yes", "no", "mixed", [0.5, -1.5]),
        ("yes", "no", "termination", [0, -1]),
        # as good as before
        ("no", "no", "mixed", [0, 0]),
    ],
)
def test_streams_are_compared_with_the_attempt_that_they_continue(chat, first, second, bonus, expected):
    z0, other = f"a\n{first}", "yes" if first == "no" else "no"
    script = [{"Q0": [z0, other]}, {f"Q0{z0}": ["", AGAIN + second]}]
    samples, stats, engine = collect(chat, script, bonus=bonus, alpha=2.0, branches=2)
    half = math.sqrt(0.5) * (1 if first == "yes" else -1)
    assert [credit(chat, s)[0][1] for s in samples[:2]] == pytest.approx([half, -half], abs=1e-5)
    assert [context(chat, s) for s in samples] == ["Q0", "Q0", f"Q0{z0}", f"Q0{z0}"]
    assert [credit(chat, s) for s in samples[2:]] == [
        [(text, pytest.approx(2 * a, abs=1e-5))] for text, a in zip(("", AGAIN + second), expected, strict=True)
    ]
    assert stats["backtrack/branch_progress"] == ((second == "yes") - (first == "yes")) / 2
    assert engine.calls[1][1].n == 2 and engine.calls[1][1].seed != engine.calls[0][1].seed


def test_the_others_continue_the_first_attempt_of_a_stream_that_backtracked(chat):
    """Whether to backtrack is decided after the last line, so the line break is not context."""
    script = [{"Q0": [f"a\nno{AGAIN}yes", "no"]}, {"Q0a\nno": [""] * 4}]
    samples, stats, _ = collect(chat, script)
    assert [context(chat, s) for s in samples[2:]] == ["Q0a\nno"] * 4
    assert (stats["backtrack/share"], stats["backtrack/attempts"]) == (0.5, 1.5)
    assert (stats["reward"], stats["backtrack/first"], stats["backtrack/progress"]) == (0.5, 0, 0.5)
    assert stats["backtrack/progress_negative"] == 0


def test_alpha_0_is_grpo(chat):
    script = [{"Q0": [f"a\nno{AGAIN}yes", "no"]}]
    expected, _, _ = collect(chat, script, method="grpo")
    assert collect(chat, script, method="rl", alpha=0.0)[0] == expected
    assert [a for s in expected for _, a in credit(chat, s)] == pytest.approx(
        [math.sqrt(0.5), -math.sqrt(0.5)], abs=1e-5
    )


def test_the_starting_model_makes_the_first_attempt(chat):
    policy = Scripted(chat, [{"Q0": ["no", "no"]}, {"Q0c no": ["\nBacktrack to line 1\nyes"]}])
    start = Scripted(chat, [{"Q0": ["c no"]}])
    config = MRTB(rollouts=2, branches=1, source="start", bonus="termination")
    samples = Recipe(config, Words(), chat, Sampling(max_tokens=24), start).collect(policy, [Q], 0).samples
    assert [a for _, a in credit(chat, samples["policy"][2])] == [1]
    with pytest.raises(ValueError, match="needs an engine of the starting model"):
        Recipe(config, Words(), chat, Sampling())


def test_rewards_that_are_not_known_are_left_out(chat):
    script = [{"Q0": ["no", "late"]}, {"Q0no": ["\nBacktrack to line 1\nlate", "\nBacktrack to line 1\nyes"]}]
    samples, _, _ = collect(chat, script, branches=2, bonus="termination")
    assert [credit(chat, s) for s in samples] == [[("no", 0)], [("\nBacktrack to line 1\nyes", 1)]]
    assert len(collect(chat, [{"Q0": ["late", "late"]}])[0]) == 0


# ---------------------------------------------------------------- warm start


def learnt(chat: Chat, samples: Sequence[Sample]) -> list[tuple[str, str]]:
    """Return (context, target) of each sample; the target reaches the end of the turn, and nothing is sampled."""
    found = []
    for s in samples:
        start = s.targets.index(1.0)
        assert s.targets == [0.0] * start + [1.0] * (len(s.tokens) - start) and s.tokens[-1] == chat.stop[0]
        assert not any(s.sampled) and not any(s.advantages)
        found.append((chat.decode(s.tokens[:start]), chat.decode(s.tokens[start:])))
    return found


FAILED, RIGHT = "a\nb no", "c\nyes"


def test_a_warm_start_goes_back_to_the_best_prefix(chat):
    """Success is 1/2 without a line and 1 with the first, so the second line is taken back and a right continuation learnt."""
    script = [{"Q0": [FAILED, RIGHT]}, {"Q0": ["x no", "y yes"], "Q0a\n": ["yes", "d yes"]}]
    samples, stats, engine = collect(chat, script, method="warm", continuations=2)
    assert learnt(chat, samples) == [("Q0c\nyes", ""), ("Q0a\nb no", f"\n{BACKTRACK.format(2)}yes")]
    assert (stats["backtrack/kept"], stats["backtrack/success"], stats["backtrack/line"]) == (1, 1, 2)
    assert engine.calls[1][1].n == 2


def test_the_longer_of_equal_prefixes_and_nothing_where_no_continuation_is_right(chat):
    script = [{"Q0": [FAILED, FAILED]}, {"Q0": ["yes", "no"], "Q0a\n": ["no", "d yes"]}]
    samples, _, _ = collect(chat, script, method="warm", continuations=2)
    assert {suffix for _, suffix in learnt(chat, samples)} == {f"\n{BACKTRACK.format(2)}d yes"}
    script = [{"Q0": [FAILED, "late"]}, {"Q0": ["no", "late"], "Q0a\n": ["no", "no"]}]
    samples, stats, _ = collect(chat, script, method="warm", continuations=2)
    assert samples == [] and stats["backtrack/kept"] == 0


def test_the_whole_turn_may_be_learnt(chat):
    script = [{"Q0": [FAILED, RIGHT]}, {"Q0": ["x no"], "Q0a\n": ["yes"]}]
    samples, _, _ = collect(chat, script, method="warm", continuations=1, learn="turn")
    assert learnt(chat, samples) == [("Q0", RIGHT), ("Q0", f"{FAILED}\n{BACKTRACK.format(2)}yes")]


def test_the_baselines(chat):
    """RISE learns a failed attempt with a right one of the same problem, from the first line on; STaR learns right ones only."""
    script = [{"Q0": [FAILED, RIGHT]}]
    samples, _, _ = collect(chat, script, method="rise")
    assert learnt(chat, samples) == [("Q0c\nyes", ""), ("Q0a\nb no", f"\n{BACKTRACK.format(1)}c\nyes")]
    assert learnt(chat, collect(chat, script, method="star")[0]) == [("Q0", RIGHT)]
    assert collect(chat, [{"Q0": [FAILED, FAILED]}], method="rise")[0] == []


def test_what_is_learnt_is_read_back_as_it_was_made(chat):
    """The stream of a warm start, cut at its mark, is the failed attempt and the right one that shares its first line."""
    script = [{"Q0": [FAILED, "late"]}, {"Q0": ["x no"], "Q0a\n": ["yes"]}]
    samples, _, _ = collect(chat, script, method="warm", continuations=1)
    stream = samples[0].tokens[len(chat.prompt("Q0")) :]
    completion = Scripted(chat, []).completion("")
    found = tried(chat, type(completion)(stream, [0.0] * len(stream), [False] * len(stream), "stop"))
    assert [chat.decode(c.tokens) for c in found] == [FAILED, "a\nyes"]


@pytest.mark.parametrize("wrong", [{"rollouts": 0}, {"branches": 0}, {"continuations": 0}])
def test_bad_options_are_refused(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        MRTB(**wrong)


# ---------------------------------------------------------------- whole runs


def test_continuations_are_computed_from_the_attempts_own_cache(model, chat):
    """Of the prompts and attempts, only the last token of each prefix is computed again."""
    task = Sums(choice=1.0)
    recipe = Recipe(MRTB(method="warm"), task, chat, Sampling(max_tokens=48, seed=1))
    problems = [task.problem("train", i) for i in range(4)]
    groups = rollouts(model.engine, chat, task, problems, recipe.sampling)
    failed = [recipe._first(r) for g in groups for r in g if r.grade.label == "wrong"]
    assert len(failed) >= 4
    before, reused = model.engine.usage.computed, model.engine.usage.reused
    pairs, stats = recipe._mended(model.engine, failed, recipe.sampling)
    lines = [line_starts([chat.decode([t]) for t in r.completion.tokens]) for r in failed]
    prefixes = [len(r.prompt) + end for r, own in zip(failed, lines, strict=True) for end in own]
    assert model.engine.usage.reused - reused == sum(prefixes) - len(prefixes)
    assert model.engine.usage.computed - before <= len(prefixes) * 4 * 48
    assert pairs and stats["backtrack/success"] > 0


@pytest.mark.parametrize(
    "settings",
    [["recipe.method=rl", "recipe.source=start", "loss.beta=0.1"], ["recipe.method=warm"], ["recipe.method=rise"]],
)
def test_the_config_in_the_repository_runs(settings, tmp_path):
    base = toml.load(Config, ROOT / "configs" / "backtrack-sums.toml")
    config = toml.override(base, [*settings, "train.steps=2", "rollout.problems=2", "rollout.max_tokens=40"])
    training.train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(line["skipped"] == 0 for line in lines)
    if config.recipe.method == "rl":  # what is sampled is what is scored, also after an attempt that is context
        assert lines[0]["mismatch"] < 1e-4
    else:
        assert lines[1]["target_loss"] > 0 and lines[1]["backtrack/kept"] > 0
