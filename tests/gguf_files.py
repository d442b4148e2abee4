"""GGUF files of small random models, written as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, TokenType
from safetensors.numpy import load_file

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(folder: Path, file: Path, *, pre: str = "smollm", more: dict[str, np.ndarray] | None = None) -> Path:
    """Write the model of a directory, with the shipped model's kind of tokenizer; ``more`` are further tensors."""
    config = json.loads((folder / "config.json").read_text())
    kind = config["model_type"]
    writer = GGUFWriter(file, kind)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_key_length(width)
    if kind == "llama":
        writer.add_rope_dimension_count(width)
    _add_tokenizer(writer, folder, pre)
    for name, tensor in load_file(folder / "model.safetensors").items():
        if kind == "llama" and (heads := _turned(name, config)):  # llama.cpp turns neighbours, transformers halves
            tensor = tensor.reshape(heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(_named(name), np.ascontiguousarray(tensor, np.float32))
    for name, tensor in (more or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _named(name: str) -> str:
    place, last = name.rsplit(".", 1)
    if place.startswith("model.layers."):
        _, _, layer, place = place.split(".", 3)
        return f"blk.{layer}.{NAMES[place]}.{last}"
    return f"{NAMES[place]}.{last}"


def _turned(name: str, config: dict[str, Any]) -> int | None:
    if ".q_proj." in name:
        return config["num_attention_heads"]
    return config["num_key_value_heads"] if ".k_proj." in name else None


def _add_tokenizer(writer: GGUFWriter, folder: Path, pre: str) -> None:
    told = json.loads((folder / "tokenizer.json").read_text())
    tokens = dict(told["model"]["vocab"]) | {t["content"]: t["id"] for t in told["added_tokens"]}
    ids = sorted(tokens, key=tokens.__getitem__)
    ids += [f"[PAD{i}]" for i in range(len(ids), 512)]
    kinds = {t["content"]: TokenType.CONTROL if t["special"] else TokenType.USER_DEFINED for t in told["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(ids)
    writer.add_token_types([kinds.get(t, TokenType.UNUSED if t.startswith("[PAD") else TokenType.NORMAL) for t in ids])
    writer.add_token_merges([" ".join(pair) for pair in told["model"]["merges"]])
    writer.add_eos_token_id(tokens["<|end|>"])
    writer.add_eot_token_id(tokens["<|user|>"])
    writer.add_pad_token_id(tokens["<|pad|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template((folder / "chat_template.jinja").read_text())
