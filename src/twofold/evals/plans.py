"""Several plans on one task: accuracy against tokens and against time.

Plans that draw independent samples are *replayed* from the saved pool, for every number of samples and in several random
orders, the same for all plans; nothing is sampled again. Plans that make their candidates in another way (search, pruning,
growing lengths) or sample otherwise than the pool are *run* on the same problems, and their answers are kept beside the
pool in ``plans.jsonl``. ``plans.json`` names the plans, so that a report needs no model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twofold import source
from twofold.compute.plan import Independent, Plan, parse
from twofold.compute.rollout import Task
from twofold.compute.rules import RULES, Seen
from twofold.compute.select import Same, classes, select, settled
from twofold.compute.solve import solve
from twofold.engines.base import Engine
from twofold.evals.pools import Header, PoolError, read_lines
from twofold.maths import stats, votes
from twofold.maths.stopping import Lengths, rounds
from twofold.text.chat import Chat
from twofold.types import Pool, Problem

Floats = NDArray[np.float64]
Record = dict[str, Any]

NAMES, RUNS = "plans.json", "plans.jsonl"
ORDERS = 8
"""Random orders of a pool that a plan is replayed in."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What a plan does with each problem's saved samples, when cut at each k of ``ks``; means over the orders."""

    ks: list[int]
    correct_P_K: Floats
    samples_P_K: Floats
    generated_P_K: Floats
    verified_P_K: Floats
    seconds_P_K: Floats


def replayable(plan: Plan, header: Header) -> bool:
    """Whether the pool holds what the plan would draw."""
    drawn = isinstance(plan.make, Independent) and not isinstance(plan.stop, Lengths)
    alike = ("temperature", "top_p", "max_tokens")
    judge = plan.judge
    asked = (judge.name, judge.votes, judge.question, judge.cut if judge.name == "steps" else None)
    was_asked = (header.judge, header.judge_votes, header.judge_question, header.judge_cut)
    same_judge = not plan.judged or asked == was_asked
    return drawn and same_judge and all(getattr(plan, name) == getattr(header, name) for name in alike)


def replay(pools: Sequence[Pool], plan: Plan, orders: int = ORDERS, seed: int = 0) -> Replay:
    """Replay ``plan`` on the pools, at 1, 2, 4 ... ``plan.n`` samples at most (its windows and steps stay whole).

    A judged plan pays for the verdicts on samples that have an answer. ``seconds`` are shares of the pool's, its judging
    included: what the machine was busy, not how long a user waits for rounds that follow one another.

    Raises ValueError for a pool that lacks scores, certainty or samples that the plan reads.
    """
    ks = votes.ks(plan.n)
    rows = [_replay(pool, plan, ks, orders, seed) for pool in pools]
    columns = np.array(rows).transpose(2, 0, 1)
    return Replay(ks, *columns)


def check(pool: Pool, plan: Plan) -> None:
    """Raises ValueError for a pool that lacks scores, certainty or samples that the plan reads."""
    if plan.n > (size := len(pool.answers)):
        raise ValueError(
            f"plan {plan}: the pool of {pool.problem.id!r} has {size} samples: raise --n or lower the plan's"
        )
    if plan.judged and any(s is None and a is not None for s, a in zip(pool.scores, pool.answers, strict=True)):
        raise ValueError(f"plan {plan} needs verdicts, and the pool of {pool.problem.id!r} was not judged")
    if plan.traced and (pool.certainty is None or pool.traces is None):
        raise ValueError(f"plan {plan} needs the samples' certainty: evaluate with --trace_top {plan.traces.top}")


def _replay(pool: Pool, plan: Plan, ks: list[int], orders: int, seed: int) -> list[list[float]]:
    """(correct, samples, generated, verified, seconds) per k, for one pool."""
    check(pool, plan)
    size, forms = len(pool.answers), classes(pool.answers)
    right = {a for a, g in zip(forms, pool.grades, strict=True) if g.label == "correct"}
    assert not isinstance(plan.stop, Lengths)
    totals = np.zeros((len(ks), 5))
    rng = np.random.default_rng(seed)
    for _ in range(orders):
        order = rng.permutation(size)[: plan.n].tolist()
        at = next((t for t in rounds(plan.stop, plan.n) if settled(plan, seen(pool, forms, plan, order[:t]))), plan.n)
        for row, k in zip(totals, ks, strict=True):
            used = order[: min(at, k)]
            answer = select(plan, seen(pool, forms, plan, used))[0]
            read = sum(pool.judge_tokens[i] for i in used if forms[i] is not None) if plan.judged else 0
            row += (
                answer in right,
                len(used),
                sum(pool.tokens[i] for i in used),
                read,
                len(used) * pool.seconds / size,
            )
    return (totals / orders).tolist()


