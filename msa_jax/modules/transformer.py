"""A decoder-only transformer with Memory Sparse Attention in its router layers.

One set of parameters, four calls:

* `Transformer.__call__`: training forward over memory rows and active tokens.
* `Transformer.encode`: documents to a `Memory` of pooled keys and values.
* `Transformer.read`: a plain causal pass over tokens, without a memory.
* `Transformer.prefill` and `Transformer.decode`: route once, then generate from a `Cache`.

Layers of one kind are stacked and scanned, so that 36 compile about as fast as 2.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from msa_jax.config import ModelConfig
from msa_jax.core import segments
from msa_jax.core.index import MemoryIndex
from msa_jax.core.segments import Segments, TokenBlock
from msa_jax.modules.attention import KEPT, MemorySparseAttention, index_rows
from msa_jax.modules.layers import Embedder, GatedMLP, RMSNorm, Unembedder
from msa_jax.modules.state import (
    Cache,
    CacheSlots,
    LayerCache,
    LayerMemory,
    Memory,
    Routing,
)
from msa_jax.typing import Array, Bool, Float, Int, PyTree, pytree


@pytree
class TrainingOutput:
    """Result of the training forward.

    Attributes:
        hidden: active hidden states after the final norm.
        routing: of every router layer, with the scores of all documents.
        hidden_states: if asked for, `(memory, active)` inputs of each layer and, last, the final
            norm's output: `[L + 1, G, R, S, D]` and `[L + 1, G, B, T, D]`.
    """

    hidden: Float[Array, "G B T D"]
    routing: Routing
    hidden_states: Any = None

    @property
    def doc_scores(self) -> Float[Array, "L G B M"]:
        """Cosine score of every document in every router layer."""
        return self.routing.doc_scores


@pytree
class _Streams:
    """Hidden states that run through the layers: documents, active tokens, or both."""

    memory: Float[Array, "G R S D"] | None
    active: Float[Array, "G B T D"] | None


@pytree
class _LayerInput:
    number: Int[Array, " L"] | None = None
    cache: LayerCache | None = None


@pytree
class _LayerOutput:
    memory: LayerMemory | None = None
    cache: LayerCache | None = None
    routing: Routing | None = None
    inputs: _Streams | None = None


@pytree
class _Shared:
    """What every layer of a call is given; `memories` are of all router layers, stacked."""

    memory_segments: Segments | None = None
    active_segments: Segments | None = None
    index: MemoryIndex | None = None
    slots: CacheSlots | None = None
    memories: LayerMemory | None = None
    observed: Int[Array, "G B"] | None = None
    watched: Int[Array, "G B W"] | None = None


class DecoderLayer(nn.Module):
    """Attention and MLP with pre-norms, for documents, active tokens, or both.

    `keep` names the parts of the output that the caller wants: "memory", "cache", "inputs".
    `one_per_row` and `search_docs` are those of `MemorySparseAttention`. `update_documents` is for
    layers after which somebody reads the documents, and not only what this one pooled of them.
    """

    config: ModelConfig
    routed: bool
    similarity: str
    keep: tuple[str, ...]
    one_per_row: bool = False
    search_docs: int = 0
    update_documents: bool = True

    def setup(self):
        config = self.config
        self.input_norm = RMSNorm(config.norm_eps)
        self.attention = MemorySparseAttention(
            embed_dim=config.embed_dim,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            memory=config.memory,
            routed=self.routed,
            qk_norm=config.qk_norm,
            attention_bias=config.attention_bias,
            norm_eps=config.norm_eps,
            rope_theta=config.rope_theta,
            dtype=jnp.dtype(config.dtype),
        )
        self.post_attention_norm = RMSNorm(config.norm_eps)
        self.mlp = GatedMLP(config.hidden_dim, jnp.dtype(config.dtype))

    def __call__(
        self, streams: _Streams, layer: _LayerInput, shared: _Shared
    ) -> tuple[_Streams, _LayerOutput]:
        layer_memory, cache, routing = shared.memories, None, None
        memory, active = streams.memory, streams.active
        if memory is not None:
            memory, layer_memory = self._encode(memory, shared.memory_segments)
        if active is not None:
            out, cache, routing = self.attention.attend(
                self.input_norm(active),
                shared.active_segments,
                layer_memory,
                shared.index,
                layer.cache,
                shared.slots,
                self.similarity,
                layer.number,
                self.search_docs,
                shared.observed,
                shared.watched,
            )
            active = self._feed_forward(checkpoint_name(active + out, KEPT))
        outputs = _LayerOutput(
            memory=layer_memory if "memory" in self.keep else None,
            cache=cache if "cache" in self.keep else None,
            routing=routing,
            inputs=streams if "inputs" in self.keep else None,
        )
        return _Streams(memory, active), outputs

    def _encode(self, x, memory_segments):
        normed = self.input_norm(x)
        layer_memory, projected = self.attention.pool_documents(
            normed, memory_segments, self.similarity
        )
        if self.update_documents:
            out = self.attention.attend_documents(projected, memory_segments, self.one_per_row)
            x = self._feed_forward(checkpoint_name(x + out, KEPT))
        return x, layer_memory

    def _feed_forward(self, x):
        return x + self.mlp(self.post_attention_norm(x))


class Transformer(nn.Module):
    """Qwen3, Qwen2, Llama or SmolLM2 with a memory; see `ModelConfig`."""

    config: ModelConfig

    def setup(self):
        config = self.config
        dtype = jnp.dtype(config.dtype)
        self.embedder = Embedder(config.vocab_size, config.embed_dim, dtype)
        self.final_norm = RMSNorm(config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = Unembedder(config.vocab_size, config.embed_dim)

    @nn.compact
    def _layers(
        self,
        streams: _Streams,
        shared: _Shared,
        *,
        similarity: str,
        keep: tuple[str, ...] = (),
        caches: dict[str, LayerCache] | None = None,
        one_per_row: bool = False,
        search_docs: int = 0,
    ) -> tuple[_Streams, dict[str, _LayerOutput]]:
        """Runs all layers; outputs are stacked per run."""
        outputs, routed_before = {}, 0
        for name, start, stop in self.config.layer_runs:
            length, routed = stop - start, name.startswith("routed")
            settings = (self.config, routed, similarity, keep, one_per_row, search_docs)
            # The layer's place in a stacked memory, which is not cut up: a slice is a copy.
            number = routed_before + jnp.arange(length) if shared.memories is not None else None
            layers = _LayerInput(number, caches[name] if caches else None)
            if self.is_initializing():
                stack = nn.scan(
                    DecoderLayer,
                    variable_axes={"params": 0},
                    split_rngs={"params": True},
                    in_axes=(0, nn.broadcast),
                    length=length,
                )(*settings, name=name)
                streams, outputs[name] = stack(streams, layers, shared)
            else:
                layer = DecoderLayer(*settings, parent=None)
                weights = _rounded(self.variables["params"][name], self.config.dtype)
                stack = (weights, layers)
                is_last = stop == self.config.num_layers
                is_training = caches is None and streams.active is not None
                unroll = self.config.unroll_layers and is_training
                streams, outputs[name] = _scan(layer, stack, streams, shared, is_last, unroll)
            routed_before += length if routed else 0
        return streams, outputs

    def __call__(
        self,
        memory: TokenBlock,
        active: TokenBlock,
        num_documents: int,
        keep_hidden_states: bool = False,
        max_document_chunks: int | None = None,
        observed: Int[Array, "G B"] | None = None,
    ) -> TrainingOutput:
        """Training forward: every query routes over its group's documents and answers.

        Args:
            memory: `[G, R, S]` documents in aligned rows.
            active: `[G, B, T]` template head, query and response.
            num_documents: M, at least the largest document number in `memory`.
            keep_hidden_states: also return the hidden states of every layer.
            max_document_chunks: chunks of the longest document, or more; a row's by default.
            observed: a place in each query's tokens whose attention to documents is wanted.
        """
        if self.is_initializing():
            self.unembedding()  # Linen creates the untied projection only when it is used.
        index = self._index(memory, num_documents, max_document_chunks)
        streams, outputs = self._layers(
            _Streams(self.embedder(memory.tokens), self.embedder(active.tokens)),
            _Shared(memory.segments, active.segments, index, observed=observed),
            similarity="cosine",
            keep=("inputs",) if keep_hidden_states else (),
        )
        hidden = self.final_norm(streams.active)
        hidden_states = None
        if keep_hidden_states:
            last = _Streams(self.final_norm(streams.memory), hidden)
            inputs = [output.inputs for output in outputs.values()]
            last = jax.tree.map(lambda x: x[None], last)
            states = jax.tree.map(lambda *x: jnp.concatenate(x), *inputs, last)
            hidden_states = (states.memory, states.active)
        return TrainingOutput(hidden, _stack(outputs, "routing"), hidden_states)

    def encode(self, memory: TokenBlock, num_documents: int, one_per_row: bool = False) -> Memory:
        """Encodes `[G, R, S]` documents, each alone, into pooled arrays (stage 1).

        To route over them, their numbers ascend along the rows. `one_per_row` (static) says that
        no row holds two documents, which is faster.
        """
        _, outputs = self._layers(
            _Streams(self.embedder(memory.tokens), None),
            _Shared(memory_segments=memory.segments),
            similarity=self.config.memory.router_similarity,
            keep=("memory",),
            one_per_row=one_per_row,
        )
        return Memory(_stack(outputs, "memory"), self._index(memory, num_documents))

    def read(self, active: TokenBlock) -> Float[Array, "G B T D"]:
        """Reads `[G, B, T]` tokens without a memory: a plain causal pass.

        Returns:
            Hidden states after the final norm.
        """
        streams, _ = self._layers(
            _Streams(None, self.embedder(active.tokens)),
            _Shared(active_segments=active.segments),
            similarity=self.config.memory.router_similarity,
        )
        return self.final_norm(streams.active)

    def prefill(
        self,
        active: TokenBlock,
        cache: Cache,
        memory: Memory | None = None,
        search_docs: int = 0,
        watched: Int[Array, "G B W"] | None = None,
    ) -> tuple[Float[Array, "G B T D"], Cache, Routing | None]:
        """Adds tokens to the sequences, routing over `memory` where it is given (stage 2).

        Tokens of role 0 route; all tokens but the head then attend to the chosen chunks, which
        stay in the cache. Without `memory` the chunks chosen earlier are used again, so
        generating is the same call with one token at a time (stage 3). The routing lists
        `search_docs` documents (static) if that is more than `top_k_docs`, for ranking, and with
        `watched` the attention of the tokens at these places (`Routing.weights`).

        Returns:
            Hidden states after the final norm, the cache, and the routing of `[L_routed, ...]`.
        """
        length = active.tokens.shape[-1]
        slots, mask = _next_slots(cache, active)
        streams, outputs = self._layers(
            _Streams(None, self.embedder(active.tokens)),
            _Shared(
                None,
                active.segments,
                memory and memory.index,
                slots,
                memory and memory.layers,
                watched=watched,
            ),
            similarity=self.config.memory.router_similarity,
            keep=("cache",),
            caches=cache.runs,
            search_docs=search_docs,
        )
        runs = {name: output.cache for name, output in outputs.items()}
        cache = Cache(runs, mask, cache.length + length)
        routing = _stack(outputs, "routing") if memory is not None else None
        return self.final_norm(streams.active), cache, routing

    def decode(
        self, tokens: Int[Array, "G B"], positions: Int[Array, "G B"], cache: Cache
    ) -> tuple[Float[Array, "G B V"], Cache]:
        """Logits after one more response token per sequence (stage 3)."""
        roles = jnp.full_like(tokens, segments.RESPONSE)
        block = jax.tree.map(lambda x: x[..., None], TokenBlock(tokens, roles, positions))
        hidden, cache, _ = self.prefill(block, cache)
        return self.logits(hidden[..., 0, :]), cache

    def unembedding(self) -> Float[Array, "D V"]:
        """The output projection, for a loss that never holds all logits at once."""
        if self.config.tie_embeddings:
            return self.embedder.embedding.T
        return self.lm_head.kernel

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Float32 logits of normed hidden states."""
        unembedding = self.unembedding().astype(hidden.dtype)
        return jnp.einsum("...d,dv->...v", hidden, unembedding, preferred_element_type=jnp.float32)

    def _index(
        self, memory: TokenBlock, num_documents: int, max_document_chunks: int | None = None
    ) -> MemoryIndex:
        pooling_size = self.config.memory.pooling_kernel_size
        return index_rows(memory.segments, pooling_size, num_documents, max_document_chunks)


