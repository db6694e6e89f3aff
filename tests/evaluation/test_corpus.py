"""Which documents an evaluation tells apart, and which it takes for copies."""

import pytest

from msa_jax.config import ConfigError, MemoryConfig
from msa_jax.data.records import Document, Question, write_documents
from msa_jax.data.templates import TEMPLATES, PromptBuilder
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.evaluation.corpus import CorpusConfig, load_corpus
from msa_jax.evaluation.memories import Memories

DOCUMENTS = [
    Document("first", "The same text.", "First"),
    Document("second", "The same text.", "Second"),
    Document("later", "The same text.", "First", {"date": "1902"}),
    Document("copy", "The same text. ", "First", {"page": 3}),
    Document("title only", "", "Just a title"),
    Document("pool", "Other text.", metadata={"source": ["not", "text"]}),
    Document("nothing", " "),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_documents(folder / "zoo.jsonl", DOCUMENTS)
    builder = PromptBuilder(TEMPLATES["plain"], Tokenizer.load("docs-4k"), MemoryConfig(head_len=3))
    config = CorpusConfig((str(folder / "zoo.jsonl"),), max_document_tokens=64, id_space=1000)
    corpus = load_corpus(config, builder, folder / "kept")
    return corpus, list(corpus.texts(builder.tokenizer, range(len(corpus))))


def test_each_document_shows_its_own_title(corpus):
    corpus, texts = corpus
    assert texts == [
        "First\nThe same text.",
        "Second\nThe same text.",
        "First\nThe same text.",
        "Just a title",
        "Other text.",
    ]
    assert corpus.document_of["copy"] == corpus.document_of["first"]
    assert len(set(corpus.document_of.values())) == len(DOCUMENTS) - 1
    assert corpus.pools == ["zoo"], "what is no text names no pool"


def test_a_question_about_a_document_without_text_is_refused(corpus):
    corpus, _ = corpus
    Memories(corpus, [Question("q", "?", (), ("title only",))], [("zoo",)], (60,), seed=0)
    with pytest.raises(ConfigError, match="'q' needs 'nothing', of which no text is in the corpus"):
        Memories(corpus, [Question("q", "?", (), ("nothing",))], [("zoo",)], (60,), seed=0)