def seen(pool: Pool, forms: Sequence[str | None], plan: Plan, order: Sequence[int]) -> Seen:
    """What the plan reads of these samples of a pool, in this order; ``forms`` are the pool's answers as voting classes."""
    certainty, traces = [], []
    if plan.traced:
        assert pool.certainty is not None and pool.traces is not None
        certainty = [pool.certainty[i] for i in order]
        traces = [pool.traces[plan.traces.kind][i] for i in order]
    return Seen([forms[i] for i in order], [pool.scores[i] for i in order], certainty, traces)


def run(
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
    """Note the plans in ``out`` and run those that cannot be replayed; problems that are done already are not done again."""
    plans = [_pinned(plan) for plan in plans]
    names = json.loads((out / NAMES).read_text()) if (out / NAMES).exists() else []
    (out / NAMES).write_text(json.dumps(list(dict.fromkeys([*names, *map(str, plans)]))) + "\n")
    done = {(row["plan"], row["id"]) for row in read_lines(out / RUNS)}
    todo = [
        (plan, p) for plan in plans if not replayable(plan, header) for p in problems if (str(plan), p.id) not in done
    ]
    with (out / RUNS).open("a") as file:
        for plan in dict.fromkeys(plan for plan, _ in todo):
            mine = [p for other, p in todo if other == plan]
            for i in range(0, len(mine), batch):
                part = mine[i : i + batch]
                for p, s in zip(part, solve(engine, chat, [p.question for p in part], plan, same), strict=True):
                    label = task.grade(p, s.text)[1].label
                    row: Record = {"plan": str(plan), "id": p.id, "answer": s.answer, "confidence": s.confidence}
                    row |= {"label": label, "samples": s.samples, "length": s.length, "cost": asdict(s.cost)}
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                progress(min(i + batch, len(mine)), len(mine))


def _pinned(plan: Plan) -> Plan:
    """Return the plan with the hash of the file that its rule is in, if it is in one."""
    return plan if plan.rule in RULES else replace(plan, rule=source.pin(plan.rule))


def noted(directory: Path) -> list[Plan]:
    """The plans that ``run`` noted in an evaluation's directory."""
    return [parse(name) for name in json.loads((directory / NAMES).read_text())] if (directory / NAMES).exists() else []


def measure(directory: Path, pools: Sequence[Pool], header: Header) -> Record | None:
    """The noted plans' points (at most this many samples: accuracy, tokens, seconds) and the oracle's; None if none were."""
    if not (plans := noted(directory)):
        return None
    ran: dict[str, dict[str, Record]] = {}
    for row in read_lines(directory / RUNS):
        ran.setdefault(row["plan"], {})[row["id"]] = row
    rows: list[Record] = []
    for plan in plans:
        name = str(plan)
        if replayable(plan, header):
            rows.append({"plan": name, "how": "replayed", "points": _points(replay(pools, plan))})
        elif missing := [pool.problem.id for pool in pools if pool.problem.id not in ran.get(name, {})]:
            raise PoolError(
                f"{directory / RUNS}: plan {name} has not been run on {missing[0]!r}: evaluate again to go on"
            )
        else:
            rows.append({"plan": name, "how": "run", "points": _points(_ran(ran[name], pools, plan))})
            if isinstance(plan.stop, Lengths):
                reached = [ran[name][pool.problem.id]["length"] for pool in pools]
                rows[-1]["lengths"] = _lengths(reached, plan.n, plan.stop)
    correct = [[g.label == "correct" for g in pool.grades] for pool in pools]
    tokens = float(np.mean([np.mean(pool.tokens) for pool in pools]))
    oracle = [
        {"k": k, "accuracy": np.mean([votes.pass_at_k(len(c), sum(c), k) for c in correct]), "generated": k * tokens}
        for k in votes.ks(header.n)
    ]
    return {"plans": rows, "oracle": oracle}


def _lengths(reached: Sequence[int], n: int, stop: Lengths) -> Record:
    """Means per problem of the two ways to count growing lengths that the points' exact tokens are not: the cap that was
    ``reached``, as RL^V draws it, and ``cumulated`` tokens, n samples of every cap up to it drawn afresh, at most."""
    return {"reached": np.mean(reached), "cumulated": n * np.mean([stop.cumulated(cap) for cap in reached])}


def _ran(rows: dict[str, Record], pools: Sequence[Pool], plan: Plan) -> Replay:
    mine = [rows[pool.problem.id] for pool in pools]
    values = [
        [row["label"] == "correct", row["samples"], *(row["cost"][key] for key in ("generated", "verified", "seconds"))]
        for row in mine
    ]
    return Replay([plan.n], *np.array(values, dtype=float).T[:, :, None])


def _points(replay: Replay) -> list[Record]:
    accuracy = zip(*stats.cluster_bootstrap(replay.correct_P_K), strict=True)
    costs = ("samples", "generated", "verified", "seconds")
    means = [getattr(replay, f"{name}_P_K").mean(axis=0) for name in costs]
    return [
        {
            "k": k,
            "accuracy": dict(zip(("mean", "low", "high"), point, strict=True)),
            **dict(zip(costs, cost, strict=True)),
        }
        for k, point, cost in zip(replay.ks, accuracy, zip(*means, strict=True), strict=True)
    ]
