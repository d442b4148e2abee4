"""Measure a CUDA device at Qwen2.5's shapes (random weights, bfloat16): decoding, learning and verification against their limits.

    python bench/gpu.py [--shapes 0.5B 1.5B] [--batches 1 16 512] [--prompts 64] [--completions 16] [--length 512] [--only learn]

* same: the tokens and log-probs of the static decode path against those of the ragged one;
* gradient: the error of the learner's gradient of a small model against a CPU's in float32;
* decode, for batches of 1, 16 and 512 samples: milliseconds of a token step, without prefill but with the capture of CUDA
  graphs; the step's limit as a share of that (the larger of two times: to read the weights and the cache once, and to compute
  the products, at the speeds measured in the same run); and the speed over that of ``transformers.generate`` with the same
  weights;
* learner: model FLOPs (2 P forward and 4 P backward per token, and attention's products) per second over those of one large
  matrix product, with and without gradient checkpointing; the seconds of RL^V's update over one without verification, and the
  same of whole steps. ``counts.py`` predicts an update's seconds without a device;
* peak memory of each. TRL's step is in ``against_trl.py``, which needs an environment of its own.

Without a device it runs on the CPU, which tests the program and measures nothing: use ``--shapes tiny``.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from against_trl import Odd
from common import LARGE, interleaved, question, qwen2, record, tokenizer, with_lengths
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from twofold.engines.native import NativeEngine
from twofold.models.install import install
from twofold.recipes.rlv import RLV, Recipe
from twofold.text.chat import Chat
from twofold.trainer.learner import Learner, Loss
from twofold.trainer.optim import Optim
from twofold.types import Sample, Sampling

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 128},
    "0.5B": LARGE,
    "1.5B": {
        "hidden": 1536,
        "layers": 28,
        "heads": 12,
        "kv_heads": 2,
        "ffn": 8960,
        "vocabulary": 151_936,
        "tied": True,
    },
}
PROMPT = 64
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def seconds(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each side, with the device's work included."""

    def waited(side: Callable[[], Any]) -> None:
        side()
        if CUDA:
            torch.cuda.synchronize()

    return interleaved({name: partial(waited, side) for name, side in sides.items()}, repeats)


def peak(side: Callable[[], Any]) -> float:
    """Peak memory in GiB; NaN without a device."""
    if not CUDA:
        return float("nan")
    torch.cuda.reset_peak_memory_stats()
    side()
    return torch.cuda.max_memory_allocated() / 2**30


def model_of(shape: str, length: int) -> Any:
    return with_lengths(random_model(shape), length, length)


def random_model(shape: str) -> Any:
    with torch.device(DEVICE):
        return qwen2(**SHAPES[shape])


def work(side: Callable[[], Any]) -> dict[str, float]:
    """Count what a call asks of the device: kernels, copies, waits of the host, and the device's busy milliseconds."""
    side()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
    with profile(activities=activities) as profiler:
        side()
    events = profiler.key_averages()
    device = [e for e in events if e.device_type == DeviceType.CUDA]
    copies = sum(e.count for e in device if e.key.startswith(("Memcpy", "Memset")))
    return {
        "kernels": sum(e.count for e in device) - copies,
        "copies": copies,
        "launches": sum(e.count for e in events if "Launch" in e.key),
        "waits": sum(e.count for e in events if e.key.endswith("Synchronize")),
        "busy_ms": sum(e.self_device_time_total for e in device) / 1e3,
    }


