"""A running vLLM server as the engine of a training: HTTP for the texts, a file for the weights.

After every update the weights are written to a folder that both sides see, the server reads them over its own
(``/collective_rpc``, method ``reload_weights``), and its prefix cache is dropped. vLLM's NCCL back ends are faster, and need the
learner and the server on different GPUs of machines that reach each other; they are not used here.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from twofold.engines.agreement import check_agreement
from twofold.engines.base import Finished, UpstreamError, ignore_finished
from twofold.engines.remote import RemoteEngine
from twofold.engines.wire import Wire
from twofold.models import lora
from twofold.types import Completion, Precision, Sampling

OLDEST = (0, 28)
START = "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL"
MEMORY = Path("/dev/shm")
"""Where Linux keeps files in memory."""
TEXT = [7, 8, 9, 10]
"""Token ids by which the server's abilities are found out."""


class VllmServerEngine(RemoteEngine):
    """Implements ``PolicyEngine`` with a server of vLLM 0.28 or newer that was started as ``START`` says, for the same model.

    ``exchange`` is a folder that the server sees under the same path; by default it is in this machine's memory. The file has the
    learner's ``precision`` and lies there during ``load`` only. No two runs may share a server.

    The constructor takes the learner's weights over, and raises ValueError if the server is too old, serves several models or
    gives log-probs of another distribution than it samples from. Every call raises UpstreamError, which names the server, if it
    gives no byte of an answer to a request for ``deadline`` seconds. ``load`` raises Mismatch as ``VllmEngine`` does.
    """

    def __init__(
        self, model: Any, *, url: str, exchange: str = "", precision: Precision = "float32", deadline: float = 600.0
    ) -> None:
        root = url.rstrip("/").removesuffix("/v1")
        self.policy, self.precision, self.url = model, precision, root
        self.exchange = Path(exchange) if exchange else MEMORY if MEMORY.is_dir() else None
        self._control = Wire(root, deadline)
        self._check_version()
        super().__init__(f"{root}/v1", text=TEXT, ids=TEXT, silence=deadline)
        self.load(lora.weights(model))

    def load(self, weights: Mapping[str, Any]) -> None:
        """Let the server take new weights, drop its prefix cache, and compare the log-probs of a text with the learner's."""
        own = {name for name, _ in self.policy.named_parameters()}  # a tied weight is sent once
        dtype = getattr(torch, self.precision)
        tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in weights.items() if k in own}
        with tempfile.TemporaryDirectory(prefix="twofold-weights-", dir=self.exchange) as folder:
            Path(folder).chmod(0o755)  # the server may be another user's
            save_file(tensors, Path(folder) / "model.safetensors", {"format": "pt"})
            self._ask("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}})
        if not self._ask("/reset_prefix_cache", {}).get("success"):
            raise RuntimeError(f"{self.url} did not drop what it has cached of the old weights: somebody else uses it")
        check_agreement(f"the vLLM server {self.url}", self, self.policy, self.precision, self.context.tokens)

    def rest(self) -> None:
        """Do nothing: the server's memory is not the learner's."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished = ignore_finished
    ) -> list[list[Completion]]:
        if self.raw_logprobs and sampling.temperature not in (0, 1):
            raise ValueError(
                f"{self.url} gives log-probs at temperature 1, and the policy is sampled at {sampling.temperature}: "
                f"start the server with --logprobs-mode processed_logprobs"
            )
        return super().generate(prompts, sampling, finished)

    def _check_version(self) -> None:
        """Raise ValueError unless this is vLLM, new enough, whose weights can be replaced."""
        try:
            found = str(self._ask("/version").get("version"))
        except UpstreamError as error:
            if error.status != 503:
                raise
            raise UpstreamError(503, f"{error}. Start it first, or set engine.url") from error
        if tuple(map(int, re.findall(r"\d+", found)[:2])) < OLDEST:
            raise ValueError(f"{self.url} is vLLM {found}: 0.28 or newer is needed")
        try:
            self._ask("/is_paused")
        except UpstreamError as error:
            if error.status != 404:
                raise
            raise ValueError(f"{self.url} does not let its weights be replaced. Start it with: {START}") from error

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the server's reply to one request: POST of ``body``, or GET."""
        found: dict[str, Any] = {}
        self._control.submit([self._control.request(path, body, found.update)]).result()
        return found
