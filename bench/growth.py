"""Measure how the cost of a training step grows with the number of completions, their length, the model and the vocabulary.

Every point is a process of its own, which makes one small step to warm up and one that is timed, so that its peak memory is its own.
"per work" is the exponent between neighbouring points, log(ratio of seconds) / log(ratio of multiplications, attention included): 1
is linear growth.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from typing import Any

SIZES = {
    "1M": {"hidden": 128, "layers": 4, "heads": 2, "kv_heads": 1, "ffn": 384},
    "10M": {"hidden": 384, "layers": 6, "heads": 6, "kv_heads": 3, "ffn": 1024},
    "100M": {"hidden": 768, "layers": 14, "heads": 12, "kv_heads": 6, "ffn": 2304},
}
MIDDLE = {"hidden": 256, "layers": 6, "heads": 4, "kv_heads": 2, "ffn": 768}
AXES: dict[str, list[dict[str, Any]]] = {
    "completions": [{"completions": n} for n in (64, 256, 1024, 4096)],
    "length": [{"length": t, "completions": 8} for t in (64, 256, 1024, 4096)],
    "model": [{"model": shape, "completions": 32} for shape in SIZES.values()],
    "vocabulary": [{"vocabulary": v} for v in (512, 15_000, 150_000)],
}


def measure(
    completions: int = 64, length: int = 64, model: dict[str, int] = MIDDLE, vocabulary: int = 512
) -> dict[str, float]:
    """Seconds of generation and of learning, and this process's peak memory in MB above that of the imports."""
    from common import question, qwen2, tokenizer

    from twofold.engines.native import NativeEngine
    from twofold.models.install import install
    from twofold.text.chat import Chat
    from twofold.trainer.learner import Learner, Loss
    from twofold.trainer.optim import Optim
    from twofold.types import Sample, Sampling

    chat = Chat(tokenizer())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weights = install(qwen2(**model, vocabulary=vocabulary))
    engine = NativeEngine(weights, precision="bfloat16")
    learner = Learner(weights, Optim(lr=1e-6), Loss(), steps=10, micro_tokens=4096, precision="bfloat16")
    found = {}
    for rows, most in ((16, 16), (completions, length)):
        prompts = [chat.prompt(question(32, i)) for i in range(rows // 8)]
        began = time.perf_counter()
        groups = engine.generate(prompts, Sampling(n=8, max_tokens=most))
        engine.rest()
        found["generation"] = time.perf_counter() - began
        samples = []
        for prompt, group in zip(prompts, groups, strict=True):
            for i, c in enumerate(group):
                zeros, t = [0.0] * len(prompt), len(c.tokens)
                samples.append(
                    Sample(
                        [*prompt, *c.tokens], [False] * len(prompt) + c.sampled, zeros + c.logprobs,
                        zeros + [i - 3.5] * t, zeros + [0.0] * t,
                    )
                )  # fmt: skip
        began = time.perf_counter()
        learner.update(samples)
        engine.load({})
        found["learning"] = time.perf_counter() - began
    found["memory"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    found["parameters"] = sum(p.numel() for p in weights.parameters())
    return found


def work(completions: int = 64, length: int = 64, model: dict[str, int] = MIDDLE, vocabulary: int = 512) -> float:
    """Multiplications of a step, attention included, up to a constant factor."""
    d, layers = model["hidden"], model["layers"]
    width = d // model["heads"] * (model["heads"] + 2 * model["kv_heads"])
    matrices = layers * (d * (width + d) + 3 * d * model["ffn"]) + d * vocabulary
    return completions * length * (matrices + layers * d * length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(AXES))
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        print(json.dumps(measure(**json.loads(args.point))))
        return
    from common import record

    for axis in args.only.split(","):
        before: tuple[dict[str, float], float] | None = None
        for point in AXES[axis]:
            done = subprocess.run(
                [sys.executable, __file__, "--point", json.dumps(point)], capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(f"{point}: {done.stderr[-1000:]}")
            found, mine = json.loads(done.stdout.splitlines()[-1]), work(**point)
            slopes = {}
            if before:
                grown = math.log(mine / before[1])
                slopes = {
                    f"{name} per work": math.log(found[name] / before[0][name]) / grown
                    for name in ("generation", "learning", "memory")
                }
            record("growth", axis=axis, **{k: v for k, v in point.items() if k != "model"}, **found, **slopes)
            before = found, mine


if __name__ == "__main__":
    main()