def same(shape: str, length: int) -> None:
    """Compare the static path with the ragged one in both precisions: the share of equal tokens, and the largest gap of the
    log-probs of tokens up to the first that differs."""
    chat, model = Chat(tokenizer()), install(random_model(shape))
    prompts = [chat.prompt(question(PROMPT - i, i)) for i in range(4)]
    for precision in ("float32", "bfloat16"):
        found = []
        for static in (True, False):
            engine = NativeEngine(model, precision=precision)
            engine.static = static
            groups = engine.generate(prompts, Sampling(n=16, max_tokens=length, stop=tuple(range(0, 10**6, 50))))
            found.append([c for group in groups for c in group])
        pairs = [
            list(zip(a.tokens, b.tokens, a.logprobs, b.logprobs, strict=False)) for a, b in zip(*found, strict=True)
        ]
        alike = [[*itertools.takewhile(lambda x: x[0] == x[1], pair)] for pair in pairs]
        record(
            "gpu-same", shape=shape, precision=precision, tokens=sum(map(len, pairs)),
            equal=sum(map(len, alike)) / sum(map(len, pairs)), gap=max(abs(a - b) for x in alike for _, _, a, b in x),
        )  # fmt: skip


def same_gradient() -> None:
    """Compare the learner's gradient of a small model, with verdicts and ragged samples, with that of a CPU in float32."""
    from counts import samples  # which imports from here

    sizes = {**SHAPES["tiny"], "hidden": 192, "vocabulary": 1000}
    learners = {
        (device, precision): Learner(install(qwen2(**sizes).to(device)), Optim(), Loss(), steps=1, precision=precision)
        for device, precision in (("cpu", "float32"), (DEVICE, "float32"), (DEVICE, "bfloat16"))
    }
    given = [sample for length in (70, 61, 40) for sample in samples(1, 4, length, verify=True)]
    found = []
    for learner in learners.values():
        learner.accumulate(given)
        found.append(torch.cat([p.grad.flatten().cpu() for p in learner.model.parameters() if p.grad is not None]))
    for (_, precision), gradient in zip(list(learners)[1:], found[1:], strict=True):
        record("gpu-gradient", precision=precision, error=float((gradient - found[0]).norm() / found[0].norm()))


