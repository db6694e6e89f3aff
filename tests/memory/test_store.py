"""A bank holds what was committed, to the bit, whoever asks and however often it is opened."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_jax.data.records import Document
from msa_jax.memory import segments
from msa_jax.memory.chunks import Chunks
from msa_jax.memory.store import EncodedDocument, Part, Store, StoreError

from .banks import FINGERPRINT, LAYOUT, arrays, contents, create, encode, put, put_text

A = Document("a", "first half, second", "Title", {"year": 1907, "tags": ["x"]})
B = Document("b", "other")


@pytest.fixture
def store(tmp_path):
    with create(tmp_path / "bank") as store:
        yield store


@pytest.fixture
def small_files(monkeypatch):
    """Blocks of about six chunks, segments of about three blocks."""
    size = sum(LAYOUT.bytes_per_chunk())
    monkeypatch.setattr(segments, "BLOCK_BYTES", 6 * size)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 18 * size)


def test_documents_survive_reopening(tmp_path):
    with create(tmp_path / "bank") as store:
        assert put(store, A, B) == 1
    with Store.open(tmp_path / "bank", fingerprint=FINGERPRINT) as store:
        assert (store.layout, store.facts) == (LAYOUT, {"checkpoint": "here"})
        assert list(store.keys()) == ["a", "b"] and "a" in store and "c" not in store
        assert store.parts().ids.tolist() == [1, 2, 3, 4]
        passages = store.passages([1, 2, 3, 4])
        assert [x.text for x in passages] == ["first ha", "lf, seco", "nd", "other"]
        assert [(x.key, x.title, x.part, x.num_parts) for x in passages[1:]] == [
            ("a", "Title", 1, 3),
            ("a", "Title", 2, 3),
            ("b", "", 0, 1),
        ]
        assert passages[2].metadata == A.metadata
        assert (store.num_documents, store.num_parts) == (2, 4)
        assert (store.num_chunks, store.num_tokens) == (1 + 1 + 3 + 2, 4 * 7)
        (((rows, chunks)),) = store.read(store.parts())
        assert rows.tolist() == [0, 1, 2, 3]
        expected = [("afirst ha", 1), ("alf, seco", 1), ("and", 3), ("bother", 2)]
        expected = Chunks.concatenate([arrays(*part) for part in expected])
        for name, array in chunks.arrays():
            np.testing.assert_array_equal(array, getattr(expected, name))


def test_an_update_has_new_ids_and_a_removal_leaves_none(store):
    put(store, A, B)
    assert put(store, Document("a", "new")) == 2
    assert store.commit(deletes=["b"]) == 3
    assert store.parts().ids.tolist() == [5]
    assert list(store.keys()) == ["a"]
    assert (store.num_documents, store.num_parts, store.num_chunks) == (1, 1, 4)


def test_changes_lead_from_any_version_to_the_present(store):
    live = [store.parts().ids]
    for key, text in [("a", "x" * 30), ("b", "y"), ("a", "z" * 9), ("c", "w"), ("b", "")]:
        put_text(store, key, text)
        live.append(store.parts().ids)
    store.compact(0.0)
    for since, ids in enumerate(live):
        changes = store.changes(since)
        assert changes.version == store.version == 5
        kept = np.setdiff1d(ids, changes.removed)
        assert np.union1d(kept, changes.added.ids).tolist() == store.parts().ids.tolist()
    assert len(store.changes(5).added) == len(store.changes(5).removed) == 0
    with pytest.raises(StoreError, match="no version 6"):
        store.changes(6)


def test_ids_are_never_used_again(tmp_path):
    with create(tmp_path / "bank") as store:
        assert list(store.reserve_ids(2)) == [1, 2]
        put(store, A)
        store.commit(deletes=["a"])
        assert store.reserve_ids(1) == range(6, 7)
        store.compact(0.0)
    with Store.open(tmp_path / "bank", write=True) as store:
        # Reserved but not committed: nobody has seen it.
        assert store.reserve_ids(1) == range(6, 7)
        with pytest.raises(StoreError, match="id 5 is not above 5"):
            store.commit([encode(B, 5)])


def _with(**changes) -> EncodedDocument:
    encoded = encode(Document("new", "12345678abc"), 10)
    part = encoded.parts[1]
    part = Part(**{**vars(part), **changes})
    return EncodedDocument(encoded.document, (encoded.parts[0], part), encoded.chunks)


def _document(**changes) -> EncodedDocument:
    return encode(Document(**{"id": "new", "text": "text", **changes}), 10)


@pytest.mark.parametrize(
    ("puts", "deletes", "message"),
    [
        ([encode(B, 10), encode(B, 11)], [], "'b' occurs twice"),
        ([encode(A, 10)], ["a"], "'a' occurs twice"),
        ([], ["nobody"], "'nobody' is not in the bank"),
        ([EncodedDocument(B, (), encode(B, 10).chunks)], [], "'b' has no parts"),
        ([encode(B, 4)], [], "id 4 is not above 4"),
        ([encode(B, 11), encode(A, 10)], [], "id 10 is not above 11"),
        ([_with(id=12)], [], "id 12 does not follow 10"),
        ([_with(start=7)], [], "part 11 spans characters 7 to 11"),
        ([_with(stop=12)], [], "part 11 spans characters 8 to 12"),
        ([_with(chunks=9)], [], "part 11 has 9 chunks instead of 1 to 8"),
        ([_with(chunks=0)], [], "part 11 has 0 chunks"),
        ([_with(chunks=3)], [], r"keys is int8\[2, 5, 4\] instead of int8\[2, 4, 4\]"),
        ([_document(metadata={"a": {1, 2}})], [], "metadata must be"),
        ([_document(metadata={"a": float("nan")})], [], "metadata must be"),
        ([_document(text="\ud800")], [], "surrogate"),
        ([_document(id="\ud800")], [], "surrogates"),
    ],
)
def test_a_commit_that_cannot_be_made_changes_nothing(store, puts, deletes, message):
    put(store, A, B)
    before = contents(store)
    with pytest.raises(StoreError, match=message):
        store.commit(puts or [_document(id="fine")], deletes)
    assert contents(store) == before and store.version == 1
    assert store.verify() == []
    put(store, Document("c", "later"))
    assert store.verify() == []


def test_arrays_of_another_layout_are_refused(store):
    encoded = encode(B, 1)
    keys = encoded.chunks.keys.astype(np.float32)
    chunks = Chunks(keys=keys, content=encoded.chunks.content)
    with pytest.raises(StoreError, match="keys is float32.* instead of int8"):
        store.commit([EncodedDocument(B, encoded.parts, chunks)])


def test_nothing_to_commit_is_no_version(store):
    assert store.commit() == 0


def test_unchanged_compares_all_that_a_document_says(store):
    put(store, A)
    others = [
        Document("a", A.text + ".", A.title, A.metadata),
        Document("a", A.text, "", A.metadata),
        Document("a", A.text, A.title, {"year": 1908, "tags": ["x"]}),
        Document("aa", A.text, A.title, A.metadata),
    ]
    same = Document("a", A.text, A.title, {"tags": ["x"], "year": 1907})
    assert store.unchanged([same, *others]) == [True, False, False, False, False]
    store.commit(deletes=["a"])
    assert store.unchanged([same]) == [False]


def test_integers_may_be_numpys(store):
    document = Document("a", "some")
    part = Part(*np.array([1, 0, 4, 4, 1]))
    store.commit([EncodedDocument(document, (part,), arrays("asome", 1))])
    assert store.passage(np.int64(1)).text == "some"
    assert store.changes(np.int64(0)).added.ids.tolist() == [1]
    assert store.verify() == []


def test_text_between_parts_is_kept_for_the_next_reader(store):
    """Parts may leave out white space; what they say is unaffected."""
    document = Document("a", "  one\n\n two ")
    parts = (Part(1, 2, 5, 4, 1), Part(2, 8, 11, 4, 1))
    store.commit([EncodedDocument(document, parts, arrays("a", 2))])
    assert [x.text for x in store.passages([1, 2])] == ["one", "two"]


def test_select(store):
    put(
        store,
        Document("a", "x" * 9, "One", {"year": 1907, "lang": "en", 'odd."key\n': "é", "on": True}),
        Document("b", "x", "Two", {"year": 1908, "lang": None, "tags": ["en"], "on": False}),
        Document("c", "x", "One", {"year": "1907", "lang": "de", "share": 0.5}),
        Document("d", "x", "Two", {"year": 1907, "lang": "en"}),
    )
    store.commit(deletes=["d"])

    def found(**filters):
        return store.select(filters).tolist()

    assert found() == [1, 2, 3, 4]
    assert found(year=1907) == [1, 2]
    assert found(year="1907") == [4]
    assert found(year=[1908, 1907.0]) == [1, 2, 3]
    assert found(year=1907, lang="de") == []
    assert found(lang=None) == [3]
    assert found(lang=[None, "de"]) == [3, 4]
    assert found(lang="en") == [1, 2]
    assert found(tags="en") == found(tags=["fr", "en"]) == [3]
    assert found(tags="e") == found(missing=None) == found(year=[]) == []
    assert found(on=True) == [1, 2] and found(on=False) == [3]
    assert found(share=0.5) == [4]
    assert found(title="One") == [1, 2, 4] and found(key=["b", "c"]) == [3, 4]
    assert store.select({'odd."key\n': "é"}).tolist() == [1, 2]
    for value in ({"from": 1900}, float("nan"), [[1]]):
        with pytest.raises(StoreError, match="filter 'year'"):
            found(year=value)


def test_filters_compare_exactly(store):
    """Nothing that looks alike is taken for another: another tenant's documents never show."""
    values = [
        "t",
        "t\0",
        "t\0a",
        "T",
        "é",
        "e\u0301",
        "t ",
        "1",
        1,
        True,
        None,
        [],
        ["t\0", 1],
        2**70,
    ]
    documents = [Document(f"d{n}", "x", metadata={"f": x}) for n, x in enumerate(values)]
    put(store, *documents, Document("k", "x", metadata={"f\0g": "t"}), Document("k\0", "x"))
    expected = {x: [n + 1] for n, x in enumerate(values[:9])} | {2**70: [14]}
    expected |= {"t\0": [2, 13], 1: [9, 13]}
    for value, ids in expected.items():
        assert store.select({"f": value}).tolist() == ids, repr(value)
    assert store.select({"f": True}).tolist() == [10]
    assert store.select({"f": None}).tolist() == [11]
    assert store.select({"f": ["T", "t "]}).tolist() == [4, 7]
    assert store.select({"f\0g": "t"}).tolist() == [15]
    assert store.select({"f\0": "t"}).tolist() == []
    assert store.select({"key": "k"}).tolist() == [15]
    assert store.select({"key": "k\0"}).tolist() == [16]
    assert store.select({"key": ["k\0", "d0"], "title": ""}).tolist() == [1, 16]
    store.commit(deletes=["k\0"])
    assert "k" in store and "k\0" not in store


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
)
names = st.sampled_from(["f", "f\0", "f\0g", "é", "a,b\n", ""])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(names, scalars | st.lists(scalars)), max_size=5), names, st.data())
def test_filters_are_what_python_says(tmp_path_factory, metadata, name, data):
    known = [x for one in metadata if name in one for x in _members(one[name])]
    wanted = data.draw(st.lists(st.sampled_from(known) | scalars if known else scalars, max_size=3))
    same = {(type(x) is bool, x) for x in wanted}
    with create(tmp_path_factory.mktemp("bank") / "bank") as store:
        put(store, *(Document(f"d{n}", "x", metadata=one) for n, one in enumerate(metadata)))
        assert store.select({name: wanted}).tolist() == [
            n + 1
            for n, one in enumerate(metadata)
            if name in one and any((type(x) is bool, x) in same for x in _members(one[name]))
        ]


