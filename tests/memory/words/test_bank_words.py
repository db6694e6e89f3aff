"""Whatever happens to a bank and its index, search finds exactly what is live and allowed."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from msa_jax.data.records import Document
from msa_jax.memory.store import EncodedDocument, Part, Store, StoreError
from msa_jax.memory.words import bank_words, index
from msa_jax.memory.words.bank_words import BankWords
from tests.memory.banks import arrays, create

KEYS = st.sampled_from("abcd")
WORDS = ("apple", "水", "x-1")


def put(store, *documents, deletes=()):
    """Commits documents of one part each."""
    ids = store.reserve_ids(len(documents))
    store.commit(
        [
            EncodedDocument(x, (Part(i, 0, len(x.text), 4, 1),), arrays(x.text, 1))
            for i, x in zip(ids, documents, strict=True)
        ],
        deletes,
    )


def replace(path, data):
    """Gives a file other bytes; whoever has it mapped keeps the old ones."""
    path.with_suffix(".tmp").write_bytes(data)
    path.with_suffix(".tmp").rename(path)


def flip(path):
    replace(path, bytes([255]) + path.read_bytes()[1:])


def found_keys(store, question, allowed=None):
    """Keys of the documents that a question finds."""
    [(ids, _)] = store.words.search([question], 100, allowed)
    return sorted(store.passage(part).key for part in ids.tolist())


class WordsOfBank(RuleBasedStateMachine):
    """One writer, one reader that stays open, and a dictionary of documents."""

    def __init__(self):
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.path = self.directory / "bank"
        self.writer = create(self.path)
        self.reader = Store.open(self.path)
        self.documents: dict[str, Document] = {}

    def teardown(self):
        self.writer.close()
        self.reader.close()
        shutil.rmtree(self.directory)

    @rule(
        texts=st.dictionaries(KEYS, st.sets(st.sampled_from(WORDS), min_size=1), max_size=2),
        deletes=st.sets(KEYS, max_size=2),
        group=st.integers(0, 1),
        followed=st.booleans(),
    )
    def commit(self, texts, deletes, group, followed):
        """A writer that is killed between the two commits has not followed the first."""
        deletes = (deletes & self.documents.keys()) - texts.keys()
        documents = [
            Document(key, " ".join(sorted(text)), f"of {key}", {"group": group})
            for key, text in texts.items()
        ]
        with pytest.MonkeyPatch.context() as patch:
            if not followed:
                patch.setattr(BankWords, "follow", lambda self: None)
            put(self.writer, *documents, deletes=tuple(sorted(deletes)))
        for key in deletes:
            del self.documents[key]
        self.documents |= {document.id: document for document in documents}

    @rule(followed=st.booleans())
    def compact(self, followed):
        with pytest.MonkeyPatch.context() as patch:
            if not followed:
                patch.setattr(BankWords, "forget", lambda self: None)
            self.writer.compact(0.0)

    @rule()
    def reopen(self):
        self.writer.close()
        self.reader.close()
        self.writer = Store.open(self.path, write=True)
        self.reader = Store.open(self.path)

    @rule()
    def keep_a_copy(self):
        self.writer.words.refresh()
        shutil.copytree(self.path / "words", self.directory / "copy", dirs_exist_ok=True)

    @rule(damage=st.sampled_from(["lose", "empty", "flip", "bring back"]))
    def damage(self, damage):
        """While nobody has it open."""
        self.writer.close()
        self.reader.close()
        folder = self.path / "words"
        files = sorted(folder.glob("*.idx"))
        if damage == "flip" and files:
            flip(files[-1])
        elif damage == "empty":
            for path in folder.glob("*"):
                replace(path, b"")
        else:
            shutil.rmtree(folder, ignore_errors=True)
            if damage == "bring back" and (self.directory / "copy").exists():
                shutil.copytree(self.directory / "copy", folder)
        self.writer = Store.open(self.path, write=True)
        self.reader = Store.open(self.path)

    @rule()
    def verify(self):
        self.writer.words.refresh()
        assert self.reader.verify() == []

    @invariant()
    def finds_what_is_there(self):
        for store in (self.reader, self.writer):
            for word in WORDS:
                having = sorted(k for k, x in self.documents.items() if word in x.text)
                assert found_keys(store, f"which {word}?") == having
            for key in "abcd":
                titled = self.documents.keys() & {key}
                assert set(found_keys(store, key)) == titled
            allowed = store.select({"group": 1})
            having = sorted(
                k for k, x in self.documents.items() if "x-1" in x.text and x.metadata["group"]
            )
            assert found_keys(store, "x-1", allowed) == having


TestWordsOfBank = WordsOfBank.TestCase
TestWordsOfBank.settings = settings(
    max_examples=8,
    stateful_step_count=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def store(tmp_path):
    with create(tmp_path / "bank") as store:
        put(store, Document("a", "apple"), Document("b", "banana", "of apple"))
        yield store


def all_bytes(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def segment_files(store):
    """Names of the files that hold words; none is ever used for other contents."""
    return {path.name for path in (store.path / "words").glob("*.*") if path.suffix == ".term"}


def test_compaction_leaves_no_byte_of_what_was_forgotten(store):
    put(store, Document("secret", "xylophone"), Document("other", "yesterday"))
    store.words.refresh()
    store.commit(deletes=["secret"])
    store.words.refresh()
    assert found_keys(store, "xylophone") == []
    before = segment_files(store)
    store.compact()
    assert not before & segment_files(store)
    assert b"xylophone" not in all_bytes(store.path)
    assert found_keys(store, "yesterday") == ["other"]
    assert store.verify() == []


def test_nothing_is_forgotten_later_than_by_the_next_refresh(store, monkeypatch):
    """A compaction was killed, or ran where the library is not installed."""
    store.words.refresh()
    before = segment_files(store)
    store.commit(deletes=["b"])
    with monkeypatch.context() as patch:
        patch.setattr(BankWords, "forget", lambda self: None)
        store.compact()
    store.close()
    with Store.open(store.path) as reader:
        assert found_keys(reader, "apple") == ["a"]
        assert not before & segment_files(store)


def test_without_the_library_only_search_fails(store, monkeypatch):
    store.words.refresh()
    monkeypatch.setattr(index, "tantivy", None)
    put(store, Document("c", "cherry"))
    store.commit(deletes=["b"])
    assert store.verify() == []
    store.compact()
    assert not (store.path / "words").exists()
    with pytest.raises(StoreError, match="pip install tantivy"):
        store.words.search(["cherry"], 5)
    monkeypatch.undo()
    assert found_keys(store, "cherry apple") == ["a", "c"]


def test_an_index_that_cannot_be_written_is_made_in_memory(store, monkeypatch):
    store.words.refresh()
    before = all_bytes(store.path / "words")

    def read_only(_):
        raise PermissionError("read-only")

    with Store.open(store.path) as reader:
        monkeypatch.setattr(BankWords, "follow", lambda self: None)
        monkeypatch.setattr(bank_words, "waiting_lock", read_only)
        for key in "cd":
            put(store, Document(key, "cherry"))
            store.commit(deletes=["a"] if key == "d" else [])
            assert (
                found_keys(reader, "cherry apple")
                == {"c": ["a", "b", "c"], "d": ["b", "c", "d"]}[key]
            )
        assert reader.words.refresh().is_in_memory
    assert all_bytes(store.path / "words") == before


def test_verify_says_what_is_wrong_and_what_to_do(store, tmp_path):
    store.words.refresh()
    with create(tmp_path / "other") as other:
        put(other, Document("a", "another bank's apple"))
        other.words.refresh()
        foreign = tmp_path / "other" / "words"
        kept = shutil.copytree(store.path / "words", tmp_path / "kept")
        shutil.rmtree(store.path / "words")
        shutil.copytree(foreign, store.path / "words")
        [problem] = store.verify()
        assert "not of this bank" in problem and "delete" in problem
        shutil.rmtree(store.path / "words")
        shutil.copytree(kept, store.path / "words")
    assert store.verify() == []
    path = next((store.path / "words").glob("*.idx"))
    flip(path)
    [problem] = store.verify()
    assert path.name in problem and "made anew" in problem
    shutil.rmtree(store.path / "words")
    assert store.verify() == []


def test_verify_compares_the_parts(store):
    store.words.refresh().update(store.words.refresh().stamp, [], removed=[1])
    [problem] = store.verify()
    assert "its parts" in problem
    put(store, Document("c", "behind"))
    assert len(store.verify()) == 1


def test_readers_and_a_writer_at_the_same_time(store):
    """Three processes find every document from the commit that adds it on."""
    script = (
        "import sys\n"
        "from msa_jax.memory.store import Store\n"
        "with Store.open(sys.argv[1]) as store:\n"
        "    for _ in range(10):\n"
        "        live = store.num_parts\n"
        "        [(ids, _)] = store.words.search(['apple'], 10**5)\n"
        "        assert live <= len(ids) <= store.num_parts, (live, len(ids), store.num_parts)\n"
    )
    readers = [subprocess.Popen([sys.executable, "-c", script, store.path]) for _ in range(2)]
    number = 0
    while any(reader.poll() is None for reader in readers):
        put(store, Document(f"k{number}", f"apple {number}"))
        number += 1
        time.sleep(0.01)
    assert [reader.wait() for reader in readers] == [0, 0]
    assert store.verify() == []


@pytest.mark.parametrize("step", ["add_document", "commit", "rename"])
def test_a_writer_that_is_killed_while_the_index_changes_loses_nothing(store, step):
    put(store, Document("c", "cherry"))
    store.words.refresh()
    store.close()
    child = os.fork()
    if child == 0:

        def die(frame, event, function):
            if event == "c_call" and function.__name__ == step:
                os.kill(os.getpid(), signal.SIGKILL)

        if step == "rename":
            shutil.rmtree(store.path / "words")
        with Store.open(store.path, write=True) as writer:
            writer.words.follow = lambda: None
            put(writer, Document("d", "date"))
            sys.setprofile(die)
            writer.words.refresh()
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    with Store.open(store.path) as reader:
        assert reader.verify() == []
        assert found_keys(reader, "cherry date apple") == ["a", "b", "c", "d"]
    store.close()


def test_filters_choose_among_what_is_found(store):
    put(store, Document("c", "apple", metadata={"year": 1901}))
    assert found_keys(store, "apple", store.select({"year": 1901})) == ["c"]
    assert found_keys(store, "apple", np.zeros(0, np.int64)) == []
