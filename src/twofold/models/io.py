"""Read a causal LM and its tokenizer from a plain Hugging Face directory or from a GGUF file, and write them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from twofold import hub
from twofold.models import gguf, head, lora, outside
from twofold.models.checkpoints import OLD_STATE, STATE, verify
from twofold.models.decoder import Decoder
from twofold.models.install import install
from twofold.models.llama import Llama, plain, shapes
from twofold.models.outside import CONFIG, GENERATION, WEIGHTS
from twofold.models.sharding import like
from twofold.types import Backend, LastToken

ASKED_AS = "twofold.json"
"""What a checkpoint's state says of its prompts, in a model that was published without that state."""
TOKENIZER, GENERIC = "tokenizer_config.json", "TokenizersBackend"
"""The tokenizer class of a Llama whose tokenizer is just what tokenizer.json says. ``AutoTokenizer`` takes two seconds to find
that out. (Qwen's models have a class of their own, whatever their files say.)"""


def load_model(path: str | Path, *, device: str | None = None, backend: Backend = "auto") -> tuple[Any, Any]:
    """Return (model, tokenizer). Weights are fp32 masters; ``precision`` elsewhere says in what type the matrix products run.

    The model may be any ``AutoModelForCausalLM`` that ``install`` accepts; a plain one of Llama's family becomes a ``Llama``.
    ``path`` may also be a GGUF file. Custom code in a model directory is never run (see ``outside``). A scalar head that was
    saved is loaded too (see ``head``), and an adapter is added to the weights of its base (see ``lora.merge``). Raises OSError
    if there is no such model, ValueError if its attention is not supported, its weights are not those of its config or not
    finite, its tokenizer has more tokens, a file is not JSON, or ``backend`` (see ``types.Backend``) does not suit it.
    """
    folder = Path(path)
    tokenizer = load_tokenizer(folder)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if folder.suffix == gguf.SUFFIX:
        model = gguf.read(folder, device)
    elif base := _base(folder):
        model, _ = load_model(base, device=device, backend=backend)
        with outside.reading(folder):
            lora.merge(folder, model)
        head.load(folder, model)
    else:
        held = outside.shapes(folder)
        config = outside.read_json(folder / CONFIG)
        if config is None:
            raise FileNotFoundError(f"{folder / CONFIG}: no such file")
        outside.check_sizes(folder / CONFIG, config, held)
        model = (None if backend == "module" else _read(folder, config, held, device)) or _built(folder, device)
        head.load(folder, model)
    outside.check_finite(folder, model)
    _check_tokens(folder, model, tokenizer)
    model.backend = backend
    if backend != "auto" and Decoder.suits(model) != (backend == "decoder"):
        raise ValueError(
            f'{folder}: backend "{backend}" cannot run this {type(model).__name__}: "decoder" is for Llama\'s family with plain '
            'layers, "module" for models that are no GGUF file; choose "auto"'
        )
    return install(model), tokenizer


def _base(folder: Path, *, weights: bool = True) -> Path | None:
    """Return the model that the adapter in ``folder`` belongs to, fetched if need be; None if there is no adapter.

    Raises FileNotFoundError if it is not there and, if its ``weights`` are to be read, Damaged if they are not as they were written.
    """
    name = lora.base_of(folder)
    if name is None:
        return None
    base = Path(name)
    if not base.exists():
        if len(base.parts) != 2 or base.is_absolute():
            raise FileNotFoundError(
                f"{folder / lora.CONFIG}: its base model {name} is not there: put it back, or correct base_model_name_or_path"
            )
        base = hub.model(name, weights=weights)
    if weights and base.is_dir():
        verify(base)
    if lora.base_of(base) is not None:
        raise ValueError(f"{folder / lora.CONFIG}: the base {name} is an adapter itself")
    return base


