"""The task `code`: its problems and hidden tests, what a solution earns, and one step of each method on it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import twofold
from twofold import run, toml, training
from twofold.config import Config, task_named
from twofold.engines.base import Finished, ignore_finished, report_all
from twofold.engines.native import NativeEngine
from twofold.evals.pools import read_header, read_pools
from twofold.evals.run import Eval
from twofold.tasks import sandbox
from twofold.tasks.code import ENDS, STEPS, Code, judged, near, source_of, tells
from twofold.text.extract import last_program
from twofold.types import Completion, Grade, Sampling

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are isolated on Linux only")

SPLITS = ["train", "test", "harder", "ood"]


def solution(program: str) -> str:
    return f"I go through the list.\n```python\n{program}\n```\nThat is it."


# ---------------------------------------------------------------- problems


@pytest.mark.parametrize("split", SPLITS)
def test_the_reference_passes_the_hidden_tests_and_the_examples(split: str) -> None:
    """The steps stand here as Python text and in the task as functions: running the text is the oracle of the functions."""
    for i in range(15):
        p = Code(level=1 + i % 4).problem(split, i)
        assert Code().grade(p, p.meta["solution"]) == (p.answer, Grade(1.0, "correct"))
        shown = re.findall(r"f\((\[[^]]*\])\) is ('[^']*'|\[[^]]*\]|[^ ]*)(?: and|\. Put)", p.question)
        outputs = sandbox.call(p.answer, "f", [[json.loads(xs)] for xs, _ in shown])
        assert [repr(value) for (value,) in outputs] == [value for _, value in shown] and len(shown) == 2


def test_the_hidden_tests_find_what_a_careless_solver_writes() -> None:
    """A step that is left out, or a number that is off by one, fails in the sandbox, whatever the chain."""
    chain = [(STEPS[2], 5), (STEPS[5], 3), (ENDS[1], 0)]  # above 5, add 3, sum
    assert (
        source_of(chain)
        == "def f(xs):\n    xs = [x for x in xs if x > 5]\n    xs = [x + 3 for x in xs]\n    return sum(xs)\n"
    )
    assert [source_of(other).count("xs = ") for other in near(chain)] == [1, 2, 2, 1, 2, 2]
    assert not tells(chain, [[1, 2], [3], [9]])  # above 4 and above 5 are alike there
    assert tells(chain, [[5, 1], [6, 2, 7], [9, 8]])
    for i in range(10):
        p = Code().problem("train", i)
        lines = p.answer.splitlines()
        for left_out in range(1, len(lines) - 1):
            program = "\n".join(line for j, line in enumerate(lines) if j != left_out)
            assert judged(program, "f", p.meta["tests"]) == "wrong"
        assert judged(f"def f(xs): return {p.meta['tests'][3][1]!r}", "f", p.meta["tests"]) == "wrong"


def test_ood_problems_have_numbers_that_training_never_has() -> None:
    for i in range(50):
        train, ood = Code().problem("train", i), Code().problem("ood", i)
        assert max((abs(x) for ((xs,), _) in train.meta["tests"] for x in xs), default=0) <= 20
        words = ood.question.partition(" For example")[0]
        assert max(int(n) for n in re.findall(r"\d+", words)) > 5
        assert max(abs(x) for ((xs,), _) in ood.meta["tests"] for x in xs) > 20
    assert Code().problem("harder", 0).meta["level"] == 3


def test_it_is_named_like_the_other_tasks() -> None:
    assert task_named("code:level=3,seed=1") == Code(level=3, seed=1)
    assert toml.override(Config(), ["task.name=code", "task.level=4"]).task == Code(level=4)
    with pytest.raises(ValueError, match="level must be from 1 to 6"):
        Code(level=7)


# ---------------------------------------------------------------- solutions


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\nx\n```", "x\n"),
        ("```\nx\n```", "x\n"),
        ("```Python3 \nx\n```  \nafter", "x\n"),
        ("```python\nold\n```\nbetter:\n```py\nnew\n```", "new\n"),
        ("```python\nx\n```\n```text\noutput\n```", "x\n"),
        ("```python\nx = '''\n``\n'''\n```", "x = '''\n``\n'''\n"),
        ("```python\ncut\n```python\nx\n```", "x\n"),
        ("```python\nx\n```\n```python\ncut", "x\n"),
        ("```python\ncut", None),
        ("```bash\nls\n```", None),
        ("code: ```x```", None),
        ("", None),
        ("```python\n" * 20_000, None),  # in linear time
    ],
)
def test_the_answer_is_the_last_complete_block(text: str, program: str | None) -> None:
    found = last_program(text)
    assert (found and found[0]) == program
    assert found is None or text[found[1] :].startswith("```")


def test_what_a_solution_earns() -> None:
    task = Code()
    p = task.problem("test", 0)
    earned = {
        p.answer: Grade(1.0, "correct"),
        p.answer.replace("def f(xs):", "def f(xs):\n    print(xs)"): Grade(1.0, "correct"),
        p.answer.replace("f(", "g("): Grade(0.0, "wrong"),
        "def f(xs):\n    raise ValueError": Grade(0.0, "wrong"),
        "def f(xs):\n    return": Grade(0.0, "wrong"),
        "import os; os._exit(0)": Grade(0.0, "wrong"),
        "not Python": Grade(0.0, "wrong"),
    }
    for program, grade in earned.items():
        assert task.grade(p, solution(program)) == (program + "\n", grade)
    assert task.grade(p, p.answer) == (None, Grade(0.0, "no_answer"))


def test_a_program_that_takes_too_long_earns_nothing_and_one_that_nothing_is_known_of_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = Code()
    p = task.problem("test", 0)
    assert task.grade(p, solution("def f(xs):\n    while True: pass"))[1] == Grade(0.0, "timeout")

    def gone(*_: Any) -> None:
        raise sandbox.Broken("its process was ended")

    monkeypatch.setattr(sandbox, "_answered", gone)
    assert task.grade(p, solution("def f(xs): return 1"))[1] == Grade(None, "error")


def test_programs_are_one_vote_if_only_their_spacing_and_comments_differ() -> None:
    form = Code().form
    a = "def f(xs):\n    return sum(xs)\n"
    assert (
        form(a)
        == form("# mine\ndef f( xs ) :\n\n  # sum it\n  return sum(xs) # so\n")
        == "def f ( xs ) :\n    return sum ( xs )"
    )
    nested = "def f(xs):\n    if xs:\n        return 1\n    return 2"
    assert form(nested) != form(nested.replace("    return 2", "        return 2"))
    assert form("x = '#'") == "x = '#'"
    for broken in ("def (", "x = '''", "if x:\ny", "\0", "  x\n y", "("):  # no Python: as it stands
        assert "".join(form(broken).split()) == "".join(broken.split())


# ---------------------------------------------------------------- methods


class Writer(NativeEngine):
    """The native engine, except that it writes solutions with right and wrong programs in turn, and verdicts on steps."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished = ignore_finished
    ) -> list[list[Completion]]:
        groups = []
        for prompt in prompts:
            asked = CHAT.decode(list(prompt))
            texts = [CHAT.encode(reply(asked, j), tags=True)[: sampling.max_tokens - 1] for j in range(sampling.n)]
            tokens = [[*text, CHAT.stop[0]] for text in texts]
            scores = self.logprobs([list(prompt)] * sampling.n, tokens, sampling.temperature)
            groups.append([Completion(t, s, [True] * len(t), "stop") for t, s in zip(tokens, scores, strict=True)])
        return report_all(groups, finished)


