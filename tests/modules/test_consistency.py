"""The three calls agree with each other, however tokens are cut, padded and packed."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.core.routing import top_documents
from msa_jax.core.segments import PADDING, RESPONSE, TokenBlock
from msa_jax.modules.transformer import Transformer, init_cache
from tests.modules.tiny import (
    HEAD_LEN,
    POOLING,
    compiled,
    model_config,
    random_params,
    rows_of,
    sequences_of,
)

RNG = np.random.default_rng(0)
DOCUMENTS = [RNG.integers(64, size=length) for length in (5, 4, 3, 7, 6, 2)]
NUM_DOCUMENTS, TOP_K, LENGTH = len(DOCUMENTS), 2, 10
# Sequences of 10, 8 and 7 tokens, of which the last are responses.
SEQUENCES = [(RNG.integers(64, size=n), responses) for n, responses in ((10, 3), (8, 2), (7, 0))]
LAYOUT, ROW_TOKENS = [[0, 1], [2, 3], [4, 5]], 12
MEMORY = rows_of(DOCUMENTS, LAYOUT, ROW_TOKENS)
ACTIVE = sequences_of(SEQUENCES, LENGTH, TOP_K)
PRESENT = ACTIVE.doc_ids != PADDING


@pytest.fixture(scope="module")
def tiny():
    config = model_config()
    params = random_params(config)
    call = compiled(config, params)
    return SimpleNamespace(
        config=config,
        params=params,
        call=call,
        training=call(MEMORY, ACTIVE, num_documents=NUM_DOCUMENTS),
        memory=call(MEMORY, num_documents=NUM_DOCUMENTS, method="encode"),
    )


def prefill(config, call, active, memory, cache=None):
    if cache is None:
        cache = init_cache(config, *active.tokens.shape[:2], LENGTH)
    return call(active, cache, memory, method="prefill")


def assert_close(ours, expected):
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def assert_best_of(routing, doc_scores):
    """Prefill chose the best documents by the scores that training gives them."""
    scores, docs = top_documents(doc_scores, TOP_K)
    np.testing.assert_array_equal(routing.top_docs, docs)
    assert_close(routing.top_scores, scores)
    assert routing.doc_scores is None


def test_inference_gives_the_hidden_states_and_best_documents_of_training(tiny):
    hidden, _, routing = prefill(tiny.config, tiny.call, ACTIVE, tiny.memory)
    assert_close(hidden[PRESENT], tiny.training.hidden[PRESENT])
    assert_best_of(routing, tiny.training.doc_scores)


@pytest.mark.parametrize(
    ("router_layers", "runs"),
    [
        ((1,), {"plain_0": 1, "routed_1": 1, "plain_2": 1}),
        ((0, 2), {"routed_0": 1, "plain_1": 1, "routed_2": 1}),
    ],
)
def test_routers_may_be_in_any_layer(router_layers, runs):
    config = model_config(memory={"router_layers": router_layers})
    params = random_params(config)
    kernels = {name: params[name]["input_norm"]["scale"] for name in params if name[-1].isdigit()}
    assert {name: len(scale) for name, scale in kernels.items()} == runs
    assert all(("router" in params[run]["attention"]) == run.startswith("routed") for run in runs)
    call = compiled(config, params)
    training = call(MEMORY, ACTIVE, num_documents=NUM_DOCUMENTS)
    assert training.doc_scores.shape == (len(router_layers), 1, len(SEQUENCES), NUM_DOCUMENTS)
    memory = call(MEMORY, num_documents=NUM_DOCUMENTS, method="encode")
    hidden, _, _ = prefill(config, call, ACTIVE, memory)
    assert_close(hidden[PRESENT], training.hidden[PRESENT])


def piece(block, start, stop):
    return jax.tree.map(lambda x: x[..., start:stop], block)


def test_head_query_and_single_tokens_give_the_states_of_one_forward(tiny):
    """Head alone, query over memory, then the response token by token from the cache."""
    first = jax.tree.map(lambda x: x[:, :1], ACTIVE)
    answer = LENGTH - SEQUENCES[0][1]
    head, cache, nothing = prefill(tiny.config, tiny.call, piece(first, 0, HEAD_LEN), None)
    assert nothing is None
    query, cache, _ = prefill(
        tiny.config, tiny.call, piece(first, HEAD_LEN, answer), tiny.memory, cache
    )
    expected = tiny.training.hidden[:, :1]
    assert_close(jnp.concatenate([head, query], axis=2), expected[:, :, :answer])
    logits = tiny.call(expected, method="logits")
    for t in range(answer, LENGTH):
        token, position = first.tokens[..., t], first.segment_pos[..., t]
        ours, cache = tiny.call(token, position, cache, method="decode")
        assert_close(ours, logits[:, :, t])
    assert cache.length == LENGTH


def test_padding_at_either_side_changes_nothing(tiny):
    left = sequences_of(SEQUENCES, LENGTH, TOP_K, left_padding=True)
    present = left.doc_ids != PADDING
    training = tiny.call(MEMORY, left, num_documents=NUM_DOCUMENTS)
    assert_close(training.hidden[present], tiny.training.hidden[PRESENT])
    assert_close(training.doc_scores, tiny.training.doc_scores)
    hidden, _, _ = prefill(tiny.config, tiny.call, left, tiny.memory)
    assert_close(hidden[present], tiny.training.hidden[PRESENT])


@pytest.mark.parametrize("row", range(len(SEQUENCES)))
def test_a_sequence_of_a_ragged_batch_equals_itself_alone(tiny, row):
    length = len(SEQUENCES[row][0])
    alone = sequences_of([SEQUENCES[row]], length, TOP_K)
    training = tiny.call(MEMORY, alone, num_documents=NUM_DOCUMENTS)
    assert_close(training.hidden[0, 0], tiny.training.hidden[0, row, :length])
    assert_close(training.doc_scores[:, 0, 0], tiny.training.doc_scores[:, 0, row])


def test_a_memory_group_equals_itself_alone(tiny):
    """Two groups: the memory with its rows turned round, and the memory as it was."""
    turned = jax.tree.map(lambda x: x[:, ::-1], MEMORY)
    memory = jax.tree.map(lambda *x: np.concatenate(x), turned, MEMORY)
    active = jax.tree.map(lambda x: np.concatenate([x[:, ::-1], x]), ACTIVE)
    training = tiny.call(memory, active, num_documents=NUM_DOCUMENTS)
    assert_close(training.hidden[1][PRESENT[0]], tiny.training.hidden[PRESENT])
    assert_close(training.hidden[0, ::-1][PRESENT[0]], tiny.training.hidden[PRESENT])


def test_the_order_of_documents_does_not_matter(tiny):
    """Once moved and numbered as before, once numbered anew."""
    moved = rows_of(DOCUMENTS, [[5, 3], [1, 4], [2, 0]], ROW_TOKENS)
    training = tiny.call(moved, ACTIVE, num_documents=NUM_DOCUMENTS)
    assert_close(training.hidden[PRESENT], tiny.training.hidden[PRESENT])
    assert_close(training.doc_scores, tiny.training.doc_scores)
    order = [3, 5, 4, 1, 0, 2]
    renamed = rows_of([DOCUMENTS[m] for m in order], LAYOUT, ROW_TOKENS)
    training = tiny.call(renamed, ACTIVE, num_documents=NUM_DOCUMENTS)
    assert_close(training.hidden[PRESENT], tiny.training.hidden[PRESENT])
    assert_close(training.doc_scores, tiny.training.doc_scores[..., order])


def chunks_of(memory, document):
    own = np.asarray(memory.index.chunk_doc[0] == document)
    return jax.tree.map(lambda x: np.asarray(x)[:, 0, own], memory.layers)


@pytest.mark.parametrize("layout", [[[m] for m in range(6)], [[4, 2, 0], [5, 3, 1]]])
def test_pooled_chunks_do_not_depend_on_the_rows(tiny, layout):
    memory = rows_of(DOCUMENTS, layout, 8 * (6 // len(layout)))
    encoded = tiny.call(memory, num_documents=NUM_DOCUMENTS, method="encode")
    for document, tokens in enumerate(DOCUMENTS):
        ours, expected = chunks_of(encoded, document), chunks_of(tiny.memory, document)
        assert ours.content.values.shape[1] == -(-len(tokens) // POOLING)
        jax.tree.map(assert_close, ours, expected)


def without(memory, documents):
    """Memory rows from which documents are gone; the others keep number and place."""
    gone = np.isin(memory.doc_ids - 1, documents)
    return dataclasses.replace(memory, doc_ids=np.where(gone, PADDING, memory.doc_ids))


@pytest.mark.parametrize("excluded", [[2, 5], [0, 1, 3, 4, 5], list(range(6))])
def test_masked_documents_are_as_if_they_did_not_exist(tiny, excluded):
    """Also where fewer documents than top_k_docs are left, and where none is."""
    allowed = np.broadcast_to(~np.isin(np.arange(6), excluded), (1, len(SEQUENCES), 6))
    index = dataclasses.replace(tiny.memory.index, doc_mask=jnp.asarray(allowed))
    masked = dataclasses.replace(tiny.memory, index=index)
    hidden, _, routing = prefill(tiny.config, tiny.call, ACTIVE, masked)
    expected = tiny.call(without(MEMORY, excluded), ACTIVE, num_documents=NUM_DOCUMENTS)
    assert_close(hidden[PRESENT], expected.hidden[PRESENT])
    assert_best_of(routing, expected.doc_scores)
    assert not np.isin(routing.top_docs, excluded).any()


def test_a_mask_can_differ_from_query_to_query(tiny):
    best = np.asarray(tiny.training.doc_scores[0, 0]).argmax(-1)
    allowed = np.arange(NUM_DOCUMENTS) != best[:, None]
    index = dataclasses.replace(tiny.memory.index, doc_mask=jnp.asarray(allowed)[None])
    _, _, routing = prefill(
        tiny.config, tiny.call, ACTIVE, dataclasses.replace(tiny.memory, index=index)
    )
    assert not (routing.top_docs == best[:, None]).any()


def test_more_documents_than_there_are_can_be_asked_for(tiny):
    """Then every document is read, whatever its score."""
    everything = [
        model_config(memory={"top_k_docs": top_k}) for top_k in (NUM_DOCUMENTS, NUM_DOCUMENTS + 9)
    ]
    exact, clamped = (
        compiled(config, tiny.params)(MEMORY, ACTIVE, num_documents=NUM_DOCUMENTS)
        for config in everything
    )
    np.testing.assert_array_equal(clamped.hidden, exact.hidden)
    assert np.abs(exact.hidden - tiny.training.hidden)[PRESENT].max() > 1e-3


def response_loss(config, params):
    out = Transformer(config).apply({"params": params}, MEMORY, ACTIVE, NUM_DOCUMENTS)
    scores = jnp.where(jnp.isfinite(out.doc_scores), out.doc_scores, 0.0)
    hidden = jnp.where(ACTIVE.doc_ids[..., None] == RESPONSE, out.hidden.astype(jnp.float32), 0.0)
    return hidden.std() + scores.std()


def loss_and_gradients(config, params):
    return jax.jit(jax.value_and_grad(lambda params: response_loss(config, params)))(params)


def test_recomputation_changes_neither_values_nor_gradients(tiny):
    kept, some, most = (
        loss_and_gradients(model_config(remat=remat), tiny.params)
        for remat in ("nothing", "cheap", "all")
    )
    jax.tree.map(assert_close, some, kept)
    jax.tree.map(assert_close, most, kept)


def test_all_that_attention_reads_is_kept_for_the_backward_pass(tiny, capsys):
    """Else a fused kernel's normalisers would not be those of the keys that it is given again."""
    config = model_config(remat="cheap")
    jax.ad_checkpoint.print_saved_residuals(partial(response_loss, config), tiny.params)
    kept = capsys.readouterr().out
    groups, queries, length = ACTIVE.tokens.shape
    chosen = f"{groups},{queries},{TOP_K}"
    heads = f"{config.num_kv_heads},{config.head_dim}"
    slots = TOP_K * ROW_TOKENS // POOLING
    assert f"i32[{chosen}]" in kept
    assert f"f32[{groups},{queries},{slots},2,{heads}]" in kept
    assert f"f32[{groups},{queries},{length},{heads}]" in kept


