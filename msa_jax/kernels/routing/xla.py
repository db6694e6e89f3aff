"""Chunk scores in plain JAX: runs anywhere, in tiles, and carries the gradient of every backend."""

import jax
import jax.numpy as jnp

from msa_jax.typing import Array, Bool, Float, Int

# Products held at once, B * T * tile: 16 MB in float32. The backward pass adds up one tile's
# gradients after the other, so that few large tiles save it most of its time.
_TILE_PRODUCTS, _VJP_TILE_PRODUCTS = 1 << 22, 1 << 25
_MIN_TILE, _MAX_TILE = 128, 1 << 16


def chunk_scores(
    queries: Float[Array, "B T D"],
    keys: Float[Array, "*memories C D"],
    memory: Int[Array, ""] | int | None = None,
) -> Float[Array, "B C"]:
    """Largest product of each chunk's key with a query's tokens.

    Args:
        queries: all of whose tokens count.
        keys: `[C, D]`, in the type of the queries; or `[S, C, D]` with `memory`.
        memory: which of S stacked memories to score.
    """
    exact = jnp.issubdtype(keys.dtype, jnp.integer)
    accumulator = jnp.int32 if exact else jnp.float32
    if memory is None:
        keys, memory = keys[None], 0
    num_chunks, size = keys.shape[1:]

    def score(first: Int[Array, ""] | int, length: int) -> Float[Array, "B length"]:
        # Tiles are sliced out of `keys` one by one: padding or reshaping would copy a memory.
        tile = jax.lax.dynamic_slice(keys, (memory, first, 0), (1, length, size))[0]
        products = jnp.einsum("btd,cd->btc", queries, tile, preferred_element_type=accumulator)
        return products.max(axis=1).astype(jnp.float32)

    tile = _tile_size(queries, num_chunks, _TILE_PRODUCTS)
    main, rest = divmod(num_chunks, tile)
    scores = jax.lax.map(lambda i: score(i * tile, tile), jnp.arange(main))
    scores = jnp.moveaxis(scores, 0, 1).reshape(queries.shape[0], main * tile)
    return jnp.concatenate([scores, score(main * tile, rest)], axis=1) if rest else scores


def chunk_scores_vjp(
    queries: Float[Array, "B T D"],
    query_mask: Bool[Array, "B T"],
    keys: Float[Array, "C D"],
    cotangent: Float[Array, "B C"],
) -> tuple[Float[Array, "B T D"], Float[Array, "C D"]]:
    """Gradients of masked chunk scores; each score's goes to its first best token.

    Products are computed again, so nothing of size [B, T, C] is kept from the forward pass.
    """
    num_tokens = queries.shape[1]

    def pull(tile: Array, tangent: Float[Array, "B c"], dqueries: Float[Array, "B T D"]):
        products = jnp.einsum("btd,cd->btc", queries, tile, preferred_element_type=jnp.float32)
        best = jnp.argmax(jnp.where(query_mask[..., None], products, -jnp.inf), axis=1)
        dproducts = jax.nn.one_hot(best, num_tokens, axis=1) * tangent[:, None]
        dproducts = jnp.where(query_mask[..., None], dproducts, 0).astype(queries.dtype)
        like = {"preferred_element_type": jnp.float32}
        dtile = jnp.einsum("btc,btd->cd", dproducts, queries, **like).astype(keys.dtype)
        return dqueries + jnp.einsum("btc,cd->btd", dproducts, tile, **like), dtile

    tile = _tile_size(queries, keys.shape[0], _VJP_TILE_PRODUCTS)
    main = keys.shape[0] // tile

    def step(dqueries, i):
        part = jax.lax.dynamic_slice_in_dim(keys, i * tile, tile)
        tangent = jax.lax.dynamic_slice_in_dim(cotangent, i * tile, tile, axis=1)
        return pull(part, tangent, dqueries)

    dqueries = jnp.zeros(queries.shape, jnp.float32)
    dqueries, dkeys = jax.lax.scan(step, dqueries, jnp.arange(main))
    dqueries, dtail = pull(keys[main * tile :], cotangent[:, main * tile :], dqueries)
    dkeys = jnp.concatenate([dkeys.reshape(-1, keys.shape[1]), dtail])
    return dqueries.astype(queries.dtype), dkeys


def _tile_size(queries: Float[Array, "B T D"], num_chunks: int, products: int) -> int:
    tokens = queries.shape[0] * queries.shape[1]
    return min(max(products // max(tokens, 1), _MIN_TILE), _MAX_TILE, num_chunks)
