"""Parameters of a new model."""

from __future__ import annotations

import flax
import jax
import jax.numpy as jnp

from msa_jax.config import ModelConfig
from msa_jax.core.segments import TokenBlock
from msa_jax.modules.transformer import Transformer
from msa_jax.typing import PRNGKey, PyTree


def init_params(config: ModelConfig, key: PRNGKey) -> PyTree:
    """Draws all parameters; routers start as `config.memory.router_init` says."""
    pooling_size = config.memory.pooling_kernel_size

    def block(length):
        return TokenBlock(*(jnp.zeros((1, 1, length), jnp.int32) for _ in range(3)))

    model_key, router_key = jax.random.split(key)
    variables = Transformer(config).init(model_key, block(pooling_size), block(1), 1)
    return init_routers(variables["params"], config, router_key)


def init_routers(params: PyTree, config: ModelConfig, key: PRNGKey) -> PyTree:
    """Replaces the projections of every router by `config.memory.router_init`.

    "from_attention" copies the layer's own q and k projections. "shared" draws one matrix and
    uses it for the keys and for every query head of the group, so that a query and a chunk that
    share words match before any training. "random" draws both.
    """
    how = config.memory.router_init
    group_size = config.num_heads // config.num_kv_heads
    flat = flax.traverse_util.flatten_dict(params)
    for name, start, _ in config.layer_runs:
        if not name.startswith("routed"):
            continue
        attention = (name, "attention")
        q_path = (*attention, "router", "q_proj", "kernel")
        k_path = (*attention, "router", "k_proj", "kernel")
        if how == "from_attention":
            # Copies: two parameters that share a buffer could not be donated to a training step.
            flat[q_path] = flat[(*attention, "q_proj", "kernel")].copy()
            flat[k_path] = flat[(*attention, "k_proj", "kernel")].copy()
            continue
        q_key, k_key = jax.random.split(jax.random.fold_in(key, start))
        length, embed_dim = flat[q_path].shape[:2]
        shape = (length, embed_dim, config.num_kv_heads, config.head_dim)
        flat[k_path] = _draw(k_key, shape)
        if how == "shared":
            flat[q_path] = jnp.repeat(flat[k_path], group_size, axis=2)
        else:
            flat[q_path] = _draw(q_key, (length, embed_dim, config.num_heads, config.head_dim))
    return flax.traverse_util.unflatten_dict(flat)


def _draw(key, shape):
    return jax.random.normal(key, shape, jnp.float32) * shape[1] ** -0.5