def _read(folder: Path, config: dict[str, Any], held: dict[str, list[int]], device: str) -> Llama | None:
    """Return the model of a directory if it needs no code of ``transformers`` (see ``plain``), else None.

    None, too, if its weights ``held`` are not exactly those of its config: ``_built`` says what is wrong with them.
    """
    weights = folder / WEIGHTS
    if not weights.is_file() or not plain(config) or held != shapes(config):
        return None
    with outside.reading(weights), safe_open(weights, "pt") as file:
        tensors = {x: file.get_tensor(x).to(device, torch.float32, copy=True) for x in held}
    return Llama(config, tensors, outside.read_json(folder / GENERATION)).eval()


def _built(folder: Path, device: str) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with outside.reading(folder):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True,
            trust_remote_code=False, use_safetensors=True,
        )  # fmt: skip
    _check_weights(folder, report)
    return model.to(device).eval()


def _check_tokens(path: Path, model: Any, tokenizer: Any) -> None:
    """Raise ValueError if the model has no embedding for a token that a text or the end of one may have.

    Tokenizers name special tokens for padding and the like that the model never sees, and may not know.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    added, template = tokenizer.added_tokens_decoder, str(tokenizer.chat_template)
    more = {i: x for x, i in tokenizer.get_vocab().items() if i >= rows}
    more = {i: x for i, x in more.items() if i not in added or not added[i].special or x in template}
    more |= {i: "eos_token_id" for i in (*stop_tokens(path), tokenizer.eos_token_id or 0) if i >= rows}
    if more:
        number, name = min(more.items())
        raise ValueError(
            f"{path} has {len(more)} tokens beyond the model's {rows} embeddings, such as {number} ({name!r})"
        )


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
    """Return the tokenizer that ``AutoTokenizer`` finds.

    Raises OSError if there is no such model, ValueError if its directory has something that is not loaded (see ``outside``).
    """
    folder = Path(path)
    if folder.suffix == gguf.SUFFIX:
        return gguf.read_tokenizer(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such model directory")
    outside.check(folder)
    if not (folder / TOKENIZER).is_file() and (base := _base(folder, weights=False)):
        return load_tokenizer(base)
    with outside.reading(folder):
        tokenizer = _tokenizer(folder)
    if not isinstance(tokenizer.chat_template, str | dict | None):
        raise ValueError(
            f"{folder / TOKENIZER}: chat_template must be a text, got {str(tokenizer.chat_template)[:100]}"
        )
    return tokenizer


def _tokenizer(folder: Path) -> Any:
    config, about = (outside.read_json(folder / name) or {} for name in (CONFIG, TOKENIZER))
    if config.get("model_type") == "llama" and about.get("tokenizer_class") == GENERIC:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def convert(path: Path, out: Path) -> None:
    """Write the model of a GGUF file, or an adapter with its base, as a plain directory. Raises FileExistsError if there is
    something in ``out``, and ValueError if ``path`` is neither."""
    if path.suffix != gguf.SUFFIX and lora.base_of(path) is None:
        raise ValueError(f"{path} is no {gguf.SUFFIX} file and no adapter; any other model is a directory already")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: choose another directory")
    if path.is_dir():
        verify(path)
    save_model(out, *load_model(path, device="cpu"))
    if asked := asked_as(path):
        (out / ASKED_AS).write_text(json.dumps(asked, indent=2) + "\n")


def save_model(folder: Path, model: Any, tokenizer: Any, trained: Mapping[str, Tensor] | None = None) -> None:
    """Write a directory that ``from_pretrained`` reads; of a model with an adapter, the adapter only. A scalar head is no part of
    the architecture and has a file of its own. ``trained`` are the weights (see ``lora.trained``), if they are not the model's."""
    folder.mkdir(parents=True, exist_ok=True)
    found = lora.trained(model) if trained is None else trained
    weights = {k: v for k, v in found.items() if not k.startswith(f"{head.NAME}.")}
    if lora.adapted(model):
        lora.save(folder, model, weights)
    elif isinstance(model, Llama):
        _write(folder, model, weights)
    else:
        from transformers.utils import logging

        logging.disable_progress_bar()
        model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    head.save(folder, model)


