"""Scoring documents against a query and choosing the best (paper §3.2, eq. 2 to 4).

    chunk score     s_c = max over query tokens t of mean over heads n of qr[t, n] . kr[c, n // G]
    document score  max over the document's chunks

The mean over heads is linear, so the query heads of a group can be summed before the product:
one [T, K*H] by [K*H, C] product gives the same numbers with N/K times fewer operations.
`per_head_document_scores` is the formula as written; what runs is in `kernels.routing`.

All functions work on one memory; models map them over memory groups.
"""

import jax
import jax.numpy as jnp

from msa_jax.typing import Array, Bool, Float, Int

# Inside the square root, so that the gradient at a zero vector is finite and not NaN.
NORM_EPS = 1e-12
# The value of `collapse` above which a layer counts as collapsed: all questions get the same
# documents for half of their choices, or 70 % of the questions get the same for all of them.
# Questions on one subject, and those that need the same document, share fewer, and rightly. Layers
# of configs/tiny.py have 0.10 to 0.13 on held-out questions, and 0.12 to 0.39 before training.
COLLAPSED = 0.5


def normalize(x: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
    """L2-normalises the last axis in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + NORM_EPS)


def routing_keys(pooled: Float[Array, "*batch K H"], similarity: str) -> Float[Array, "*batch K H"]:
    """Pooled routing keys as the product needs them: unit length per head for "cosine"."""
    return normalize(pooled) if similarity == "cosine" else pooled.astype(jnp.float32)


def routing_queries(
    queries: Float[Array, "*batch T N H"], num_kv_heads: int, similarity: str
) -> Float[Array, "*batch T K H"]:
    """Routing queries with the heads of each group summed and divided by N.

    "cosine" normalises each head first; "scaled_dot" multiplies by H^-0.5 instead.
    """
    *batch, num_heads, head_dim = queries.shape
    if similarity == "cosine":
        queries = normalize(queries)
    else:
        queries = queries.astype(jnp.float32) * head_dim**-0.5
    grouped = queries.reshape(*batch, num_kv_heads, num_heads // num_kv_heads, head_dim)
    return grouped.sum(axis=-2) / num_heads


def per_head_document_scores(
    queries: Float[Array, "B T N H"],
    query_mask: Bool[Array, "B T"],
    pooled_keys: Float[Array, "C K H"],
    chunk_doc: Int[Array, " C"],
    num_documents: int,
    similarity: str = "cosine",
) -> Float[Array, "B M"]:
    """Document scores by the formula of the paper, head by head: the readable reference."""
    group_size = queries.shape[-2] // pooled_keys.shape[-2]
    scale = 1.0 if similarity == "cosine" else queries.shape[-1] ** -0.5
    if similarity == "cosine":
        queries, pooled_keys = normalize(queries), normalize(pooled_keys)
    keys = jnp.repeat(pooled_keys, group_size, axis=-2)
    per_head = jnp.einsum("btnh,cnh->btnc", queries, keys) * scale
    per_token = jnp.where(query_mask[..., None], per_head.mean(axis=2), -jnp.inf)
    return best_chunks(per_token.max(axis=1), chunk_doc, num_documents)


def best_chunks(
    chunk_scores: Float[Array, "B C"], chunk_doc: Int[Array, " C"], num_documents: int
) -> Float[Array, "B M"]:
    """Document scores: the maximum over a document's chunks (-1: of none), -inf without any."""
    # Chunks of no document go to an extra segment that is cut off again.
    segments = jnp.where(chunk_doc < 0, num_documents, chunk_doc)
    best = jax.ops.segment_max(chunk_scores.T, segments, num_documents + 1)
    return best[:num_documents].T


def top_documents(
    scores: Float[Array, "*batch M"], top_k_docs: int
) -> tuple[Float[Array, "*batch k"], Int[Array, "*batch k"]]:
    """The min(top_k_docs, M) best documents, best first, ties to the lower id.

    Where fewer documents exist (score above -inf), scores are -inf and documents -1.
    """
    top_scores, docs = jax.lax.top_k(scores, min(top_k_docs, scores.shape[-1]))
    return top_scores, jnp.where(top_scores > -jnp.inf, docs, -1)


def context_slots(
    first_chunk: Int[Array, " M"],
    num_chunks: Int[Array, " M"],
    chosen: Int[Array, "B k"],
    max_document_chunks: int,
) -> tuple[Int[Array, "B X"], Bool[Array, "B X"]]:
    """Chunks of the chosen documents, as X = k * max_document_chunks slots per query.

    Args:
        first_chunk: of each document, as in `core.index.MemoryIndex`.
        num_chunks: of each document.
        chosen: documents of each query, -1 for none.
        max_document_chunks: slots per document.

    Returns:
        Chunk index of each slot, and whether the slot holds a chunk.
    """
    document = jnp.maximum(chosen, 0)
    count = jnp.where(chosen >= 0, num_chunks[document], 0)[..., None]
    offset = jnp.arange(max_document_chunks, dtype=jnp.int32)
    filled = offset < count
    slots = jnp.where(filled, first_chunk[document][..., None] + offset, 0)
    return tuple(x.reshape(*chosen.shape[:-1], -1) for x in (slots, filled))


def recall_at(
    scores: Float[Array, "*batch M"], positives: Bool[Array, "*batch M"], top_n: int
) -> Float[Array, "*batch"]:
    """Share of a query's positive documents among its top_n best; 0 where it has none."""
    _, best = jax.lax.top_k(scores, min(top_n, scores.shape[-1]))
    found = jnp.take_along_axis(positives, best, axis=-1).sum(axis=-1)
    return found / jnp.maximum(positives.sum(axis=-1), 1)


def collapse(scores: Float[Array, "L *groups B M"], top_k_docs: int) -> Float[Array, " L"]:
    """How far each layer chooses the same documents for different queries of a memory.

    1 if all queries get the same ones, 0 if two have as many in common as by chance, below 0 if
    fewer; `choices_in_common` has the definition. 0 also where nothing can be compared: for one
    query, or no more documents than are chosen.

    Args:
        scores: of the documents; -inf for one that does not exist, or a query that does not.
        top_k_docs: documents chosen per query.
    """
    exists = scores > -jnp.inf
    best, documents = jax.lax.top_k(scores, min(top_k_docs, scores.shape[-1]))
    # Ties go to the lower id, so the last document chosen says which others are. To slice it out
    # would make XLA sort all documents, 30 times slower on a CPU.
    lowest = best.min(axis=-1, keepdims=True)
    last = jnp.where(best == lowest, documents, -1).max(axis=-1, keepdims=True)
    tied = (scores == lowest) & (jnp.arange(scores.shape[-1]) <= last)
    chosen = exists & ((scores > lowest) | tied)
    num_queries = exists.any(axis=-1).sum(axis=-1)
    num_documents = exists.any(axis=-2).sum(axis=-1)
    counts = chosen.sum(axis=-2), num_queries, num_documents
    of_groups = choices_in_common(*(x.astype(jnp.float32) for x in counts), top_k_docs)
    shared, expected, possible = (x.reshape(len(scores), -1).sum(axis=-1) for x in of_groups)
    above_chance = jnp.where(possible > expected, possible - expected, 1.0)
    return (shared - expected) / above_chance


def choices_in_common(
    times_chosen: Float[Array, "*batch M"],
    num_queries: Float[Array, "*batch"],
    num_documents: Float[Array, "*batch"],
    top_k_docs: int,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Choices that queries of a memory have in common, summed over ordered pairs of queries.

    Args:
        times_chosen: number of queries that chose each document; documents may be left out that
            none did.
        num_queries: of the memory.
        num_documents: that they could choose from.
        top_k_docs: documents chosen per query; all if there are fewer.

    Returns:
        What was found, what is expected of choices at random, and what is possible.
    """
    chosen = jnp.minimum(top_k_docs, num_documents)
    possible = num_queries * (num_queries - 1) * chosen
    expected = possible * chosen / jnp.maximum(num_documents, 1)
    return (times_chosen * (times_chosen - 1)).sum(axis=-1), expected, possible
