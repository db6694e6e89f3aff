"""The NNX adapter: the same parameters give the same numbers, and NNX can train them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import msa_jax
from msa_jax.config import ConfigError, MemoryConfig
from msa_jax.core.losses import info_nce
from msa_jax.core.segments import Segments
from msa_jax.modules.nnx import MemorySparseAttention, Transformer
from tests.training.tiny import model_config, random_batch, random_params

EMBED_DIM, POOLING = 16, 4
FIELDS = {
    "embed_dim": EMBED_DIM,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
    "memory": MemoryConfig(pooling_kernel_size=POOLING, top_k_docs=2),
    "dtype": jnp.float32,
}


@pytest.fixture(scope="module")
def inputs():
    """Memory of three documents of two chunks, and two queries of five tokens."""
    documents, positions = jnp.indices((1, 3, 2 * POOLING))[1:]
    keys = jax.random.split(jax.random.key(7))
    return (
        jax.random.normal(keys[0], (1, 3, 2 * POOLING, EMBED_DIM)),
        Segments(documents + 1, positions),
        jax.random.normal(keys[1], (1, 2, 5, EMBED_DIM)),
        Segments(jnp.zeros((1, 2, 5), jnp.int32), 5 + jnp.indices((1, 2, 5))[2]),
    )


def noisy(params):
    """Adds noise, because the output projection of a new module is zero."""
    return jax.tree.map(lambda x: x + jnp.linspace(-0.5, 0.5, x.size).reshape(x.shape), params)


def pure_params(module):
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def assert_close(found, expected):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected)


def test_attention_gives_the_numbers_of_linen(inputs):
    linen = msa_jax.MemorySparseAttention(**FIELDS)
    params = noisy(linen.init(jax.random.key(0), *inputs)["params"])
    attention = MemorySparseAttention(**FIELDS, rngs=nnx.Rngs(0))
    nnx.update(attention, params)

    expected = jax.jit(linen.apply)({"params": params}, *inputs)
    found = nnx.jit(lambda attention, *inputs: attention(*inputs))(attention, *inputs)
    assert_close(found, expected)
    assert found[2].top_docs.shape == (1, 2, 2)

    encode = partial(linen.apply, method="encode_documents")
    expected = jax.jit(encode)({"params": params}, *inputs[:2])
    found = nnx.jit(lambda attention, *memory: attention.encode_documents(*memory))(
        attention, *inputs[:2]
    )
    assert_close(found, expected)


def test_parameters_are_those_of_linen_and_nothing_else_is_kept(inputs):
    linen = msa_jax.MemorySparseAttention(**FIELDS, qk_norm=True, attention_bias=True)
    expected = jax.eval_shape(linen.init, jax.random.key(0), *inputs)["params"]
    attention = MemorySparseAttention(**FIELDS, qk_norm=True, attention_bias=True, rngs=nnx.Rngs(0))
    assert jax.tree.map(jnp.shape, pure_params(attention)) == jax.tree.map(jnp.shape, expected)
    *_, others = nnx.split(attention, nnx.Param, ...)
    assert not jax.tree.leaves(others)


def test_every_module_draws_its_own_parameters():
    rngs = nnx.Rngs(0)
    first, second = (MemorySparseAttention(**FIELDS, rngs=rngs) for _ in range(2))
    assert not np.array_equal(first.q_proj["kernel"], second.q_proj["kernel"])


def test_number_of_documents_only_adds_documents_that_do_not_exist(inputs):
    attention = MemorySparseAttention(**FIELDS, rngs=nnx.Rngs(0))
    nnx.update(attention, noisy(pure_params(attention)))
    _, out, exact = nnx.jit(lambda attention: attention(*inputs, 3))(attention)
    _, default_out, default = nnx.jit(lambda attention: attention(*inputs))(attention)
    assert_close(default.doc_scores[..., :3], exact.doc_scores)
    assert np.all(np.isneginf(default.doc_scores[..., 3:]))
    assert_close(default_out, out)


def test_an_nnx_host_trains_it(inputs):
    class Host(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.RMSNorm(EMBED_DIM, rngs=rngs)
            self.attention = MemorySparseAttention(**FIELDS, rngs=rngs)

        def __call__(self, memory, memory_segments, x, x_segments):
            _, out, routing = self.attention(
                self.norm(memory), memory_segments, self.norm(x), x_segments
            )
            return x + out, routing

    host = Host(nnx.Rngs(0))
    optimizer = nnx.Optimizer(host, optax.adam(1e-2), wrt=nnx.Param)
    positives = jnp.zeros((1, 2, 6), bool).at[:, :, 1].set(True)

    @nnx.jit
    def step(host, optimizer):
        def loss(host):
            out, routing = host(*inputs)
            aux_loss, _ = info_nce(routing.doc_scores, positives, temperature=0.1)
            return jnp.mean((out - 1) ** 2) + jnp.mean(aux_loss)

        value, gradients = nnx.value_and_grad(loss)(host)
        optimizer.update(host, gradients)
        return value

    before = pure_params(host)
    losses = [float(step(host, optimizer)) for _ in range(10)]
    assert losses[-1] < 0.8 * losses[0]
    moved = jax.tree.map(lambda old, new: bool(jnp.any(old != new)), before, pure_params(host))
    assert all(jax.tree.leaves(moved))


def test_transformer_gives_the_numbers_of_linen():
    config, batch = model_config(), random_batch()
    num_documents = batch.positives.shape[-1]
    params = random_params(config)
    model = Transformer(config, rngs=nnx.Rngs(0))
    nnx.update(model, params)

    apply = jax.jit(msa_jax.Transformer(config).apply, static_argnums=3)
    expected = apply({"params": params}, batch.memory, batch.active, num_documents)
    found = nnx.jit(lambda model, batch: model(batch.memory, batch.active, num_documents))(
        model, batch
    )
    assert_close(found, expected)
    logits = model.logits(found.hidden)
    assert logits.shape == (*batch.active.tokens.shape, config.vocab_size)


def test_transformer_starts_as_init_params_says():
    config = model_config(memory={"router_init": "shared"})
    model = Transformer(config, rngs=nnx.Rngs(params=3))
    expected = jax.jit(partial(msa_jax.init_params, config))(nnx.Rngs(params=3).params())
    jax.tree.map(np.testing.assert_array_equal, pure_params(model), expected)


def test_a_wrong_field_is_named():
    with pytest.raises(ConfigError, match="pooling_kernel_size"):
        MemorySparseAttention(
            **(FIELDS | {"memory": MemoryConfig(pooling_kernel_size=0)}), rngs=nnx.Rngs(0)
        )
