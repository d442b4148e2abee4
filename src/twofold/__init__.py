"""twofold: one language model that solves problems and judges its own solutions.

import twofold as tf
model = tf.load("tiny")
tf.solve(model, "Start with 12. Add 30. What is the result?", tf.Plan(n=16))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twofold.compute.plan import Plan as Plan
    from twofold.compute.rules import Rule as Rule
    from twofold.compute.rules import Seen as Seen
    from twofold.config import Config as Config
    from twofold.evals.report import report as report
    from twofold.evals.run import Eval as Eval
    from twofold.maths.votes import choose as choose
    from twofold.recipes.common import Recipe as Recipe
    from twofold.run import connect as connect
    from twofold.run import evaluate as evaluate
    from twofold.run import load as load
    from twofold.run import solve as solve
    from twofold.tasks.grading import grade as grade
    from twofold.training import train as train
    from twofold.types import Grade as Grade
    from twofold.types import Problem as Problem
    from twofold.types import Stopped as Stopped

__version__ = "0.1.0"

_HOMES = {
    "Plan": "compute.plan", "Rule": "compute.rules", "Seen": "compute.rules", "report": "evals.report",
    "Eval": "evals.run", "choose": "maths.votes", "Config": "config",
    "connect": "run", "evaluate": "run", "load": "run", "solve": "run", "train": "training",
    "Recipe": "recipes.common", "grade": "tasks.grading", "Grade": "types", "Problem": "types", "Stopped": "types",
}  # fmt: skip
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that ``import twofold`` is fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'twofold' has no attribute {name!r}")
    return getattr(import_module(f"twofold.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
