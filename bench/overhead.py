"""Measure the cost of verification in training: a step of RL^V over the same step without it. (At test time: ``verify.py``.)

``separate`` is what a library without a joint batch does: the verification samples are a second batch, so every solution goes
through the model twice.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from against_trl import Odd
from common import SMALL, interleaved, qwen2, record, tokenizer, with_lengths

from twofold.engines.native import NativeEngine
from twofold.models.install import install
from twofold.recipes.rlv import RLV, Recipe
from twofold.text.chat import Chat
from twofold.trainer.learner import Learner, Loss
from twofold.trainer.optim import Optim
from twofold.types import Sample, Sampling


def training(length: int, prompts: int, n: int, repeats: int) -> None:
    chat, model = Chat(tokenizer()), install(with_lengths(qwen2(**SMALL), length, length))
    engine, task = NativeEngine(model), Odd(32)
    problems = [task.problem("train", i) for i in range(prompts)]
    optim = Optim(lr=1e-6, clip=1e9)
    learner = Learner(
        model, optim, Loss(), steps=10**6, norms_every=10**6, micro_tokens=4096
    )  # a run's default on a CPU
    sampling = Sampling(max_tokens=length)

    def step(verify: Any, separate: bool = False) -> None:
        # score_every=0: the verifier's measurements for the log are not part of the method
        recipe = Recipe(RLV(verify=verify, rollouts=n, score_every=0), task, chat, sampling)
        samples = recipe.collect(engine, problems, 0).samples["policy"]
        engine.rest()
        if separate:
            samples = [x for s in samples for x in (alone(s), verdict(s))]
        learner.step = 1  # so that the norms of the streams are not measured
        learner.update(samples)
        engine.load({})

    def alone(s: Sample) -> Sample:
        end = len(s.sampled) - s.sampled[::-1].index(True)
        return Sample(*(x[:end] for x in (s.tokens, s.sampled, s.logprobs, s.advantages, s.targets)))

    def verdict(s: Sample) -> Sample:
        return replace(s, sampled=[False] * len(s.tokens), advantages=[0.0] * len(s.tokens))

    seconds = interleaved(
        {
            "rl": lambda: step("none"),
            "rlv": lambda: step("generative"),
            "separate": lambda: step("generative", separate=True),
        },
        repeats,
    )
    record(
        "overhead-train", tokens=length, prompts=prompts, n=n,
        rlv=seconds["rlv"] / seconds["rl"], separate=seconds["separate"] / seconds["rl"], rl_seconds=seconds["rl"],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    for length, prompts in ((96, 8), (256, 4), (512, 2)):
        training(length, prompts, 8, args.repeats)


if __name__ == "__main__":
    main()
