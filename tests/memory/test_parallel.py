"""A memory on many devices gives what it gives on one."""

import contextlib
import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from msa_jax.kernels import parallel
from msa_jax.memory.placement import place_memory
from tests.memory.tiny import (
    BATCH,
    HEAD_DIM,
    KV_HEADS,
    TOP_K,
    UNEVEN,
    collectives,
    masked,
    memory_of,
    mesh_of,
    queries_of,
    route_each_group,
    route_layer,
)

MESHES = [
    {"memory": 1},
    {"memory": 2},
    {"memory": 4},
    {"memory": 8},
    {"data": 2, "memory": 4},
    {"fsdp": 2, "tensor": 2, "memory": 2},
    {"tensor": 2},
]
CASES = {
    "uneven": memory_of(UNEVEN),
    "masked": masked(memory_of(UNEVEN)),
    "fewer documents than asked for": memory_of([[3, 1], [1, 0]]),
    "one group": memory_of(UNEVEN[:1]),
    "int8": memory_of(UNEVEN, "int8"),
    "fp8": memory_of(UNEVEN, "float8_e4m3fn"),
}


@cache
def expected_route(case):
    queries = queries_of(len(CASES[case].index.chunk_doc))
    return jax.tree.map(np.asarray, route_each_group(CASES[case], *queries))


EVERYWHERE = [("masked", axes) for axes in MESHES]
OTHERS = [(case, {"memory": 8}) for case in CASES if case != "masked"]
OTHERS += [("one group", {"data": 2, "memory": 2}), ("int8", {"data": 2, "memory": 2})]


@pytest.mark.parametrize(("case", "axes"), EVERYWHERE + OTHERS, ids=str)
def test_routes_are_those_of_one_device(case, axes):
    memory, mesh = CASES[case], mesh_of(**axes)
    placed = place_memory(memory, mesh)
    with jax.set_mesh(mesh):
        scores, docs = route_layer(placed, *queries_of(len(memory.index.chunk_doc)))
    expected_scores, expected_docs = expected_route(case)
    np.testing.assert_array_equal(docs, expected_docs)
    np.testing.assert_array_equal(scores, expected_scores)


def test_the_cases_hold_ties_absent_documents_and_queries_that_do_not_route():
    scores, docs = expected_route("uneven")
    assert (np.diff(scores[:, 0]) == 0).any()
    assert (docs[:, -1] == -1).all() and (docs[:, 0] >= 0).all()
    assert (expected_route("fewer documents than asked for")[1][:, 0, -1] == -1).all()


def test_eight_bits_without_exact_keys_rank_by_themselves_on_every_mesh():
    memory = memory_of(UNEVEN, "int8")
    keys = dataclasses.replace(memory.layers.router_keys, exact=None)
    memory = dataclasses.replace(
        memory, layers=dataclasses.replace(memory.layers, router_keys=keys)
    )
    queries, mesh = queries_of(2), mesh_of(memory=4)
    with jax.set_mesh(mesh):
        found = route_layer(place_memory(memory, mesh), *queries)
    for ours, expected in zip(found, route_each_group(memory, *queries), strict=True):
        np.testing.assert_array_equal(ours, expected)


def scores_and_content(keys, content, index, queries, query_mask, weights):
    """A loss over all that is differentiable: scores, and content chosen by them."""
    scores = parallel.document_scores(queries, query_mask, keys, index)
    _, docs = jax.lax.top_k(scores, TOP_K)
    chosen = jnp.where(jnp.isfinite(jnp.take_along_axis(scores, docs, -1)), docs, -1)
    picked, filled = parallel.gather_chunks(content, index, chosen)
    finite = jnp.where(jnp.isfinite(scores), scores, 0.0)
    total = (finite * weights).sum() + (picked.values**2).sum()
    return total, (scores, picked, filled)


