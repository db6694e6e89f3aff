"""The words around documents and questions, their roles and their positions."""

import numpy as np
import pytest

from msa_jax.config import ConfigError, MemoryConfig
from msa_jax.core.segments import QUERY, RESPONSE, TEMPLATE
from msa_jax.data.records import Document
from msa_jax.data.templates import TEMPLATES, PromptBuilder


@pytest.fixture(scope="module")
def builder(tokenizer, memory_config):
    return PromptBuilder(TEMPLATES["plain"], tokenizer, memory_config)


def written(builder, pieces):
    return [(builder.tokenizer.decode(piece.tokens), piece.role) for piece in pieces]


def test_plain_prompt(builder):
    assert written(builder, builder.prompt("who?")) == [
        ("<|im_start|>user\n", TEMPLATE),
        ("who?", QUERY),
        ("<|im_end|>\n", TEMPLATE),
        ("<|im_start|>", RESPONSE),
    ]


def test_msa_4b_prompt_is_the_published_protocol(tokenizer, memory_config):
    builder = PromptBuilder(TEMPLATES["msa_4b"], tokenizer, memory_config)
    asked = (
        "\nPlease answer the question based on the above historical document information\n\n"
        "who?\nPlease return all documents related to the question\n"
    )
    pieces = builder.prompt("who?")
    assert written(builder, pieces)[1] == (asked, QUERY)
    np.testing.assert_array_equal(pieces[1].tokens, tokenizer.encode(asked))


def test_retrieval_and_answer(builder):
    texts = [builder.tokenizer.encode(text) for text in (" one", " two")]
    pieces = [
        builder.retrieved([4, 7]),
        builder.originals([4, 7], texts),
        *builder.closing("who?"),
        builder.answer("me"),
    ]
    assert written(builder, pieces) == [
        ("[4][7]<|object_ref_end|>", RESPONSE),
        ("[4]. one\n[7]. two\n<|object_ref_end|>", QUERY),
        ("<End-of-Retrieve>", RESPONSE),
        ("<|im_start|>The user's question is: who?\n<|object_ref_end|>", TEMPLATE),
        ("The answer to the question is:", RESPONSE),
        (" me<|im_end|>", RESPONSE),
    ]
    assert [piece.generated for piece in pieces] == [True, False, True, False, True, True]
    assert [piece.answer for piece in pieces] == [False] * 5 + [True]
    assert builder.answer_end == "<|im_end|>"


@pytest.mark.parametrize(("title", "text"), [("", " body"), ("Head", " Head\nbody")])
def test_a_document_stands_between_its_ids(builder, title, text):
    encoded = builder.tokenizer.encode(builder.document_text(Document("d", "body", title)))
    tokens = builder.document(12, encoded)
    assert builder.tokenizer.decode(tokens) == f"<|im_start|>[12].{text}[12]<|im_end|>"


def test_queries_start_after_the_positions_of_the_chosen_documents(builder, memory_config):
    head, chosen = memory_config.head_len, memory_config.top_k_docs
    positions = builder.positions(head + 3)
    expected = [*range(head), *range(head + chosen, head + chosen + 3)]
    assert positions.tolist() == expected


def test_a_head_of_another_length_is_refused(tokenizer, memory_config):
    memory = MemoryConfig(head_len=memory_config.head_len + 1)
    with pytest.raises(ConfigError, match=f"memory.head_len is {memory.head_len}, but .* has"):
        PromptBuilder(TEMPLATES["plain"], tokenizer, memory)