def decode(shape: str, batches: list[int], most: int, length: int, repeats: int) -> None:
    """Measure each batch: so many samples, of as few prompts as possible with at most ``most`` samples each."""
    chat, model = Chat(tokenizer()), install(model_of(shape, length))
    engine, theirs = NativeEngine(model, precision="bfloat16"), model_of(shape, length).to(torch.bfloat16)
    block = torch.ones(2**28 if CUDA else 2**22, device=DEVICE)
    square = torch.randn(8192 if CUDA else 512, 8192 if CUDA else 512, device=DEVICE, dtype=torch.bfloat16)
    config, parameters = model.config, sum(p.numel() for p in model.parameters())
    token = 2 * 2 * config.num_key_value_heads * config.hidden_size // config.num_attention_heads  # bytes in a layer
    for batch in batches:
        n = min(batch, most)
        prompts = [chat.prompt(question(PROMPT, i)) for i in range(batch // n)]
        ids = torch.tensor([p for p in prompts for _ in range(n)], device=DEVICE)

        def ours(tokens: int, prompts: list[list[int]] = prompts, n: int = n) -> None:
            engine.load({})
            engine.generate(prompts, Sampling(n=n, max_tokens=tokens, stop=chat.stop))

        @torch.inference_mode()
        def generate(ids: torch.Tensor = ids) -> None:
            theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=length)

        sides = {"ours": partial(ours, length), "few": partial(ours, 2), "theirs": generate}
        took = seconds(sides | {"read": block.sum, "product": lambda: square @ square}, repeats)
        cache = token * config.num_hidden_layers * (len(prompts) * PROMPT + batch * length / 2)
        reading = (2 * parameters + cache) / (block.numel() * 4) * took["read"]
        computing = 2 * parameters * batch / (2 * len(square) ** 3) * took["product"]
        step = (took["ours"] - took["few"]) / (length - 2)
        more, less = (work(partial(ours, tokens)) for tokens in (66, 34))  # two looks apart, and no capture
        per_step = {f"{name}_per_step": (more[name] - less[name]) / 32 for name in more}
        record(
            "gpu-decode", shape=shape, batch=batch, ms_per_step=1e3 * step, limit_ms=1e3 * max(reading, computing),
            fraction=max(reading, computing) / step, ratio=took["theirs"] / took["ours"],
            tokens_per_s=batch * length / took["ours"], prefill_ms=1e3 * took["few"], peak_gib=peak(sides["ours"]),
            **per_step,
        )  # fmt: skip


def learn(shape: str, groups: int, n: int, length: int, repeats: int) -> None:
    chat, model = Chat(tokenizer()), install(model_of(shape, length))
    engine, task = NativeEngine(model, precision="bfloat16"), Odd(PROMPT)
    optim, steps = Optim(lr=1e-6, clip=1e9), 10**6
    options: dict[str, Any] = {"steps": steps, "precision": "bfloat16", "norms_every": steps}
    options["micro_tokens"] = 16384 if CUDA else 4096  # a run's default
    learner = Learner(model, optim, Loss(), **options)
    problems = [task.problem("train", i) for i in range(groups)]

    def collect(verify: Literal["generative", "none"]) -> list[Sample]:
        engine.load({})
        recipe = Recipe(RLV(verify=verify, rollouts=n, score_every=0), task, chat, Sampling(max_tokens=length))
        samples = recipe.collect(engine, problems, 0).samples["policy"]
        engine.rest()
        return samples

    def update(samples: list[Sample], checkpointing: bool = False) -> None:
        learner.checkpointing = checkpointing
        learner.step = 1  # a step that does not measure the streams' norms
        learner.update(samples)

    plain, verified = collect("none"), collect("generative")
    square = torch.randn(8192 if CUDA else 512, 8192 if CUDA else 512, device=DEVICE, dtype=torch.bfloat16)
    began = time.perf_counter()
    update(plain)
    compiling = time.perf_counter() - began
    took = seconds(
        {
            "update": lambda: update(plain),
            "verified": lambda: update(verified),
            "recomputed": lambda: update(plain, checkpointing=True),
            "product": lambda: square @ square,
            "rl": lambda: update(collect("none")),
            "rlv": lambda: update(collect("generative")),
        },
        repeats,
    )
    config = model.config
    weights = [m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)]
    head = model.get_output_embeddings().weight.numel()
    own = groups * n * length  # tokens that are learnt from; a prompt runs once, and the head does not read it
    seen = own * (PROMPT + length / 2) + groups * PROMPT**2 / 2
    flops = 6 * (sum(weights) - head) * (own + groups * PROMPT) + 6 * head * own
    flops += 12 * config.num_hidden_layers * config.hidden_size * seen
    reached = 2 * len(square) ** 3 / took["product"]
    record(
        "gpu-learner", shape=shape, length=length, tokens=own, update_s=took["update"], first_update_s=compiling,
        tflops=flops / took["update"] / 1e12, product_tflops=reached / 1e12, mfu=flops / took["update"] / reached,
        mfu_checkpointing=flops / took["recomputed"] / reached, rlv_update=took["verified"] / took["update"],
        rlv_step=took["rlv"] / took["rl"], peak_gib=peak(lambda: update(plain)),
        peak_gib_checkpointing=peak(lambda: update(plain, checkpointing=True)),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.5B", "1.5B"])
    for option, value in (("--prompts", 64), ("--completions", 16), ("--length", 512), ("--repeats", 3)):
        parser.add_argument(option, type=int, default=value)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 512])
    parser.add_argument("--only", choices=["decode", "learn"])
    args = parser.parse_args()
    same_gradient()
    for shape in args.shapes:
        if args.only != "learn":
            same(shape, min(args.length, 64))
            decode(shape, args.batches, args.completions, args.length, args.repeats)
        if args.only != "decode":
            learn(shape, args.prompts, args.completions, args.length, args.repeats)


if __name__ == "__main__":
    main()
