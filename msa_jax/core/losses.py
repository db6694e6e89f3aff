"""Router losses (paper, eq. 6), the loss of a list, and the language-model loss in blocks."""

import math

import jax
import jax.numpy as jnp

from msa_jax.typing import Array, Bool, Float, Int


def info_nce(
    scores: Float[Array, "*batch M"],
    positives: Bool[Array, "*batch M"],
    temperature: float,
    decoupled: bool = True,
) -> tuple[Float[Array, "*batch"], Bool[Array, "*batch"]]:
    """Contrastive loss over document scores, averaged over a query's positives.

    Decoupled: each positive competes with the negatives only (the paper's form). Plain: with all
    documents.

    Args:
        scores: document scores; -inf where a document does not exist.
        positives: documents that answer the query; those that do not exist are ignored.

    Returns:
        Loss per query (0 without positives), and which queries have positives.
    """
    exists = jnp.isfinite(scores)
    logits = jnp.where(exists, scores.astype(jnp.float32) / temperature, -1e30)
    positives = positives & exists
    if decoupled:
        negatives = jnp.where(positives, -1e30, logits)
        rivals = jax.nn.logsumexp(negatives, axis=-1, keepdims=True)
        denominator = jnp.logaddexp(logits, rivals)
    else:
        denominator = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    count = positives.sum(axis=-1)
    total = jnp.where(positives, denominator - logits, 0.0).sum(axis=-1)
    return total / jnp.maximum(count, 1), count > 0


def listwise(
    logits: Float[Array, "*batch C"], target: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Cross-entropy of which document of a list is right, or none of them, whose logit is 0.

    Against the constant logit of "none" a document's logit means the same in every list.

    Args:
        logits: of the documents; -inf where a list has no document.
        target: column of the right document, C for none.
    """
    options = jnp.pad(logits.astype(jnp.float32), [(0, 0)] * (logits.ndim - 1) + [(0, 1)])
    picked = jnp.take_along_axis(options, target[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(options, axis=-1) - picked


def chunked_lm_loss(
    hidden: Float[Array, "*batch T D"],
    unembedding: Float[Array, "D V"],
    targets: Int[Array, "*batch T"],
    mask: Bool[Array, "*batch T"],
    block_size: int = 4096,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Summed next-token cross-entropy without logits of all tokens at once.

    Logits exist for about `block_size` tokens at a time and are recomputed in the backward pass.
    Masked-in tokens come first in every sequence, so that blocks without any cost nothing: where
    few tokens have a target, the loss takes as long as those few.

    Returns:
        Sum of the loss over masked-in tokens, and their number.
    """
    # Sequences keep their places, so that one that lies on some device is sorted there.
    order = jnp.argsort(~mask, axis=-1, stable=True)
    hidden = jnp.take_along_axis(hidden, order[..., None], axis=-2)
    targets, mask = (jnp.take_along_axis(x, order, axis=-1) for x in (targets, mask))
    length = mask.shape[-1]
    width = min(length, max(1, block_size // math.prod(mask.shape[:-1])))

    def block_loss(block):
        hidden, targets, mask = block
        logits = jnp.einsum(
            "...td,dv->...tv",
            hidden,
            unembedding.astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )
        picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        loss = jax.nn.logsumexp(logits, axis=-1) - picked
        return jnp.where(mask, loss, 0.0).sum()

    @jax.checkpoint
    def add_block(total, block):
        return total + jax.lax.cond(block[2].any(), block_loss, lambda _: 0.0, block), None

    def blocks(x, axis):
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, -length % width)
        x = jnp.pad(x, padding)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, width, *x.shape[axis + 1 :]), axis, 0)

    axis = mask.ndim - 1
    total, _ = jax.lax.scan(
        add_block, jnp.float32(0), tuple(blocks(x, axis) for x in (hidden, targets, mask))
    )
    return total, mask.sum()
