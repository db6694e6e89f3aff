"""Chunk scores in plain JAX: runs anywhere, in tiles, and carries the gradient of every backend."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from msa_jax.typing import Array, Bool, Float

# Products held at once, B * T * tile: 16 MB in float32.
_TILE_PRODUCTS = 1 << 22
_MIN_TILE, _MAX_TILE = 128, 1 << 16


def chunk_scores(queries: Float[Array, "B T D"], keys: Float[Array, "C D"]) -> Float[Array, "B C"]:
    """Largest product of each chunk's key with a query's tokens; see `api.chunk_scores`."""
    exact = jnp.issubdtype(keys.dtype, jnp.integer)
    accumulator = jnp.int32 if exact else jnp.float32

    def score(tile: Float[Array, "c D"]) -> Float[Array, "B c"]:
        products = jnp.einsum("btd,cd->btc", queries, tile, preferred_element_type=accumulator)
        return products.max(axis=1).astype(jnp.float32)

    parts = _map_tiles(score, keys, _tile_size(queries))
    return jnp.concatenate([_join(part, axis=-1) for part in parts], axis=-1)


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

    tile = min(_tile_size(queries), keys.shape[0])
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


def _tile_size(queries: Float[Array, "B T D"]) -> int:
    tokens = queries.shape[0] * queries.shape[1]
    return min(max(_TILE_PRODUCTS // max(tokens, 1), _MIN_TILE), _MAX_TILE)


def _map_tiles(fn: Callable[[Array], Array], keys: Float[Array, "C D"], tile: int) -> list[Array]:
    """`fn` of all whole tiles (stacked), and of what is left over.

    Tiles are sliced out of `keys` one by one: padding or reshaping would copy a memory.
    """
    main = keys.shape[0] // tile
    parts = []
    if main:
        slice_of = lambda i: jax.lax.dynamic_slice_in_dim(keys, i * tile, tile)  # noqa: E731
        parts.append(jax.lax.map(lambda i: fn(slice_of(i)), jnp.arange(main)))
    if keys.shape[0] % tile:
        parts.append(fn(keys[main * tile :])[None])
    return parts


def _join(stacked: Float[Array, "tiles B c"], axis: int) -> Float[Array, "B C"]:
    stacked = jnp.moveaxis(stacked, 0, 1)
    return stacked.reshape(stacked.shape[0], -1)
