"""Whether all that a run may write fits the model's context, checked before the run begins."""

from __future__ import annotations

from collections.abc import Iterable

from twofold.compute.judge import WRITING, Judging
from twofold.text.chat import Chat
from twofold.types import Context


def check_room(context: Context, chat: Chat, questions: Iterable[str], max_tokens: int, judging: Judging) -> None:
    """Raise ValueError if a prompt, a solution of ``max_tokens`` and what is asked and answered about it are too many tokens.

    An engine checks every call, too. This check comes before the first one, and knows that the verdict question follows.
    """
    if context.tokens is None:
        return
    after = 0
    if judging.name != "none":
        after = len(chat.follow_up(judging.words(chat), cut=True)) + (judging.tokens if judging.name in WRITING else 1)
    template = len(chat.prompt(""))
    # a token is at least one byte, so that few questions of a large data set have to be encoded
    room = context.tokens - template - max_tokens - after
    lengths = (len(chat.prompt(question)) for question in questions if len(question.encode()) > room)
    context.check(max(lengths, default=0), max_tokens, after)
