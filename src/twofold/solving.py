"""Solve the problems of the command line, or of a file, and print the answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from twofold import run
from twofold.compute.aggregate import RSA, AggLM
from twofold.compute.plan import Plan
from twofold.compute.rules import rule_named
from twofold.compute.solve import Solution
from twofold.tasks.reading import parse_line
from twofold.tasks.rows import clean
from twofold.terminal import visible

AT_ONCE = 16
"""Number of problems of a file that share engine calls. Their answers are printed when all of them are done."""


def questions(path: Path) -> list[str]:
    """Return the problems of a file, one per line: text, or (``.jsonl``) an object with a question, problem or prompt."""
    problems = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            problems.append(clean("problem", _question(line) if path.suffix == ".jsonl" else line.decode("utf-8")))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    if not problems:
        raise ValueError(f"{path}: no problems in this file")
    return problems


def _question(line: bytes) -> str:
    row = parse_line(line)
    if isinstance(row, str):
        raise ValueError(row)
    found = next((row[k] for k in ("question", "problem", "prompt") if isinstance(row.get(k), str)), None)
    if found is None:
        raise ValueError("an object with a text question, problem or prompt is needed")
    return found


def solve_and_print(model: run.Model, problems: Sequence[str], plan: Plan, abstain: float, as_json: bool) -> None:
    """Solve the problems and print the answers as text or as JSON lines; below the confidence ``abstain`` there is no answer.

    After the text, if an answer was withheld, comes what the model was made for.
    """
    withheld = False
    for i in range(0, len(problems), AT_ONCE):
        batch = problems[i : i + AT_ONCE]
        for problem, solution in zip(batch, run.solve_many(model, batch, plan), strict=True):
            sure = solution.answer is not None and solution.confidence >= abstain
            withheld |= not sure
            if as_json:
                found = asdict(solution) | {"samples": solution.samples, "abstained": not sure, "plan": str(plan)}
                print(json.dumps({"problem": problem} | found | ({} if sure else {"answer": None})), flush=True)
            else:
                _print_solution(solution, plan, sure, problem if len(problems) > 1 else None)
    if withheld and not as_json and (known := run.what_it_knows(model.name)):
        print(visible(f"model  {known}"))


def _print_solution(solution: Solution, plan: Plan, sure: bool, problem: str | None) -> None:
    """Print the answer, its confidence, the votes and the cost, after the solution's text or (one of many) its problem."""
    print(visible(solution.text.strip() if problem is None else problem), end="\n\n" if problem is None else "\n")
    probabilities = (
        rule_named(plan.rule).probabilities is not None
    )  # else the numbers are votes, shown as shares of all
    total = 1.0 if probabilities else sum(solution.votes.values()) or 1.0
    votes = "  ".join(f"{visible(answer)}: {weight / total:.0%}" for answer, weight in list(solution.votes.items())[:5])
    cost = solution.cost
    guess = "not sure" if solution.answer is None else f"not sure (best guess: {visible(solution.answer)})"
    print(f"answer {visible(solution.answer) if sure else guess}  confidence {solution.confidence:.0%}")
    print(f"{'posterior' if probabilities else 'votes'}  {votes or 'none: no sample gave an answer'}")
    dropped = f" ({cost.discarded} of them dropped)" if cost.discarded else ""
    made = f"{solution.samples} sample{'' if solution.samples == 1 else 's'}"
    read = "to judge or aggregate" if isinstance(plan.make, RSA | AggLM) else "to judge"
    print(
        f"cost   {made}, {cost.generated} tokens generated{dropped}, {cost.verified} {read}, {cost.seconds:.1f} s",
        end="\n" if problem is None else "\n\n",
    )
