"""Whatever happens to a bank and its index, search finds exactly what is live and allowed."""

import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from msa_jax.data.records import Document
from msa_jax.memory.store import EncodedDocument, Part, Store
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
            files[-1].write_bytes(bytes([255]) + files[-1].read_bytes()[1:])
        elif damage == "empty":
            for path in folder.glob("*"):
                path.write_bytes(b"")
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
    max_examples=12,
    stateful_step_count=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
