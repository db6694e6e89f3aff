import jax
import numpy as np
import pytest

from msa_jax.core.segments import RESPONSE, TokenBlock
from msa_jax.engine.generate import generate_greedy
from msa_jax.memory.placement import place_memory
from msa_jax.modules.transformer import Transformer
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from tests.modules.tiny import compiled, model_config, random_params, rows_of, sequences_of

NEW_TOKENS, TOP_K = 4, 2
RNG = np.random.default_rng(0)
MEMORY = rows_of([RNG.integers(64, size=n) for n in (5, 3, 7, 2)], [[0, 1], [2, 3]], 12)
# Prompts of 8 and 6 tokens, padded at the right.
PROMPTS = [(RNG.integers(64, size=n), 1) for n in (8, 6)]


@pytest.fixture(scope="module")
def model():
    return Transformer(model_config())


@pytest.fixture(scope="module")
def params(model):
    return random_params(model.config)


@pytest.fixture(scope="module")
def generated(model, params):
    call = compiled(model.config, params)
    memory = call(MEMORY, num_documents=4, method="encode")
    prompts = sequences_of(PROMPTS, 8, TOP_K)
    return call, *generate_greedy(model, params, prompts, memory, NEW_TOKENS)


def test_each_token_is_the_likeliest_of_a_full_forward(generated):
    """Every step runs the training forward over memory, prompt and all tokens so far."""
    call, ours, _ = generated
    prompts = [tokens for tokens, _ in PROMPTS]
    sequences = sequences_of([(tokens, 1) for tokens in prompts], 8 + NEW_TOKENS, TOP_K)
    for step in range(NEW_TOKENS):
        hidden = call(MEMORY, sequences, num_documents=4).hidden
        likeliest = np.asarray(call(hidden, method="logits").argmax(-1))
        columns = [
            np.array(x) for x in (sequences.tokens, sequences.doc_ids, sequences.segment_pos)
        ]
        for row, prompt in enumerate(prompts):
            last = len(prompt) + step - 1
            assert ours[0, row, step] == likeliest[0, row, last]
            new = (likeliest[0, row, last], RESPONSE, columns[2][0, row, last] + 1)
            for column, value in zip(columns, new, strict=True):
                column[0, row, last + 1] = value
        sequences = TokenBlock(*columns)


def test_what_was_routed_to_is_returned(generated):
    call, tokens, routing = generated
    expected = call(MEMORY, sequences_of(PROMPTS, 8, TOP_K), num_documents=4).doc_scores
    assert tokens.shape == (1, 2, NEW_TOKENS)
    best = np.argsort(-np.asarray(expected), axis=-1)[..., :TOP_K]
    np.testing.assert_array_equal(routing.top_docs, best)
    scores = np.take_along_axis(np.asarray(expected), best, axis=-1)
    np.testing.assert_allclose(routing.top_scores, scores, atol=1e-5)
    assert routing.doc_scores is None


def test_a_memory_on_many_devices_gives_the_same(generated, model, params):
    call, tokens, routing = generated
    mesh = make_mesh(MeshConfig(data=2, memory=2))
    memory = place_memory(call(MEMORY, num_documents=4, method="encode"), mesh)
    with jax.set_mesh(mesh):
        prompts = sequences_of(PROMPTS, 8, TOP_K)
        ours, our_routing = generate_greedy(model, params, prompts, memory, NEW_TOKENS)
    np.testing.assert_array_equal(ours, tokens)
    np.testing.assert_array_equal(our_routing.top_docs, routing.top_docs)
    np.testing.assert_allclose(our_routing.top_scores, routing.top_scores, atol=1e-5)
