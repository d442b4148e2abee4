"""Solve one problem with a test-time budget: sample, judge, vote."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from twofold.compute.judge import judge_cost, p_yes
from twofold.engines.base import Engine
from twofold.maths.votes import Rule, choose, tally
from twofold.text.chat import Chat
from twofold.text.extract import canonical, final_answer
from twofold.types import Grade, Problem, Rollout, Sampling


@dataclass(frozen=True, slots=True)
class Plan:
    """How to spend compute on a problem."""

    n: int = 16
    rule: Rule = "weighted"
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Solution:
    """``answer`` (None if no sample had one), its share of the votes, all votes, and what it cost."""

    answer: str | None
    confidence: float
    votes: dict[str, float]
    text: str
    generated_tokens: int
    judge_tokens: int
    seconds: float


def solve(engine: Engine, chat: Chat, problems: Sequence[str], plan: Plan) -> list[Solution]:
    """One solution per problem text, from one generate and (unless the rule is ``majority``) one judging call."""
    began = time.monotonic()
    sampling = Sampling(plan.n, plan.temperature, plan.top_p, plan.max_tokens, chat.stop, plan.seed)
    prompts = [chat.prompt(p) for p in problems]
    groups = []
    for text, prompt, completions in zip(problems, prompts, engine.generate(prompts, sampling), strict=True):
        problem, group = Problem("", text, ""), []
        for c in completions:
            solution = chat.decode(c.tokens)
            group.append(Rollout(problem, prompt, c, solution, final_answer(solution), Grade(None, "no_answer")))
        groups.append(group)
    everyone = [r for g in groups for r in g]
    judged = plan.rule != "majority"
    scores = p_yes(engine, chat, everyone) if judged else [1.0] * len(everyone)
    read = [judge_cost(chat, r) if judged else 0 for r in everyone]
    seconds = time.monotonic() - began
    solutions = []
    for i, group in enumerate(groups):
        mine = slice(i * plan.n, (i + 1) * plan.n)
        answers = [None if r.answer is None else canonical(r.answer) for r in group]
        answer = choose(answers, scores[mine], plan.rule, plan.seed)
        votes = tally(answers, None if plan.rule == "majority" else scores[mine])
        total = sum(votes.values())
        shown = [(s, r.text) for s, r, a in zip(scores[mine], group, answers, strict=True) if a == answer]
        solutions.append(
            Solution(
                answer=answer,
                confidence=votes[answer] / total if answer is not None and total else 0.0,
                votes=dict(sorted(votes.items(), key=lambda v: -v[1])),
                text=max(shown)[1] if shown else "",
                generated_tokens=sum(len(r.completion.tokens) for r in group),
                judge_tokens=sum(read[mine]),
                seconds=seconds / len(groups),
            )
        )
    return solutions
