"""Draw rollouts, continue them, and grade them by a task or not at all; and join and split completions."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Literal, TypeVar

from twofold.engines.base import Engine
from twofold.maths.credit import mean
from twofold.text.chat import Chat
from twofold.text.extract import final_answer
from twofold.types import Candidate, Completion, Finish, Group, Problem, Rollout, Sampling, Task

CandidateT = TypeVar("CandidateT", bound=Candidate)
Ungraded = tuple[Problem, list[int], Completion]
"""(problem, prompt, completion): a solution before it is graded, or the beginning of one."""


def rollouts(
    engine: Engine, chat: Chat, task: Task, problems: Sequence[Problem], sampling: Sampling, opening: str = ""
) -> list[Group]:
    """Draw ``sampling.n`` graded rollouts of every problem; ``opening`` is put at the end of their prompts."""
    begin = chat.encode(opening, tags=True)
    starts = [(p, [*chat.prompt(p.question), *begin], forced([])) for p in problems]
    return _sample_graded(engine, chat, task, starts, sampling)


def continue_graded(
    engine: Engine, chat: Chat, task: Task, drawn: Sequence[Rollout], ends: Sequence[Sequence[int]], sampling: Sampling
) -> list[list[Group]]:
    """Draw ``sampling.n`` continuations from each end of each rollout, graded as whole solutions, in one engine call.

    ``ends[i]`` are token counts of rollout i's completion. The result has one group per end. The ``value`` of such a group
    is VinePPO's estimate of the value of that prefix (arXiv:2410.01679).
    """
    starts = [
        (r.problem, r.prompt, split(r.completion, end)[0]) for r, own in zip(drawn, ends, strict=True) for end in own
    ]
    groups = iter(_sample_graded(engine, chat, task, starts, sampling))
    return [[next(groups) for _ in own] for own in ends]


def _sample_graded(
    engine: Engine, chat: Chat, task: Task, starts: Sequence[Ungraded], sampling: Sampling
) -> list[Group]:
    """Draw ``sampling.n`` completions of every start. Each is graded as soon as it ends, while others are still sampled."""
    grades: dict[tuple[int, int], Future[Rollout]] = {}
    with ThreadPoolExecutor() as threads:

        def finished(i: int, j: int, more: Completion) -> None:
            problem, prompt, begun = starts[i]
            grades[i, j] = threads.submit(_graded, chat, task, (problem, prompt, join(begun, more)))

        if starts:
            engine.generate([[*prompt, *begun.tokens] for _, prompt, begun in starts], sampling, finished)
        return [[grades[i, j].result() for j in range(sampling.n)] for i in range(len(starts))]


def grade_continuations(chat: Chat, task: Task, rollout: Rollout, more: Sequence[Completion]) -> Group:
    """Join each of ``more`` to the rollout, and grade the whole solutions."""
    return graded(chat, task, [(rollout.problem, rollout.prompt, join(rollout.completion, c)) for c in more])


def graded(chat: Chat, task: Task, solutions: Sequence[Ungraded]) -> list[Rollout]:
    """Grade solutions, in parallel: an answer that needs mathematics waits for a process of the grader's."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(partial(_graded, chat, task), solutions))


def _graded(chat: Chat, task: Task, solution: Ungraded) -> Rollout:
    problem, prompt, completion = solution
    text = chat.decode(completion.tokens)
    answer, grade = task.grade(problem, text)
    return Rollout(prompt, completion, text, answer, problem, grade)


def draw(engine: Engine, chat: Chat, questions: Sequence[str], sampling: Sampling) -> list[list[Candidate]]:
    """Draw ``sampling.n`` ungraded solutions of every question."""
    prompts = [chat.prompt(q) for q in questions]
    drawn = zip(prompts, engine.generate(prompts, sampling), strict=True)
    return [[candidate(chat, prompt, c) for c in completions] for prompt, completions in drawn]


def candidate(chat: Chat, prompt: list[int], completion: Completion) -> Candidate:
    """Return the candidate of a completion: with its text, and the answer that the text commits to."""
    text = chat.decode(completion.tokens)
    return Candidate(prompt, completion, text, final_answer(text))


def as_read(chat: Chat, solution: CandidateT) -> CandidateT:
    """Return a solution as whoever judges it reads it: the very text that is graded.

    A model may sample control tokens, of which the text has nothing, and which could begin or end a turn. A solution without
    any inside it comes back as it is, so that its cache serves the judgement. (See ``Chat.readable``.)
    """
    tokens = chat.readable(solution.completion.tokens)
    return solution if tokens == solution.completion.tokens else replace(solution, completion=forced(tokens))


def continue_from(engine: Engine, chat: Chat, candidates: Sequence[Candidate], sampling: Sampling) -> list[Candidate]:
    """Continue each candidate by up to ``sampling.max_tokens`` tokens, in one engine call.

    An engine that kept a candidate's cache computes the new tokens only. What comes back is ungraded.
    """
    prompts = [[*c.prompt, *c.completion.tokens] for c in candidates]
    more = engine.generate(prompts, replace(sampling, n=1)) if prompts else []
    return [candidate(chat, c.prompt, join(c.completion, m)) for c, (m,) in zip(candidates, more, strict=True)]


def value(group: Group) -> float:
    """Return the mean reward of the rollouts that could be graded; NaN if none could."""
    return mean([r.grade.reward for r in group if r.grade.reward is not None])


def success(group: Group) -> float:
    """Return the share of correct rollouts among those that the grader could decide; NaN if it could decide none."""
    return mean([float(r.grade.correct) for r in group if r.grade.decided])


def forced(tokens: list[int]) -> Completion:
    """Return a completion of tokens that were not drawn from the policy: log-prob 0, ``sampled`` False."""
    return Completion(tokens, [0.0] * len(tokens), [False] * len(tokens), "length")


def join(*parts: Completion) -> Completion:
    """Return one completion of several, in order; it finishes as the last one does.

    Per-token confidences are kept if any part has them; tokens of a part without them, such as forced ones, count 0 there.
    """

    def per_token(name: Literal["token_confidence", "token_certainty"]) -> list[float] | None:
        lists: list[list[float] | None] = [getattr(p, name) for p in parts]
        if all(x is None for x in lists):
            return None
        return [v for p, x in zip(parts, lists, strict=True) for v in (x or [0.0] * len(p.tokens))]

    return Completion(
        [t for p in parts for t in p.tokens],
        [x for p in parts for x in p.logprobs],
        [s for p in parts for s in p.sampled],
        parts[-1].finish,
        per_token("token_confidence"),
        per_token("token_certainty"),
    )


def split(completion: Completion, size: int) -> tuple[Completion, Completion]:
    """Return the first ``size`` tokens, as cut by length, and the rest. A completion that is no longer stays as it is."""
    if size >= len(completion.tokens):
        return completion, forced([])

    def part(of: slice, finish: Finish) -> Completion:
        c = completion
        confidence, certainty = (None if x is None else x[of] for x in (c.token_confidence, c.token_certainty))
        return Completion(c.tokens[of], c.logprobs[of], c.sampled[of], finish, confidence, certainty)

    return part(slice(size), "length"), part(slice(size, None), completion.finish)
