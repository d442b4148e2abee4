"""ProcessBench with a model as the critic: three ways to find the first wrong step, and one score for all."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from twofold import durable
from twofold.compute.judge import p_yes, question
from twofold.compute.rollout import candidate, forced
from twofold.compute.verify import asked, verify
from twofold.engines.base import Engine
from twofold.maths.processbench import ProcessScore, best_threshold, first_error, process_score
from twofold.ranges import Count, NonNegative, Seed, Share, checked
from twofold.tasks.processbench import Case
from twofold.text.chat import Chat
from twofold.text.extract import last_boxed
from twofold.text.prompts import FIND_ERROR, VERIFY
from twofold.text.steps import Critique, Cut, solution_text
from twofold.types import Candidate, Context, Sampling


@checked
class Critic:
    """``how`` a model finds the first wrong step:

    * ``verifier``: it writes a verdict on each step, as Tango's verifier does; the first INCORRECT counts. A verification
      without one verdict for each step is unreadable. With ``whole``, "no error" is also unreadable unless the final
      verdict is CORRECT.
    * ``prompted``: it is given the problem and the numbered steps, and boxes an index.
    * ``p_yes``: it gives P(Yes) of the solution up to each step; the first under ``threshold`` counts.

    ``votes`` predictions are drawn for each case, at ``temperature`` if there are several. The most frequent one counts.
    """

    how: Literal["verifier", "prompted", "p_yes"] = "verifier"
    votes: Count = 1
    temperature: NonNegative = 1.0
    max_tokens: Count = 1024
    cut: Cut = "tags"
    question: str = VERIFY
    whole: bool = False
    threshold: Share = 0.5
    batch: Count = 32
    """Cases per engine call."""
    seed: Seed = 0


Tell = Callable[[int, int], None]
"""Function that is told how many of how many cases are done."""


def score(
    engine: Engine, chat: Chat, cases: Sequence[Case], critic: Critic, progress: Tell = lambda done, total: None
) -> ProcessScore:
    """Return how well the critic finds the first wrong steps of the cases."""
    return process_score([c.label for c in cases], predict(engine, chat, cases, critic, progress))


SETTINGS, PREDICTIONS = "critic.json", "predictions.jsonl"


def saved_score(
    engine: Engine,
    chat: Chat,
    cases: Sequence[Case],
    critic: Critic,
    out: Path,
    *,
    model: str,
    progress: Tell = lambda done, total: None,
) -> ProcessScore:
    """Return the critic's score on the cases, with every prediction saved in ``out``. Cases that are there are not done again.

    Raises ValueError if ``out`` was begun with another ``model`` or critic.
    """
    with durable.writing(out):
        how = {"model": model} | asdict(critic)
        if (out / SETTINGS).exists() and json.loads((out / SETTINGS).read_text()) != how:
            raise ValueError(f"{out} holds predictions of another critic (see its {SETTINGS}): choose another --out")
        durable.write_text(out / SETTINGS, json.dumps(how, indent=2) + "\n")
        found = {row["id"]: row["predicted"] for row in durable.read_lines(out / PREDICTIONS)}
        waiting = [case for case in cases if case.id not in found]
        progress(len(cases) - len(waiting), len(cases))
        with durable.Lines(out / PREDICTIONS) as file:
            for i in range(0, len(waiting), critic.batch):
                part = waiting[i : i + critic.batch]
                for case, predicted in zip(part, predict(engine, chat, part, critic), strict=True):
                    file.write(json.dumps({"id": case.id, "label": case.label, "predicted": predicted}))
                    found[case.id] = predicted
                progress(len(cases) - len(waiting) + i + len(part), len(cases))
    return process_score([case.label for case in cases], [found[case.id] for case in cases])


def predict(
    engine: Engine, chat: Chat, cases: Sequence[Case], critic: Critic, progress: Tell = lambda done, total: None
) -> list[int | None]:
    """Return the predicted first wrong step of each case: -1 for none, None where nothing could be read."""
    found: list[int | None] = []
    for i in range(0, len(cases), critic.batch):
        progress(i, len(cases))
        part = cases[i : i + critic.batch]
        if critic.how == "p_yes":
            found += [
                first_error([v >= critic.threshold for v in row])
                for row in prefix_values(engine, chat, part, critic.cut)
            ]
        else:
            how = _verified if critic.how == "verifier" else _prompted
            found += [most_frequent(votes) for votes in how(engine, chat, part, critic)]
    progress(len(cases), len(cases))
    return found


def most_frequent(votes: Sequence[int | None]) -> int | None:
    """Return the most frequent of the votes that could be read; of equals the one cast first.

    >>> most_frequent([None, 2, -1, -1]), most_frequent([None])
    (-1, None)
    """
    counts = Counter(v for v in votes if v is not None)
    return max(counts, key=lambda v: counts[v], default=None)


def prefix_values(engine: Engine, chat: Chat, cases: Sequence[Case], cut: Cut = "tags") -> list[list[float]]:
    """Return P(Yes) of the solution up to each of its steps, in one engine call. The answer follows the last step."""
    partial = []
    for c in cases:
        for k in range(1, len(c.steps) + 1):
            cut_off = replace(c, steps=c.steps[:k], answer=c.answer if k == len(c.steps) else "")
            partial.append(as_candidate(chat, cut_off, cut))
    values = iter(p_yes(engine, chat, partial, normalised=True))
    return [[next(values) for _ in c.steps] for c in cases]


def tuned(engine: Engine, chat: Chat, cases: Sequence[Case], critic: Critic) -> Critic:
    """Return the critic with the ``threshold`` that is best on these cases. Score it on others."""
    parts = [cases[i : i + critic.batch] for i in range(0, len(cases), critic.batch)]
    values = [row for part in parts for row in prefix_values(engine, chat, part, critic.cut)]
    return replace(critic, threshold=best_threshold(values, [c.label for c in cases]))


def as_candidate(chat: Chat, case: Case, cut: Cut) -> Candidate:
    """Return the case as if the model had written its solution."""
    text = solution_text(case.steps, case.answer, cut)
    return candidate(chat, chat.prompt(case.problem), forced(chat.reply(text)))


def _sampling(chat: Chat, critic: Critic) -> Sampling:
    temperature = critic.temperature if critic.votes > 1 else 0.0
    return Sampling(critic.votes, temperature, max_tokens=critic.max_tokens, stop=chat.stop, seed=critic.seed)


def _verified(engine: Engine, chat: Chat, cases: Sequence[Case], critic: Critic) -> list[list[int | None]]:
    rollouts = [as_candidate(chat, c, critic.cut) for c in cases]
    counts = [len(c.steps) for c in cases]
    found = verify(engine, chat, rollouts, counts, critic.question, _sampling(chat, critic))
    return [
        [predicted_step(v.critique, k, critic.whole) for v in drawn] for drawn, k in zip(found, counts, strict=True)
    ]


def check_cases(context: Context, chat: Chat, cases: Sequence[Case], critic: Critic) -> None:
    """Raise ValueError if the longest case, with what is asked and written about it, is too long for the context."""
    longest = max(len(_request(chat, case, critic)) for case in cases)
    if critic.how == "p_yes":
        context.check(longest, after=1)
    else:
        context.check(longest, critic.max_tokens)


def _request(chat: Chat, case: Case, critic: Critic) -> list[int]:
    """Return the prompt about a case. For ``p_yes`` it is the one about the whole solution, which is the longest."""
    if critic.how == "prompted":
        return chat.prompt(find_error_prompt(case))
    rollout = as_candidate(chat, case, critic.cut)
    if critic.how == "p_yes":
        return question(chat, rollout)
    return asked(chat, rollout, critic.question.replace("{steps}", str(len(case.steps))))


def predicted_step(critique: Critique, steps: int, whole: bool) -> int | None:
    """Return the first step that a verification calls INCORRECT: -1 for none, None if it cannot be read."""
    verdicts = critique.step_verdicts(steps)
    if verdicts is None:
        return None
    first = first_error(verdicts)
    return None if whole and first < 0 and not critique.final else first


def _prompted(engine: Engine, chat: Chat, cases: Sequence[Case], critic: Critic) -> list[list[int | None]]:
    prompts = [chat.prompt(find_error_prompt(c)) for c in cases]
    drawn = engine.generate(prompts, _sampling(chat, critic))
    return [
        [boxed_step(chat.decode(c.tokens), len(case.steps)) for c in cs] for cs, case in zip(drawn, cases, strict=True)
    ]


def find_error_prompt(case: Case) -> str:
    """Return the prompt that asks for the first wrong step, each step between tags with its number."""
    steps = "\n\n".join(f"<paragraph_{i}>\n{s}\n</paragraph_{i}>" for i, s in enumerate(case.steps))
    before, between, after = re.split(r"\{problem\}|\{solution\}", FIND_ERROR)
    return before + case.problem + between + steps + after


def boxed_step(text: str, steps: int) -> int | None:
    r"""Return the index that a text boxes last, or None if it is not one of -1 .. ``steps`` - 1.

    >>> boxed_step(r"so \boxed{2}", 3), boxed_step(r"\boxed{-1}", 3), boxed_step(r"\boxed{3}", 3), boxed_step("2", 3)
    (2, -1, None, None)
    """
    boxed = last_boxed(text) or ""
    return int(boxed) if re.fullmatch(r"-1|[0-9]{1,4}", boxed) and int(boxed) < steps else None
