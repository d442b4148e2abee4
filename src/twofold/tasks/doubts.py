r"""Grades that say little: those that are errors, and solutions without an answer. Both must be said, or end a training."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from twofold.tasks.grading import unreadable
from twofold.terminal import visible
from twofold.text.extract import final_answer
from twofold.types import Group, Pool, Problem, Rollout

log = logging.getLogger(__name__)

SHOWN = 10
"""The most references that a warning names."""

ERRORS = 0.05
"""Share of grades that may be errors."""
UNANSWERED = 0.5
"""Share of solutions that may have no answer."""
SPARED = 4
"""Groups of rollouts beyond that share that may be errors: steps that meet an unreadable reference are no reason to stop."""

MEND = (
    "An answer stands in \\boxed{} or on a #### line. If the questions of a data set ask for another form, set extract = "
    '"stated" ("Answer: 5", <answer>5</answer>) or "number" (the last number) in [task], or --extract for an evaluation'
)

MEND_PROGRAM = (
    "A program stands between a line ```python and a line ```. Raise max_tokens if solutions are cut before its end"
)


def _mend(problem: Problem) -> str:
    return MEND_PROGRAM if isinstance(problem.meta.get("tests"), list) else MEND


def doubts(pools: Sequence[Pool]) -> list[str]:
    """Return what must be said of an evaluation's grades before any other number, as sentences."""
    graded = [(grade.label, pool.problem) for pool in pools for grade in pool.grades]
    labels = Counter(label for label, _ in graded)
    found = []
    if labels["error"] > ERRORS * len(graded):
        bad = next(problem for label, problem in graded if label == "error")
        found.append(
            f"{labels['error'] / len(graded):.0%} OF THE GRADES ARE ERRORS, not verdicts: references cannot be read, or the "
            f"grader failed, first on problem {bad.id!r} with the reference {bad.answer[:100]!r}"
        )
    if labels["no_answer"] > UNANSWERED * len(graded):
        found.append(f"{labels['no_answer'] / len(graded):.0%} OF THE SOLUTIONS GIVE NO ANSWER. {_mend(graded[0][1])}")
    return found


def warn_of_references(references: Mapping[str, str]) -> None:
    """Log a warning that names the references, by their places in files, that the grader cannot read.

    Nothing but the same text is correct for them, and any other answer is an ``error``.
    """
    unread = unreadable(set(references.values()))
    bad = [f"{place}: {visible(answer[:100])}" for place, answer in references.items() if answer in unread]
    if bad:
        more = f"\n  ... and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        log.warning(
            "%d of %d references cannot be read, so that answers to them will be errors:\n  %s%s",
            len(bad), len(references), "\n  ".join(bad[:SHOWN]), more,
        )  # fmt: skip


class Watch:
    """Looks at the rollouts of each step of a training. ``say`` tells the user."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self.say = say
        self.grades = self.errors = 0
        self.excess = 0.0

    def __call__(self, groups: Sequence[Group]) -> None:
        """Say if most solutions of the first step have no answer. Raises ValueError if too many grades are errors.

        Too many are all of the first step, or ``SPARED`` groups more than the share ``ERRORS`` of the grades since some step:
        a cumulative-sum (CUSUM) test, which an error now and then does not trip and a reward that fails later on does.
        """
        rollouts = [r for group in groups for r in group]
        if not rollouts:
            return
        labels = Counter(r.grade.label for r in rollouts)
        if not self.grades and labels["no_answer"] > UNANSWERED * len(rollouts):
            self.say(_unanswered(rollouts))
        self.grades += len(rollouts)
        self.errors += labels["error"]
        self.excess = max(0.0, self.excess + labels["error"] - ERRORS * len(rollouts))
        if self.excess > SPARED * max(map(len, groups)) or self.errors == self.grades:
            bad = next(r for r in rollouts if r.grade.label == "error")
            raise ValueError(
                f"{labels['error']} of the {len(rollouts)} grades of this step are errors, of which nothing can be learnt, and "
                f"{self.errors} of {self.grades} so far. One is of problem {bad.problem.id!r} with the reference "
                f"{bad.problem.answer[:100]!r}, for the answer {(bad.answer or '')[:100]!r}. Repair or leave out the rows whose "
                "reference cannot be read, or repair the reward that fails"
            )


def _unanswered(rollouts: Sequence[Rollout]) -> str:
    silent = [r for r in rollouts if r.grade.label == "no_answer"]
    stated = sum(final_answer(r.text, "stated") is not None for r in silent)
    return (
        f"{len(silent)} of the {len(rollouts)} solutions of this step give no answer, and earn nothing"
        + (f"; {stated} of them state one in another form" if stated else "")
        + f". {_mend(silent[0].problem)}."
    )
