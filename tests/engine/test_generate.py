"""Generating in batches equals the training forward, token by token."""

import jax
import numpy as np
import pytest

from msa_jax.engine.decoding import choose
from msa_jax.engine.generate import Generator
from msa_jax.engine.sampling import SamplingConfig
from msa_jax.memory.placement import place_memory
from msa_jax.modules.state import Memory
from msa_jax.modules.transformer import Transformer
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from tests.modules.tiny import compiled, model_config, random_params, rows_of, sequences_of

# More than one call's steps, and more than the rooms of some tests.
NEW_TOKENS, TOP_K = 40, 2
RNG = np.random.default_rng(0)
MEMORY = rows_of([RNG.integers(64, size=n) for n in (5, 3, 7, 2)], [[0, 1], [2, 3]], 12)
PROMPTS = [RNG.integers(64, size=n) for n in (8, 6, 9)]


@pytest.fixture(scope="module")
def model():
    return Transformer(model_config())


@pytest.fixture(scope="module")
def params(model):
    return random_params(model.config)


@pytest.fixture(scope="module")
def call(model, params):
    return compiled(model.config, params)


@pytest.fixture(scope="module")
def memory(call):
    return call(MEMORY, num_documents=4, method="encode")


@pytest.fixture(scope="module")
def generator(model, params):
    return Generator(model, params)


def prompt(tokens, response=1):
    block = sequences_of([(tokens, response)], len(tokens), TOP_K)
    return jax.tree.map(lambda x: x[0, 0], block)


@pytest.fixture(scope="module")
def session_and_tokens(generator, memory):
    session = generator.start([prompt(tokens) for tokens in PROMPTS], memory)
    return session, session.complete(NEW_TOKENS)


@pytest.fixture(scope="module")
def tokens(session_and_tokens):
    return session_and_tokens[1]


def logits_of(call, sequences):
    """Of the training forward over memory and sequences, before their last padding."""
    longest = max(len(tokens) for tokens, _ in sequences)
    block = sequences_of(sequences, longest, TOP_K)
    return np.asarray(call(call(MEMORY, block, num_documents=4).hidden, method="logits"))[0]


def test_each_token_is_the_likeliest_of_a_full_forward(call, tokens):
    assert [len(own) for own in tokens] == [NEW_TOKENS] * len(PROMPTS)
    whole = [np.concatenate(pair) for pair in zip(PROMPTS, tokens, strict=True)]
    logits = logits_of(call, [(own, 1 + NEW_TOKENS) for own in whole])
    for row, (start, own) in enumerate(zip(PROMPTS, tokens, strict=True)):
        predicted = logits[row, len(start) - 1 : len(start) - 1 + NEW_TOKENS]
        np.testing.assert_array_equal(predicted.argmax(axis=-1), own)


def test_layers_that_are_not_scanned_give_the_same(params, tokens):
    """Of three layers, the last two routed, so that there are runs of one and of two."""
    config = model_config(scan_layers=False)
    split = {name: value for name, value in params.items() if name != "routed_1"}
    for layer in range(2):
        split[f"routed_{1 + layer}"] = jax.tree.map(
            lambda x, at=slice(layer, layer + 1): x[at], params["routed_1"]
        )
    memory = compiled(config, split)(MEMORY, num_documents=4, method="encode")
    session = Generator(Transformer(config), split).start([prompt(own) for own in PROMPTS], memory)
    session.extend([own[:1] for own in tokens])
    for own, expected in zip(session.complete(NEW_TOKENS - 1), tokens, strict=True):
        np.testing.assert_array_equal(own, expected[1:])


def test_what_was_routed_to_is_returned(call, session_and_tokens):
    session, _ = session_and_tokens
    block = sequences_of([(own, 1) for own in PROMPTS], 9, TOP_K)
    expected = np.asarray(call(MEMORY, block, num_documents=4).doc_scores)[:, 0]
    best = np.argsort(-expected, axis=-1)[..., :TOP_K]
    np.testing.assert_array_equal(session.routing.top_docs, best)
    scores = np.take_along_axis(expected, best, axis=-1)
    np.testing.assert_allclose(session.routing.top_scores, scores, atol=1e-5)


def test_more_documents_can_be_listed_than_are_attended_to(call, generator, memory, tokens):
    session = generator.start([prompt(own) for own in PROMPTS], memory, search_docs=3)
    block = sequences_of([(own, 1) for own in PROMPTS], 9, TOP_K)
    expected = np.asarray(call(MEMORY, block, num_documents=4).doc_scores)[:, 0]
    np.testing.assert_array_equal(session.routing.top_docs, np.argsort(-expected, axis=-1)[..., :3])
    assert [own[0] for own in session.complete(1)] == [own[0] for own in tokens]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_gives_what_each_sequence_gives_alone(generator, memory, temperature):
    sampling = SamplingConfig(temperature=temperature, top_p=0.9, seed=3)
    seeds = [5, 6, 7]
    together = generator.start(
        [prompt(own) for own in PROMPTS], memory, sampling=sampling, row_seeds=seeds
    ).complete(20)
    for row, own in enumerate(PROMPTS):
        alone = generator.start([prompt(own)], memory, sampling=sampling, row_seeds=[seeds[row]])
        np.testing.assert_array_equal(alone.complete(20)[0], together[row])


