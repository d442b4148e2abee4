"""Compare decoding by the native engine with ``transformers.generate`` and with vLLM, on CPUs: tokens of completions per second.

    python bench/engine.py [--vllm PATH/TO/VLLM/ENV/bin/python]

The cases are equal lengths and ragged ones (16 to 96 tokens), short and long prompts, and batches of 1, 16 and 256. Each side runs
once in fp32 and once in bfloat16, then takes turns with the others in its faster precision. ``generate`` gets left-padded prompts,
SDPA attention and a cache, as its documentation advises.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from common import SMALL, Worker, interleaved, question, qwen2, record, tokenizer, with_lengths

from twofold.engines.native import NativeEngine
from twofold.models.install import install
from twofold.runtime import keep_memory
from twofold.text.chat import Chat
from twofold.types import Sampling


def compare(rows: int, prompt_tokens: int, shortest: int, longest: int, repeats: int, vllm: str | None) -> None:
    chat = Chat(tokenizer())
    n = min(8, rows)
    prompts = [chat.prompt(question(prompt_tokens, i)) for i in range(rows // n)]
    sides: dict[str, Any] = {}
    counts: dict[str, list[int]] = {}
    workers: list[Worker] = []
    for precision in ("float32", "bfloat16"):
        engine = NativeEngine(install(with_lengths(qwen2(**SMALL), shortest, longest)), precision=precision)
        theirs = with_lengths(qwen2(**SMALL), shortest, longest).to(getattr(torch, precision))
        ids = torch.tensor([p for p in prompts for _ in range(n)])
        sampling = Sampling(n=n, max_tokens=longest, stop=chat.stop)

        def native(
            engine: NativeEngine = engine, sampling: Sampling = sampling, name: str = f"ours/{precision}"
        ) -> None:
            engine.load({})
            groups = engine.generate(prompts, sampling)
            counts.setdefault(name, []).append(sum(len(c.tokens) for g in groups for c in g))

        @torch.inference_mode()
        def generate(model: Any = theirs, ids: torch.Tensor = ids, name: str = f"transformers/{precision}") -> None:
            mask = torch.ones_like(ids)
            out = model.generate(
                ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=longest, use_cache=True
            )
            new = out[:, ids.shape[1] :]
            ended = (new == model.config.eos_token_id).cumsum(1) - (new == model.config.eos_token_id).long()
            counts.setdefault(name, []).append(int((ended == 0).sum()))

        sides |= {f"ours/{precision}": native, f"transformers/{precision}": generate}
        if vllm:
            worker = Worker(
                vllm, "vllm_worker.py", model=saved(shortest, longest), dtype=precision, prompts=prompts, n=n,
                max_tokens=longest, rows=rows,
            )  # fmt: skip
            workers.append(worker)

            def served(worker: Worker = worker, name: str = f"vllm/{precision}") -> None:
                counts.setdefault(name, []).append(int(worker.step()["tokens"]))

            sides[f"vllm/{precision}"] = served

    def rates(chosen: Iterable[str], repeats: int) -> dict[str, float]:
        counts.clear()
        seconds = interleaved({name: sides[name] for name in chosen}, repeats, warmup=0)
        return {name: sum(c) / len(c) / seconds[name] for name, c in counts.items()}

    first = rates(sides, 1)
    best = {name.split("/")[0]: name for name in sorted(first, key=lambda name: first[name])}
    found = rates(best.values(), repeats)
    for worker in workers:
        worker.close()
    record(
        "engine", rows=rows, prompt=prompt_tokens, lengths=f"{shortest}-{longest}",
        **{f"over {who}": found[best["ours"]] / found[name] for who, name in sorted(best.items()) if who != "ours"},
        **{f"{name} tokens/s": round(r) for name, r in found.items()},
    )  # fmt: skip


def saved(shortest: int, longest: int) -> str:
    """The directory of a saved model that any library can load."""
    folder = Path(tempfile.gettempdir()) / f"twofold-bench-{shortest}-{longest}"
    with_lengths(qwen2(**SMALL), shortest, longest).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vllm", help="the python of an environment with vLLM for CPUs")
    args = parser.parse_args()
    keep_memory()
    for prompt_tokens in (32, 256):
        for rows, shortest in ((256, 16), (256, 96), (16, 96), (1, 96)):
            compare(rows, prompt_tokens, shortest, 96, args.repeats, args.vllm)


if __name__ == "__main__":
    main()
