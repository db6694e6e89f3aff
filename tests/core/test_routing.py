from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_jax.core import routing
from msa_jax.core.index import memory_index
from msa_jax.core.losses import info_nce
from msa_jax.kernels.routing import document_scores, xla

HEAD_DIM, NUM_DOCUMENTS = 4, 4
SIMILARITIES = ["cosine", "scaled_dot"]


def grouped_scores(queries, query_mask, pooled, chunk_doc, similarity):
    """Scores as the model computes them: heads of a group summed first."""
    grouped = routing.routing_queries(queries, pooled.shape[-2], similarity)
    keys = routing.routing_keys(pooled, similarity)
    grouped, keys = (x.reshape(*x.shape[:-2], -1) for x in (grouped, keys))
    return document_scores(grouped, query_mask, keys, chunk_doc, NUM_DOCUMENTS)


@partial(jax.jit, static_argnames="similarity")
def both_scores(queries, query_mask, pooled, chunk_doc, similarity):
    inputs = (queries, query_mask, pooled, chunk_doc)
    per_head = routing.per_head_document_scores(*inputs, NUM_DOCUMENTS, similarity)
    return grouped_scores(*inputs, similarity), per_head


def reference_scores(queries, query_mask, pooled, chunk_doc, similarity):
    """The formula in plain loops and float64; -inf for what nothing scores."""
    queries, pooled = queries.astype(np.float64), pooled.astype(np.float64)
    if similarity == "cosine":
        queries = queries / np.linalg.norm(queries, axis=-1, keepdims=True)
        pooled = pooled / np.linalg.norm(pooled, axis=-1, keepdims=True)
    else:
        queries = queries / np.sqrt(HEAD_DIM)
    num_heads = queries.shape[2]
    group_size = num_heads // pooled.shape[1]
    scores = np.full((len(queries), NUM_DOCUMENTS), -np.inf)
    for b, t in np.argwhere(query_mask):
        for c, document in enumerate(chunk_doc):
            heads = [queries[b, t, n] @ pooled[c, n // group_size] for n in range(num_heads)]
            if document >= 0:
                scores[b, document] = max(scores[b, document], np.mean(heads))
    return scores


@st.composite
def memories(draw):
    """Queries, some tokens of which route, over chunks in any order, some of no document."""
    num_heads, num_kv_heads = draw(st.sampled_from([(1, 1), (4, 1), (4, 2), (3, 3)]))
    batch_size, length = draw(st.sampled_from([(1, 1), (2, 3)]))
    num_chunks = draw(st.sampled_from([1, 9]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    owners = st.integers(-1, NUM_DOCUMENTS - 1)
    chunk_doc = draw(st.lists(owners, min_size=num_chunks, max_size=num_chunks))
    return (
        rng.standard_normal((batch_size, length, num_heads, HEAD_DIM)).astype(np.float32),
        rng.random((batch_size, length)) < 0.7,
        rng.standard_normal((num_chunks, num_kv_heads, HEAD_DIM)).astype(np.float32),
        np.array(chunk_doc, np.int32),
    )


@settings(max_examples=25, deadline=None)
@given(memory=memories(), similarity=st.sampled_from(SIMILARITIES))
def test_summing_heads_first_gives_the_scores_of_the_formula(memory, similarity):
    grouped, per_head = both_scores(*memory, similarity)
    expected = reference_scores(*memory, similarity)
    np.testing.assert_allclose(per_head, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grouped, expected, rtol=1e-5, atol=1e-5)


def random_memory(num_chunks, num_documents=NUM_DOCUMENTS):
    rng = np.random.default_rng(num_chunks)
    queries = rng.standard_normal((2, 3, 4, HEAD_DIM)).astype(np.float32)
    pooled = rng.standard_normal((num_chunks, 2, HEAD_DIM)).astype(np.float32)
    chunk_doc = np.sort(rng.integers(num_documents, size=num_chunks))
    return queries, np.array([[1, 1, 0], [0, 1, 1]], bool), pooled, chunk_doc


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of four chunks."""
    monkeypatch.setattr(xla, "_MIN_TILE", 4)
    monkeypatch.setattr(xla, "_MAX_TILE", 4)


def scores_and_gradients(num_chunks):
    queries, query_mask, pooled, chunk_doc = random_memory(num_chunks)
    weights = jnp.arange(2 * NUM_DOCUMENTS, dtype=jnp.float32).reshape(2, NUM_DOCUMENTS)

    def total(queries, pooled):
        scores = grouped_scores(queries, query_mask, pooled, chunk_doc, "cosine")
        return jnp.where(jnp.isfinite(scores), scores * weights, 0.0).sum(), scores

    (_, scores), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(
        queries, pooled
    )
    return scores, *gradients


@pytest.mark.parametrize("num_chunks", [3, 8, 10])
def test_tiles_change_neither_scores_nor_gradients(num_chunks, request):
    whole = scores_and_gradients(num_chunks)
    request.getfixturevalue("small_tiles")
    for tiled, expected in zip(scores_and_gradients(num_chunks), whole, strict=True):
        np.testing.assert_allclose(tiled, expected, atol=1e-5)


def test_the_scores_of_all_tokens_and_chunks_are_never_in_memory_at_once(small_tiles):
    inputs = random_memory(40)
    program = str(jax.make_jaxpr(lambda *x: grouped_scores(*x, "cosine"))(*inputs))
    assert "f32[2,3,4]" in program
    assert "f32[2,3,40]" not in program


def test_groups_of_memories_can_be_mapped():
    """Scores and gradients of several memories at once are those of each alone."""
    groups = [random_memory(9) for _ in range(2)]
    groups[1] = (-groups[1][0], *groups[1][1:])

    def loss(queries, query_mask, pooled, chunk_doc):
        scores = grouped_scores(queries, query_mask, pooled, chunk_doc, "cosine")
        return jnp.where(jnp.isfinite(scores), scores, 0.0).sum()

    both = jax.vmap(jax.value_and_grad(loss, argnums=(0, 2)))
    mapped = jax.jit(both)(*(np.stack(x) for x in zip(*groups, strict=True)))
    for i, group in enumerate(groups):
        alone = jax.jit(jax.value_and_grad(loss, argnums=(0, 2)))(*group)
        jax.tree.map(
            lambda x, y, i=i: np.testing.assert_allclose(x[i], y, atol=1e-5), mapped, alone
        )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_zero_vectors_have_finite_gradients(dtype, similarity):
    """A chunk of padding pools to zero; a plain division by the norm would give NaN."""
    query_mask, chunk_doc = jnp.array([[True, True, False]]), jnp.array([0, 1, 1, -1])

    def loss(queries, pooled):
        scores = grouped_scores(queries, query_mask, pooled, chunk_doc, similarity)
        positives = jnp.arange(NUM_DOCUMENTS)[None] == 0
        return info_nce(scores, positives, 0.1)[0].sum()

    zeros = jnp.zeros((1, 3, 4, HEAD_DIM), dtype), jnp.zeros((4, 2, HEAD_DIM), dtype)
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*zeros)
    assert np.isfinite(value)
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in gradients)


def test_a_query_without_routing_tokens_scores_minus_infinity_and_learns_nothing():
    queries, _, pooled, chunk_doc = random_memory(9)

    def loss(pooled):
        scores = grouped_scores(queries, jnp.zeros((2, 3), bool), pooled, chunk_doc, "cosine")
        return info_nce(scores, scores == scores, 0.1)[0].sum(), scores

    gradient, scores = jax.grad(loss, has_aux=True)(jnp.asarray(pooled))
    np.testing.assert_array_equal(scores, -np.inf)
    np.testing.assert_array_equal(gradient, 0)


def test_normalised_bfloat16_has_unit_length_in_float32():
    unit = routing.normalize(jnp.full((1, 300), 1e-3, jnp.bfloat16))
    assert unit.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(unit), 1.0, rtol=1e-5)


def test_ties_go_to_the_lower_document():
    scores = jnp.array([[0.5, 0.9, 0.5, 0.9, -jnp.inf]])
    _, documents = routing.top_documents(scores, 3)
    np.testing.assert_array_equal(documents, [[1, 3, 0]])


def test_more_documents_than_exist_are_clamped_and_absent_ones_are_minus_one():
    scores, documents = routing.top_documents(jnp.array([[0.1, -jnp.inf, 0.3]]), 16)
    np.testing.assert_array_equal(documents, [[2, 0, -1]])
    np.testing.assert_array_equal(scores, np.array([[0.3, 0.1, -np.inf]], np.float32))


@st.composite
def chunk_tables(draw):
    """Documents of 0 to 3 chunks in any order, padding between them; some of them chosen."""
    sizes = draw(st.lists(st.integers(0, 3), min_size=NUM_DOCUMENTS, max_size=NUM_DOCUMENTS))
    chunk_doc: list[int] = []
    for document in draw(st.permutations(range(NUM_DOCUMENTS))):
        chunk_doc += [-1] * draw(st.integers(0, 1)) + [document] * sizes[document]
    chunk_doc += [-1] * (16 - len(chunk_doc))
    chosen = draw(st.permutations([-1, *range(NUM_DOCUMENTS)]))[:2]
    return chunk_doc, chosen


@settings(max_examples=50, deadline=None)
@given(chunk_tables())
def test_context_slots_hold_the_chunks_of_the_chosen_documents(table):
    chunk_doc, chosen = table

    @jax.jit
    def slots_of(chunk_doc, chosen):
        index = memory_index(chunk_doc[None], NUM_DOCUMENTS, max_document_chunks=3)
        return routing.context_slots(index.first_chunk[0], index.num_chunks[0], chosen, 3)

    slots, filled = slots_of(jnp.array(chunk_doc), jnp.array([chosen]))
    for k in range(2):
        wanted = [c for c, owner in enumerate(chunk_doc) if owner == chosen[k] != -1]
        own = slice(3 * k, 3 * k + 3)
        assert slots[0, own][filled[0, own]].tolist() == wanted
        assert filled[0, own].tolist() == [i < len(wanted) for i in range(3)]


@settings(max_examples=30, deadline=None)
@given(
    scores=st.lists(st.sampled_from([-np.inf, 0.0, 0.5, 1.0]), min_size=6, max_size=6),
    positives=st.lists(st.booleans(), min_size=6, max_size=6),
    top_n=st.sampled_from([1, 3, 16]),
)
def test_recall_is_the_share_of_positives_found(scores, positives, top_n):
    ours = jax.jit(routing.recall_at, static_argnums=2)(
        jnp.array(scores), jnp.array(positives), top_n
    )
    best = sorted(range(6), key=lambda document: (-scores[document], document))[:top_n]
    wanted = [document for document in range(6) if positives[document]]
    expected = len(set(best) & set(wanted)) / len(wanted) if wanted else 0.0
    assert ours == pytest.approx(expected)


def pairs_in_common(scores, top_n):
    """Choices that ordered pairs of queries share, and the documents that exist, by sets."""
    chosen = []
    for row in scores:
        listed = sorted(range(len(row)), key=lambda document: (-row[document], document))[:top_n]
        if max(row) > -np.inf:
            chosen.append({document for document in listed if row[document] > -np.inf})
    return sum(len(a & b) for a in chosen for b in chosen) - sum(map(len, chosen)), len(chosen)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([2, 5, 1000]),
    top_n=st.sampled_from([1, 3, 7]),
)
def test_collapse_is_what_pairs_of_queries_share_beyond_chance(seed, levels, top_n):
    """Groups with fewer documents, fewer queries and tied scores, pooled by layer."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (2, 3, 4, 6)).astype(np.float32)
    scores[:, 1, :, rng.permutation(6)[:2]] = -np.inf
    scores[:, 2, 3] = -np.inf
    shared, expected, possible = np.zeros((3, 2))
    for layer, group in np.ndindex(2, 3):
        found, queries = pairs_in_common(scores[layer, group].tolist(), top_n)
        documents = 4 if group == 1 else 6
        chosen = min(top_n, documents)
        pairs = queries * (queries - 1)
        shared[layer] += found
        expected[layer] += pairs * chosen * chosen / documents
        possible[layer] += pairs * chosen
    ours = jax.jit(routing.collapse, static_argnums=1)(scores, top_n)
    if top_n >= 6:
        np.testing.assert_array_equal(ours, 0)
    else:
        np.testing.assert_allclose(ours, (shared - expected) / (possible - expected), atol=1e-5)


def test_collapse_is_one_for_the_same_documents_and_near_zero_for_others():
    rng = np.random.default_rng(0)
    same = np.broadcast_to(rng.permutation(200), (40, 200)) + rng.uniform(0, 0.5, (40, 200))
    constant = np.zeros((40, 200))
    random = rng.uniform(size=(40, 200))
    distinct = -np.abs(np.arange(200) - 5 * np.arange(40)[:, None])
    values = routing.collapse(jnp.array([same, constant, random, distinct]), 5)
    assert values[0] == values[1] == 1
    assert values[2] == pytest.approx(0, abs=0.02)
    assert values[3] < 0.01


def test_collapse_of_a_single_query_is_zero():
    np.testing.assert_array_equal(routing.collapse(jnp.zeros((2, 3, 1, 9)), 4), 0)
