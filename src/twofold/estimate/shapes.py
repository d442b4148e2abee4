"""The sizes of a language model, and the number of its weights. No weights are read."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twofold import toml
from twofold.ranges import Count, Whole, checked

LARGEST = 1 << 20
"""The most bytes of a ``config.json`` that is read."""
NAMES = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "ffn": "intermediate_size",
    "vocabulary": "vocab_size",
    "width": "head_dim",
    "tied": "tie_word_embeddings",
}
"""The name of a size here -> its name in a ``config.json``."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@checked
class Shape:
    """The sizes of a model of Llama's family."""

    hidden: Count
    layers: Count
    heads: Count
    kv_heads: Count
    ffn: Count
    vocabulary: Count
    width: Whole = 0
    """Dimensions of a head; 0: hidden / heads."""
    tied: bool = False
    """The embeddings are the output matrix, too."""
    biases: bool = False
    """Queries, keys and values have biases (Qwen2)."""

    @property
    def head_width(self) -> int:
        return self.width or self.hidden // self.heads

    @property
    def query_width(self) -> int:
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        """Numbers of a token's keys and values in one layer."""
        return 2 * self.kv_heads * self.head_width

    @property
    def layer_matrices(self) -> int:
        """Weights in the matrices of all layers: those that every token is multiplied by."""
        attention = self.hidden * (2 * self.query_width + self.kv_width)
        return self.layers * (attention + 3 * self.hidden * self.ffn)

    @property
    def head(self) -> int:
        """Weights of the output matrix, which turns a hidden state into logits."""
        return self.hidden * self.vocabulary

    @property
    def matrices(self) -> int:
        return self.layer_matrices + self.head

    @property
    def parameters(self) -> int:
        """All weights. (The norms that Qwen3 has for queries and keys, a few thousand numbers, are left out.)"""
        embeddings = self.head if self.tied else 2 * self.head
        biases = self.layers * (self.query_width + self.kv_width) if self.biases else 0
        return embeddings + self.layer_matrices + biases + (2 * self.layers + 1) * self.hidden

    def adapter(self, rank: int, targets: tuple[str, ...]) -> int:
        """Return the weights of a LoRA adapter of this rank on these layers."""
        half = self.kv_width // 2
        ends = {
            "q_proj": self.hidden + self.query_width, "k_proj": self.hidden + half, "v_proj": self.hidden + half,
            "o_proj": self.hidden + self.query_width, "gate_proj": self.hidden + self.ffn,
            "up_proj": self.hidden + self.ffn, "down_proj": self.hidden + self.ffn,
        }  # fmt: skip
        return self.layers * rank * sum(ends[target] for target in targets)


KNOWN = {
    "tiny": Shape(128, 8, 4, 4, 256, 512, width=32, tied=True),
    "smollm2-135m": Shape(576, 30, 9, 3, 1536, 49_152, tied=True),
    "qwen2.5-0.5b": Shape(896, 24, 14, 2, 4864, 151_936, tied=True, biases=True),
    "qwen2.5-1.5b": Shape(1536, 28, 12, 2, 8960, 151_936, tied=True, biases=True),
    "deepseek-r1-distill-qwen-1.5b": Shape(1536, 28, 12, 2, 8960, 151_936, biases=True),
    "qwen2.5-7b": Shape(3584, 28, 28, 4, 18_944, 152_064, biases=True),
    "qwen2.5-32b": Shape(5120, 64, 40, 8, 27_648, 152_064, biases=True),
    "qwen2.5-72b": Shape(8192, 80, 64, 8, 29_568, 152_064, biases=True),
    "llama-3.1-8b": Shape(4096, 32, 32, 8, 14_336, 128_256),
    "llama-3.3-70b": Shape(8192, 80, 64, 8, 28_672, 128_256),
}


def shape_of(model: str) -> Shape:
    """Return the sizes of a model: of a directory with a ``config.json``, of a name in ``KNOWN`` (with its owner, "-Math" and
    "-Instruct" or without), or given as ``hidden=1536,layers=28,...``.

    Raises ValueError if the sizes are not known.
    """
    if "=" in model:
        try:
            return toml.from_dict(Shape, tomllib.loads(model.replace(",", "\n")), "--model")
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"--model: {model!r} must be sizes such as hidden=1536,layers=28 ({error})") from error
    if (path := Path(model) / "config.json").is_file():
        return _read(path)
    name = Path(model).name.lower()
    for word in ("-math", "-instruct"):
        name = name.replace(word, "")
    if name not in KNOWN:
        raise ValueError(
            f"the sizes of {model} are not known: give --model a directory with config.json, a name ({', '.join(KNOWN)}) or "
            "hidden=N,layers=N,heads=N,kv_heads=N,ffn=N,vocabulary=N"
        )
    return KNOWN[name]


def _read(path: Path) -> Shape:
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has more than {LARGEST:,} bytes: it is no model's config")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    said = said.get("text_config", said) if isinstance(said, Mapping) else said
    if not isinstance(said, Mapping):
        raise ValueError(f"{path} must hold an object")
    if any(said.get(name) for name in EXPERTS):
        raise ValueError(f"{path}: a mixture of experts, whose cost is not modelled")
    if missing := [
        NAMES[size] for size in ("hidden", "layers", "heads", "ffn", "vocabulary") if NAMES[size] not in said
    ]:
        raise ValueError(
            f"{path} has no {', '.join(missing)}: only models with the sizes of Llama's family are modelled"
        )
    sizes: dict[str, Any] = {ours: said[theirs] for ours, theirs in NAMES.items() if said.get(theirs) is not None}
    sizes.setdefault("kv_heads", sizes["heads"])
    sizes["biases"] = said.get("model_type") == "qwen2" or said.get("attention_bias") is True
    return toml.from_dict(Shape, sizes, str(path))
