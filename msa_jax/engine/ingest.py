"""Documents into a bank: split, named, encoded and committed, slice by slice.

While the devices encode a slice, the next one is read and tokenised and the last one written. A
slice is one commit: whoever stops an ingestion and starts it again finds what was committed
unchanged, and encodes only the rest.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple, TypeVar

import numpy as np

from msa_jax.data.parts import PartWriter
from msa_jax.data.records import Document, RecordError
from msa_jax.data.templates import PromptBuilder
from msa_jax.engine.encode import Encoder, bank_layout
from msa_jax.engine.loading import LoadedModel, fingerprint
from msa_jax.memory.chunks import Chunks, Layout
from msa_jax.memory.store import EncodedDocument, Part, Passage, Store

T = TypeVar("T")

DEFAULT_DOCUMENT_TOKENS = 512
# Of a slice: arrays of this size, and not more work than one would like to lose.
_SLICE_BYTES = 2**29
_SLICE_TOKENS = 2**20
# A guess, to cut slices before anything is tokenised.
_CHARACTERS_PER_TOKEN = 3


@dataclasses.dataclass(frozen=True)
class Counts:
    """What became of documents.

    Attributes:
        added: documents that are new.
        updated: documents that replaced another of their key.
        unchanged: documents that were there already.
        empty: documents without text; one of the same key is gone now.
        parts: of the documents added and updated.
        tokens: of these parts.
        removed: documents that were in the bank and are not among those given (`Ingestor.sync`).
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    empty: int = 0
    parts: int = 0
    tokens: int = 0
    removed: int = 0

    def __add__(self, other: Counts) -> Counts:
        sums = map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True))
        return Counts(*sums)


def part_text(builder: PromptBuilder, passage: Passage) -> str:
    """What was encoded of a part, but for its names: the title goes with the first part."""
    title = passage.title if passage.part == 0 else ""
    return builder.document_text(Document(passage.key, passage.text, title))


def new_layout(
    loaded: LoadedModel,
    max_document_tokens: int | None = None,
    key_dtype: str | None = None,
    content_dtype: str | None = None,
) -> Layout:
    """The layout of a new bank.

    Args:
        loaded: the model that is to encode it; parameters are not needed.
        max_document_tokens: longer documents are split; by default as in training, else
            `DEFAULT_DOCUMENT_TOKENS`.
        key_dtype: of routing keys; by default the model's compute type.
        content_dtype: of content; by default likewise.
    """
    longest = max_document_tokens or loaded.max_document_tokens or DEFAULT_DOCUMENT_TOKENS
    return bank_layout(loaded.config, longest, key_dtype, content_dtype)


def create_bank(path: str | os.PathLike, loaded: LoadedModel, layout: Layout) -> Store:
    """Makes an empty bank, which remembers its model so that nobody has to name it again.

    Raises:
        StoreError: if the directory holds something, or cannot be written.
    """
    facts = {
        "checkpoint": loaded.source,
        "tokenizer": loaded.tokenizer_source,
        "template": loaded.template_name,
        "dtype": loaded.config.dtype,
    }
    return Store.create(path, layout, fingerprint(loaded), facts)


class _Slice(NamedTuple):
    """Documents that go into one commit.

    Attributes:
        documents: those to encode.
        parts: of each document.
        tokens: of every part of all documents, as memory holds it.
        removed: keys of the bank whose documents are without text now.
        counts: of this slice.
    """

    documents: list[Document]
    parts: list[list[Part]]
    tokens: list[np.ndarray]
    removed: list[str]
    counts: Counts


