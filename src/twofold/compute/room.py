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
        after = len(chat.follow_up(judging.words(chat))) + (judging.tokens if judging.name in WRITING else 1)
    template = len(chat.prompt(""))
    for question in questions:
        # a token is at least one byte, so that few questions of a large data set have to be encoded
        if template + len(question.encode()) + max_tokens + after > context.tokens:
            context.check(len(chat.prompt(question)), max_tokens, after)
