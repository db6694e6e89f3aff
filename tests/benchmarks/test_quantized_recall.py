"""The recall of 8-bit keys is measured with the queries that the model itself routes by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import quantized_recall
from msa_jax.core.segments import QUERY
from msa_jax.engine.encode import encode_documents
from msa_jax.kernels.routing import route
from msa_jax.modules.transformer import Transformer, init_cache
from tests.modules.tiny import POOLING, model_config, random_params, sequences_of

RNG = np.random.default_rng(0)


@pytest.mark.slow
def test_queries_are_those_that_the_model_routes_by():
    """Routed with them, every layer finds what it found inside the model."""
    model = Transformer(model_config())
    params = random_params(model.config)
    documents = [RNG.integers(64, size=n).astype(np.int32) for n in (5, 4, 3, 8, 6, 2, 7)]
    memory = jax.device_put(encode_documents(model, params, documents, 2 * POOLING))
    texts = [(RNG.integers(64, size=n), 2) for n in (9, 8)]
    prompts = sequences_of(texts, 10, model.config.memory.top_k_docs)
    queries = quantized_recall.layer_queries(model, params, memory, prompts)
    assert len(queries) == len(model.config.router_layers)

    num_groups, batch, length = prompts.tokens.shape
    cache = init_cache(model.config, num_groups, batch, length)
    chosen = model.apply({"params": params}, prompts, cache, memory, method="prefill")[2]
    for layer, layer_queries in enumerate(queries):
        scores, docs = route(
            layer_queries,
            jnp.asarray(prompts.doc_ids[0] == QUERY),
            quantized_recall.layer_keys(memory, layer),
            memory.index.chunk_doc[0],
            top_k_docs=chosen.top_docs.shape[-1],
            max_document_chunks=memory.index.max_document_chunks,
        )
        np.testing.assert_array_equal(docs, chosen.top_docs[layer, 0])
        np.testing.assert_allclose(scores, chosen.top_scores[layer, 0], rtol=1e-5)


@pytest.mark.parametrize("dtype", quantized_recall.DTYPES)
def test_more_candidates_lose_less_and_routing_gets_all_that_they_hold(dtype):
    queries = jnp.asarray(RNG.standard_normal((8, 4, 16)), jnp.bfloat16)
    keys = jnp.asarray(RNG.standard_normal((3000, 16)), jnp.bfloat16)
    found = quantized_recall.recalls(
        queries,
        jnp.ones((8, 4), bool),
        keys,
        jnp.arange(3000) // 3,
        dtype,
        top_k_docs=16,
        max_document_chunks=3,
    )
    assert (found["1x"] <= found["2x"]).all() and (found["2x"] <= found["4x"]).all()
    assert found["1x"].mean() < 1.0  # Random keys are closer to each other than 8 bits can tell.
    np.testing.assert_array_equal(found["routed"], found["4x"])