class Ingestor:
    """Adds documents to a bank."""

    def __init__(self, loaded: LoadedModel, encoder: Encoder, store: Store):
        """Prepares to write.

        Args:
            loaded: the model whose text it is.
            encoder: with the layout of the bank.
            store: open for writing.

        Raises:
            ConfigError: if the template takes all of the layout's `max_document_tokens`.
        """
        layout = store.layout
        self._encoder, self._store = encoder, store
        self._writer = PartWriter(loaded.builder, layout.max_document_tokens)
        self._chunk_tokens = layout.pooling_kernel_size
        slice_chunks = _SLICE_BYTES // sum(layout.bytes_per_chunk())
        self._slice_tokens = min(_SLICE_TOKENS, slice_chunks * self._chunk_tokens)

    def add(
        self,
        documents: Iterable[Document],
        on_planned: Callable[[int], None] = lambda tokens: None,
        on_encoded: Callable[[int], None] = lambda tokens: None,
    ) -> Counts:
        """Adds documents, or replaces those of their key; what is there unchanged is skipped.

        When it fails, slices that were committed stay, and the same call goes on from there.

        Args:
            documents: may be more than memory holds; keys must differ.
            on_planned: called, in another thread, with the tokens of each slice when it is read.
            on_encoded: called with the tokens of each batch when it is encoded.

        Raises:
            RecordError: if a key occurs twice, or `documents` finds a bad record.
            ConfigError: if a part cannot be encoded.
            StoreError: if the bank cannot be written.
        """
        total, slices = Counts(), self._slices(documents)

        def prepare_next() -> Future[_Slice | None]:
            return _in_background(lambda: self._prepare_next(slices, on_planned))

        with ThreadPoolExecutor(1) as writing:
            commit: Future | None = None
            upcoming = prepare_next()
            try:
                while (current := upcoming.result()) is not None:
                    upcoming = prepare_next()
                    chunks = self._encoder.encode(current.tokens, on_encoded)
                    if commit is not None:
                        commit.result()
                    commit = writing.submit(self._commit, current, chunks)
                    total += current.counts
            except Exception:
                wait([upcoming])
                raise
            if commit is not None:
                commit.result()
        return total

    def sync(
        self,
        documents: Iterable[Document],
        on_planned: Callable[[int], None] = lambda tokens: None,
        on_encoded: Callable[[int], None] = lambda tokens: None,
    ) -> Counts:
        """Makes the bank hold exactly these documents: adds them, then removes all others.

        When it fails, nothing has been removed but what `add` replaced.

        Args:
            documents: see `add`.
            on_planned: likewise.
            on_encoded: likewise.

        Raises:
            RecordError: likewise, or if there is no document at all: that would empty the bank.
            ConfigError: likewise.
            StoreError: likewise.
        """
        keys: set[str] = set()

        def noted() -> Iterator[Document]:
            for document in documents:
                keys.add(document.id)
                yield document

        counts = self.add(noted(), on_planned, on_encoded)
        if not keys:
            raise RecordError("there is no document; the bank is left as it was.")
        others = sorted(set(self._store.keys()) - keys)
        self._store.commit(deletes=others)
        return counts + Counts(removed=len(others))

    def _slices(self, documents: Iterable[Document]) -> Iterator[list[Document]]:
        seen: set[str] = set()
        documents_of_slice, tokens = [], 0
        for document in documents:
            if document.id in seen:
                raise RecordError(f"document {document.id!r} is given twice; give each key once.")
            seen.add(document.id)
            documents_of_slice.append(document)
            # Rounded up, since the smallest document takes a chunk.
            tokens += self._chunk_tokens + len(document.text) // _CHARACTERS_PER_TOKEN
            if tokens >= self._slice_tokens:
                yield documents_of_slice
                documents_of_slice, tokens = [], 0
        if documents_of_slice:
            yield documents_of_slice

    def _prepare_next(
        self, slices: Iterator[list[Document]], on_planned: Callable[[int], None]
    ) -> _Slice | None:
        given = next(slices, None)
        if given is None:
            return None
        prepared = self._prepare(given)
        on_planned(prepared.counts.tokens)
        return prepared

    def _prepare(self, given: Sequence[Document]) -> _Slice:
        """Splits and names what has changed of a slice."""
        unchanged = self._store.unchanged(given)
        new = [document for document, same in zip(given, unchanged, strict=True) if not same]
        texts = self._writer.split(new)
        documents = [document for document, pieces in zip(new, texts, strict=True) if pieces]
        empty = [document.id for document, pieces in zip(new, texts, strict=True) if not pieces]
        texts = [pieces for pieces in texts if pieces]
        ids = iter(self._store.reserve_ids(sum(map(len, texts))))
        tokens, parts = [], []
        for pieces in texts:
            own = []
            for piece in pieces:
                part_id = next(ids)
                tokens.append(self._writer.write(part_id, piece.tokens))
                length = len(tokens[-1])
                num_chunks = -(-length // self._chunk_tokens)
                own.append(Part(part_id, piece.start, piece.stop, length, num_chunks))
            parts.append(own)
        updated = sum(document.id in self._store for document in documents)
        counts = Counts(
            added=len(documents) - updated,
            updated=updated,
            unchanged=sum(unchanged),
            empty=len(empty),
            parts=len(tokens),
            tokens=sum(map(len, tokens)),
        )
        removed = [key for key in empty if key in self._store]
        return _Slice(documents, parts, tokens, removed, counts)

    def _commit(self, current: _Slice, chunks: Chunks) -> None:
        puts, first = [], 0
        for document, parts in zip(current.documents, current.parts, strict=True):
            stop = first + sum(part.chunks for part in parts)
            puts.append(EncodedDocument(document, tuple(parts), chunks[first:stop]))
            first = stop
        self._store.commit(puts, deletes=current.removed)


def _in_background(work: Callable[[], T]) -> Future[T]:
    """The result of a call in a thread for which the end of the program does not wait.

    It may read from a terminal, on which nothing comes after Ctrl-C.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
