"""The index ranks as BM25 does, before and after changes, and knows when its bytes are wrong."""

import math
from collections import Counter

import numpy as np
import pytest

from msa_jax.memory.parts import StoreError
from msa_jax.memory.words import index as indices
from msa_jax.memory.words.index import K1, B, UnusableIndex, WordsIndex
from msa_jax.memory.words.terms import words

RNG = np.random.default_rng(0)
VOCABULARY = [f"w{n}" for n in range(40)]
# Not all words are equally frequent. Lengths up to 40 are exact in the index.
TEXTS = {
    number: " ".join(RNG.choice(VOCABULARY, RNG.integers(3, 40), p=np.arange(1, 41) / 820))
    for number in range(1, 201)
}


def reference(texts, question):
    """BM25 as published (Lucene's weights of words), over texts and the empty one of the stamp."""
    counts = {number: Counter(words(text)) for number, text in texts.items()}
    num_texts = len(texts) + 1
    mean = sum(map(Counter.total, counts.values())) / num_texts
    scores = Counter()
    for word in set(words(question)):
        having = sum(word in count for count in counts.values())
        weight = math.log(1 + (num_texts - having + 0.5) / (having + 0.5))
        for number, count in counts.items():
            norm = K1 * (1 - B + B * count.total() / mean)
            if word in count:
                scores[number] += weight * (K1 + 1) * count[word] / (count[word] + norm)
    return dict(sorted(scores.items(), key=lambda item: (-item[1], item[0])))


@pytest.fixture(params=["disk", "memory"])
def index(request, tmp_path):
    folder = tmp_path / "words" if request.param == "disk" else None
    return WordsIndex.build(folder, "s1", TEXTS.items())


@pytest.mark.parametrize("question", ["w1 w2 w3", "w39 w38", "w5", "w0 w7 w39 w7"])
def test_scores_are_those_of_bm25(index, question):
    [(ids, scores)] = index.search([question], 1000)
    expected = reference(TEXTS, question)
    assert dict(zip(ids.tolist(), scores, strict=True)) == pytest.approx(expected, rel=1e-5)
    assert (np.diff(scores) <= 0).all()
    [(best, _)] = index.search([question], 10)
    np.testing.assert_allclose([expected[n] for n in best], list(expected.values())[:10], 1e-5)


def test_words_of_many_texts_do_not_count_beside_others(index, monkeypatch):
    [all_words] = index.search(["w39 w1"], 1000)
    monkeypatch.setattr(indices, "_COMMON_TEXTS", 30)
    [rare] = index.search(["w1"], 1000)
    [both] = index.search(["w39 w1"], 1000)
    np.testing.assert_array_equal(rare, both)
    assert len(all_words[0]) > len(both[0])
    [(common, _)] = index.search(["w39 w38"], 1000)
    assert len(common) > 100


@pytest.mark.parametrize("share", [0.01, 0.1, 0.9])
def test_a_filter_keeps_the_order_of_what_it_allows(index, share):
    allowed = np.flatnonzero(RNG.random(201) < share)
    [(ids, scores)] = index.search(["w1 w2 w3"], 1000)
    kept = np.isin(ids, allowed)
    for count in (3, 1000):
        [(found, found_scores)] = index.search(["w1 w2 w3"], count, allowed)
        np.testing.assert_array_equal(found_scores, scores[kept][:count])
        np.testing.assert_array_equal(found, ids[kept][:count])


def test_nothing_is_found_where_nothing_can_be(index):
    rankings = index.search(["", "unheard of", "—"], 5)
    rankings += index.search(["w1"], 5, np.zeros(0, np.int64)) + index.search(["w1"], 0)
    assert [(len(ids), len(scores)) for ids, scores in rankings] == [(0, 0)] * 5


def test_changes_come_all_at_once_with_their_stamp(index):
    index.update("s2", [(300, "zebra w1"), (301, "zebra")], removed=[1, 2, 999])
    assert index.stamp == "s2"
    assert index.ids().tolist() == [*range(3, 201), 300, 301]
    assert index.search(["zebra"], 5)[0][0].tolist() == [301, 300]

    def breaks_off():
        yield 400, "yak"
        raise StoreError("the catalogue is damaged.")

    with pytest.raises(StoreError, match="damaged"):
        index.update("s3", breaks_off(), removed=[300])
    assert index.stamp == "s2" and len(index.search(["yak zebra"], 5)[0][0]) == 2
    index.update("s3", [(400, "yak")])
    assert index.search(["yak"], 5)[0][0].tolist() == [400]


def test_a_long_question_counts_with_its_rarest_words(index, monkeypatch):
    texts_with = Counter(word for text in TEXTS.values() for word in set(text.split()))
    rarest = min(texts_with, key=lambda word: (texts_with[word], word))
    [expected] = index.search([rarest], 9)
    monkeypatch.setattr(indices, "_MOST_WORDS", 1)
    [found] = index.search([" ".join(VOCABULARY)], 9)
    np.testing.assert_array_equal(found, expected)


def test_flipped_bits_are_found(tmp_path):
    folder = tmp_path / "words"
    WordsIndex.build(folder, "s1", TEXTS.items())
    files = [path for path in sorted(folder.iterdir()) if path.stat().st_size]
    assert any(path.suffix == ".idx" for path in files)
    for path in files:
        whole = path.read_bytes()
        if path.name == ".managed.json":
            continue  # Names of files, to delete those that are not used.
        for at in RNG.integers(0, len(whole), 5).tolist():
            changed = bytearray(whole)
            changed[at] ^= 1 << int(RNG.integers(8))
            path.unlink()  # Not changed where it is mapped.
            path.write_bytes(changed)
            try:
                index = WordsIndex.open(folder)
            except UnusableIndex:
                continue
            assert path.name == "meta.json" or at >= len(whole) - 130  # Of the footer's version.
            assert index.ids().tolist() == list(TEXTS) and index.stamp == "s1"
        path.unlink()
        path.write_bytes(whole)
    WordsIndex.open(folder)


def test_what_is_missing_or_cut_short_cannot_be_opened(tmp_path):
    with pytest.raises(UnusableIndex):
        WordsIndex.open(tmp_path / "words")
    folder = tmp_path / "words"
    WordsIndex.build(folder, "s1", TEXTS.items())
    path = next(folder.glob("*.store"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UnusableIndex):
        WordsIndex.open(folder)


def test_without_the_library_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(indices, "tantivy", None)
    with pytest.raises(StoreError, match="pip install tantivy"):
        WordsIndex.build(None, "", [])
