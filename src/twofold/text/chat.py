"""Chat prompts as token ids, through the tokenizer's own template when it has one.

A prompt has the tokens of the template's own rendering. Only the template makes control tokens: no text of a user, a data set
or a model can end a turn (see ``codec.Codec.encode``).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from twofold.ranges import checked
from twofold.text import prompts
from twofold.text.codec import Codec, Part
from twofold.text.template import Skeleton, Thoughts, skeleton, text_of
from twofold.types import LastToken


@dataclass(frozen=True, slots=True)
class Turn:
    """A user's question and the assistant's reply; ``learn`` is the weight of the reply as a training target."""

    question: str
    reply: str
    learn: float = 1.0


@checked
class ChatOptions:
    """How prompts are written for a model that thinks. Checkpoints save it, so that a loaded model has the same prompts."""

    enable_thinking: bool | None = None
    """Given to the chat template. None: the template's default."""
    think_end: str | None = None
    """What ends a thought. None: ``</think>``, if the chat template mentions it."""
    opening: str | None = None
    r"""What every solution begins with, such as ``<think>\n`` for a model that can think but is not made to. It is part of the
    prompt."""


class Chat:
    """Turns questions into prompts and completed solutions into judgement prompts, for one tokenizer.

    Without a chat template the layout is plain text: ``Problem:``, ``Solution:``, then the question about it. It begins with
    the tokens that the tokenizer itself puts before a text, such as Llama's BOS.

    * ``question``: the verdict question, which this model is asked about its solutions and answers by Yes or No.
    * ``before``: (role, content) of earlier messages, with which every prompt begins. A system message among them replaces
      ``system``. Neither makes control tokens; ``system`` may have added tokens such as ``<think>``.
    * ``stop``: more tokens that end a solution, beside those that the tokenizer and its template name.
    * ``last_token``: how the model's last-token score is read; None if it was trained for none (see ``compute.last_token``).
    * ``enable_thinking``, ``think_end``, ``opening``: see ``ChatOptions``. Questions about a solution are asked with all thoughts
      closed.

    Raises ValueError if the tokenizer has no end token, or if the template does not read ``enable_thinking``.
    """

    def __init__(
        self,
        tokenizer: Any,
        system: str | None = None,
        before: Sequence[tuple[str, str]] = (),
        *,
        question: str = prompts.JUDGE,
        stop: Sequence[int] = (),
        enable_thinking: bool | None = None,
        think_end: str | None = None,
        opening: str | None = None,
        last_token: LastToken | None = None,
    ) -> None:
        self.tokenizer, self.codec = tokenizer, Codec(tokenizer)
        self.question, self.enable_thinking, self.last_token = question, enable_thinking, last_token
        self.system, self.before, self.opening = system, tuple(before), opening or ""
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no eos_token: set the token that ends a turn")
        template = text_of(tokenizer)
        if enable_thinking is not None and "enable_thinking" not in template:
            raise ValueError("the model's chat template does not read enable_thinking: leave it out")
        if think_end and "/" not in think_end:
            raise ValueError(f"think_end ends a thought and has a slash, such as </think>; got {think_end!r}")
        self.think_end = think_end or (prompts.THINK_END if prompts.THINK_END in template else None)
        self._thoughts = Thoughts(self.think_end) if self.think_end else None
        self._more_stops = tuple(stop)

    @cached_property
    def stop(self) -> tuple[int, ...]:
        """Return the token ids that end a solution: the token that closes a turn in the template, the tokenizer's eos, others.

        They differ in base models such as Qwen2.5 (``<|im_end|>``, ``<|endoftext|>``).
        """
        closing = [] if self._closing is None else [self._closing]
        return tuple(dict.fromkeys([*closing, self.tokenizer.eos_token_id, *self._more_stops]))

    @cached_property
    def line_ends(self) -> tuple[int, ...]:
        """Return the ids of the tokens that contain a line break; sampling that stops at them gives one line."""
        ids = sorted(set(range(len(self.tokenizer))) - {*self.codec.added.values()})
        texts = self.tokenizer.batch_decode([[i] for i in ids])  # alone: a space that is lost here is no line break
        return tuple(i for i, text in zip(ids, texts, strict=True) if "\n" in text)

    def encode(self, content: str, tags: bool = False) -> list[int]:
        """Return the token ids of untrusted text that continues another one: nothing is put before it.

        A control token's literal is cut after its first character. With ``tags``, added tokens that are not special
        (``<think>``) stay whole: a reply may use them.
        """
        _ = self._skeleton  # with which the codec knows what marks turns
        return self.codec.encode([Part(content, "tags" if tags else "none")])

    def text(self, content: str) -> list[int]:
        """Return the token ids of an untrusted text that no template surrounds, with the tokenizer's BOS if it puts one."""
        return [*self.codec.opening, *self.codec.encode([Part(content)], begins=True)]

    def decode(self, tokens: Sequence[int]) -> str:
        return self.codec.decode(tokens)

    def readable(self, tokens: Sequence[int]) -> list[int]:
        """Return a solution's tokens as whoever judges it must read them: ``decode`` gives the same text, and no token inside
        it begins or ends a turn. The token of ``stop`` that ends it stays."""
        _ = self._skeleton
        end = list(tokens[-1:]) if tokens and tokens[-1] in self.stop else []
        return [*self.codec.readable(tokens[: len(tokens) - len(end)]), *end]

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Return the text of each token; joined, they are ``decode(tokens)`` (see ``Codec.pieces``)."""
        return self.codec.pieces(tokens)

    def prompt(self, question: str) -> list[int]:
        """Return the tokens of everything up to where the solution begins."""
        s = self._skeleton
        opening = self.codec.opening if self.tokenizer.chat_template is None else []
        return [*opening, *self.codec.encode([*s.head, s.asked(question), Part(s.solve, "all")], begins=True)]

    def follow_up(self, question: str, *, again: bool = False, cut: bool = False) -> list[int]:
        """Return a second user turn, from the end of the solution's turn up to where the reply begins.

        The reply to it is not thought about, unless it solves the problem ``again``. ``cut``: the solution was cut off within
        its thought, which is closed first.
        """
        s = self._skeleton
        thought = self._thoughts.closing if cut and self._thoughts else ""
        end = [Part(thought + s.close, "all"), *s.after]
        return self.codec.encode([*end, s.asked(question), Part(s.again if again else s.answer, "all")])

    def ask(self, tokens: Sequence[int], question: str, *, again: bool = False) -> list[int]:
        """Return ``tokens``, a prompt with its solution, followed by another question (see ``follow_up``).

        The turn is closed once: by the template's token, unless the model closed it with any token of ``stop``.
        """
        closed = tokens[-1] in self.stop
        follow = self.follow_up(question, again=again, cut=not closed and self._in_thought(tokens))
        skipped = follow.index(self._closing) + 1 if closed and self._closing is not None else 0
        return [*tokens, *follow[skipped:]]

    def reply(self, text: str) -> list[int]:
        """Return the tokens of a solution that is given, after ``prompt``.

        Where the prompt opens a thought, the text is what follows: the rest of a thought, begun or with its end, or an answer,
        before which the thought is closed.
        """
        return self._reply(self._skeleton.solve, self._completing(text))

    def conversation(self, turns: Sequence[Turn]) -> tuple[list[int], list[float]]:
        """Return a conversation as (tokens, weight of each as a target); what closes a reply has the reply's weight."""
        s = self._skeleton
        tokens: list[int] = []
        target: list[float] = []
        for i, turn in enumerate(turns):
            tokens = self.ask(tokens, turn.question) if i else self.prompt(turn.question)
            target += [0.0] * (len(tokens) - len(target))
            begun, reply = (s.answer, turn.reply) if i else (s.solve, self._completing(turn.reply))
            tokens = [*tokens, *self._reply(begun, reply, s.close)]
            tokens += [] if s.close else [self.tokenizer.eos_token_id]
            target += [turn.learn] * (len(tokens) - len(target))
        return tokens, target

    @cached_property
    def yes_no_ids(self) -> tuple[int, int]:
        """Return the token ids of (Yes, No). Raises ValueError if they are not single, distinct tokens."""
        yes, no = self.single_tokens(("Yes", "No"))
        return yes, no

    @cached_property
    def a_b_ids(self) -> tuple[int, int]:
        """Return the token ids of (A, B). Raises ValueError if they are not single, distinct tokens."""
        a, b = self.single_tokens(("A", "B"))
        return a, b

    def single_tokens(self, replies: Sequence[str]) -> list[int]:
        """Return the token id of each reply to a question about a solution.

        Raises ValueError if they are not single, distinct tokens.
        """
        found = [self._reply(self._skeleton.answer, reply) for reply in replies]
        if any(len(ids) != 1 for ids in found) or len({ids[0] for ids in found}) != len(found):
            words, given = (" and ".join(map(str, x)) for x in (replies, found))
            raise ValueError(f"{words} must be single, distinct tokens; this tokenizer gives {given}")
        return [ids[0] for ids in found]

    def unused(self, literal: str | None = None) -> int:
        """Return the id of an added token that nothing uses behind a solution: ``literal``, or the tokenizer's pad token.

        Raises ValueError if it is no added token, ends a solution, or is one that the chat template writes.
        """
        chosen = literal or self.tokenizer.pad_token
        token = self.codec.added.get(chosen)
        if token is None or token in self.stop or chosen in self._skeleton.literals(self.codec):
            used = "is no added token" if token is None else "ends a turn or is the template's"
            raise ValueError(
                f"the last-token score needs a token that nothing uses, and {chosen!r} {used}: set recipe.last_token.token to "
                "one of the tokenizer's added tokens, such as Qwen2.5's <|vision_start|>"
            )
        return token

    def within(self, before: Sequence[tuple[str, str]]) -> Chat:
        """Return this chat in the middle of a conversation: its prompts begin with these (role, content) messages.

        Making a prompt then raises ValueError for messages that the template refuses or leaves out.
        """
        if not before:
            return self
        other = copy(self)
        other.before = tuple(before)
        other.__dict__.pop("_skeleton", None)
        return other

    def asking(self, question: str) -> Chat:
        """Return this chat with another verdict question."""
        other = copy(self)
        other.question = question
        return other

    @cached_property
    def _skeleton(self) -> Skeleton:
        system = None if any(role == "system" for role, _ in self.before) else self.system
        found = skeleton(self.codec, system, self.before, self.enable_thinking, self._thoughts)
        thoughts = {self._thoughts.start, self._thoughts.end} if self._thoughts else set()
        self.codec.reserve(found.literals(self.codec), thoughts)
        return replace(found, solve=found.solve + self.opening, again=found.again + self.opening)

    @property
    def _closing(self) -> int | None:
        """The token that closes a turn in the template."""
        close = self._skeleton.close
        return self.codec.added[close.lstrip()] if close else None

    def _reply(self, begun: str, text: str, close: str = "") -> list[int]:
        """Return the tokens of a reply where the template has written ``begun``."""
        before = [Part(begun, "all")]
        more = [Part(self._skeleton.lead, "all"), Part(text, "tags"), Part(close, "all")]
        own, whole = self.codec.encode(before), self.codec.encode([*before, *more])
        return whole[len(own) :] if whole[: len(own)] == own else self.codec.encode(more)

    def _completing(self, text: str) -> str:
        """Return a solution without what the prompt has of its thought already."""
        thoughts = self._thoughts
        if thoughts is None or not thoughts.open(self._skeleton.solve):
            return text.removeprefix(self.opening)
        if thoughts.end in text or text.startswith(thoughts.start):
            return text.removeprefix(thoughts.start).lstrip("\n")
        return thoughts.closing + text

    def _in_thought(self, tokens: Sequence[int]) -> bool:
        """Return whether a thought is open at the end of a prompt with its solution."""
        thoughts, begun = self._thoughts, self._skeleton.solve
        if thoughts is None:
            return False
        own = self.codec.decode(tokens, control=True).rpartition(begun or "\0")[2]
        return thoughts.open(own) or (thoughts.open(begun) and thoughts.end not in own)
