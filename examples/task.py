"""A task of your own: where problems come from, and who grades them.

    twofold train configs/rlv-sums.toml --task.name python --task.source examples/task.py:Pairs --out runs/pairs
    twofold eval tiny --task examples/task.py:Pairs --problems 20 --n 8

``problem`` must be a pure function of its arguments, so that a run can be resumed and repeated. Leave ``grade`` out where
each problem has one answer: the boxed answer of a solution is then compared with ``Problem.answer``, as for a data set.
Give the class a ``__len__`` if the number of problems is limited: they are then shuffled for every epoch.
"""

from __future__ import annotations

import random
import re

import twofold as tf


class Pairs:
    """Two numbers with a given sum. Each problem has many right answers, so it needs a ``grade`` of its own."""

    name = "pairs"

    def problem(self, split: str, i: int) -> tf.Problem:
        total = random.Random(f"{split}/{i}").randint(10, 99)
        question = f"Name two different numbers that add up to {total}. Write them as \\boxed{{a, b}}."
        return tf.Problem(f"pairs-{split}-{i}", question, "", {"total": total})

    def grade(self, problem: tf.Problem, text: str) -> tuple[str | None, tf.Grade]:
        """Return the answer that was found, and its grade."""
        found = re.search(r"\\boxed\{\s*(\d+)\s*,\s*(\d+)\s*\}", text)
        if found is None:
            return None, tf.Grade(0.0, "no_answer")
        a, b = int(found[1]), int(found[2])
        right = a != b and a + b == problem.meta["total"]
        return f"{a}, {b}", tf.Grade(1.0, "correct") if right else tf.Grade(0.0, "wrong")
