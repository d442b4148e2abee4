"""A model of Llama's family as tensors with names, which ``Decoder`` runs without the code of ``transformers``.

Importing a model class of ``transformers`` takes longer than a small model takes to load and answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

FAMILY = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
SIZES = {"hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "num_attention_heads"}
SIZES |= {"num_key_value_heads", "rms_norm_eps", "max_position_embeddings"}


def place(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Register a parameter under a name with dots, and the modules on the way to it."""
    *path, last = name.split(".")
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    module.register_parameter(last, nn.Parameter(tensor))


class Llama(nn.Module):
    """The weights of a model under the names that ``transformers`` gives them, and its ``config`` (the content of config.json).

    It has no forward pass of its own: learning, sampling and saving find the weights by their names. ``generation`` is the
    content of generation_config.json, which is kept for other programs.
    """

    def __init__(
        self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], generation: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.config, self.generation = SimpleNamespace(**config), generation
        for name, tensor in tensors.items():
            place(self, name, tensor)
        if "lm_head" not in self._modules:
            self.lm_head = self.get_input_embeddings()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def get_input_embeddings(self) -> nn.Module:
        return self.get_submodule("model.embed_tokens")

    def get_output_embeddings(self) -> nn.Module:
        return self.get_submodule("lm_head")

    def frequencies(self, width: int) -> Tensor:
        """Return the angle by which each pair of a head's ``width`` dimensions turns from one position to the next, [width / 2]."""
        said = getattr(self.config, "rope_parameters", None) or vars(self.config)
        steps = torch.arange(0, width, 2, device=self.device).float() / width
        return 1.0 / said["rope_theta"] ** steps


def plain(config: Mapping[str, Any]) -> bool:
    """Return whether the content of config.json describes a model of the family and nothing more."""
    name = (config.get("architectures") or [""])[0]
    rope = config.get("rope_parameters") or {"rope_type": "default", "rope_theta": config.get("rope_theta")}
    return bool(
        name in FAMILY
        and config.get("model_type") == name.removesuffix("ForCausalLM").lower()
        and config.keys() >= SIZES
        and config.get("hidden_act") == "silu"
        and "quantization_config" not in config
        and not config.get("rope_scaling")
        and rope.get("rope_type") == "default"
        and rope.get("rope_theta")
        and config.get("partial_rotary_factor", 1.0) == rope.get("partial_rotary_factor", 1.0) == 1.0
    )


def shapes(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the name and shape of every weight of a ``plain`` config, none more and none less."""
    kind = config["architectures"][0].removesuffix("ForCausalLM")
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    width = config.get("head_dim") or hidden // config["num_attention_heads"]
    q, kv = (width * config[x] for x in ("num_attention_heads", "num_key_value_heads"))
    attention = kind in ("Llama", "Qwen3") and config.get("attention_bias", False)
    mlp = kind == "Llama" and config.get("mlp_bias", False)
    found = {"model.embed_tokens.weight": [config["vocab_size"], hidden], "model.norm.weight": [hidden]}
    if not config.get("tie_word_embeddings"):
        found["lm_head.weight"] = [config["vocab_size"], hidden]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name, out, into, bias in (
            ("self_attn.q_proj", q, hidden, attention or kind == "Qwen2"),
            ("self_attn.k_proj", kv, hidden, attention or kind == "Qwen2"),
            ("self_attn.v_proj", kv, hidden, attention or kind == "Qwen2"),
            ("self_attn.o_proj", hidden, q, attention),
            ("mlp.gate_proj", ffn, hidden, mlp),
            ("mlp.up_proj", ffn, hidden, mlp),
            ("mlp.down_proj", hidden, ffn, mlp),
        ):
            found[f"{layer}{name}.weight"] = [out, into]
            if bias:
                found[f"{layer}{name}.bias"] = [out]
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{layer}{name}.weight"] = [hidden]
        if kind == "Qwen3":
            found |= {f"{layer}self_attn.{x}_norm.weight": [width] for x in "qk"}
    return found
