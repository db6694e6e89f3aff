"""The Linen modules as NNX modules, for models written in `flax.nnx`.

Parameters are `nnx.Param`s under the names that they have in Linen, so pure dicts go both ways:
`nnx.update(module, params)` and `nnx.to_pure_dict(nnx.state(module, nnx.Param))`. All methods of
the Linen module are there. Under `nnx.jit`, counts such as `num_documents` are static arguments.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from msa_jax.config import ModelConfig
from msa_jax.core.segments import Segments
from msa_jax.modules import attention, init, transformer
from msa_jax.typing import PyTree

__all__ = ["MemorySparseAttention", "Transformer"]


class _LinenModule(nnx.bridge.ToNNX):
    """A Linen module with given parameters; it keeps no random state, since it draws nothing."""

    def __init__(self, module: nn.Module, params: PyTree):
        super().__init__(module)
        for name, subtree in params.items():
            setattr(self, name, nnx.data(jax.tree.map(nnx.Param, subtree)))


class MemorySparseAttention(_LinenModule):
    """`msa_jax.MemorySparseAttention` for an NNX model: its fields, calls and numbers."""

    def __init__(self, *, rngs: nnx.Rngs, **fields):
        """Draws the parameters.

        Args:
            rngs: source of randomness (stream "params").
            **fields: those of the Linen module, such as `embed_dim` and `num_heads`.
        """
        module = attention.MemorySparseAttention(**fields)
        chunk = (1, 1, module.memory.pooling_kernel_size)
        segments = Segments(jnp.zeros(chunk, jnp.int32), jnp.zeros(chunk, jnp.int32))
        x = jnp.zeros((*chunk, module.embed_dim), module.dtype)
        # Compiled, so that the forward pass, which only tells the shapes, does not run.
        variables = jax.jit(module.init)(rngs.params(), x, segments, x, segments)
        super().__init__(module, variables["params"])


class Transformer(_LinenModule):
    """`msa_jax.Transformer` for an NNX model: its calls and numbers."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        """Draws the parameters as `init_params` does; `rngs` has or makes the stream "params"."""
        params = jax.jit(partial(init.init_params, config))(rngs.params())
        super().__init__(transformer.Transformer(config), params)
