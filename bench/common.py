"""Shared by the benchmarks: interleaved repeats, medians, one JSON line per result, and models to measure with.

A time on a shared machine means nothing by itself. Every benchmark runs its sides in turn, in one run, and reports ratios of
medians.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
HISTORY = ROOT / "runs" / "bench.jsonl"


def interleaved(sides: Mapping[str, Callable[[], Any]], repeats: int = 5, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each side. The sides take turns, so that a slow minute of the machine affects all of them."""
    for side in sides.values():
        for _ in range(warmup):
            side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def record(bench: str, **numbers: Any) -> None:
    """Print one JSON line and append it to ``runs/bench.jsonl``."""
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in numbers.items()}
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    line = json.dumps(
        {"bench": bench, **rounded, "torch": torch.__version__, "threads": torch.get_num_threads(), "on": where}
    )
    print(line, flush=True)
    HISTORY.parent.mkdir(exist_ok=True)
    with HISTORY.open("a") as file:
        file.write(line + "\n")


SMALL = {"hidden": 256, "layers": 6, "heads": 4, "kv_heads": 2, "ffn": 768}
"""About 5 million parameters with the shipped tokenizer."""
LARGE: dict[str, Any] = {
    "hidden": 896, "layers": 24, "heads": 14, "kv_heads": 2, "ffn": 4864, "vocabulary": 151_936, "tied": True,
}  # fmt: skip
"""The shape of Qwen2.5-0.5B."""


def qwen2(
    hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, vocabulary: int = 512, tied: bool = False
) -> Any:
    """A Qwen2 with random weights from a fixed seed, for the shipped tokenizer."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            intermediate_size=ffn,
            tie_word_embeddings=tied,
            max_position_embeddings=8192,
            bos_token_id=None,
            eos_token_id=tokenizer().eos_token_id,
            pad_token_id=tokenizer().pad_token_id,
        )
    ).eval()


def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "src" / "twofold" / "assets" / "tiny")


def with_lengths(model: Any, shortest: int, longest: int) -> Any:
    """Give ``model`` weights that make completions of ``shortest`` to ``longest`` tokens, all lengths equally likely.

    The model counts: after the prompt it draws a number, then writes every following number up to ``longest``, then the end
    token. With ``shortest = longest`` it never ends: it counts to 64 again and again, beginning at any number. The layers keep
    their random weights, scaled down so that they do not disturb the count; no matrix product changes its size.
    """
    end = tokenizer().eos_token_id
    assistant = tokenizer().convert_tokens_to_ids("<|assistant|>")
    first = 64  # number i is token first + i
    embed, head = model.get_input_embeddings().weight.data, model.get_output_embeddings().weight.data
    torch.manual_seed(1)
    embed.normal_()
    head.zero_()
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.mul_(0.01)
        layer.mlp.down_proj.weight.data.mul_(0.01)
    sharp = 40 / model.config.hidden_size
    numbers, starts, after = (64, 64, first) if shortest == longest else (longest, longest - shortest + 1, end)
    head[first : first + starts] += sharp * embed[assistant]
    for i in range(numbers - 1):
        head[first + i + 1] += sharp * embed[first + i]
    head[after] += sharp * embed[first + numbers - 1]
    return model


def question(prompt_tokens: int, i: int) -> str:
    """Question ``i``, whose prompt has ``prompt_tokens`` tokens: one per digit, and three that the template adds."""
    return "".join(random.Random(i).choices("0123456789", k=prompt_tokens - 3))


class Worker:
    """``bench/SCRIPT`` in a process of another ``python``. It answers each line with a line of JSON."""

    def __init__(self, python: str, script: str, env: Mapping[str, str] | None = None, **asked: Any) -> None:
        self.script = script
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [python, str(ROOT / "bench" / script), json.dumps(asked)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=os.environ | (env or {}),
        )  # fmt: skip

    def ask(self, line: str) -> dict[str, float]:
        """Send a line and return the answer. Raises RuntimeError with the end of its stderr if the process has ended."""
        assert self.process.stdout
        self.tell(line)
        answer = self.process.stdout.readline()
        if not answer:
            self.errors.seek(0)
            raise RuntimeError(f"{self.script} ended:\n{self.errors.read()[-2000:]}")
        return json.loads(answer)

    def tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def step(self) -> dict[str, float]:
        return self.ask("go")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def timed(owner: Any, method: str, spent: dict[str, float], name: str) -> None:
    """Wrap ``owner.method`` so that the seconds spent in it are added to ``spent[name]``."""
    plain = getattr(owner, method)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        out = plain(*args, **kwargs)
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - start
        return out

    setattr(owner, method, wrapped)
