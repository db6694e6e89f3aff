"""A bank on disk: documents and their pooled arrays in a directory, changed one commit at a time.

    DIRECTORY/catalogue.sqlite     what there is (catalogue.py)
    DIRECTORY/segments/000001.seg  arrays, in blocks (segments.py)
    DIRECTORY/lock                 held by the one process that may write (lock.py)

A commit appends its arrays to a segment, waits until they are on disk, and then adds its rows to
the catalogue in one transaction. Bytes of a segment that no row names are nothing; the next writer
cuts them off. Readers never wait for the writer, nor it for them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from msa_jax.data.records import Document
from msa_jax.memory import catalogue as catalogues
from msa_jax.memory.catalogue import Catalogue, Entry, State
from msa_jax.memory.checks import check_commit
from msa_jax.memory.chunks import Chunks, Layout
from msa_jax.memory.filters import conditions
from msa_jax.memory.live import LiveParts
from msa_jax.memory.lock import WriteLock
from msa_jax.memory.parts import (
    Changes,
    EncodedDocument,
    Part,
    PartTable,
    Passage,
    StoreError,
    spans,
)
from msa_jax.memory.segments import Block, Run, Segments, Tail, cut_into_blocks, sync_file
from msa_jax.typing import Int

__all__ = ["Changes", "EncodedDocument", "Part", "PartTable", "Passage", "Store", "StoreError"]


class Store:
    """An open bank: one writer and any number of readers, across processes and threads.

    Made by `Store.create` or `Store.open`; a context manager. What goes wrong is a `StoreError`,
    and the bank is then as it was before the call.

    Attributes:
        path: the directory.
        layout: geometry of the arrays.
        fingerprint: of the model, tokenizer and template that encode the documents.
        facts: what its creator wanted kept with it.
    """

    def __init__(self, path: pathlib.Path, lock: WriteLock | None):
        self.path = path
        self._write_lock = lock
        self._lock = threading.RLock()
        self._catalogue = Catalogue(path / "catalogue.sqlite", write=lock is not None)
        try:
            description = self._catalogue.description
            self.layout = Layout(**description["layout"])
            self.fingerprint: dict[str, str] = description["fingerprint"]
            self.facts: dict[str, Any] = description["facts"]
            self._segments = Segments(path / "segments", self.layout)
            self._live = LiveParts(self._catalogue)
            self._blocks: dict[int, Block] = {}
            self._last_reserved = 0
            self._check_sizes()
            if lock is not None:
                self._tail = self._recover()
        except BaseException:
            self._catalogue.close()
            raise

    # Opening and closing.

    @staticmethod
    def exists(path: str | os.PathLike) -> bool:
        """Whether there is a bank; one whose creation was interrupted is none."""
        return pathlib.Path(path, "catalogue.sqlite").exists()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike,
        layout: Layout,
        fingerprint: Mapping[str, str],
        facts: Mapping[str, Any],
    ) -> Store:
        """Makes an empty bank and opens it for writing.

        Args:
            path: a directory that is empty or does not exist.
            layout: geometry of the arrays.
            fingerprint: what `open` compares.
            facts: anything that JSON can say, such as where the checkpoint is.

        Raises:
            StoreError: if the directory holds something, or cannot be written.
        """
        path = pathlib.Path(path)
        _make_directories(path)
        lock = WriteLock(path / "lock")
        with _released_on_error(lock):
            if cls.exists(path):
                raise StoreError(f"{path}: there is a bank already; open it.")
            for leftover in path.glob("catalogue.new*"):
                leftover.unlink()
            # The bank appears, complete, when its catalogue gets its name.
            new = path / "catalogue.new"
            catalogues.create(
                new,
                {
                    "layout": dataclasses.asdict(layout),
                    "fingerprint": dict(fingerprint),
                    "facts": dict(facts),
                },
            )
            sync_file(new)
            new.rename(path / "catalogue.sqlite")
            sync_file(path)
            sync_file(path.parent)
            return cls(path, lock)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        *,
        write: bool = False,
        fingerprint: Mapping[str, str] | None = None,
    ) -> Store:
        """Opens a bank.

        Args:
            path: its directory.
            write: whether to change it; only one process can at a time.
            fingerprint: that the bank must have; None to take any.

        Raises:
            StoreError: if there is no bank, it has another fingerprint or a newer format, is
                damaged, or is open for writing already.
        """
        path = pathlib.Path(path)
        if not cls.exists(path):
            raise StoreError(f"{path}: there is no bank; python -m msa_jax.encode makes one.")
        lock = WriteLock(path / "lock") if write else None
        with _released_on_error(lock):
            store = cls(path, lock)
        if fingerprint is not None and dict(fingerprint) != store.fingerprint:
            store.close()
            raise StoreError(_difference(path, store.fingerprint, fingerprint))
        return store

    def close(self) -> None:
        """Closes the files and lets others write."""
        with self._lock:
            self._catalogue.close()
            self._segments.forget()
            if self._write_lock is not None:
                self._write_lock.release()
                self._write_lock = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What there is.

    @property
    def version(self) -> int:
        """How many commits there have been, those of other processes included."""
        return self._state().version

    @property
    def num_documents(self) -> int:
        """Live documents."""
        return self._state().documents

    @property
    def num_parts(self) -> int:
        """Live parts."""
        return self._state().parts

    @property
    def num_chunks(self) -> int:
        """Chunks of live parts."""
        return self._state().chunks

    @property
    def num_tokens(self) -> int:
        """Tokens of live parts."""
        return self._state().tokens

    def keys(self) -> Iterator[str]:
        """Keys of the live documents, the oldest first."""
        with self._lock:
            return iter(self._catalogue.keys())

    def __contains__(self, key: str) -> bool:
        with self._lock:
            return self._catalogue.find(key) is not None

    def unchanged(self, documents: Sequence[Document]) -> list[bool]:
        """Whether each is there with the same title, text and metadata."""
        with self._lock:
            entries = [self._catalogue.find(document.id) for document in documents]
        return [
            entry is not None and entry.digest == catalogues.digest(document)
            for entry, document in zip(entries, documents, strict=True)
        ]

    def parts(self) -> PartTable:
        """All live parts."""
        return self._table()

    def changes(self, since: int) -> Changes:
        """What leads from a version to the present one; `changes(0)` is everything.

        Whoever has the live ids of version `since` gets the present ones by taking away
        `removed` and adding `added`.
        """
        with self._lock, self._catalogue.snapshot():
            state, table = self._refresh()
            first = np.searchsorted(table.ids, self._catalogue.last_id(since), "right")
            return Changes(state.version, table[first:], self._catalogue.removed(since))

    def select(self, filters: Mapping[str, Any]) -> Int[np.ndarray, " n"]:
        """Ids, ascending, of live parts of documents that meet all filters.

        Args:
            filters: "key", "title" or a field of the metadata, with the value that it must have or
                a list of the values that it may have. A document without the field never meets it.
        """
        with self._lock:
            return self._catalogue.select(*conditions(filters))

    def passage(self, part_id: int) -> Passage:
        """The original of a part.

        That of a removed part is there, too, until compaction: an answer under way may rest on it.
        """
        with self._lock:
            return self._catalogue.passage(int(part_id))

    def passages(self, ids: Sequence[int]) -> list[Passage]:
        """The originals of several parts."""
        return [self.passage(part_id) for part_id in ids]

    # Arrays.

    def read(
        self, parts: PartTable, content: bool = True
    ) -> Iterator[tuple[Int[np.ndarray, " m"], Chunks]]:
        """Reads the arrays of parts, block by block, in the order in which they lie on disk.

        Parts that were removed and compacted away since `parts` was made are left out; `changes`
        names them.

        Args:
            parts: all or some of the live parts.
            content: False for routing keys alone; `Chunks.content` is None then.

        Yields:
            Rows of `parts`, and their chunks in that order; mapped, not copied, where possible.

        Raises:
            StoreError: if the bytes are not those that were written.
        """
        groups = self._by_block(parts.ids, np.arange(len(parts)))
        while groups:
            number, rows, chunks = groups[0]
            with self._lock:
                whole = self._view(number)
            if whole is None:
                # Compacted away since: see where what is left to read has gone.
                rows = np.concatenate([group[1] for group in groups])
                groups = self._by_block(parts.ids, rows)
                continue
            damage = self._segments.damage(self._blocks[number], content)
            if damage:
                raise StoreError(f"{damage}; restore the bank from a copy.")
            if not content:
                whole = dataclasses.replace(whole, content=None, content_scale=None)
            yield rows, whole[chunks]
            groups = groups[1:]

    def content(
        self, layer: int, ids: Sequence[int]
    ) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
        """The content of live parts in one layer: slices of the memory map, not checked.

        Returns:
            For each part `[n, 2, K, H]`, and `[n, 2]` scales if the content has 8 bits, else None.
        """
        with self._lock:
            places, views = self._places(ids)
        slices = [(views[number], slice(first, first + n)) for number, first, n in places]
        values = [view.content[layer, at] for view, at in slices]
        if "content_scale" not in self.layout.fields(0):
            return values, None
        return values, [view.content_scale[layer, at] for view, at in slices]

    # Changing.

    def reserve_ids(self, count: int) -> range:
        """Ids for `count` parts, which must be committed in the order in which they were given."""
        with self._lock:
            start = max(self._state().last_id, self._last_reserved) + 1
            self._last_reserved = start + count - 1
            return range(start, start + count)

    def commit(self, puts: Sequence[EncodedDocument] = (), deletes: Sequence[str] = ()) -> int:
        """Adds, replaces and removes documents, in one change that happens whole or not at all.

        Args:
            puts: documents; one whose key is there replaces it. Their ids ascend, and are above
                all that were ever committed.
            deletes: keys of documents.

        Returns:
            The version that this makes; with nothing to do, the present one.

        Raises:
            StoreError: if the change cannot be made.
        """
        with self._lock:
            self._check_writable()
            state = self._state()
            if not puts and not deletes:
                return state.version
            check_commit(puts, deletes, state.last_id, self.layout)
            gone = self._replaced(puts) + [self._entry(key) for key in deletes]
            state = _after(state, puts, gone)
            with self._appending():
                blocks, tail = self._append(map(Run.of, puts), self._tail)
                self._catalogue.add_blocks(blocks)
                self._catalogue.add_documents(puts)
                self._catalogue.remove(gone, state.version)
                self._catalogue.add_commit(state)
                # From here on the change may turn out to have happened, even if the last step
                # fails: its bytes must stay.
                self._tail = tail
            return state.version

    @contextlib.contextmanager
    def _appending(self) -> Iterator[None]:
        try:
            with self._catalogue.transaction():
                yield
        except BaseException:
            self._segments.cut(self._tail)
            raise

    def _append(self, runs: Iterable[Run], tail: Tail) -> tuple[list[tuple[Block, Run]], Tail]:
        """Writes chunks behind a tail, durably; the blocks and the new tail."""
        blocks = []
        for run in cut_into_blocks(runs, self.layout):
            block, tail = self._segments.append(tail, run.chunks)
            blocks.append((block, dataclasses.replace(run, chunks=None)))
        self._segments.sync({block.segment for block, _ in blocks})
        return blocks, tail

    def _replaced(self, puts: Sequence[EncodedDocument]) -> list[Entry]:
        entries = (self._catalogue.find(put.document.id) for put in puts)
        return [entry for entry in entries if entry is not None]

    def _entry(self, key: str) -> Entry:
        entry = self._catalogue.find(key)
        if entry is None:
            raise StoreError(f"{self.path}: there is no document {key!r} to delete.")
        return entry

    def _check_writable(self) -> None:
        if self._write_lock is None:
            raise StoreError(
                f"{self.path}: the bank is not open for writing; open it with write=True."
            )

    # The table of parts, and the blocks that hold them.

    def _state(self) -> State:
        with self._lock:
            return self._catalogue.state()

    def _table(self) -> PartTable:
        with self._lock, self._catalogue.snapshot():
            return self._refresh()[1]

    def _refresh(self) -> tuple[State, PartTable]:
        state, table, moved = self._live.refresh()
        if moved:
            # Let go of the files of compacted segments.
            self._blocks.clear()
            self._segments.forget(keep=self._catalogue.ends(self.layout))
        return state, table

    def _view(self, number: int) -> Chunks | None:
        """The arrays of a block; None if it was compacted away."""
        block = self._blocks.get(number) or self._catalogue.block(number)
        if block is None:
            return None
        self._blocks[number] = block
        return self._segments.read(block)

    def _by_block(
        self, ids: Int[np.ndarray, " n"], rows: Int[np.ndarray, " m"]
    ) -> list[tuple[int, Int[np.ndarray, " r"], slice | Int[np.ndarray, " c"]]]:
        """Blocks that hold these rows of `ids`: number, rows, and chunks within the block."""
        table = self._table()
        found = table.find(ids[rows])
        rows, table = rows[found >= 0], table[found[found >= 0]]
        order = np.lexsort((table.first_chunk, table.block))
        rows, table = rows[order], table[order]
        cuts = np.flatnonzero(np.diff(table.block)) + 1
        groups = []
        for at in np.split(np.arange(len(rows)), cuts):
            if len(at):
                chunks = _as_slice(spans(table.first_chunk[at], table.chunks[at]))
                groups.append((int(table.block[at[0]]), rows[at], chunks))
        return groups

    def _places(self, ids: Sequence[int]) -> tuple[list[tuple[int, int, int]], dict[int, Chunks]]:
        """Block, first chunk and number of chunks of each part; and the blocks' arrays."""
        table = self._table()
        rows = table.find(np.asarray(ids, np.int64))
        if (rows < 0).any():
            missing = np.asarray(ids)[rows < 0][0]
            raise StoreError(f"{self.path}: there is no part {missing}, or no longer.")
        table = table[rows]
        columns = (table.block, table.first_chunk, table.chunks)
        places = list(zip(*(column.tolist() for column in columns), strict=True))
        views = {number: self._view(number) for number, _, _ in places}
        # A block that was compacted away since is elsewhere now.
        return self._places(ids) if None in views.values() else (places, views)

    # Opening.

    def _recover(self) -> Tail:
        """Cuts off what a killed writer has left, and finds the end of the last segment."""
        ends = self._catalogue.ends(self.layout)
        self._segments.trim(ends)
        last = self._catalogue.last_segment()
        return Tail(last, ends[last]) if last in ends else Tail(last + 1, 0)

    def _check_sizes(self) -> None:
        problems = self._segments.short(self._catalogue.ends(self.layout))
        # A segment may have been compacted away while we looked.
        problems = problems and self._segments.short(self._catalogue.ends(self.layout))
        for problem in problems:
            raise StoreError(f"{problem}; restore the bank from a copy.")


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


def _as_slice(numbers: Int[np.ndarray, " n"]) -> slice | Int[np.ndarray, " n"]:
    """A slice where that says the same: taking it copies nothing."""
    if (np.diff(numbers) == 1).all():
        return slice(int(numbers[0]), int(numbers[-1]) + 1)
    return numbers


def _make_directories(path: pathlib.Path) -> None:
    """Makes the directory and its `segments`, unless it holds what is not ours."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in path.iterdir() if not entry.name.startswith("catalogue.")}
        strange = sorted(names - {"segments", "lock"})
        if strange:
            raise StoreError(f"{path}: the directory holds {strange[0]!r}; take an empty one.")
        (path / "segments").mkdir(exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: no bank can be made there ({error.strerror}).") from error


@contextlib.contextmanager
def _released_on_error(lock: WriteLock | None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def _difference(path: pathlib.Path, have: Mapping[str, str], want: Mapping[str, str]) -> str:
    names = sorted(name for name in {*have, *want} if have.get(name) != want.get(name))
    values = ", ".join(f"{name} {have.get(name)!r} and not {want.get(name)!r}" for name in names)
    return f"{path}: the bank was encoded with {values}; open it with those, or encode a new bank."
