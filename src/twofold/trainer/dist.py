"""One run in many processes: rank 0 leads, and the other ranks sample and compute gradients for it.

``torchrun --nproc-per-node N -m twofold train ...`` starts N processes ("ranks"), each with the whole model. Rank 0 runs the
program that a single process runs: it has the recipe, the grading, the optimiser, the log and the checkpoints. Its engines deal
their prompts out to the engines of all ranks, and its learners deal their micro-batches out. The other ranks do what they are
told (``Team.work``) until the run ends. With ``train.shard`` each rank has a part of the weights, of the gradients and of the
optimiser's state, and all ranks do every update together (``ShardedLearner``).

So everything that is computed over a whole step (a balance of verdicts, moving averages, denominators, an order of minibatches,
the norm of a gradient) is computed in one place, and every rollout is graded once. No recipe, loss or optimiser knows of ranks.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from twofold.engines.base import Finished, Homes, PolicyEngine, ignore_finished, route
from twofold.maths.packing import micro_batches
from twofold.maths.shares import shares
from twofold.models import head, lora, sharding
from twofold.models.decoder import Decoder
from twofold.models.quantised import check_whole
from twofold.trainer import checkpoint
from twofold.trainer.batch import Batch, batches, shared_prefix
from twofold.trainer.learner import Learner
from twofold.types import Completion, Sample, Sampling

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""The names by which a model's config says that it is a mixture of experts."""
MINUTES = 30
"""How long a rank waits for another one that is alive but does not answer. One whose process has ended is noticed at once."""


class LostRank(ConnectionError):
    """Another process of the run has ended or does not answer."""


@cache  # a process has one place
def team() -> Team:
    """Return this process's place among those that torchrun started: alone, if torchrun did not.

    Raises ValueError if there are GPUs, but fewer than processes on this machine.
    """
    rank, size, here = (int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    if size > 1:
        gpus = torch.cuda.device_count()
        if gpus:
            if here >= gpus:
                raise ValueError(f"rank {rank} has no GPU: this machine has {gpus}. Lower torchrun's --nproc-per-node")
            torch.cuda.set_device(here)
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(minutes=MINUTES))
        atexit.register(distributed.destroy_process_group)
        if rank:
            logging.getLogger("twofold").setLevel(logging.ERROR)  # rank 0 says it
    return Team(rank, size)


