"""Read a causal LM and its tokenizer from a plain Hugging Face directory, by hub name or from a GGUF file, and write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from twofold.models import gguf, head, lora
from twofold.models.checkpoints import OLD_STATE, STATE
from twofold.models.install import install
from twofold.models.llama import Llama, plain, shapes

CONFIG, GENERATION, WEIGHTS = "config.json", "generation_config.json", "model.safetensors"
TOKENIZER, GENERIC = "tokenizer_config.json", "TokenizersBackend"
"""The tokenizer class of a Llama whose tokenizer is just what tokenizer.json says. ``AutoTokenizer`` takes two seconds to find
that out. (Qwen's models have a class of their own, whatever their files say.)"""


def load_model(path: str | Path, *, device: str | None = None) -> tuple[Any, Any]:
    """Return (model, tokenizer). Weights are fp32 masters; ``precision`` elsewhere says in what type the matrix products run.

    The model may be any ``AutoModelForCausalLM`` that ``install`` accepts; a plain one of Llama's family becomes a ``Llama``.
    ``path`` may also be a GGUF file. Custom code in a model directory is never run. A scalar head that was saved is loaded
    too (see ``head``), and an adapter is added to the weights of its base (see ``lora.merge``). Raises OSError if there is no
    such model, ValueError if its attention is not supported, its weights are not those of its config, or a file is not JSON.
    """
    tokenizer = load_tokenizer(path)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = Path(path)
    if folder.suffix == gguf.SUFFIX:
        return gguf.read(folder, device), tokenizer
    if base := lora.base_of(folder):
        model, _ = load_model(base, device=device)
        lora.merge(folder, model)
    else:
        model = _read(folder, device) or _built(path, device)
    head.load(folder, model)
    return model, tokenizer


def _read(folder: Path, device: str) -> Llama | None:
    """Return the model of a directory if it needs no code of ``transformers`` (see ``plain``), else None.

    None, too, if its weights are not exactly those of its config: ``_built`` says what is wrong with them.
    """
    config, weights = _content(folder / CONFIG), folder / WEIGHTS
    if config is None or not weights.is_file() or not plain(config):
        return None
    try:
        with safe_open(weights, "pt") as file:
            names = list(file.keys())
            if {x: file.get_slice(x).get_shape() for x in names} != shapes(config):
                return None
            tensors = {x: file.get_tensor(x).to(device, torch.float32, copy=True) for x in names}
    except SafetensorError as error:
        raise OSError(f"{weights} cannot be read: is it complete? ({error})") from error
    return Llama(config, tensors, _content(folder / GENERATION)).eval()


def _built(path: str | Path, device: str) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model, report = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    _check_weights(path, report)
    return install(model.to(device).eval())


def _check_weights(path: str | Path, report: Mapping[str, Any]) -> None:
    """Raise ValueError if the weights in ``path`` are not exactly those of its config, by the loading report of ``transformers``."""
    wrong = [f"{name} is missing: it would be random" for name in sorted(report["missing_keys"])]
    wrong += [
        f"{name} has the shape {list(there)}, not {list(here)}"
        for name, there, here in sorted(report["mismatched_keys"])
    ]
    wrong += [f"{name} is not in its config: it would be left out" for name in sorted(report["unexpected_keys"])]
    if wrong:
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ValueError(f"{path} does not have the weights that its {CONFIG} describes: {'; '.join(wrong[:4])}{more}")


def load_tokenizer(path: str | Path) -> Any:
    """Return the tokenizer that ``AutoTokenizer`` finds. Raises OSError if there is no such model."""
    if Path(path).suffix == gguf.SUFFIX:
        return gguf.read_tokenizer(Path(path))
    if (base := lora.base_of(Path(path))) and not (Path(path) / TOKENIZER).is_file():
        return load_tokenizer(base)
    config, about = (_content(Path(path) / name) or {} for name in (CONFIG, TOKENIZER))
    if config.get("model_type") == "llama" and about.get("tokenizer_class") == GENERIC:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(path)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def _content(path: Path) -> dict[str, Any] | None:
    """Return the content of a JSON file, or None if there is no such file. Raises ValueError if it is not JSON."""
    try:
        return json.loads(path.read_text()) if path.is_file() else None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def convert(path: Path, out: Path) -> None:
    """Write the model of a GGUF file, or an adapter with its base, as a plain directory. Raises FileExistsError if there is
    something in ``out``, and ValueError if ``path`` is neither."""
    if path.suffix != gguf.SUFFIX and lora.base_of(path) is None:
        raise ValueError(f"{path} is no {gguf.SUFFIX} file and no adapter; any other model is a directory already")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: choose another directory")
    save_model(out, *load_model(path, device="cpu"))


def save_model(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write a directory that ``from_pretrained`` reads; of a model with an adapter, the adapter only. A scalar head is no part of
    the architecture and has a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith(f"{head.NAME}.")}
    if lora.adapted(model):
        lora.save(folder, model)
    elif isinstance(model, Llama):
        _write(folder, model, weights)
    else:
        from transformers.utils import logging

        logging.disable_progress_bar()
        model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    head.save(folder, model)


def _write(folder: Path, model: Llama, weights: Mapping[str, Tensor]) -> None:
    config = {k: v for k, v in vars(model.config).items() if k != "torch_dtype"} | {"dtype": "float32"}
    for name, content in ((CONFIG, config), (GENERATION, model.generation)):
        if content is not None:
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    own = {name for name, _ in model.named_parameters()}  # a tied weight is saved once
    save_file({k: v.contiguous() for k, v in weights.items() if k in own}, folder / WEIGHTS, {"format": "pt"})


def read_trained(folder: Path, model: Any) -> dict[str, Tensor]:
    """Return what was saved of ``model`` in ``folder``, by name. Raises ValueError if that is of another model."""
    own = lora.trained(model)
    saved = (lora.read(folder) if lora.base_of(folder) else load_file(folder / WEIGHTS)) | head.read(folder)
    addresses = {own[k].data_ptr() for k in saved if k in own}
    missing = {
        k for k in own.keys() - saved.keys() if own[k].data_ptr() not in addresses
    }  # a tied weight is saved once
    if different := missing | (saved.keys() - own.keys()):
        raise ValueError(f"{folder} holds another model: the weights differ in {', '.join(sorted(different)[:3])}")
    return saved


def chat_options(path: Path) -> dict[str, Any]:
    """Return how prompts are made for the model at ``path``: what a checkpoint of ours was trained with, by the names of
    ``text.chat.Chat``, and ``stop``, the tokens that end a text by its generation config."""
    trained = _content(path / STATE) or _content(path / OLD_STATE) or {}
    found = {
        name: trained[name] for name in ("question", "enable_thinking", "think_end") if trained.get(name) is not None
    }
    return found | {"stop": stop_tokens(path)}


def stop_tokens(path: str | Path) -> tuple[int, ...]:
    """Return the tokens that end a text by the model's generation config (Llama-3 has three); none if it has no such file."""
    if Path(path).suffix == gguf.SUFFIX:
        return gguf.stop_tokens(Path(path))
    if base := lora.base_of(Path(path)):
        return stop_tokens(base)
    file = Path(path) / GENERATION
    if not Path(path).exists():  # a model on the hub
        from transformers.utils import cached_file

        file = Path(cached_file(str(path), GENERATION, _raise_exceptions_for_missing_entries=False) or file)
    ends = (_content(file) or {}).get("eos_token_id")
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)
