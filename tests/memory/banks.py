"""Small banks, whose arrays follow from keys and texts, so that any can be checked."""

from __future__ import annotations

import os
import zlib

import numpy as np

from msa_jax.data.records import Document
from msa_jax.memory.chunks import Chunks, Layout
from msa_jax.memory.store import EncodedDocument, Part, Store

LAYOUT = Layout(
    num_layers=2,
    num_kv_heads=1,
    head_dim=4,
    pooling_kernel_size=4,
    max_document_tokens=32,
    key_dtype="int8",
    content_dtype="bfloat16",
)
FINGERPRINT = {"model": "m1", "tokenizer": "t1", "template": "plain"}
_WIDTH = 8


def arrays(text: str, num_chunks: int) -> Chunks:
    """Arrays of a part, which differ for different texts."""
    rng = np.random.default_rng(zlib.crc32(text.encode(errors="replace")))
    fields = LAYOUT.fields(num_chunks).items()
    return Chunks(
        **{name: rng.integers(-99, 99, shape).astype(dtype) for name, (shape, dtype) in fields}
    )


def encode(document: Document, first_id: int) -> EncodedDocument:
    """A document with a part for every eight characters, of 1 to 4 chunks."""
    parts, chunks = [], []
    for start in range(0, len(document.text), _WIDTH):
        text = document.text[start : start + _WIDTH]
        count = 1 + len(text) % 4
        parts.append(Part(first_id + len(parts), start, start + len(text), 4 * count, count))
        chunks.append(arrays(document.id + text, count))
    return EncodedDocument(document, tuple(parts), Chunks.concatenate(chunks))


def put(store: Store, *documents: Document, deletes: tuple[str, ...] = ()) -> int:
    """Commits documents with new ids."""
    encoded = []
    for document in documents:
        ids = store.reserve_ids(-(-len(document.text) // _WIDTH))
        encoded.append(encode(document, ids.start))
    return store.commit(encoded, deletes)


def put_text(store: Store, key: str, text: str) -> int:
    """Commits a document, or its removal if there is no text."""
    return put(store, Document(key, text)) if text else store.commit(deletes=[key])


def create(path: str | os.PathLike) -> Store:
    """An empty bank."""
    return Store.create(path, LAYOUT, FINGERPRINT, {"checkpoint": "here"})


def contents(store: Store) -> dict[str, tuple[tuple[int, ...], str, dict]]:
    """Ids, text and metadata of every live document by key, after comparing all arrays."""
    parts = store.parts()
    passages = store.passages(parts.ids)
    for rows, chunks in store.read(parts):
        expected = [
            arrays(passages[row].key + passages[row].text, parts.chunks[row]) for row in rows
        ]
        expected = Chunks.concatenate(expected)
        for name, array in chunks.arrays():
            np.testing.assert_array_equal(array, getattr(expected, name))
    found: dict[str, tuple[tuple[int, ...], str, dict]] = {}
    for passage in passages:
        ids, text, _ = found.get(passage.key, ((), "", {}))
        found[passage.key] = ((*ids, passage.id), text + passage.text, dict(passage.metadata))
    assert sorted(found) == sorted(store.keys())
    return found