def init_cache(config: ModelConfig, num_groups: int, batch_size: int, num_slots: int) -> Cache:
    """An empty cache for `batch_size` sequences per group of at most `num_slots` tokens."""
    shape = (num_groups, batch_size, num_slots, config.num_kv_heads, config.head_dim)

    def empty(length):
        return jnp.zeros((length, *shape), config.dtype)

    return Cache(
        runs={
            name: LayerCache(empty(stop - start), empty(stop - start))
            for name, start, stop in config.layer_runs
        },
        mask=jnp.zeros(shape[:3], bool),
        length=jnp.zeros((), jnp.int32),
    )


def _scan(
    layer: DecoderLayer,
    stack: tuple[PyTree, _LayerInput],
    streams: _Streams,
    shared: _Shared,
    is_last: bool,
    unroll: bool,
) -> tuple[_Streams, _LayerOutput]:
    """Runs a stack of layers; `is_last` says that it ends with the model's last layer."""

    def step(layer, streams, own):
        params, inputs = own
        return layer.apply({"params": params}, streams, inputs, shared)

    def run(layer):
        remat = layer.config.remat
        if remat == "nothing":
            return partial(step, layer)
        policy = _is_costly if remat == "cheap" else None
        # Inside a scan nothing can be merged with the recomputation, so CSE may stay on.
        return jax.checkpoint(partial(step, layer), prevent_cse=False, policy=policy)

    if not is_last or streams.memory is None or "inputs" in layer.keep:
        return jax.lax.scan(run(layer), streams, stack, unroll=unroll)
    # Nobody reads the documents after the last layer, which therefore runs by itself.
    most, last = (jax.tree.map(lambda x, at=at: x[at], stack) for at in (slice(-1), -1))
    streams, outputs = jax.lax.scan(run(layer), streams, most, unroll=unroll)
    streams, output = run(layer.clone(update_documents=False))(streams, last)
    outputs = jax.tree.map(lambda x, own: jnp.concatenate([x, own[None]]), outputs, output)
    return streams, outputs


