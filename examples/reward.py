"""A reward of your own, for any task: a function of the problem and the solution's text.

    twofold train configs/rlv-sums.toml --reward examples/reward.py:brief --out runs/brief
    twofold train configs/rlv-sums.toml --reward '["correct", "examples/reward.py:brief"]' --reward_weights '[1.0, 0.2]'

It returns a number, which is what the policy is paid, or a ``Grade``, which also says whether the solution is right.
Where it returns a number, right and wrong stay the task's word, and that is what the verifier learns.
"""

from __future__ import annotations

from twofold.types import Problem


def brief(problem: Problem, text: str) -> float:
    """Pay 1 for an empty solution, 0 for one of 20 words or more."""
    return max(0.0, 1 - len(text.split()) / 20)
