"""No option of a plan, of an evaluation or of the command line is inert (see ``test_options.py``, for those of a run)."""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from test_options import leaves, some

import twofold as tf
from twofold import arguments, cli, toml
from twofold.compute.plan import Plan, parse
from twofold.engines.native import NativeEngine
from twofold.evals.run import Eval
from twofold.run import solve_many

QUESTIONS = [
    "Start with 23, 47 or 61. Multiply by 2. Add 5. The result is 99. What was the start?",
    "Start with 7. Add 5. Subtract 3. What is the result?",
]
THINK = r'make=forcing,make.opening="<think>",make.end="</think>",make.answer="\\boxed{",make.times=1,max_tokens=40'

# option, plan, what is changed
ROWS_OF_PLANS = r"""
n                    weighted-4                                    n=6
rule                 weighted-4                                    rule=majority
judge.name           weighted-4                                    judge=normalised
judge.question       weighted-4                                    judge.question=Right?
judge.cut            weighted-2:judge=steps,judge.tokens=24        judge.cut=tags
judge.tokens         weighted-2:judge=written,judge.tokens=24      judge.tokens=2
judge.votes          weighted-2:judge=written,judge.tokens=24      judge.votes=3
make                 weighted-4                                    make=prune
make[prune].chunk    weighted-4:make=prune,make.floor=0.6          make.chunk=4
make[prune].floor    weighted-4:make=prune,make.chunk=4            make.floor=0.9
make[deepconf_online].warmup     deepconf-8:make=deepconf_online,make.warmup=2,make.step=2,make.chunk=4   make.warmup=4
make[deepconf_online].chunk      deepconf-8:make=deepconf_online,make.warmup=4,make.step=4,make.chunk=4   make.chunk=30
make[deepconf_online].step       deepconf-12:make=deepconf_online,make.warmup=4,make.step=1,make.chunk=4,temperature=1.5   make.step=8
make[deepconf_online].consensus  deepconf-8:make=deepconf_online,make.warmup=2,make.step=1,make.chunk=4   make.consensus=0.1
make[forcing].opening        majority-2:THINK                      make.opening=Wait
make[forcing].end            majority-2:THINK                      make.end=
make[forcing].answer         majority-2:THINK                      make.answer=So
make[forcing].waits          majority-2:THINK                      make.waits=["Hm"]
make[forcing].times          majority-2:THINK                      make.times=0
make[forcing].each           majority-2:THINK                      make.each=6
make[forcing].answer_tokens  majority-2:THINK                      make.answer_tokens=1
make[correction].rounds      majority-3:make=correction,make.accept=1          make.rounds=0
make[correction].accept      majority-3:make=correction,make.accept=1          make.accept=0
make[correction].keep        majority-4:make=correction,make.accept=1,make.rounds=2    make.keep=best
make[correction].retry       majority-3:make=correction,make.accept=1          make.retry=Again:{question}
make[beam].width             best-4:make=beam                      make.width=2
make[beam].value             best-4:make=beam                      make.value=VALUE
make[beam].steps.unit        best-4:make=beam,make.steps.tokens=6  make.steps.unit=tokens
make[beam].steps.tokens      best-4:make=beam,make.steps.unit=tokens,make.steps.tokens=12   make.steps.tokens=6
make[beam].steps.depth       best-4:make=beam                      make.steps.depth=1
make[dvts].width             best-4:make=dvts                      make.width=2
make[dvts].value             best-4:make=dvts                      make.value=VALUE
make[dvts].steps.unit        best-4:make=dvts,make.steps.tokens=6  make.steps.unit=tokens
make[dvts].steps.tokens      best-4:make=dvts,make.steps.unit=tokens,make.steps.tokens=12   make.steps.tokens=6
make[dvts].steps.depth       best-4:make=dvts                      make.steps.depth=1
make[rebase].temperature     best-4:make=rebase                    make.temperature=9
make[rebase].value           best-4:make=rebase                    make.value=VALUE
make[rebase].steps.unit      best-4:make=rebase,make.steps.tokens=6  make.steps.unit=tokens
make[rebase].steps.tokens    best-4:make=rebase,make.steps.unit=tokens,make.steps.tokens=12   make.steps.tokens=6
make[rebase].steps.depth     best-4:make=rebase                    make.steps.depth=1
make[particles].temperature  best-6:make=particles,temperature=1.5  make.temperature=0.001
make[particles].value        best-4:make=particles                 make.value=VALUE
make[particles].steps.unit   best-4:make=particles,make.steps.tokens=6  make.steps.unit=tokens
make[particles].steps.tokens  best-4:make=particles,make.steps.unit=tokens,make.steps.tokens=12   make.steps.tokens=6
make[particles].steps.depth  best-4:make=particles                 make.steps.depth=1
make[mcts].children          best-3:make=mcts                      make.children=2
make[mcts].simulations       best-3:make=mcts                      make.simulations=1
make[mcts].c_init            best-3:make=mcts                      make.c_init=0
make[mcts].c_base            best-12:make=mcts,temperature=1.5      make.c_base=1e-9
make[mcts].value             best-3:make=mcts                      make.value=VALUE
make[mcts].steps.unit        best-3:make=mcts,make.steps.tokens=6  make.steps.unit=tokens
make[mcts].steps.tokens      best-3:make=mcts,make.steps.unit=tokens,make.steps.tokens=12   make.steps.tokens=6
make[mcts].steps.depth       best-3:make=mcts                      make.steps.depth=1
make[rsa].k                  majority-4:make=rsa,make.k=2          make.k=1
make[rsa].rounds             majority-4:make=rsa,make.k=2          make.rounds=2
make[rsa].request            majority-4:make=rsa,make.k=2          make.request={problem}
make[agglm].votes            majority-4:make=agglm                 make.votes=3
make[agglm].request          majority-4:make=agglm                 make.request={problem}
stop                 majority-6                                    stop=adaptive,stop.threshold=0.7
stop[adaptive].threshold     majority-6:stop=adaptive,stop.threshold=0.7       stop.threshold=0.99
stop[adaptive].step          majority-6:stop=adaptive,stop.threshold=0.7       stop.step=4
stop[windows].size           majority-6:stop=windows,stop.size=2               stop.size=6
stop[consensus].threshold    weighted-8:stop=consensus,stop.step=4,stop.threshold=0.1,temperature=1.5   stop.threshold=1
stop[consensus].step         weighted-6:stop=consensus,stop.step=1,stop.threshold=0.1   stop.step=4
stop[posterior].threshold    weighted-6:stop=posterior,stop.threshold=0.2      stop.threshold=1
stop[posterior].decay        weighted-6:stop=posterior,stop.threshold=1        stop.decay=1
stop[posterior].growth       weighted-6:stop=posterior,stop.threshold=1,stop.decay=0.5      stop.growth=1
stop[posterior].step         weighted-6:stop=posterior,stop.threshold=0.2      stop.step=4
stop[lengths].caps           majority-3:stop=lengths,stop.caps=[4,40]          stop.caps=[4]
stop[lengths].threshold      majority-3:stop=lengths,stop.caps=[8,40]          stop.threshold=0
temperature          weighted-4                                    temperature=0.5
top_p                weighted-4                                    top_p=0.3
max_tokens           weighted-4                                    max_tokens=5
seed                 weighted-4                                    seed=1
calibration.slope    posterior-4                                   calibration.slope=5
calibration.intercept  posterior-4                                 calibration.intercept=3
calibration.alpha    posterior-4                                   calibration.alpha=9
calibration.beta     posterior-4                                   calibration.beta=9
calibration.spread   posterior-4                                   calibration.spread=9
calibration.overlap  posterior-4                                   calibration.overlap=0
traces.top           deepconf-4:traces.keep=1                      traces.top=2
traces.window        deepconf-4:traces.keep=1,traces.kind=KIND     traces.window=2
traces.kind          deepconf-8:traces.keep=0.5,traces.window=4,temperature=1.5     traces.kind=KIND
traces.keep          deepconf-4:traces.keep=1                      traces.keep=0.1
traces.power         borda-4                                       traces.power=3
tournament.budget    best-4:judge=pairs                            tournament.budget=0.5
tournament.degree    weighted-8:judge=pairs,temperature=1.5        tournament.degree=7
tournament.nearby    weighted-8:judge=pairs,tournament.within=true  tournament.nearby=1
tournament.floor     weighted-8:judge=pairs,temperature=1.5        tournament.floor=0
tournament.both      weighted-4:judge=pairs                        tournament.both=false
tournament.within    weighted-4:judge=pairs                        tournament.within=true
tournament.answers   weighted-6:judge=pairs                        tournament.answers=true
top_k                weighted-4                                    top_k=1
min_p                weighted-4                                    min_p=0.5
"""
ROWS_OF_EVALS = """
problems            problems=1
n                   n=3
temperature         temperature=0.5
top_p               top_p=0.2
top_k               top_k=1
min_p               min_p=0.5
max_tokens          max_tokens=5
split               split=train
judge.name          judge.name=normalised
judge.question      judge.question=Right?
judge.cut           judge.name=steps judge.tokens=16 / judge.cut=tags
judge.tokens        judge.name=written judge.tokens=16 / judge.tokens=2
judge.votes         judge.name=written judge.tokens=16 / judge.votes=2
trace_top           trace_top=5
trace_window        trace_top=5 / trace_window=2
batch               batch=1
seed                seed=1
probe.thoughts      probe.thoughts=1 probe.answers=1
probe.answers       PROBE / probe.answers=2
probe.waits         PROBE / probe.waits=1
probe.each          PROBE probe.waits=1 / probe.each=3
probe.budgets       PROBE / probe.budgets=[3]
probe.prover.opening   PROBE / probe.prover.opening=Wait
probe.prover.hurry     PROBE probe.budgets=[3] / probe.prover.hurry=So
probe.prover.end       PROBE / probe.prover.end=</step>
probe.prover.answer    PROBE / probe.prover.answer=So
probe.prover.tokens    PROBE / probe.prover.tokens=1
probe.episodes.shortest  PROBE / probe.episodes.shortest=9
probe.episodes.most    PROBE / probe.episodes.most=0
probe.episodes.group   PROBE / probe.episodes.group=3
probe.episodes.marks   PROBE / probe.episodes.marks=["never"]
"""
PROBE = ["probe.thoughts=2", "probe.answers=1", "probe.episodes.shortest=1", "probe.prover.opening=<think>\n", "max_tokens=60",
         "probe.prover.hurry=", "probe.prover.answer=\n\\boxed{", "probe.prover.tokens=8", "task.choice=1", "n=1"]  # fmt: skip


