"""A tree of partial solutions, grown step by step: what every search shares.

A search is a generator about one question. It yields the partial solutions to extend, each as often as it wants a step
after it. It is sent the children with their values, and returns its candidates. ``grow_all`` runs the searches of all
questions in parallel: each round is one ``generate`` and one judging call for all of them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Literal, Protocol, TypeVar

from twofold.compute.cost import Cost, Made
from twofold.compute.rollout import candidate, forced, join, split
from twofold.compute.value import VALUES, Value, ValueName
from twofold.engines.base import Engine
from twofold.ranges import Count, checked
from twofold.text.chat import Chat
from twofold.text.extract import last_boxed
from twofold.types import Candidate, Completion, Sampling


@checked
class Steps:
    """Where a step ends.

    ``unit = "line"``: after the first line break. A line of more than ``tokens`` tokens is cut there, and ends its solution.
    ``unit = "tokens"``: after ``tokens`` tokens. The ``depth``-th step of a solution runs to the solution's end.
    """

    unit: Literal["line", "tokens"] = "line"
    tokens: Count = 256
    depth: Count = 40


@dataclass(slots=True, eq=False)
class Node:
    """A partial solution: its parent's text and one more ``step``.

    ``whole`` is everything so far; ``done`` says that it cannot be extended. ``drawn`` counts the step's tokens, including
    those that were cut off. ``read`` counts the tokens spent on its value; it is 0 if an equal node's value was taken.
    """

    whole: Candidate
    parent: Node | None
    step: Completion
    done: bool = False
    drawn: int = 0
    value: float = 0.0
    read: int = 0

    @property
    def tokens(self) -> list[int]:
        return self.whole.completion.tokens

    def path(self) -> list[Node]:
        """Return this node and all nodes above it."""
        return [self] if self.parent is None else [self, *self.parent.path()]


Search = Generator[list[Node], list[Node], list[Node]]
Start = Callable[[Node, random.Random], Search]
"""Begins the search of one question at its root. Its random draws are a function of (seed, question)."""


class Searching(Protocol):
    """The options that every search has."""

    @property
    def steps(self) -> Steps: ...

    @property
    def value(self) -> ValueName: ...


C = TypeVar("C", bound=Searching)


def maker(build: Callable[[int, C], Start]) -> Callable[..., list[Made]]:
    """Turn (n, options) -> search into a maker: (engine, chat, questions, n, sampling, options) -> one ``Made`` per question.

    A candidate's score is the value of the whole solution. The keyword ``value`` replaces ``options.value``.
    """

    @wraps(build)
    def make(
        engine: Engine,
        chat: Chat,
        questions: Sequence[str],
        n: int,
        sampling: Sampling,
        options: C,
        value: Value | None = None,
    ) -> list[Made]:
        search = build(n, options)
        return grow_all(engine, chat, questions, sampling, options.steps, value or VALUES[options.value], search)

    return make


def grow_all(
    engine: Engine,
    chat: Chat,
    questions: Sequence[str],
    sampling: Sampling,
    steps: Steps,
    value: Value,
    search: Start,
) -> list[Made]:
    """Run a search for each question and return what it found; scores are values of whole solutions."""
    began = time.monotonic()
    nothing = forced([])
    roots = [Node(candidate(chat, chat.prompt(q), nothing), None, nothing) for q in questions]
    searches = [search(r, random.Random(f"{sampling.seed}/{q}")) for r, q in zip(roots, questions, strict=True)]
    nodes: list[list[Node]] = [[] for _ in questions]
    found: dict[int, list[Node]] = {}
    wanted = {i: next(s) for i, s in enumerate(searches)}
    while wanted:
        everyone = grow(engine, chat, [leaf for leaves in wanted.values() for leaf in leaves], sampling, steps)
        set_values(engine, chat, everyone, value)
        children = iter(everyone)
        for i, leaves in list(wanted.items()):
            mine = [next(children) for _ in leaves]
            nodes[i] += mine
            try:
                wanted[i] = searches[i].send(mine)
            except StopIteration as end:
                found[i] = end.value
                del wanted[i]
    share = (time.monotonic() - began) / max(1, len(questions))
    return [
        Made([c.whole for c in found[i]], [c.value for c in found[i]], search_cost(root, nodes[i], found[i], share))
        for i, root in enumerate(roots)
    ]


def grow(engine: Engine, chat: Chat, leaves: Sequence[Node], sampling: Sampling, steps: Steps) -> list[Node]:
    """Draw one child of each leaf, in one engine call (two if some leaves are at their last step).

    ``sampling.max_tokens`` limits a whole solution. A solution ends with its turn, or with a complete ``\\boxed{}``.
    """
    room = [sampling.max_tokens - len(leaf.tokens) for leaf in leaves]
    last = [len(leaf.path()) >= steps.depth for leaf in leaves]
    children: dict[int, Node] = {}
    for final in (False, True):
        mine = [i for i in range(len(leaves)) if last[i] == final]
        if not mine:
            continue
        longest = max(room[i] for i in mine)
        limit = longest if final else min(steps.tokens, longest)
        stop = chat.stop if final or steps.unit == "tokens" else (*chat.stop, *chat.line_ends)
        prompts = [[*leaves[i].whole.prompt, *leaves[i].tokens] for i in mine]
        drawn = engine.generate(prompts, replace(sampling, n=1, max_tokens=limit, stop=stop))
        for i, (c,) in zip(mine, drawn, strict=True):
            over = final or (c.finish == "length" and steps.unit == "line") or len(c.tokens) >= room[i]
            step, _ = split(c, room[i])
            children[i] = _child(chat, leaves[i], step, over, len(c.tokens))
    return [children[i] for i in range(len(leaves))]


def _child(chat: Chat, leaf: Node, step: Completion, over: bool, drawn: int) -> Node:
    completion = join(leaf.whole.completion, step)
    whole = candidate(chat, leaf.whole.prompt, completion)
    finished = step.tokens[-1] in chat.stop or last_boxed(whole.text) is not None
    whole = replace(whole, completion=replace(completion, finish="stop" if finished else "length"))
    return Node(whole, leaf, step, over or finished, drawn)


def set_values(engine: Engine, chat: Chat, nodes: Sequence[Node], value: Value) -> None:
    """Set the nodes' values, in one call of ``value``. Nodes of equal tokens are asked about once, and cost once."""
    first: dict[tuple[int, ...], Node] = {}
    twins = [first.setdefault((*n.whole.prompt, *n.tokens), n) for n in nodes]
    for node, (worth, read) in zip(first.values(), value(engine, chat, [n.whole for n in first.values()]), strict=True):
        node.value, node.read = worth, read
    for node, twin in zip(nodes, twins, strict=True):
        node.value = twin.value


def search_cost(root: Node, nodes: Sequence[Node], candidates: Sequence[Node], seconds: float) -> Cost:
    """Return what one question's search cost. A step that several candidates share was drawn once, and counts once."""
    generated = sum(n.drawn for n in nodes)
    kept = {id(a): len(a.step.tokens) for c in candidates for a in c.path()}
    return Cost(
        prompt=len(root.whole.prompt),
        generated=generated,
        verified=sum(n.read for n in nodes),
        discarded=generated - sum(kept.values()),
        seconds=seconds,
    )


def unique(nodes: Iterable[Node]) -> list[Node]:
    """Return the nodes without those whose tokens equal an earlier node's."""
    first: dict[tuple[int, ...], Node] = {}
    for node in nodes:
        first.setdefault(tuple(node.tokens), node)
    return list(first.values())


def best(nodes: Iterable[Node], k: int) -> list[Node]:
    """Return the ``k`` nodes of highest value, best first; of equals, the earlier."""
    return sorted(nodes, key=lambda n: -n.value)[:k]
