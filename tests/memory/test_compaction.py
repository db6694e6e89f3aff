"""Compaction in the background starts when it is worth it, and never disturbs."""

import pytest

from msa_jax.memory import compaction
from msa_jax.memory.compaction import BackgroundCompaction
from msa_jax.memory.store import StoreError
from tests.memory.banks import contents, create, put_text


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(compaction, "_LEAST", 4)
    with create(tmp_path / "bank") as store:
        for number in range(8):
            put_text(store, str(number), f"text {number} of some length")
        yield store


def test_garbage_goes_when_there_is_enough_of_it(store):
    background = BackgroundCompaction(store)
    for number in range(4):
        store.commit(deletes=[str(number)])
        background.note_removed(1)
        background.wait()
    before = store.stats["bytes_garbage"]
    store.commit(deletes=["4"])
    background.note_removed(1)
    background.wait()
    assert store.stats["bytes_garbage"] < before / 4  # What is left is padding.
    assert sorted(contents(store)) == ["5", "6", "7"]


def test_commits_go_on_beside_it(store):
    background = BackgroundCompaction(store)
    store.commit(deletes=[str(number) for number in range(5)])
    background.note_removed(5)
    put_text(store, "new", "a new text")
    background.wait()
    assert sorted(contents(store)) == ["5", "6", "7", "new"]


def test_a_compaction_that_fails_is_a_warning(store, monkeypatch):
    def fail():
        raise StoreError("no room.")

    monkeypatch.setattr(store, "compact", fail)
    caught = []
    monkeypatch.setattr(compaction.warnings, "warn", lambda text, **_: caught.append(text))
    background = BackgroundCompaction(store)
    background.note_removed(100)
    background.wait()
    assert caught == ["compaction failed: no room."]