def differentiated(memory, mesh):
    """Values and gradients on a mesh; the memory's arrays are the originals where mesh is None."""
    layer = jax.tree.map(lambda x: x[1], memory.layers)
    queries, query_mask = queries_of(2)
    weights = np.arange(2 * BATCH * memory.index.num_documents, dtype=np.float32)
    weights = weights.reshape(2, BATCH, -1)
    step = jax.jit(jax.value_and_grad(scores_and_content, argnums=(0, 1, 3), has_aux=True))
    with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
        return step(
            layer.router_keys.values,
            layer.content,
            memory.index,
            queries,
            query_mask,
            weights,
        )


@pytest.mark.parametrize("axes", MESHES[2:], ids=str)
def test_scores_content_and_gradients_are_those_of_one_device(axes):
    memory, mesh = CASES["masked"], mesh_of(**axes)
    placed = place_memory(memory, mesh)
    (_, (scores, picked, filled)), gradients = differentiated(placed, mesh)
    (_, (scores_1, picked_1, filled_1)), gradients_1 = differentiated(memory, None)
    np.testing.assert_array_equal(scores, scores_1)
    np.testing.assert_array_equal(filled, filled_1)
    jax.tree.map(np.testing.assert_array_equal, picked, picked_1)
    assert np.isneginf(scores).any() and np.isfinite(scores).any() and filled.any()

    def of_documents(gradient, index):
        """Without the chunks that only fill up shards, where it must be zero."""
        owned = np.asarray(index.chunk_doc) >= 0
        assert not np.asarray(gradient)[~owned].any()
        return np.asarray(gradient)[owned]

    ours = [of_documents(x, placed.index) for x in jax.tree.leaves(gradients[:2])]
    expected = [of_documents(x, memory.index) for x in jax.tree.leaves(gradients_1[:2])]
    for x, y in zip([*ours, gradients[2]], [*expected, gradients_1[2]], strict=True):
        assert np.abs(y).max() > 0
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-5)


def test_only_candidates_and_chosen_chunks_move():
    """Neither keys nor content: both are many times larger than what may move."""
    memory, mesh = memory_of([[2] * 640]), mesh_of(memory=8)
    with jax.set_mesh(mesh):
        placed = place_memory(memory, mesh)
        moved = collectives(route_layer.lower(placed, *queries_of(1)).compile())
        assert moved and max(moved) <= 2 * 8 * BATCH * TOP_K

        content = placed.layers.content
        gather = jax.jit(partial(parallel.gather_chunks, layer=1))
        chosen = jnp.zeros((1, BATCH, TOP_K), jnp.int32)
        moved = collectives(gather.lower(content, placed.index, chosen).compile())
        # Keys and values of both chunks of each document.
        assert moved and max(moved) <= BATCH * TOP_K * 2 * 2 * KV_HEADS * HEAD_DIM


def test_a_memory_that_was_not_placed_is_used_whole():
    """Its chunks may divide by the axis all the same, and documents would be cut."""
    memory = memory_of([[3] * 8])
    assert memory.index.chunk_doc.shape[1] % 8 == 0
    queries = queries_of(1)
    with jax.set_mesh(mesh_of(memory=8)):
        found = route_layer(memory, *queries)
    for ours, expected in zip(found, route_each_group(memory, *queries), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_inside_a_callers_own_shard_map_nothing_is_spread_again():
    memory, mesh = CASES["uneven"], mesh_of(data=2)
    queries = queries_of(2)
    groups = NamedSharding(mesh, P("data"))

    @jax.jit
    @partial(jax.shard_map, in_specs=(P(None, "data"), P("data"), P("data")), out_specs=P("data"))
    def own(keys, index, queries):
        return parallel.route(*queries, keys, index, TOP_K, layer=1)

    with jax.set_mesh(mesh):
        found = own(memory.layers.router_keys, memory.index, jax.device_put(queries, groups))
    for ours, expected in zip(found, expected_route("uneven"), strict=True):
        np.testing.assert_array_equal(ours, expected)
