"""The ``[engine]`` section of a config: which engine samples while training, with its options. A name chooses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from twofold import source
from twofold.engines.base import PolicyEngine
from twofold.ranges import Count, NonNegative, Positive, checked
from twofold.types import Precision

if TYPE_CHECKING:
    from twofold.engines.fleet import FleetEngine


@checked
class Native:
    """The engine that samples from the same module that trains."""

    name: Literal["native"] = "native"
    exact: bool = False
    """Let the engine and the learner compute log-probs that depend, bit for bit, on their own text alone: what is sampled is what
    is scored, in any company. For models of Llama's family, on a CPU. This is slower."""
    max_rows: Count = 1024
    """Number of rows that are decoded at once; the samples of one prompt stay together."""

    def build(self, model: Any, precision: Precision) -> PolicyEngine:
        from twofold.engines.native import NativeEngine

        return NativeEngine(model, exact=self.exact, max_rows=self.max_rows, precision=precision)


@checked
class Vllm:
    """vLLM in this process (extra ``vllm``), with a copy of the weights that is overwritten after every update."""

    name: Literal["vllm"] = "vllm"
    context: Count | None = None
    """The most tokens of a text, if that is to be less than the model's own context. The prefix cache must hold one such text."""
    max_rows: Count = 256
    """Number of texts that are decoded at once."""
    kv_gib: Positive = 4.0
    """Memory of the prefix cache in GiB."""
    eager: bool = False
    """Neither compile the model nor capture graphs: vLLM starts sooner and decodes more slowly."""
    sleep: bool = True
    """Give the GPU's memory back while the learner works. vLLM allows it to one engine of a process."""
    deadline: Positive = 600.0
    """Seconds in which vLLM must finish a step of whatever it is asked, or start."""

    def build(self, model: Any, precision: Precision) -> PolicyEngine:
        from twofold.engines.vllm import VllmEngine
        from twofold.models.quantised import check_whole

        check_whole(model, "vLLM")
        return VllmEngine(
            model, precision=precision, tokens=self.context, max_rows=self.max_rows, kv_gib=self.kv_gib,
            eager=self.eager, sleep=self.sleep, deadline=self.deadline,
        )  # fmt: skip


@checked
class VllmServer:
    """A running vLLM server, on other devices or another machine, whose weights are replaced after every update."""

    name: Literal["vllm-server"] = "vllm-server"
    url: str = "http://127.0.0.1:8000"
    exchange: str = ""
    """Folder for the weights, which the server sees under the same path; empty: this machine's memory."""
    deadline: Positive = 600.0
    """Seconds in which the server must answer a request."""

    def build(self, model: Any, precision: Precision) -> PolicyEngine:
        from twofold.engines.vllm_server import VllmServerEngine
        from twofold.models.quantised import check_whole

        check_whole(model, "a vLLM server")
        return VllmServerEngine(
            model, url=self.url, exchange=self.exchange, precision=precision, deadline=self.deadline
        )


@checked
class Fleet:
    """Native engines in the workers of a Ray cluster (extra ``ray``)."""

    name: Literal["fleet"] = "fleet"
    workers: Count = 2
    """Number of workers. The fleet works with as many as the cluster can hold, and takes in the others when it can."""
    address: str = ""
    """Address of the cluster, as ``ray.init`` takes it; empty: start one on this machine."""
    cpus: Positive = 1.0
    """Processor cores of a worker."""
    gpus: NonNegative = 0.0
    """GPUs of a worker."""
    timeout: Positive = 600.0
    """Seconds to wait for a worker's result, or for the first worker to start."""
    exact: bool = False
    """As ``Native.exact``: the results have the same bits with any number of workers."""
    max_rows: Count = 1024
    """Number of rows that a worker decodes at once."""

    def build(self, model: Any, precision: Precision) -> FleetEngine:
        from twofold.engines.fleet import FleetEngine
        from twofold.models.quantised import check_whole

        check_whole(model, "a fleet")
        return FleetEngine(
            model, workers=self.workers, address=self.address, cpus=self.cpus, gpus=self.gpus, timeout=self.timeout,
            exact=self.exact, max_rows=self.max_rows, precision=precision,
        )  # fmt: skip


@checked
class PythonEngine:
    """Your own engine: ``mine.py:Engine``. It is called with the module that trains, once for each role."""

    name: Literal["python"] = "python"
    source: str = ""

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError('source is required: the file and the name in it, such as source = "mine.py:Engine"')

    def build(self, model: Any, precision: Precision) -> PolicyEngine:
        from twofold.models.quantised import check_whole

        check_whole(model, "an engine of your own")
        return source.load(self.source)(model)


EngineConfig = Native | Vllm | VllmServer | Fleet | PythonEngine
Outside = VllmServer | Fleet
"""Engines that compute in other processes, for all ranks of a run. Rank 0 asks them."""
