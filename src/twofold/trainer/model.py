"""Load a causal LM and its tokenizer from a plain Hugging Face directory or hub name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from twofold.maths.attention import install

Precision = Literal["float32", "bfloat16"]


def load_model(path: str | Path, *, device: str | None = None) -> tuple[Any, Any]:
    """(model, tokenizer). Weights are kept in fp32 masters; ``precision`` elsewhere says what the matmuls run in.

    Any full-attention ``AutoModelForCausalLM``; custom code in a model directory is never run.
    Raises OSError if there is no such model, ValueError for an unsupported attention.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = load_tokenizer(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return install(model.to(device).eval()), tokenizer


def load_tokenizer(path: str | Path) -> Any:
    """Raises OSError if there is no such model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)