def save_config(folder: Path, model: Any) -> None:
    """Write the config of a model, by which other programs build it, without its weights."""
    if isinstance(model, Llama):
        config = {k: v for k, v in vars(model.config).items() if k != "torch_dtype"} | {"dtype": "float32"}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    else:
        own = copy.deepcopy(model.config)
        own.architectures = [type(model).__name__]
        own.save_pretrained(folder)


def _write(folder: Path, model: Llama, weights: Mapping[str, Tensor]) -> None:
    save_config(folder, model)
    if model.generation is not None:
        (folder / GENERATION).write_text(json.dumps(model.generation, indent=2) + "\n")
    own = {name for name, _ in model.named_parameters()}  # a tied weight is saved once
    save_file({k: v.contiguous() for k, v in weights.items() if k in own}, folder / WEIGHTS, {"format": "pt"})


def read_trained(folder: Path, model: Any) -> dict[str, Tensor]:
    """Return what was saved of ``model`` in ``folder``, by name, cut as its weights are. Raises ValueError if that is of another
    model."""
    own = lora.trained(model)
    saved = (lora.read(folder) if lora.base_of(folder) else load_file(folder / WEIGHTS)) | head.read(folder)
    same = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}  # a tied weight is saved once
    there = {same.get(name, name) for name in saved}
    missing = {name for name in own.keys() - saved.keys() if same.get(name, name) not in there}
    if different := missing | (saved.keys() - own.keys()):
        raise ValueError(f"{folder} holds another model: the weights differ in {', '.join(sorted(different)[:3])}")
    return {name: like(own[name], tensor) for name, tensor in saved.items()}


def chat_options(path: Path) -> dict[str, Any]:
    """Return how prompts are made for the model at ``path``: what a model of ours was trained with, by the names of
    ``text.chat.Chat``, and ``stop``, the tokens that end a text by its generation config."""
    file = next((path / name for name in (STATE, ASKED_AS, OLD_STATE) if (path / name).is_file()), path / STATE)
    trained = outside.read_json(file) or {}
    kinds = {"question": str, "enable_thinking": bool, "think_end": str, "opening": str}
    found = {name: trained[name] for name in kinds if trained.get(name) is not None}
    if wrong := [name for name, value in found.items() if not isinstance(value, kinds[name])]:
        raise ValueError(f"{file}: {wrong[0]} cannot be {str(found[wrong[0]])[:100]}")
    return found | {"stop": stop_tokens(path), "last_token": _last_token(file, trained.get("recipe"))}


def asked_as(path: Path) -> dict[str, Any]:
    """Return the content of ``ASKED_AS``: what ``chat_options`` finds among a checkpoint's trainer files, for a copy without them."""
    options = chat_options(path)
    asked = {name: value for name, value in options.items() if name not in ("stop", "last_token")}
    if (how := options["last_token"]) is not None:
        asked["recipe"] = {"last_token": how.token, "scale": how.scale, "reference": how.reference}
    return asked


def _last_token(file: Path, recipe: object) -> LastToken | None:
    """Return how the last-token score of a checkpoint is read; None if its recipe's state has none."""
    names = ("last_token", "scale", "reference")
    if not isinstance(recipe, dict) or not recipe.keys() >= {*names}:
        return None
    token, scale, reference = (recipe[name] for name in names)
    if type(token) is not int or token < 0 or not all(isinstance(x, int | float) for x in (scale, reference)):
        raise ValueError(f"{file}: a last-token score cannot be {str([token, scale, reference])[:100]}")
    return LastToken(token, scale, reference)


def stop_tokens(path: str | Path) -> tuple[int, ...]:
    """Return the tokens that end a text by the model's generation config (Llama-3 has three); none if it has no such file."""
    file = Path(path)
    if file.suffix == gguf.SUFFIX:
        return gguf.stop_tokens(file)
    base = _base(file, weights=False)
    return stop_tokens(base) if base else outside.ends(file / GENERATION)
