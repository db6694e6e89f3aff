"""Banks of random arrays, as large as is asked for, that take no disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np

from msa_jax.checkpoint.key_map import parameter_shapes
from msa_jax.config import ModelConfig
from msa_jax.data.records import Document
from msa_jax.memory.chunks import Chunks, Layout
from msa_jax.memory.store import Changes, EncodedDocument, Part, PartTable, Passage, Store
from msa_jax.typing import PyTree

DOCUMENT_CHUNKS = 4
# Random chunks that are made once; every block is these, in another order and with other signs.
_BLOCK_CHUNKS = 16_384


class SyntheticStore:
    """A real store in which a number of documents with random arrays seem to be.

    Documents have `DOCUMENT_CHUNKS` chunks. What is committed goes to the real store.
    """

    def __init__(self, directory: Path, layout: Layout, num_chunks: int):
        """Makes the store.

        Args:
            directory: of the real store.
            layout: of the arrays.
            num_chunks: of the documents that seem to be there, a multiple of `DOCUMENT_CHUNKS`.
        """
        self.layout = layout
        self._num_documents = num_chunks // DOCUMENT_CHUNKS
        self._block = _random_chunks(layout, min(num_chunks, _BLOCK_CHUNKS))
        self._real = Store.create(directory, layout, {}, {})
        self._reserve_ids()

    @property
    def version(self) -> int:
        """Of the real store."""
        return self._real.version

    def changes(self, since: int) -> Changes:
        """The random documents are there from the beginning."""
        changes = self._real.changes(since)
        if since:
            return changes
        ids = np.arange(1, self._num_documents + 1)
        block_documents = len(self._block) // DOCUMENT_CHUNKS
        random = PartTable(
            ids,
            np.full(len(ids), DOCUMENT_CHUNKS),
            -1 - (ids - 1) // block_documents,
            (ids - 1) % block_documents * DOCUMENT_CHUNKS,
        )
        tables = zip(dataclasses.astuple(random), dataclasses.astuple(changes.added), strict=True)
        return dataclasses.replace(changes, added=PartTable(*map(np.concatenate, tables)))

    def read(self, parts: PartTable, content: bool = True) -> Iterator[tuple[np.ndarray, Chunks]]:
        """As `Store.read`."""
        rows = np.arange(len(parts))
        for block in np.unique(parts.block[parts.block < 0])[::-1]:
            own = rows[parts.block == block]
            stop = int(parts.first_chunk[own[-1]]) + DOCUMENT_CHUNKS
            chunks = _shuffled(self._block, -int(block))[:stop]
            yield own, chunks if content else Chunks(chunks.keys, None, chunks.key_scale)
        own = rows[parts.block >= 0]
        if len(own):
            yield from ((own[at], chunks) for at, chunks in self._real.read(parts[own], content))

    def passages(self, ids: Sequence[int]) -> list[Passage]:
        """Random documents have no text."""
        return [
            Passage(i, f"random-{i}", "", "", {}, 0, 1, 0)
            if i <= self._num_documents
            else self._real.passage(i)
            for i in ids
        ]

    def __contains__(self, key: str) -> bool:
        return key in self._real

    def __getattr__(self, name: str):
        return getattr(self._real, name)

    def _reserve_ids(self) -> None:
        """Gives the real store's documents ids above those of the random ones."""
        part = Part(self._num_documents + 1, 0, 1, 1, 1)
        document = Document("first", ".")
        self._real.commit([EncodedDocument(document, (part,), self._block[:1])])


def random_params(config: ModelConfig, seed: int = 0) -> PyTree:
    """Parameters for inference in the compute type, drawn on the device; norm scales are one."""
    shapes = parameter_shapes(config)

    @partial(jax.jit, static_argnums=1)
    def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return 0.02 * jax.random.normal(key, shape, config.dtype)

    flat = {
        path: jnp.ones(shape, jnp.float32)
        if path.endswith("scale")
        else draw(jax.random.fold_in(jax.random.key(seed), i), shape)
        for i, (path, shape) in enumerate(shapes.items())
    }
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _random_chunks(layout: Layout, count: int) -> Chunks:
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if name.endswith("scale"):
            return np.full(shape, 0.01, dtype)
        if dtype.itemsize == 1:
            return rng.integers(-127, 128, shape, np.int8).astype(dtype)
        # Unit length per head, as routing keys have.
        return (rng.standard_normal(shape, np.float32) * layout.head_dim**-0.5).astype(dtype)

    return Chunks(**{name: draw(name, *field) for name, field in layout.fields(count).items()})


def _shuffled(chunks: Chunks, seed: int) -> Chunks:
    """Chunks in another order: whole documents, turned round."""
    shift = DOCUMENT_CHUNKS * (seed * 7919 % (len(chunks) // DOCUMENT_CHUNKS))
    return Chunks(**{name: np.roll(x, shift, axis=1) for name, x in chunks.arrays()})
