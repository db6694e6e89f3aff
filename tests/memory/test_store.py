"""A bank holds what was committed, to the bit, whoever asks and however often it is opened."""

import numpy as np

from msa_jax.data.records import Document
from msa_jax.memory.store import Store

from .banks import FINGERPRINT, LAYOUT, arrays, create, put

A = Document("a", "first half, second", "Title", {"year": 1907, "tags": ["x"]})
B = Document("b", "other")


def test_documents_survive_reopening(tmp_path):
    with create(tmp_path / "bank") as store:
        assert put(store, A, B) == 1
    with Store.open(tmp_path / "bank", fingerprint=FINGERPRINT) as store:
        assert (store.layout, store.facts) == (LAYOUT, {"checkpoint": "here"})
        assert list(store.keys()) == ["a", "b"]
        parts = store.parts()
        assert parts.ids.tolist() == [1, 2, 3, 4]
        texts = [store.passage(part).text for part in parts.ids]
        assert texts == ["first ha", "lf, seco", "nd", "other"]
        for rows, chunks in store.read(parts):
            assert rows.tolist() == [0, 1, 2, 3]
            expected = [arrays(k + t, 1 + len(t) % 4) for k, t in zip("aaab", texts, strict=True)]
            for name, array in chunks.arrays():
                joined = np.concatenate([getattr(x, name) for x in expected], axis=1)
                np.testing.assert_array_equal(array, joined)
