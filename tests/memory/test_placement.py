"""Documents stay whole, chunks keep their content, and devices get about equal shares."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_jax.config import ConfigError
from msa_jax.memory.placement import place_memory
from tests.memory.tiny import UNEVEN, masked, memory_of, mesh_of


def shards_of(array, axis):
    """What each device holds, in the order of memory."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[axis].start or 0)
    return [np.asarray(shard.data) for shard in shards]


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=20).filter(any),
    num_shards=st.sampled_from([2, 4, 8]),
)
def test_documents_are_whole_in_order_and_spread_evenly(sizes, num_shards):
    memory = memory_of([sizes])
    placed = place_memory(memory, mesh_of(memory=num_shards))
    owners = [shard[0] for shard in shards_of(placed.index.chunk_doc, 1)]
    assert len(owners) == num_shards
    whole = [own[own >= 0] for own in owners]
    documents = [set(own.tolist()) for own in whole]
    assert sum(map(len, documents)) == len(set().union(*documents))
    np.testing.assert_array_equal(np.concatenate(whole), memory.index.chunk_doc[0])
    assert max(map(len, whole)) <= -(-sum(sizes) // num_shards) + max(sizes) - 1
    assert placed.index.num_blocks == num_shards


@pytest.mark.parametrize("dtype", [None, "int8", "float8_e4m3fn"])
def test_every_array_of_a_document_moves_with_it(dtype):
    """Also where groups are cut in different places, and lie on an axis of their own."""
    memory = masked(memory_of(UNEVEN, dtype))
    placed = place_memory(memory, mesh_of(data=2, memory=4))
    for group, document in np.ndindex(placed.index.first_chunk.shape):
        ours, original = (chunks_of(x, group, document) for x in (placed, memory))
        assert jax.tree.leaves(ours)[0].shape[1] == UNEVEN[group][document]
        jax.tree.map(np.testing.assert_array_equal, ours, original)
    np.testing.assert_array_equal(placed.index.doc_mask, memory.index.doc_mask)
    values = placed.layers.router_keys.values
    assert values.sharding.shard_shape(values.shape)[1:3] == (1, values.shape[2] // 4)


def chunks_of(memory, group, document):
    index = memory.index
    first, count = (int(x[group, document]) for x in (index.first_chunk, index.num_chunks))
    own = np.flatnonzero(np.asarray(index.chunk_doc[group]) == document)
    assert own.tolist() == list(range(first, first + count))
    return jax.tree.map(lambda x: np.asarray(x)[:, group, first : first + count], memory.layers)


def test_documents_in_disorder_are_refused():
    memory = memory_of([[2, 1], [1, 1]])
    chunk_doc = memory.index.chunk_doc.copy()
    chunk_doc[1] = [1, 0, -1]
    memory = dataclasses.replace(
        memory, index=dataclasses.replace(memory.index, chunk_doc=chunk_doc)
    )
    with pytest.raises(ConfigError, match="chunk_doc of group 1 must ascend.*; sort the chunks"):
        place_memory(memory, mesh_of(memory=2))
