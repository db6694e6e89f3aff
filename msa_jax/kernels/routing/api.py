"""Routing as one operation with one contract, whatever hardware serves it (paper, §3.2, eq. 2-4).

    chunk score     s_c = max over query tokens t of q[t] . k[c]
    document score  max over the document's chunks

`q` are routing queries with the heads of each group summed (`core.routing.routing_queries`), `k`
pooled routing keys (`core.routing.routing_keys`), both with their heads flattened to D = K * H.
Nothing of size [B, T, C] ever exists. A backend computes chunk scores and nothing else; masks,
scales and the choice of documents are the same code for all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from msa_jax.core.routing import best_chunks
from msa_jax.kernels.routing import pallas_gpu, pallas_tpu, xla
from msa_jax.kernels.routing.keys import RoutingKeys, quantize_queries
from msa_jax.kernels.routing.rescoring import rescore
from msa_jax.kernels.routing.selection import select_documents
from msa_jax.typing import Array, Bool, Float, Int

# How many candidates an 8-bit scan hands to the exact scores, per document asked for.
CANDIDATES_PER_DOCUMENT = 4

_BACKENDS: dict[str, Callable[[Array, Array, Array | int | None], Array]] = {
    "pallas_gpu": pallas_gpu.chunk_scores,
    "pallas_tpu": pallas_tpu.chunk_scores,
    "xla": xla.chunk_scores,
}
_DEFAULTS = {"gpu": ("pallas_gpu", "xla"), "tpu": ("pallas_tpu", "xla")}


def route(
    queries: Float[Array, "B T D"],
    query_mask: Bool[Array, "B T"],
    keys: RoutingKeys | Float[Array, "*memories C D"],
    chunk_doc: Int[Array, " C"],
    *,
    top_k_docs: int,
    max_document_chunks: int,
    doc_mask: Bool[Array, "*B M"] | None = None,
    memory: Int[Array, ""] | int | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """The best documents for each query, best first, ties to the lower id.

    Not differentiable: choosing documents is hard. `document_scores` is what training needs.

    Args:
        queries: grouped routing queries; cast to the type of the keys.
        query_mask: tokens that route. A query without any finds no document.
        keys: of every chunk: `[C, D]`, or `[S, C, D]` with `memory`. With 8-bit keys that bring
            their exact form along, four times as many candidates as asked for are scored again
            exactly.
        chunk_doc: zero-based document of each chunk. A document's chunks are consecutive, and
            documents ascend; chunks of no document (padding, deleted) are -1 and lie anywhere.
        top_k_docs: documents per query.
        max_document_chunks: chunks of the longest document, or more.
        doc_mask: `[M]` or, per query, `[B, M]`: documents that may be chosen; None for all.
        memory: which of S stacked memories (layers, say) to search; it may be traced. Slicing one
            out beforehand would copy it.
        implementation: "xla", "pallas_gpu" or "pallas_tpu"; None for the fastest that can.

    Returns:
        Scores and documents. Where there are fewer documents than asked for, -inf and -1.

    Raises:
        NotImplementedError: if the named implementation cannot serve the call.
        ValueError: for shapes that do not agree, or an unknown implementation.
    """
    if not isinstance(keys, RoutingKeys):
        keys = RoutingKeys(keys)
    query_mask, chunk_doc = jnp.asarray(query_mask), jnp.asarray(chunk_doc)
    _check(queries, query_mask, keys, chunk_doc, memory)
    batch = queries.shape[0]
    if not (chunk_doc.shape[0] and queries.shape[1]):
        return jnp.full((batch, top_k_docs), -jnp.inf), jnp.full((batch, top_k_docs), -1, jnp.int32)
    scores = _scaled_chunk_scores(queries, query_mask, keys, memory, implementation)
    scores = jnp.where(_allowed_chunks(chunk_doc, doc_mask), scores, -jnp.inf)
    if keys.exact is None:
        found = select_documents(scores, chunk_doc, top_k_docs, max_document_chunks)[:2]
    else:
        candidates = select_documents(
            scores, chunk_doc, CANDIDATES_PER_DOCUMENT * top_k_docs, max_document_chunks
        )
        found = rescore(
            queries,
            query_mask,
            keys.exact,
            memory,
            chunk_doc,
            candidates,
            top_k_docs,
            max_document_chunks,
        )
    return tuple(
        _fill(x, top_k_docs, empty) for x, empty in zip(found, (-jnp.inf, -1), strict=True)
    )


def document_scores(
    queries: Float[Array, "B T D"],
    query_mask: Bool[Array, "B T"],
    keys: Float[Array, "C D"],
    chunk_doc: Int[Array, " C"],
    num_documents: int,
    *,
    implementation: str | None = None,
) -> Float[Array, "B M"]:
    """Scores of every document for every query, differentiable.

    Args:
        queries: grouped routing queries, in the type of the keys.
        query_mask: tokens that route.
        keys: of every chunk.
        chunk_doc: zero-based document of each chunk in any order, -1 for none.
        num_documents: M; a document without chunks scores -inf.
        implementation: as in `route`.
    """
    _check(queries, query_mask, RoutingKeys(keys), chunk_doc)
    scores = chunk_scores(queries, query_mask, keys, implementation)
    return best_chunks(scores, chunk_doc, num_documents)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def chunk_scores(
    queries: Float[Array, "B T D"],
    query_mask: Bool[Array, "B T"],
    keys: Float[Array, "C D"],
    implementation: str | None = None,
) -> Float[Array, "B C"]:
    """Largest product of each chunk's key with a query's routing tokens, differentiable.

    A query without routing tokens scores -inf; the gradient of a score goes to one best token.
    """
    return _largest_products(queries, query_mask, keys, None, implementation)


def _chunk_scores_fwd(queries, query_mask, keys, implementation):
    scores = chunk_scores(queries, query_mask, keys, implementation)
    return scores, (queries, query_mask, keys)


def _chunk_scores_bwd(implementation, residuals, cotangent):
    del implementation  # The backward pass is two plain products for every backend.
    queries, query_mask, keys = residuals
    dqueries, dkeys = xla.chunk_scores_vjp(queries, query_mask, keys, cotangent)
    return dqueries, None, dkeys


chunk_scores.defvjp(_chunk_scores_fwd, _chunk_scores_bwd)


def _scaled_chunk_scores(queries, query_mask, keys: RoutingKeys, memory, implementation):
    def products(queries):
        return _largest_products(queries, query_mask, keys.values, memory, implementation)

    if keys.scale is None:
        return products(queries.astype(keys.values.dtype))
    queries = jnp.where(query_mask[..., None], queries, 0)
    queries, scale = quantize_queries(queries, keys.values.dtype.name)
    key_scale = keys.scale if memory is None else keys.scale[memory]
    return products(queries) * scale[:, None] * key_scale


def _largest_products(queries, query_mask, keys, memory, implementation):
    # Maxima do not change when a token is repeated, so tokens that do not route become copies
    # of one that does, and no backend needs a mask.
    first = jnp.argmax(query_mask, axis=1)[:, None, None]
    routing = jnp.take_along_axis(queries, first, axis=1)
    routing = jnp.where(query_mask[..., None], queries, routing)
    scores = _run_backend(routing, keys, memory, implementation)
    return jnp.where(query_mask.any(axis=1)[:, None], scores, -jnp.inf)


def _run_backend(queries, keys, memory, implementation: str | None):
    for name in _implementations(implementation):
        try:
            return _BACKENDS[name](queries, keys, memory)
        except NotImplementedError:
            if name == implementation:
                raise
    raise AssertionError("xla serves every call")


def _implementations(implementation: str | None) -> tuple[str, ...]:
    if implementation is None:
        return _DEFAULTS.get(jax.default_backend(), ("xla",))
    if implementation not in _BACKENDS:
        raise ValueError(
            f"implementation must be None or one of {sorted(_BACKENDS)}, not {implementation!r}."
        )
    return (implementation,)


def _allowed_chunks(chunk_doc, doc_mask) -> Bool[Array, "B C"]:
    """`[1, C]` or `[B, C]`: chunks that may be chosen."""
    exists = (chunk_doc >= 0)[None]
    if doc_mask is None:
        return exists
    doc_mask = doc_mask if doc_mask.ndim == 2 else doc_mask[None]
    return exists & jnp.take(doc_mask, jnp.maximum(chunk_doc, 0), axis=1)


def _fill(x: Array, width: int, empty: float) -> Array:
    return jnp.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=empty)


def _check(queries, query_mask, keys: RoutingKeys, chunk_doc, memory=None) -> None:
    *stack, num_chunks, size = keys.values.shape
    if len(stack) != (memory is not None):
        raise ValueError(
            f"keys of shape {keys.values.shape} must be [C, D], or [S, C, D] with memory given."
        )
    expected = {
        "queries": (queries, (*query_mask.shape, size)),
        "chunk_doc": (chunk_doc, (num_chunks,)),
        "keys.scale": (keys.scale, (*stack, num_chunks)),
        "keys.exact": (keys.exact, (*stack, num_chunks, size)),
    }
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(
                f"{name} must have shape {shape} to match keys and query_mask, not {array.shape}."
            )
    if keys.scale is None and keys.values.dtype.itemsize == 1:
        raise ValueError(f"keys in {keys.values.dtype} need a scale per chunk; use quantize_keys.")
