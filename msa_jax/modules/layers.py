"""The parts of a decoder layer that know nothing of memory."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from msa_jax.typing import Array, Float, Int


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * scale).astype(x.dtype)


class GatedMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    hidden_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        def dense(features, name, **kwargs):
            return nn.Dense(features, use_bias=False, dtype=self.dtype, name=name, **kwargs)

        gate = dense(self.hidden_dim, "gate_proj")(x)
        up = dense(self.hidden_dim, "up_proj")(x)
        # Zero output projections: a new model starts as its embedding (see MemorySparseAttention).
        down = dense(x.shape[-1], "down_proj", kernel_init=nn.initializers.zeros)
        return down(nn.silu(gate) * up)


class Embedder(nn.Module):
    """Token embedding table."""

    vocab_size: int
    embed_dim: int
    dtype: jnp.dtype

    def setup(self):
        init = nn.initializers.normal(self.embed_dim**-0.5)
        self.embedding = self.param("embedding", init, (self.vocab_size, self.embed_dim))

    def __call__(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        return jnp.take(self.embedding, tokens, axis=0).astype(self.dtype)


class Unembedder(nn.Module):
    """Output projection of a model whose embeddings are not tied."""

    vocab_size: int
    embed_dim: int

    def setup(self):
        init = nn.initializers.lecun_normal()
        self.kernel = self.param("kernel", init, (self.embed_dim, self.vocab_size))
