"""A vLLM engine that generates on request. ``engine.py`` runs it in vLLM's own environment.

    python vllm_worker.py '{"model": DIR, "dtype": "bfloat16", "prompts": [[...]], "n": 8, "max_tokens": 96, "rows": 256}'

Stdin has lines "go". Each is answered by one JSON line on stdout, with the seconds and the tokens of a whole ``generate`` call.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
asked: dict[str, Any] = json.loads(sys.argv[1])
say = os.fdopen(os.dup(1), "w")  # the libraries print to stdout, which is now stderr
os.dup2(2, 1)

from vllm import LLM, SamplingParams  # noqa: E402

longest = max(map(len, asked["prompts"])) + asked["max_tokens"]
model = LLM(model=asked["model"], dtype=asked["dtype"], max_model_len=longest, max_num_seqs=asked["rows"])
sampling = SamplingParams(n=asked["n"], temperature=1.0, max_tokens=asked["max_tokens"], logprobs=0, detokenize=False)
prompts = [{"prompt_token_ids": p} for p in asked["prompts"]]
for _ in sys.stdin:
    model.reset_prefix_cache()
    began = time.perf_counter()
    outputs = model.generate(prompts, sampling, use_tqdm=False)
    seconds = time.perf_counter() - began
    tokens = sum(len(c.token_ids) for o in outputs for c in o.outputs)
    print(json.dumps({"seconds": seconds, "tokens": tokens}), file=say, flush=True)
