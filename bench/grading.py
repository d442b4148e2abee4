"""Measure the time that grading adds to sampling, when answers are graded as their solutions end and when all are graded at the end.

Every answer is a formula that math-verify has to decide. Where sampling keeps all cores busy, grading beside it gains nothing; where
it leaves some free (fewer threads than cores, or a GPU), grading beside it costs little.
"""

from __future__ import annotations

import argparse

from common import SMALL, interleaved, question, qwen2, record, tokenizer, with_lengths

from twofold.compute.rollout import graded, rollouts
from twofold.engines.native import NativeEngine
from twofold.models.install import install
from twofold.tasks.grading import grade
from twofold.text.chat import Chat
from twofold.types import Grade, Problem, Sampling

PROMPT = 32


class Free:
    """A task whose grading costs nothing."""

    name = "free"

    def problem(self, split: str, i: int) -> Problem:
        return Problem(str(i), question(PROMPT, i), "")

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        return None, Grade(0.0, "wrong")


class Formulas(Free):
    """A task whose answers are formulas of the problem's number and the text's length, right for even lengths."""

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        k, n = int(problem.id) + 2, len(text)
        gold = rf"\frac{{(x+{k})(x-{n})}}{{\sqrt{{{k}}}}}"
        answer = rf"\frac{{x^2+({k}-{n})x-{k * n + n % 2}}}{{\sqrt{{{k}}}}}"
        return answer, grade(gold, rf"\boxed{{{answer}}}")


def compare(prompts: int, n: int, repeats: int) -> None:
    chat = Chat(tokenizer())
    engine = NativeEngine(install(with_lengths(qwen2(**SMALL), 16, 96)), precision="bfloat16")
    sampling = Sampling(n=n, max_tokens=96, stop=chat.stop)
    problems = [Free().problem("train", i) for i in range(prompts)]
    texts = [chat.prompt(p.question) for p in problems]
    labels: dict[str, list[str]] = {}

    def sample() -> None:
        engine.load({})
        rollouts(engine, chat, Free(), problems, sampling)

    def beside() -> None:
        engine.load({})
        groups = rollouts(engine, chat, Formulas(), problems, sampling)
        labels["beside"] = [r.grade.label for group in groups for r in group]

    def after() -> None:
        engine.load({})
        drawn = zip(problems, texts, engine.generate(texts, sampling), strict=True)
        everyone = graded(chat, Formulas(), [(p, text, c) for p, text, group in drawn for c in group])
        labels["after"] = [r.grade.label for r in everyone]

    seconds = interleaved({"sample": sample, "beside": beside, "after": after}, repeats)
    if labels["beside"] != labels["after"]:
        raise RuntimeError("grading beside sampling gave other labels")
    record(
        "grading", prompts=prompts, n=n, beside=seconds["beside"] / seconds["sample"],
        after=seconds["after"] / seconds["sample"], sample_seconds=seconds["sample"],
        right=labels["beside"].count("correct") / len(labels["beside"]),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    compare(32, 8, args.repeats)


if __name__ == "__main__":
    main()
