"""The longest text for which this package gives a model's own numbers."""

from __future__ import annotations

from typing import Any

from twofold.types import Context

WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Kinds of layers that see the last tokens only -> the config's name of how many. On a text of at most so many tokens they are
full attention."""


def context(config: Any) -> Context:
    """Return the context of a model's config: the least of these numbers.

    * ``max_position_embeddings``, or what YaRN extends it to: ``factor`` times the original context.
    * The sliding window of any layer. A longer text would need its mask.
    * With LongRoPE, the original context. Beyond it all frequencies are others, so that the longest row of a batch would change
      the numbers of all. (Frequencies of type ``dynamic`` do so beyond ``max_position_embeddings``.)
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    said: dict[str, int | None] = {"max_position_embeddings": getattr(text, "max_position_embeddings", None)}
    kinds = getattr(text, "layer_types", None)
    if kinds is None:  # as the config classes that have windows would fill it in
        kinds = ["sliding_attention"] if getattr(text, "use_sliding_window", True) else []
    said |= {name: getattr(text, name, None) for kind, name in WINDOWS.items() if kind in kinds}
    for rope in _rotations(text):
        kind = rope.get("rope_type", rope.get("type"))
        original = rope.get("original_max_position_embeddings") or getattr(
            text, "original_max_position_embeddings", None
        )
        if kind == "longrope":
            said["original_max_position_embeddings"] = original
        elif kind == "yarn" and original and (limit := said["max_position_embeddings"]):
            said["max_position_embeddings"] = max(limit, int(original * (rope.get("factor") or 1)))
    known = {name: tokens for name, tokens in said.items() if tokens}
    by = min(known, key=known.__getitem__, default="")
    return Context(known.get(by), by)


def _rotations(config: Any) -> list[dict[str, Any]]:
    """Return the RoPE parameters of a config: one table, or one per kind of layer."""
    said = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return [x for x in said.values() if x] if all(isinstance(x, dict | None) for x in said.values()) else [said]
