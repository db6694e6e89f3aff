"""What lies on the devices is what was committed, whatever happened to the store meanwhile."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_jax.config import ConfigError
from msa_jax.data.records import Document
from msa_jax.kernels.content import DEVICE, DISK, HOST
from msa_jax.memory import bank as bank_module
from msa_jax.memory import tiers
from msa_jax.memory.bank import Bank
from msa_jax.memory.chunks import Chunks, Layout
from msa_jax.memory.slots import NO_PART
from msa_jax.memory.store import EncodedDocument, Part, Store, StoreError
from msa_jax.memory.tiers import Budget
from tests.memory.tiny import mesh_of

LONGEST = 5  # Chunks of a part.
PLENTY = Budget(10**9, 10**9)
PLAIN, MIXED, SMALL = ("float32", "float32"), ("bfloat16", "int8"), ("int8", "bfloat16")
MESHES = [{"memory": 4}, {"data": 2, "memory": 2}]


def layout_of(key_dtype="float32", content_dtype="float32"):
    return Layout(2, 2, 4, 4, 4 * LONGEST, key_dtype, content_dtype)


class Library:
    """A store that is written to, and what must be in it."""

    def __init__(self, path, layout=None):
        self.path, self.layout = path, layout or layout_of()
        self.store = Store.create(path, self.layout, {"model": "m"}, {})
        self.live = {}  # Ids and arrays of the parts, by key.
        self._rng = np.random.default_rng(0)

    def chunks(self, count):
        fields = self.layout.fields(count).items()
        return Chunks(
            **{
                name: (99 * self._rng.uniform(-1, 1, shape)).astype(dtype)
                for name, (shape, dtype) in fields
            }
        )

    def commit(self, puts=(), deletes=()):
        """Commits documents, given by key and the numbers of chunks of their parts."""
        encoded = []
        for key in deletes:
            del self.live[key]
        for key, sizes in dict(puts).items():
            ids = self.store.reserve_ids(len(sizes))
            own = [self.chunks(size) for size in sizes]
            self.live[key] = list(zip(ids, own, strict=True))
            parts = [
                Part(part_id, i, i + 1, 4 * size, size)
                for i, (part_id, size) in enumerate(zip(ids, sizes, strict=True))
            ]
            document = Document(key, "x" * len(sizes))
            encoded.append(EncodedDocument(document, tuple(parts), Chunks.concatenate(own)))
        self.store.commit(encoded, list(deletes))

    def parts(self):
        return {part_id: chunks for own in self.live.values() for part_id, chunks in own}

    def reopen(self):
        self.store.close()
        self.store = Store.open(self.path, write=True)


@pytest.fixture
def library(tmp_path):
    return Library(tmp_path / "bank")


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch):
    monkeypatch.setattr(tiers, "SLAB_CHUNKS", 64)


def arrays_of(bank):
    """Arrays `[L, C, ...]` of the chunks by field name, from wherever they lie."""
    layers = bank.memory.layers
    keys, content = layers.router_keys, layers.content
    arrays = {"keys": keys.values, "key_scale": keys.scale}
    arrays |= {"content": content.values, "content_scale": content.scale}
    return {name: np.asarray(x)[:, 0] for name, x in arrays.items() if x is not None}


def check(bank, library):
    """The bank holds the parts of the library and nothing else."""
    index, parts = jax.device_get(bank.memory.index), library.parts()
    slots = np.flatnonzero(index.num_chunks[0])
    ids = bank.ids(slots)
    assert sorted(ids.tolist()) == sorted(parts)
    arrays = arrays_of(bank)
    owners = np.full(bank.plan.capacity, -1)
    for slot, part_id in zip(slots.tolist(), ids.tolist(), strict=True):
        expected = parts[part_id]
        at = slice(slot, slot + len(expected))
        assert index.num_chunks[0, slot] == len(expected) and (owners[at] == -1).all()
        owners[at] = slot
        found = {name: array[:, at] for name, array in arrays.items()}
        if bank.plan.content_tier == DISK:
            found |= read_from_disk(bank, slot, len(expected))
        expected = dict(expected.arrays())
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array, err_msg=name)
    np.testing.assert_array_equal(index.chunk_doc[0], owners)
    np.testing.assert_array_equal(index.first_chunk[0], np.arange(bank.plan.capacity))
    assert (index.max_document_chunks, index.num_blocks) == (LONGEST, bank.plan.num_shards)
    assert not index.chunk_doc.reshape(index.num_blocks, -1)[:, -LONGEST:].max() >= 0
    assert bank.version == bank.store.version
    assert not bank.refresh()


def read_from_disk(bank, slot, count):
    reader, chosen = bank.memory.layers.content.reader, np.array([[[slot, -1]]])
    by_layer = [reader.read(layer, chosen, LONGEST) for layer in range(2)]
    values, scale, filled = (np.stack(x)[:, 0, 0] for x in zip(*by_layer, strict=True))
    assert filled[:, 0].sum() == filled.sum() == 2 * count and filled[:, 0, :count].all()
    assert not values[:, 1].any() and not values[:, 0, count:].any()
    found = {"content": values[:, 0, :count]}
    if "content_scale" in bank.store.layout.fields(0):
        found["content_scale"] = scale[:, 0, :count]
    else:
        assert (scale == 1).all()
    return found


ALL = [(tier, dtypes, None) for tier in (DEVICE, HOST, DISK) for dtypes in (PLAIN, MIXED, SMALL)]
ALL += [(HOST, ("float8_e4m3fn", "float8_e4m3fn"), None)]
ALL += [(tier, MIXED, MESHES[0]) for tier in (DEVICE, DISK)] + [(DEVICE, SMALL, MESHES[1])]


@pytest.mark.parametrize(("tier", "dtypes", "axes"), ALL, ids=str)
def test_a_bank_follows_its_store(tmp_path, tier, dtypes, axes):
    """Also where it has to load everything again, for there is no room left."""
    library = Library(tmp_path / "bank", layout_of(*dtypes))
    library.commit({f"{i}": [1 + i % LONGEST] for i in range(12)} | {"long": [5, 5, 2]})
    mesh = axes and mesh_of(**axes)
    bank = Bank(library.store, mesh, tier, PLENTY)
    assert bank.plan.content_tier == tier
    check(bank, library)
    library.commit({"new": [3], "long": [1, 4]}, deletes=["0", "7"])
    assert bank.refresh()
    check(bank, library)
    library.store.compact(0.0)
    library.commit({"7": [2]}, deletes=["1", "2"])
    library.commit({"new": [4]})
    assert bank.refresh()
    check(bank, library)
    before = bank.plan.capacity
    library.commit({f"more {i}": [5, 5, 4] for i in range(before // 14)}, deletes=["new"])
    assert bank.refresh() and bank.plan.capacity > before
    check(bank, library)
    library.reopen()
    check(Bank(library.store, mesh, tier, PLENTY), library)
    if mesh is not None:
        keys = bank.memory.layers.router_keys.values
        shard = (2, 1, bank.plan.capacity // mesh.shape["memory"], 8)
        assert {x.data.shape for x in keys.addressable_shards} == {shard}


KEYS = st.sampled_from("abcdefghij")
SIZES = st.lists(st.integers(1, LONGEST), min_size=1, max_size=4)
COMMIT = st.tuples(st.just("commit"), st.dictionaries(KEYS, SIZES, max_size=4), st.sets(KEYS))
OTHER = st.sampled_from([("refresh",), ("compact",), ("reopen",), ("load",)])


@settings(max_examples=20, deadline=None)
@given(changes=st.lists(COMMIT | OTHER, max_size=16), tier=st.sampled_from([DEVICE, HOST, DISK]))
def test_any_sequence_of_changes_ends_in_what_is_live(tmp_path_factory, changes, tier):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiers, "SLAB_CHUNKS", 96)  # Little enough to run out of.
        library = Library(tmp_path_factory.mktemp("bank") / "bank", layout_of(*MIXED))
        reader = Store.open(library.path)
        bank = Bank(reader, None, tier, PLENTY)
        for kind, *change in changes:
            if kind == "commit":
                puts, deletes = change
                gone = sorted(key for key in deletes if key in library.live and key not in puts)
                library.commit(puts, gone)
            elif kind == "compact":
                library.store.compact(0.0)
            elif kind == "reopen":
                library.reopen()
            elif kind == "load":
                bank = Bank(reader, None, tier, PLENTY)
            else:
                bank.refresh()
                check(bank, library)
        bank.refresh()
        check(bank, library)


@pytest.mark.parametrize("axes", [None, MESHES[0]], ids=str)
@pytest.mark.parametrize("tier", [DEVICE, DISK])
def test_an_empty_bank_has_no_documents_until_some_come(library, tier, axes):
    mesh = axes and mesh_of(**axes)
    bank = Bank(library.store, mesh, tier, PLENTY)
    check(bank, library)
    assert not bank.mask(np.array([1, 2])).any()
    library.commit({"a": [2, 5]})
    assert bank.refresh()
    check(bank, library)
    library.commit(deletes=["a"])
    assert bank.refresh()
    check(bank, library)


def test_nothing_new_is_compiled_while_there_is_room(library):
    @jax.jit
    def use(memory):
        return memory.layers.router_keys.values.sum(), memory.index.chunk_doc.max()

    library.commit({"first": [5] * 15})  # 64 and 8 chunks at once, and three single ones.
    bank = Bank(library.store, None, DEVICE, PLENTY)
    use(bank.memory)
    capacity, compiled = bank.plan.capacity, bank_module._write_device._cache_size()
    for i in range(8):
        library.commit({f"{i}": [3, 5]}, deletes=[] if i < 6 else [f"{i - 6}"])
        assert bank.refresh()
        use(bank.memory)
    assert bank.plan.capacity == capacity
    assert (use._cache_size(), bank_module._write_device._cache_size()) == (1, compiled)
    library.commit({"much": [5] * 13})
    assert bank.refresh()
    assert bank.plan.capacity > capacity
    check(bank, library)


def test_large_and_small_pieces_end_up_side_by_side(library, monkeypatch):
    monkeypatch.setattr(tiers, "SLAB_CHUNKS", 8192)
    sizes = [5] * (4096 // 5) + [1] + [5] * ((512 + 64 + 8 + 2) // 5)
    library.commit({"all": sizes, "more": [1, 2]})
    check(Bank(library.store, None, DEVICE, PLENTY), library)


def test_ids_and_masks_name_the_parts(library):
    library.commit({"a": [2, 1], "b": [3]})
    bank = Bank(library.store, None, DEVICE, PLENTY)
    slots = np.flatnonzero(bank.memory.index.num_chunks[0])
    assert bank.ids(slots).tolist() == [1, 2, 3]
    chosen = np.array([[slots[2], -1], [slots[0], slots[1]]])
    assert bank.ids(chosen).tolist() == [[3, NO_PART], [1, 2]]
    mask = bank.mask(np.array([3, 1, 99]))
    assert mask.shape == (1, 1, bank.memory.index.num_documents)
    assert np.flatnonzero(mask).tolist() == [slots[0], slots[2]]
    library.commit(deletes=["b"])
    bank.refresh()
    assert np.flatnonzero(bank.mask(np.array([3, 1]))).tolist() == [slots[0]]


def test_a_reader_sees_what_another_process_commits(tmp_path):
    """The writer is a program of its own; nothing is shared but the directory."""
    program = """
