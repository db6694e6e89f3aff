"""Routing as upstream's engine does it, in JAX: what `msa_jax.kernels.routing` is compared with."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from msa_jax.core.routing import normalize
from msa_jax.typing import Array, Bool, Float, Int

SLICE_CHUNKS = 16_384


def route_per_head(
    queries: Float[Array, "B T N H"],
    query_mask: Bool[Array, "B T"],
    keys: Float[Array, "C K*H"],
    chunk_doc: Int[Array, " C"],
    num_documents: int,
    top_k_docs: int,
    fuse: bool = False,
) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """The best documents, from the scores of every head of every token with every chunk.

    Memory is taken in slices; keys are repeated for all heads of their group; the scores of a
    slice are masked, averaged over heads, maximised over tokens and scattered into documents.
    Upstream runs these operations one by one, so every result is written to memory and read
    again; with `fuse`, XLA may join all but the per-head scores.
    """
    # XLA would find out that the mean over heads can go before the product.
    written: Callable[[Any], Any] = jax.lax.optimization_barrier
    result = (lambda x: x) if fuse else written
    num_chunks = chunk_doc.shape[0]
    size = min(SLICE_CHUNKS, num_chunks)
    batch, _, num_heads, head_dim = queries.shape
    group_size = num_heads * head_dim // keys.shape[1]
    queries = normalize(queries).astype(keys.dtype)
    visible = query_mask[:, None, :, None]

    def add_slice(i: int, documents: Float[Array, "B M"]) -> Float[Array, "B M"]:
        # The last slice starts early enough to be whole; maxima may be taken twice.
        start = jnp.minimum(i * size, num_chunks - size)
        part = jax.lax.dynamic_slice_in_dim(keys, start, size).reshape(size, -1, head_dim)
        part = result(jnp.repeat(part, group_size, axis=1))
        per_head = written(jnp.einsum("btnh,cnh->bntc", queries, part))
        per_head = result(jnp.where(visible, per_head, jnp.finfo(keys.dtype).min))
        scores = result(per_head.mean(axis=1, dtype=jnp.float32))
        owners = jax.lax.dynamic_slice_in_dim(chunk_doc, start, size)
        return documents.at[:, owners].max(result(scores.max(axis=1)))

    documents = jnp.full((batch, num_documents), -jnp.inf)
    documents = jax.lax.fori_loop(0, -(-num_chunks // size), add_slice, documents)
    return jax.lax.top_k(documents, min(top_k_docs, num_documents))
