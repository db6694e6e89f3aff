"""Routing never holds the products of all tokens with all chunks, nor a copy of the keys."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from msa_jax.kernels.routing import RoutingKeys, document_scores, route
from tests.kernels.backends import IMPLEMENTATIONS, interpreted, require

NUM_CHUNKS, DIMS = 1_000_000, 192
OPTIONS = {"top_k_docs": 16, "max_document_chunks": 4}


def shapes(batch, tokens, dtype="bfloat16"):
    """Abstract arguments of `route`: nothing of this size is ever allocated."""
    struct = jax.ShapeDtypeStruct
    keys = struct((NUM_CHUNKS, DIMS), dtype)
    if dtype == "int8":
        exact = struct((NUM_CHUNKS, DIMS), "bfloat16")
        keys = RoutingKeys(keys, struct((NUM_CHUNKS,), "float32"), exact)
    mask = struct((batch, tokens), "bool")
    return struct((batch, tokens, DIMS), "bfloat16"), mask, keys, struct((NUM_CHUNKS,), "int32")


def largest_intermediate(fn, arguments) -> int:
    """Elements of the largest array that a traced function computes, fused or not.

    Another shape of the same array is none of its own.
    """
    return max(_sizes(jax.make_jaxpr(fn)(*arguments).jaxpr))


def _sizes(jaxpr):
    for equation in jaxpr.eqns:
        inner = list(jaxprs_in_params(equation.params))
        if inner and "pallas" not in equation.primitive.name:
            for part in inner:
                yield from _sizes(part)
        read = sum(variable.aval.size for variable in equation.invars)
        if equation.primitive.name in ("reshape", "broadcast_in_dim") and (
            equation.outvars[0].aval.size == read
        ):
            continue
        yield from (np.prod(variable.aval.shape, initial=1) for variable in equation.outvars)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 64), (16, 256)])
def test_no_array_of_all_tokens_and_chunks(implementation, dtype, batch, tokens):
    require(implementation, dtype)
    if interpreted(implementation):
        pytest.skip("the interpreter holds what the kernel does not")
    search = partial(route, **OPTIONS, implementation=implementation)
    largest = largest_intermediate(search, shapes(batch, tokens, dtype))
    # One score per chunk and query exists, and what XLA takes at once.
    assert batch * NUM_CHUNKS <= largest < batch * tokens * NUM_CHUNKS / 3


def test_no_such_array_in_training_either():
    """Neither forward nor backward, whose largest array is the gradient of the keys."""
    queries, mask, keys, chunk_doc = shapes(4, 256)

    def loss(queries, keys, mask, chunk_doc):
        return document_scores(queries, mask, keys, chunk_doc, 1000, implementation="xla").sum()

    gradient = jax.grad(loss, argnums=(0, 1))
    largest = largest_intermediate(gradient, (queries, keys, mask, chunk_doc))
    assert largest <= NUM_CHUNKS * DIMS < 4 * 256 * NUM_CHUNKS


def test_the_measure_sees_what_must_not_be():
    """A plain product of everything would be noticed."""

    def plain(queries, mask, keys, chunk_doc):
        return jnp.einsum("btd,cd->btc", queries, keys).max(axis=1)

    assert largest_intermediate(plain, shapes(1, 64)) == 64 * NUM_CHUNKS


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_compiled_routing_needs_little_beside_its_arguments(dtype):
    """Compiled for this machine, not run: no copy of the keys, which are 768 or 192 MB."""
    search = jax.jit(partial(route, **OPTIONS, implementation="xla"))
    needs = search.lower(*shapes(1, 64, dtype)).compile().memory_analysis()
    if needs is None:
        pytest.skip("this device does not say what a program needs")
    assert needs.temp_size_in_bytes < 64e6
