"""Value a thought after each of its episodes: stop it there and force an answer (MRT's meta-prover, arXiv:2503.07572)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from twofold.compute.cost import Cost
from twofold.compute.rollout import forced, grade_continuations, join, split, success
from twofold.engines.base import Engine
from twofold.maths.credit import mean
from twofold.ranges import Count, checked
from twofold.text.chat import Chat
from twofold.text.prompts import CONCLUDE, HURRY, THINK_END
from twofold.text.segments import Episodes, episode_ends
from twofold.types import Completion, Group, Rollout, Sampling, Task


@checked
class Prover:
    """The meta-prover mu: how a thought is opened, closed, and made to answer.

    * ``opening``: what a thought begins with, if the chat template does not add it (``<think>``).
    * ``hurry``: forced before ``end`` where a thought is cut; a whole thought is only closed.
    * ``end``: the single token that ends a thought.
    * ``answer``: forced after ``end``, so that an answer follows.
    * ``tokens``: token limit of a forced answer (published: 4096).
    """

    opening: str = ""
    hurry: str = HURRY
    end: str = THINK_END
    answer: str = CONCLUDE
    tokens: Count = 1024


@dataclass(frozen=True, slots=True)
class Probe:
    """The solutions that were forced from a thought stopped after ``end`` of its rollout's tokens.

    A solution's completion is the rollout's own tokens, the closing (not sampled) and the drawn answer. ``cost`` counts the
    new tokens, the closing once for all answers. It is zero if another probe had the same prefix.
    """

    end: int
    answers: Group
    cost: Cost

    @property
    def rewards(self) -> list[float]:
        """Rewards of the answers that could be graded."""
        return [r.grade.reward for r in self.answers if r.grade.reward is not None]

    @property
    def value(self) -> float:
        """J: mean reward of the forced answers; NaN if none could be graded."""
        return mean(self.rewards)

    @property
    def success(self) -> float:
        """The share of right answers, which is J unless rewards are shaped; NaN if none could be graded."""
        return success(self.answers)

    @property
    def error(self) -> float:
        """Standard error of ``value``: sqrt(J (1 - J) / (K - 1)) for rewards of 0 and 1; NaN with fewer than two."""
        n, value = len(self.rewards), self.value
        return math.sqrt(sum((r - value) ** 2 for r in self.rewards) / (n - 1) / n) if n > 1 else math.nan


def thought_length(chat: Chat, completion: Completion, prover: Prover) -> int:
    """Return the number of tokens before the first ``prover.end``; without one, of all but the token that ended the turn.

    Raises ValueError if ``prover.end`` is not a single token.
    """
    end = chat.encode(prover.end, tags=True)
    if len(end) != 1:
        raise ValueError(f"end {prover.end!r} must be a single token; this tokenizer makes {len(end)} of it")
    tokens = completion.tokens
    if end[0] in tokens:
        return tokens.index(end[0])
    return len(tokens) - (completion.finish == "stop")


def boundaries(chat: Chat, rollout: Rollout, prover: Prover, episodes: Episodes) -> list[int]:
    """Return where the thought may be stopped, in tokens of the completion: at 0 and after each episode, the last one included."""
    thought = rollout.completion.tokens[: thought_length(chat, rollout.completion, prover)]
    return [0, *episode_ends(chat.pieces(thought), episodes)]


def closing(chat: Chat, thought: Sequence[int], prover: Prover, cut: bool) -> list[int]:
    """Return the tokens that close a thought, from a new line on: ``hurry`` if it is ``cut``, the end, the answer's beginning."""
    before = chat.decode(thought)
    line = "" if not before or before.endswith("\n") else "\n"
    hurry = f"{prover.hurry}\n" if cut and prover.hurry else ""
    return chat.encode(line + hurry + prover.end + prover.answer, tags=True)


def stopped(chat: Chat, rollout: Rollout, end: int, prover: Prover, cut: bool) -> Rollout:
    """Return the rollout up to ``end`` tokens, followed by the closing; its answer is still to be drawn."""
    thought, _ = split(rollout.completion, end)
    return replace(rollout, completion=join(thought, forced(closing(chat, thought.tokens, prover, cut))))


def probe(
    engine: Engine,
    chat: Chat,
    task: Task,
    rollouts: Sequence[Rollout],
    ends: Sequence[Sequence[int]],
    prover: Prover,
    sampling: Sampling,
) -> list[list[Probe]]:
    """Force ``sampling.n`` answers from every end of every rollout, all in one engine call.

    ``ends[i]`` are token counts of rollout i as ``boundaries`` gives them. The last one is the whole thought, which is closed
    without ``hurry``. An engine that still has the rollouts' caches computes only the closings and the answers. Equal
    prefixes are drawn from once.
    """
    began = time.monotonic()
    begun = [
        stopped(chat, r, end, prover, cut=end < own[-1]) for r, own in zip(rollouts, ends, strict=True) for end in own
    ]
    prompts = [(*r.prompt, *r.completion.tokens) for r in begun]
    first: dict[tuple[int, ...], int] = {}
    for i, p in enumerate(prompts):
        first.setdefault(p, i)
    limit = replace(sampling, max_tokens=prover.tokens, stop=chat.stop)
    drawn = dict(zip(first, engine.generate(list(first), limit), strict=True)) if first else {}
    share = (time.monotonic() - began) / max(1, len(first))
    found = []
    for i, (r, end, p) in enumerate(zip(begun, (end for own in ends for end in own), prompts, strict=True)):
        new = len(r.completion.tokens) - end + sum(len(c.tokens) for c in drawn[p])
        cost = Cost(generated=new, discarded=new, seconds=share) if first[p] == i else Cost()
        found.append(Probe(end, grade_continuations(chat, task, r, drawn[p]), cost))
    probes = iter(found)
    return [[next(probes) for _ in own] for own in ends]
