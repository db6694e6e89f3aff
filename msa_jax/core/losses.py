"""Router losses (paper, eq. 6) and the language-model loss in blocks."""

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


def chunked_lm_loss(
    hidden: Float[Array, "*batch D"],
    unembedding: Float[Array, "D V"],
    targets: Int[Array, "*batch"],
    mask: Bool[Array, "*batch"],
    block_size: int = 1024,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Summed next-token cross-entropy without logits of all tokens at once.

    Logits exist for `block_size` tokens at a time and are recomputed in the backward pass.

    Returns:
        Sum of the loss over masked-in tokens, and their number.
    """
    hidden = hidden.reshape(-1, hidden.shape[-1])
    targets, mask = targets.reshape(-1), mask.reshape(-1)
    length = hidden.shape[0]
    block_size = min(block_size, length)

    @jax.checkpoint
    def block_loss(total, block):
        hidden, targets, mask = block
        logits = jnp.einsum(
            "td,dv->tv",
            hidden,
            unembedding.astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )
        picked = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        loss = jax.nn.logsumexp(logits, axis=-1) - picked
        return total + jnp.where(mask, loss, 0.0).sum(), None

    def blocks(x):
        padding = [(0, -length % block_size)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding).reshape(-1, block_size, *x.shape[1:])

    total, _ = jax.lax.scan(
        block_loss, jnp.float32(0), (blocks(hidden), blocks(targets), blocks(mask))
    )
    return total, mask.sum()
