"""Several plans on one task: accuracy against tokens and against time.

A plan that draws independent samples is *replayed* from the saved pool: for every number of samples, and in several random
orders that are the same for all plans. Nothing is sampled again. A plan that makes its candidates in another way (search,
pruning, growing lengths), or samples with other settings than the pool, is *run* on the same problems; its answers are
kept with the pool in ``plans.jsonl``. ``plans.json`` names the plans, so that a report needs no model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from twofold import durable, source
from twofold.compute.cost import Cost
from twofold.compute.plan import Independent, Plan, parse
from twofold.compute.rules import RULES, Seen
from twofold.compute.select import Same, select, settled
from twofold.compute.solve import solve
from twofold.engines.base import Engine
from twofold.evals.pools import Header, PoolError, read_lines
from twofold.maths import votes
from twofold.maths.stats import Estimate, estimates
from twofold.maths.stopping import Lengths, rounds
from twofold.tasks.user import form_of, inner
from twofold.text.chat import Chat
from twofold.text.notation import canonical
from twofold.types import Label, Pool, Problem, Task

Floats = NDArray[np.float64]

NAMES, RUNS = "plans.json", "plans.jsonl"
ORDERS = 8
"""Random orders of a pool in which a plan is replayed."""


@dataclass(frozen=True, slots=True)
class Replay:
    """A plan's results on each problem's saved samples, stopped at each k of ``ks``; means over the orders."""

    ks: list[int]
    correct_P_K: Floats
    samples_P_K: Floats
    generated_P_K: Floats
    verified_P_K: Floats
    seconds_P_K: Floats


@dataclass(frozen=True, slots=True)
class PlanRun:
    """A plan that was run on one problem: a line of ``plans.jsonl``. ``length`` is the token cap that was reached."""

    plan: str
    id: str
    answer: str | None
    confidence: float
    label: Label
    samples: int
    length: int
    cost: Cost


@dataclass(frozen=True, slots=True)
class PlanPoint:
    """A plan that may draw ``k`` samples at most: accuracy, and what a problem costs on average."""

    k: int
    accuracy: Estimate
    samples: float
    generated: float
    verified: float
    seconds: float


@dataclass(frozen=True, slots=True)
class PlanCurve:
    """The points of a plan: one for each k if it was ``replayed``, one in all if it was ``run``."""

    plan: str
    how: Literal["replayed", "run"]
    points: list[PlanPoint]


@dataclass(frozen=True, slots=True)
class LengthCosts:
    """Two other ways to count the cost of growing lengths, as means per problem; a point has the exact tokens.

    ``reached`` is the last cap, as RL^V draws it. ``cumulated`` is the most tokens that n samples at every cap up to it,
    each drawn afresh, can have.
    """

    reached: float
    cumulated: float


@dataclass(frozen=True, slots=True)
class GrowingPlan(PlanCurve):
    """The curve of a plan whose samples may grow longer from round to round."""

    lengths: LengthCosts


@dataclass(frozen=True, slots=True)
class OraclePoint:
    """pass@k: the share of problems with a right answer among k samples, and the tokens of these samples."""

    k: int
    accuracy: float
    generated: float


@dataclass(frozen=True, slots=True)
class Strategies:
    """The plans that an evaluation saved, and the oracle that none of them can beat."""

    plans: list[PlanCurve]
    oracle: list[OraclePoint]


def replayable(plan: Plan, header: Header) -> bool:
    """Return whether the pool holds what the plan would draw."""
    drawn = isinstance(plan.make, Independent) and not isinstance(plan.stop, Lengths)
    alike = ("temperature", "top_p", "top_k", "min_p", "max_tokens")
    judge = plan.judge
    asked = (judge.name, judge.votes, judge.question, judge.cut if judge.name == "steps" else None)
    was_asked = (header.judge, header.judge_votes, header.judge_question, header.judge_cut)
    same_judge = not plan.judged or asked == was_asked
    return drawn and same_judge and all(getattr(plan, name) == getattr(header, name) for name in alike)


def replay(pools: Sequence[Pool], plan: Plan, orders: int = ORDERS, seed: int = 0) -> Replay:
    """Replay ``plan`` on the pools, at 1, 2, 4 ... ``plan.n`` samples at most (its windows and steps stay whole).

    A judged plan pays for the verdicts on samples that have an answer. ``seconds`` are shares of the pool's seconds, its
    judging included: the time the machine was busy. A user waits longer for rounds that follow one another.

    Raises ValueError for a pool that lacks scores, certainty or samples that the plan reads.
    """
    ks = votes.ks(plan.n)
    rows = [_replay(pool, plan, ks, orders, seed) for pool in pools]
    columns = np.array(rows).transpose(2, 0, 1)
    return Replay(ks, *columns)


def check_pool(pool: Pool, plan: Plan) -> None:
    """Raise ValueError if the pool lacks scores, certainty or samples that the plan reads."""
    if plan.n > (size := len(pool.answers)):
        raise ValueError(
            f"plan {plan}: the pool of {pool.problem.id!r} has {size} samples: raise --n or lower the plan's"
        )
    if plan.judged and any(s is None and a is not None for s, a in zip(pool.scores, pool.answers, strict=True)):
        raise ValueError(f"plan {plan} needs verdicts, and the pool of {pool.problem.id!r} was not judged")
    if plan.traced and (pool.certainty is None or pool.traces is None):
        raise ValueError(f"plan {plan} needs the samples' certainty: evaluate with --trace_top {plan.traces.top}")


def _replay(pool: Pool, plan: Plan, ks: list[int], orders: int, seed: int) -> list[list[float]]:
    """Return (correct, samples, generated, verified, seconds) per k, for one pool."""
    check_pool(pool, plan)
    size = len(pool.answers)
    right = {a for a, g in zip(pool.answers, pool.grades, strict=True) if g.label == "correct"}
    assert not isinstance(plan.stop, Lengths)
    totals = np.zeros((len(ks), 5))
    rng = np.random.default_rng(seed)
    for _ in range(orders):
        order = rng.permutation(size)[: plan.n].tolist()
        at = next((t for t in rounds(plan.stop, plan.n) if settled(plan, seen(pool, plan, order[:t]))), plan.n)
        for row, k in zip(totals, ks, strict=True):
            used = order[: min(at, k)]
            answer = select(plan, seen(pool, plan, used))[0]
            read = sum(pool.judge_tokens[i] for i in used if pool.answers[i] is not None) if plan.judged else 0
            row += (
                answer in right,
                len(used),
                sum(pool.tokens[i] for i in used),
                read,
                len(used) * pool.seconds / size,
            )
    return (totals / orders).tolist()


def seen(pool: Pool, plan: Plan, order: Sequence[int]) -> Seen:
    """Return what the plan reads of these samples of a pool, in this order."""
    certainty, traces = [], []
    if plan.traced:
        assert pool.certainty is not None and pool.traces is not None
        certainty = [pool.certainty[i] for i in order]
        traces = [pool.traces[plan.traces.kind][i] for i in order]
    return Seen([pool.answers[i] for i in order], [pool.scores[i] for i in order], certainty, traces)


def run_plans(
    engine: Engine,
    chat: Chat,
    task: Task,
    problems: Sequence[Problem],
    plans: Sequence[Plan],
    out: Path,
    header: Header,
    *,
    batch: int = 8,
    same: Same | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Note the plans in ``out`` and run those that cannot be replayed. Problems that are done are not done again.

    ``same`` decides which answers are equal, where the task compares them as mathematics. Raises ValueError for a data set
    whose answers may stand elsewhere than in a box, because these plans read boxed answers only.
    """
    form = form_of(task)
    plans = [_pinned(plan) for plan in plans]
    names = json.loads((out / NAMES).read_text()) if (out / NAMES).exists() else []
    done = {(row["plan"], row["id"]) for row in durable.read_lines(out / RUNS)}
    todo = [
        (plan, p) for plan in plans if not replayable(plan, header) for p in problems if (str(plan), p.id) not in done
    ]
    if todo and getattr(inner(task), "extract", "boxed") != "boxed":
        raise ValueError(
            f"plan {todo[0][0]} draws its own samples, and reads boxed answers only: leave out the plan or extract"
        )
    durable.write_text(out / NAMES, json.dumps(list(dict.fromkeys([*names, *map(str, plans)]))) + "\n")
    with durable.Lines(out / RUNS) as file:
        for plan in dict.fromkeys(plan for plan, _ in todo):
            mine = [p for other, p in todo if other == plan]
            for i in range(0, len(mine), batch):
                part = mine[i : i + batch]
                solved = solve(
                    engine, chat, [p.question for p in part], plan, None if form else same, form or canonical
                )
                for p, s in zip(part, solved, strict=True):
                    label = task.grade(p, s.text)[1].label
                    row = PlanRun(str(plan), p.id, s.answer, s.confidence, label, s.samples, s.length, s.cost)
                    file.write(json.dumps(asdict(row)))
                progress(min(i + batch, len(mine)), len(mine))


