"""What the modules take in and hand out: memories, routing, caches. Explicit pytrees, no state."""

from msa_jax.core.index import MemoryIndex
from msa_jax.kernels.content import Content
from msa_jax.kernels.routing import RoutingKeys
from msa_jax.typing import Array, Bool, Float, Int, pytree


@pytree
class LayerMemory:
    """What one router layer keeps of the documents: one entry per chunk.

    Attributes:
        router_keys: pooled routing keys `[*layers, G, C, K*H]`, ready for the product (unit
            length for "cosine"), in the compute type or in 8 bits.
        content: pooled keys, after norm and RoPE, and pooled values.
    """

    router_keys: RoutingKeys
    content: Content


@pytree
class Memory:
    """Encoded documents: pooled arrays of every router layer, and the chunk table.

    Attributes:
        layers: `[L_routed, G, C, ...]` arrays, router layers in ascending order.
        index: which chunk belongs to which document.
    """

    layers: LayerMemory
    index: MemoryIndex


@pytree
class Routing:
    """What one layer routed to, k = min(top_k_docs, M) documents per query or more if asked for.

    Attributes:
        top_scores: of the best documents, best first; -inf where there are fewer.
        top_docs: the best documents, zero-based; -1 where there are fewer.
        doc_scores: of all documents, differentiable, in training; None over a cache.
        attention: share of each of the best documents in the attention of a token that was asked
            about, differentiable.
        weights: attention of W watched tokens to each slot of the context and then to each local
            one, a mean over heads.
    """

    top_scores: Float[Array, "*layers G B k"]
    top_docs: Int[Array, "*layers G B k"]
    doc_scores: Float[Array, "*layers G B M"] | None = None
    attention: Float[Array, "*layers G B k"] | None = None
    weights: Float[Array, "*layers G B W X+A"] | None = None


@pytree
class Context:
    """Pooled keys and values of the chunks that a router chose, X slots per query."""

    keys: Float[Array, "*layers G B X K H"]
    values: Float[Array, "*layers G B X K H"]
    mask: Bool[Array, "*layers G B X"]


@pytree
class LayerCache:
    """What one layer remembers of a sequence while it is generated.

    Attributes:
        keys: local keys, one slot per token.
        values: local values.
        context: chosen chunks, `None` in layers without a router and before any routing.
    """

    keys: Float[Array, "*layers G B A K H"]
    values: Float[Array, "*layers G B A K H"]
    context: Context | None = None


@pytree
class Cache:
    """State of B sequences per group while they are generated.

    Attributes:
        runs: a stacked `LayerCache` per run of layers (`ModelConfig.layer_runs`).
        mask: `[G, B, A]` slots that hold a token.
        length: slots in use.
    """

    runs: dict[str, LayerCache]
    mask: Bool[Array, "G B A"]
    length: Int[Array, ""]


@pytree
class CacheSlots:
    """Where the active tokens go in a cache of A slots, and what they see there.

    Attributes:
        start: slot of the first active token.
        mask: which slots each active token attends to.
    """

    start: Int[Array, ""]
    mask: Bool[Array, "G B T A"]
