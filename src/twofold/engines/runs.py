"""Calls that advance step by step: their prompts or texts run a chunk at a time, then their samples grow token by token."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

from twofold.engines.base import Scored
from twofold.engines.decoding import Decoding, PrefixCache
from twofold.types import Completion


class Work:
    """The prompts or texts of a call, which run a chunk at a time.

    ``chunks`` yields how many tokens the next chunk has, and runs it when it is resumed.
    """

    def __init__(self, chunks: Generator[int], turn: int) -> None:
        self._chunks, self.turn = chunks, turn
        self.next = next(chunks, 0)
        """Tokens of the next chunk; 0 if nothing is left to run."""
        self.error: Exception | None = None

    def advance(self, turn: int) -> None:
        """Run the next chunk. The call's next ``turn`` comes after those of the other calls."""
        self.turn = turn
        try:
            self.next = next(self._chunks, 0)
        except Exception as error:  # such as out of memory: it is this call's, and the others continue
            self.next, self.error = 0, error

    def close(self) -> None:
        """Run nothing more, and free the cache of a prompt that has been run in part."""
        self._chunks.close()
        self.next = 0


@dataclass(slots=True)
class NativeRun:
    """A ``generate`` call that ``NativeEngine.step`` advances. Implements ``Run``."""

    keep: Callable[[list[PrefixCache]], None]
    n: int
    tokens: list[list[int]]
    logprobs: list[list[float]]
    decodings: list[Decoding]
    """The parts of the call whose prompts have been run."""
    work: Work = field(init=False)

    @property
    def done(self) -> bool:
        return self.work.error is not None or (not self.work.next and all(d.done for d in self.decodings))

    @property
    def results(self) -> list[list[Completion]]:
        if self.work.error is not None:
            raise self.work.error
        return by_prompt(self.decodings)

    def stop(self) -> None:
        """Leave the caches to the session, whether the run is done or not."""
        self.work.close()
        self.keep([d.cache() for d in self.decodings])

    def begin(self, decoding: Decoding) -> None:
        """Take the samples of a part, which grow in the run's own lists from now on."""
        rows = [i * self.n + j for i in decoding.part.indices for j in range(self.n)]
        decoding.tokens, decoding.logprobs = [self.tokens[r] for r in rows], [self.logprobs[r] for r in rows]
        self.decodings.append(decoding)


@dataclass(slots=True)
class NativeScores:
    """A ``scored`` call that ``NativeEngine.step`` advances. Implements ``Run``."""

    found: dict[int, Scored]
    work: Work = field(init=False)
    tokens: tuple[()] = ()
    logprobs: tuple[()] = ()

    @property
    def done(self) -> bool:
        return not self.work.next

    @property
    def results(self) -> list[Scored]:
        if self.work.error is not None:
            raise self.work.error
        return [self.found[i] for i in range(len(self.found))]

    def stop(self) -> None:
        self.work.close()


def by_prompt(decodings: Sequence[Decoding]) -> list[list[Completion]]:
    """Return the completions of a call's parts in the order of its prompts."""
    found: dict[int, list[Completion]] = {}
    for d in decodings:
        n = d.sampling.n
        found |= {i: [d.completion(k * n + j) for j in range(n)] for k, i in enumerate(d.part.indices)}
    return [found[i] for i in range(len(found))]


def batches(lengths: Sequence[int], size: int, tokens: float) -> Iterator[slice]:
    """Cut rows into batches of at most ``size`` rows and ``tokens`` tokens with the padding, but of one row at least.

    >>> list(batches([3, 2, 4, 4, 9, 1], size=3, tokens=8))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None), slice(5, 6, None)]
    """
    first = longest = 0
    for i, length in enumerate(lengths):
        if i > first and (i - first == size or max(longest, length) * (i - first + 1) > tokens):
            yield slice(first, i)
            first, longest = i, 0
        longest = max(longest, length)
    if lengths:
        yield slice(first, len(lengths))


def stretches(pieces: Sequence[Sequence[int]], tokens: float) -> Iterator[tuple[int, Sequence[Sequence[int]]]]:
    """Cut one long piece into stretches of at most ``tokens`` tokens; several pieces stay as they are. Yield (start, stretch)."""
    size = max(map(len, pieces)) if len(pieces) > 1 else int(min(len(pieces[0]), tokens))
    for at in range(0, len(pieces[0]), size) if len(pieces) == 1 else [0]:
        yield at, [piece[at : at + size] for piece in pieces]