def _pinned(plan: Plan) -> Plan:
    """Return the plan with the hash of the file that its rule is in, if it is in one."""
    return plan if plan.rule in RULES else replace(plan, rule=source.pin(plan.rule))


def noted(directory: Path) -> list[Plan]:
    """Return the plans that ``run_plans`` noted in an evaluation's directory."""
    return [parse(name) for name in json.loads((directory / NAMES).read_text())] if (directory / NAMES).exists() else []


def strategies(directory: Path, pools: Sequence[Pool], header: Header) -> Strategies | None:
    """Return the curves of the plans noted in ``directory``, and the oracle's; None if no plan was noted.

    Raises PoolError if a plan has not been run on one of the problems.
    """
    if not (plans := noted(directory)):
        return None
    ran: dict[str, dict[str, PlanRun]] = {}
    for line in read_lines(directory / RUNS):
        row = PlanRun(**line | {"cost": Cost(**line["cost"])})
        ran.setdefault(row.plan, {})[row.id] = row
    curves: list[PlanCurve] = []
    for plan in plans:
        name = str(plan)
        if replayable(plan, header):
            curves.append(PlanCurve(name, "replayed", _points(replay(pools, plan))))
            continue
        if missing := [pool.problem.id for pool in pools if pool.problem.id not in ran.get(name, {})]:
            raise PoolError(
                f"{directory / RUNS}: plan {name} has not been run on {missing[0]!r}: run the evaluation again to continue"
            )
        rows = [ran[name][pool.problem.id] for pool in pools]
        points = _points(_as_replay(rows, plan.n))
        if isinstance(plan.stop, Lengths):
            curves.append(GrowingPlan(name, "run", points, _length_costs(rows, plan.n, plan.stop)))
        else:
            curves.append(PlanCurve(name, "run", points))
    correct = [[g.label == "correct" for g in pool.grades] for pool in pools]
    tokens = float(np.mean([np.mean(pool.tokens) for pool in pools]))
    oracle = [
        OraclePoint(k, float(np.mean([votes.pass_at_k(len(c), sum(c), k) for c in correct])), k * tokens)
        for k in votes.ks(header.n)
    ]
    return Strategies(curves, oracle)


def _length_costs(rows: Sequence[PlanRun], n: int, stop: Lengths) -> LengthCosts:
    cumulated = n * np.mean([stop.cumulated(row.length) for row in rows])
    return LengthCosts(float(np.mean([row.length for row in rows])), float(cumulated))


def _as_replay(rows: Sequence[PlanRun], n: int) -> Replay:
    values = [
        [row.label == "correct", row.samples, row.cost.generated, row.cost.verified, row.cost.seconds] for row in rows
    ]
    return Replay([n], *np.array(values, dtype=float).T[:, :, None])


def _points(replay: Replay) -> list[PlanPoint]:
    costs_P_K = (replay.samples_P_K, replay.generated_P_K, replay.verified_P_K, replay.seconds_P_K)
    costs = zip(*(values_P_K.mean(axis=0).tolist() for values_P_K in costs_P_K), strict=True)
    columns = zip(replay.ks, estimates(replay.correct_P_K), costs, strict=True)
    return [PlanPoint(k, accuracy, *cost) for k, accuracy, cost in columns]