def _rounded(params: PyTree, dtype: str) -> PyTree:
    """Weights of linear layers in the compute type, all at once: no product has to convert its."""

    def round_weight(path: tuple, x: Array) -> Array:
        return x.astype(dtype) if path[-1].key in ("kernel", "bias") else x

    return jax.tree_util.tree_map_with_path(round_weight, params)


def _is_costly(primitive, *args, **params) -> bool:
    """Products with weights, which have no batch dimensions, attention kernels, and named sums."""
    is_weight_product = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return (
        params.get("name") == KEPT
        or "dot_product_attention" in primitive.name
        or is_weight_product(primitive, *args, **params)
    )


def _next_slots(cache: Cache, active: TokenBlock) -> tuple[CacheSlots, Bool[Array, "G B A"]]:
    length = active.tokens.shape[-1]
    present = active.doc_ids != segments.PADDING
    mask = jax.lax.dynamic_update_slice_in_dim(cache.mask, present, cache.length, axis=2)
    own_slot = cache.length + jnp.arange(length)
    causal = jnp.arange(mask.shape[-1]) <= own_slot[:, None]
    return CacheSlots(cache.length, mask[..., None, :] & causal), mask


def _stack(outputs: dict[str, _LayerOutput], field: str):
    parts = [getattr(output, field) for output in outputs.values()]
    parts = [part for part in parts if part is not None]
    return jax.tree.map(lambda *x: jnp.concatenate(x) if len(x) > 1 else x[0], *parts)
