"""Memory Sparse Attention as one Linen module (paper, §3.2).

The same parameters serve three calls:

* `encode_documents`: documents attend inside themselves and are pooled into a `LayerMemory`.
* `attend`: active tokens route over a `LayerMemory`, or reuse the context that an earlier call
  chose, and attend to [template head; chosen chunks; local tokens].
* `__call__`: both at once, as in training.

Every array has a leading group axis G: B queries of a group share one memory.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from msa_jax.config import MemoryConfig
from msa_jax.core import attention, pooling, rope, routing, segments
from msa_jax.core.index import MemoryIndex, memory_index
from msa_jax.core.segments import Segments
from msa_jax.kernels import parallel
from msa_jax.kernels.content import Content, fetch
from msa_jax.kernels.routing import RoutingKeys
from msa_jax.modules.layers import RMSNorm
from msa_jax.modules.state import (
    CacheSlots,
    Context,
    LayerCache,
    LayerMemory,
    Routing,
)
from msa_jax.typing import Array, Float, Int

# Name of what is kept for the backward pass, unless `ModelConfig.remat` is "all": sums, in place of
# the products that they are made of, and all that attention reads. The backward pass of a fused
# kernel subtracts normalisers that the forward pass has kept from scores that it computes again,
# and takes the exponential: keys that are rounded otherwise, or of another document because its
# score was, make gradients of any size.
KEPT = "kept"


class RouterProjector(nn.Module):
    """Routing queries and keys: plain projections without norm, rotation or bias."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: jnp.dtype = jnp.bfloat16

    def setup(self):
        self.q_proj = _projection(self.num_heads, self.head_dim, False, self.dtype)
        self.k_proj = _projection(self.num_kv_heads, self.head_dim, False, self.dtype)

    def query(self, x: Float[Array, "*batch T D"]) -> Float[Array, "*batch T N H"]:
        """Routing query heads of active tokens."""
        return self.q_proj(x)

    def key(self, x: Float[Array, "*batch S D"]) -> Float[Array, "*batch S K H"]:
        """Routing key heads of document tokens, to be pooled."""
        return self.k_proj(x)


