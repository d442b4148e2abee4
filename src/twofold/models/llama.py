"""A model of Llama's family as tensors with names, which ``Decoder`` runs without the code of ``transformers``.

Importing a model class of ``transformers`` takes longer than a small model takes to load and answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

FAMILY = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
SIZES = {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "rms_norm_eps"}
LINEAR = [*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down"))]
NORMS = ["input_layernorm", "post_attention_layernorm"]


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
            *path, last = name.split(".")
            place: nn.Module = self
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            place.register_parameter(last, nn.Parameter(tensor))
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


def plain(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Return whether the content of config.json and the names of the weights describe a model of the family and nothing more."""
    rope = config.get("rope_parameters") or {"rope_type": "default", "rope_theta": config.get("rope_theta")}
    usual = (
        (config.get("architectures") or [None])[0] in FAMILY
        and config.keys() >= SIZES
        and config.get("hidden_act") == "silu"
        and "quantization_config" not in config
        and not config.get("rope_scaling")
        and rope.get("rope_type") == "default"
        and rope.get("rope_theta")
        and config.get("partial_rotary_factor", 1.0) == rope.get("partial_rotary_factor", 1.0) == 1.0
        and set(config.get("layer_types") or ["full_attention"]) == {"full_attention"}
        and not (config.get("sliding_window") and config.get("use_sliding_window", True))
    )
    if not usual:
        return False
    layers = [f"model.layers.{i}." for i in range(config["num_hidden_layers"])]
    needed = {"model.embed_tokens.weight", "model.norm.weight"}
    needed |= set() if config.get("tie_word_embeddings") else {"lm_head.weight"}
    needed |= {f"{layer}{x}.weight" for layer in layers for x in LINEAR + NORMS}
    allowed = {f"{layer}{x}.bias" for layer in layers for x in LINEAR}
    allowed |= {f"{layer}self_attn.{x}_norm.weight" for layer in layers for x in "qk"}
    return needed <= set(names) <= needed | allowed
