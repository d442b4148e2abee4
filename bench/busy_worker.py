"""One training of the demo's config for ``busy.py``. Every step draws and learns the same batch, so all of them are alike.

It takes a step for each line "go" on stdin and answers with its seconds; after the line "run" it takes steps until it is ended.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import twofold as tf
from twofold.demo import CONFIG
from twofold.types import Collected, Problem

ANSWERS = sys.stdout


def in_turns(setup: Any) -> tf.Recipe:
    """Return the config's recipe, whose every ``collect`` waits for its turn."""
    recipe = CONFIG.recipe.build(setup)
    collect, first = recipe.collect, setup.problems(0)
    began, free = 0.0, False

    def collect_in_turn(engine: Any, problems: Sequence[Problem], step: int) -> Collected:
        nonlocal began, free
        if not free:
            if step:
                print(json.dumps({"seconds": time.perf_counter() - began}), file=ANSWERS, flush=True)
            free = sys.stdin.readline() != "go\n"
        began = time.perf_counter()
        return collect(engine, first, 0)

    recipe.collect = collect_in_turn
    return recipe


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    sys.stdout = sys.stderr  # the run's own log
    still = replace(CONFIG, optim=replace(CONFIG.optim, lr=0.0), train=replace(CONFIG.train, steps=10**6))
    tf.train(still, asked["out"], recipe=in_turns)
