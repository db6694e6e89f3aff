"""Aligned rows: nothing overlaps, crosses or is lost."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_jax.core.segments import PADDING
from msa_jax.data import packing

ALIGNMENT = 4

lengths_lists = st.lists(st.integers(1, 24), max_size=40)
sizes = {"num_rows": st.integers(1, 5), "chunks_per_row": st.integers(1, 6)}


def pack(lengths, num_rows, row_tokens, seed=0):
    """Packs documents whose tokens are all 100 + their index."""
    lengths = np.array(lengths, int)
    rows = packing.assign_rows(lengths, num_rows, row_tokens, ALIGNMENT)
    order, starts = packing.shuffle_places(
        rows, lengths, num_rows, row_tokens, ALIGNMENT, np.random.default_rng(seed)
    )
    pieces = [np.full(lengths[index], 100 + index, np.int32) for index in order]
    block = packing.fill_rows(pieces, lengths[order], starts, num_rows, row_tokens, pad_id=0)
    return rows, order, starts, block


@settings(max_examples=150, deadline=None)
@given(lengths=lengths_lists, **sizes)
def test_every_placed_document_is_whole_aligned_and_inside_one_row(
    lengths, num_rows, chunks_per_row
):
    row_tokens = ALIGNMENT * chunks_per_row
    rows, order, starts, block = pack(lengths, num_rows, row_tokens)
    assert block.tokens.shape == (num_rows, row_tokens)
    assert sorted(order) == np.flatnonzero(rows != packing.UNPLACED).tolist()
    assert (np.diff(starts) > 0).all()
    flat_ids, flat_tokens = block.doc_ids.ravel(), block.tokens.ravel()
    for number, (index, start) in enumerate(zip(order, starts, strict=True), start=1):
        (places,) = np.nonzero(flat_ids == number)
        np.testing.assert_array_equal(places, start + np.arange(lengths[index]))
        assert start % ALIGNMENT == 0
        assert start // row_tokens == places[-1] // row_tokens
        assert (flat_tokens[places] == 100 + index).all()
        np.testing.assert_array_equal(block.segment_pos.ravel()[places], np.arange(lengths[index]))
    unused = flat_ids == PADDING
    assert unused.sum() == unused.size - sum(lengths[index] for index in order)
    assert not flat_tokens[unused].any()
    assert not block.segment_pos.ravel()[unused].any()


@settings(max_examples=150, deadline=None)
@given(lengths=lengths_lists, **sizes)
def test_a_document_is_left_out_only_where_no_row_has_room(lengths, num_rows, chunks_per_row):
    row_tokens = ALIGNMENT * chunks_per_row
    rows = packing.assign_rows(np.array(lengths, int), num_rows, row_tokens, ALIGNMENT)
    free = np.full(num_rows, row_tokens)
    for length, row in zip(lengths, rows, strict=True):
        size = -(-length // ALIGNMENT) * ALIGNMENT
        if row == packing.UNPLACED:
            assert (free < size).all()
        else:
            assert row == np.flatnonzero(free >= size)[0]
            free[row] -= size


def test_places_are_random_and_the_first_document_can_be_anywhere():
    lengths = [4] * 12
    places = {int(pack(lengths, 3, 16, seed)[1].tolist().index(0)) for seed in range(200)}
    assert places == set(range(12))
