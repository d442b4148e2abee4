"""Whether all that a run may write fits the model's context, checked before the run begins."""

from __future__ import annotations

from collections.abc import Iterable

from twofold.compute.judge import WRITING, Judging
from twofold.text.chat import Chat
from twofold.types import Context

Named = Iterable[tuple[str, str]]
"""Questions by the names that an error has for them: (problem's id, question)."""


LEAVE_OUT = ". For a data set --skip-long (in a config task.skip_long) leaves out what is too long"


def check_room(
    context: Context, chat: Chat, questions: Named, max_tokens: int, judging: Judging, hint: str = LEAVE_OUT
) -> None:
    """Raise ValueError that names the longest prompt if one, a solution of ``max_tokens`` and what is asked and answered about
    it are too many tokens.

    An engine checks every call, too. This check comes before the first one, and knows that the verdict question follows.
    """
    found = too_long(context, chat, questions, max_tokens, judging)
    if not found:
        return
    name = max(found, key=found.__getitem__)
    others = f". {len(found)} problems are too long, this is the longest" if len(found) > 1 else ""
    try:
        context.check(found[name], max_tokens, after(chat, judging, max_tokens))
    except ValueError as error:
        raise ValueError(f"{name}: {error}{others}{hint}") from error


def too_long(context: Context, chat: Chat, questions: Named, max_tokens: int, judging: Judging) -> dict[str, int]:
    """Return the tokens of the prompts that are too long, by the questions' names."""
    if context.tokens is None:
        return {}
    room = context.tokens - max_tokens - after(chat, judging, max_tokens)
    # a token is at least one byte, so that few questions of a large data set have to be encoded
    few = room - len(chat.prompt(""))
    lengths = {name: len(chat.prompt(text)) for name, text in questions if len(text.encode()) > few}
    return {name: length for name, length in lengths.items() if length > room}


def after(chat: Chat, judging: Judging, solution: int = 0) -> int:
    """Return how many tokens ask for a verdict and give it; a comparison quotes another solution of ``solution`` tokens."""
    if judging.name in ("last_token", "none"):
        return 0
    more = judging.tokens if judging.name in WRITING else 1 + solution if judging.name == "pairs" else 1
    return len(chat.follow_up(judging.words(chat), cut=True)) + more
