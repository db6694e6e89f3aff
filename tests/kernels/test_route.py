"""Every backend gives the documents and scores of the reference, over memories of all kinds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_jax.kernels.routing import RoutingKeys, quantize_keys, route
from msa_jax.kernels.routing.reference import route_reference
from tests.kernels.backends import DTYPES, IMPLEMENTATIONS, examples, on_cpu, require, running
from tests.kernels.memories import ANY_SHAPE, EIGHT_BITS, Sample, samples, whole_numbers

DIMS = 64
EVERY_BACKEND = [
    pytest.param(implementation, dtype, id=f"{implementation}-{dtype}")
    for implementation in IMPLEMENTATIONS
    for dtype in DTYPES
]
every_backend = pytest.mark.parametrize(("implementation", "dtype"), EVERY_BACKEND)


@partial(jax.jit, static_argnames=("top_k_docs", "max_document_chunks", "implementation"))
def jitted_route(*arrays, **options):
    return route(*arrays, **options)


def routed(sample: Sample, implementation: str | None):
    with running(implementation):
        return jitted_route(
            *sample.arrays,
            doc_mask=sample.doc_mask,
            top_k_docs=sample.top_k_docs,
            max_document_chunks=sample.max_document_chunks,
            implementation=implementation,
        )


def expected(sample: Sample, top_k_docs: int | None = None):
    top_k_docs = sample.top_k_docs if top_k_docs is None else top_k_docs
    arrays = on_cpu(sample.arrays)
    return route_reference(*arrays, top_k_docs=top_k_docs, doc_mask=sample.doc_mask)


def check_same(found, wanted):
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def check_close(sample: Sample, found, wanted):
    """Scores up to rounding, and documents whose own score is the one that was returned."""
    tolerance = {"rtol": 1e-4, "atol": _tolerance(sample)}
    np.testing.assert_allclose(found[0], wanted[0], **tolerance)
    num_documents = int(sample.chunk_doc.max()) + 1
    scores, docs = expected(sample, max(num_documents, 1))
    for query in range(len(docs)):
        own = {int(d): float(s) for s, d in zip(scores[query], docs[query], strict=True) if d >= 0}
        chosen = [int(d) for d in found[1][query] if d >= 0]
        assert len(chosen) == len(set(chosen)) == min(sample.top_k_docs, len(own))
        for document, score in zip(chosen, found[0][query], strict=False):
            np.testing.assert_allclose(score, own[document], **tolerance)


def _tolerance(sample: Sample) -> float:
    """What scores may be off by where sums are near zero.

    Hopper's matrix units add products of fp8 with 14 bits: of each product, what is smaller than a
    unit of the largest one's last bit is cut off. How far products cancel does not matter to that.
    """
    if sample.keys.values.dtype != jnp.float8_e4m3fn:
        return 1e-4
    keys = np.abs(np.asarray(sample.keys.values, np.float32)).max(axis=0)
    keys *= float(sample.keys.scale.max())
    largest_product = (np.abs(sample.queries) * keys).max(initial=0)
    return float(DIMS * 2.0**-13 * largest_product)


@every_backend
def test_whole_numbers_give_the_very_scores_and_ids_of_the_reference(implementation, dtype):
    """Products of small whole numbers are exact and tie often: nothing is left to rounding."""
    require(implementation, dtype)

    @examples(implementation, 30)
    @given(samples(dtype, DIMS, exact=True))
    def check(sample):
        check_same(routed(sample, implementation), expected(sample))

    check()


@every_backend
def test_real_numbers_agree_up_to_rounding_and_repeat_to_the_bit(implementation, dtype):
    require(implementation, dtype)

    @examples(implementation, 15)
    @given(samples(dtype, DIMS, exact=False))
    def check(sample):
        found = routed(sample, implementation)
        if sample.keys.exact is None:
            check_close(sample, found, expected(sample))
        check_same(routed(sample, implementation), found)

    check()


@pytest.mark.slow
@every_backend
def test_any_shape(implementation, dtype):
    require(implementation, dtype)

    @examples(implementation, 60)
    @given(st.data(), st.sampled_from([64, 128, 192]))
    def check(data, dims):
        sample = data.draw(samples(dtype, dims, exact=True, shapes=ANY_SHAPE))
        check_same(routed(sample, implementation), expected(sample))

    check()


@pytest.mark.parametrize("dims", [1, 5, 100])
def test_sizes_that_no_kernel_takes_are_served_all_the_same(dims):
    @settings(max_examples=4, deadline=None)
    @given(samples("bfloat16", dims, exact=True))
    def check(sample):
        check_same(routed(sample, None), expected(sample))

    check()


def one_chunk_each(keys, **options):
    """Routes a query of one token over documents of one chunk."""
    count = keys.values.shape[0]
    queries = jnp.ones((1, 1, keys.values.shape[1]))
    options = {"top_k_docs": 2, "max_document_chunks": 1, **options}
    return route(queries, jnp.ones((1, 1), bool), keys, jnp.arange(count), **options)


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_rescoring_undoes_the_errors_of_eight_bits(dtype):
    """Close keys, which 8 bits cannot tell apart, come in their true order."""
    exact = jnp.full((200, 64), 0.5).at[:8].set(1.0)
    exact = exact.at[:8, 0].set(2.0).at[:8, 1].add(jnp.arange(8) * 1e-3)
    keys = quantize_keys(exact, dtype)
    _, scanned = one_chunk_each(RoutingKeys(keys.values, keys.scale))
    scores, found = one_chunk_each(keys)
    assert scanned.tolist() == [[0, 1]]
    assert found.tolist() == [[7, 6]]
    np.testing.assert_allclose(scores, [[65.007, 65.006]], rtol=1e-5)


def test_rescoring_looks_at_every_chunk_of_a_candidate():
    """The chunk that wins the scan of a document need not be its best."""
    values = jnp.array([[9], [1], [1], [5], [0], [0]], jnp.int8)
    exact = jnp.array([[1.0], [2.0], [8.0], [3.0], [3.0], [3.0]])
    keys = RoutingKeys(values, jnp.ones(6), exact)
    found = route(
        jnp.ones((1, 1, 1)),
        jnp.ones((1, 1), bool),
        keys,
        jnp.array([0, 0, 0, 1, 1, 1]),
        top_k_docs=2,
        max_document_chunks=3,
    )
    check_same(found, (jnp.array([[8.0, 3.0]]), jnp.array([[0, 1]], jnp.int32)))


@pytest.mark.parametrize(("num_chunks", "num_tokens"), [(0, 3), (4, 0), (0, 0)])
def test_nothing_to_route_finds_nothing(num_chunks, num_tokens):
    scores, docs = route(
        jnp.ones((2, num_tokens, 8)),
        jnp.ones((2, num_tokens), bool),
        jnp.ones((num_chunks, 8)),
        jnp.zeros(num_chunks, jnp.int32),
        top_k_docs=3,
        max_document_chunks=4,
    )
    np.testing.assert_array_equal(scores, np.full((2, 3), -np.inf, np.float32))
    np.testing.assert_array_equal(docs, np.full((2, 3), -1))


def test_what_masked_tokens_hold_does_not_matter():
    """Not even for the scale of 8-bit queries, nor if it is not a number."""
    rng = np.random.default_rng(0)
    keys = quantize_keys(jnp.asarray(rng.standard_normal((50, 16)), jnp.float32), "int8")
    queries = jnp.asarray(rng.standard_normal((1, 4, 16)), jnp.float32)
    mask, chunk_doc = jnp.array([[True, False, True, False]]), jnp.arange(50) // 3
    options = {"top_k_docs": 5, "max_document_chunks": 3}
    found = route(queries, mask, keys, chunk_doc, **options)
    for noise in (1e9, jnp.nan):
        noisy = jnp.where(mask[..., None], queries, noise)
        check_same(route(noisy, mask, keys, chunk_doc, **options), found)


def test_memories_are_mapped_over_with_vmap():
    rng = np.random.default_rng(1)
    queries = jnp.asarray(rng.integers(-2, 3, (3, 2, 4, 16)), jnp.float32)
    keys = jnp.asarray(rng.integers(-1, 2, (3, 300, 16)), jnp.float32)
    mask, chunk_doc = jnp.ones((2, 4), bool), jnp.arange(300) // 3
    options = {"top_k_docs": 5, "max_document_chunks": 3}
    found = jax.vmap(lambda q, k: route(q, mask, k, chunk_doc, **options))(queries, keys)
    for group in range(3):
        wanted = route_reference(queries[group], mask, keys[group], chunk_doc, top_k_docs=5)
        check_same([x[group] for x in found], wanted)


@every_backend
def test_a_memory_of_a_stack_is_searched_as_if_it_were_alone(implementation, dtype):
    """In a loop over layers, where which memory it is, is only known while it runs."""
    require(implementation, dtype)
    rng = np.random.default_rng(3)
    memories = [whole_numbers(rng, (2, 3, DIMS), 256, dtype, True) for _ in range(3)]
    queries, single = zip(*memories, strict=True)
    queries, stack = jnp.stack(queries), jax.tree.map(lambda *x: jnp.stack(x), *single)
    mask, chunk_doc = jnp.ones((2, 3), bool), jnp.arange(256) // 3
    options = {"top_k_docs": 3, "max_document_chunks": 3, "implementation": implementation}

    @jax.jit
    def search(queries, stack):
        one = lambda x: route(x[0], mask, stack, chunk_doc, memory=x[1], **options)  # noqa: E731
        return jax.lax.map(one, (queries, jnp.arange(3)))

    with running(implementation):
        found = search(queries, stack)
    for layer, keys in enumerate(single):
        wanted = route_reference(queries[layer], mask, keys, chunk_doc, top_k_docs=3)
        check_same([x[layer] for x in found], wanted)


GOOD = {
    "queries": jnp.ones((2, 3, 8)),
    "query_mask": jnp.ones((2, 3), bool),
    "keys": jnp.ones((5, 8)),
    "chunk_doc": jnp.arange(5),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": jnp.ones((2, 3, 7))}, r"queries must have shape \(2, 3, 8\)"),
        ({"query_mask": jnp.ones((2, 4), bool)}, r"queries must have shape \(2, 4, 8\)"),
        ({"chunk_doc": jnp.arange(4)}, r"chunk_doc must have shape \(5,\)"),
        ({"keys": RoutingKeys(jnp.ones((5, 8), jnp.int8))}, "int8 need a scale per chunk"),
        ({"keys": RoutingKeys(jnp.ones((5, 8), "float8_e4m3fn"))}, "need a scale per chunk"),
        (
            {"keys": RoutingKeys(jnp.ones((5, 8), jnp.int8), jnp.ones(4))},
            r"keys.scale must have shape \(5,\)",
        ),
        (
            {"keys": RoutingKeys(jnp.ones((5, 8), jnp.int8), jnp.ones(5), jnp.ones((5, 4)))},
            r"keys.exact must have shape \(5, 8\)",
        ),
        ({"keys": jnp.ones((2, 5, 8))}, r"must be \[C, D\], or \[S, C, D\] with memory given"),
        ({"memory": 0}, r"must be \[C, D\], or \[S, C, D\] with memory given"),
        ({"implementation": "triton"}, "implementation must be None or one of"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        route(**{**GOOD, **changes}, top_k_docs=2, max_document_chunks=1)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="the kernel may serve it here")
def test_a_named_backend_that_cannot_serve_says_so():
    with pytest.raises(NotImplementedError):
        route(**GOOD, top_k_docs=2, max_document_chunks=1, implementation="pallas_gpu")
