"""Where parts lie in a memory of fixed capacity: never on one another, never across two shards."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from msa_jax.memory.parts import PartTable
from msa_jax.memory.slots import NO_PART, Slots

LONGEST = 5  # Chunks of a part, and so the chunks of each shard that are kept free.


def parts_of(sizes, first_id=1):
    """Parts with these numbers of chunks and consecutive ids."""
    zeros = np.zeros(len(sizes), np.int64)
    return PartTable(
        np.arange(len(sizes)) + first_id, np.asarray(sizes, np.int64).reshape(-1), zeros, zeros
    )


class Model:
    """What must hold of a table, from the places that it gave to the live parts."""

    def __init__(self, num_shards, shard_size):
        self.slots = Slots(num_shards * shard_size, num_shards, LONGEST)
        self.num_shards, self.shard_size = num_shards, shard_size
        self.live = {}  # First chunk and number of chunks by id.
        self.next_id = 1

    def place(self, method, sizes):
        """Places parts; whether there was room."""
        parts = parts_of(sizes, self.next_id)
        self.next_id += len(sizes)
        first = method(parts)
        if first is None:
            # Some may have been placed: a bank starts again with a new table.
            self.slots.remove(parts.ids)
            return False
        places = zip(first.tolist(), sizes, strict=True)
        self.live.update(zip(parts.ids.tolist(), places, strict=True))
        return True

    def remove(self, ids):
        self.slots.remove(np.array(ids, np.int64))
        for part_id in ids:
            self.live.pop(part_id, None)

    def owners(self):
        """The part of each chunk; fails where two overlap."""
        owners = np.full(self.num_shards * self.shard_size, NO_PART)
        for part_id, (first, count) in self.live.items():
            assert (owners[first : first + count] == NO_PART).all()
            owners[first : first + count] = part_id
        return owners.reshape(self.num_shards, -1)

    def has_room(self, count):
        """Whether any stretch of so many chunks is free, the reserved ones apart."""
        for free in self.owners()[:, : self.shard_size - LONGEST] == NO_PART:
            if any(free[at : at + count].all() for at in range(len(free) - count + 1)):
                return True
        return False

    def check(self):
        slots, owners = self.slots, self.owners()
        assert (owners[:, self.shard_size - LONGEST :] == NO_PART).all()
        expected = {name: np.full_like(owners.ravel(), -1) for name in ("chunk_doc", "ids")}
        expected["num_chunks"] = np.zeros_like(owners.ravel())
        for part_id, (first, count) in self.live.items():
            assert first // self.shard_size == (first + count - 1) // self.shard_size
            expected["chunk_doc"][first : first + count] = first
            expected["num_chunks"][first] = count
            expected["ids"][first] = part_id
            assert part_id in slots
        for name, array in expected.items():
            np.testing.assert_array_equal(getattr(slots, name), array, err_msg=name)
        every = np.arange(self.next_id + 1)
        ours = [self.live[i][0] for i in every.tolist() if i in self.live]
        assert slots.first_chunks(every).tolist() == ours
        assert not any(i in slots for i in every.tolist() if i not in self.live)


SIZES = st.lists(st.integers(1, LONGEST), max_size=8)
# Sizes of parts to add one by one, or which of the live ones to remove.
CHANGES = st.lists(SIZES | st.sets(st.integers(0, 40), max_size=6), max_size=25)


@given(
    st.integers(1, 4),
    st.integers(LONGEST + 1, 20),
    st.lists(st.integers(1, LONGEST), max_size=30),
    CHANGES,
)
def test_parts_lie_apart_and_whole_whatever_comes_and_goes(num_shards, shard_size, start, changes):
    model = Model(num_shards, shard_size)
    model.place(model.slots.fill, start)
    model.check()
    for change in changes:
        if isinstance(change, set):
            model.remove([i for n, i in enumerate(list(model.live)) if n in change])
        else:
            for size in change:
                room = model.has_room(size)
                assert model.place(model.slots.add, [size]) == room
        model.check()


@given(
    st.lists(st.integers(1, LONGEST), max_size=30),
    st.sets(st.integers(1, 30)),
    st.lists(st.integers(1, LONGEST), max_size=12),
)
def test_several_parts_find_room_at_the_ends_and_in_holes(start, gone, sizes):
    model = Model(2, 30)
    model.place(model.slots.fill, start)
    model.remove(sorted(gone))
    # Half of it is at an end of what was ever used, or else in a hole.
    ample = model.has_room(2 * sum(sizes))
    assert model.place(model.slots.add, sizes) or not ample
    model.check()


@given(st.lists(st.integers(1, LONGEST), max_size=60), st.sampled_from([1, 2, 4, 8]))
@example([LONGEST] * 9, 8)
def test_filling_spreads_evenly_in_order(sizes, num_shards):
    model = Model(num_shards, sum(sizes) // num_shards + 2 * LONGEST)
    assert model.place(model.slots.fill, sizes)
    model.check()
    taken = (model.owners() != NO_PART).sum(axis=1)
    assert taken.max() <= -(-sum(sizes) // num_shards) + LONGEST - 1
    assert (np.diff([first for first, _ in model.live.values()]) > 0).all()
    # No holes within a shard.
    for owners, count in zip(model.owners(), taken, strict=True):
        assert (owners[:count] != NO_PART).all()


def test_filling_more_than_there_is_room_for_places_nothing():
    model = Model(2, LONGEST + 6)
    assert not model.place(model.slots.fill, [3, 3, 4, 3])
    model.check()
    assert model.place(model.slots.fill, [3, 3, 3, 3])
    assert not model.place(model.slots.add, [1])


def test_holes_are_used_again_once_the_ends_are_full():
    model = Model(1, LONGEST + 10)
    assert model.place(model.slots.fill, [2, 3, 2, 1])
    model.remove([2])
    assert model.place(model.slots.add, [2])
    assert model.live[5] == (8, 2), "at the end, while there is room"
    assert model.place(model.slots.add, [2])
    assert model.live[6] == (2, 2), "then in the hole"
    assert not model.place(model.slots.add, [2])
    assert model.place(model.slots.add, [1])
    model.check()


def test_parts_go_where_there_is_most_room():
    model = Model(4, LONGEST + 10)
    assert model.place(model.slots.add, [5, 3, 1, 2, 4, 4])
    shards = [first // model.shard_size for first, _ in model.live.values()]
    assert shards == [0, 1, 2, 3, 2, 3]


def test_parts_that_are_not_there_are_passed_over():
    model = Model(1, 20)
    model.place(model.slots.add, [2])
    model.remove([7])
    model.check()
    assert model.slots.first_chunks(np.array([7, 1, 8])).tolist() == [0]


@pytest.mark.parametrize("num_shards", [1, 2])
def test_an_empty_table_takes_nothing(num_shards):
    model = Model(num_shards, LONGEST + 1)
    assert model.place(model.slots.fill, []) and model.place(model.slots.add, [])
    model.check()