def rows(text: str) -> dict[str, str]:
    """Return option -> the rest of its line."""
    pairs = (line.split(None, 1) for line in text.strip().splitlines())
    return {option: rest.strip() for option, rest in pairs}


PLANS, EVALS = rows(ROWS_OF_PLANS), rows(ROWS_OF_EVALS)


@pytest.fixture(scope="module")
def model() -> Any:
    return tf.load("tiny")


# ---------------------------------------------------------------- plans


def test_every_option_of_a_plan_has_a_row() -> None:
    of_backtracking = [
        "make[backtracking].windows"
    ]  # the shipped model begins no second attempt: tests/test_backtrack.py
    assert sorted([*PLANS, *of_backtracking]) == sorted(leaves(Plan))


@pytest.fixture(scope="module")
def solved(model: Any) -> Callable[[Plan], list[Any]]:
    @cache
    def solve(plan: Plan) -> list[Any]:
        found = solve_many(model, QUESTIONS, plan)
        counts = [{k: v for k, v in vars_of(s.cost).items() if k != "seconds"} for s in found]
        return [[s.answer, s.confidence, s.votes, s.text, s.answers, s.scores, s.length] for s in found] + counts

    return solve


def vars_of(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


@pytest.mark.parametrize("option", some(PLANS))
def test_an_option_of_a_plan_changes_what_is_found(option: str, solved: Callable[[Plan], list[Any]]) -> None:
    plan, changed = (
        PLANS[option].replace("THINK", THINK).replace("VALUE", "outlook").replace("KIND", "tail").rsplit(None, 1)
    )
    base = toml.override(Plan(), ["temperature=1", "max_tokens=40"])
    before = parse(plan.strip(), base)
    words = [w if not w.startswith(("stop=", "make=", "judge=")) else w.replace("=", ".name=", 1)
             for w in (changed.split(",") if "[" not in changed else [changed])]  # fmt: skip
    assert solved(before) != solved(toml.override(before, words))


# ---------------------------------------------------------------- evaluations


def test_every_option_of_an_evaluation_has_a_row() -> None:
    assert sorted(EVALS) == sorted(leaves(Eval))


@pytest.fixture(scope="module")
def evaluated(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    root = tmp_path_factory.mktemp("evaluated")

    @cache
    def act(*words: str) -> Any:
        """Return the lines that an evaluation writes, and how many calls of the engine it took."""
        calls = [0]
        generate = NativeEngine.generate

        def counted(self: NativeEngine, *args: Any) -> Any:
            calls[0] += 1
            return generate(self, *args)

        out = root / f"{abs(hash(words))}"
        task = "sums:level=1,choice=" + ("1" if "task.choice=1" in words else "0.75")
        usual = ["problems=2", "n=2", "max_tokens=24", *(w for w in words if w != "task.choice=1")]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(NativeEngine, "generate", counted)
            tf.evaluate(model, task, toml.override(Eval(), usual), out=out)
        found = [json.loads(line) for path in sorted(out.glob("*.jsonl")) for line in path.read_text().splitlines()]
        return [{k: v for k, v in line.items() if k != "seconds"} for line in found], calls[0]

    return act


@pytest.mark.parametrize("option", some(EVALS))
def test_an_option_of_an_evaluation_changes_what_is_written(option: str, evaluated: Callable[..., Any]) -> None:
    """``batch`` changes the number of calls of the engine alone."""
    both, _, changed = EVALS[option].rpartition(" / ")
    words = [w for word in both.split() for w in (PROBE if word == "PROBE" else [word])]
    before, after = evaluated(*words), evaluated(*words, *changed.split())
    assert before[option == "batch"] != after[option == "batch"]


# ---------------------------------------------------------------- the command line


def test_every_argument_of_every_command_is_read() -> None:
    """By the function of its command, or by one that it calls with the arguments."""
    tree = ast.parse(Path(cli.__file__).read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}

    def read(name: str) -> set[str]:
        found = set()
        for node in ast.walk(functions[name]):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "args":
                found.add(node.attr)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                passed = [a.id for a in node.args if isinstance(a, ast.Name)]
                if "args" in passed and node.func.id in functions and node.func.id != name:
                    found |= read(node.func.id)
                if node.func.id == "_given" and "OF_DATA" in passed:
                    found |= set(cli.OF_DATA)
        return found

    parser = arguments.parser(cli.COMMANDS)
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    assert set(commands.choices) == set(cli.COMMANDS)
    for name, sub in commands.choices.items():
        known = {action.dest for action in sub._actions} - {"help"}
        assert known <= read(f"_{name}"), f"twofold {name} does not read {sorted(known - read(f'_{name}'))}"