class MemorySparseAttention(nn.Module):
    """Attention of one layer over documents in memory and over the sequence itself.

    Attributes:
        embed_dim: D, size of the hidden states.
        num_heads: N, query heads.
        num_kv_heads: K, key/value heads; divides N.
        head_dim: H.
        memory: pooling size, documents per query, template head, and the similarity of `attend` and
            `encode_documents`; `__call__`, which is training, always takes cosine.
        routed: whether the layer has a router; without one, active tokens see no memory.
        qk_norm: RMSNorm per head on q and k (Qwen3).
        attention_bias: biases on q, k, v (Qwen2).
        norm_eps: epsilon of qk_norm.
        rope_theta: base of the rotary frequencies.
        dtype: compute type.
    """

    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    memory: MemoryConfig = MemoryConfig()
    routed: bool = True
    qk_norm: bool = False
    attention_bias: bool = False
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    dtype: jnp.dtype = jnp.bfloat16

    def setup(self):
        heads, kv_heads, head_dim = self.num_heads, self.num_kv_heads, self.head_dim
        self.q_proj = _projection(heads, head_dim, self.attention_bias, self.dtype)
        self.k_proj = _projection(kv_heads, head_dim, self.attention_bias, self.dtype)
        self.v_proj = _projection(kv_heads, head_dim, self.attention_bias, self.dtype)
        if self.qk_norm:
            self.q_norm = RMSNorm(self.norm_eps)
            self.k_norm = RMSNorm(self.norm_eps)
        if self.routed:
            self.router = RouterProjector(heads, kv_heads, head_dim, self.dtype)
        # Zero: a new model starts as its embedding, so that the first routing is by the words
        # themselves. Loaded models bring their own.
        self.o_proj = nn.DenseGeneral(
            self.embed_dim,
            axis=(-2, -1),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
        )

    def __call__(
        self,
        memory_x: Float[Array, "G R S D"],
        memory_segments: Segments,
        active_x: Float[Array, "G B T D"],
        active_segments: Segments,
        num_documents: int | None = None,
    ) -> tuple[Float[Array, "G R S D"], Float[Array, "G B T D"], Routing | None]:
        """Updates documents and active tokens together; routing is by cosine (training).

        `num_documents` is M (static), at least the largest document number; by default the
        number of chunks, which is always enough.
        """
        index = self.index(memory_segments, num_documents)
        memory_out, layer_memory = self.encode_documents(memory_x, memory_segments, "cosine")
        active_out, _, chosen = self.attend(
            active_x, active_segments, layer_memory, index, similarity="cosine"
        )
        return memory_out, active_out, chosen

    def index(self, memory_segments: Segments, num_documents: int | None = None) -> MemoryIndex:
        """The chunk table of aligned memory rows."""
        return index_rows(memory_segments, self.memory.pooling_kernel_size, num_documents)

    def encode_documents(
        self,
        x: Float[Array, "G R S D"],
        memory_segments: Segments,
        similarity: str | None = None,
    ) -> tuple[Float[Array, "G R S D"], LayerMemory | None]:
        """Attends inside each document; pools its chunks where the layer routes.

        `similarity` is that for which routing keys are made; by default that of `memory`.
        """
        layer_memory, projected = self.pool_documents(x, memory_segments, similarity)
        return self.attend_documents(projected, memory_segments), layer_memory

    def pool_documents(
        self, x: Float[Array, "G R S D"], memory_segments: Segments, similarity: str | None = None
    ) -> tuple[LayerMemory | None, tuple[Array, Array, Array]]:
        """The first half of `encode_documents`: pooled chunks, and queries, keys and values."""
        queries, keys, values = self._project(x, memory_segments.segment_pos)
        layer_memory = None
        if self.routed:
            similarity = similarity or self.memory.router_similarity
            layer_memory = self._pool(x, keys, values, memory_segments, similarity)
        return layer_memory, (queries, keys, values)

    def attend_documents(
        self,
        projected: tuple[Array, Array, Array],
        memory_segments: Segments,
        one_per_row: bool = False,
    ) -> Float[Array, "G R S D"]:
        """The second half: attention inside each document.

        `one_per_row` says that no row holds two documents, so that no mask is needed.
        """
        if one_per_row:
            return self.o_proj(attention.causal_attention(*projected))
        mask = segments.document_mask(memory_segments.doc_ids)
        return self.o_proj(attention.masked_attention(*projected, mask, is_causal=True))

    def attend(
        self,
        x: Float[Array, "G B T D"],
        active_segments: Segments,
        layer_memory: LayerMemory | None = None,
        index: MemoryIndex | None = None,
        cache: LayerCache | None = None,
        slots: CacheSlots | None = None,
        similarity: str | None = None,
        layer: Int[Array, ""] | None = None,
        search_docs: int = 0,
        observed: Int[Array, "G B"] | None = None,
        watched: Int[Array, "G B W"] | None = None,
    ) -> tuple[Float[Array, "G B T D"], LayerCache, Routing | None]:
        """Attends from active tokens to chosen chunks and to the sequence so far.

        Args:
            x: normed hidden states.
            active_segments: roles and positions; tokens of role 0 route.
            layer_memory: documents to route over; None to reuse the context in `cache`.
            index: chunk table of `layer_memory`; with a cache, documents ascend in it.
            cache: keys and values of earlier tokens. None to see `x` alone and to get the scores
                of all documents, as in training; with a cache only the best are searched for.
            slots: where `x` goes in `cache`.
            similarity: of routing queries and keys; by default that of `memory`.
            layer: with a cache, which layer of a stacked `layer_memory` is this one's; slicing it
                out beforehand would copy it.
            search_docs: with a cache, how many documents to list (static) if more than top_k_docs;
                `x` attends to the first top_k_docs in any case.
            observed: a place in each sequence whose attention to the documents is wanted.
            watched: with `layer_memory`, places whose attention to all that they see is wanted.

        Returns:
            Output, the cache with `x` and the context added, and what was routed to.
        """
        queries, keys, values = self._project(x, active_segments.segment_pos)
        if cache is None:
            choose, mask = self._score, segments.local_mask(active_segments.doc_ids)
            cache = LayerCache(keys, values)
        else:
            choose, mask = partial(self._search, layer, search_docs), slots.mask
            cache = LayerCache(
                _write(cache.keys, keys, slots.start),
                _write(cache.values, values, slots.start),
                cache.context,
            )
        chosen = None
        if self.routed and layer_memory is not None:
            router_queries = routing.routing_queries(
                self.router.query(x),
                self.num_kv_heads,
                similarity or self.memory.router_similarity,
            ).reshape(*x.shape[:-1], -1)
            query_mask = active_segments.doc_ids == segments.QUERY
            chosen = choose(router_queries, query_mask, layer_memory.router_keys, index)
            attended = checkpoint_name(chosen.top_docs[..., : self.memory.top_k_docs], KEPT)
            context = self._fetch(layer_memory.content, index, attended, layer)
            cache = dataclasses.replace(cache, context=context)
            if observed is not None:
                chosen = dataclasses.replace(
                    chosen, attention=_observe(queries, observed, context, attended.shape[-1])
                )
        local = (cache.keys, cache.values)
        if cache.context is None:
            out = attention.masked_attention(queries, *local, mask)
        else:
            context = cache.context
            visible = segments.sees_memory(active_segments, self.memory.head_len)
            context_mask = visible[..., :, None] & context.mask[..., None, :]
            out = attention.sparse_attention(
                queries, (context.keys, context.values), context_mask, local, mask
            )
            if watched is not None:
                seen = jnp.concatenate([context.keys, cache.keys], axis=-3)
                seen_mask = jnp.concatenate([context_mask, mask], axis=-1)
                chosen = dataclasses.replace(
                    chosen, weights=_watch(queries, watched, seen, seen_mask)
                )
        return self.o_proj(out), cache, chosen

    def _project(self, x, positions):
        queries, keys, values = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.qk_norm:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        queries, keys = (
            checkpoint_name(rope.apply_rope(x, positions, self.rope_theta), KEPT)
            for x in (queries, keys)
        )
        return queries, keys, values

    def _pool(self, x, keys, values, memory_segments, similarity) -> LayerMemory:
        valid = memory_segments.doc_ids > 0
        pooling_size = self.memory.pooling_kernel_size

        def pool(x):
            pooled = pooling.masked_chunk_mean(x, valid, pooling_size)
            return pooled.reshape(pooled.shape[0], -1, *pooled.shape[-2:])

        router_keys = routing.routing_keys(pool(self.router.key(x)), similarity)
        router_keys = router_keys.reshape(*router_keys.shape[:-2], -1)
        content = jnp.stack([pool(keys), pool(values)], axis=-3).astype(self.dtype)
        return LayerMemory(RoutingKeys(router_keys.astype(self.dtype)), Content(content))

    def _fetch(self, content: Content, index, chosen, layer) -> Context:
        values, mask = fetch(content, index, chosen, layer, self.dtype)
        values = checkpoint_name(values, KEPT)
        return Context(values[..., 0, :, :], values[..., 1, :, :], mask)

    def _score(self, queries, query_mask, keys: RoutingKeys, index) -> Routing:
        """Scores all documents, for the router's loss, and chooses among them."""
        queries = queries.astype(keys.values.dtype)
        scores = parallel.document_scores(queries, query_mask, keys.values, index)
        # Selection is hard: the router learns from the auxiliary loss alone.
        top = routing.top_documents(jax.lax.stop_gradient(scores), self.memory.top_k_docs)
        return Routing(*top, scores)

    def _search(self, layer, search_docs, queries, query_mask, keys: RoutingKeys, index) -> Routing:
        """Finds the best documents without scores of all the others."""
        wanted = min(max(self.memory.top_k_docs, search_docs), index.num_documents)
        return Routing(*parallel.route(queries, query_mask, keys, index, wanted, layer))


