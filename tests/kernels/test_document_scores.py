"""Document scores and their gradients, of every backend, are those of the reference."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa_jax.kernels.routing import api, document_scores, xla
from msa_jax.kernels.routing.reference import document_scores_reference
from tests.kernels.backends import IMPLEMENTATIONS, examples, on_cpu, require, running

DIMS, NUM_DOCUMENTS = 64, 9
SHAPES = st.sampled_from([(2, 5, 150), (1, 1, 7), (3, 12, 64)])
every_backend = pytest.mark.parametrize(
    ("implementation", "dtype"),
    [(name, dtype) for name in IMPLEMENTATIONS for dtype in ("float32", "bfloat16")],
)


@st.composite
def arguments(draw, dtype: str):
    """Chunks in any order, some of no document, some documents without chunks."""
    batch, tokens, num_chunks = draw(SHAPES)
    share = draw(st.sampled_from([0.0, 0.5, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return (
        jnp.asarray(rng.standard_normal((batch, tokens, DIMS)), dtype),
        jnp.asarray(rng.random((batch, tokens)) < share),
        jnp.asarray(rng.standard_normal((num_chunks, DIMS)), dtype),
        jnp.asarray(rng.integers(-1, NUM_DOCUMENTS, num_chunks)),
    )


@partial(jax.jit, static_argnums=0)
def scores_and_gradients(score, queries, mask, keys, chunk_doc):
    """Scores, and the gradients of a sum that weighs every one differently."""

    def total(queries, keys):
        scores = score(queries, mask, keys, chunk_doc, NUM_DOCUMENTS)
        weights = jnp.cos(jnp.arange(scores.size, dtype=jnp.float32)).reshape(scores.shape)
        return jnp.where(jnp.isfinite(scores), scores * weights, 0.0).sum(), scores

    (_, scores), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(queries, keys)
    return scores, *gradients


OURS = {name: partial(document_scores, implementation=name) for name in IMPLEMENTATIONS}


def expected(queries, mask, keys, chunk_doc):
    """Scores and gradients of the reference, in float32 throughout."""
    wide = (queries.astype(jnp.float32), mask, keys.astype(jnp.float32), chunk_doc)
    return scores_and_gradients(document_scores_reference, *on_cpu(wide))


def check_close(found, wanted, dtype):
    # Random numbers do not tie, so scores and gradients go to the same tokens and chunks. Of a
    # bfloat16 gradient the terms' weights are rounded, and the sum.
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5, atol=1e-4)
    tolerance = (1e-5, 1e-4) if dtype == "float32" else (1e-2, 5e-2)
    for ours, theirs in zip(found[1:], wanted[1:], strict=True):
        assert ours.dtype == dtype and theirs.dtype == jnp.float32
        np.testing.assert_allclose(np.asarray(ours, np.float32), theirs, *tolerance)


@every_backend
def test_scores_and_gradients(implementation, dtype):
    require(implementation, dtype)

    @examples(implementation, 15)
    @given(arguments(dtype))
    def check(sample):
        with running(implementation):
            found = scores_and_gradients(OURS[implementation], *sample)
        check_close(found, expected(*sample), dtype)

    check()


@pytest.mark.parametrize("num_chunks", [100, 128, 300, 512])
def test_tiles_change_nothing(monkeypatch, num_chunks):
    """Tiles that divide the chunks, leave a rest, or are larger than all of them."""
    rng = np.random.default_rng(num_chunks)
    sample = (
        jnp.asarray(rng.standard_normal((2, 3, DIMS)), jnp.float32),
        jnp.array([[True, True, False], [False, True, True]]),
        jnp.asarray(rng.standard_normal((num_chunks, DIMS)), jnp.float32),
        jnp.asarray(rng.integers(-1, NUM_DOCUMENTS, num_chunks)),
    )
    # New functions, since what was compiled with other tiles would be used again.
    whole = scores_and_gradients(lambda *x: document_scores(*x, implementation="xla"), *sample)
    monkeypatch.setattr(xla, "_MAX_TILE", 128)
    tiled = scores_and_gradients(lambda *x: document_scores(*x, implementation="xla"), *sample)
    check_close(tiled, whole, "float32")


def test_a_query_without_routing_tokens_scores_minus_infinity_and_learns_nothing():
    rng = np.random.default_rng(0)
    queries, keys = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in [(2, 3, 4), (6, 4)])
    mask = jnp.array([[False] * 3, [True] * 3])

    def total(queries):
        scores = document_scores(queries, mask, keys, jnp.arange(6) // 2, 3)
        return jnp.where(jnp.isfinite(scores), scores, 0).sum(), scores

    gradient, scores = jax.grad(total, has_aux=True)(queries)
    assert (scores[0] == -jnp.inf).all() and jnp.isfinite(scores[1]).all()
    assert (gradient[0] == 0).all() and (gradient[1] != 0).any()


def test_the_gradient_of_a_tie_goes_to_one_token():
    """As much arrives at the tokens together as left the score."""
    queries, keys = jnp.ones((1, 4, 2)), jnp.ones((1, 2))
    mask = jnp.array([[False, True, True, True]])

    def score(queries):
        return document_scores(queries, mask, keys, jnp.zeros(1, int), 1).sum()

    gradient = jax.grad(score)(queries)
    np.testing.assert_array_equal(gradient[0], [[0, 0], [1, 1], [0, 0], [0, 0]])


def test_memories_are_mapped_over_with_vmap_gradients_included():
    rng = np.random.default_rng(1)
    queries = jnp.asarray(rng.standard_normal((3, 2, 4, 8)), jnp.float32)
    mask = jnp.asarray(rng.random((3, 2, 4)) < 0.8).at[:, :, 0].set(True)
    keys = jnp.asarray(rng.standard_normal((3, 20, 8)), jnp.float32)
    chunk_doc = jnp.asarray(rng.integers(0, NUM_DOCUMENTS, (3, 20)))
    score = partial(scores_and_gradients, document_scores)
    together = jax.vmap(score)(queries, mask, keys, chunk_doc)
    for group in range(3):
        alone = score(*(x[group] for x in (queries, mask, keys, chunk_doc)))
        check_close([x[group] for x in together], alone, "float32")


@every_backend
def test_scores_of_chunks_repeat_to_the_bit(implementation, dtype):
    require(implementation, dtype)
    rng = np.random.default_rng(2)
    queries = jnp.asarray(rng.standard_normal((2, 9, DIMS)), dtype)
    keys = jnp.asarray(rng.standard_normal((300, DIMS)), dtype)
    mask = jnp.asarray(rng.random((2, 9)) < 0.7)
    with running(implementation):
        first, second = (api.chunk_scores(queries, mask, keys, implementation) for _ in range(2))
    np.testing.assert_array_equal(first, second)
