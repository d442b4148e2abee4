"""The native engine's KV cache. A fork copies nothing as a rule: its rows point at the rows they begin with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from twofold.models import exact
from twofold.models.attention import merge, partial_attention

SMALLEST = 64
"""Tokens per row that a cache first allocates memory for, or its ``room`` if that is less; then the memory doubles."""
DEEPEST = 4
"""The most caches that a row's tokens are spread over; a deeper fork copies them into one."""


class KV:
    """Keys and values of rows, one tensor [rows, H_kv, room, D] per layer. A row may begin in a row of another cache.

    Row r is the first ``start[r]`` tokens of row ``source[r]`` of ``parent``, followed by its own tokens. So n samples of a
    prompt read one copy of it, in one product for all n, and a judgement reads the cache that its solution left.

    Own tokens are appended in two ways only: many per row at once, right-padded, into an empty cache (a prefill), or equally
    many per row while all rows are equally long. Either way they are a plain slice, and the causal mask is the only mask they
    need.

    The first ``active`` rows take part in a call; a finished row is swapped to a place after them and keeps its tokens.
    """

    def __init__(
        self,
        start: Tensor,
        room: int,
        device: torch.device | str = "cpu",
        parent: KV | None = None,
        source: Tensor | None = None,
    ) -> None:
        self.start, self.room, self.device = start, room, device
        self.parent, self.source = parent, source
        self.depth: int = 1 if parent is None else parent.depth + 1
        self.active = len(start)
        self.filled = 0  # own tokens per row, padding included
        self._even = True  # no row has padding
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._inherited: list[Inherited] | None = None

    def begin(self, counts: list[int]) -> Tensor:
        """Make place for ``counts[r]`` tokens of each row r < active, right-padded to T = max; return positions [active, T].

        Raises ValueError if there is no room, or if rows that hold tokens are not equally long, before or after.
        """
        even = min(counts) == max(counts)
        if self.filled and not (even and self._even):
            raise ValueError(
                "a cache that holds tokens takes equally many per row, of equally long rows: fork this one"
            )
        self._even = even
        self._from, self.filled = self.filled, self.filled + max(counts)
        if self.filled > self.room:
            raise ValueError(f"a row would hold {self.filled} tokens, the cache has room for {self.room}")
        if self._inherited is None:
            self._inherited = self._ancestors()
        steps = torch.arange(self._from, self.filled)[None]
        if not self._even:  # padding repeats a row's last position: no position is beyond the longest text
            steps = steps.minimum(torch.tensor(counts)[:, None] - 1)
        return (self.start[: self.active, None] + steps).to(self.device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Store key and value [active, H_kv, T, D] of the new tokens; return the attention's output [active, T, H, D] for
        their query [active, H, T, D]."""
        rows, heads, steps, width = query.shape
        keys, values = self._store(layer, key, value)
        first = self._from == 0
        assert self._inherited is not None
        if not self._inherited and first:
            out = sdpa(query, keys, values, is_causal=True, scale=scale, enable_gqa=heads != keys.shape[1])
            return out.transpose(1, 2)
        if not first:  # the heads that share a key head become its queries, and it is read once for all
            query = query.reshape(rows, keys.shape[1], -1, width)
        mask = None
        if not first and steps > 1:  # what the new tokens see of one another, and of the tokens before them
            mask = query.new_full((steps, self.filled), float("-inf")).triu(self._from + 1)
            mask = mask.repeat(heads // keys.shape[1], 1)[None, None]
        out, lse = partial_attention(query, keys, values, scale, mask, causal=first)
        query, out, lse = (x.reshape(rows, keys.shape[1], -1, *x.shape[3:]) for x in (query, out, lse))
        for part in self._inherited:
            out, lse = merge(out, lse, *part.attend(layer, query, scale))
        return out.to(value.dtype).view(rows, heads, steps, -1).transpose(1, 2)

    def attend_exactly(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Do the same by ``models.exact.attend``, for which the keys of every text are copied into one tensor."""
        keys, values = (self._texts(layer, own) for own in enumerate(self._store(layer, key, value)))
        positions = self.start[: len(query), None] + torch.arange(self._from, self.filled)
        return exact.attend(query, keys, values, positions.to(self.device), scale)

    def _store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values, and return those of all own tokens of the active rows."""
        rows = len(key)
        self._grow(layer, key, value)
        self.keys[layer][:rows, :, self._from : self.filled] = key
        self.values[layer][:rows, :, self._from : self.filled] = value
        keys, values = (x[layer][:rows, :, : self.filled] for x in (self.keys, self.values))
        return keys, values

    def _texts(self, layer: int, own: tuple[int, Tensor]) -> Tensor:
        """Return what the active rows inherit, followed by their own keys (0) or values (1): [rows, H_kv, tokens, D]."""
        which, own_R_K_S_D = own
        starts, steps = self.start[: len(own_R_K_S_D), None], torch.arange(self.filled)
        longest = int(starts.max()) + self.filled
        out = own_R_K_S_D.new_zeros(len(starts), longest, *own_R_K_S_D.shape[1::2])
        assert self._inherited is not None
        for part in self._inherited:
            part.copy((part.kv.keys, part.kv.values)[which][layer], out)
        out[torch.arange(len(starts))[:, None], starts + steps] = own_R_K_S_D.transpose(1, 2)
        return out.transpose(1, 2)

    def reserve(self, count: int, smallest: int) -> bool:
        """Make place for ``count`` more tokens of every row of a fork, which the caller writes into ``keys`` and ``values``.
        Return whether these have moved to more memory."""
        assert self.parent is not None
        self.filled += count
        layers = enumerate(zip(self.parent.keys, self.parent.values, strict=True))
        return any([self._grow(i, *like, smallest=smallest) for i, like in layers])

    def _grow(self, layer: int, *like: Tensor, smallest: int = SMALLEST) -> bool:
        """Allocate memory for the tokens there are, not for ``room``: most samples end long before their limit."""
        have = self.keys[layer].shape[2] if layer < len(self.keys) else 0
        if self.filled <= have:
            return False
        size = min(self.room, max(self.filled, 2 * have, smallest))
        for store, x in zip((self.keys, self.values), like, strict=True):
            new = x.new_zeros(len(self.start), x.shape[1], size, x.shape[3])
            if have:
                new[:, :, :have] = store[layer]
                store[layer] = new
            else:
                store.append(new)
        return True

    def retire(self, finished: list[int]) -> tuple[list[int], list[int]]:
        """Swap finished rows to places after the active ones; return the row indices exchanged, pairwise."""
        self.active -= len(finished)
        done = set(finished)
        front = [i for i in finished if i < self.active]
        back = [i for i in range(self.active, self.active + len(finished)) if i not in done]
        if front:
            to, fro = torch.tensor(front + back), torch.tensor(back + front)
            for x in (*self.keys, *self.values, self.start, *([] if self.source is None else [self.source])):
                x[to] = x[fro]
        self._inherited = None
        return front, back

    def fork(self, rows: Tensor, lengths: Tensor, room: int) -> KV:
        """Return a cache whose row i begins with the first ``lengths[i]`` tokens of row ``rows[i]`` and has ``room`` for more.

        The beginnings stay where they are, unless they are spread over too many caches or are a small part of this one: then
        they are copied.
        """
        used, where = rows.unique(return_inverse=True)
        if self.depth < DEEPEST and 2 * len(used) > len(self.start):
            return KV(lengths.clone(), room, self.device, self, rows.clone())
        needed = lengths.new_zeros(len(used)).scatter_reduce(0, where, lengths, "amax")
        return KV(lengths.clone(), room, self.device, self._copy(used, needed), where)

    def whole(self, lengths: Tensor) -> KV:
        """Return a cache whose row i holds the first ``lengths[i]`` tokens of row i itself: this one, if it begins in no other."""
        return self if self.parent is None else self._copy(torch.arange(len(lengths)), lengths)

    def _copy(self, rows: Tensor, lengths: Tensor) -> KV:
        """Return the first ``lengths[i]`` tokens of each ``rows[i]`` in a cache of their own."""
        longest = int(lengths.max())
        new = KV(torch.zeros_like(lengths), longest, self.device)
        parts = KV(lengths, 0, self.device, self, rows)._ancestors()
        nearest = parts[0].kv  # not self: it may hold no token of its own yet
        for layer in range(len(nearest.keys)):
            for store in ("keys", "values"):
                like = getattr(nearest, store)[layer]
                copied = like.new_zeros(len(rows), longest, *like.shape[1::2])  # tokens before heads: one scatter
                for part in parts:
                    part.copy(getattr(part.kv, store)[layer], copied)
                getattr(new, store).append(copied.transpose(1, 2))
        return new

    def _ancestors(self) -> list[Inherited]:
        """Return what the active rows inherit, from the nearest cache to the furthest."""
        found = []
        kv, rows, end = self.parent, self.source, self.start[: self.active]
        rows = None if rows is None else rows[: self.active]
        while kv is not None and rows is not None and self.active:
            first = kv.start[rows]
            if bool((end > first).any()):
                found.append(Inherited.of(kv, rows, first, (end - first).clamp(min=0)))
            end = end.minimum(first)
            rows = None if kv.source is None else kv.source[rows]
            kv = kv.parent
        return found


@dataclass(frozen=True, slots=True)
class Inherited:
    """The tokens that the rows of one cache read from another, ``kv``.

    Row i reads the first ``counts[i]`` own tokens of row ``rows[i]``. Rows that read the same row fill its ``slots`` and are
    one product.
    """

    kv: KV
    rows: Tensor
    first: Tensor  # [rows] position of the first of these tokens
    counts: Tensor
    longest: int  # the largest count
    slots: int  # the most rows that read one row of kv
    readers: Tensor  # [kv rows * slots] which of our rows fills each slot (any row in an empty slot)
    slot_of: Tensor  # [rows] the slot of each of our rows
    mask: Tensor | None  # [kv rows, slots, longest]
    masks: dict[int, Tensor]  # the same as [kv rows, 1, slots * T, longest], by the number T of queries per row

    @staticmethod
    def of(kv: KV, rows: Tensor, first: Tensor, counts: Tensor) -> Inherited:
        size, longest = len(kv.start), int(counts.max())
        slots = int(rows.bincount().max())
        order = rows.argsort(stable=True)
        before = torch.searchsorted(rows[order], rows[order])  # how many of our rows read an earlier row of kv
        slot_of = torch.empty_like(rows)
        slot_of[order] = rows[order] * slots + torch.arange(len(rows)) - before
        readers = torch.zeros(size * slots, dtype=torch.long)
        readers[slot_of] = torch.arange(len(rows))
        mask = None
        if bool((counts < longest).any()):
            hidden = torch.arange(longest) >= counts[readers][:, None]
            mask = torch.zeros(hidden.shape).masked_fill(hidden, -1e30)  # finite: a row may read nothing here
            mask = mask.view(size, slots, longest).to(kv.device)
        return Inherited(
            kv, rows, first, counts, longest, slots, readers.to(kv.device), slot_of.to(kv.device), mask, {}
        )

    def attend(self, layer: int, query: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
        """Return the outputs for query [rows, H_kv, T, D], in its shape, and their log-sum-exps [rows, H_kv, T].

        T may also run over the query heads that share a key head.
        """
        keys, values = (x[layer][:, :, : self.longest] for x in (self.kv.keys, self.kv.values))
        size, heads = keys.shape[:2]
        steps, width = query.shape[2:]
        queries = query[self.readers].view(size, self.slots, heads, steps, width).transpose(1, 2)
        if self.mask is not None and steps not in self.masks:
            wide = self.mask[:, :, None].expand(-1, -1, steps, -1)
            self.masks[steps] = wide.reshape(size, 1, self.slots * steps, self.longest)
        mask = self.masks.get(steps)
        out, lse = partial_attention(queries.reshape(size, heads, -1, width), keys, values, scale, mask)
        out = out.view(size, heads, self.slots, steps, -1).transpose(1, 2).reshape(-1, heads, steps, values.shape[3])
        lse = lse.view(size, heads, self.slots, steps).transpose(1, 2).reshape(-1, heads, steps)
        return out[self.slot_of], lse[self.slot_of]

    def copy(self, stored: Tensor, out: Tensor) -> None:
        """Write these tokens from ``stored`` [kv rows, H_kv, room, D] into ``out`` [rows, all tokens, H_kv, D]."""
        read = torch.arange(self.longest) < self.counts[:, None]
        row, step = read.nonzero(as_tuple=True)
        out[row, self.first[row] + step] = stored[self.rows[row], :, step]


class JoinedKV:
    """The active rows of several caches as one batch, one token each, for calls that began at different times."""

    def __init__(self, caches: Sequence[KV]) -> None:
        self.caches = caches
        self.sizes = [kv.active for kv in caches]

    def begin(self, counts: list[int]) -> Tensor:
        """Do ``KV.begin`` in every cache; every count is 1."""
        return torch.cat([kv.begin([1] * size) for kv, size in zip(self.caches, self.sizes, strict=True)])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Do ``KV.attend`` in every cache."""
        return torch.cat([kv.attend(layer, *qkv, scale) for kv, *qkv in self._each(query, key, value)])

    def attend_exactly(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Do ``KV.attend_exactly`` in every cache."""
        return torch.cat([kv.attend_exactly(layer, *qkv, scale) for kv, *qkv in self._each(query, key, value)])

    def _each(self, *tensors: Tensor) -> Iterator[tuple[Any, ...]]:
        return zip(self.caches, *(x.split(self.sizes) for x in tensors), strict=True)
