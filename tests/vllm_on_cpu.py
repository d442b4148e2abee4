"""Imported by the workers of vLLM's CPU build (``--worker-extension-cls vllm_on_cpu.Unpacked``), so that their weights can be
replaced: the packed weights of oneDNN cannot. On a GPU nothing like it is needed."""

from __future__ import annotations

import vllm._custom_ops

vllm._custom_ops._supports_onednn = False


class Unpacked:
    """Adds nothing to the worker."""
