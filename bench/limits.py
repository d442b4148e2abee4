"""Measure how near the learner and the decoder are to the machine's own limits.

The limits are measured in the same run. The least time of a training step is that of its matrix products, one forward and two
backward. The least time of a decoding step is that of its products and of reading the cache once, at the bandwidth with which a
large block is read.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import torch
from common import SMALL, interleaved, question, qwen2, record, tokenizer, with_lengths

from twofold.engines.native import NativeEngine
from twofold.models.install import install
from twofold.text.chat import Chat
from twofold.trainer.learner import Learner, Loss
from twofold.trainer.optim import Optim
from twofold.types import Sample, Sampling

LENGTH, PROMPT, ROWS, MICRO = 96, 32, 64, 4096
MIDDLE = {"hidden": 512, "layers": 8, "heads": 8, "kv_heads": 2, "ffn": 1536}
"""25 million parameters. Products take a larger share of the time than in SMALL, as they do in larger models."""


def samples() -> list[Sample]:
    rng = random.Random(0)
    made = []
    for _ in range(ROWS // 8):
        prompt = [rng.randrange(64, 500) for _ in range(PROMPT)]
        for _ in range(8):
            text = [rng.randrange(64, 500) for _ in range(LENGTH)]
            zeros = [0.0] * PROMPT
            made.append(
                Sample(
                    prompt + text, [False] * PROMPT + [True] * LENGTH, zeros + [-6.2] * LENGTH,
                    zeros + [rng.choice([-1.0, 1.0])] * LENGTH, [0.0] * (PROMPT + LENGTH),
                )
            )  # fmt: skip
    return made


def products(model: Any, rows: int, dtype: torch.dtype, backward: bool) -> Any:
    """A function that runs every linear layer's matrix product for ``rows`` tokens, and with ``backward`` those of the gradients."""
    work = []
    for layer in (m for m in model.modules() if isinstance(m, torch.nn.Linear)):
        w = torch.randn(layer.weight.shape, dtype=dtype)
        work.append((w, torch.randn(rows, w.shape[1], dtype=dtype), torch.randn(rows, w.shape[0], dtype=dtype)))

    def run() -> None:
        for w, x, g in work:
            x @ w.T
            if backward:
                g @ w
                g.T @ x

    return run


def learner(shape: dict[str, int], precision: Any, repeats: int) -> None:
    model = install(qwen2(**shape))
    learned = Learner(
        model, Optim(lr=1e-6, clip=1e9), Loss(), steps=10**6, micro_tokens=MICRO, precision=precision, norms_every=10**6
    )
    batch = samples()
    laid = ROWS // 8 * PROMPT + ROWS * LENGTH
    floor = products(model, MICRO, getattr(torch, precision), backward=True)

    def update() -> None:
        learned.step = 1
        learned.update(batch)

    seconds = interleaved({"update": update, "floor": floor}, repeats)
    fraction = seconds["floor"] * laid / MICRO / seconds["update"]
    record("limits-learner", hidden=shape["hidden"], precision=precision, fraction=fraction)


def decoder(precision: Any, rows: int, repeats: int) -> None:
    chat, model = Chat(tokenizer()), install(with_lengths(qwen2(**SMALL), LENGTH, LENGTH))
    engine = NativeEngine(model, precision=precision)
    prompts = [chat.prompt(question(PROMPT, i)) for i in range(rows // 8)]
    floor = products(model, rows, getattr(torch, precision), backward=False)
    config = model.config
    width = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    cache = 2 * rows * (PROMPT + LENGTH // 2) * width * config.num_hidden_layers
    block = torch.ones(64 * 2**20)

    def generate() -> None:
        engine.load({})
        engine.generate(prompts, Sampling(n=8, max_tokens=LENGTH, stop=chat.stop))

    seconds = interleaved({"decode": generate, "compute": floor, "read": lambda: block.sum()}, repeats)
    reading = cache * 4 / (block.numel() * 4 / seconds["read"])  # the cache is fp32 on CPUs
    record(
        "limits-decode", precision=precision, rows=rows,
        fraction=LENGTH * (seconds["compute"] + reading) / seconds["decode"],
        step_ms=seconds["decode"] / LENGTH * 1e3, compute_ms=seconds["compute"] * 1e3, reading_ms=reading * 1e3,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    for precision in ("float32", "bfloat16"):
        learner(SMALL, precision, args.repeats)
        learner(MIDDLE, precision, args.repeats)
        decoder(precision, 256, args.repeats)


if __name__ == "__main__":
    main()
