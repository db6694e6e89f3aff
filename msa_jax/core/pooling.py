"""Mean pooling of documents over chunks of P tokens (paper §3.2)."""

import jax.numpy as jnp

from msa_jax.typing import Array, Bool, Float


def masked_chunk_mean(
    x: Float[Array, "*batch S K H"], valid: Bool[Array, "*batch S"], pooling_kernel_size: int
) -> Float[Array, "*batch S//P K H"]:
    """Averages the valid tokens of each chunk in float32.

    A partial last chunk averages the tokens it has; a chunk without any is zero.

    Raises:
        ValueError: if S is not a multiple of the pooling size.
    """
    length = x.shape[-3]
    if length % pooling_kernel_size:
        raise ValueError(
            f"rows of {length} tokens do not divide into chunks of {pooling_kernel_size}; "
            "choose row_tokens as a multiple of pooling_kernel_size."
        )
    chunks = length // pooling_kernel_size
    weights = valid.astype(jnp.float32).reshape(*valid.shape[:-1], chunks, pooling_kernel_size)
    x = x.astype(jnp.float32).reshape(*x.shape[:-3], chunks, pooling_kernel_size, *x.shape[-2:])
    total = jnp.einsum("...cp,...cpkh->...ckh", weights, x)
    return total / jnp.maximum(weights.sum(-1), 1.0)[..., None, None]
