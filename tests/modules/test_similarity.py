"""The similarity that a module's `memory` names is the one that its calls use."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax import MemorySparseAttention
from msa_jax.config import MemoryConfig
from msa_jax.core.segments import Segments

CHUNK, DIM = 4, 16
SIZES = {"embed_dim": DIM, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "dtype": jnp.float32}


@pytest.fixture(scope="module")
def inputs():
    """Three documents of a chunk each, and a query of five tokens."""
    documents, positions = jnp.indices((1, 3, CHUNK))[1:]
    memory = jax.random.normal(jax.random.key(0), (1, 3, CHUNK, DIM))
    active = jax.random.normal(jax.random.key(1), (1, 1, 5, DIM))
    return (
        memory,
        Segments(documents + 1, positions),
        active,
        Segments(jnp.zeros((1, 1, 5), jnp.int32), 5 + jnp.indices((1, 1, 5))[2]),
    )


def scores_of(attention, memory, memory_segments, active, active_segments, **similarity):
    """Encodes, then asks."""
    _, layer_memory = attention.encode_documents(memory, memory_segments, **similarity)
    index = attention.index(memory_segments)
    chosen = attention.attend(active, active_segments, layer_memory, index, **similarity)[2]
    return chosen.doc_scores


@pytest.mark.parametrize("similarity", ["cosine", "scaled_dot"])
def test_calls_use_the_similarity_of_memory_and_training_uses_cosine(inputs, similarity):
    memory = MemoryConfig(pooling_kernel_size=CHUNK, top_k_docs=2, router_similarity=similarity)
    attention = MemorySparseAttention(**SIZES, memory=memory)
    params = attention.init(jax.random.key(2), *inputs)
    scores = partial(attention.apply, params, *inputs, method=scores_of)
    explicit = {name: scores(similarity=name) for name in ("cosine", "scaled_dot")}
    assert not np.allclose(explicit["cosine"], explicit["scaled_dot"], atol=1e-3)
    np.testing.assert_array_equal(scores(), explicit[similarity])
    in_training = attention.apply(params, *inputs)[2].doc_scores
    np.testing.assert_array_equal(in_training, explicit["cosine"])
