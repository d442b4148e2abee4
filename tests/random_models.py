"""Small models of any architecture with random weights, saved as model directories."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

SHIPPED = Path(__file__).parents[1] / "src" / "twofold" / "assets" / "tiny"


def random_model(family: str, folder: Path, shards: str = "1GB", **options: Any) -> Path:
    """Make a random model of a family of ``transformers``, with the shipped model's tokenizer. Return its directory."""
    shape = dict(vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    shape |= dict(num_key_value_heads=2, initializer_range=0.2, eos_token_id=3, pad_token_id=0) | options
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(getattr(transformers, f"{family}Config")(**shape)).float()
    for p in model.parameters():  # norms of ones and biases of zeros would hide a mistake
        if p.ndim == 1:
            p.data += torch.linspace(-0.3, 0.3, len(p))
    model.save_pretrained(folder, max_shard_size=shards)
    for file in [*SHIPPED.glob("*token*"), *SHIPPED.glob("*.jinja")]:
        shutil.copy(file, folder)
    return folder
