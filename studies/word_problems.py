"""Make data files of word problems: MAWPS to train on, with worked solutions, and SVAMP and ASDiv to test on.

    python studies/word_problems.py path/to/files runs/words

reads ``mawps_*.jsonl``, ``svamp.jsonl`` and ``asdiv.jsonl`` as published, and writes ``start.jsonl`` (every third MAWPS problem
five times, among plain calculations, for a supervised start), ``train.jsonl`` (the other problems), ``svamp.jsonl`` and
``asdiv.jsonl``. A worked solution is the one or two equations between the problem's own numbers that give its answer. Left out
are MAWPS problems that stand in a test set or twice, that have no such equations, or whose numbers are not whole; and test
problems whose answer is not a whole number.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import permutations
from pathlib import Path
from typing import Any

from twofold.tasks.procedural import evaluate

CALCULATIONS, COPIES = 4205, 5
"""Of the supervised start: texts of four calculations each, and copies of each word problem. Without the calculations most wrong
answers of the start are sums that it cannot do."""


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def words(question: str) -> str:
    """Return what makes two problems the same: their words and numbers."""
    return " ".join(re.findall(r"[a-z0-9]+", question.lower()))


def steps(numbers: list[int]) -> Iterator[tuple[list[str], Fraction]]:
    """Yield (equations, result) of every one-step and two-step calculation with some of the numbers, each used once."""
    for a, b in permutations(range(len(numbers)), 2):
        for first, value in results(Fraction(numbers[a]), Fraction(numbers[b])):
            yield [first], value
    for a, b in permutations(range(len(numbers)), 2):
        for first, value in results(Fraction(numbers[a]), Fraction(numbers[b])):
            for c in set(range(len(numbers))) - {a, b}:
                for pair in ((value, Fraction(numbers[c])), (Fraction(numbers[c]), value)):
                    for second, last in results(*pair):
                        yield [first, second], last


def results(a: Fraction, b: Fraction) -> Iterator[tuple[str, Fraction]]:
    """Yield (equation, result) for each operation whose result is a whole number from 0 on."""
    for op in "+-*/":
        if op == "/" and not b:
            continue
        value, _ = evaluate(f"{a}{op}{b}")
        if value.denominator == 1 and value >= 0:
            yield f"{a}{op}{b}={value}", value


def solution(question: str, answer: int) -> str | None:
    """Return the shortest worked solution, or None if there is none or the problem has other than whole numbers."""
    if re.search(r"\d\.\d|\d/\d", question):
        return None
    numbers = [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*", question)]
    equations = next((lines for lines, value in steps(numbers) if value == answer), None)
    return None if equations is None else "\n".join([*equations, f"\\boxed{{{answer}}}"])


def whole(text: Any) -> int | None:
    """Return the whole number that an answer such as ``9 (apples)`` or 14.0 begins with, or None."""
    found = re.match(r"-?\d+(?:\.\d+)?", str(text))
    value = Fraction(found[0]) if found else None
    return int(value) if value is not None and value.denominator == 1 else None


def calculations(rng: random.Random) -> dict[str, str]:
    """Return a problem of four calculations with whole numbers, worked."""
    lines = [calculation(rng) for _ in range(4)]
    answer = lines[-1].partition("=")[2]
    asked = ", ".join(line.partition("=")[0] for line in lines)
    return {
        "question": f"Calculate {asked}.",
        "answer": answer,
        "solution": "\n".join([*lines, f"\\boxed{{{answer}}}"]),
    }


def calculation(rng: random.Random) -> str:
    op = rng.choice("++--*/")
    if op in "*/":
        a, b = rng.randint(2, 12), rng.randint(2, rng.choice([12, 12, 30]))
        if op == "/":
            return f"{a * b}/{a}={b}"
        a, b = rng.choice([(a, b), (b, a)])
        return f"{a}*{b}={a * b}"
    top = rng.choice([20, 100, 100, 100, 300])
    a, b = rng.randint(1, top), rng.randint(1, top)
    return f"{a}+{b}={a + b}" if op == "+" else f"{max(a, b)}-{min(a, b)}={abs(a - b)}"


def main(source: Path, out: Path) -> None:
    tests = {
        "svamp": [(f"{r['Body'].rstrip('. ')}. {r['Question']}", r["Answer"]) for r in rows(source / "svamp.jsonl")],
        "asdiv": [(f"{r['body']} {r['question']}", r["answer"]) for r in rows(source / "asdiv.jsonl")],
    }
    seen = {words(question) for problems in tests.values() for question, _ in problems}
    train: list[dict[str, str]] = []
    for path in sorted(source.glob("mawps_*.jsonl")):
        for row in rows(path):
            question, answer = re.sub(r" ([.,?])", r"\1", row["input"]), whole(row["target"])
            worked = None if answer is None or words(question) in seen else solution(question, answer)
            if worked is not None:
                seen.add(words(question))
                train.append({"question": question, "answer": str(answer), "solution": worked})
    rng = random.Random("drill")
    start = [*[calculations(rng) for _ in range(CALCULATIONS)], *train[::3] * COPIES]
    rng.shuffle(start)
    files = {"start": start, "train": [row for i, row in enumerate(train) if i % 3]}
    files |= {
        name: [{"question": q, "answer": str(whole(a))} for q, a in problems if whole(a) is not None]
        for name, problems in tests.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, problems in files.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems), encoding="utf-8")
        print(f"{out / name}.jsonl: {len(problems)} problems")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
