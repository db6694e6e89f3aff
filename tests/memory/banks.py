"""Small banks, whose arrays follow from keys and texts, so that any can be checked."""

from __future__ import annotations

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


def arrays(part: str, num_chunks: int, layout: Layout = LAYOUT) -> Chunks:
    """Arrays of a part, the same for the same text."""
    rng = np.random.default_rng(zlib.crc32(part.encode()))
    fields = layout.fields(num_chunks).items()
    return Chunks(
        **{name: rng.integers(-9, 9, shape).astype(dtype) for name, (shape, dtype) in fields}
    )


def encode(
    document: Document, first_id: int, layout: Layout = LAYOUT, width: int = 8
) -> EncodedDocument:
    """A document of one part for each `width` characters of its text, of 1 to 4 chunks."""
    text, parts, chunks = document.text, [], []
    for number, start in enumerate(range(0, len(text), width)):
        piece = text[start : start + width]
        count = 1 + len(piece) % 4
        parts.append(Part(first_id + number, start, start + len(piece), 4 * count, count))
        chunks.append(arrays(document.id + piece, count, layout))
    return EncodedDocument(document, tuple(parts), Chunks.concatenate(chunks))


def put(store: Store, *documents: Document) -> int:
    """Commits documents with new ids."""
    sizes = [-(-len(document.text) // 8) for document in documents]
    ids = store.reserve_ids(sum(sizes))
    starts = [ids.start + sum(sizes[:number]) for number in range(len(sizes))]
    return store.commit([encode(x, start) for x, start in zip(documents, starts, strict=True)])


def create(path, layout: Layout = LAYOUT) -> Store:
    """An empty bank."""
    return Store.create(path, layout, FINGERPRINT, {"checkpoint": "here"})
