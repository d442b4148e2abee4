"""Chat prompts as token ids, through the tokenizer's own template when it has one.

The template's skeleton and the content are encoded separately, so content can never forge a control token: no text of a user,
a data set or a model can end a turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from twofold.text import prompts


@dataclass(frozen=True, slots=True)
class Turn:
    """A user's question and the assistant's reply; ``learn`` is the weight of the reply as a training target."""

    question: str
    reply: str
    learn: float = 1.0


_SLOT = "\ue000{}\ue001"  # private-use characters: no template touches them


class Chat:
    """Turns questions into prompts and completed solutions into judgement prompts, for one tokenizer.

    Without a chat template the layout is plain text: ``Problem:``, ``Solution:``, then the question about it.
    ``question`` is the verdict question: what this model is asked about its solutions, answered by Yes or No. ``before``
    holds (role, content) of earlier messages, with which every prompt begins. They are untrusted, ``system`` is trusted, and
    a system message among them replaces it. Raises ValueError if the tokenizer has no end token.
    """

    def __init__(
        self,
        tokenizer: Any,
        system: str | None = None,
        before: Sequence[tuple[str, str]] = (),
        *,
        question: str = prompts.JUDGE,
    ) -> None:
        self.tokenizer = tokenizer
        self.question = question
        self.system = None if any(role == "system" for role, _ in before) else system
        self.before = tuple(before)
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no eos_token: set the token that ends a turn")
        added = tokenizer.added_tokens_decoder.values()
        self._added = _any_of([t.content for t in added])
        self._special = _any_of([t.content for t in added if t.special])

    @cached_property
    def stop(self) -> tuple[int, ...]:
        """Return the token ids that end a solution: the token that closes a turn in the template, then the tokenizer's eos.

        They differ in base models such as Qwen2.5 (``<|im_end|>``, ``<|endoftext|>``).
        """
        closing = self._skeleton[2][:1]
        ends = [t for t in closing if t in self.tokenizer.added_tokens_decoder]
        return tuple(dict.fromkeys([*ends, self.tokenizer.eos_token_id]))

    @cached_property
    def line_ends(self) -> tuple[int, ...]:
        """Return the ids of the tokens that contain a line break; sampling that stops at them gives one line."""
        ids = sorted(set(range(len(self.tokenizer))) - set(self.tokenizer.added_tokens_decoder))
        return tuple(
            i for i, text in zip(ids, self.tokenizer.batch_decode([[i] for i in ids]), strict=True) if "\n" in text
        )

    def encode(self, content: str, tags: bool = False) -> list[int]:
        """Return the token ids of untrusted text: a control token's literal is cut after its first character.

        With ``tags``, added tokens that are not special (``<think>``) stay whole: a reply may use them.
        """
        control = self._special if tags else self._added
        ids: list[int] = []
        start = 0
        while match := control.search(content, start):
            cut = match.start() + 1
            ids += self._ids(content[start:cut])
            start = cut
        return ids + self._ids(content[start:])

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Return the text of each token."""
        return [self.decode([t]) for t in tokens]

    def prompt(self, question: str) -> list[int]:
        """Return the tokens of everything up to where the solution begins."""
        head, tail = self._skeleton[:2]
        return [*head, *self.encode(question), *tail]

    def follow_up(self, question: str) -> list[int]:
        """Return a second user turn, from the end of the solution's turn up to where the reply begins."""
        tail, reply = self._skeleton[2:]
        return [*tail, *self.encode(question), *reply]

    def ask(self, tokens: Sequence[int], question: str) -> list[int]:
        """Return ``tokens``, a prompt with its solution, followed by another question.

        The turn is closed once: by the template's token, unless the model closed it with any token of ``stop``.
        """
        follow = self.follow_up(question)
        closed = tokens[-1] in self.stop and follow[0] in self.stop
        return [*tokens, *follow[closed:]]

    def conversation(self, turns: Sequence[Turn]) -> tuple[list[int], list[float]]:
        """Return a conversation as (tokens, weight of each as a target); the token that closes a reply has the reply's weight."""
        tokens: list[int] = []
        target: list[float] = []
        for i, turn in enumerate(turns):
            tokens = self.ask(tokens, turn.question) if i else self.prompt(turn.question)
            target += [0.0] * (len(tokens) - len(target))
            tokens = [*tokens, *self.encode(turn.reply, tags=True), self.stop[0]]
            target += [turn.learn] * (len(tokens) - len(target))
        return tokens, target

    @cached_property
    def yes_no_ids(self) -> tuple[int, int]:
        """Return the token ids of (Yes, No). Raises ValueError if they are not single, distinct tokens."""
        yes, no = (self.encode(word, tags=True) for word in ("Yes", "No"))
        if len(yes) != 1 or len(no) != 1 or yes == no:
            raise ValueError(f"Yes and No must be single, distinct tokens; this tokenizer gives {yes} and {no}")
        return yes[0], no[0]

    def within(self, before: Sequence[tuple[str, str]]) -> Chat:
        """Return this chat in the middle of a conversation: its prompts begin with these (role, content) messages.

        Making a prompt then raises ValueError for messages that the template refuses or leaves out.
        """
        return Chat(self.tokenizer, self.system, before, question=self.question) if before else self

    def asking(self, question: str) -> Chat:
        """Return this chat with another verdict question."""
        other = copy(self)
        other.question = question
        return other

    @cached_property
    def _skeleton(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """Return the ids before the question, between question and solution, between solution and second question, after it."""
        q, s, f = (_SLOT.format(x) for x in "qsf")
        places = [_SLOT.format(i) for i in range(len(self.before))]
        turns = [{"role": "system", "content": self.system}] if self.system else []
        turns += [{"role": r, "content": place} for (r, _), place in zip(self.before, places, strict=True)]
        turns.append({"role": "user", "content": q})
        first = self._render(turns)
        second = self._render([*turns, {"role": "assistant", "content": s}, {"role": "user", "content": f}])
        head, tail = _cut(first, q)
        after, reply = _cut(_cut(second, s)[1], f)
        ids: list[int] = []
        for (role, content), place in zip(self.before, places, strict=True):
            piece, head = _cut(head, place)
            ids += [*self._ids(piece), *self.encode(content, tags=role == "assistant")]
        return [*ids, *self._ids(head)], self._ids(tail), self._ids(after), self._ids(reply)

    def _render(self, turns: list[dict[str, str]]) -> str:
        if self.tokenizer.chat_template is None:
            return prompts.plain(turns)
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise ValueError(f"the model's chat template refuses the roles {roles}: {error}") from error

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def _any_of(literals: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern that matches the longest of the literals; without literals it matches nothing."""
    return re.compile("|".join(map(re.escape, sorted(literals, key=len, reverse=True))) or r"(?!)")


def _cut(text: str, place: str) -> tuple[str, str]:
    before, found, after = text.partition(place)
    if not found:
        raise ValueError("the model's chat template leaves out a message of this conversation, or changes their order")
    return before, after
