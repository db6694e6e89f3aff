"""Whatever is done to a bank, in whatever order, it holds what a dictionary would."""

import shutil
import tempfile

import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from msa_jax.data.records import Document
from msa_jax.memory import segments
from msa_jax.memory.store import Store

from .banks import FINGERPRINT, LAYOUT, contents, create, put

KEYS = st.sampled_from("abcdef")
TEXTS = st.text("xyz é\n", min_size=1, max_size=40)


class Bank(RuleBasedStateMachine):
    """One writer, one reader that stays open, and a dictionary of texts."""

    def __init__(self):
        super().__init__()
        self.sizes = segments.BLOCK_BYTES, segments.SEGMENT_BYTES
        segments.BLOCK_BYTES = 6 * sum(LAYOUT.bytes_per_chunk())
        segments.SEGMENT_BYTES = 3 * segments.BLOCK_BYTES
        self.directory = tempfile.mkdtemp()
        self.path = f"{self.directory}/bank"
        self.writer = create(self.path)
        self.reader = Store.open(self.path)
        self.texts: dict[str, str] = {}
        self.live = [set()]
        self.owners: dict[int, tuple[str, str]] = {}

    def teardown(self):
        self.writer.close()
        self.reader.close()
        shutil.rmtree(self.directory)
        segments.BLOCK_BYTES, segments.SEGMENT_BYTES = self.sizes

    @rule(texts=st.dictionaries(KEYS, TEXTS, max_size=3), deletes=st.sets(KEYS, max_size=2))
    def commit(self, texts, deletes):
        deletes = (deletes & self.texts.keys()) - texts.keys()
        documents = [Document(key, text) for key, text in texts.items()]
        version = put(self.writer, *documents, deletes=tuple(sorted(deletes)))
        self.texts = {k: v for k, v in self.texts.items() if k not in deletes} | texts
        if texts or deletes:
            self.live.append(set(self.writer.parts().ids.tolist()))
        assert version == len(self.live) - 1

    @rule(share=st.sampled_from([0.0, 0.25, 0.9]))
    def compact(self, share):
        self.writer.compact(share)

    @rule()
    def reopen(self):
        self.writer.close()
        self.writer = Store.open(self.path, write=True, fingerprint=FINGERPRINT)

    @rule()
    def reopen_reader(self):
        self.reader.close()
        self.reader = Store.open(self.path)

    @rule(since=st.integers(0, 100))
    def follow(self, since):
        since %= len(self.live)
        changes = self.reader.changes(since)
        kept = self.live[since] - set(changes.removed.tolist())
        assert changes.version == len(self.live) - 1
        assert kept | set(changes.added.ids.tolist()) == self.live[-1]
        assert not kept & set(changes.added.ids.tolist())

    @rule()
    def verify(self):
        assert self.reader.verify() == []

    @invariant()
    def holds_what_was_put(self):
        found = contents(self.reader)
        assert {key: text for key, (_, text, _) in found.items()} == self.texts
        for key, (ids, text, _) in found.items():
            for part in ids:
                assert self.owners.setdefault(part, (key, text)) == (key, text)
        state = self.reader
        table = state.parts()
        assert (state.num_documents, state.num_parts) == (len(self.texts), len(table))
        assert state.num_chunks == table.chunks.sum()
        assert (np.diff(table.ids) > 0).all() if len(table) else True


TestBank = Bank.TestCase
TestBank.settings = settings(
    max_examples=30,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
