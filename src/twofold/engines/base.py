"""The engine protocols: tokens in, tokens and log-probs out. No text, template or tool inside.

``Engine`` is what test-time compute and the recipes call. ``PolicyEngine`` adds what the trainer needs. ``StepEngine`` adds
what a server needs: calls that advance token by token, many at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from twofold.types import Completion, Sampling

Scored = tuple[list[float], list[dict[int, float]]]
"""Two lists with an entry per token of a continuation: its log-prob, and ``{token: log-prob}`` of the likeliest tokens in its
place, likeliest first."""

Finished = Callable[[int, int, Completion], None]
"""A callback ``finished(i, j, completion)``: sample j of prompt i has ended."""

ResultT = TypeVar("ResultT", covariant=True)
PlaceT = TypeVar("PlaceT")

Homes = dict[tuple[int, ...], PlaceT]
"""Of prompts whose tokens are in a kept cache: the place, a rank or a worker, that has it."""


def check_one_learner(engine: str) -> None:
    """Raise ValueError in a run of several processes (``torchrun``), each of which would start an engine of its own."""
    from torch import distributed

    if distributed.is_initialized() and distributed.get_world_size() > 1:
        raise ValueError(f"{engine} samples for one learner, and this run has several: use the native engine")


@dataclass(slots=True)
class Usage:
    """Tokens since the engine was made: ``computed`` in forward passes, ``reused`` from a kept cache."""

    computed: int = 0
    reused: int = 0


def ignore_finished(i: int, j: int, completion: Completion) -> None:
    """Do nothing: the callback of callers that wait for the whole result."""


def report_all(groups: list[list[Completion]], finished: Finished) -> list[list[Completion]]:
    """Call ``finished`` for every completion and return ``groups``: for an engine that gets all completions at once."""
    for i, group in enumerate(groups):
        for j, completion in enumerate(group):
            finished(i, j, completion)
    return groups


class Engine(Protocol):
    """The methods of every engine. Callers make one call per phase, never one per rollout."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, finished: Finished = ignore_finished
    ) -> list[list[Completion]]:
        """Return ``sampling.n`` completions for each prompt (token ids).

        A completion's ``logprobs`` are those of the distribution sampled from, temperature and top-p included; greedy
        decoding reports the softmax at temperature 1.

        ``finished`` is called once per completion before this call returns, as soon as the engine knows that it has ended, in
        any order and from any thread. The other samples wait while it runs.
        """
        ...

    def logprobs(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> list[list[float]]:
        """Return log p(continuation[t] | prompt, continuation[:t]) for every token t of each pair, at ``temperature``, in nats.

        Raises ValueError, as ``generate`` does, for a prompt without tokens.
        """
        ...


class PolicyEngine(Engine, Protocol):
    """An engine of the policy in training."""

    def load(self, weights: Mapping[str, Any]) -> None:
        """Take new weights and drop whatever was cached under the old ones."""
        ...

    def rest(self) -> None:
        """Give memory back to the trainer until the next call."""
        ...


class Run(Protocol[ResultT]):
    """A call that has begun and advances with ``StepEngine.step``."""

    @property
    def done(self) -> bool:
        """Return whether nothing more will come."""
        ...

    @property
    def tokens(self) -> Sequence[list[int]]:
        """The tokens so far, one list per sample, samples of one prompt together. The lists themselves grow. Empty if the
        call scores."""
        ...

    @property
    def logprobs(self) -> Sequence[list[float]]:
        """The log-probs of ``tokens``; a list is never shorter than its list of tokens."""
        ...

    @property
    def results(self) -> ResultT:
        """Return the results so far. Raises the error with which the call failed."""
        ...

    def stop(self) -> None:
        """End the call early; ``results`` stay readable."""
        ...


class StepEngine(Engine, Protocol):
    """An engine whose calls advance together, so that the requests of a server share its forward passes."""

    def session(self) -> StepEngine:
        """Return an engine on the same model for one request, with caches of its own."""
        ...

    def start(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Run[list[list[Completion]]]:
        """Begin a ``generate`` call."""
        ...

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], temperature: float, top: int
    ) -> Run[list[Scored]]:
        """Begin a ``logprobs`` call that also returns the ``top`` likeliest tokens of each place."""
        ...

    def step(self, runs: Sequence[Run[Any]]) -> None:
        """Advance these runs, of whatever sessions, by at most a token per sample, or wait a moment for tokens to arrive.

        A step is short: prompts and texts that are long take several.
        """
        ...


class DeadlinePassed(TimeoutError):
    """The caller's time is over, and the call has no result. Calls that the caller makes after it fail as well."""


class UpstreamError(OSError):
    """An engine's server cannot be reached, is too busy, or gave an answer that cannot be read.

    ``status`` is its HTTP status, or the one a gateway would give (502 bad answer, 503 not reached, 504 too late).
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def check_prompts(prompts: Sequence[Sequence[int]]) -> None:
    """Raise ValueError for a prompt without tokens: nothing precedes its first token to predict it from."""
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {i} of {len(prompts)} has no tokens: begin it with at least one")


def route(
    prompts: Sequence[Sequence[int]], known: Homes[PlaceT], places: Iterable[PlaceT]
) -> tuple[dict[PlaceT, list[int]], Homes[PlaceT]]:
    """Return the indices of each place's prompts, and what the places have in their caches after this call.

    A prompt goes to the place of the longest ``known`` prompt that it begins with, if that place is there; else to the place with the
    fewest tokens in this call. Equal prompts stay together, because a sample's random numbers depend on how often its prompt came
    before. The caches have this call's prompts afterwards, and the known ones with which these begin.

    >>> route([[1, 2, 3], [4], [5, 5], [4]], {(1,): "b"}, ["a", "b"])
    ({'a': [1, 2, 3], 'b': [0]}, {(1,): 'b', (1, 2, 3): 'b', (4,): 'a', (5, 5): 'a'})
    """
    parts: dict[PlaceT, list[int]] = {place: [] for place in places}
    tokens, homes = dict.fromkeys(parts, 0), Homes[PlaceT]()
    lengths = sorted({len(prompt) for prompt in known})
    for i, prompt in enumerate(map(tuple, prompts)):
        begins = {prompt[:n]: known[prompt[:n]] for n in lengths if known.get(prompt[:n]) in parts}
        homes |= begins
        if prompt not in homes:
            homes[prompt] = [*begins.values()][-1] if begins else min(parts, key=tokens.__getitem__)
        parts[homes[prompt]].append(i)
        tokens[homes[prompt]] += len(prompt)
    return parts, homes