class Team:
    """The ranks of a run, as one of them sees it. Messages are JSON; weights and gradients are tensors."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.engines: list[SharedEngine] = []
        self.sharded = False

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def engine(self, make: Callable[[Any], PolicyEngine]) -> Callable[[Any], PolicyEngine]:
        """Return a function like ``make``, from a model to its engine, whose engines deal their prompts out to all ranks.

        Every rank must make the same engines in the same order. Those of an earlier run in this process are forgotten.
        """
        self.engines, self.sharded = [], False

        def shared(model: Any) -> SharedEngine:
            self.engines.append(SharedEngine(self, len(self.engines), model, make(model)))
            return self.engines[-1]

        return make if self.size == 1 else shared

    def shard(self) -> None:
        """Cut the weights of every engine's model among the ranks. Without other ranks nothing changes.

        Raises ValueError if a model has a scalar head, experts (ranks would gather different ones) or a base in four bits.
        """
        if self.size == 1:
            return
        for model in (engine.model for engine in self.engines):
            check_whole(model, "train.shard")
            has = {
                "a scalar head": hasattr(model, head.NAME),
                "experts": any(getattr(model.config, x, 0) for x in EXPERTS),
            }
            if found := [what for what, there in has.items() if there]:
                raise ValueError(f"train.shard: {type(model).__name__} has {found[0]}; set train.shard = false")
        self.sharded = True
        mesh = distributed.init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (self.size,))
        for engine in self.engines:
            sharding.shard(engine.model, mesh)
            if not Decoder.suits(engine.model):
                sharding.gather_when_called(engine.model)

    def learner(self, role: str, *args: Any, **options: Any) -> Learner:
        """Return the learner of a role, whose micro-batches are dealt out to all ranks."""
        if self.size == 1:
            return Learner(*args, **options)
        return (ShardedLearner if self.sharded else SharedLearner)(self, role, *args, **options)

    def restore(self, folder: Path, role: str, learner: Learner) -> None:
        """Let a learner continue from a checkpoint (see ``checkpoint.restore``): in all ranks, if each has its own part of it."""
        if self.sharded:
            self.tell(["restore", str(folder), role])
        checkpoint.restore(folder, learner)

    def work(self, learners: Mapping[str, Any]) -> Any:
        """Do what rank 0 tells, until it says that the run is over; return what it said last.

        Ctrl-C and SIGTERM are for rank 0, which finishes the step and saves. Raises LostRank if it ends without a word.
        """
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while True:
                match self.receive(0):
                    case ["generate", engine, prompts, sampling]:
                        chosen = Sampling(**sampling | {"stop": tuple(sampling["stop"])})
                        self.send(self.engines[engine].own.generate(prompts, chosen), 0)
                    case ["logprobs" | "values" as verb, engine, *columns]:
                        self.send(getattr(self.engines[engine].own, verb)(*columns), 0)
                    case ["load", engine]:
                        self.engines[engine].load(lora.weights(self.engines[engine].model))
                    case ["rest", engine]:
                        self.engines[engine].own.rest()
                    case ["gradients", role, samples, policy]:
                        learners[role].add_gradients(samples and [Sample(**s) for s in samples], policy)
                    case ["update", role, samples]:
                        learners[role].update([Sample(**s) for s in samples])
                    case ["saved", role]:
                        learners[role].saved()
                    case ["restore", folder, role]:
                        checkpoint.restore(Path(folder), learners[role])
                    case ["end", said]:
                        return said
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def tell(self, message: Any) -> None:
        """Send a message from rank 0 to all others."""
        data = _packed(message)
        for rank in range(1, self.size):
            self._send(data, rank)

    def gather(self, message: Any) -> list[Any]:
        """Return the messages of all ranks in rank 0; in another one, its own."""
        if self.rank:
            self.send(message, 0)
        return [message] if self.rank else [message, *map(self.receive, range(1, self.size))]

    def agree(self, message: Any) -> Any:
        """Return what rank 0 says, in all ranks."""
        if self.rank:
            return self.receive(0)
        self.tell(message)
        return message

    def send(self, message: Any, rank: int) -> None:
        self._send(_packed(message), rank)

    def _send(self, data: Tensor, rank: int) -> None:
        with self._with(f"rank {rank}"):
            distributed.send(torch.tensor([len(data)]), rank)
            distributed.send(data, rank)

    def receive(self, rank: int) -> Any:
        size = torch.zeros(1, dtype=torch.long)
        with self._with(f"rank {rank}"):
            distributed.recv(size, rank)
            data = torch.empty(int(size), dtype=torch.uint8)
            distributed.recv(data, rank)
        return json.loads(data.numpy().tobytes())

    def spread(self, model: Any) -> None:
        """Give all ranks the weights of rank 0's model that training changes, in place. Those that are cut are no one's alone."""
        with self._with("another rank"):
            for p in model.parameters():
                if p.requires_grad and not sharding.is_cut(p):
                    distributed.broadcast(p.detach(), 0)

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Add up all ranks' numbers in rank 0, in place and in an order that only the number of ranks decides."""
        with self._with("another rank"):
            for tensor in tensors:
                distributed.reduce(tensor, 0)

    @contextmanager
    def _with(self, other: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise LostRank(f"rank {self.rank} has lost {other}, whose own message says why: {error}") from error


class SharedEngine:
    """A ``PolicyEngine`` in rank 0 that deals its prompts out to the engines of all ranks; ``own`` is this rank's.

    Prompts that begin with an earlier one of this step go to the same rank, where the earlier one is cached (see ``route``).
    """

    def __init__(self, team: Team, number: int, model: Any, own: PolicyEngine) -> None:
        self.team, self.number, self.model, self.own = team, number, model, own
        self._homes: Homes[int] = {}
        self._loaded = False

    def load(self, weights: Any) -> None:
        """Take rank 0's weights in all ranks, or gather them there if they are cut."""
        if self.team.rank == 0:
            self.team.tell(["load", self.number])
        self.team.spread(self.model)
        self._homes = {}
        self.own.load(weights)
        self._loaded = True

    def rest(self) -> None:
        self.team.tell(["rest", self.number])
        self.own.rest()
        self._loaded = False

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished = ignore_finished
    ) -> list[list[Completion]]:
        parts, self._homes = self._dealt(prompts)

        def of_own(k: int, j: int, completion: Completion) -> None:
            finished(parts[0][k], j, completion)

        def arrived(part: list[int], rows: list[Any]) -> list[list[Completion]]:
            groups = [[Completion(**c) for c in row] for row in rows]
            for i, group in zip(part, groups, strict=True):
                for j, completion in enumerate(group):
                    finished(i, j, completion)
            return groups

        def own(chosen: list[Sequence[int]]) -> list[list[Completion]]:
            return self.own.generate(chosen, sampling, of_own)

        return self._shared("generate", parts, [prompts], [sampling], own, arrived)

    def logprobs(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> list[list[float]]:
        def own(chosen: list[Sequence[int]], more: list[Sequence[int]]) -> list[list[float]]:
            return self.own.logprobs(chosen, more, temperature)

        return self._shared("logprobs", self._dealt(prompts)[0], [prompts, continuations], [temperature], own)

    def values(self, prompts: Sequence[Sequence[int]]) -> list[float]:
        """P(right) by the model's scalar head (see ``NativeEngine.values``)."""
        return self._shared("values", self._dealt(prompts)[0], [prompts], [], self.own.values)  # type: ignore[attr-defined]

    def _dealt(self, prompts: Sequence[Sequence[int]]) -> tuple[dict[int, list[int]], Homes[int]]:
        """Return the indices of each rank's prompts, and who has which prompt after a call with them."""
        if self.team.sharded and not self._loaded:
            self.load({})  # a frozen model, which the loop does not load
        return route(prompts, self._homes, range(self.team.size))

    def _shared(
        self,
        verb: str,
        parts: dict[int, list[int]],
        columns: list[Sequence[Any]],
        rest: list[Any],
        own: Callable[..., list[Any]],
        arrived: Callable[[list[int], list[Any]], list[Any]] = lambda part, rows: rows,
    ) -> list[Any]:
        """Let every rank do its part of a call. The results are in the order of the columns' entries."""
        chosen = {rank: [[column[i] for i in part] for column in columns] for rank, part in parts.items()}
        others = [rank for rank in range(1, self.team.size) if parts[rank]]
        for rank in others:
            self.team.send([verb, self.number, *chosen[rank], *rest], rank)
        results = dict(zip(parts[0], own(*chosen[0]), strict=True)) if parts[0] else {}
        for rank in others:
            results |= zip(parts[rank], arrived(parts[rank], self.team.receive(rank)), strict=True)
        return [results[i] for i in range(len(columns[0]))]


class SharedLearner(Learner):
    """A learner whose micro-batches are dealt out to all ranks. Rank 0 has the sum of the gradients, and the optimiser."""

    def __init__(self, team: Team, role: str, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.team, self.role = team, role
        self._told: Sequence[Sample] = []

    def parts(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Return the indices of the samples of each rank."""
        return shares([len(s.tokens) for s in samples], [shared_prefix(s) for s in samples], self.team.size)

    def batches(self, samples: Sequence[Sample]) -> Iterator[Batch]:
        mine = self.parts(samples)[self.team.rank]
        return batches(samples, self.loss, self.micro_tokens, self.model.device, mine)

    def accumulate(self, samples: Sequence[Sample], policy: bool = True) -> dict[str, float]:
        again = samples is self._told  # the pass that separates the streams
        self.team.tell(["gradients", self.role, None if again else samples, policy])
        return self.add_gradients(samples, policy)

    def add_gradients(self, samples: Sequence[Sample] | None, policy: bool) -> dict[str, float]:
        """Compute the gradients of this rank's micro-batches at rank 0's weights, add those of all ranks up in rank 0, and return
        the sums of their parts by name. Without ``samples`` they are those of the last call."""
        self.team.spread(self.model)  # this may be the second optimiser step of an update
        self._told = self._told if samples is None else samples
        parts = super().accumulate(self._told, policy)
        parameters = list(self.model.parameters())
        rows = self.team.gather([parts, [p.grad is not None for p in parameters]])
        used = self.team.agree([any(flags) for flags in zip(*(flags for _, flags in rows), strict=True)])
        for p, somewhere in zip(parameters, used, strict=True):
            if somewhere and p.grad is None:
                p.grad = torch.zeros_like(p)
        self.team.sum(p.grad for p in parameters if p.grad is not None)
        if self.team.rank:
            self.optimizer.zero_grad(set_to_none=True)
        return _summed([found for found, _ in rows])


class ShardedLearner(SharedLearner):
    """A learner whose weights, gradients and moments are cut among the ranks (see ``models.sharding``).

    All ranks do each update together, each on its own micro-batches and its own rows of the weights.
    """

    def update(self, samples: Sequence[Sample]) -> dict[str, float]:
        if self.team.leads:
            for engine in self.team.engines:  # frozen ones as well, each with a whole copy
                engine.rest()
            self.team.tell(["update", self.role, samples])
        return super().update(samples)

    def accumulate(self, samples: Sequence[Sample], policy: bool = True) -> dict[str, float]:
        rows = self.team.gather(Learner.accumulate(self, samples, policy))
        return self.team.agree(_summed(rows))

    def batches(self, samples: Sequence[Sample]) -> Iterator[Batch]:
        """Yield this rank's micro-batches, and empty ones until all ranks have had as many: weights are gathered together."""
        yield from super().batches(samples)
        parts = [[samples[i] for i in part] for part in self.parts(samples)]
        counts = [
            len(micro_batches([len(s.tokens) for s in part], [shared_prefix(s) for s in part], self.micro_tokens))
            for part in parts
        ]
        none = Sample(samples[0].tokens[:2], [False] * 2, [0.0] * 2, [0.0] * 2, [0.0] * 2)
        for _ in range(max(counts) - counts[self.team.rank]):
            yield from batches([none], self.loss, self.micro_tokens, self.model.device, [0])

    def saved(self) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Return whole copies in main memory, in rank 0; nothing in the others."""
        if self.team.leads:
            self.team.tell(["saved", self.role])
        weights, moments = super().saved()
        same = {name: id(p) for name, p in self.model.named_parameters(remove_duplicate=False)}
        copies: dict[Any, Tensor] = {}
        for key, tensor in ({same.get(name, name): tensor for name, tensor in weights.items()} | {**moments}).items():
            every = sharding.whole(tensor)
            if self.team.leads:
                copies[key] = every.cpu()
        if not self.team.leads:
            return {}, {}
        return {name: copies[same.get(name, name)] for name in weights}, {name: copies[name] for name in moments}


def _summed(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for found in rows for name in found)
    return {name: sum(found.get(name, 0.0) for found in rows) for name in names}


def _packed(message: Any) -> Tensor:
    """Return a message as bytes of JSON; floats keep all their bits."""
    return torch.frombuffer(bytearray(json.dumps(message, default=_record).encode()), dtype=torch.uint8)


def _record(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}
