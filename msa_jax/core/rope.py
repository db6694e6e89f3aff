"""Rotary position embedding at explicit positions (document-wise and global RoPE, paper §3.2)."""

import jax.numpy as jnp

from msa_jax.typing import Array, Float, Int


def apply_rope(
    x: Float[Array, "*batch T N H"], positions: Int[Array, "*batch T"], theta: float
) -> Float[Array, "*batch T N H"]:
    """Rotates each head by its token's position; the two halves of H form the pairs.

    Angles are computed in float32 whatever the type of `x`, which is also the result's type.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