def test_layers_one_after_another_train_like_a_loop_of_them(tiny):
    looped, unrolled = (
        loss_and_gradients(model_config(unroll_layers=unroll, remat="cheap"), tiny.params)
        for unroll in (False, True)
    )
    jax.tree.map(assert_close, unrolled, looped)


def test_bfloat16_computes_close_to_float32_with_float32_parameters(tiny):
    config = model_config(dtype="bfloat16")
    out = compiled(config, tiny.params)(MEMORY, ACTIVE, num_documents=NUM_DOCUMENTS)
    assert out.hidden.dtype == jnp.bfloat16 and out.doc_scores.dtype == jnp.float32
    ours, expected = (np.asarray(x, np.float32) for x in (out.hidden, tiny.training.hidden))
    assert np.isfinite(ours).all()
    assert np.linalg.norm((ours - expected)[PRESENT]) < 0.05 * np.linalg.norm(expected[PRESENT])
    np.testing.assert_allclose(out.doc_scores, tiny.training.doc_scores, atol=0.03)
    value, gradients = loss_and_gradients(config, tiny.params)
    assert np.isfinite(value)
    for gradient in jax.tree.leaves(gradients):
        assert gradient.dtype == jnp.float32 and np.isfinite(gradient).all()


def test_a_bfloat16_memory_and_cache_are_bfloat16(tiny):
    config = model_config(dtype="bfloat16")
    memory = jax.eval_shape(
        lambda rows: Transformer(config).apply({"params": tiny.params}, rows, 6, method="encode"),
        TokenBlock(*jax.tree.leaves(MEMORY)),
    )
    cache = jax.eval_shape(lambda: init_cache(config, 1, 2, LENGTH))
    for x in jax.tree.leaves((memory.layers, cache.runs)):
        assert x.dtype == jnp.bfloat16
