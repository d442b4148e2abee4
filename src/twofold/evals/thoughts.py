"""What thinking is worth at every budget: thoughts drawn once, then stopped by force at many places (MRT, arXiv:2503.07572)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from twofold.compute.probe import Prover, boundaries, probe
from twofold.compute.rollout import Task, rollouts
from twofold.engines.base import Engine
from twofold.maths.regret import Points
from twofold.text.chat import Chat
from twofold.text.episodes import Episodes
from twofold.types import Problem, Sampling


@dataclass(frozen=True, slots=True)
class Thought:
    """One thought about one problem, and J wherever it was stopped.

    ``ends``: tokens of the thought where it was stopped, rising; the last is the whole thought. ``values[i]`` is J at
    ``ends[i]``, the mean reward of the answers forced there. ``episodes`` are those of the ends that are behind an episode
    (0 first). ``closing``: mean tokens of the closing with its answer. ``reward`` and ``tokens`` are those of the rollout as
    the model wrote it, its own answer included.
    """

    problem: str
    ends: list[int]
    values: list[float]
    episodes: list[int]
    closing: float
    reward: float | None
    tokens: int

    def value(self, budget: int) -> float:
        """J if the thought may have ``budget`` tokens, one of those it was measured at: a shorter one ended by itself."""
        return self.values[self.ends.index(min(budget, self.ends[-1]))]

    def spent(self, budget: int) -> float:
        """Tokens of the thought within ``budget``, its closing and its answer."""
        return min(budget, self.ends[-1]) + self.closing

    @property
    def progress_values(self) -> list[float]:
        """J_0 .. J_k, behind 0 .. k episodes."""
        return [self.value(end) for end in self.episodes]

    @property
    def points(self) -> Points:
        """(tokens spent, J) behind each episode, what ``normalised_regret`` takes."""
        return [(end + self.closing, self.value(end)) for end in self.episodes]


def measure(
    engine: Engine,
    chat: Chat,
    task: Task,
    problems: Sequence[Problem],
    sampling: Sampling,
    prover: Prover,
    episodes: Episodes,
    budgets: Sequence[int],
    answers: int,
) -> list[Thought]:
    """``sampling.n`` thoughts about every problem, each stopped at every budget and behind every episode.

    ``budgets`` are in tokens of the thought; the largest limits how long it may be. ``answers`` are forced at each end.
    Two engine calls: the thoughts, and all that is forced from their caches.
    """
    limit = replace(sampling, max_tokens=max(budgets), stop=chat.stop)
    drawn = [r for group in rollouts(engine, chat, task, problems, limit, prover.opening) for r in group]
    marks = [boundaries(chat, r, prover, episodes) for r in drawn]
    ends = [sorted({*m, *(b for b in budgets if b < m[-1])}) for m in marks]
    # a seed of its own: an answer must not be the thought's own continuation once more
    probes = probe(engine, chat, task, drawn, ends, prover, replace(limit, n=answers, seed=sampling.seed + 1))
    thoughts = []
    for rollout, mark, row in zip(drawn, marks, probes, strict=True):
        closings = [len(a.completion.tokens) - p.end for p in row for a in p.answers]
        thoughts.append(
            Thought(
                problem=rollout.problem.id,
                ends=[p.end for p in row],
                values=[p.value for p in row],
                episodes=list(dict.fromkeys(mark)),  # an empty thought has one end
                closing=sum(closings) / len(closings),
                reward=rollout.grade.reward,
                tokens=len(rollout.completion.tokens),
            )
        )
    return thoughts