def test_sequences_are_extended_and_go_on_each_for_itself(call, generator, memory, tokens):
    """One row generates, another is given tokens, the third waits: padding leaves no trace.

    There is not room for all of it, so that the cache grows.
    """
    session = generator.start([prompt(own) for own in PROMPTS], memory, room=20)
    first = session.complete(5, rows=[0])
    assert [len(own) for own in first] == [5, 0, 0]
    session.extend([[], [7, 9, 11, 13, 15], []])
    session.extend([[], [], []])
    rest = session.complete(NEW_TOKENS - 5)
    np.testing.assert_array_equal(np.concatenate([first[0], rest[0]]), tokens[0])
    np.testing.assert_array_equal(rest[2], tokens[2][: NEW_TOKENS - 5])
    given = np.concatenate([PROMPTS[1], [7, 9, 11, 13, 15]])
    logits = logits_of(call, [(given, 6)])
    assert logits[0, -1].argmax() == rest[1][0]


def test_a_sequence_ends_after_its_end(generator, memory, tokens):
    """Ends of different lengths; the shortest prefix that ends with one is what comes out."""
    ends = [tokens[0][2:5].tolist(), tokens[2][18:20].tolist(), [64]]
    expected = [shortest_with_end(own, ends) for own in tokens]
    session = generator.start([prompt(own) for own in PROMPTS], memory)
    ours = session.complete(NEW_TOKENS, ends)
    assert len(expected[0]) <= 5 and len(expected[2]) <= 20
    for own, wanted in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(own, wanted)


def shortest_with_end(tokens, ends):
    tokens = tokens.tolist()
    for length in range(1, len(tokens) + 1):
        if any(tokens[:length][-len(end) :] == end for end in ends):
            return tokens[:length]
    return tokens


def test_a_sequence_that_the_caller_finishes_yields_nothing_more(generator, memory, tokens):
    session = generator.start([prompt(own) for own in PROMPTS], memory)
    blocks = []
    for block in session.decode(NEW_TOKENS):
        blocks.append(block)
        session.finish(0)
    assert len(blocks) > 1 and len(blocks[0][0]) < NEW_TOKENS
    assert all(len(block[0]) == 0 for block in blocks[1:])
    np.testing.assert_array_equal(np.concatenate([block[1] for block in blocks]), tokens[1])


def test_nothing_is_computed_after_the_last_sequence_ends(generator, memory, tokens):
    session = generator.start([prompt(PROMPTS[0])], memory)
    blocks = list(session.decode(200, ends=[tokens[0][:1].tolist()]))
    assert len(blocks) <= 2 and sum(len(block[0]) for block in blocks) == 1


def test_the_likeliest_of_the_allowed_tokens_is_chosen(call, generator, memory):
    session = generator.start([prompt(own) for own in PROMPTS], memory)
    allowed = [np.array([3, 9, 30, 61]), None, np.array([12])]
    chosen = session.choose(allowed)
    logits = logits_of(call, [(PROMPTS[0], 1)])[0, -1]
    assert chosen == [allowed[0][logits[allowed[0]].argmax()], None, 12]
    assert session.choose([None, None, None]) == [None] * 3


def test_biases_count_as_logits(generator, memory):
    """Just too little for the least likely token in one row, just enough in another."""
    session = generator.start([prompt(own) for own in PROMPTS], memory)
    allowed = np.array([3, 9, 30])
    logits = session.logits[:, allowed]
    best, worst = logits.argmax(axis=-1), logits.argmin(axis=-1)
    margins = np.ptp(logits, axis=-1)
    assert session.choose([allowed] * 3) == allowed[best].tolist()
    num_programs = choose._cache_size()
    biases = [np.zeros(3), None, np.zeros(3)]
    biases[0][worst[0]], biases[2][worst[2]] = margins[0] - 1e-3, margins[2] + 1e-3
    expected = [allowed[best[0]], allowed[best[1]], allowed[worst[2]]]
    assert session.choose([allowed] * 3, biases) == expected
    assert choose._cache_size() == num_programs


def test_documents_that_a_mask_leaves_out_are_not_routed_to(generator, memory):
    """Five prompts, of which the batch makes six."""
    prompts = [prompt(PROMPTS[row % 3]) for row in range(5)]
    mask = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1]], bool)
    for rows in (mask, mask[:1]):
        session = generator.start(prompts, masked(memory, rows[None]))
        for row, allowed in enumerate(np.broadcast_to(rows, mask.shape)):
            found = session.routing.top_docs[:, row]
            assert set(found[found >= 0].tolist()) <= set(np.flatnonzero(allowed).tolist())
            assert (found >= 0).sum(axis=-1).tolist() == [min(allowed.sum(), TOP_K)] * 2


def masked(memory, doc_mask):
    index = memory.index
    return Memory(memory.layers, type(index)(**{**vars(index), "doc_mask": doc_mask}))


def test_without_memory_nothing_is_routed_to(generator):
    session = generator.start([prompt(PROMPTS[0])], None)
    assert session.routing is None
    assert session.choose([np.array([5])]) == [5]


def test_a_memory_on_many_devices_gives_the_same(model, params, memory, session_and_tokens):
    mesh = make_mesh(MeshConfig(data=2, memory=2))
    generator = Generator(model, params, mesh)
    session = generator.start([prompt(own) for own in PROMPTS], place_memory(memory, mesh))
    expected, tokens = session_and_tokens
    for own, wanted in zip(session.complete(NEW_TOKENS), tokens, strict=True):
        np.testing.assert_array_equal(own, wanted)
    np.testing.assert_array_equal(session.routing.top_docs, expected.routing.top_docs)
    np.testing.assert_allclose(session.routing.top_scores, expected.routing.top_scores, atol=1e-5)
