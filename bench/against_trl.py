"""Compare a training step with TRL's: the same weights, prompts and reward; tokens per second of whole steps.

    python bench/against_trl.py --trl PATH/TO/TRL/ENV/bin/python [--only a] [--repeats 5] [--tune]

TRL has an environment of its own (``python -m venv``, then ``pip install trl torch``). The two sides take turns, with the
settings that were best on two CPU cores. ``--tune`` looks for them again, which takes an hour: TRL's micro-batch size, bfloat16 or
not, padded generation or continuous batching, and twofold's ``micro_tokens`` and precision.

Before that, both sides compute the loss of a stored batch and its gradient in fp32. TRL's RLOO forms one ratio per text where ours
has one per token; on policy both have the same gradient, up to the length that twofold divides by.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from common import LARGE, SMALL, Worker, question, qwen2, record, timed, tokenizer, with_lengths

from twofold.engines.native import NativeEngine
from twofold.maths.credit import grpo, rloo
from twofold.models.io import load_model
from twofold.recipes.rlv import RLV, Recipe
from twofold.runtime import keep_memory
from twofold.text.chat import Chat
from twofold.trainer.learner import Learner, Loss
from twofold.trainer.optim import Optim
from twofold.types import Grade, Problem, Sample, Sampling

SCRIPT = "trl_worker.py"
CASES: dict[str, dict[str, int]] = {
    "a": {"prompts": 32, "n": 8, "prompt_tokens": 32, "shortest": 96, "longest": 96},
    "b": {"prompts": 32, "n": 8, "prompt_tokens": 32, "shortest": 16, "longest": 96},
    "c": {"prompts": 8, "n": 32, "prompt_tokens": 256, "shortest": 96, "longest": 96},
    "g": {"prompts": 32, "n": 16, "prompt_tokens": 64, "shortest": 256, "longest": 256},
}
"""Case g is for a GPU: the model has Qwen2.5-0.5B's shape."""


@dataclass
class Odd:
    """A task with prompts of ``prompt_tokens`` tokens. Every other solution is graded right, whatever it says."""

    prompt_tokens: int
    name: str = "odd"
    graded: Iterator[int] = field(default_factory=count)

    def problem(self, split: str, i: int) -> Problem:
        return Problem(str(i), question(self.prompt_tokens, i), "")

    def grade(self, problem: Problem, text: str) -> tuple[str | None, Grade]:
        reward = float(next(self.graded) % 2)
        return str(reward), Grade(reward, "correct" if reward else "wrong")


class Ours:
    """twofold's side: a run whose phases are timed."""

    def __init__(
        self,
        model: Path,
        prompt_tokens: int,
        prompts: int,
        n: int,
        max_tokens: int,
        micro_tokens: int,
        precision: Any,
        algorithm: str,
    ) -> None:
        weights, words = load_model(model)
        chat = Chat(words)
        self.engine = NativeEngine(weights, precision=precision)
        task = Odd(prompt_tokens)
        self.problems = [task.problem("train", i) for i in range(prompts)]
        estimator: Any = {"grpo": "dr_grpo", "rloo": "rloo"}[algorithm]
        self.recipe = Recipe(
            RLV(estimator=estimator, verify="none", rollouts=n), task, chat, Sampling(max_tokens=max_tokens)
        )
        self.learner = Learner(
            weights, Optim(lr=1e-6, warmup=0), Loss(), steps=10**6, micro_tokens=micro_tokens, precision=precision
        )
        self.spent: dict[str, float] = {}
        timed(self.engine, "generate", self.spent, "generation")
        timed(task, "grade", self.spent, "grading")
        timed(self.learner, "_losses", self.spent, "loss")
        timed(self.learner.optimizer, "step", self.spent, "optimizer")
        self.steps = 0

    def step(self) -> dict[str, float]:
        self.spent.clear()
        began = time.perf_counter()
        samples = self.recipe.collect(self.engine, self.problems, self.steps).samples
        self.engine.rest()
        collected = time.perf_counter()
        self.learner.update(samples["policy"])
        self.engine.load({})
        seconds = time.perf_counter() - began
        self.steps += 1
        update = time.perf_counter() - collected
        self.spent["backward"] = update - self.spent["loss"] - self.spent["optimizer"]  # and packing
        return {"seconds": seconds, "tokens": sum(sum(s.sampled) for s in samples["policy"]), **self.spent}


