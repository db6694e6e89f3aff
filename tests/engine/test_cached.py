"""Banks in the cache hold exactly what a source has, and one process at a time fills them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from msa_jax.data.records import RecordError
from msa_jax.data.sources import open_source
from msa_jax.engine import cached
from msa_jax.engine.cached import cached_bank
from msa_jax.engine.loading import load_model
from msa_jax.memory.chunks import Chunks
from tests.engine.banks import save_model


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(save_model(tmp_path_factory.mktemp("model")), template="plain")


class StubEncoder:
    """Encodes everything as zeros, when it may."""

    may_go, started = threading.Event(), threading.Event()
    encoded = 0

    def __init__(self, model, params, layout, mesh):
        self._layout = layout

    def encode(self, parts, on_batch):
        self.started.set()
        assert self.may_go.wait(timeout=30)
        StubEncoder.encoded += len(parts)
        count = sum(-(-len(part) // self._layout.pooling_kernel_size) for part in parts)
        fields = self._layout.fields(count).items()
        return Chunks(**{name: np.zeros(shape, dtype) for name, (shape, dtype) in fields})


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.setenv("MSA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cached, "Encoder", StubEncoder)
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.txt").write_text(f"text {name}")
    StubEncoder.may_go.set()
    return folder


def keys_of(loaded, texts):
    with cached_bank(loaded, texts, open_source(texts)) as store:
        return list(store.keys())


def test_the_bank_follows_the_folder(loaded, texts):
    assert keys_of(loaded, texts) == ["a.txt", "b.txt"]
    (texts / "a.txt").unlink()
    (texts / "c.txt").write_text("text c")
    assert keys_of(loaded, texts) == ["b.txt", "c.txt"]


def test_nothing_is_forgotten_when_a_document_cannot_be_read(loaded, texts):
    keys_of(loaded, texts)
    (texts / "a.txt").rename(texts / "z.txt")
    (texts / "b.txt").write_bytes(b"\xff")
    with pytest.raises(RecordError, match=r"b\.txt: not text in UTF-8"):
        keys_of(loaded, texts)
    (texts / "b.txt").write_text("text b")
    (texts / "z.txt").rename(texts / "a.txt")
    encoded = StubEncoder.encoded
    assert keys_of(loaded, texts) == ["a.txt", "b.txt"] and StubEncoder.encoded == encoded


def test_a_second_process_waits_for_the_first(loaded, texts):
    StubEncoder.may_go.clear()
    StubEncoder.started.clear()
    waits = threading.Event()

    def note(text):
        assert text == "waiting for another process that encodes the same documents"
        waits.set()

    with ThreadPoolExecutor(2) as pool, pytest.MonkeyPatch.context() as patched:
        patched.setattr(cached, "note", note)
        first = pool.submit(keys_of, loaded, texts)
        assert StubEncoder.started.wait(timeout=30)
        second = pool.submit(keys_of, loaded, texts)
        assert waits.wait(timeout=30) and not second.done()
        StubEncoder.may_go.set()
        assert first.result() == second.result() == ["a.txt", "b.txt"]
