import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.core import segments
from msa_jax.core.segments import PADDING, QUERY, RESPONSE, TEMPLATE, Segments, TokenBlock


def test_documents_see_themselves_causally():
    doc_ids = jnp.array([1, 1, PADDING, 2, 2, 2])
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1, 1],
    ]
    np.testing.assert_array_equal(segments.document_mask(doc_ids), np.array(expected, bool))


def test_active_tokens_see_earlier_ones_but_no_padding():
    doc_ids = jnp.array([PADDING, TEMPLATE, QUERY, PADDING, RESPONSE])
    expected = [
        [0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 1, 0, 1],
    ]
    np.testing.assert_array_equal(segments.local_mask(doc_ids), np.array(expected, bool))


def test_the_head_and_padding_do_not_see_memory():
    """Template tokens after the query are no head: they see memory."""
    roles = jnp.array([TEMPLATE, TEMPLATE, QUERY, TEMPLATE, RESPONSE, PADDING])
    sees = segments.sees_memory(Segments(roles, jnp.array([0, 1, 4, 5, 6, 7])), head_len=2)
    np.testing.assert_array_equal(sees, [False, False, True, True, True, False])


def test_chunks_belong_to_the_document_of_their_tokens():
    """Document 2 ends in a partial chunk; then comes a chunk of padding."""
    doc_ids = jnp.array([[[3, 3, 3, 3, 2, 2, 2, PADDING], [1, PADDING, *[PADDING] * 4, 4, 4]]])
    chunk_doc = segments.chunk_documents(doc_ids, 2)
    np.testing.assert_array_equal(chunk_doc, [[2, 2, 1, 1, 0, -1, -1, 3]])


@pytest.mark.parametrize("kind", [Segments, TokenBlock, segments.TrainingBatch])
def test_blocks_pass_through_jit_as_pytrees(kind):
    names = [field.name for field in dataclasses.fields(kind)]
    block = kind(**{name: jnp.full((1, 2), i) for i, name in enumerate(names)})
    doubled = jax.jit(lambda block: jax.tree.map(lambda x: 2 * x, block))(block)
    assert type(doubled) is kind
    assert [int(getattr(doubled, name)[0, 0]) for name in names] == [
        2 * i for i in range(len(names))
    ]
    leaves, treedef = jax.tree.flatten(block)
    assert jax.tree.structure(treedef.unflatten(leaves)) == treedef


def test_a_token_block_hands_its_segments_on():
    block = TokenBlock(jnp.array([5]), jnp.array([QUERY]), jnp.array([7]))
    assert block.segments.doc_ids is block.doc_ids
    assert block.segments.segment_pos is block.segment_pos