def rate(report: dict[str, float]) -> float:
    return report["tokens"] / report["seconds"]


def best_of_ours(trials: int, **fixed: Any) -> dict[str, Any]:
    found: list[tuple[float, dict[str, Any]]] = []
    for precision in ("float32", "bfloat16"):
        for micro in (2048, 8192, 16384):
            side = Ours(micro_tokens=micro, precision=precision, **fixed)
            side.step()
            speed = max(rate(side.step()) for _ in range(trials))
            print(f"  twofold {precision} micro_tokens {micro}: {speed:.0f} tokens/s", file=sys.stderr)
            found.append((speed, {"precision": precision, "micro_tokens": micro}))
    return max(found, key=lambda f: f[0])[1]


def best_of_theirs(trials: int, python: str, **fixed: Any) -> dict[str, Any]:
    """Search TRL's settings one after the other: precision and generation at one micro-batch size, then the size."""
    tried: dict[tuple[bool, bool, int], float] = {}

    def speed(bf16: bool, paged: bool, micro: int) -> float:
        key = (bf16, paged, micro)
        if key not in tried:
            side = Worker(python, SCRIPT, bf16=bf16, paged=paged, micro=micro, **fixed)
            try:
                first = rate(side.step())
                hopeless = 3 * first < max(tried.values(), default=0.0)  # a first step is slow, but not that slow
                tried[key] = first if hopeless else max(rate(side.step()) for _ in range(trials))
                print(f"  TRL bf16 {bf16} paged {paged} micro {micro}: {tried[key]:.0f} tokens/s", file=sys.stderr)
            except RuntimeError as error:
                tried[key] = 0.0
                print(f"  TRL bf16 {bf16} paged {paged} micro {micro}: {error}", file=sys.stderr)
            side.close()
        return tried[key]

    for bf16 in (False, True):
        for paged in (False, True):
            speed(bf16, paged, 32)
    bf16, paged, _ = max(tried, key=lambda k: tried[k])
    for micro in (8, 16, 64):
        speed(bf16, paged, micro)
    bf16, paged, micro = max(tried, key=lambda k: tried[k])
    return {"bf16": bf16, "paged": paged, "micro": micro}


def same_batch(python: str, where: Path, algorithm: str) -> None:
    """Check that both sides compute the same loss and gradient of one ragged batch of random tokens, in fp32. For GRPO the
    behaviour log-probs are random, for RLOO they are the policy's own. Raises RuntimeError if they differ."""
    rng = random.Random(0)
    lengths = [rng.randint(16, 96) for _ in range(32)]
    texts = [[rng.randrange(64, 500) for _ in range(size)] for size in lengths]
    prompts = [p for _ in range(4) for p in [[rng.randrange(64, 500) for _ in range(32)]] * 8]
    behaviour = [[rng.uniform(-6.6, -5.9) for _ in range(size)] for size in lengths]
    rewards = [[float(rng.random() < 0.5) for _ in range(8)] for _ in range(4)]
    advantages = [a for r in rewards for a in (rloo(r) if algorithm == "rloo" else grpo(r, std=False))]
    model, _ = load_model(where / "random")
    loss = Loss()
    if algorithm == "rloo":
        behaviour = NativeEngine(model).logprobs(prompts, texts)
        loss = Loss(normalise="constant", constant=1)
    pad, longest = tokenizer().pad_token_id, max(lengths)

    def padded(rows: list[list[Any]], value: Any) -> list[list[Any]]:
        return [row + [value] * (longest - len(row)) for row in rows]

    batch = {
        "prompt_ids": prompts,
        "prompt_mask": [[1] * 32] * 32,
        "completion_ids": padded(texts, pad),
        "completion_mask": padded([[1] * size for size in lengths], 0),
        "advantages": advantages,
        "old_per_token_logps": padded(behaviour, 0.0),
        "old_logps": [sum(b) for b in behaviour],
        "num_items_in_batch": sum(lengths),
    }
    (where / "batch.json").write_text(json.dumps(batch))
    fixed = {"model": str(where / "random"), "out": str(where / "out"), "questions": ["1"] * 4}
    worker = Worker(
        python, SCRIPT, algorithm=algorithm, bf16=False, paged=False, micro=32, batch=32, n=8, max_tokens=96, **fixed
    )
    theirs = worker.ask(str(where / "batch.json"))
    worker.close()
    samples = [
        Sample(
            [*p, *c], [False] * 32 + [True] * len(c), [0.0] * 32 + b, [0.0] * 32 + [a] * len(c), [0.0] * (32 + len(c))
        )
        for p, c, b, a in zip(prompts, texts, behaviour, advantages, strict=True)
    ]
    ours = Learner(model, Optim(lr=0.0), loss, steps=1).update(samples)
    found = {"gradient": abs(ours["grad_norm"] / theirs["gradient"] - 1)}
    if algorithm == "grpo":
        found["loss"] = abs(ours["loss"] - theirs["loss"])
    record("trl-same", algorithm=algorithm, **{f"{name} differs by": value for name, value in found.items()})
    if found.get("loss", 0.0) > 1e-5 or found["gradient"] > 1e-4:  # a sum of 96 log-probs has this rounding
        raise RuntimeError(f"{algorithm}: twofold and TRL do not compute the same: {ours}, {theirs}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", required=True, help="the python of an environment with TRL")
    parser.add_argument("--only", default="abc", help="which cases; g is for a GPU")
    parser.add_argument("--algorithms", default="grpo,rloo")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16", help="of both sides")
    parser.add_argument("--tune", action="store_true", help="first search the best settings of both sides, with GRPO")
    parser.add_argument("--trials", type=int, default=2, help="steps that are timed for each setting tried")
    args = parser.parse_args()
    keep_memory()  # as the command line does for its users
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        made = {"random": qwen2(**SMALL), "equal": with_lengths(qwen2(**SMALL), 96, 96)}
        made["ragged"] = with_lengths(qwen2(**SMALL), 16, 96)
        if "g" in args.only:
            made["large"] = with_lengths(qwen2(**LARGE), 256, 256)
        for name, model in made.items():
            model.save_pretrained(where / name)
            tokenizer().save_pretrained(where / name)
        for algorithm in args.algorithms.split(","):
            same_batch(args.trl, where, algorithm)
        for case in args.only:
            compare(args, where, case)


