"""The best documents of a memory, without sorting the memory.

Chunks are taken in groups. A group's maximum belongs to one document, and a document of at most m
chunks reaches into at most `span` groups, so the documents that beat the n-th best one fill at
most (n - 1) * span groups. The (n - 1) * span + 1 groups with the largest maxima therefore hold a
best chunk of every document that can be among the n best: only they are looked at again. The
choice is exact, ties included.
"""

import jax
import jax.numpy as jnp

from msa_jax.typing import Array, Float, Int

GROUP = 128


def select_documents(
    scores: Float[Array, "B C"],
    chunk_doc: Int[Array, " C"],
    top_n: int,
    max_document_chunks: int,
) -> tuple[Float[Array, "B n"], Int[Array, "B n"], Int[Array, "B n"]]:
    """The `top_n` best documents by their best chunk, best first, ties to the lower id.

    Args:
        scores: of chunks; -inf for those that may not be chosen.
        chunk_doc: document of each chunk. A document's chunks are consecutive, and documents
            ascend; chunks of no document (-1) may lie anywhere.
        top_n: how many documents.
        max_document_chunks: chunks of the longest document, or more.

    Returns:
        Scores, documents, and one chunk of each document. Where there are fewer documents than
        asked for, -inf, -1 and an arbitrary chunk.
    """
    batch, num_chunks = scores.shape
    padding = -num_chunks % GROUP
    scores = jnp.pad(scores, ((0, 0), (0, padding)), constant_values=-jnp.inf)
    scores = scores.reshape(batch, -1, GROUP)
    owners = jnp.pad(chunk_doc, (0, padding), constant_values=-1).reshape(-1, GROUP)
    num_groups = scores.shape[1]
    wanted = (top_n - 1) * _span(max_document_chunks) + 1
    if wanted < num_groups:
        _, groups = jax.lax.top_k(scores.max(axis=-1), wanted)
        # In the order of memory, so that a document's chunks stay side by side.
        groups = jnp.sort(groups, axis=-1)
        scores = jnp.take_along_axis(scores, groups[..., None], axis=1)
    else:
        groups = jnp.broadcast_to(jnp.arange(num_groups, dtype=jnp.int32), (batch, num_groups))
    owners = owners[groups].reshape(batch, -1)
    chunks = (groups[..., None] * GROUP + jnp.arange(GROUP, dtype=jnp.int32)).reshape(batch, -1)
    best = _document_maxima(scores.reshape(batch, -1), owners, max_document_chunks)
    top_scores, at = jax.lax.top_k(best, min(top_n, best.shape[-1]))
    docs = jnp.where(top_scores > -jnp.inf, jnp.take_along_axis(owners, at, axis=-1), -1)
    return top_scores, docs, jnp.take_along_axis(chunks, at, axis=-1)


def _span(max_document_chunks: int) -> int:
    """Groups that a document can reach into."""
    return 1 if max_document_chunks <= 1 else (max_document_chunks - 2) // GROUP + 2


def _document_maxima(
    scores: Float[Array, "B n"], owners: Int[Array, "B n"], max_document_chunks: int
) -> Float[Array, "B n"]:
    """A document's maximum at its first chunk, -inf everywhere else."""
    reach = 1  # Each entry holds the maximum over itself and the next reach - 1 of its document.
    while reach < min(max_document_chunks, scores.shape[-1]):
        ahead = jnp.pad(scores[:, reach:], ((0, 0), (0, reach)), constant_values=-jnp.inf)
        same = jnp.pad(owners[:, reach:], ((0, 0), (0, reach)), constant_values=-1) == owners
        scores = jnp.where(same, jnp.maximum(scores, ahead), scores)
        reach *= 2
    before = jnp.pad(owners[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return jnp.where((owners >= 0) & (owners != before), scores, -jnp.inf)
