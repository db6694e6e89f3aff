"""The second look: the model reads a document, then the question, and a head scores the pair.

The document comes first, so that its hidden states do not depend on the question. The weights are
those of the model with a low-rank update: routing and reading keep theirs.
"""

from __future__ import annotations

import jax.numpy as jnp

from msa_jax.core.segments import PADDING, TokenBlock
from msa_jax.modules.lora import Lora
from msa_jax.modules.transformer import Transformer
from msa_jax.typing import Array, Float, PyTree, pytree


@pytree
class LookParams:
    """What the look has beside the model's parameters.

    Attributes:
        lora: low-rank update of the model's linear layers.
        weight: of the head, which reads the last token's hidden state after the final norm.
        bias: of the head.
    """

    lora: Lora
    weight: Float[Array, " D"]
    bias: Float[Array, ""]


def look_logits(
    model: Transformer,
    params: PyTree,
    weight: Float[Array, " D"],
    bias: Float[Array, ""],
    pairs: TokenBlock,
) -> Float[Array, "G B"]:
    """Scores pairs: the logit that a document answers the question that follows it.

    Args:
        model: the transformer.
        params: its parameters, with the update of the look merged into them.
        weight: of the head.
        bias: of the head.
        pairs: `[G, B, T]` tokens, padded at the right.
    """
    hidden = model.apply({"params": params}, pairs, method="read")
    last = jnp.maximum((pairs.doc_ids != PADDING).sum(axis=-1) - 1, 0)
    final = jnp.take_along_axis(hidden, last[..., None, None], axis=2)[..., 0, :]
    return final.astype(jnp.float32) @ weight + bias
