"""Documents cut into parts: those of training are those of a bank."""

import numpy as np
import pytest

from msa_jax.data.parts import PartWriter, split_documents
from msa_jax.data.records import Document
from msa_jax.data.templates import TEMPLATES, PromptBuilder

LONG = " ".join(f"The code {n} opens the harbor." for n in range(40))
DOCUMENTS = [
    Document("long", LONG, "A title"),
    Document("short", "  amber river \n"),
    Document("empty", " \n"),
    Document("long title", LONG, "stone " * 90),
]
MAX_TOKENS = 96


@pytest.fixture(scope="module")
def builder(tokenizer, memory_config):
    return PromptBuilder(TEMPLATES["plain"], tokenizer, memory_config)


@pytest.fixture(scope="module")
def table(builder):
    return split_documents(DOCUMENTS, builder, MAX_TOKENS)


def test_training_has_the_parts_that_a_bank_has(builder, table):
    for document, parts in zip(
        DOCUMENTS, PartWriter(builder, MAX_TOKENS).split(DOCUMENTS), strict=True
    ):
        assert len(parts) == len(table.of[document.id])
        for part, index in zip(parts, table.of[document.id], strict=True):
            np.testing.assert_array_equal(table[index], part.tokens)
            assert table.spans[index].tolist() == [part.start, part.stop]
            assert len(builder.document(12_345_678, table[index])) <= MAX_TOKENS
    assert len(table.of["long"]) > 5 and len(table.of["short"]) == 1


def test_parts_end_with_sentences_and_their_text_is_at_hand(builder, table):
    texts = [table.text(part, DOCUMENTS[0]) for part in table.of["long"]]
    assert " ".join(texts) == LONG and all(text.endswith(".") for text in texts)
    (short,) = table.of["short"]
    assert table.text(short, DOCUMENTS[1]) == "amber river"
    decoded = [builder.tokenizer.decode(table[part]) for part in table.of["long"]]
    assert decoded == [f" A title\n{texts[0]}", *(f" {text}" for text in texts[1:])]


def test_a_document_without_text_has_no_part(table):
    assert list(table.of["empty"]) == []


def test_documents_cut_in_several_slices_have_the_same_parts(builder, table, monkeypatch):
    monkeypatch.setattr("msa_jax.data.parts._CHARACTERS_AT_ONCE", 1)
    again = split_documents(DOCUMENTS, builder, MAX_TOKENS)
    assert again.of == table.of
    np.testing.assert_array_equal(again.spans, table.spans)
