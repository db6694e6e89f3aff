"""Pooled keys and values of the chunks, and how the chosen ones get to where they are attended to.

A chunk's pooled keys and values lie side by side, and a document's chunks one after the other, so
that what a query needs of a document in one layer is one stretch of memory. Content can lie in
device memory, in host memory that the device reads, or on disk.
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from msa_jax.core.index import MemoryIndex
from msa_jax.core.routing import context_slots
from msa_jax.kernels import parallel
from msa_jax.typing import Array, Bool, Float, Int, pytree, static

DEVICE, HOST, DISK = "device", "host", "disk"


class ContentReader(Protocol):
    """Content that is not in memory. Equal readers are one object, so that nothing recompiles."""

    shape: tuple[int, int, int]  # 2, K, H
    dtype: np.dtype

    def read(
        self, layer: int, chosen: Int[np.ndarray, "*batch k"], max_document_chunks: int
    ) -> tuple[
        Float[np.ndarray, "*batch k m 2 K H"],
        Float[np.ndarray, "*batch k m 2"],
        Bool[np.ndarray, "*batch k m"],
    ]:
        """Content of the documents that were chosen, its scales (ones if it has none), and chunks
        that there are: none of a document that has been removed meanwhile."""


@pytree
class Content:
    """Pooled keys (0) and values (1) of every chunk.

    Attributes:
        values: in the compute type, or in 8 bits to be multiplied by `scale`; None on disk.
        scale: of 8-bit values, in device memory; else None.
        tier: where `values` lie: "device"; "host", on one device only; or "disk".
        reader: of content on disk.
    """

    values: Float[Array, "*layers G C 2 K H"] | None
    scale: Float[Array, "*layers G C 2"] | None = None
    tier: str = static(DEVICE)
    reader: ContentReader | None = static(None)


def fetch(
    content: Content,
    index: MemoryIndex,
    chosen: Int[Array, "G B k"],
    layer: Int[Array, ""] | None,
    dtype: jnp.dtype,
) -> tuple[Float[Array, "G B X 2 K H"], Bool[Array, "G B X"]]:
    """Content of all chunks of the chosen documents; differentiable in device memory.

    Args:
        content: of one layer, or of all with `layer`.
        index: where documents are.
        chosen: documents of each query, -1 for none.
        layer: which of L layers to read; must be given unless content is in device memory.
        dtype: of the result.

    Returns:
        X = k * max_document_chunks slots, zero where a slot holds no chunk, and which hold one.
    """
    if content.tier == DEVICE:
        (values, scale), mask = parallel.gather_chunks(
            (content.values, content.scale), index, chosen, layer
        )
    else:
        read = {HOST: _read_host, DISK: _read_disk}[content.tier]
        values, scale, mask = read(content, index, chosen, layer)
        values = jnp.where(mask[..., None, None, None], values, 0)
    if scale is not None:
        values = values.astype(jnp.float32) * scale[..., None, None]
    return values.astype(dtype), mask


def _read_host(content: Content, index: MemoryIndex, chosen, layer):
    """One copy for each document, all of a query's under way at once."""
    num_groups, batch_size, num_chosen = chosen.shape
    size = (1, 1, index.max_document_chunks, *content.values.shape[3:])

    def read_query(args):
        group, first = args

        def read_document(i):
            start = (layer, group, first[i], 0, 0, 0)
            stretch = jax.lax.dynamic_slice(content.values, start, size)
            return jax.device_put(stretch, jax.memory.Space.Device)[0, 0]

        return jnp.concatenate([read_document(i) for i in range(num_chosen)])

    documents = jnp.maximum(chosen, 0).reshape(num_groups, -1)
    first = jnp.take_along_axis(index.first_chunk, documents, axis=1).reshape(-1, num_chosen)
    groups = jnp.repeat(jnp.arange(num_groups), batch_size)
    if len(first) == 1:
        values = read_query((groups[0], first[0]))
    else:
        values = jax.lax.map(read_query, (groups, first))
    scale = None
    if content.scale is not None:
        scale, _ = parallel.gather_chunks(content.scale, index, chosen, layer)
    _, mask = jax.vmap(context_slots, in_axes=(0, 0, 0, None))(
        index.first_chunk, index.num_chunks, chosen, index.max_document_chunks
    )
    return values.reshape(num_groups, batch_size, -1, *content.values.shape[3:]), scale, mask


def _read_disk(content: Content, index: MemoryIndex, chosen, layer):
    reader, max_chunks = content.reader, index.max_document_chunks
    shape = (*chosen.shape, max_chunks)

    def read(layer, chosen):
        return reader.read(int(layer), np.asarray(chosen), max_chunks)

    values, scale, mask = jax.pure_callback(
        read,
        (
            jax.ShapeDtypeStruct((*shape, *reader.shape), reader.dtype),
            jax.ShapeDtypeStruct((*shape, 2), np.float32),
            jax.ShapeDtypeStruct(shape, np.bool_),
        ),
        layer,
        chosen,
        vmap_method="sequential",
    )
    flat = (*chosen.shape[:2], -1)
    return values.reshape(*flat, *reader.shape), scale.reshape(*flat, 2), mask.reshape(flat)