import sys
from pathlib import Path
from tests.memory.test_bank import Library
library = Library(Path(sys.argv[1]))
library.commit({"a": [2, 3], "b": [5]})
print("ready", flush=True)
sys.stdin.readline()
library.commit({"c": [1], "a": [4]}, deletes=["b"])
library.store.compact(0.0)
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "bank")],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert writer.stdout.readline() == "ready\n"
        # Its random numbers are the same.
        expected = Library(tmp_path / "same")
        expected.commit({"a": [2, 3], "b": [5]})
        with Store.open(tmp_path / "bank") as store:
            bank = Bank(store, None, DEVICE, PLENTY)
            check(bank, expected)
            writer.communicate("go on\n", timeout=60)
            assert writer.returncode == 0
            expected.commit({"c": [1], "a": [4]}, deletes=["b"])
            assert bank.refresh()
            check(bank, expected)
    finally:
        writer.kill()


@pytest.mark.parametrize("tier", [DEVICE, HOST, DISK])
def test_parts_that_vanish_while_they_are_loaded_are_left_out(library, tier, monkeypatch):
    library.commit({"a": [2], "b": [3], "c": [1]})
    reader = Store.open(library.path)

    def changes_then_vanish(self, since):
        found = changes(self, since)
        if "b" in library.live:
            library.commit({"d": [4]}, deletes=["b"])
            library.store.compact(0.0)
        return found

    changes = Store.changes
    monkeypatch.setattr(Store, "changes", changes_then_vanish)
    bank = Bank(reader, None, tier, PLENTY)
    slots = np.flatnonzero(bank.memory.index.num_chunks[0])
    assert bank.ids(slots).tolist() == [1, 3]
    assert bank.version == 1 and bank.refresh()
    check(bank, library)