def _members(value):
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("name", ["key_scale", "content"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_never_enters_a_bank_and_is_found_in_an_old_one(
    tmp_path, monkeypatch, name, value
):
    encoded = encode(A, 1)
    spoiled = {key: array.copy() for key, array in encoded.chunks.arrays()}
    spoiled[name][1, 2] = value
    puts = [EncodedDocument(A, encoded.parts, Chunks(**spoiled))]
    with create(tmp_path / "bank") as store:
        with pytest.raises(StoreError, match=f"document 'a': {name} holds NaN or infinity"):
            store.commit(puts)
        assert store.num_documents == 0 and store.verify() == []
        monkeypatch.setattr(Chunks, "not_finite", lambda self: [])
        store.commit(puts)
        monkeypatch.undo()
        (problem,) = store.verify()
        assert f"000001.seg: block at byte 0: NaN or infinity in {name}; encode all" in problem


@pytest.mark.usefixtures("small_files")
def test_any_parts_can_be_read_in_any_order(store, tmp_path):
    put(store, *(Document(f"d{n}", "text " * n) for n in range(1, 12)))
    assert store.stats["blocks"] > 5 and store.stats["segments"] > 2
    parts = store.parts()
    some = parts[np.random.default_rng(0).permutation(len(parts))[::2]]
    seen = []
    for rows, chunks in store.read(some):
        seen += rows.tolist()
        passages = store.passages(some.ids[rows])
        counts = some.chunks[rows].tolist()
        expected = [arrays(x.key + x.text, n) for x, n in zip(passages, counts, strict=True)]
        expected = Chunks.concatenate(expected)
        for name, array in chunks.arrays():
            np.testing.assert_array_equal(array, getattr(expected, name))
    assert sorted(seen) == list(range(len(some)))


def test_keys_can_be_read_alone(store):
    put(store, A)
    ((_, chunks),) = store.read(store.parts(), content=False)
    assert chunks.content is None and len(chunks) == 5
    np.testing.assert_array_equal(chunks.keys[:, 1:2], arrays("alf, seco", 1).keys)


def test_content_of_parts_is_a_slice_of_the_file(store):
    put(store, A, B)
    values, scales = store.content(1, [3, 1])
    assert scales is None
    np.testing.assert_array_equal(values[0], arrays("and", 3).content[1])
    np.testing.assert_array_equal(values[1], arrays("afirst ha", 1).content[1])
    assert all(x.flags.c_contiguous and not x.flags.owndata for x in values)
    with pytest.raises(StoreError, match="no part 9"):
        store.content(0, [1, 9])


@pytest.mark.usefixtures("small_files")
def test_a_table_from_before_a_compaction_can_still_be_read(store, tmp_path):
    put(store, *(Document(f"d{n}", "text " * n) for n in range(1, 12)))
    with Store.open(tmp_path / "bank") as reader:
        old = reader.parts()
        reading = reader.read(old)
        first_rows, first = next(reading)
        held = first.keys
        before = held.copy()
        store.commit(deletes=["d2", "d5", "d9"])
        assert store.compact(0.0) > 0
        np.testing.assert_array_equal(held, before)
        read = np.concatenate([first_rows, *(rows for rows, _ in reading)])
        gone = reader.changes(1).removed
        assert set(np.setdiff1d(old.ids, gone)) <= set(old.ids[read]) and len(gone) > 0
        for part in reader.parts().ids[::3]:
            passage = reader.passage(part)
            (value,), _ = reader.content(0, [part])
            wanted = arrays(passage.key + passage.text, len(value)).content[0]
            np.testing.assert_array_equal(value, wanted)


def test_compaction_leaves_nothing_of_what_was_removed(store, tmp_path):
    put(store, Document("secret-key", "secret-text", "secret-title", {"m": "secret-metadata"}), B)
    assert store.passage(1).text == "secret-t"
    store.commit(deletes=["secret-key"])
    # An answer under way may still rest on it.
    assert store.passage(1).text == "secret-t"
    assert store.compact() > 0
    with pytest.raises(StoreError, match="no part 1"):
        store.passage(1)
    files = [x.read_bytes() for x in (tmp_path / "bank").rglob("*") if x.is_file()]
    assert not any(b"secret" in data for data in files)
    assert arrays("secret-keysecret-t", 1).keys.tobytes() not in b"".join(files)
    assert store.stats["bytes_live"] == 2 * sum(LAYOUT.bytes_per_chunk())
    assert store.verify() == []


def test_files_and_blocks_never_get_the_number_of_others(tmp_path):
    """A reader that has the old file mapped would take it for the new one."""
    path = tmp_path / "bank"
    with create(path) as store:
        put(store, A)
        reader = Store.open(path)
        contents(reader)
        store.commit(deletes=["a"])
        store.compact(0.0)
        assert not list((path / "segments").iterdir())
    with reader, Store.open(path, write=True) as store:
        put(store, B)
        assert [x.name for x in (path / "segments").iterdir()] == ["000002.seg"]
        assert store.parts().block.tolist() == [2]
        assert contents(reader) == {"b": ((4,), "other", {})}


def test_compaction_leaves_alone_what_is_mostly_live(store, tmp_path):
    def files():
        return sorted(x.name for x in (tmp_path / "bank" / "segments").iterdir())

    put(store, *(Document(f"d{n}", "12345678") for n in range(10)))
    store.commit(deletes=["d0"])
    store.compact(0.25)
    assert files() == ["000001.seg"]
    store.compact(0.05)
    assert files() == ["000002.seg"]
    store.compact(0.0)
    assert files() == ["000002.seg"]


@pytest.mark.usefixtures("small_files")
def test_compaction_beside_commits(store):
    put(store, *(Document(f"d{n}", "text " * 5) for n in range(10)))
    done = threading.Event()
    errors = []

    def compact():
        try:
            while not done.is_set():
                store.compact(0.0)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=compact)
    thread.start()
    for n in range(30):
        put(store, Document(f"d{n % 10}", f"text {n} " * 5))
        assert len(list(store.read(store.parts()))) > 0
    done.set()
    thread.join()
    assert not errors
    assert store.verify() == []
    assert {text for _, text, _ in contents(store).values()} == {
        f"text {n} " * 5 for n in range(20, 30)
    }


def test_a_reader_sees_the_commits_of_the_writer(store, tmp_path):
    with Store.open(tmp_path / "bank") as reader:
        assert reader.version == 0 and len(reader.parts()) == 0
        put(store, A)
        assert reader.version == 1 and len(reader.parts()) == 3 and "a" in reader
        store.commit(deletes=["a"])
        assert reader.changes(1).removed.tolist() == [1, 2, 3]
        with pytest.raises(StoreError, match="write=True"):
            reader.commit(deletes=["a"])


def test_a_closed_bank_says_so(store):
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.parts()


def test_another_fingerprint_is_refused(store, tmp_path):
    other = {**FINGERPRINT, "model": "m2"}
    with pytest.raises(StoreError, match="model 'm1' and not 'm2'"):
        Store.open(tmp_path / "bank", fingerprint=other)


def test_creation_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "bank"
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            create(path)
    assert not Store.exists(path)
    with pytest.raises(StoreError, match="there is no bank"):
        Store.open(path)
    with create(path) as store:
        put(store, A)
    with pytest.raises(StoreError, match="there is a bank already"):
        create(path)
    assert Store.exists(path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"holds 'thesis.txt'"):
        create(tmp_path / "other")
