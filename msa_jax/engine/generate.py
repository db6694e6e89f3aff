"""Stages 2 and 3: route once per query, then generate greedily (paper, §3.4)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from msa_jax.core.segments import PADDING, TokenBlock
from msa_jax.modules.state import Memory, Routing
from msa_jax.modules.transformer import Transformer, init_cache
from msa_jax.typing import Array, Int, PyTree


@partial(jax.jit, static_argnames=("model", "num_tokens"))
def generate_greedy(
    model: Transformer,
    params: PyTree,
    prompts: TokenBlock,
    memory: Memory,
    num_tokens: int,
) -> tuple[Int[Array, "G B num_tokens"], Routing]:
    """Routes each prompt over `memory` and continues it with its likeliest tokens.

    Args:
        model: the transformer.
        params: its parameters.
        prompts: `[G, B, T]` head, query and opening of the response; padding at the right.
        memory: encoded documents, one memory per group. On several devices, placed there by
            `memory.placement.place_memory`, and this called under `jax.set_mesh`.
        num_tokens: tokens to generate for each prompt.

    Returns:
        The generated tokens, and what each router layer chose.
    """
    variables = {"params": params}
    num_groups, batch_size, length = prompts.tokens.shape
    cache = init_cache(model.config, num_groups, batch_size, length + num_tokens)
    hidden, cache, routing = model.apply(variables, prompts, cache, memory, method="prefill")
    last = (prompts.doc_ids != PADDING).sum(axis=-1, keepdims=True) - 1
    hidden = jnp.take_along_axis(hidden, last[..., None], axis=2)[:, :, 0]
    position = jnp.take_along_axis(prompts.segment_pos, last, axis=2)[..., 0]

    def step(carry, _):
        logits, position, cache = carry
        token = logits.argmax(axis=-1).astype(jnp.int32)
        logits, cache = model.apply(variables, token, position + 1, cache, method="decode")
        return (logits, position + 1, cache), token

    start = (model.apply(variables, hidden, method="logits"), position, cache)
    _, tokens = jax.lax.scan(step, start, length=num_tokens)
    return jnp.moveaxis(tokens, 0, -1), routing
