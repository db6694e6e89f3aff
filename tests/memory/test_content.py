"""The chosen documents' content is the same wherever it lies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.kernels.content import DEVICE, DISK, HOST, Content, fetch
from tests.memory.tiny import HEAD_DIM, KV_HEADS, UNEVEN, memory_of

TIERS = (DEVICE, HOST, DISK)
HEADS = (2, KV_HEADS, HEAD_DIM)
# Two groups of three queries. Document 5 of group 0 and 4 of group 1 have no chunks; the last query
# has chosen nothing.
CHOSEN = np.array(
    [
        [[2, 8, 0, 10], [0, -1, -1, -1], [9, 5, -1, -1]],
        [[2, 0, 4, 1], [10, 3, 2, -1], [-1, -1, -1, -1]],
    ],
    np.int32,
)


class Reader:
    """Content of one group that is read when asked for."""

    def __init__(self, content, index):
        values, self._scale = content.values, content.scale
        self.shape, self.dtype = values.shape[3:], values.dtype
        self._values, self._index = values, index
        self.layers_read = []

    def read(self, layer, chosen, max_document_chunks):
        self.layers_read.append(layer)
        lead = (*chosen.shape, max_document_chunks)
        values, scale = np.zeros((*lead, *self.shape), self.dtype), np.ones((*lead, 2), np.float32)
        filled = np.zeros(lead, np.bool_)
        for place in np.ndindex(chosen.shape):
            if chosen[place] >= 0:
                first = self._index.first_chunk[0, chosen[place]]
                count = self._index.num_chunks[0, chosen[place]]
                own = slice(first, first + count)
                filled[place][:count] = True
                values[place][:count] = self._values[layer, 0, own]
                if self._scale is not None:
                    scale[place][:count] = self._scale[layer, 0, own]
        return values, scale, filled


def memory_with(dtype, num_groups):
    """A memory whose content has this type, with room behind the last document to read on."""
    memory = memory_of([group + [0] for group in UNEVEN[:num_groups]])
    index = memory.index
    padding = index.max_document_chunks
    rng = np.random.default_rng(0)
    shape = (2, num_groups, index.chunk_doc.shape[1] + padding)
    if dtype == "int8":
        values = rng.integers(-127, 128, (*shape, *HEADS)).astype(np.int8)
        scale = rng.random((*shape, 2)).astype(np.float32)
    else:
        values, scale = rng.normal(size=(*shape, *HEADS)).astype(dtype), None
    index = dataclasses.replace(
        index, chunk_doc=np.pad(index.chunk_doc, [(0, 0), (0, padding)], constant_values=-1)
    )
    return Content(values, scale), index


def in_tier(content, index, tier):
    if tier == DEVICE:
        return content
    if tier == DISK:
        return Content(None, None, DISK, Reader(content, index))
    host = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")
    return Content(jax.device_put(content.values, host), content.scale, HOST)


@jax.jit
def fetch_float32(content, index, chosen, layer):
    return fetch(content, index, chosen, layer, jnp.float32)


def expected(content, index, chosen, layer):
    """Document by document, with NumPy."""
    lead = (*chosen.shape, index.max_document_chunks)
    values, mask = np.zeros((*lead, *HEADS), np.float32), np.zeros(lead, bool)
    for place in np.ndindex(chosen.shape):
        group, document = place[0], chosen[place]
        if document >= 0:
            own = np.flatnonzero(index.chunk_doc[group] == document)
            found = content.values[layer, group, own].astype(np.float32)
            if content.scale is not None:
                found *= content.scale[layer, group, own][..., None, None]
            values[place][: len(own)], mask[place][: len(own)] = found, True
    flat = (*chosen.shape[:2], -1)
    return values.reshape(*flat, *HEADS), mask.reshape(flat)


def check(found, wanted):
    for ours, right in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours, right)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_all_tiers_give_the_chunks_of_the_chosen_documents(dtype, tier):
    content, index = memory_with(dtype, num_groups=1)
    placed, chosen = in_tier(content, index, tier), CHOSEN[:1]
    for layer in (0, 1):
        wanted = expected(content, index, chosen, layer)
        assert wanted[1].any() and not wanted[1].all()
        check(fetch_float32(placed, index, chosen, layer), wanted)


@pytest.mark.parametrize("tier", TIERS)
def test_a_single_query_and_one_that_chose_nothing(tier):
    content, index = memory_with("int8", num_groups=1)
    placed = in_tier(content, index, tier)
    for chosen in (CHOSEN[:1, :1], CHOSEN[1:, 2:]):
        check(fetch_float32(placed, index, chosen, 1), expected(content, index, chosen, 1))


@pytest.mark.parametrize("tier", [DEVICE, HOST])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_every_group_reads_its_own_documents(dtype, tier):
    content, index = memory_with(dtype, num_groups=2)
    found = fetch_float32(in_tier(content, index, tier), index, CHOSEN, 1)
    check(found, expected(content, index, CHOSEN, 1))


@pytest.mark.parametrize("tier", TIERS)
def test_content_comes_in_the_type_that_is_asked_for(tier):
    content, index = memory_with("int8", num_groups=1)
    placed = in_tier(content, index, tier)
    values, _ = jax.jit(fetch, static_argnums=4)(placed, index, CHOSEN[:1], 0, "bfloat16")
    assert values.dtype == jnp.bfloat16
    wanted, _ = expected(content, index, CHOSEN[:1], 0)
    np.testing.assert_array_equal(values, wanted.astype(jnp.bfloat16))


def test_content_of_one_layer_in_device_memory_is_differentiable():
    content, index = memory_with("float32", num_groups=2)
    one_layer = jax.tree.map(lambda x: x[1], content)

    def loss(content):
        values, _ = fetch(content, index, CHOSEN, None, jnp.float32)
        return (values**2).sum()

    gradient = jax.jit(jax.grad(loss))(one_layer).values
    times_chosen = np.zeros(index.chunk_doc.shape)
    for group, chosen in enumerate(CHOSEN):
        for document in chosen[chosen >= 0]:
            times_chosen[group] += index.chunk_doc[group] == document
    expected_gradient = 2 * one_layer.values * times_chosen[..., None, None, None]
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6)
    assert (times_chosen == 0).any() and (times_chosen > 1).any()


def test_a_reader_is_asked_once_for_the_layer_in_a_loop():
    """As inside the model, whose layers are a loop."""
    content, index = memory_with("float32", num_groups=1)
    placed = in_tier(content, index, DISK)

    @jax.jit
    def all_layers(placed, chosen):
        return jax.lax.map(lambda n: fetch(placed, index, chosen, n, jnp.float32), jnp.arange(2))

    found = jax.device_get(all_layers(placed, CHOSEN[:1]))
    assert placed.reader.layers_read == [0, 1]
    for layer in (0, 1):
        check((x[layer] for x in found), expected(content, index, CHOSEN[:1], layer))
