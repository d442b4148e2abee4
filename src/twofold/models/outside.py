"""What a model directory may hold, checked before anything else reads it.

A directory is data from outside. No code of it is ever run; no file of it may lie outside, be endless, or name code of a hub;
and no number of it may ask for more than its weights have.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

CONFIG, GENERATION, WEIGHTS = "config.json", "generation_config.json", "model.safetensors"
ADAPTER = "adapter_config.json"
INDEX = f"{WEIGHTS}.index.json"
TEMPLATE_BYTES, JSON_BYTES, TOKENIZER_BYTES = 1 << 20, 64 << 20, 512 << 20
"""The most bytes of a chat template, of a JSON file, and of a file of a tokenizer."""
LIMITS = {".json": JSON_BYTES, ".jinja": TEMPLATE_BYTES, ".txt": TOKENIZER_BYTES, ".model": TOKENIZER_BYTES}
LIMITS |= {".tiktoken": TOKENIZER_BYTES}
LAYERS = 10_000
"""The most layers, blocks or experts of a model."""
FLOATS = {"F64", "F32", "F16", "BF16"}

_SIZES = {"hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "head_dim"}
_SIZES |= {"num_key_value_heads", "max_position_embeddings", "n_embd", "n_layer", "n_head", "n_positions"}
_REPEATED = re.compile(r"(layers?|blocks?|experts)$")
_POSITIVE = re.compile(r"(_eps|_epsilon|rope_theta)$")


def check(folder: Path) -> None:
    """Raise ValueError, in a line that names the file, if a model's directory has a file that must not be read."""
    for path in sorted(folder.iterdir()):
        if path.suffix in {*LIMITS, ".safetensors"} and not path.is_dir():
            _check_file(folder, path)
    if (folder / ADAPTER).exists() and (folder / CONFIG).exists():
        raise ValueError(f"{folder} has {ADAPTER} and {CONFIG}: it is either an adapter or a model")
    if (config := read_json(folder / CONFIG)) is not None:
        check_config(folder / CONFIG, config)
    ends(folder / GENERATION)


