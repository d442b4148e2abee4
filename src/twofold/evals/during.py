"""A short evaluation while training: a few numbers for the log; its samples are kept for a report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from twofold.durable import writing
from twofold.engines.base import Engine
from twofold.evals import attacks
from twofold.evals.pools import POOLS, read_pools
from twofold.evals.run import Eval, evaluate
from twofold.maths import votes
from twofold.maths.credit import mean
from twofold.maths.stats import verifier_metrics
from twofold.text.chat import Chat
from twofold.types import Pool, Task

VOTES = {"maj": "majority", "weighted": "weighted"}


def evaluate_step(
    engine: Engine, verifier: Engine, chat: Chat, task: Task, settings: Eval, run: Path, step: int, *, model: str
) -> dict[str, float]:
    """Evaluate into ``evals/step-N`` of the run, and return the figures as ``eval/NAME``.

    ``verifier`` is the engine that judges, which may be ``engine``.
    """
    out = run / "evals" / f"step-{step}"
    shutil.rmtree(out, ignore_errors=True)  # a resumed run does this step again
    other = None if verifier is engine else verifier
    by = None if other is None else "verifier"
    with writing(out):
        evaluate(engine, chat, task, settings, out, name=f"step {step}", model=model, verifier=other, verified_by=by)
    found = figures(read_pools(out / POOLS))
    if (accepted := attacks.read(out)) is not None:
        found["attacks_accepted"] = accepted.accepted / accepted.judged
    return {f"eval/{name}": value for name, value in found.items()}


def figures(pools: Sequence[Pool]) -> dict[str, float]:
    """Return the accuracy of one sample and of the votes over all, and, if samples were judged, how well P(Yes) tells right
    from wrong."""
    n = len(pools[0].answers)
    judged = all(p is not None for pool in pools for p in pool.scores)
    correct = [[g.correct for g in pool.grades] for pool in pools]
    scores = [[p or 0.0 for p in pool.scores] if judged else None for pool in pools]
    curves = [votes.curves(p.answers, c, s, [1, n]) for p, c, s in zip(pools, correct, scores, strict=True)]
    found = {"pass@1": mean([c["pass@k"][0] for c in curves])}
    found |= {f"{name}@{n}": mean([c[rule][1] for c in curves]) for name, rule in VOTES.items() if rule in curves[0]}
    if not judged:
        return found
    return found | asdict(verifier_metrics([p or 0.0 for pool in pools for p in pool.scores], list(chain(*correct))))
