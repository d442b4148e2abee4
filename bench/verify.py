"""Measure the cost of a verdict at test time: generation with verdicts over generation alone.

The question of 64 tokens is asked on the KV cache of the solution (96 or 512 tokens). The baseline ``again`` reads the whole
solution again.
"""

from __future__ import annotations

import argparse

from common import SMALL, interleaved, question, qwen2, record, tokenizer, with_lengths

from twofold.engines.native import NativeEngine
from twofold.models.install import install
from twofold.text.chat import Chat
from twofold.types import Sampling


def compare(prompts: int, n: int, length: int, asked: int, repeats: int) -> None:
    chat = Chat(tokenizer())
    engine = NativeEngine(install(with_lengths(qwen2(**SMALL), length, length)), precision="bfloat16")
    texts = [chat.prompt(question(32, i)) for i in range(prompts)]
    follow = [64 + i % 64 for i in range(asked)]
    sampling = Sampling(n=n, max_tokens=length)

    def generate(verify: bool, again: bool = False) -> None:
        engine.load({})
        groups = engine.generate(texts, sampling)
        if again:
            engine.load({})
        if verify:
            whole = [[*p, *c.tokens, *follow] for p, group in zip(texts, groups, strict=True) for c in group]
            engine.logprobs(whole, [[7]] * len(whole))

    sides = {
        "generate": lambda: generate(False),
        "verify": lambda: generate(True),
        "again": lambda: generate(True, again=True),
    }
    seconds = interleaved(sides, repeats)
    record(
        "verify", prompts=prompts, n=n, tokens=length, question=asked,
        ratio=seconds["verify"] / seconds["generate"], reading_again=seconds["again"] / seconds["generate"],
        generate_seconds=seconds["generate"],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    for prompts, n, length in ((2, 16, 512), (4, 16, 96)):
        compare(prompts, n, length, 64, args.repeats)


if __name__ == "__main__":
    main()