def compare(args: argparse.Namespace, where: Path, case: str) -> None:
    sizes = CASES[case]
    prompts, task = sizes["prompts"], Odd(sizes["prompt_tokens"])
    model = where / ("large" if case == "g" else "ragged" if sizes["shortest"] < sizes["longest"] else "equal")
    common = {"n": sizes["n"], "max_tokens": sizes["longest"]}
    ours = common | {"model": model, "prompt_tokens": sizes["prompt_tokens"], "prompts": prompts}
    theirs = common | {
        "model": str(model), "out": str(where / "out"), "batch": prompts * sizes["n"],
        "questions": [task.problem("train", i).question for i in range(prompts)],
    }  # fmt: skip
    print(f"case {case}", file=sys.stderr)
    how: dict[str, Any] = {"precision": args.precision, "micro_tokens": 8192}
    their_how: dict[str, Any] = {"bf16": args.precision == "bfloat16", "paged": False, "micro": 32}
    if args.tune:
        how = best_of_ours(args.trials, algorithm="grpo", **ours)
        their_how = best_of_theirs(args.trials, args.trl, algorithm="grpo", **theirs)
    for algorithm in args.algorithms.split(","):
        take_turns(
            case, algorithm, args.repeats, Ours(algorithm=algorithm, **ours, **how), how,
            Worker(args.trl, SCRIPT, algorithm=algorithm, **theirs, **their_how), their_how,
        )  # fmt: skip


def take_turns(
    case: str, algorithm: str, repeats: int, ours: Ours, how: dict[str, Any], theirs: Worker, their_how: dict[str, Any]
) -> None:
    ours.step()
    theirs.step()
    reports: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for _ in range(repeats):
        reports["ours"].append(ours.step())
        reports["theirs"].append(theirs.step())
    theirs.close()

    def median(side: str, name: str) -> float:
        return statistics.median(r.get(name, 0.0) for r in reports[side])

    speeds = {side: statistics.median(map(rate, rs)) for side, rs in reports.items()}
    parts = ("seconds", "tokens", "generation", "grading", "loss", "backward", "optimizer")
    record(
        "trl", case=case, algorithm=algorithm, ratio=speeds["ours"] / speeds["theirs"],
        ours=how | {p: round(median("ours", p), 3) for p in parts},
        theirs=their_how | {p: round(median("theirs", p), 3) for p in parts},
    )  # fmt: skip


if __name__ == "__main__":
    main()