def test_content_on_disk_that_was_just_removed_is_nothing(library):
    library.commit({"a": [2], "b": [3], "c": [1]})
    bank = Bank(Store.open(library.path), None, DISK, PLENTY)
    reader, slots = bank.memory.layers.content.reader, np.array([[[2, 0, 5]]])
    assert bank.ids(slots).tolist() == [[[2, 1, 3]]]
    before, _, filled = reader.read(1, slots, LONGEST)
    assert filled.sum(-1).tolist() == [[[3, 2, 1]]]
    library.commit({"d": [4]}, deletes=["b"])
    after, _, filled = reader.read(1, slots, LONGEST)
    assert filled.sum(-1).tolist() == [[[0, 2, 1]]]
    assert not after[0, 0, 0].any()
    np.testing.assert_array_equal(after[0, 0, 1:], before[0, 0, 1:])


def damage(path):
    """Flips a bit of the last byte of the last segment; or flips it back."""
    last = max(path.glob("segments/*"))
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)


@pytest.mark.parametrize("tier", [DEVICE, HOST])
def test_a_damaged_document_is_not_taken_over_and_others_stay(library, tier):
    library.commit({"a": [2, 4], "b": [3]})
    bank = Bank(library.store, None, tier, PLENTY)
    library.commit(deletes=["b"])
    good = dict(library.live)
    library.commit({"c": [3]})
    damage(library.path)
    for _ in range(2):
        with pytest.raises(StoreError, match="segments"):
            bank.refresh()
        slots = np.flatnonzero(bank.memory.index.num_chunks[0])
        assert bank.ids(slots).tolist() == [part_id for part_id, _ in good["a"]]
    damage(library.path)
    assert bank.refresh()
    check(bank, library)