def _check_file(folder: Path, path: Path) -> None:
    if not path.exists():
        raise ValueError(f"{path} is a link to nothing, or to itself")
    if not path.is_file():
        raise ValueError(f"{path} is no file: a pipe or a device")
    # the hub's cache links snapshots/REVISION/config.json to ../../blobs/HASH; weights cannot be taken for anything else
    near = {folder.resolve(), folder.resolve().parent.parent / "blobs"}
    if path.is_symlink() and path.suffix != ".safetensors" and path.resolve().parent not in near:
        raise ValueError(f"{path} is a link to {path.resolve()}, outside the model's directory: copy the file")
    limit = TOKENIZER_BYTES if path.name == "tokenizer.json" else LIMITS.get(path.suffix, math.inf)
    if (size := path.stat().st_size) > limit:
        raise ValueError(f"{path} has {size:,} bytes, more than {limit:,}")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None if there is no such file.

    Raises ValueError if it is no object, or has a number that is not finite or a name twice.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(
            path.read_bytes(), parse_constant=_refuse, parse_float=_number, object_pairs_hook=_without_doubles
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no object, but a {type(content).__name__}")
    return content


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _number(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else _refuse(text)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raise ValueError if the content of ``path`` has a size that is none, or names code or files that are not the model's."""
    for name in ("quantization_config", "transformers_weights"):
        if config.get(name) is not None:
            raise ValueError(f"{path}: {name} is not supported: use the model's original directory")
    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(x, str) for x in named):
        raise ValueError(f"{path}: architectures must be a list of names, got {str(named)[:100]}")
    for name, value in _entries(config):
        if name in ("rope_parameters", "rope_scaling") and not isinstance(value, dict | None):
            raise ValueError(f"{path}: {name} must be an object, got {str(value)[:100]}")
        if name.endswith("_implementation") and value not in (None, "eager", "sdpa"):
            raise ValueError(f"{path}: {name} = {value!r} names code of a package or a hub: delete it")
        values = value if isinstance(value, list) else [value]
        if name in _SIZES and not all(x is None or (type(x) is int and 0 < x < 2**31) for x in values):
            raise ValueError(f"{path}: {name} must be a whole number from 1, got {str(value)[:100]}")
        if _POSITIVE.search(name) and not (type(value) in (int, float) and value > 0):
            raise ValueError(f"{path}: {name} must be a number above 0, got {str(value)[:100]}")
        if type(value) is int and _REPEATED.search(name) and value > LAYERS:
            raise ValueError(f"{path}: {name} = {value} is more than {LAYERS:,}")
    heads, shared = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if type(heads) is int and type(shared) is int and heads % shared:
        raise ValueError(f"{path}: num_attention_heads = {heads} is no multiple of num_key_value_heads = {shared}")


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every (name, value) of an object and of the objects in it."""
    for name, value in config.items():
        yield name, value
        if isinstance(value, dict):
            # {"attn_implementation": {"text_config": "eager"}} names one for each part
            parts = value.values() if name.endswith("_implementation") else []
            yield from ((name, x) for x in parts)
            yield from _entries(value)


def ends(path: Path) -> tuple[int, ...]:
    """Return the tokens that end a text by a generation config. Raises ValueError if they are no token ids."""
    found = (read_json(path) or {}).get("eos_token_id")
    tokens = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(x) is int and 0 <= x < 2**31 for x in tokens):
        raise ValueError(f"{path}: eos_token_id must be token ids, got {str(found)[:100]}")
    return tuple(tokens)


def shapes(folder: Path) -> dict[str, list[int]]:
    """Return the shapes of the weights in a directory, by their names; their data are not read.

    Raises ValueError if a file is no whole safetensors file, the index names files elsewhere, or weights are quantised.
    """
    found: dict[str, list[int]] = {}
    for path in _weight_files(folder):
        if not path.is_file():
            raise ValueError(f"{path} is missing: {INDEX} names it")
        with reading(path), safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (it is no dict)
                part = file.get_slice(name)
                if name in found:
                    raise ValueError(f"{name} is in two files")
                if name.endswith("weight") and part.get_dtype() not in FLOATS:
                    raise ValueError(f"{name} is of type {part.get_dtype()}, not one of {', '.join(sorted(FLOATS))}")
                found[name] = part.get_shape()
    return found


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = read_json(folder / INDEX)
    if index is None:
        other = next((x.name for x in sorted(folder.iterdir()) if x.suffix in (".bin", ".pt", ".pth", ".ckpt")), None)
        why = f"{other} may hold code and is never read: convert it" if other else "the directory is not complete"
        raise ValueError(f"{folder} has no {WEIGHTS}: {why}")
    files = index.get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{folder / INDEX} has no weight_map")
    for name in files.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(
                f"{folder / INDEX} names {str(name)[:100]!r}, which is no safetensors file of the directory"
            )
    return [folder / name for name in sorted(set(files.values()))]


def check_sizes(path: Path, config: Mapping[str, Any], held: Mapping[str, list[int]]) -> None:
    """Raise ValueError if a config asks for more layers, or larger ones, than the weights ``held`` can fill."""
    total = sum(math.prod(shape) for shape in held.values())
    for name, value in _entries(config):
        if type(value) is int and name in ("num_hidden_layers", "n_layer") and value > len(held):
            raise ValueError(f"{path}: {name} = {value}, but there are {len(held)} weights in all")
    hidden = config.get("hidden_size", config.get("n_embd"))
    for other in ("vocab_size", "intermediate_size"):
        sizes = hidden, config.get(other)
        if all(type(x) is int for x in sizes) and math.prod(sizes) > total:
            raise ValueError(
                f"{path}: a layer of {sizes[0]} x {sizes[1]} ({other}), but there are {total:,} weights in all"
            )


def check_finite(path: Path, model: Any) -> None:
    """Raise ValueError that names a weight which is not finite."""
    for name, weight in model.named_parameters():
        if weight.numel() and not all(x.isfinite() for x in torch.aminmax(weight.detach())):
            raise ValueError(f"{path}: {name} has values that are not finite")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in a line which file or directory it was that a library could not read."""
    try:
        yield
    except Exception as error:  # libraries that meet what they do not expect raise any kind, some with many lines
        line = " ".join(str(error).split())[:400]
        if isinstance(error, SafetensorError):
            raise OSError(f"{path} cannot be read: is it complete? ({line})") from error
        if isinstance(error, FileNotFoundError | ImportError):
            raise type(error)(f"{path} cannot be read: {line}") from error
        if isinstance(error, OSError):
            raise OSError(f"{path} cannot be read: {line}") from error
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{path} cannot be read: {kind}{line}") from error
