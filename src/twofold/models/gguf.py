"""Read a model and its tokenizer from a GGUF file, by the reader of ``transformers``.

That reader passes over what it does not know. So what would change the numbers or the tokens is checked here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twofold.models.llama import Llama, plain, shapes
from twofold.models.outside import check_config, reading

SUFFIX = ".gguf"
TYPES = ("llama", "qwen2", "qwen3")
SCALING = "rope_freqs.weight"
"""The tensor by which a file says that RoPE is scaled as in Llama 3."""
INSTEAD = "use the model's original directory instead"
FIELDS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
}
"""What a file calls the options of a config."""
SPLITS_DIGITS = {"smollm"}
"""Ways of splitting text before BPE that ``transformers`` takes for GPT-2's, and that make a token of each digit besides."""


def read(path: Path, device: str) -> Any:
    """Return the model of a GGUF file, with fp32 weights.

    Raises OSError if there is no such file or it is cut short, ImportError if a package is missing, and ValueError if the model
    is of another type than ``TYPES``, or has weights or a RoPE scaling that would be left out.
    """
    metadata, names = _metadata(path)
    from transformers import AutoModelForCausalLM

    config = _config(path, metadata, names)
    with _reading(path):
        found = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, config=config, dtype=torch.float32, trust_remote_code=False
        )
    weights = dict(found.named_parameters())  # a tied one once
    config.architectures = [type(found).__name__]
    said = {k: v for k, v in config.to_diff_dict().items() if k not in ("quantization_config", "_name_or_path")}
    expected = shapes(said)
    if {k: [*v.shape] for k, v in weights.items()} != expected or len(expected) != len(set(names) - {SCALING}):
        raise ValueError(f"{path} has other weights than a model of type {config.model_type}: {INSTEAD}")
    generation = {"eos_token_id": _ends(metadata)}
    if plain(said):
        return Llama(said, {k: v.detach().to(device) for k, v in weights.items()}, generation).eval()
    model = type(found)(type(config)(**said))
    model.load_state_dict(found.state_dict())
    model.generation_config.eos_token_id = generation["eos_token_id"]
    return model.to(device).eval()


def stop_tokens(path: Path) -> tuple[int, ...]:
    """Return the tokens that end a text, as the file names them."""
    return tuple(_ends(_metadata(path)[0]))


def _ends(metadata: dict[str, Any]) -> list[int]:
    ends = [metadata.get(f"tokenizer.ggml.{x}_token_id") for x in ("eos", "eot", "eom")]
    return [x for x in dict.fromkeys(ends) if x is not None]


def _config(path: Path, metadata: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Return the config that the metadata describe. The reader's own lacks some of it, and takes seconds per 100,000 tokens."""
    from transformers import AutoConfig

    kind = metadata["general.architecture"]
    if (scaling := metadata.get(f"{kind}.rope.scaling.type", "none")) != "none":
        raise ValueError(f"{path} scales RoPE ({scaling}): {INSTEAD}")
    said = {name: metadata[f"{kind}.{key}"] for key, name in FIELDS.items() if f"{kind}.{key}" in metadata}
    said |= {f"{x}_token_id": metadata.get(f"tokenizer.ggml.{x}_token_id") for x in ("bos", "eos")}
    said |= {
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        "tie_word_embeddings": "output.weight" not in names,
    }
    said["vocab_size"] = metadata["tokenizer.ggml.tokens"]  # their number
    if kind == "llama":
        said |= {
            "head_dim": metadata.get(f"{kind}.rope.dimension_count"),
            "attention_bias": "blk.0.attn_output.bias" in names,
        }
    if SCALING in names:
        said["rope_parameters"] = _llama3(path, said.pop("rope_theta"))
    check_config(path, said)
    with reading(path):
        return AutoConfig.for_model(kind, **said)


def read_tokenizer(path: Path) -> Any:
    """Return the tokenizer of a GGUF file. Raises ValueError if it splits text in a way that ``transformers`` does not know."""
    metadata, _ = _metadata(path)
    from tokenizers import normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    with _reading(path):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)
    way = metadata.get("tokenizer.ggml.pre", "none")
    if metadata["tokenizer.ggml.model"] == "llama":
        known = metadata.get("tokenizer.ggml.add_space_prefix", True)
    else:
        known = way in {"gpt-2", *SPLITS_DIGITS, *GGUF_PRE_TOKENIZER_SPLITS}
    if not known:
        raise ValueError(f"{path}: its tokenizer splits text ({way}) as transformers cannot: {INSTEAD}")
    if way in SPLITS_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if metadata["general.architecture"] != "llama":  # Qwen's have it, though the file does not say so
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _metadata(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the metadata and the names of the tensors."""
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    except ImportError as error:
        raise ImportError(f"reading {path} needs an extra: pip install -e '.[gguf]' ({error})") from error
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    metadata, names = _parsed(path, path.stat().st_mtime_ns)
    if (kind := metadata.get("general.architecture")) not in TYPES:
        raise ValueError(f"{path} holds a model of type {kind}; of GGUF files only {', '.join(TYPES)} are read")
    return metadata, names


@lru_cache(maxsize=1)  # the model, the tokenizer and the stop tokens are read one after another
def _parsed(path: Path, changed: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what the file holds, as it is since ``changed``, its time of modification. It is not to be written to."""
    from transformers.integrations.gguf import read_gguf_metadata
    from transformers.utils import logging

    logging.disable_progress_bar()
    with _reading(path):
        return read_gguf_metadata(str(path))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file where the reader fails."""
    try:
        yield
    except (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError, struct.error) as error:
        raise OSError(f"{path} cannot be read as GGUF: is it complete? ({' '.join(str(error).split())})") from error


def _llama3(path: Path, theta: float) -> dict[str, Any]:
    """Return the RoPE parameters of a file that has Llama 3's scaling as a number for each frequency."""
    from gguf import GGUFReader

    with _reading(path):
        (tensor,) = (x for x in GGUFReader(path).tensors if x.name == SCALING)
    divisors = torch.tensor(tensor.data)
    factor, low, high, original = float(divisors.max()), 1.0, 4.0, 8192
    steps = torch.arange(len(divisors)) / len(divisors)
    turns: Tensor = original / (2 * math.pi * theta**steps)  # how often each pair turns in the original context
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    if not torch.allclose(1 / ((1 - smooth) / factor + smooth), divisors, rtol=1e-3):
        raise ValueError(f"{path} scales RoPE, but not as Llama 3 does: {INSTEAD}")
    more = dict(low_freq_factor=low, high_freq_factor=high, original_max_position_embeddings=original)
    return dict(rope_type="llama3", rope_theta=theta, factor=factor, **more)