CHAT = twofold.load("tiny").chat
PROBLEMS = {p.question: p for p in (Code().problem("train", i) for i in range(8))}
FENCE = "\n```python\n"


def reply(asked: str, j: int) -> str:
    problem = next(p for question, p in PROBLEMS.items() if question in asked)
    program = "def f(xs):\n    return None\n" if j % 2 else problem.answer
    if "step_verification" in asked:
        steps = "<step>\\boxed{CORRECT}</step>" * 2
        return (
            f"<step_verification>{steps}</step_verification><final_verification>\\boxed{{CORRECT}}</final_verification>"
        )
    if asked.endswith(FENCE):
        return f"{program}```"
    return f"<step>Go through it.</step>\n\n<step>Wait, that is it.</step>\n</think>\n<answer>{FENCE}{program}```\n</answer>"


METHODS = {
    "rlv": ["recipe.rollouts=2"],
    "tango": ["recipe.name=tango", "recipe.rollouts=2", "recipe.verifier_warmup=1", "recipe.generator_updates=1"],
    "mrt": ["recipe.name=mrt", "recipe.rollouts=2", "recipe.branches=4"],
    "mrt-online": ["recipe.name=mrt", "recipe.method=online", "recipe.rollouts=2", "recipe.answers=2"],
}


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_each_method_learns_from_programs(method: str, tmp_path: Path) -> None:
    settings = [
        "task.name=code",
        "train.steps=2",
        "rollout.problems=2",
        "rollout.max_tokens=300",
        "optim.lr=1e-4",
        *METHODS[method],
    ]
    if method.startswith("mrt"):
        thoughts = ["recipe.prover.opening=<think>\n", f"recipe.prover.answer={FENCE}", "recipe.episodes.shortest=1"]
        settings += thoughts
    training.train(toml.override(Config(), settings), tmp_path / "run", engine=Writer)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = lines[-1]
    assert len(lines) == 2 and all(line["skipped"] == 0 for line in lines)
    assert (last["labels/correct"], last["labels/wrong"], last["reward"]) == (0.5, 0.5, 0.5)
    assert last["grad_norm"] > 0 and last["mismatch"] < 1e-3
    if method == "tango":
        assert last["tango/judged"] == 1 and last["tango/steps"] == 2
    if method == "mrt":
        assert last["mrt/stop_value"] == 0.5  # forced answers are programs too, in a block that the closing opens


def test_an_evaluation_counts_programs(tmp_path: Path) -> None:
    model = twofold.load("tiny")
    writer = run.Model(model.name, Writer(model.engine.model), model.chat, model.tokenizer)
    out = run.evaluate(
        writer, "code", Eval(problems=2, n=2, max_tokens=300, split="train"), out=tmp_path, plans=["weighted-2"]
    )
    pools = read_pools(out / "pools.jsonl")
    assert [[g.label for g in pool.grades] for pool in pools] == [["correct", "wrong"]] * 2
    assert all(pool.answers[1] == "def f ( xs ) :\n    return None" for pool in pools)
    assert read_header(out).extract == "program"
