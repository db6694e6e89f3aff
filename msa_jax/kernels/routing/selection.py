"""The best documents of a memory, without sorting the memory.

Chunks are taken in groups. A group's maximum belongs to one document, and a document of at most m
chunks reaches into at most `span` groups, so the documents that beat the n-th best one fill at
most (n - 1) * span groups. The (n - 1) * span + 1 groups with the largest maxima therefore hold a
best chunk of every document that can be among the n best, and only they are looked at again, in
smaller groups. The choice is exact, ties included.
"""

import jax
import jax.numpy as jnp

from msa_jax.typing import Array, Float, Int

# Chunks per group, level by level: 1.5 million chunks are 3,000 groups, then some 30 of them
# 1,000 smaller ones, then some 30 of those 500 chunks.
GROUP_SIZES = (512, 16)
# Up to this many, counting how many are larger beats sorting by far (on accelerators).
_MAX_COUNTED = 4096


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
    num_chunks = scores.shape[1]
    chunks = None  # Positions of the candidates; None while all chunks are.
    for size in GROUP_SIZES:
        wanted = (top_n - 1) * _span(max_document_chunks, size) + 1
        if wanted * size < scores.shape[1]:
            scores, chunks = _best_groups(scores, chunks, size, wanted)
    if chunks is None:
        chunks = jnp.broadcast_to(jnp.arange(num_chunks, dtype=jnp.int32), scores.shape)
    owners = jnp.take(chunk_doc, chunks, mode="fill", fill_value=-1)
    best = _document_maxima(scores, owners, max_document_chunks)
    top_scores, at = top_k(best, min(top_n, best.shape[1]))
    docs = jnp.where(top_scores > -jnp.inf, jnp.take_along_axis(owners, at, axis=1), -1)
    return top_scores, docs, jnp.take_along_axis(chunks, at, axis=1)


def _span(max_document_chunks: int, size: int) -> int:
    """Groups that a document can reach into."""
    return 1 if max_document_chunks <= 1 else (max_document_chunks - 2) // size + 2


def _best_groups(
    scores: Float[Array, "B n"], chunks: Int[Array, "B n"] | None, size: int, wanted: int
) -> tuple[Float[Array, "B m"], Int[Array, "B m"]]:
    """Scores and positions of the chunks in the groups with the largest maxima."""
    batch, padding = scores.shape[0], -scores.shape[1] % size
    scores = jnp.pad(scores, ((0, 0), (0, padding)), constant_values=-jnp.inf)
    scores = scores.reshape(batch, -1, size)
    _, groups = top_k(scores.max(axis=-1), wanted)
    # In the order of memory, so that a document's chunks stay side by side.
    groups = jnp.sort(groups, axis=1)
    scores = jnp.take_along_axis(scores, groups[..., None], axis=1)
    if chunks is None:
        chunks = groups[..., None] * size + jnp.arange(size, dtype=jnp.int32)
    else:
        chunks = jnp.take_along_axis(chunks.reshape(batch, -1, size), groups[..., None], axis=1)
    return scores.reshape(batch, -1), chunks.reshape(batch, -1)


def _document_maxima(
    scores: Float[Array, "B n"], owners: Int[Array, "B n"], max_document_chunks: int
) -> Float[Array, "B n"]:
    """A document's maximum at its first chunk, -inf everywhere else."""
    reach = 1  # Each entry holds the maximum over itself and the next reach - 1 of its document.
    while reach < min(max_document_chunks, scores.shape[1]):
        ahead = jnp.pad(scores[:, reach:], ((0, 0), (0, reach)), constant_values=-jnp.inf)
        same = jnp.pad(owners[:, reach:], ((0, 0), (0, reach)), constant_values=-1) == owners
        scores = jnp.where(same, jnp.maximum(scores, ahead), scores)
        reach *= 2
    before = jnp.pad(owners[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return jnp.where((owners >= 0) & (owners != before), scores, -jnp.inf)


def top_k(x: Float[Array, "B n"], k: int) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """The k largest of each row and where they are, ties to the earlier.

    As `top_k_by_sorting`, and on accelerators faster where n is small.
    """
    if x.shape[1] > _MAX_COUNTED:
        return top_k_by_sorting(x, k)
    return jax.lax.platform_dependent(
        x,
        cpu=lambda x: top_k_by_sorting(x, k),
        default=lambda x: _top_k_by_counting(x, k),
    )


def top_k_by_sorting(
    x: Float[Array, "*batch n"], k: int
) -> tuple[Float[Array, "*batch k"], Int[Array, "*batch k"]]:
    """`jax.lax.top_k`, which takes -0 for less than 0; here they tie."""
    return tuple(jax.lax.top_k(jnp.where(x == 0, 0, x), k))


def _top_k_by_counting(x, k):
    """An entry's rank is the number of entries before it; nothing is sorted."""
    index = jnp.arange(x.shape[1], dtype=jnp.int32)
    this, other = x[:, :, None], x[:, None, :]
    earlier = (other == this) & (index[None, None, :] < index[None, :, None])
    rank = jnp.sum((other > this) | earlier, axis=-1, dtype=jnp.int32)
    at_rank = rank[:, None, :] == jnp.arange(k, dtype=jnp.int32)[None, :, None]
    order = jnp.sum(jnp.where(at_rank, index, 0), axis=-1, dtype=jnp.int32)
    return jnp.take_along_axis(x, order, axis=1), order
