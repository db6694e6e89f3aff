"""BM25 and dense rankings on a corpus where it is plain what they must be."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from msa_jax.config import MemoryConfig
from msa_jax.data.records import read_questions
from msa_jax.data.templates import TEMPLATES, PromptBuilder
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.engine.ranking import LISTED
from msa_jax.evaluation import baselines
from msa_jax.evaluation.baselines import BM25, Dense
from msa_jax.evaluation.corpus import CorpusConfig, load_corpus
from msa_jax.evaluation.memories import Memories
from tests.evaluation import small_suite


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load("docs-4k")


@pytest.fixture(scope="module")
def memories(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("baselines")
    small_suite.write_files(folder)
    values = small_suite.suite_values(folder)
    builder = PromptBuilder(TEMPLATES["plain"], tokenizer, MemoryConfig())
    corpus = load_corpus(CorpusConfig(**values["corpus"]), builder, folder / "corpus")
    questions = read_questions(folder / "questions.jsonl")
    return Memories(corpus, questions, (("zoo",), ("others",)), small_suite.SIZES, seed=0)


def check(memories, rankings) -> None:
    """The documents that have the animals in their titles come first; only members are ranked."""
    seen = []
    for question, by_size in rankings:
        seen.append(question)
        for size, (ranking, scores) in enumerate(by_size):
            assert (np.diff(scores) <= 0).all() and len(scores) == len(ranking)
            own = memories.documents[question]
            assert set(memories.corpus.document[ranking[: len(own)]]) == set(own)
            assert len(ranking) <= min(LISTED, memories.num_parts[question, size])
            assert len(set(ranking.tolist())) == len(ranking)
            pools = np.array(memories.corpus.pools)[memories.corpus.pool[ranking]]
            assert size or set(pools) == {"zoo"}, "the smallest memory has no others"
    assert seen == list(range(len(memories.questions)))


def test_bm25_finds_the_word_that_counts(memories, tokenizer):
    pytest.importorskip("bm25s")
    sizes = range(len(small_suite.SIZES))
    system = BM25(memories.corpus, tokenizer)
    check(memories, system.rank(memories, sizes))
    only_large = [ranking for _, (ranking,) in system.rank(memories, [2])]
    of_all = [by_size[2] for _, by_size in system.rank(memories, sizes)]
    np.testing.assert_equal(only_large, of_all)


class WordCounts:
    """An encoder whose embeddings are which words, of four letters and more, a text has."""

    dim = 512

    def tokenize(self, texts):
        return [
            sorted({w.strip(".,?").lower() for w in text.split() if len(w) > 4}) for text in texts
        ]

    def encode(self, tokens, on_batch=lambda count: None):
        rows = np.zeros((len(tokens), self.dim), np.float32)
        for row, words in zip(rows, tokens, strict=True):
            row[[zlib.crc32(word.encode()) % self.dim for word in words]] = 1
        return rows / np.maximum(1, np.linalg.norm(rows, axis=1, keepdims=True))


def test_dense_ranks_by_the_product_of_embeddings(memories, tokenizer):
    system = Dense(memories.corpus, tokenizer, WordCounts())
    check(memories, system.rank(memories, range(len(small_suite.SIZES)), batch_size=3))


@pytest.mark.parametrize("at_once", [1, 7, "all but one", "all"])
def test_every_part_is_embedded_however_many_texts_there_are(
    memories, tokenizer, monkeypatch, at_once
):
    corpus, embedded = memories.corpus, []

    class Recorder(WordCounts):
        def encode(self, tokens, on_batch=lambda count: None):
            embedded.extend(tokens)
            return super().encode(tokens, on_batch)

    at_once = {"all but one": len(corpus) - 1, "all": len(corpus)}.get(at_once, at_once)
    monkeypatch.setattr(baselines, "_TEXTS_AT_ONCE", at_once)
    system = Dense(corpus, tokenizer, Recorder())
    texts = list(corpus.texts(tokenizer, range(len(corpus))))
    assert len(texts) == len(corpus) and embedded == WordCounts().tokenize(texts)
    check(memories, system.rank(memories, range(len(small_suite.SIZES))))


def test_texts_come_back_from_the_corpus_that_is_kept(memories, tokenizer):
    corpus = memories.corpus
    (part,) = memories.own[1]
    assert list(corpus.texts(tokenizer, [part])) == ["Heron\nThe heron sleeps under a boat."]