def index_rows(
    memory_segments: Segments,
    pooling_kernel_size: int,
    num_documents: int | None = None,
    max_document_chunks: int | None = None,
) -> MemoryIndex:
    """The chunk table of aligned memory rows `[G, R, S]`.

    `num_documents` is the number of chunks by default, and `max_document_chunks` a row's chunks,
    which are always enough.
    """
    _, num_rows, row_tokens = memory_segments.doc_ids.shape
    chunk_doc = segments.chunk_documents(memory_segments.doc_ids, pooling_kernel_size)
    if num_documents is None:
        num_documents = chunk_doc.shape[-1]
    # No document crosses a row.
    row_chunks = row_tokens // pooling_kernel_size
    max_document_chunks = min(row_chunks, max_document_chunks or row_chunks)
    return memory_index(chunk_doc, num_documents, max_document_chunks, num_rows)


def _projection(num_heads: int, head_dim: int, use_bias: bool, dtype) -> nn.DenseGeneral:
    return nn.DenseGeneral((num_heads, head_dim), use_bias=use_bias, dtype=dtype)


def _observe(queries, observed, context: Context, num_documents: int) -> Float[Array, "G B k"]:
    """Shares of the chosen documents in the attention of one token of each sequence."""
    own = jnp.take_along_axis(queries, observed[..., None, None, None], axis=2)[:, :, 0]
    return attention.document_attention(own, context.keys, context.mask, num_documents)


def _watch(queries, watched, keys, mask) -> Float[Array, "G B W X+A"]:
    """Attention of some tokens of each sequence to everything."""
    own = jnp.take_along_axis(queries, watched[..., None, None], axis=2)
    own_mask = jnp.take_along_axis(mask, watched[..., None], axis=2)
    return attention.attention_weights(own, keys, own_mask)


def _write(cached, new, start):
    return jax.lax.dynamic_update_slice_in_dim(cached, new.astype(cached.dtype), start, axis=2)
