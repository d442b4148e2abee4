"""Replies in OpenAI's shapes, in full or in chunks, with additional fields of twofold's: see ``docs/serve.md``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import accumulate
from typing import Any, Protocol

from twofold.serve.detokenize import Detokenizer
from twofold.serve.jobs import Answer, Choice
from twofold.serve.scheduler import Progress, RequestEngine
from twofold.serve.schema import ChatRequest, Request, TextRequest
from twofold.text.chat import Chat
from twofold.text.codec import Codec

PAUSE = 0.05
"""Seconds between two reports of a plan's progress."""


class ReplyFormat(Protocol):
    """The JSON of one of the two kinds of completion."""

    id_prefix: str
    full_object: str
    chunk_object: str
    has_plan: bool
    with_logprobs: bool

    def choice(self, choice: Choice) -> dict[str, Any]:
        """Return the fields of a full reply's choice that hold its text."""
        ...

    def delta(self, text: str | None, first: bool = False) -> dict[str, Any]:
        """Return the fields of a chunk's choice that hold its text. ``first``: the chunk is the choice's first."""
        ...

    def logprobs(self, choice: Choice) -> dict[str, Any] | None:
        """Return the log-probs of the choice's tokens, None if not wanted."""
        ...


class ChatFormat:
    """Implements ``ReplyFormat`` for /v1/chat/completions."""

    id_prefix, full_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, body: ChatRequest, chat: Chat, has_plan: bool) -> None:
        self.with_logprobs, self.has_plan, self._codec = bool(body.logprobs), has_plan, chat.codec
        self._by_id = bool(body.return_tokens_as_token_ids)

    def choice(self, choice: Choice) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": choice.text, "refusal": None}}

    def delta(self, text: str | None, first: bool = False) -> dict[str, Any]:
        return {"delta": ({"role": "assistant"} if first else {}) | ({} if text is None else {"content": text})}

    def logprobs(self, choice: Choice) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        content = [
            self._entry(t, x) | {"top_logprobs": [self._entry(*likely) for likely in top.items()]}
            for t, x, top in zip(choice.tokens, choice.logprobs, choice.top_logprobs, strict=True)
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        name = f"token_id:{token}" if self._by_id else _name(self._codec, token)
        return {"token": name, "logprob": _finite(logprob), "bytes": [*self._codec.token_bytes(token)]}


class TextFormat:
    """Implements ``ReplyFormat`` for /v1/completions."""

    id_prefix, full_object, chunk_object, has_plan = "cmpl", "text_completion", "text_completion", False

    def __init__(self, body: TextRequest, chat: Chat) -> None:
        self.with_logprobs, self._codec, self._echo = body.logprobs is not None, chat.codec, bool(body.echo)
        of_bytes = partial(_name, chat.codec, part="bytes:")
        self._name = "token_id:{}".format if body.return_tokens_as_token_ids else of_bytes

    def choice(self, choice: Choice) -> dict[str, Any]:
        return {"text": choice.text}

    def delta(self, text: str | None, first: bool = False) -> dict[str, Any]:
        return {"text": text or ""}

    def logprobs(self, choice: Choice) -> dict[str, Any] | None:
        """Offsets count characters from the beginning of the prompt, which is echoed or not; the tokens of one character begin
        where it does."""
        if not self.with_logprobs:
            return None
        pieces = self._codec.pieces(choice.tokens, within=not self._echo)
        places = zip(choice.tokens, choice.logprobs, choice.top_logprobs, strict=True)
        likeliest = [self._by_name({**top, t: x}) if top and x is not None else None for t, x, top in places]
        return {
            "tokens": [self._name(t) for t in choice.tokens],
            "token_logprobs": [_finite(x) for x in choice.logprobs],
            "top_logprobs": likeliest if any(likeliest) else None,
            "text_offset": list(accumulate(map(len, pieces), initial=choice.start))[:-1],
        }

    def _by_name(self, logprobs: dict[int, float]) -> dict[str, float | None]:
        """Return log-probs by the tokens' names, likeliest first. If tokens share a name, the likeliest gets it."""
        named: dict[str, float | None] = {}
        for token in sorted(logprobs, key=logprobs.__getitem__, reverse=True):
            named.setdefault(self._name(token), _finite(logprobs[token]))
        return named


def full_reply(fmt: ReplyFormat, identity: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """Return the reply to a request that is not streamed."""
    choices = [
        {"index": i, **fmt.choice(c), "logprobs": fmt.logprobs(c), "finish_reason": c.finish, **c.details}
        for i, c in enumerate(answer.choices)
    ]
    return {
        **identity,
        "object": fmt.full_object,
        "choices": choices,
        "usage": _usage(answer),
        "twofold": _cost(answer),
    }


class ChunkWriter:
    """Writes the chunks of a stream: text as it arrives or, for a plan, reports of its progress and then its answer."""

    def __init__(
        self, fmt: ReplyFormat, identity: dict[str, Any], body: Request, engine: RequestEngine, chat: Chat
    ) -> None:
        self.format, self.identity = fmt, {**identity, "object": fmt.chunk_object}
        self.engine, self.chat = engine, chat
        self.logprobs_last = bool(body.top)  # the likeliest tokens, and log-probs with them, are known at the end
        self.with_usage = bool(body.stream_options and body.stream_options.include_usage)
        self.with_samples = body.progress == "samples"
        self.pause = PAUSE if fmt.has_plan else 0.0
        self._detokenizers: dict[tuple[int, int], Detokenizer] = {}  # by (generate call, row), as are the next two
        self._begun: set[tuple[int, int]] = set()
        self._verdicts: dict[tuple[int, int], float] = {}  # the last ones sent
        self._tokens: dict[int, int] = {}  # choice -> tokens whose log-probs were sent
        self._characters: dict[int, int] = {}  # choice -> characters of its prompt and of these tokens

    def first(self) -> list[dict[str, Any]]:
        """Return the chunks to send before anything is known."""
        return [self._chunk(0, self.format.delta("", first=True))] if self.format.has_plan else []

    def new(self) -> list[dict[str, Any]]:
        """Return the chunks for what is new since the last call."""
        calls = tuple(self.engine.progress)
        if self.format.has_plan:
            return [self._progress(calls)] if calls else []
        found = []
        for progress in calls:
            for r, row in enumerate(progress.tokens):
                tokens = row[: progress.ready[r]]
                text = self._new_text(0, r, tokens)
                logprobs = None if self.logprobs_last else self._logprobs(r, tokens, progress.logprobs[r])
                if text or logprobs:
                    delta = self.format.delta(text, first=(0, r) not in self._begun)
                    found.append(self._chunk(r, delta, None, logprobs))
                    self._begun.add((0, r))
        return found

    def last(self, answer: Answer) -> list[dict[str, Any]]:
        """Return the chunks for what was held back, how each choice ended, and the cost."""
        found = [self._progress(tuple(self.engine.progress))] if self.format.has_plan else []
        for i, c in enumerate(answer.choices):
            text = c.text if self.format.has_plan else self._new_text(0, i, c.tokens, final=True)
            logprobs = self._logprobs(i, c.tokens, c.logprobs, c.top_logprobs)
            if text or logprobs:
                found.append(self._chunk(i, self.format.delta(text), None, logprobs))
        for i, c in enumerate(answer.choices):
            chunk = self._chunk(i, self.format.delta(None), c.finish)
            chunk["choices"][0] |= c.details
            if i + 1 == len(answer.choices):
                chunk["twofold"] = _cost(answer)
            found.append(chunk)
        if self.with_usage:
            found.append({**self.identity, "choices": [], "usage": _usage(answer)})
        return found

    def _new_text(self, call: int, row: int, tokens: Sequence[int], final: bool = False) -> str:
        detokenizer = self._detokenizers.setdefault((call, row), Detokenizer(self.engine.state.stops))
        return detokenizer.read(tuple(tokens), final)

    def _logprobs(
        self,
        i: int,
        tokens: list[int],
        logprobs: Sequence[float | None],
        top_logprobs: Sequence[dict[int, float]] | None = None,
    ) -> dict[str, Any] | None:
        """Return the log-probs of choice i's tokens since the last call, None if not wanted.

        Without ``top_logprobs``, more may come: then the tokens of half a character are held back, like its text.
        """
        before = self._tokens.get(i, 0)
        if not self.format.with_logprobs or self.format.has_plan or before == len(tokens):
            return None
        text = self.chat.codec.continued(tokens[before:])
        if top_logprobs is None and text.endswith("\ufffd"):
            return None
        start = self._characters.get(i)
        if start is None:
            start = len(self.chat.decode(self.engine.progress[0].prompts[i]))
        self._tokens[i], self._characters[i] = len(tokens), start + len(text)
        likeliest = list((top_logprobs or [])[before:]) or [{} for _ in tokens[before:]]
        scores = (list(logprobs[before : len(tokens)]), likeliest)
        return self.format.logprobs(Choice("", "length", tokens[before:], *scores, start=start))

    def _progress(self, calls: Sequence[Progress]) -> dict[str, Any]:
        report: dict[str, Any] = {
            "samples": sum(len(p.tokens) for p in calls),
            "finished": sum(p.finished for p in calls),
            "judged": sum(len(p.verdicts) for p in calls),
            "tokens": sum(len(row) for p in calls for row in p.tokens),
        }
        if self.with_samples:
            report["news"] = [new for i, p in enumerate(calls) for new in self._new_in_samples(i, p)]
        return {**self._chunk(0, self.format.delta(None)), "twofold": {"progress": report}}

    def _new_in_samples(self, i: int, progress: Progress) -> list[dict[str, Any]]:
        """Return the new text and the new verdict of every sample of generate call i that has any."""
        found = []
        for r, row in enumerate(progress.tokens):
            new: dict[str, Any] = {}
            if text := self._new_text(i, r, row, final=progress.finished == len(progress.tokens)):
                new["text"] = text
            verdict = progress.verdicts.get(r)
            if verdict is not None and self._verdicts.get((i, r)) != verdict:
                new["verdict"] = self._verdicts[i, r] = verdict
            if new:
                found.append({"batch": i, "sample": r, **new})
        return found

    def _chunk(
        self, index: int, delta: dict[str, Any], finish: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, **delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self.identity, "choices": [choice]} | ({"usage": None} if self.with_usage else {})


def _name(codec: Codec, token: int, part: str = "") -> str:
    """Return a token's text or, for part of a character, OpenAI's name: ``part`` and its bytes, as in \\xf0\\x9f."""
    text, data = codec.token_text(token), codec.token_bytes(token)
    return part + repr(data)[2:-1] if "\ufffd" in text and text.encode() != data else text


def _usage(answer: Answer) -> dict[str, Any]:
    """Return OpenAI's count of every token spent; those of judgements count as completion."""
    cost = answer.cost
    completion = cost.generated + cost.verified
    return {"prompt_tokens": cost.prompt, "completion_tokens": completion, "total_tokens": cost.prompt + completion}


def _cost(answer: Answer) -> dict[str, Any]:
    return {"cost": asdict(answer.cost), "timed_out": answer.timed_out}


def _finite(logprob: float | None) -> float | None:
    """Return the log-prob, at least -9999: JSON has no infinity."""
    return None if logprob is None else max(logprob, -9999.0)
