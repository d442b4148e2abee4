"""The parts of a tokenizer's chat template: what it writes around a question, a solution and a question about it.

They are found by rendering messages that are marks (``_mark``). So no content can change what the template does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from twofold.text import prompts
from twofold.text.codec import Codec, Part
from twofold.text.confined import confined

MOST = 1 << 20
"""The most characters of a template."""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """What a template writes: ``head`` QUESTION ``solve`` ``lead`` SOLUTION ``close`` ``after`` QUESTION ``again`` or ``answer``.

    * ``head`` includes the earlier messages.
    * ``solve`` is where the model's prompt ends. ``lead`` is what the template writes before a reply after that (Llama-2: a
      space), and the model if it keeps to the template.
    * ``close`` ends with the token that closes a turn. It is empty if the template has none.
    * ``again`` is where the model's second solution begins, ``answer`` where an answer begins that is not thought about.
    * ``trims``: the template removes spaces around a question.
    """

    head: list[Part]
    solve: str
    lead: str
    close: str
    after: list[Part]
    again: str
    answer: str
    trims: bool

    def asked(self, question: str) -> Part:
        """Return a question as the template writes it."""
        return Part(question.strip() if self.trims else question)

    def literals(self, codec: Codec) -> set[str]:
        """Return the added tokens that the template itself writes, by their literals."""
        ours = [part.text for part in (*self.head, *self.after) if part.may == "all"]
        ours += [self.solve, self.lead, self.close, self.again, self.answer]
        return {literal for text in ours for literal in codec.control.findall(text)}


@dataclass(frozen=True, slots=True)
class Thoughts:
    """How a model's thoughts are marked. ``end`` is what ends one, ``</think>``; without the slash it is what begins one."""

    end: str

    @property
    def start(self) -> str:
        return self.end.replace("/", "", 1)

    def open(self, text: str) -> bool:
        """Return whether a thought is open where ``text`` ends."""
        return text.rfind(self.start) > text.rfind(self.end)

    @property
    def closing(self) -> str:
        """What closes a thought that is open."""
        return f"\n{self.end}\n\n"

    def closed(self, text: str) -> str:
        """Return the beginning of a reply with an empty thought, as Qwen3's template writes it, unless it has a whole one."""
        start, end = text.rfind(self.start), text.rfind(self.end)
        return text if end > start else f"{text[:start] if start >= 0 else text}{self.start}\n{self.closing}"


_SPACE = "\u2003"  # a space that no template writes
_FIRST = 0xE100
_WHERE = re.compile(f"({_SPACE}?)\ue000(.)\ue001({_SPACE}?)", re.DOTALL)  # private use: no template touches them


def _mark(number: int) -> str:
    """Return a content that is found again in what the template renders, and shows whether spaces around it are removed."""
    return f"{_SPACE}\ue000{chr(_FIRST + number)}\ue001{_SPACE}"


def text_of(tokenizer: Any) -> str:
    """Return the text of the tokenizer's chat template; empty without one."""
    return tokenizer.get_chat_template() if tokenizer.chat_template is not None else ""


