r"""The published sets that are known by name: where they are, and how four of them are posed and compared.

BoardgameQA, CRUXEval, StrategyQA and TableBench are Tango's sets outside mathematics (arXiv:2505.15034). A question of
theirs stands in several columns, and their answers are words, cells of a table or Python values, not formulas.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from twofold.text.notation import canonical

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Named:
    """A published set: its repository on the hub, its configuration and its columns.

    ``split`` is the name of the split of a set that has only one. ``file`` is read by itself where the repository holds
    files that do not belong together. ``only`` = (column, values) keeps the rows with one of these values. ``pose`` makes
    (question, answer) of a row whose question stands in several columns. ``same`` compares (reference, answer) where answers
    are not mathematics, and ``form`` (default: ``canonical``) is the normal form of these by which votes are counted.
    """

    repo: str
    config: str | None = None
    prompt: str | None = None
    answer: str | None = None
    split: str | None = None
    file: str | None = None
    only: tuple[str, tuple[str, ...]] | None = None
    pose: Callable[[Row], tuple[str, str]] | None = None
    same: Callable[[str, str], bool] | None = None
    form: Callable[[str], str] | None = None


# --- questions in several columns -------------------------------------------------------------------------------------


def text(row: Row, column: str) -> str:
    """Return the text in a column. Raises ValueError if there is none."""
    if not isinstance(row.get(column), str):
        raise ValueError(f"no text in {column!r}")
    return row[column]


PROVED = {"proved": "True", "disproved": "False", "unknown": "Uncertain"}


def boardgameqa(row: Row) -> tuple[str, str]:
    """Pose a game's state, rules and question; the answer is True, False or Uncertain."""
    if row.get("label") not in PROVED:
        raise ValueError(f"'label' must be one of {', '.join(PROVED)}, got {row.get('label')!r}")
    return f"{text(row, 'example')} Answer True, False or Uncertain.", PROVED[row["label"]]


def cruxeval(row: Row) -> tuple[str, str]:
    """Pose a Python function and its arguments; the answer is the value that it returns."""
    question = (
        f"A Python function:\n{text(row, 'code')}\n\nIt is called with these arguments, in the order of its parameters:\n"
        f"{text(row, 'input')}\n\nTrace the call step by step. Which value does it return?"
    )
    return question, text(row, "output")


def strategyqa(row: Row) -> tuple[str, str]:
    """Pose a question after the facts that it needs, numbered; the answer is True or False."""
    facts, answer = row.get("facts"), row.get("answer")
    if not isinstance(facts, list) or not facts or not all(isinstance(fact, str) for fact in facts):
        raise ValueError("'facts' must be a list of texts, at least one")
    if type(answer) is not bool:
        raise ValueError(f"'answer' must be true or false, got {answer!r}")
    known = "\n".join(f"{i}. {fact}" for i, fact in enumerate(facts, 1))
    return f"Known facts:\n{known}\nBy these facts, answer True or False: {text(row, 'question')}", str(answer)


def tablebench(row: Row) -> tuple[str, str]:
    """Pose a question after its table in JSON, which older files hold as text."""
    table, answer = row.get("table"), row.get("answer")
    if not isinstance(table, str | Mapping):
        raise ValueError("'table' must be an object with columns and data, or such an object as text")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise ValueError(f"'answer' must be a text or a number, got {answer!r}")
    shown = table if isinstance(table, str) else json.dumps(table, ensure_ascii=False)
    return (
        f"A table in JSON:\n{shown}\n\nAnswer by this table. Copy an answer that stands in it exactly as it stands there.\n"
        f"{text(row, 'question')}",
        str(answer),
    )


# --- answers that are not mathematics ---------------------------------------------------------------------------------


def same_value(reference: str, answer: str) -> bool:
    """Return whether two Python literals have equal values. A text that is no literal stands for itself.

    >>> same_value("{'a': 1}", '{"a":1}'), same_value("'yes'", "yes"), same_value("'1'", "1")
    (True, True, False)
    """
    return bool(literal(reference) == literal(answer))


def literal_form(written: str) -> str:
    """Return a Python literal as Python writes it: literals of one form are equal."""
    return repr(literal(written))


def literal(written: str) -> Any:
    try:
        return ast.literal_eval(written)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # as documented, for text that is none
        return written


_DROPPED = re.compile(r'\\?%|"')


def same_text(reference: str, answer: str) -> bool:
    r"""Return whether two answers are the same word, cell or number. Case counts.

    LaTeX wrappers, spaces, double quotes and per cent signs do not count, nor does how a number is written.

    >>> same_text("New York", r"\text{New  York}"), same_text("1,250", "1250.0"), same_text("12.5%", r"12.5\%")
    (True, True, True)
    >>> same_text("True", "False"), same_text("listen", "silent")
    (False, False)
    """
    return _bare(reference) == _bare(answer)


def _bare(answer: str) -> str:
    return canonical(_DROPPED.sub("", answer)).replace(" ", "")


# --- the sets ---------------------------------------------------------------------------------------------------------

_OLYMPIAD = Named("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "question", "final_answer", split="train")
_MINERVA = Named("math-ai/minervamath", None, "question", "answer", split="test")
_PHYSICS = ("High-level domain", ("Physics",))
_ASKED = ("qtype", ("NumericalReasoning", "FactChecking"))

NAMED: dict[str, Named] = {
    "gsm8k": Named("openai/gsm8k", "main", "question", "answer"),
    "math": Named("DigitalLearningGmbH/MATH-lighteval", None, "problem", "solution"),
    "math500": Named("HuggingFaceH4/MATH-500", None, "problem", "answer", split="test"),
    "aime24": Named("HuggingFaceH4/aime_2024", None, "problem", "answer", split="train"),
    "aime25": Named("math-ai/aime25", None, "problem", "answer", split="test"),
    "amc23": Named("math-ai/amc23", None, "question", "answer", split="test"),
    "minerva": _MINERVA,
    "minerva_math": _MINERVA,
    "olympiad": _OLYMPIAD,
    "olympiadbench": _OLYMPIAD,
    "math2": Named("veds12/math-squared"),
    "gpqa": Named("Idavidrein/gpqa", "gpqa_diamond", split="train"),
    "gpqa_physics": Named("Idavidrein/gpqa", "gpqa_diamond", split="train", only=_PHYSICS),
    "boardgameqa": Named(
        "tasksource/Boardgame-QA", None, "example", "label", split="test", pose=boardgameqa, same=same_text
    ),
    "cruxeval": Named(
        "cruxeval-org/cruxeval", None, "code", "output", split="test", pose=cruxeval, same=same_value,
        form=literal_form,
    ),
    "strategyqa": Named(
        "tasksource/strategy-qa", None, "question", "answer", file="strategyQA_train.json", pose=strategyqa, same=same_text
    ),
    "tablebench": Named(
        "Multilingual-Multimodal-NLP/TableBench", None, "question", "answer", file="TableBench.jsonl", only=_ASKED,
        pose=tablebench, same=same_text,
    ),
}  # fmt: skip
"""The name of a set -> where it is. A file of one of these names is read as a copy of that set."""
