"""Plain causal logits of our models and of those of `transformers`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from msa_jax.core import segments
from msa_jax.core.segments import TokenBlock
from msa_jax.modules.transformer import Transformer


def random_tokens(vocab_size, shape=(2, 9)):
    """Token ids of a few sequences."""
    return np.random.default_rng(0).integers(0, vocab_size, shape).astype(np.int32)


def their_logits(model, tokens):
    """Logits of a `transformers` model."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.numpy()


@partial(jax.jit, static_argnums=0)
def our_logits(config, params, tokens):
    """Logits of our model: the sequences are responses, and the memory is empty."""
    row = (1, 1, config.memory.pooling_kernel_size)
    memory = TokenBlock(
        tokens=jnp.zeros(row, jnp.int32),
        doc_ids=jnp.full(row, segments.PADDING),
        segment_pos=jnp.zeros(row, jnp.int32),
    )
    active = TokenBlock(
        tokens=jnp.asarray(tokens)[None],
        doc_ids=jnp.full((1, *tokens.shape), segments.RESPONSE),
        segment_pos=jnp.broadcast_to(jnp.arange(tokens.shape[1]), (1, *tokens.shape)),
    )
    model, variables = Transformer(config), {"params": params}
    hidden = model.apply(variables, memory, active, 1).hidden
    return model.apply(variables, hidden, method="logits")[0]
