"""Segment files: pooled arrays in blocks, appended once, read by memory map, never changed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import mmap
import os
import pathlib
import threading
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np

from msa_jax.memory.chunks import Chunks, Layout
from msa_jax.memory.parts import EncodedDocument, StoreError
from msa_jax.typing import Int

SEGMENT_BYTES = 256 * 2**20
BLOCK_BYTES = 64 * 2**20
_ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class Block:
    """Chunks of consecutive parts, and where they lie.

    Attributes:
        segment: number of the file.
        start: first byte in the file.
        num_chunks: of all its parts.
        keys_crc: CRC-32 of the routing keys and their scales.
        content_crc: CRC-32 of the content and its scales.
    """

    segment: int
    start: int
    num_chunks: int
    keys_crc: int
    content_crc: int


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Consecutive parts and their chunks.

    Attributes:
        ids: of the parts.
        counts: how many chunks each has.
        chunks: all of them, in order.
    """

    ids: Int[np.ndarray, " n"]
    counts: Int[np.ndarray, " n"]
    chunks: Chunks

    @classmethod
    def of(cls, encoded: EncodedDocument) -> Run:
        """The parts of a document."""
        columns = [(part.id, part.chunks) for part in encoded.parts]
        ids, counts = np.array(columns, np.int64).T
        return cls(ids, counts, encoded.chunks)

    def __getitem__(self, at: slice) -> Run:
        ends = np.append(0, np.cumsum(self.counts))
        chunks = self.chunks[ends[at.start] : ends[at.stop]]
        return Run(self.ids[at], self.counts[at], chunks)


@dataclasses.dataclass(frozen=True)
class Tail:
    """Where the next block goes: behind `offset` bytes of a segment."""

    segment: int
    offset: int


@dataclasses.dataclass(frozen=True)
class _Sections:
    """Where each array of a block starts, its shape and type; all padded to the alignment."""

    arrays: Mapping[str, tuple[int, tuple[int, ...], np.dtype]]
    content: int
    size: int


