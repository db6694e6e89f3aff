"""The contract of `api` in the plainest float32: the judge of every backend, for tests alone."""

import jax.numpy as jnp
import numpy as np

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
    chunks = _chunk_scores(queries, query_mask, keys)
    owned = chunk_doc[:, None] == jnp.arange(num_documents)
    pairs = jnp.where(owned, chunks[..., None], -jnp.inf)
    return jnp.max(pairs, axis=1, initial=-jnp.inf)


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

    def score(queries, keys):
        return _document_maxima(_chunk_scores(queries, query_mask, keys), np.asarray(chunk_doc))

    if keys.scale is None:
        scores = score(queries.astype(keys.values.dtype), keys.values)
    else:
        scores = score(*_dequantised(queries, query_mask, keys))
    if doc_mask is not None:
        scores = np.where(np.asarray(doc_mask)[..., : scores.shape[1]], scores, -np.inf)
    if keys.exact is not None:
        _, candidates = _best(scores, CANDIDATES_PER_DOCUMENT * top_k_docs)
        is_candidate = (candidates[..., None] == np.arange(scores.shape[1])).any(axis=1)
        exact = score(queries.astype(keys.exact.dtype), keys.exact)
        scores = np.where(is_candidate, exact, -np.inf)
    return tuple(map(jnp.asarray, _best(scores, top_k_docs)))


def _chunk_scores(queries, query_mask, keys) -> Float[Array, "B C"]:
    queries, keys = queries.astype(jnp.float32), keys.astype(jnp.float32)
    products = jnp.einsum("btd,cd->btc", queries, keys, precision="highest")
    products = jnp.where(query_mask[..., None], products, -jnp.inf)
    return jnp.max(products, axis=1, initial=-jnp.inf)


def _dequantised(queries, query_mask, keys: RoutingKeys) -> tuple[Array, Array]:
    """Queries and keys as the 8 bits have them; tokens that do not route have no say in scales."""
    queries = jnp.where(query_mask[..., None], queries, 0)
    values, scale = quantize_queries(queries, keys.values.dtype.name)
    queries = values.astype(jnp.float32) * scale[:, None, None]
    return queries, keys.values.astype(jnp.float32) * keys.scale[:, None]


def _document_maxima(chunks: Float[Array, "B C"], chunk_doc: np.ndarray) -> np.ndarray:
    chunks = np.asarray(chunks)
    best = np.full((len(chunks), chunk_doc.max(initial=-1) + 1), -np.inf, np.float32)
    owned = chunk_doc >= 0
    np.maximum.at(best, (slice(None), chunk_doc[owned]), chunks[:, owned])
    return best


def _best(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Best first, ties to the lower id; -inf and -1 where there are not so many."""
    padding = ((0, 0), (0, max(0, count - scores.shape[1])))
    scores = np.pad(scores, padding, constant_values=-np.inf)
    docs = np.argsort(-scores, axis=1, kind="stable")[:, :count].astype(np.int32)
    scores = np.take_along_axis(scores, docs, axis=1)
    return scores, np.where(scores > -np.inf, docs, -1)