def test_a_bank_that_could_not_be_loaded_again_is_when_it_can(library):
    library.commit({"a": [5] * 10})
    budget = Budget(128 * (8 * 4 + 16 * 4 + 12) * 2, 0)
    bank = Bank(library.store, None, DEVICE, budget)
    library.commit({f"{i}": [5] * 40 for i in range(10)})
    for _ in range(2):
        with pytest.raises(ConfigError, match="does not fit"):
            bank.refresh()
    library.commit(deletes=[f"{i}" for i in range(10)])
    assert bank.refresh()
    check(bank, library)


def test_what_does_not_fit_is_not_loaded(library):
    library.commit({"a": [5]})
    with pytest.raises(ConfigError, match="a memory of 5 chunks does not fit"):
        Bank(library.store, None, None, Budget(1000, 0))


def test_content_goes_where_there_is_room_by_default(library):
    library.commit({"a": [5]})
    keys, content = library.layout.bytes_per_chunk()
    for device_bytes, host_bytes, tier in [
        (10**9, 10**9, DEVICE),
        (64 * (keys + 12), 10**9, HOST),
        (64 * (keys + 12), 0, DISK),
    ]:
        bank = Bank(library.store, None, None, Budget(device_bytes, host_bytes))
        assert bank.plan.content_tier == tier
        values = bank.memory.layers.content.values
        if tier == DISK:
            assert values is None
        else:
            on_device = jnp.zeros(1).sharding.memory_kind
            kind = {DEVICE: on_device, HOST: "pinned_host"}[tier]
            assert values.sharding.memory_kind == kind
