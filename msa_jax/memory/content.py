"""Pooled keys and values of the chunks, and how the chosen ones get to where they are attended to.

A chunk's pooled keys and values lie side by side, and a document's chunks one after the other, so
that what a query needs of a document in one layer is one stretch of memory.
"""

from __future__ import annotations

import jax.numpy as jnp

from msa_jax.core.index import MemoryIndex
from msa_jax.memory import parallel
from msa_jax.typing import Array, Bool, Float, Int, pytree


@pytree
class Content:
    """Pooled keys (0) and values (1) of every chunk.

    Attributes:
        values: in the compute type, or in 8 bits to be multiplied by `scale`.
        scale: of 8-bit values, else None.
    """

    values: Float[Array, "*layers G C 2 K H"]
    scale: Float[Array, "*layers G C 2"] | None = None


def fetch(
    content: Content,
    index: MemoryIndex,
    chosen: Int[Array, "G B k"],
    layer: Int[Array, ""] | None,
    dtype: jnp.dtype,
) -> tuple[Float[Array, "G B X 2 K H"], Bool[Array, "G B X"]]:
    """Content of all chunks of the chosen documents, differentiable.

    Args:
        content: of one layer, or of all with `layer`.
        index: where documents are.
        chosen: documents of each query, -1 for none.
        layer: which of L layers to read.
        dtype: of the result.

    Returns:
        X = k * max_document_chunks slots, and which of them hold a chunk.
    """
    picked, mask = parallel.gather_chunks(content, index, chosen, layer)
    values = picked.values
    if picked.scale is not None:
        values = values.astype(jnp.float32) * picked.scale[..., None, None]
    return values.astype(dtype), mask
