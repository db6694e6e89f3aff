"""The best documents are found exactly, however chunks, groups and documents fall together."""

from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from msa_jax.kernels.routing import selection
from msa_jax.kernels.routing.selection import select_documents
from tests.kernels.memories import random_documents

# Chunks, documents asked for, and lengths of documents: shorter than a group and longer.
FEW_SIZES = st.sampled_from(
    [(300, 3, "short"), (400, 2, "mixed"), (500, 5, "one"), (90, 16, "one")]
)
ANY_SIZE = st.tuples(
    st.integers(1, 800), st.integers(1, 20), st.sampled_from(["one", "short", "mixed", "long"])
)
# Scores that tie often, and the score of chunks that may not be chosen.
FEW_SCORES = np.array([0.0, -0.0, 1.0, 2.0, -np.inf], np.float32)


def sorted_documents(scores, chunk_doc, top_n):
    """(score, document) of the best documents, by sorting all of them."""
    best: dict[int, float] = {}
    for score, document in zip(scores.tolist(), chunk_doc.tolist(), strict=True):
        if document >= 0 and score > -np.inf:
            best[document] = max(score, best.get(document, -np.inf))
    return sorted(((score, document) for document, score in best.items()), key=_rank)[:top_n]


def _rank(item):
    return -item[0], item[1]


def check_selection(scores, chunk_doc, top_n, bound, select):
    values, docs, chunks = map(np.asarray, select(scores, chunk_doc, top_n, bound))
    for row, row_scores in enumerate(scores):
        wanted = sorted_documents(row_scores, chunk_doc, top_n)
        count = len(wanted)
        found = zip(values[row].tolist(), docs[row].tolist(), strict=True)
        assert list(found)[:count] == wanted
        assert (values[row, count:] == -np.inf).all() and (docs[row, count:] == -1).all()
        np.testing.assert_array_equal(chunk_doc[chunks[row, :count]], docs[row, :count])


@st.composite
def memories(draw, sizes):
    num_chunks, top_n, lengths = draw(sizes)
    gaps = draw(st.sampled_from([0.0, 0.3, 1.0]))
    allowed = draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
    distinct = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    chunk_doc, bound = random_documents(rng, num_chunks, lengths, gaps)
    if distinct:
        scores = rng.permutation(2 * num_chunks).reshape(2, num_chunks).astype(np.float32)
    else:
        scores = rng.choice(FEW_SCORES, (2, num_chunks))
    allowed = (rng.random(scores.shape) < allowed) & (chunk_doc >= 0)
    scores = np.where(allowed, scores, -np.inf).astype(np.float32)
    return scores, chunk_doc, top_n, bound


@pytest.mark.parametrize("group_sizes", [(128,), (512, 16), (8, 2), (3,), (1,)])
def test_the_choice_is_exact(group_sizes):
    """Two levels of groups, one, and groups of one chunk, over scores with and without ties."""
    select = jax.jit(lambda *x: select_documents(*x), static_argnums=(2, 3))

    @settings(max_examples=30, deadline=None)
    @given(memories(FEW_SIZES))
    def check(memory):
        with mock.patch.object(selection, "GROUP_SIZES", group_sizes):
            check_selection(*memory, select)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("group_sizes", [(512, 16), (8, 2)])
def test_the_choice_is_exact_at_any_size(group_sizes):
    @settings(max_examples=100, deadline=None)
    @given(memories(ANY_SIZE))
    def check(memory):
        with mock.patch.object(selection, "GROUP_SIZES", group_sizes):
            check_selection(*memory, select_documents)

    check()


def test_a_real_memory_goes_through_both_levels():
    """At the size and with the groups of production, scores often equal."""
    rng = np.random.default_rng(0)
    chunk_doc, bound = random_documents(rng, 60_000, "short", 0.1)
    scores = rng.integers(0, 500, (2, 60_000)).astype(np.float32)
    scores[:, chunk_doc < 0] = -np.inf
    select = jax.jit(select_documents, static_argnums=(2, 3))
    check_selection(scores, chunk_doc, 16, bound, select)


def test_documents_whose_best_chunks_share_a_group_are_all_found():
    """The bound on groups is reached, not passed: all the best lie side by side or far apart."""
    chunk_doc = np.arange(4096) // 2
    select = jax.jit(select_documents, static_argnums=(2, 3))
    for best in (np.arange(0, 32), np.arange(0, 4096, 128), np.arange(127, 4096, 128)):
        scores = np.zeros((1, 4096), np.float32)
        scores[0, best] = 1 + np.arange(len(best))[::-1]
        check_selection(scores, chunk_doc, 16, 2, select)
        check_selection(np.minimum(scores, 1), chunk_doc, 16, 2, select)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.5]), min_size=40, max_size=40),
    st.sampled_from([1, 7, 40]),
)
def test_counting_ranks_is_sorting_and_zeros_of_both_signs_tie(values, k):
    x = jnp.asarray(values, jnp.float32).reshape(2, 20)[:, : max(k, 20)]
    k = min(k, 20)
    at = np.argsort(-np.asarray(x), axis=1, kind="stable")[:, :k]
    wanted = np.take_along_axis(np.asarray(x), at, axis=1), at
    for way in (selection._top_k_by_counting, selection.top_k_by_sorting):
        for ours, theirs in zip(jax.jit(way, static_argnums=1)(x, k), wanted, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_no_sort_is_as_wide_as_the_memory():
    """What is sorted are group maxima and what is in the best groups."""
    select = partial(select_documents, top_n=16, max_document_chunks=4)
    shapes = (
        jax.ShapeDtypeStruct((1, 1_000_000), "float32"),
        jax.ShapeDtypeStruct((1_000_000,), "int32"),
    )
    program = jax.make_jaxpr(select)(*shapes)
    widest = max(
        equation.invars[0].aval.shape[-1]
        for equation in _equations(program.jaxpr)
        if equation.primitive.name in ("top_k", "sort")
    )
    assert widest < 30_000


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner)
