"""The chunk table of a memory: which chunks belong to which document."""

from functools import partial

import jax
import jax.numpy as jnp

from msa_jax.typing import Array, Bool, Int, pytree, static


@pytree
class MemoryIndex:
    """Which chunks belong to which document; made once and shared by all layers.

    Attributes:
        chunk_doc: zero-based document of each chunk, -1 for none. A document's chunks are
            consecutive; for `kernels.routing.route` documents also ascend.
        first_chunk: of each document; C for one without chunks.
        num_chunks: of each document.
        max_document_chunks: chunks of the longest document (static); a row's if in doubt.
        num_blocks: equal parts of the chunks that cut no document (static). As many devices, or
            a divisor of it, can share the memory.
        doc_mask: documents that may be chosen, per query; None for all.
    """

    chunk_doc: Int[Array, "G C"]
    first_chunk: Int[Array, "G M"]
    num_chunks: Int[Array, "G M"]
    max_document_chunks: int = static()
    num_blocks: int = static()
    doc_mask: Bool[Array, "G B M"] | None = None

    @property
    def num_documents(self) -> int:
        """M."""
        return self.first_chunk.shape[-1]


def memory_index(
    chunk_doc: Int[Array, "G C"],
    num_documents: int,
    max_document_chunks: int,
    num_blocks: int = 1,
    doc_mask: Bool[Array, "G B M"] | None = None,
) -> MemoryIndex:
    """Builds the table from the document of each chunk; arguments as in `MemoryIndex`."""
    first_chunk, num_chunks = jax.vmap(partial(_document_chunks, num_documents))(chunk_doc)
    return MemoryIndex(
        chunk_doc, first_chunk, num_chunks, max_document_chunks, num_blocks, doc_mask
    )


def _document_chunks(
    num_documents: int, chunk_doc: Int[Array, " C"]
) -> tuple[Int[Array, " M"], Int[Array, " M"]]:
    """First chunk and number of chunks of every document."""
    total = chunk_doc.shape[0]
    # Chunks of no document go to an extra entry that is cut off again.
    documents = jnp.where(chunk_doc < 0, num_documents, chunk_doc)
    count = jnp.zeros(num_documents + 1, jnp.int32).at[documents].add(1)
    first = jnp.full(num_documents + 1, total, jnp.int32)
    first = first.at[documents].min(jnp.arange(total, dtype=jnp.int32))
    return first[:num_documents], count[:num_documents]
