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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from msa_jax.data.records import Document
from msa_jax.memory import catalogue as catalogues
from msa_jax.memory.arrays import Arrays
from msa_jax.memory.catalogue import Catalogue, State
from msa_jax.memory.chunks import Chunks, Layout
from msa_jax.memory.filters import conditions
from msa_jax.memory.lock import WriteLock
from msa_jax.memory.parts import (
    Changes,
    EncodedDocument,
    Part,
    PartTable,
    Passage,
    StoreError,
)
from msa_jax.memory.segments import Segments, sync_file
from msa_jax.memory.verification import verify
from msa_jax.memory.words.bank_words import BankWords
from msa_jax.memory.writer import Writer
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
        words: search by words in the parts.
    """

    def __init__(self, path: pathlib.Path, lock: WriteLock | None):
        self.path = path
        self._lock = threading.RLock()
        self._catalogue = Catalogue(path / "catalogue.sqlite", write=lock is not None)
        try:
            description = self._catalogue.description
            self.layout = Layout(**description["layout"])
            self.fingerprint: dict[str, str] = description["fingerprint"]
            self.facts: dict[str, Any] = description["facts"]
            self._segments = Segments(path / "segments", self.layout)
            self._arrays = Arrays(path, self.layout, self._catalogue, self._segments, self._lock)
            self._check_sizes()
            shared = (self.layout, self._catalogue, self._segments, self._arrays, self._lock)
            self._writer = Writer(*shared, lock) if lock else None
            self.words = BankWords(path, self._catalogue, self.changes, self._lock)
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
        self.words.close()
        with self._lock:
            self._catalogue.close()
            self._segments.forget()
            if self._writer is not None:
                self._writer.release()
                self._writer = None

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
        return self._arrays.table()

    def changes(self, since: int) -> Changes:
        """What leads from a version to the present one; `changes(0)` is everything.

        Whoever has the live ids of version `since` gets the present ones by taking away
        `removed` and adding `added`.
        """
        with self._lock, self._catalogue.snapshot():
            state, table = self._arrays.refresh()
            first = np.searchsorted(table.ids, self._catalogue.last_id(int(since)), "right")
            return Changes(state.version, table[first:], self._catalogue.removed(int(since)))

    def select(self, filters: Mapping[str, Any]) -> Int[np.ndarray, " n"]:
        """Ids, ascending, of live parts of documents that meet all filters.

        Args:
            filters: "key", "title" or a field of the metadata, with the value that it must have or
                a list of the values that it may have. A field that is a list has each of its
                members. A document without the field never meets it.
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
        return self._arrays.read(parts, content)

    def content(
        self, layer: int, ids: Sequence[int]
    ) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
        """The content of live parts in one layer: slices of the memory map, not checked.

        Returns:
            For each part `[n, 2, K, H]`, and `[n, 2]` scales if the content has 8 bits, else None.
        """
        return self._arrays.content(layer, ids)

    # Changing.

    def reserve_ids(self, count: int) -> range:
        """Ids for `count` parts; commit them in the order in which they were reserved."""
        return self._writing().reserve_ids(count)

    def commit(self, puts: Sequence[EncodedDocument] = (), deletes: Sequence[str] = ()) -> int:
        """Adds, replaces and removes documents, in one change that happens whole or not at all.

        Args:
            puts: documents; one whose key is there replaces it. Their ids ascend, above all that
                were ever committed.
            deletes: keys of documents.

        Returns:
            The version that this makes; with nothing to do, the present one.

        Raises:
            StoreError: if the documents do not fit, or the disk is full; nothing has changed then.
        """
        version = self._writing().commit(puts, deletes)
        self.words.follow()
        return version

    def compact(self, min_garbage: float = 0.25) -> int:
        """Rewrites segments that are garbage in part, and deletes the texts of removed documents.

        It may run in a thread beside `commit`, which waits for one segment at most. Nobody who
        reads is disturbed.

        Args:
            min_garbage: rewrite a segment if removed documents have more than this share of it.

        Returns:
            How many bytes smaller the segments are.

        Raises:
            StoreError: if the disk is full or a block is damaged; earlier segments are done then.
        """
        reclaimed = self._writing().compact(min_garbage)
        self.words.forget()
        return reclaimed

    # The whole.

    @property
    def stats(self) -> dict[str, int]:
        """How much there is, and how much of it is garbage."""
        with self._lock, self._catalogue.snapshot():
            usage = self._arrays.usage()
            segments = sum(self._catalogue.ends(self.layout).values())
            blocks = len(self._catalogue.blocks())
        live = sum(live for _, live in usage.values()) * sum(self.layout.bytes_per_chunk())
        return {
            "segments": len(usage),
            "blocks": blocks,
            "bytes_live": live,
            "bytes_garbage": segments - live,
            "bytes_catalogue": (self.path / "catalogue.sqlite").stat().st_size,
        }

    def verify(self, on_block: Callable[[int, int], None] | None = None) -> list[str]:
        """Reads every byte of the bank.

        Args:
            on_block: called with the number of blocks that were read and that there are.

        Returns:
            What is wrong, in words; nothing if the bank is sound.
        """
        whole = (self._catalogue, self._segments, self.layout, self._lock)
        return verify(*whole, on_block or (lambda *_: None)) or self.words.problems()

    def _writing(self) -> Writer:
        if self._writer is None:
            raise StoreError(f"{self.path}: open the bank with write=True to change it.")
        return self._writer

    def _state(self) -> State:
        with self._lock:
            return self._catalogue.state()

    def _check_sizes(self) -> None:
        problems = self._segments.short(self._catalogue.ends(self.layout))
        # A segment may have been compacted away while we looked.
        problems = problems and self._segments.short(self._catalogue.ends(self.layout))
        for problem in problems:
            raise StoreError(f"{problem}; restore the bank from a copy.")


def _make_directories(path: pathlib.Path) -> None:
    """Makes the directory and its `segments`, unless it holds what is not ours."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        ours = {"catalogue", "segments", "lock", "words"}
        strange = sorted(x.name for x in path.iterdir() if x.name.partition(".")[0] not in ours)
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