@functools.lru_cache(maxsize=1024)
def _sections(layout: Layout, num_chunks: int) -> _Sections:
    arrays, end = {}, 0
    for name, (shape, dtype) in layout.fields(num_chunks).items():
        arrays[name] = (end, shape, dtype)
        end += -(-int(np.prod(shape)) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    return _Sections(arrays, arrays["content"][0], end)


def block_bytes(layout: Layout, num_chunks: int) -> int:
    """Bytes of a block in its file."""
    return _sections(layout, num_chunks).size


def cut_into_blocks(runs: Iterable[Run], layout: Layout) -> Iterator[Run]:
    """Joins and cuts runs so that each fills a block, as far as whole parts go."""
    limit = BLOCK_BYTES // sum(layout.bytes_per_chunk())
    waiting, room = [], limit
    for run in runs:
        start, ends = 0, np.cumsum(run.counts)
        while start < len(ends):
            before = ends[start - 1] if start else 0
            stop = int(np.searchsorted(ends, before + room, "right"))
            if stop == start and not waiting:
                stop = start + 1  # A part that is larger than a block has one of its own.
            if stop > start:
                waiting.append(run[start:stop])
                room -= int(ends[stop - 1] - before)
            if stop < len(ends):
                yield _joined(waiting)
                waiting, room = [], limit
            start = stop
    if waiting:
        yield _joined(waiting)


def _joined(runs: list[Run]) -> Run:
    return Run(
        np.concatenate([run.ids for run in runs]),
        np.concatenate([run.counts for run in runs]),
        Chunks.concatenate([run.chunks for run in runs]),
    )


class Segments:
    """The segment files of a bank."""

    def __init__(self, directory: pathlib.Path, layout: Layout):
        self._directory = directory
        self._layout = layout
        self._maps: dict[int, mmap.mmap] = {}
        self._lock = threading.Lock()

    def path(self, segment: int) -> pathlib.Path:
        """File of a segment."""
        return self._directory / f"{segment:06}.seg"

    def append(self, tail: Tail, chunks: Chunks) -> tuple[Block, Tail]:
        """Writes a block at the tail, or into the next segment where this one is full.

        Returns:
            The block, whose bytes are durable after `sync`, and the new tail.

        Raises:
            StoreError: if the disk is full or cannot be written.
        """
        sections = _sections(self._layout, len(chunks))
        if tail.offset and tail.offset + sections.size > SEGMENT_BYTES:
            tail = Tail(tail.segment + 1, 0)
        keys_crc = content_crc = 0
        with _opened(self.path(tail.segment), os.O_WRONLY | os.O_CREAT) as handle:
            for name, (offset, _, _) in sections.arrays.items():
                data = _padded(getattr(chunks, name))
                _write(handle, data, tail.offset + offset)
                if offset < sections.content:
                    keys_crc = zlib.crc32(data, keys_crc)
                else:
                    content_crc = zlib.crc32(data, content_crc)
        block = Block(tail.segment, tail.offset, len(chunks), keys_crc, content_crc)
        return block, Tail(tail.segment, tail.offset + sections.size)

    def sync(self, blocks: Sequence[Block]) -> None:
        """Waits until blocks that were appended are on disk."""
        for segment in {block.segment for block in blocks}:
            sync_file(self.path(segment))
        if any(block.start == 0 for block in blocks):
            sync_file(self._directory)

    def cut(self, tail: Tail) -> None:
        """Gives back what an append that failed has written behind the tail."""
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self.path(tail.segment), tail.offset)
        for segment in self._sizes():
            if segment > tail.segment:
                self.path(segment).unlink()

    def trim(self, ends: Mapping[int, int]) -> None:
        """Gives back what a killed writer has left: all but the first `ends[segment]` bytes."""
        for segment, size in self._sizes().items():
            if segment not in ends:
                self.path(segment).unlink()
            elif size > ends[segment]:
                os.truncate(self.path(segment), ends[segment])

    def short(self, ends: Mapping[int, int]) -> list[str]:
        """What is wrong with each segment that has less than `ends[segment]` bytes."""
        sizes = self._sizes()
        return [
            f"{self.path(segment)}: {_short(sizes.get(segment, 0), end)}"
            for segment, end in ends.items()
            if sizes.get(segment, 0) < end
        ]

    def bytes(self, block: Block) -> memoryview:
        """The bytes of a block, mapped: what is not touched is not read.

        Raises:
            FileNotFoundError: if the segment was compacted away.
            StoreError: if the file is too short.
        """
        stop = block.start + block_bytes(self._layout, block.num_chunks)
        with self._lock:
            mapped = self._maps.get(block.segment)
            if mapped is None or len(mapped) < stop:
                mapped = self._maps[block.segment] = _mapped(self.path(block.segment), stop)
        return memoryview(mapped)[block.start : stop]

    def chunks(self, block: Block, data: memoryview) -> Chunks:
        """The bytes of a block as arrays."""
        sections = _sections(self._layout, block.num_chunks)
        return Chunks(
            **{
                name: np.ndarray(shape, dtype, data, offset)
                for name, (offset, shape, dtype) in sections.arrays.items()
            }
        )

    def damage(self, block: Block, data: memoryview, content: bool) -> str | None:
        """What is wrong with the routing keys, and the content if wanted; None if nothing is."""
        content_start = _sections(self._layout, block.num_chunks).content
        names = []
        if zlib.crc32(data[:content_start]) != block.keys_crc:
            names.append("routing keys")
        if content and zlib.crc32(data[content_start:]) != block.content_crc:
            names.append("content")
        if not names:
            return None
        where = f"{self.path(block.segment)}: block at byte {block.start}"
        return f"{where}: {' and '.join(names)} damaged"

    def forget(self, keep: Collection[int] = ()) -> None:
        """Drops the maps of all segments but these; arrays that were handed out stay valid."""
        with self._lock:
            self._maps = {key: value for key, value in self._maps.items() if key in keep}

    def remove(self, segment: int) -> None:
        """Deletes a file; who has it mapped can go on reading."""
        with contextlib.suppress(FileNotFoundError):
            self.path(segment).unlink()

    def _sizes(self) -> dict[int, int]:
        files = self._directory.glob("*.seg")
        return {int(file.stem): file.stat().st_size for file in files}


def sync_file(path: pathlib.Path) -> None:
    """Waits until a file, or the names in a directory, are on disk."""
    with _opened(path, os.O_RDONLY) as handle:
        os.fsync(handle)


@contextlib.contextmanager
def _opened(path: pathlib.Path, flags: int) -> Iterator[int]:
    """A handle to a file that is to be written; trouble with the disk becomes a `StoreError`."""
    try:
        handle = os.open(path, flags, 0o666)
        try:
            yield handle
        finally:
            os.close(handle)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror}); make room or look at the disk."
        ) from error


def _mapped(path: pathlib.Path, size: int) -> mmap.mmap:
    with open(path, "rb") as file:
        have = os.fstat(file.fileno()).st_size
        if have < size:
            raise StoreError(f"{path}: {_short(have, size)}; restore the bank from a copy.")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _short(have: int, size: int) -> str:
    return f"the file has {have} bytes instead of {size}"


def _padded(array: np.ndarray) -> bytes:
    data = np.ascontiguousarray(array).tobytes()
    return data + bytes(-len(data) % _ALIGNMENT)


def _write(handle: int, data: bytes, offset: int) -> None:
    data = memoryview(data)
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written
