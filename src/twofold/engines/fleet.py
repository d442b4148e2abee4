"""A fleet: native engines in the workers of a Ray cluster, behind the methods of one engine.

A prompt goes to the worker that has its beginning in a kept cache, or else to the one with the least to do. A call names the
weights that it wants, and a worker that has others fetches them first, from one copy per node. So a worker that joins late is
like the others, and the prompts of a worker that dies are done again by those that remain. Each result is taken once.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError
from torch import Tensor, nn

from twofold.engines.base import Finished, Homes, Usage, check_prompts, ignore_finished, route
from twofold.engines.native import NativeEngine
from twofold.models.context import context
from twofold.types import Completion, Context, Precision, Sampling

log = logging.getLogger(__name__)

TRIES = 3
"""Number of workers that may die over a call's prompts before the call fails: it may be a prompt that kills them."""


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers of a model by name. Tied weights are there once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def skeleton(model: nn.Module) -> nn.Module:
    """Return a copy of a model without its numbers: every tensor is on the device ``meta``."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    return copy.deepcopy(model, memo)


def to_bytes(tensor: Tensor) -> np.ndarray:
    """Return a tensor's bytes as an array, which Ray shares between the processes of a node."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights in Ray's object store. ``refs`` has one reference; in a list, because Ray would copy what an argument refers to."""

    version: int
    refs: list[Any]


class Worker:
    """A native engine in a process of the cluster. ``empty``: the model, as ``skeleton`` returns it."""

    def __init__(self, empty: nn.Module, exact: bool, max_rows: int, precision: Precision) -> None:
        self.model = empty.to_empty(device="cuda" if torch.cuda.is_available() else "cpu").eval()
        self.options = {"exact": exact, "max_rows": max_rows, "precision": precision}
        self.engine: NativeEngine | None = None
        self.version = 0

    def where(self) -> tuple[str, int]:
        """Return the id of this worker's node and its process's number. The answer comes when the worker has started."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def generate(self, weights: Weights, prompts: list[list[int]], sampling: Sampling) -> list[list[Completion]]:
        return self._with(weights).generate(prompts, sampling)

    def logprobs(
        self, weights: Weights, prompts: list[list[int]], continuations: list[list[int]], temperature: float
    ) -> list[list[float]]:
        return self._with(weights).logprobs(prompts, continuations, temperature)

    def rest(self) -> None:
        if self.engine is not None:
            self.engine.rest()

    def usage(self) -> Usage:
        return self.engine.usage if self.engine is not None else Usage()

    @torch.no_grad()
    def _with(self, weights: Weights) -> NativeEngine:
        """Return the engine, with these weights."""
        if weights.version != self.version:
            arrays = ray.get(weights.refs[0])
            for name, tensor in tensors(self.model).items():
                tensor.copy_(torch.from_numpy(arrays[name].copy()).view(tensor.dtype).view(tensor.shape))
            self.version = weights.version
            self.rest()
        if self.engine is None:
            self.engine = NativeEngine(self.model, **self.options)  # type: ignore[arg-type]
        return self.engine


