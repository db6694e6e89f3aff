"""The pooled arrays of live parts, found through the catalogue and read from the segments."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import TypeVar

import numpy as np

from msa_jax.memory.catalogue import Catalogue, State
from msa_jax.memory.chunks import Chunks, Layout
from msa_jax.memory.live import LiveParts
from msa_jax.memory.parts import PartTable, StoreError, spans
from msa_jax.memory.segments import Block, Segments
from msa_jax.typing import Int

T = TypeVar("T")
U = TypeVar("U")

_THREADS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class _Found:
    """A block, its bytes, and what is wanted of it: which rows of a table, which chunks."""

    rows: Int[np.ndarray, " m"]
    at: slice | Int[np.ndarray, " n"]
    block: Block
    data: memoryview


class Arrays:
    """Reads arrays; compaction, also in another process, may move them at any time.

    Args:
        path: of the bank, for messages.
        lock: held while the catalogue is used.
    """

    def __init__(
        self,
        path: pathlib.Path,
        layout: Layout,
        catalogue: Catalogue,
        segments: Segments,
        lock: threading.RLock,
    ):
        self._path = path
        self._layout = layout
        self._catalogue = catalogue
        self._segments = segments
        self._lock = lock
        self._live = LiveParts(catalogue)
        self._blocks: dict[int, Block] = {}

    def refresh(self) -> tuple[State, PartTable]:
        """The present state and its parts; call it inside a snapshot of the catalogue."""
        state, table, moved = self._live.refresh()
        if moved:
            # Let go of the files of compacted segments.
            self._blocks.clear()
            self._segments.forget(keep=self._catalogue.ends(self._layout))
        return state, table

    def table(self) -> PartTable:
        """All live parts."""
        with self._lock, self._catalogue.snapshot():
            return self.refresh()[1]

    def of_segment(self, segment: int) -> PartTable:
        """The live parts in a segment."""
        blocks = self._catalogue.blocks()
        numbers = [number for number, block in blocks.items() if block.segment == segment]
        table = self.table()
        return table[np.isin(table.block, numbers)]

    def usage(self) -> dict[int, tuple[int, int]]:
        """Of each segment, how many chunks it holds and how many of them are live."""
        table = self.table()
        live = np.bincount(table.block, table.chunks).astype(int) if len(table) else ()
        usage: dict[int, tuple[int, int]] = {}
        for number, block in self._catalogue.blocks().items():
            chunks, used = usage.get(block.segment, (0, 0))
            used += int(live[number]) if number < len(live) else 0
            usage[block.segment] = chunks + block.num_chunks, used
        return usage

    def read(
        self, parts: PartTable, content: bool
    ) -> Iterator[tuple[Int[np.ndarray, " m"], Chunks]]:
        """See `Store.read`."""

        def checked(found: _Found) -> tuple[Int[np.ndarray, " m"], Chunks]:
            damage = self._segments.damage(found.block, found.data, content)
            if damage:
                raise StoreError(f"{damage}; restore the bank from a copy.")
            chunks = self._segments.chunks(found.block, found.data)
            if not content:
                chunks = dataclasses.replace(chunks, content=None, content_scale=None)
            return found.rows, chunks[found.at]

        # One thread computes checksums slower than a disk reads.
        with futures.ThreadPoolExecutor(_THREADS) as pool:
            yield from _map_ahead(pool, checked, self._found(parts.ids))

    def content(
        self, layer: int, ids: Sequence[int]
    ) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
        """See `Store.content`."""
        with self._lock:
            places, found = self._places(np.asarray(ids, np.int64))
        views = {number: self._segments.chunks(*block) for number, block in found.items()}
        slices = [(views[number], slice(first, first + n)) for number, first, n in places]
        values = [view.content[layer, at] for view, at in slices]
        if "content_scale" not in self._layout.fields(0):
            return values, None
        return values, [view.content_scale[layer, at] for view, at in slices]

    def _found(self, ids: Int[np.ndarray, " n"]) -> Iterator[_Found]:
        """The blocks that hold these parts."""
        groups = self._by_block(ids, np.arange(len(ids)))
        while groups:
            number, rows, at = groups[0]
            with self._lock:
                found = self._find(number)
            if found is None:
                # Compacted away since: see where what is left to read has gone.
                groups = self._by_block(ids, np.concatenate([group[1] for group in groups]))
            else:
                yield _Found(rows, at, *found)
                groups = groups[1:]

    def _find(self, number: int) -> tuple[Block, memoryview] | None:
        """A block and its bytes; None if it was compacted away."""
        block = self._blocks.get(number) or self._catalogue.block(number)
        if block is None:
            return None
        try:
            data = self._segments.bytes(block)
        except FileNotFoundError as error:
            self._blocks.pop(number, None)
            if self._catalogue.block(number) is None:
                return None
            raise StoreError(f"{error.filename} is missing; restore it from a copy.") from error
        self._blocks[number] = block
        return block, data

    def _by_block(
        self, ids: Int[np.ndarray, " n"], rows: Int[np.ndarray, " m"]
    ) -> list[tuple[int, Int[np.ndarray, " r"], slice | Int[np.ndarray, " c"]]]:
        """Blocks that hold these rows of `ids`: number, rows, and chunks within the block."""
        table = self.table()
        found = table.find(ids[rows])
        rows, table = rows[found >= 0], table[found[found >= 0]]
        order = np.lexsort((table.first_chunk, table.block))
        rows, table = rows[order], table[order]
        cuts = np.flatnonzero(np.diff(table.block, prepend=-1, append=-1))
        return [
            (
                int(table.block[start]),
                rows[start:stop],
                _as_slice(spans(table.first_chunk[start:stop], table.chunks[start:stop])),
            )
            for start, stop in itertools.pairwise(cuts.tolist())
        ]

    def _places(
        self, ids: Int[np.ndarray, " n"]
    ) -> tuple[list[tuple[int, int, int]], dict[int, tuple[Block, memoryview]]]:
        """Block, first chunk and number of chunks of each part; and the blocks."""
        table = self.table()
        rows = table.find(ids)
        if (rows < 0).any():
            missing = ids[rows < 0][0]
            raise StoreError(f"{self._path}: there is no part {missing}, or no longer.")
        table = table[rows]
        columns = (table.block, table.first_chunk, table.chunks)
        places = list(zip(*(column.tolist() for column in columns), strict=True))
        found = {number: self._find(number) for number in set(table.block.tolist())}
        # A block that was compacted away since is elsewhere by now.
        return self._places(ids) if None in found.values() else (places, found)


def _as_slice(numbers: Int[np.ndarray, " n"]) -> slice | Int[np.ndarray, " n"]:
    """A slice where that says the same: taking it copies nothing."""
    if (np.diff(numbers) == 1).all():
        return slice(int(numbers[0]), int(numbers[-1]) + 1)
    return numbers


def _map_ahead(
    pool: futures.ThreadPoolExecutor, function: Callable[[T], U], items: Iterable[T]
) -> Iterator[U]:
    """Results in order, with as many under way as there are threads."""
    waiting: deque[futures.Future[U]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > _THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
