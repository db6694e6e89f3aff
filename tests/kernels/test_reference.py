"""The judge is judged: against loops over queries, tokens, chunks and documents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.kernels.routing import RoutingKeys
from msa_jax.kernels.routing.reference import document_scores_reference, route_reference


def random_arguments(seed):
    rng = np.random.default_rng(seed)
    queries = rng.integers(-3, 4, (3, 4, 5)).astype(np.float32)
    keys = rng.integers(-3, 4, (12, 5)).astype(np.float32)
    chunk_doc = np.array([0, 0, -1, 2, 3, 3, 3, -1, -1, 6, 7, 7])
    mask = rng.random((3, 4)) < 0.6
    mask[1] = False
    return tuple(map(jnp.asarray, (queries, mask, keys, chunk_doc)))


def looped_scores(queries, mask, keys, chunk_doc, num_documents):
    scores = np.full((len(queries), num_documents), -np.inf, np.float32)
    for b, t in np.argwhere(np.asarray(mask)):
        for c, document in enumerate(chunk_doc.tolist()):
            if document >= 0:
                product = float(queries[b, t] @ keys[c])
                scores[b, document] = max(scores[b, document], product)
    return scores


@pytest.mark.parametrize("seed", range(3))
def test_document_scores(seed):
    arguments = random_arguments(seed)
    scores = document_scores_reference(*arguments, 9)
    np.testing.assert_array_equal(scores, looped_scores(*arguments, 9))


@pytest.mark.parametrize("seed", range(3))
def test_route(seed):
    *arguments, chunk_doc = random_arguments(seed)
    doc_mask = jnp.arange(8) != 3
    scores, docs = route_reference(*arguments, chunk_doc, top_k_docs=6, doc_mask=doc_mask)
    looped = looped_scores(*arguments, chunk_doc, 8)
    for b in range(3):
        allowed = [m for m in range(8) if doc_mask[m] and looped[b, m] > -np.inf]
        best = sorted(allowed, key=lambda m: (-looped[b, m], m))[:6]
        missing = 6 - len(best)
        assert docs[b].tolist() == best + [-1] * missing
        assert scores[b].tolist() == [looped[b, m] for m in best] + [-np.inf] * missing


def test_eight_bit_keys_count_with_their_scale_and_exact_ones_decide():
    queries, mask = jnp.array([[[127.0], [0.0]]]), jnp.ones((1, 2), bool)
    keys = RoutingKeys(jnp.array([[1], [2], [3]], jnp.int8), jnp.array([4.0, 1.0, 0.5]))
    options = {"top_k_docs": 1}
    scores, docs = route_reference(queries, mask, keys, jnp.arange(3), **options)
    assert (scores.tolist(), docs.tolist()) == ([[508.0]], [[0]])
    # The worst of five by 8 bits is none of the four candidates, however good it is.
    values, exact = jnp.array([[5], [4], [3], [2], [1]], jnp.int8), jnp.arange(5.0)[:, None]
    keys = RoutingKeys(values, jnp.ones(5), exact)
    scores, docs = route_reference(queries, mask, keys, jnp.arange(5), **options)
    assert (scores.tolist(), docs.tolist()) == ([[381.0]], [[3]])


def test_nothing_gives_nothing():
    scores, docs = route_reference(
        jnp.ones((1, 0, 2)),
        jnp.ones((1, 0), bool),
        jnp.ones((0, 2)),
        jnp.zeros(0, jnp.int32),
        top_k_docs=2,
    )
    assert (scores.tolist(), docs.tolist()) == ([[-np.inf] * 2], [[-1, -1]])
    assert jax.eval_shape(lambda: scores).dtype == jnp.float32
