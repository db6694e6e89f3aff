"""Attention over [template head; chunks of chosen documents; local tokens] (paper, eq. 5)."""

import jax
import jax.numpy as jnp

from msa_jax.typing import Array, Bool, Float

# Scores per head that are held at once; more are computed for so many queries at a time.
_MAX_SCORES = 1 << 22
_QUERY_BLOCK = 512
_MASKED = -1e30


def masked_attention(
    queries: Float[Array, "*batch T N H"],
    keys: Float[Array, "*batch A K H"],
    values: Float[Array, "*batch A K H"],
    mask: Bool[Array, "*batch T A"],
    is_causal: bool = False,
) -> Float[Array, "*batch T N H"]:
    """Grouped-query attention with softmax in float32.

    A token that sees nothing (padding) gets some finite value, never NaN. Scores of long sequences
    are never held all at once. `is_causal` says that `mask` shows no token those after it, so that
    a kernel may leave them out.
    """
    batch = queries.shape[:-3]
    queries, keys, values = (x.reshape(-1, *x.shape[-3:]) for x in (queries, keys, values))
    mask = mask.reshape(-1, 1, *mask.shape[-2:])
    length, num_keys = mask.shape[-2:]
    in_blocks = length % _QUERY_BLOCK == 0 and length * num_keys > _MAX_SCORES

    def attend(block: tuple[Array, Array]) -> Array:
        queries, mask = block
        fused = _has_fused_kernel(queries) and queries.shape[1] % 2 == keys.shape[1] % 2 == 0
        return jax.nn.dot_product_attention(
            queries,
            keys,
            values,
            mask=mask,
            is_causal=is_causal and fused and not in_blocks,
            implementation="cudnn" if fused else None,
        )

    if in_blocks:
        blocks = (_blocks(queries, axis=1), _blocks(mask, axis=2))
        out = jnp.moveaxis(jax.lax.map(attend, blocks), 0, 1).reshape(queries.shape)
    else:
        out = attend((queries, mask))
    return out.reshape(*batch, *out.shape[1:])


def causal_attention(
    queries: Float[Array, "*batch T N H"],
    keys: Float[Array, "*batch T K H"],
    values: Float[Array, "*batch T K H"],
) -> Float[Array, "*batch T N H"]:
    """Grouped-query attention of each token to itself and those before it.

    Never holds all scores where the hardware has a kernel for that.
    """
    batch = queries.shape[:-3]
    queries, keys, values = (x.reshape(-1, *x.shape[-3:]) for x in (queries, keys, values))
    out = jax.nn.dot_product_attention(
        queries,
        keys,
        values,
        is_causal=True,
        implementation="cudnn" if _has_fused_kernel(queries) else None,
    )
    return out.reshape(*batch, *out.shape[1:])


def sparse_attention(
    queries: Float[Array, "*batch T N H"],
    context: tuple[Float[Array, "*batch X K H"], Float[Array, "*batch X K H"]],
    context_mask: Bool[Array, "*batch T X"],
    local: tuple[Float[Array, "*batch A K H"], Float[Array, "*batch A K H"]],
    mask: Bool[Array, "*batch T A"],
) -> Float[Array, "*batch T N H"]:
    """One softmax over the pooled chunks of the chosen documents and the local tokens.

    The template head is the first of the local tokens.
    """
    keys, values = (
        jnp.concatenate([pooled, own], axis=-3) for pooled, own in zip(context, local, strict=True)
    )
    return masked_attention(queries, keys, values, jnp.concatenate([context_mask, mask], axis=-1))


def document_attention(
    queries: Float[Array, "*batch N H"],
    keys: Float[Array, "*batch X K H"],
    mask: Bool[Array, "*batch X"],
    num_documents: int,
) -> Float[Array, "*batch k"]:
    """The share that each of k documents has in a token's attention to them all, a mean over heads.

    Args:
        queries: of one token a sequence.
        keys: of k documents with X / k slots each.
        mask: which slots hold a chunk; without any, all shares are zero.
        num_documents: k.
    """
    one_token = queries[..., None, :, :], keys, mask[..., None, :]
    shares = attention_weights(*one_token)[..., 0, :]
    return shares.reshape(*shares.shape[:-1], num_documents, -1).sum(axis=-1)


def attention_weights(
    queries: Float[Array, "*batch T N H"],
    keys: Float[Array, "*batch A K H"],
    mask: Bool[Array, "*batch T A"],
) -> Float[Array, "*batch T A"]:
    """What `masked_attention` multiplies values by, a mean over heads; zeros if a token sees none.

    Holds the weights of all heads at once.
    """
    *batch, length, num_heads, head_dim = queries.shape
    grouped = queries.reshape(*batch, length, keys.shape[-2], -1, head_dim)
    scores = jnp.einsum(
        "...tkgh,...akh->...tkga", grouped, keys, preferred_element_type=jnp.float32
    )
    is_seen = mask[..., None, None, :]
    weights = jax.nn.softmax(jnp.where(is_seen, scores * head_dim**-0.5, _MASKED), axis=-1)
    return jnp.where(is_seen, weights, 0.0).sum(axis=(-3, -2)) / num_heads


def _has_fused_kernel(queries: Array) -> bool:
    """Whether the hardware has a kernel that never holds all scores (cuDNN's)."""
    return jax.default_backend() == "gpu" and queries.dtype == jnp.bfloat16


def _blocks(x: Array, axis: int) -> Array:
    """Queries along `axis` in blocks, which become the first axis."""
    shape = (*x.shape[:axis], -1, _QUERY_BLOCK, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)
