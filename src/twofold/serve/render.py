"""Answers in OpenAI's shapes, whole or in chunks. What is ours stands beside it: see ``docs/serve.md``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from itertools import accumulate
from typing import Any, Protocol

from twofold.serve.detokenize import Reader
from twofold.serve.jobs import Answer, Choice
from twofold.serve.scheduler import Batch, Client
from twofold.serve.schema import ChatRequest, Request, TextRequest
from twofold.text.chat import Chat

PAUSE = 0.05
"""Seconds between two reports of a plan's progress."""


class Shape(Protocol):
    """How one of the two kinds of completion is written."""

    prefix: str
    whole_kind: str
    chunk_kind: str
    planned: bool
    wanted: bool
    """Whether log-probs were asked for."""

    def choice(self, choice: Choice) -> dict[str, Any]: ...
    def delta(self, text: str | None, first: bool = False) -> dict[str, Any]: ...
    def logprobs(self, choice: Choice, start: int = 0) -> dict[str, Any] | None:
        """Of the choice's tokens, None if nobody asked; its text begins with character ``start`` of the whole."""
        ...


class ChatShape:
    prefix, whole_kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, body: ChatRequest, chat: Chat, planned: bool) -> None:
        self.wanted, self.planned, self.name = bool(body.logprobs), planned, _namer(chat)

    def choice(self, choice: Choice) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": choice.text, "refusal": None}}

    def delta(self, text: str | None, first: bool = False) -> dict[str, Any]:
        return {"delta": ({"role": "assistant"} if first else {}) | ({} if text is None else {"content": text})}

    def logprobs(self, choice: Choice, start: int = 0) -> dict[str, Any] | None:
        if not self.wanted:
            return None
        content = [
            self._entry(t, x) | {"top_logprobs": [self._entry(*likely) for likely in top.items()]}
            for t, x, top in zip(choice.tokens, choice.logprobs, choice.tops, strict=True)
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        name = self.name(token)
        return {"token": name, "logprob": _finite(logprob), "bytes": list(name.encode())}


class TextShape:
    prefix, whole_kind, chunk_kind, planned = "cmpl", "text_completion", "text_completion", False

    def __init__(self, body: TextRequest, chat: Chat) -> None:
        self.wanted, self.name = body.logprobs is not None, _namer(chat)
        self.written = "token_id:{}".format if body.return_tokens_as_token_ids else self.name

    def choice(self, choice: Choice) -> dict[str, Any]:
        return {"text": choice.text}

    def delta(self, text: str | None, first: bool = False) -> dict[str, Any]:
        return {"text": text or ""}

    def logprobs(self, choice: Choice, start: int = 0) -> dict[str, Any] | None:
        if not self.wanted:
            return None
        told = zip(choice.tokens, choice.logprobs, choice.tops, strict=True)
        tops = [self._likeliest({**top, t: x}) if top and x is not None else None for t, x, top in told]
        return {
            "tokens": [self.written(t) for t in choice.tokens],
            "token_logprobs": [_finite(x) for x in choice.logprobs],
            "top_logprobs": tops if any(tops) else None,
            "text_offset": list(accumulate((len(self.name(t)) for t in choice.tokens), initial=start))[:-1],
        }

    def _likeliest(self, logprobs: dict[int, float]) -> dict[str, float | None]:
        """By text, the likeliest first; halves of characters share one, which the likeliest has."""
        named: dict[str, float | None] = {}
        for token in sorted(logprobs, key=logprobs.__getitem__, reverse=True):
            named.setdefault(self.written(token), _finite(logprobs[token]))
        return named


def _namer(chat: Chat) -> Callable[[int], str]:
    """The text of a token."""
    return cache(lambda token: chat.tokenizer.decode([token]))


def whole(shape: Shape, identity: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """The reply to a request that is not streamed."""
    choices = [
        {"index": i, **shape.choice(c), "logprobs": shape.logprobs(c), "finish_reason": c.finish, **c.details}
        for i, c in enumerate(answer.choices)
    ]
    return {
        **identity,
        "object": shape.whole_kind,
        "choices": choices,
        "usage": _usage(answer),
        "twofold": _ours(answer),
    }


class Chunks:
    """The chunks of a stream: text as it comes; of a plan, how far it is, then its answer."""

    def __init__(self, shape: Shape, identity: dict[str, Any], body: Request, client: Client) -> None:
        self.shape, self.identity, self.client = shape, {**identity, "object": shape.chunk_kind}, client
        self.late = bool(body.top)  # the likeliest tokens are known at the end, and log-probs come with them
        self.usage = bool(body.stream_options and body.stream_options.include_usage)
        self.texts = body.progress == "samples"
        self.pause = PAUSE if shape.planned else 0.0
        self._readers: dict[tuple[int, int], Reader] = {}
        self._told: dict[tuple[int, int], float] = {}
        self._tokens: dict[int, int] = {}  # of each choice, whose log-probs were told; and its characters
        self._characters: dict[int, int] = {}

    def first(self) -> list[dict[str, Any]]:
        return [self._chunk(0, self.shape.delta("", first=True))] if self.shape.planned else []

    def more(self) -> list[dict[str, Any]]:
        """What is new since the last call."""
        batches = tuple(self.client.batches)
        if self.shape.planned:
            return [self._progress(batches)] if batches else []
        found = []
        for batch in batches:
            for r, row in enumerate(batch.rows):
                tokens = row[: batch.ready[r]]
                piece = self._read(0, r, tokens)
                told = None if self.late else self._logprobs(r, tokens, batch.logprobs[r], piece)
                if piece or told:
                    found.append(self._chunk(r, self.shape.delta(piece, (0, r) not in self._told), None, told))
                    self._told[0, r] = 1.0
        return found

    def last(self, answer: Answer) -> list[dict[str, Any]]:
        """What was still held back, how each choice ended, and the cost."""
        found = [self._progress(tuple(self.client.batches))] if self.shape.planned else []
        for i, c in enumerate(answer.choices):
            text = c.text if self.shape.planned else self._read(0, i, c.tokens, final=True)
            told = self._logprobs(i, c.tokens, c.logprobs, text, c.tops)
            if text or told:
                found.append(self._chunk(i, self.shape.delta(text), None, told))
        for i, c in enumerate(answer.choices):
            chunk = self._chunk(i, self.shape.delta(None), c.finish)
            chunk["choices"][0] |= c.details
            if i + 1 == len(answer.choices):
                chunk["twofold"] = _ours(answer)
            found.append(chunk)
        if self.usage:
            found.append({**self.identity, "choices": [], "usage": _usage(answer)})
        return found

    def _read(self, batch: int, row: int, tokens: Sequence[int], final: bool = False) -> str:
        reader = self._readers.setdefault((batch, row), Reader(self.client.ticket.stops))
        return reader.more(tuple(tokens), final)

    def _logprobs(
        self,
        i: int,
        tokens: list[int],
        logprobs: Sequence[float | None],
        text: str,
        tops: Sequence[dict[int, float]] = (),
    ) -> dict[str, Any] | None:
        """Of the tokens since the last call, which ``text`` goes with, if they are wanted."""
        before, start = self._tokens.get(i, 0), self._characters.get(i, 0)
        self._characters[i] = start + len(text)
        if not self.shape.wanted or before == len(tokens):
            return None
        self._tokens[i] = len(tokens)
        likeliest = list(tops[before:]) if tops else [{} for _ in tokens[before:]]
        new = Choice("", "length", tokens[before:], list(logprobs[before : len(tokens)]), likeliest)
        return self.shape.logprobs(new, start)

    def _progress(self, batches: Sequence[Batch]) -> dict[str, Any]:
        told: dict[str, Any] = {
            "samples": sum(len(b.rows) for b in batches),
            "finished": sum(b.finished for b in batches),
            "judged": sum(len(b.verdicts) for b in batches),
            "tokens": sum(len(row) for b in batches for row in b.rows),
        }
        if self.texts:
            told["news"] = [new for i, b in enumerate(batches) for new in self._news(i, b)]
        return {**self._chunk(0, self.shape.delta(None)), "twofold": {"progress": told}}

    def _news(self, i: int, batch: Batch) -> list[dict[str, Any]]:
        found = []
        for r, row in enumerate(batch.rows):
            new: dict[str, Any] = {}
            if piece := self._read(i, r, row, final=batch.finished == len(batch.rows)):
                new["text"] = piece
            verdict = batch.verdicts.get(r)
            if verdict is not None and self._told.get((i, r)) != verdict:
                new["verdict"] = self._told[i, r] = verdict
            if new:
                found.append({"batch": i, "sample": r, **new})
        return found

    def _chunk(
        self, index: int, delta: dict[str, Any], finish: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, **delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self.identity, "choices": [choice]} | ({"usage": None} if self.usage else {})


def _usage(answer: Answer) -> dict[str, Any]:
    """Every token spent: those that judged count as completion."""
    cost = answer.cost
    done = cost.generated + cost.verified
    return {"prompt_tokens": cost.prompt, "completion_tokens": done, "total_tokens": cost.prompt + done}


def _ours(answer: Answer) -> dict[str, Any]:
    return {"cost": asdict(answer.cost), "timed_out": answer.timed_out}


def _finite(logprob: float | None) -> float | None:
    """JSON has no infinity."""
    return None if logprob is None else max(logprob, -9999.0)
