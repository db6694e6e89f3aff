"""The contract of `api` in the plainest float32: the judge of every backend, for tests alone."""

import jax
import jax.numpy as jnp

from msa_jax.kernels.routing.api import CANDIDATES_PER_DOCUMENT
from msa_jax.kernels.routing.keys import RoutingKeys, quantize_queries
from msa_jax.typing import Array, Bool, Float, Int


def document_scores_reference(
    queries: Float[Array, "B T D"],
    query_mask: Bool[Array, "B T"],
    keys: Float[Array, "C D"],
    chunk_doc: Int[Array, " C"],
    num_documents: int,
) -> Float[Array, "B M"]:
    """`api.document_scores` with every product and every (chunk, document) pair in memory."""
    queries, keys = queries.astype(jnp.float32), keys.astype(jnp.float32)
    products = jnp.einsum("btd,cd->btc", queries, keys, precision="highest")
    chunks = _max(jnp.where(query_mask[..., None], products, -jnp.inf), axis=1)
    owned = chunk_doc[:, None] == jnp.arange(num_documents)
    return _max(jnp.where(owned, chunks[..., None], -jnp.inf), axis=1)


def route_reference(
    queries: Float[Array, "B T D"],
    query_mask: Bool[Array, "B T"],
    keys: RoutingKeys | Float[Array, "C D"],
    chunk_doc: Int[Array, " C"],
    *,
    top_k_docs: int,
    doc_mask: Bool[Array, "*B M"] | None = None,
) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """`api.route` by sorting the scores of all documents; not to be jitted."""
    if not isinstance(keys, RoutingKeys):
        keys = RoutingKeys(keys)
    num_documents = int(chunk_doc.max(initial=-1)) + 1

    def score(queries, keys):
        return document_scores_reference(queries, query_mask, keys, chunk_doc, num_documents)

    if keys.scale is None:
        scores = score(queries.astype(keys.values.dtype), keys.values)
    else:
        scores = score(*_dequantised(queries, query_mask, keys))
    if doc_mask is not None:
        scores = jnp.where(doc_mask[..., :num_documents], scores, -jnp.inf)
    if keys.exact is not None:
        _, candidates = _best(scores, CANDIDATES_PER_DOCUMENT * top_k_docs)
        is_candidate = (candidates[..., None] == jnp.arange(num_documents)).any(axis=1)
        exact = score(queries.astype(keys.exact.dtype), keys.exact)
        scores = jnp.where(is_candidate, exact, -jnp.inf)
    return _best(scores, top_k_docs)


def _dequantised(queries, query_mask, keys: RoutingKeys) -> tuple[Array, Array]:
    """Queries and keys as the 8 bits have them; tokens that do not route share no scale."""
    queries = jnp.where(query_mask[..., None], queries, 0)
    values, scale = quantize_queries(queries, keys.values.dtype.name)
    queries = values.astype(jnp.float32) * scale[:, None, None]
    return queries, keys.values.astype(jnp.float32) * keys.scale[:, None]


def _best(scores: Float[Array, "B M"], count: int) -> tuple[Array, Array]:
    """Best first, ties to the lower id; -inf and -1 where there are not so many."""
    padding = ((0, 0), (0, max(0, count - scores.shape[1])))
    scores, docs = jax.lax.top_k(jnp.pad(scores, padding, constant_values=-jnp.inf), count)
    return scores, jnp.where(scores > -jnp.inf, docs, -1)


def _max(x: Array, axis: int) -> Array:
    return jnp.max(x, axis=axis, initial=-jnp.inf)
