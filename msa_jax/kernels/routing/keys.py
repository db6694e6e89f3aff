"""Routing keys as they are kept: in full precision, or in 8 bits with a scale per chunk."""

import jax.numpy as jnp

from msa_jax.typing import Array, Float, pytree

# Kernels search a memory in place if its number of chunks is a multiple of this (GPU: 8). Who makes
# a memory fills it up with chunks of no document.
CHUNK_ALIGNMENT = 128
# The largest magnitude that each 8-bit type stands for.
_LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}


@pytree
class RoutingKeys:
    """Pooled routing keys of one layer, heads flattened to D = K * H.

    Attributes:
        values: bfloat16 or float32; or int8 or float8_e4m3fn, to be multiplied by `scale`.
        scale: of each chunk, positive; None where `values` are the keys themselves.
        exact: keys in full precision, from which the best candidates of an 8-bit scan are scored
            again; None to rank by the 8-bit scores.
    """

    values: Float[Array, "*batch C D"]
    scale: Float[Array, "*batch C"] | None = None
    exact: Float[Array, "*batch C D"] | None = None


def quantize_keys(
    keys: Float[Array, "*batch C D"], dtype: str, keep_exact: bool = True
) -> RoutingKeys:
    """Keys in 8 bits: the largest component of each chunk becomes the largest number there is.

    Args:
        keys: from `core.routing.routing_keys`, heads flattened.
        dtype: "int8" or "float8_e4m3fn".
        keep_exact: keep `keys` for scoring candidates again.

    Raises:
        ValueError: for another dtype.
    """
    values, scale = _quantize(keys, dtype, axes=(-1,))
    return RoutingKeys(values, scale[..., 0], keys if keep_exact else None)


def quantize_queries(
    queries: Float[Array, "B T D"], dtype: str
) -> tuple[Float[Array, "B T D"], Float[Array, " B"]]:
    """Queries in 8 bits with one scale for all tokens of a query.

    One scale, so that the best token is the same with and without it.
    """
    values, scale = _quantize(queries, dtype, axes=(-2, -1))
    return values, scale[..., 0, 0]


def _quantize(x, dtype, axes):
    if dtype not in _LARGEST:
        raise ValueError(f"dtype must be one of {sorted(_LARGEST)}, not {dtype!r}.")
    x = x.astype(jnp.float32)
    # A row of zeros gets scale 1 instead of 0, so that dividing by it gives zeros.
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
    scale = jnp.where(largest > 0, largest / _LARGEST[dtype], 1.0)
    scaled = x / scale
    if dtype == "int8":
        scaled = jnp.round(scaled)
    limit = _LARGEST[dtype]  # Rounding of the division may exceed it.
    return jnp.clip(scaled, -limit, limit).astype(dtype), scale
