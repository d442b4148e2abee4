"""Solve problems with a test-time budget: make candidates, stop when there are enough, choose an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial

from twofold.compute.aggregate import agglm, rsa
from twofold.compute.backtrack import backtracking
from twofold.compute.cost import Cost, Made
from twofold.compute.judge import judge_all
from twofold.compute.mcts import mcts
from twofold.compute.pairs import ranked
from twofold.compute.plan import Independent, Plan
from twofold.compute.prune import DeepConfOnline, deepconf_online, prune
from twofold.compute.rollout import continue_from, draw
from twofold.compute.rules import Seen, rule_named
from twofold.compute.search import beam, dvts, particles, rebase
from twofold.compute.select import Same, classes, select, settled
from twofold.compute.think import correction, forcing
from twofold.engines.base import DeadlinePassed, Engine
from twofold.maths.confidence import trace
from twofold.maths.seeds import derive
from twofold.maths.stopping import Lengths, Number, rounds
from twofold.text.chat import Chat
from twofold.text.notation import canonical
from twofold.types import Candidate, Finish, Sampling

MAKERS: dict[str, Callable[..., list[Made]]] = {
    "prune": prune, "deepconf_online": deepconf_online, "forcing": forcing, "correction": correction,
    "backtracking": backtracking, "beam": beam, "dvts": dvts, "rebase": rebase, "particles": particles, "mcts": mcts,
    "rsa": rsa, "agglm": agglm,
}  # fmt: skip
"""By the name of ``Plan.make``: (engine, chat, questions, n, sampling, config) -> one ``Made`` per question.

