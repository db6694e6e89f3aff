"""Changing a bank: arrays to the end of the segments first, then rows to the catalogue."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

from msa_jax.memory.arrays import Arrays
from msa_jax.memory.catalogue import Catalogue, Entry, State
from msa_jax.memory.checks import check_commit
from msa_jax.memory.chunks import Layout
from msa_jax.memory.lock import WriteLock
from msa_jax.memory.parts import EncodedDocument, StoreError
from msa_jax.memory.segments import Block, Run, Segments, Tail, cut_into_blocks


class Writer:
    """What only the one writer of a bank has: its lock, and where the segments end."""

    def __init__(
        self,
        layout: Layout,
        catalogue: Catalogue,
        segments: Segments,
        arrays: Arrays,
        lock: threading.RLock,
        write_lock: WriteLock,
    ):
        self._layout = layout
        self._catalogue = catalogue
        self._segments = segments
        self._arrays = arrays
        self._lock = lock
        self._write_lock = write_lock
        self._compacting = threading.Lock()
        self._last_reserved = 0
        # Cut off what a killed writer has left.
        ends = catalogue.ends(layout)
        segments.trim(ends)
        last = catalogue.last_segment()
        self._tail = Tail(last, ends[last]) if last in ends else Tail(last + 1, 0)

    def release(self) -> None:
        """Lets others write."""
        self._write_lock.release()

    def reserve_ids(self, count: int) -> range:
        """See `Store.reserve_ids`."""
        with self._lock:
            start = max(self._catalogue.state().last_id, self._last_reserved) + 1
            self._last_reserved = start + count - 1
            return range(start, start + count)

    def commit(self, puts: Sequence[EncodedDocument], deletes: Sequence[str]) -> int:
        """See `Store.commit`."""
        with self._lock:
            state = self._catalogue.state()
            if not puts and not deletes:
                return state.version
            check_commit(puts, deletes, state.last_id, self._layout)
            replaced = (self._catalogue.find(put.document.id) for put in puts)
            gone = [entry for entry in replaced if entry] + [self._entry(key) for key in deletes]
            state = _after(state, puts, gone)
            with self._appending(map(Run.of, puts), self._tail) as blocks:
                self._catalogue.add_blocks(blocks)
                self._catalogue.add_documents(puts)
                self._catalogue.remove(gone, state.version)
                self._catalogue.add_commit(state)
            return state.version

    def compact(self, min_garbage: float) -> int:
        """See `Store.compact`."""
        reclaimed = 0
        with self._compacting:
            with self._lock:
                with self._catalogue.transaction():
                    self._catalogue.purge()
                usage = self._arrays.usage()
            for segment, (chunks, live) in usage.items():
                if chunks - live > min_garbage * chunks:
                    with self._lock:
                        before = self._bytes()
                        self._rewrite(segment)
                        reclaimed += before - self._bytes()
                    time.sleep(0.001)  # Lets a commit that waits go first.
            with self._lock:
                self._catalogue.shrink()
        return reclaimed

    def _bytes(self) -> int:
        return sum(self._catalogue.ends(self._layout).values())

    def _rewrite(self, segment: int) -> None:
        """Moves what is live in a segment behind the last one, and deletes the file."""
        table = self._arrays.of_segment(segment)
        runs = (
            Run(table.ids[rows], table.chunks[rows], chunks)
            for rows, chunks in self._arrays.read(table, content=True)
        )
        tail = self._tail if self._tail.segment != segment else Tail(segment + 1, 0)
        with self._appending(runs, tail) as blocks:
            self._catalogue.drop_segment(segment)
            self._catalogue.add_blocks(blocks)
        self._segments.remove(segment)

    @contextlib.contextmanager
    def _appending(self, runs: Iterable[Run], tail: Tail) -> Iterator[list[tuple[Block, Run]]]:
        """A transaction on blocks that were written behind a tail; if it fails, they are gone."""
        try:
            with self._catalogue.transaction():
                blocks, tail = self._append(runs, tail)
                yield blocks
                # Should the last step fail, the change may still turn out to have happened when
                # the bank is opened again; so the bytes stay where they are.
                self._tail = tail
        except BaseException:
            self._segments.cut(self._tail)
            raise

    def _append(self, runs: Iterable[Run], tail: Tail) -> tuple[list[tuple[Block, Run]], Tail]:
        blocks = []
        for run in cut_into_blocks(runs, self._layout):
            block, tail = self._segments.append(tail, run.chunks)
            blocks.append((block, dataclasses.replace(run, chunks=None)))
        self._segments.sync([block for block, _ in blocks])
        return blocks, tail

    def _entry(self, key: str) -> Entry:
        entry = self._catalogue.find(key)
        if entry is None:
            raise StoreError(f"document {key!r} is not in the bank; delete only what is there.")
        return entry


def _after(state: State, puts: Sequence[EncodedDocument], gone: Sequence[Entry]) -> State:
    parts = [part for put in puts for part in put.parts]
    return State(
        version=state.version + 1,
        last_id=parts[-1].id if parts else state.last_id,
        documents=state.documents + len(puts) - len(gone),
        parts=state.parts + len(parts) - sum(x.parts for x in gone),
        chunks=state.chunks + sum(x.chunks for x in parts) - sum(x.chunks for x in gone),
        tokens=state.tokens + sum(x.tokens for x in parts) - sum(x.tokens for x in gone),
    )