class FleetEngine:
    """Implements ``PolicyEngine`` with ``workers`` processes of a Ray cluster, each with ``cpus`` cores and ``gpus`` GPUs.

    ``address`` is that of a running cluster, as ``ray.init`` takes it; without one, a cluster is started on this machine. The
    fleet works with as many workers as the cluster can hold, at least one, and grows at the next call after there is room.
    ``timeout`` bounds, in seconds, the wait for any worker's result. The other options are those of ``NativeEngine``; with
    ``exact`` the results have the same bits as one engine's, however the prompts are spread. ``model`` is the one in training:
    its numbers are copied by ``load``, or before the first call.

    In a run of several learners (``torchrun``) rank 0 has the only one. Raises TimeoutError, which says who did not answer, if
    nothing comes for that long or no worker can be placed; RuntimeError if the workers of one call keep dying.
    """

    def __init__(
        self,
        model: Any,
        *,
        workers: int = 2,
        address: str = "",
        cpus: float = 1.0,
        gpus: float = 0.0,
        timeout: float = 600.0,
        exact: bool = False,
        max_rows: int = 1024,
        precision: Precision = "float32",
    ) -> None:
        if not ray.is_initialized():
            ray.init(address=address or "local", include_dashboard=False, log_to_driver=False, logging_level="warning")
        self.model, self.size, self.timeout = model, workers, timeout
        self._needs = {"num_cpus": cpus, "num_gpus": gpus}
        self._actor = ray.remote(**self._needs)(Worker)
        self._arguments = (ray.put(skeleton(model)), exact, max_rows, precision)
        self._workers: dict[Any, tuple[str, int]] = {}  # with what ``where`` says
        self._starting: dict[Any, Any] = {}
        self._weights: Weights | None = None
        self._version = 0
        self._homes: Homes[Any] = {}

    @property
    def context(self) -> Context:
        return context(self.model.config)

    @property
    def usage(self) -> Usage:
        """The tokens of the workers that live."""
        each = ray.get([worker.usage.remote() for worker in self._workers])
        return Usage(sum(u.computed for u in each), sum(u.reused for u in each))

    def load(self, weights: Mapping[str, Any]) -> None:
        """Copy the module's own weights, which are the new ones, and drop what was computed from the old ones."""
        self._weights = None
        self._sent()  # now, because the learner may change them during the next call
        self.rest()

    def rest(self) -> None:
        self._homes = {}
        for worker in self._workers:
            worker.rest.remote()

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished = ignore_finished
    ) -> list[list[Completion]]:
        self._check(prompts, [sampling.max_tokens] * len(prompts))

        def ask(worker: Any, part: list[int]) -> Any:
            return worker.generate.remote(self._sent(), [list(prompts[i]) for i in part], sampling)

        def take(i: int, group: list[Completion]) -> None:
            for j, completion in enumerate(group):
                finished(i, j, completion)

        groups, homes = self._spread(prompts, ask, take)
        self._homes = homes
        return groups

    def logprobs(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> list[list[float]]:
        if len(prompts) != len(continuations):
            raise ValueError(f"{len(prompts)} prompts but {len(continuations)} continuations")
        self._check(prompts, [*map(len, continuations)])

        def ask(worker: Any, part: list[int]) -> Any:
            texts = [list(prompts[i]) for i in part], [list(continuations[i]) for i in part]
            return worker.logprobs.remote(self._sent(), *texts, temperature)

        return self._spread(prompts, ask, lambda i, scores: None)[0]

    def _check(self, prompts: Sequence[Sequence[int]], more: Sequence[int]) -> None:
        """Raise here what a worker's engine would raise."""
        check_prompts(prompts)
        self.context.check(max((len(p) + n for p, n in zip(prompts, more, strict=True)), default=0))

    def _sent(self) -> Weights:
        """Return the model's weights, copied to the object store once."""
        if self._weights is None:
            self._version += 1
            arrays = {name: to_bytes(tensor) for name, tensor in tensors(self.model).items()}
            self._weights = Weights(self._version, [ray.put(arrays)])
        return self._weights

    def _spread(
        self, prompts: Sequence[Sequence[int]], ask: Callable[[Any, list[int]], Any], take: Callable[[int, Any], None]
    ) -> tuple[list[Any], Homes[Any]]:
        """Ask workers for the results of all prompts, call ``take`` with each once, and return them, and who has which prompt."""
        results: dict[int, Any] = {}
        homes: Homes[Any] = {}
        waiting: dict[Any, tuple[Any, list[int]]] = {}
        todo, lost = list(range(len(prompts))), 0
        while todo or waiting:
            if todo:
                self._recruit()
                parts, placed = route([prompts[i] for i in todo], self._homes | homes, self._workers)
                homes |= placed
                for worker, chosen in parts.items():
                    if chosen:
                        part = [todo[k] for k in chosen]
                        waiting[ask(worker, part)] = worker, part
                todo = []
            done, _ = ray.wait(list(waiting), timeout=self.timeout)
            if not done:
                raise TimeoutError(
                    f"no answer within {self.timeout:g} s from " + ", ".join(self._name(w) for w, _ in waiting.values())
                )
            worker, part = waiting.pop(done[0])
            try:
                found = ray.get(done[0])
            except RayActorError as error:
                lost += 1
                if lost == TRIES:
                    raise RuntimeError(f"{TRIES} workers died during one call; the last said: {error}") from error
                log.warning("%s died, and its %d prompts are done again: %s", self._name(worker), len(part), error)
                del self._workers[worker]
                todo = part
                continue
            for i, result in zip(part, found, strict=True):
                results[i] = result
                take(i, result)
        return [results[i] for i in range(len(prompts))], homes

    def _recruit(self) -> None:
        """Take in the workers that have started, and start what is missing. Wait only while there is none."""
        missing = self.size - len(self._workers) - len(self._starting)
        enough = 0 if self._workers else max(1, min(missing, self._room()))
        for _ in range(missing):
            worker = self._actor.remote(*self._arguments)
            self._starting[worker.where.remote()] = worker
        while self._starting:
            patience = self.timeout if len(self._workers) < enough else 0
            started, _ = ray.wait(list(self._starting), timeout=patience)
            if not started:
                break
            worker = self._starting.pop(started[0])
            try:
                self._workers[worker] = ray.get(started[0])
            except RayActorError as error:
                log.warning("a worker died while it started: %s", error)
        if not self._workers:
            has = {k: v for k, v in ray.cluster_resources().items() if k in ("CPU", "GPU")}
            raise TimeoutError(
                f"no worker started within {self.timeout:g} s: each needs {self._needs}, and the cluster has "
                f"{has}, of which another engine of this run may hold a part"
            )

    def _name(self, worker: Any) -> str:
        node, pid = self._workers[worker]
        return f"the worker with process {pid} on node {node[:8]}"

    def _room(self) -> int:
        """Return how many more workers the cluster can hold now."""
        free = ray.available_resources()
        asked = {"CPU": self._needs["num_cpus"], "GPU": self._needs["num_gpus"]}
        return min((int(free.get(kind, 0) / number) for kind, number in asked.items() if number), default=self.size)
