"""Exact scores for the candidates of an 8-bit scan."""

import jax
import jax.numpy as jnp

from msa_jax.kernels.routing.selection import top_k_by_sorting
from msa_jax.typing import Array, Bool, Float, Int

# Keys gathered at once.
_GATHER_ELEMENTS = 1 << 23


def rescore(
    queries: Float[Array, "B T D"],
    query_mask: Bool[Array, "B T"],
    keys: Float[Array, "*memories C D"],
    memory: Int[Array, ""] | int | None,
    chunk_doc: Int[Array, " C"],
    candidates: tuple[Float[Array, "B n"], Int[Array, "B n"], Int[Array, "B n"]],
    top_k_docs: int,
    max_document_chunks: int,
) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """The best documents among candidates by their exact scores, ties to the lower id.

    Args:
        queries: grouped routing queries.
        query_mask: tokens that route.
        keys: in full precision; `[S, C, D]` if `memory` is given.
        memory: which of S memories to look in.
        chunk_doc: document of each chunk; a document's chunks are consecutive.
        candidates: scores, documents and one chunk of each, from `select_documents`.
        top_k_docs: documents to keep.
        max_document_chunks: chunks of the longest document, or more.
    """
    num_chunks, size = keys.shape[-2:]
    reach = min(max_document_chunks, num_chunks) - 1
    offsets = jnp.arange(-reach, reach + 1, dtype=jnp.int32)

    def score(args):
        """Scores of one query's candidates, all their chunks looked up."""
        tokens, mask, (_, docs, chunks) = args
        docs, order = jax.lax.sort_key_val(docs, jnp.arange(docs.shape[0]))
        at = chunks[order][:, None] + offsets
        inside = (at >= 0) & (at < num_chunks)
        at = jnp.clip(at, 0, num_chunks - 1)
        own = inside & (chunk_doc[at] == docs[:, None]) & (docs >= 0)[:, None]
        products = jnp.einsum(
            "td,nwd->nwt",
            tokens.astype(keys.dtype),
            keys[at] if memory is None else keys[memory, at],
            preferred_element_type=jnp.float32,
        )
        best = jnp.where(mask, products, -jnp.inf).max(axis=-1)
        best = jnp.where(own, best, -jnp.inf).max(axis=-1)
        scores, kept = top_k_by_sorting(best, min(top_k_docs, best.shape[0]))
        return scores, jnp.where(scores > -jnp.inf, docs[kept], -1)

    per_query = candidates[1].shape[1] * offsets.shape[0] * size
    at_once = max(1, min(queries.shape[0], _GATHER_ELEMENTS // per_query))
    return jax.lax.map(score, (queries, query_mask, candidates), batch_size=at_once)
