"""A causal LM and its tokenizer, from a plain Hugging Face directory or hub name and back into a directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from twofold.maths.attention import install
from twofold.maths.llama import Llama, plain

Precision = Literal["float32", "bfloat16"]

CONFIG, GENERATION, WEIGHTS = "config.json", "generation_config.json", "model.safetensors"
HEAD = "value_head.safetensors"
TOKENIZER, GENERIC = "tokenizer_config.json", "TokenizersBackend"
"""Of a Llama, a tokenizer that is what tokenizer.json says. (Qwen's models have a class of their own, whatever their files
say.) ``AutoTokenizer`` takes two seconds to find that out."""


def load_model(path: str | Path, *, device: str | None = None) -> tuple[Any, Any]:
    """(model, tokenizer). Weights are kept in fp32 masters; ``precision`` elsewhere says what the matmuls run in.

    Any full-attention ``AutoModelForCausalLM``, a plain one of Llama's family as ``Llama``; custom code in a model directory
    is never run. A scalar head that was saved is ``value_head``. Raises OSError if there is no such model, ValueError for an
    unsupported attention or if weights are missing.
    """
    tokenizer = load_tokenizer(path)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = Path(path)
    model = _read(folder, device) or _built(path, device)
    if (folder / HEAD).is_file():
        weights = load_file(folder / HEAD)
        model.value_head = torch.nn.Linear(weights["weight"].shape[1], 1, device=model.device)
        model.value_head.load_state_dict(weights)
    return model, tokenizer


def _read(folder: Path, device: str) -> Llama | None:
    """The model of a directory that needs no code of ``transformers``, or None: see ``plain``."""
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        return None
    config = json.loads((folder / CONFIG).read_text())
    with safe_open(folder / WEIGHTS, "pt") as file:
        if not plain(config, file.keys()):
            return None
        tensors = {x: file.get_tensor(x).to(device, torch.float32, copy=True) for x in file.keys()}  # noqa: SIM118
    generation = folder / GENERATION
    return Llama(config, tensors, json.loads(generation.read_text()) if generation.is_file() else None).eval()


def _built(path: str | Path, device: str) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model, report = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{path} has no weights for {', '.join(missing[:3])}: they would be random")
    return install(model.to(device).eval())


def load_tokenizer(path: str | Path) -> Any:
    """What ``AutoTokenizer`` finds. Raises OSError if there is no such model."""
    if _said(path, CONFIG, "model_type") == "llama" and _said(path, TOKENIZER, "tokenizer_class") == GENERIC:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(path)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def _said(path: str | Path, file: str, name: str) -> Any:
    """An entry of a JSON file of a model directory, None if there is no such file."""
    found = Path(path) / file
    return json.loads(found.read_text()).get(name) if found.is_file() else None


def save_model(folder: Path, model: Any, tokenizer: Any) -> None:
    """A directory as ``from_pretrained`` wants it; a scalar head is not part of the architecture and travels beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = model.state_dict()
    head = {k.removeprefix("value_head."): weights.pop(k) for k in list(weights) if k.startswith("value_head.")}
    if isinstance(model, Llama):
        _write(folder, model, weights)
    else:
        from transformers.utils import logging

        logging.disable_progress_bar()
        model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    if head:
        save_file(head, folder / HEAD)


def _write(folder: Path, model: Llama, weights: Mapping[str, Tensor]) -> None:
    config = vars(model.config) | {"dtype": "float32"}
    for name, content in ((CONFIG, config), (GENERATION, model.generation)):
        if content is not None:
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    own = {name for name, _ in model.named_parameters()}  # a tied weight is saved once
    save_file({k: v.contiguous() for k, v in weights.items() if k in own}, folder / WEIGHTS, {"format": "pt"})