DeepConf online takes the plan's ``traces`` as well.
"""


@dataclass(frozen=True, slots=True)
class Solution:
    """The answer to a problem, and how it came about.

    ``answer`` is None if no sample had one. ``confidence`` is the probability that it is right, as the rule sees it (see
    ``select``). ``text`` is the best-scored sample with that answer. ``answers`` (as voting classes) and ``scores`` are the
    candidates', in the order they came; a score is None where the model was not asked. ``length`` is the token cap that was
    reached. ``finish`` is how the text ended or, without an answer, "length" if the token cap cut every candidate.
    """

    answer: str | None
    confidence: float
    votes: dict[str, float]
    text: str
    cost: Cost
    answers: list[str | None]
    scores: list[float | None]
    length: int
    finish: Finish

    @property
    def samples(self) -> int:
        """The number of candidates."""
        return len(self.answers)


@dataclass(slots=True)
class _Work:
    """A problem that is being worked on."""

    question: str
    cost: Cost
    length: int
    classes: Callable[[Sequence[str | None]], list[str | None]]
    group: list[Candidate] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)

    @property
    def cut(self) -> list[int]:
        """Indices of the candidates that the token limit stopped."""
        return [j for j, r in enumerate(self.group) if r.completion.finish == "length"]

    @property
    def unscored(self) -> list[int]:
        """Indices of the candidates that have an answer and no score yet."""
        return [j for j, r in enumerate(self.group) if r.answer is not None and self.scores[j] is None]

    def add(self, group: list[Candidate], scores: list[float] | None) -> None:
        self.group += group
        self.scores += [None] * len(group) if scores is None else scores

    def seen(self, plan: Plan) -> Seen:
        certainty, traces = [], []
        if plan.traced:
            for c in (r.completion for r in self.group):
                assert c.token_certainty is not None and c.token_confidence is not None
                certainty.append(sum(c.token_certainty) / len(c.token_certainty))
                traces.append(trace(c.token_confidence, plan.traces.kind, plan.traces.window))
        return Seen(self.classes([r.answer for r in self.group]), self.scores, certainty, traces)


def solve(
    engine: Engine,
    chat: Chat,
    problems: Sequence[str],
    plan: Plan,
    same: Same | None = None,
    form: Callable[[str], str] = canonical,
) -> list[Solution]:
    """Return one solution per problem text.

    Answers of one normal ``form`` are one class of votes; ``same`` says whether other answers are equal too (default: no).

    All problems advance together: a round is one ``generate`` and at most one judging call for those that have not stopped.
    A problem's ``cost.seconds`` are its shares of the rounds it took part in.

    If the engine raises ``DeadlinePassed``, the answer is made from what there is: of samples without a verdict by majority.
    It is raised again if there are no samples.
    """
    chat = plan.judge.asking(chat)  # makers may ask for verdicts too
    same = same and cache(same)  # a stopping rule looks at the same answers after every round
    sampling = plan.sampling(chat)
    works = [
        _Work(p, Cost(prompt=len(chat.prompt(p))), sampling.max_tokens, partial(classes, same=same, form=form))
        for p in problems
    ]
    try:
        _work(engine, chat, works, plan, sampling)
    except DeadlinePassed:
        if not any(work.group for work in works):
            raise
        if plan.judged and not any(score is not None for work in works for score in work.scores):
            plan = replace(plan, rule="majority")  # there was no time for verdicts
    return [_solution(plan, work) for work in works]


def _work(engine: Engine, chat: Chat, works: list[_Work], plan: Plan, sampling: Sampling) -> None:
    """Make the candidates and judge them."""
    if isinstance(plan.stop, Lengths):
        _lengthen(engine, chat, works, plan, plan.stop)
    elif isinstance(plan.make, Independent):
        _draw(engine, chat, works, plan, plan.stop)
    else:
        began = time.monotonic()
        also = {"traces": plan.traces} if isinstance(plan.make, DeepConfOnline) else {}
        made = MAKERS[plan.make.name](engine, chat, [w.question for w in works], plan.n, sampling, plan.make, **also)
        for work, m in zip(works, made, strict=True):
            work.add(m.candidates, m.scores)
            work.cost = replace(m.cost, seconds=0.0)
        _judge(engine, chat, works, plan, began)


def _draw(engine: Engine, chat: Chat, works: list[_Work], plan: Plan, stop: Number) -> None:
    """Draw independent samples in rounds, until the stopping rule ends it or there are n."""
    drawn = 0
    for i, total in enumerate(rounds(stop, plan.n)):
        began = time.monotonic()
        seed = derive(plan.seed, f"round {i}") if i else plan.seed  # the first round is what an evaluation draws
        sampling = replace(plan.sampling(chat), n=total - drawn, seed=seed)
        for work, group in zip(works, draw(engine, chat, [w.question for w in works], sampling), strict=True):
            work.add(group, None)
            work.cost += Cost(generated=sum(len(r.completion.tokens) for r in group))
        _judge(engine, chat, works, plan, began)
        works = [w for w in works if settled(plan, w.seen(plan)) is None]
        drawn = total
        if not works:
            return


def _lengthen(engine: Engine, chat: Chat, works: list[_Work], plan: Plan, stop: Lengths) -> None:
    """Draw n samples up to the first cap; continue the cut ones to the next while votes are too few. A cut one has no answer."""
    for before, cap in zip((0, *stop.caps), stop.caps, strict=False):
        began = time.monotonic()
        sampling = replace(plan.sampling(chat), max_tokens=cap - before)
        if before == 0:
            for work, group in zip(works, draw(engine, chat, [w.question for w in works], sampling), strict=True):
                work.add(group, None)
        else:
            cut = [(w, j) for w in works for j in w.cut]
            for (w, j), r in zip(cut, continue_from(engine, chat, [w.group[j] for w, j in cut], sampling), strict=True):
                w.group[j] = r
        for work in works:
            tokens = sum(len(r.completion.tokens) for r in work.group)
            work.cost, work.length = replace(work.cost, generated=tokens), cap
            if cap != stop.caps[-1]:
                for j in work.cut:
                    work.group[j] = replace(work.group[j], answer=None)
        _judge(engine, chat, works, plan, began)
        works = [w for w in works if w.cut and _share(plan, w) < stop.threshold]
        if not works:
            return


def _share(plan: Plan, work: _Work) -> float:
    """Return the leader's votes over n if the rule's weights are bounded, else the confidence."""
    answer, confidence, votes = select(plan, work.seen(plan))
    if answer is None:
        return 0.0
    return votes[answer] / plan.n if rule_named(plan.rule).bounded else confidence


def _judge(engine: Engine, chat: Chat, works: Sequence[_Work], plan: Plan, began: float) -> None:
    """Judge every unscored candidate; share the time since ``began`` among the problems."""
    if plan.judged and plan.judge.name == "pairs":
        _compare(engine, chat, works, plan)
    elif plan.judged:
        todo = [(w, j) for w in works for j in w.unscored]
        asked = [w.group[j] for w, j in todo]
        judged = judge_all(engine, chat, asked, plan.judge, plan.seed)
        for (work, j), (score, tokens) in zip(todo, judged, strict=True):
            work.scores[j] = score
            work.cost += Cost(verified=tokens)
    for work in works:
        work.cost += Cost(seconds=(time.monotonic() - began) / len(works))


def _compare(engine: Engine, chat: Chat, works: Sequence[_Work], plan: Plan) -> None:
    """Score every unscored candidate by its standing in a tournament of the problem's candidates."""
    todo = [w.unscored for w in works]
    groups = [[w.group[j] for j in js] for w, js in zip(works, todo, strict=True)]
    kinds = [w.classes([r.answer for r in group]) for w, group in zip(works, groups, strict=True)]
    found = ranked(engine, chat, groups, kinds, plan.tournament, plan.judge.words(chat), plan.seed)
    for work, js, (standings, tokens) in zip(works, todo, found, strict=True):
        for j, mu in zip(js, standings, strict=True):
            work.scores[j] = mu
        work.cost += Cost(verified=tokens)


def _solution(plan: Plan, work: _Work) -> Solution:
    seen = work.seen(plan)
    answer, confidence, votes = select(plan, seen)
    shown = [i for i, a in enumerate(seen.answers) if a is not None and a == answer]
    best = max(shown, key=lambda i: seen.scores[i] or 0.0, default=None)
    text = "" if best is None else work.group[best].text
    cut = len(work.cut) == len(work.group) if best is None else best in work.cut
    finish: Finish = "length" if cut else "stop"
    return Solution(answer, confidence, votes, text, work.cost, seen.answers, work.scores, work.length, finish)
