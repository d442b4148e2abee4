"""Decoding: the native engine against ``transformers.generate``, tokens per second of completions.

Equal lengths and ragged ones (16 to 96 tokens), short and long prompts, batches of 1, 16 and 256. Each side runs in fp32 and
in bfloat16 and the better one counts; ``generate`` gets left-padded prompts, SDPA attention and a cache, as its documentation advises.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import SMALL, interleaved, question, qwen2, record, tokenizer, with_lengths

from twofold.engines.native import NativeEngine
from twofold.maths.attention import install
from twofold.text.chat import Chat
from twofold.types import Sampling


def compare(rows: int, prompt_tokens: int, shortest: int, longest: int, repeats: int) -> None:
    chat = Chat(tokenizer())
    n = min(8, rows)
    prompts = [chat.prompt(question(prompt_tokens, i)) for i in range(rows // n)]
    sides: dict[str, Any] = {}
    counts: dict[str, list[int]] = {}
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
        def generate(model: Any = theirs, ids: torch.Tensor = ids, name: str = f"theirs/{precision}") -> None:
            mask = torch.ones_like(ids)
            out = model.generate(
                ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=longest, use_cache=True
            )
            new = out[:, ids.shape[1] :]
            ended = (new == model.config.eos_token_id).cumsum(1) - (new == model.config.eos_token_id).long()
            counts.setdefault(name, []).append(int((ended == 0).sum()))

        sides |= {f"ours/{precision}": native, f"theirs/{precision}": generate}
    seconds = interleaved(sides, repeats)
    rates = {name: sum(c) / len(c) / seconds[name] for name, c in counts.items()}
    ours, theirs_ = (max(r for name, r in rates.items() if name.startswith(who)) for who in ("ours", "theirs"))
    record(
        "engine", rows=rows, prompt=prompt_tokens, lengths=f"{shortest}-{longest}", ratio=ours / theirs_,
        **{f"{name} tokens/s": round(r) for name, r in rates.items()},
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    for rows in (1, 16, 256):
        for prompt_tokens in (32, 256):
            compare(rows, prompt_tokens, 96, 96, args.repeats)
    for prompt_tokens in (32, 256):
        compare(256, prompt_tokens, 16, 96, args.repeats)


if __name__ == "__main__":
    main()