def skeleton(
    codec: Codec,
    system: str | None,
    before: Sequence[tuple[str, str]],
    thinking: bool | None,
    thoughts: Thoughts | None,
) -> Skeleton:
    """Return the parts of the template after the messages ``before``, which are (role, content) and untrusted.

    ``thinking`` is the template's ``enable_thinking``; None: its default. Raises ValueError if the template refuses the
    messages, leaves one of them out or changes their order.
    """
    tokenizer, known = codec.tokenizer, [Part(system, "tags")] if system else []
    for role, content in before:
        thought = role == "assistant" and thoughts is not None and thoughts.end in content
        content = _kept(tokenizer, content) if thought else content
        known.append(Part(content, "tags" if role == "assistant" else "none"))
    roles = ["system"] * bool(system) + [role for role, _ in before] + ["user", "assistant", "user"]
    asked, solved, more = range(len(known), len(roles))
    turns = [{"role": role, "content": _mark(i)} for i, role in enumerate(roles)]
    options = {} if thinking is None else {"enable_thinking": thinking}
    head, solve, trims = _cut(_render(tokenizer, turns[: asked + 1], options), asked)
    found = _numbers(head)
    if lost := [roles[i] for i in range(asked) if i not in found]:
        hint = ": ask without a system prompt" if system and lost[0] == "system" else ""
        raise ValueError(f"{_LOST} of the role {lost[0]}, or writes it after the question{hint}")
    if (order := [i for i in found if roles[i] != "system"]) != sorted({*order}):  # Mistral moves the system's message
        raise ValueError(f"{_LOST} or changes the messages' order")
    between, rest, _ = _cut(_cut(_render(tokenizer, turns, options), asked)[1], solved)
    after, again, _ = _cut(rest, more)
    answer = again
    if thoughts:
        if "enable_thinking" in text_of(tokenizer):
            answer = _cut(_render(tokenizer, turns, {"enable_thinking": False}), more)[1]
        answer = thoughts.closed(answer)
    end = codec.control.match(after, len(after) - len(after.lstrip()))
    close = after[: end.end()] if end else ""
    lead = between.removeprefix(solve) if between.startswith(solve) else ""
    return Skeleton(_filled(head, known), solve, lead, close, _filled(after[len(close) :], known), again, answer, trims)


_LOST = "the model's chat template leaves out a message"


def _kept(tokenizer: Any, reply: str) -> str:
    """Return what the template keeps of an earlier reply: most leave out its thought."""
    turns = [{"role": role, "content": _mark(i)} for i, role in enumerate(("user", "assistant", "user"))]

    def written(turns: list[dict[str, str]]) -> str:
        return _cut(_cut(_render(tokenizer, turns, {}), 0)[1], 2)[0]

    before, after, _ = _cut(written(turns), 1)
    found = written([turns[0], {"role": "assistant", "content": reply}, turns[2]])
    return found[len(before) : len(found) - len(after)]


def _numbers(text: str) -> list[int]:
    return [ord(found[2]) - _FIRST for found in _WHERE.finditer(text)]


def _cut(text: str, number: int) -> tuple[str, str, bool]:
    """Return what is before and after a message, and whether the template removed the spaces around it."""
    for found in _WHERE.finditer(text):
        if ord(found[2]) == _FIRST + number:
            return text[: found.start()], text[found.end() :], not (found[1] and found[3])
    raise ValueError(f"{_LOST} or changes the messages' order")


def _filled(text: str, known: Sequence[Part]) -> list[Part]:
    """Return a text of the template with the earlier messages in it."""
    parts, start = [], 0
    for found, number in zip(_WHERE.finditer(text), _numbers(text), strict=True):
        part = known[number]
        content = part.text if found[1] and found[3] else part.text.strip()
        parts += [Part(text[start : found.start()], "all"), part._replace(text=content)]
        start = found.end()
    return [*parts, Part(text[start:], "all")]


def _render(tokenizer: Any, turns: list[dict[str, str]], options: dict[str, bool]) -> str:
    if tokenizer.chat_template is None:
        return prompts.plain(turns)
    words = json.dumps(tokenizer.special_tokens_map, default=str, sort_keys=True)
    try:
        return _rendered(text_of(tokenizer), words, json.dumps(turns), json.dumps(options))
    except ValueError as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise ValueError(f"the model's chat template refuses the roles {roles}: {error}") from error


@lru_cache(maxsize=64)  # a server renders the same roles again and again, and so does a model that is loaded again
def _rendered(text: str, words: str, turns: str, options: str) -> str:
    """Return what the template ``text``, which may use the tokenizer's special ``words``, makes of messages.

    It is a program from outside: it is run in a process of its own.
    """
    if len(text) > MOST:
        raise ValueError(f"it has {len(text):,} characters, more than {MOST:,}")
    from transformers.utils.chat_template_utils import render_jinja_template

    more = {**json.loads(words), "add_generation_prompt": True, "chat_template": text, **json.loads(options)}
    return confined(lambda: render_jinja_template([json.loads(turns)], **more)[0][0])
