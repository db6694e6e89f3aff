"""Which part lies where in a memory of fixed capacity.

The number of a document in a memory is its first chunk there: numbers ascend along the chunks, as
routing needs it, whatever is added and removed.
"""

from __future__ import annotations

import numpy as np

from msa_jax.memory.parts import PartTable, spans
from msa_jax.typing import Int

NO_PART = -1


class Slots:
    """The chunk table of a memory, on the host. No part crosses from one shard to the next.

    Attributes:
        chunk_doc: int32 `[C]` first chunk of the part that each chunk belongs to, -1 for none.
        num_chunks: int32 `[C]` chunks of the part that starts at each chunk, else 0.
        ids: int64 `[C]` id of the part that starts at each chunk, else -1.
    """

    def __init__(self, capacity: int, num_shards: int, reserved: int):
        """An empty table.

        Args:
            capacity: C, a multiple of `num_shards`.
            num_shards: equal ranges of chunks.
            reserved: last chunks of every shard that stay empty, so that a stretch as long as the
                longest part can be read from any part's first chunk.
        """
        self.chunk_doc = np.full(capacity, -1, np.int32)
        self.num_chunks = np.zeros(capacity, np.int32)
        self.ids = np.full(capacity, NO_PART, np.int64)
        self._first_of: dict[int, int] = {}
        self._shard_size = capacity // num_shards
        self._usable = self._shard_size - reserved
        self._ends = np.arange(num_shards) * self._shard_size  # Beyond the last part ever there.

    def __contains__(self, part_id: int) -> bool:
        return part_id in self._first_of

    def first_chunks(self, ids: np.ndarray) -> Int[np.ndarray, " n"]:
        """First chunk of each of the parts that are here."""
        found = (self._first_of.get(part_id) for part_id in ids.tolist())
        return np.array([first for first in found if first is not None], np.int64)

    def ids_at(self, first: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        """Id of the part that starts at each of these chunks; -1 for chunk -1, too."""
        return np.where(first < 0, NO_PART, self.ids[np.maximum(first, 0)])

    def fill(self, parts: PartTable) -> Int[np.ndarray, " n"] | None:
        """Places many parts in an empty table, evenly over the shards; their first chunks.

        Returns None, and places nothing, if there is no room.
        """
        starts = np.cumsum(parts.chunks) - parts.chunks
        total = max(int(parts.chunks.sum()), 1)
        shard = starts * len(self._ends) // total
        is_first = np.diff(shard, prepend=-1) > 0
        offset = np.maximum.accumulate(np.where(is_first, starts, 0)) if len(starts) else starts
        first = shard * self._shard_size + starts - offset
        if (first + parts.chunks > shard * self._shard_size + self._usable).any():
            return None
        np.maximum.at(self._ends, shard, first + parts.chunks)
        self._record(parts, first)
        return first

    def add(self, parts: PartTable) -> Int[np.ndarray, " n"] | None:
        """Places parts where there is room; their first chunks.

        They go to the ends of the shards, and where these are full, to the holes.

        Returns None if there is no room for all; some may have been placed.
        """
        first = np.zeros(len(parts.ids), np.int64)
        stretches = None
        for i, count in enumerate(parts.chunks.tolist()):
            place = self._place_at_end(count) if stretches is None else None
            if place is None:
                stretches = self._free_stretches() if stretches is None else stretches
                place = _take(stretches, count)
            if place is None:
                return None
            first[i] = place
            shard = place // self._shard_size
            self._ends[shard] = max(self._ends[shard], place + count)
            self._record(parts[i : i + 1], first[i : i + 1])
        return first

    def remove(self, ids: np.ndarray) -> None:
        """Frees the chunks of parts; those that are not here are passed over."""
        for part_id in ids.tolist():
            first = self._first_of.pop(part_id, None)
            if first is not None:
                self.chunk_doc[first : first + self.num_chunks[first]] = -1
                self.num_chunks[first] = 0
                self.ids[first] = NO_PART

    def _place_at_end(self, count: int) -> int | None:
        """Behind the last part of the emptiest shard, if there is room."""
        limits = np.arange(len(self._ends)) * self._shard_size + self._usable
        shard = int(np.argmax(limits - self._ends))
        place = int(self._ends[shard])
        return place if place + count <= limits[shard] else None

    def _free_stretches(self) -> Int[np.ndarray, "n 2"]:
        """Start and stop of every stretch of free chunks."""
        free = (self.chunk_doc < 0).reshape(len(self._ends), -1)
        free[:, self._usable :] = False
        return np.flatnonzero(np.diff(free.ravel(), prepend=False, append=False)).reshape(-1, 2)

    def _record(self, parts: PartTable, first: np.ndarray) -> None:
        self.ids[first] = parts.ids
        self.num_chunks[first] = parts.chunks
        self.chunk_doc[spans(first, parts.chunks)] = np.repeat(first, parts.chunks)
        self._first_of.update(zip(parts.ids.tolist(), first.tolist(), strict=True))


def _take(stretches: Int[np.ndarray, "n 2"], count: int) -> int | None:
    """Start of so many chunks, which it takes from the first stretch that has them."""
    (fitting,) = np.nonzero(stretches[:, 1] - stretches[:, 0] >= count)
    if not len(fitting):
        return None
    start = int(stretches[fitting[0], 0])
    stretches[fitting[0], 0] += count
    return start
