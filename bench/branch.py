"""Compare two ways to continue from prefixes of finished rollouts: on the kept KV cache, and with each prefix prefilled again.

``vineppo`` is what RL^V's VinePPO does: 9 continuations from every step boundary. Both sides draw the same number of tokens.
(``probe.py`` does the same for MRT's forced answers.)
"""

from __future__ import annotations

import argparse

from common import SMALL, interleaved, question, qwen2, record, tokenizer, with_lengths

from twofold.engines.native import NativeEngine
from twofold.models.install import install
from twofold.text.chat import Chat
from twofold.types import Sampling


def branch(name: str, steps: int, n: int, k: int, more: int, prompt_tokens: int, length: int, repeats: int) -> None:
    chat, model = Chat(tokenizer()), install(with_lengths(qwen2(**SMALL), length, length))
    engine = NativeEngine(model)
    prompts = [chat.prompt(question(prompt_tokens, i)) for i in range(2)]
    tokens: dict[str, int] = {}
    groups = engine.generate(prompts, Sampling(n=n, max_tokens=length, stop=chat.stop))
    kept = engine._kept
    prefixes = [
        [*p, *c.tokens[: i * length // steps]]
        for p, g in zip(prompts, groups, strict=True)
        for c in g
        for i in range(steps)
    ]

    def side(reuse: bool) -> None:
        engine._kept = list(kept) if reuse else []
        before = engine.usage.computed
        if reuse:
            engine.generate(prefixes, Sampling(n=k, max_tokens=more, stop=chat.stop, seed=1))
        else:  # every continuation prefills its prefix
            engine.generate([p for p in prefixes for _ in range(k)], Sampling(n=1, max_tokens=more, stop=chat.stop))
        tokens["kept" if reuse else "again"] = engine.usage.computed - before

    seconds = interleaved({"kept": lambda: side(True), "again": lambda: side(False)}, repeats)
    record(
        "branch", what=name, prefixes=len(prefixes), k=k, tokens=tokens["again"] / tokens["kept"],
        seconds=seconds["again"] / seconds["kept"], kept_seconds=seconds["kept"],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    branch("vineppo", steps=6, n=2, k=9, more=48, prompt_tokens=256, length=96, repeats=args.repeats)


if __name__ == "__main__":
    main()
