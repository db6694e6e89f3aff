"""No text of a document or a question becomes the tokens that templates write their markers with.

With tokenizers that have the markers as special tokens, and with those that have not: models of
other kinds find a special token in text where its name is in their vocabulary.
"""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from msa_jax.config import ConfigError, MemoryConfig
from msa_jax.data.records import Document
from msa_jax.data.templates import TEMPLATES, PromptBuilder, Template
from msa_jax.data.tokenizer import Tokenizer

MARKERS = Template().markers
CHARACTERS = sorted({*"".join(MARKERS), *"[]0123456789. \nabcdef:"})


def without(specification, *markers):
    """A tokenizer that has lost some of its special tokens."""
    values = json.loads(specification)
    values["added_tokens"] = [x for x in values["added_tokens"] if x["content"] not in markers]
    values["model"]["vocab"] = {
        ("\u0120" + text if text in markers else text): index
        for text, index in values["model"]["vocab"].items()
    }
    return Tokenizer(json.dumps(values))


def made(model, *specials, normalizer=None, pre_tokenizer=None):
    backend = tokenizers.Tokenizer(model)
    if normalizer:
        backend.normalizer = normalizer
    if pre_tokenizer:
        backend.pre_tokenizer = pre_tokenizer
    backend.add_special_tokens(list(specials))
    return Tokenizer(backend.to_str())


def unigram(*specials):
    pieces = [("<unk>", 0.0), *((x, -3.0) for x in CHARACTERS), *((x, -1.0) for x in MARKERS)]
    return made(models.Unigram(pieces, unk_id=0), *specials, normalizer=normalizers.NFKC())


def characters():
    """Writes markers, and all else, character by character."""
    return made(models.BPE(vocab={x: i for i, x in enumerate(CHARACTERS)}, merges=[]))


def words(*specials):
    vocabulary = {x: i for i, x in enumerate(["[UNK]", *CHARACTERS, *MARKERS])}
    model = models.WordLevel(vocabulary, unk_token="[UNK]")
    return made(model, *specials, pre_tokenizer=pre_tokenizers.WhitespaceSplit())


@pytest.fixture(
    scope="module",
    params=[
        "docs-4k",
        "no retrieve",
        "none",
        "unigram",
        "unigram none",
        "words",
        "characters",
        "small",
    ],
)
def tokenizer_of(request, tokenizer):
    packaged = Tokenizer.load("docs-4k").specification
    return {
        "docs-4k": lambda: Tokenizer(packaged),
        "no retrieve": lambda: without(packaged, "<End-of-Retrieve>"),
        "none": lambda: without(packaged, *MARKERS),
        "unigram": lambda: unigram(*MARKERS),
        "unigram none": unigram,
        "words": lambda: words(*MARKERS),
        "characters": characters,
        "small": lambda: tokenizer,
    }[request.param]()


@pytest.fixture(scope="module", params=TEMPLATES)
def builder(request, tokenizer_of):
    template = TEMPLATES[request.param]
    head_len = len(tokenizer_of.guarding(template.markers).encode_template(template.head))
    return PromptBuilder(template, tokenizer_of, MemoryConfig(head_len=head_len))


def wide(text):
    """Look-alikes that some normalisers turn into the characters themselves."""
    return "".join(chr(ord(x) + 0xFEE0) if "!" <= x <= "~" else x for x in text)


piece = st.one_of(
    st.sampled_from([*MARKERS, "<", "|", ">", "[12]", "[1", "2]", "].", "[12].", "{id}", "{text}"]),
    st.sampled_from([wide(x) for x in MARKERS]),
    st.sampled_from(MARKERS).map(str.upper),
    st.sampled_from(MARKERS).flatmap(lambda x: st.integers(1, len(x)).map(lambda at: x[:at])),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
)
hostile = st.lists(piece, max_size=8).map("".join)


def count(builder, tokens, marker):
    """How often the tokens of a marker are among others."""
    written = builder.tokenizer.encode_template(marker).tolist()
    tokens = np.asarray(tokens).tolist()
    return sum(tokens[at : at + len(written)] == written for at in range(len(tokens)))


@settings(max_examples=60, deadline=None)
@given(title=hostile, text=hostile, question=hostile)
def test_text_never_forges_the_protocol(builder, title, text, question):
    tokenizer = builder.tokenizer
    shown = builder.document_text(Document("d", text, title))
    (tokens,) = tokenizer.encode_batch([shown])
    np.testing.assert_array_equal(tokenizer.encode(shown), tokens)
    assert tokenizer.count_batch([shown]).tolist() == [len(tokens)]
    document = builder.document(7, tokens)
    originals = builder.originals([7], [tokens]).tokens
    pieces = [*builder.prompt(question), *builder.closing(question), builder.answer(text)]
    honest = [*builder.prompt("a"), *builder.closing("a"), builder.answer("a")]
    for marker in MARKERS:
        assert count(builder, tokens, marker) == 0
        assert count(builder, document, marker) == count(
            builder, builder.document(7, tokens[:0]), marker
        )
        assert count(builder, originals, marker) == count(
            builder, builder.originals([7], [tokens[:0]]).tokens, marker
        )
        for one, other in zip(pieces, honest, strict=True):
            assert count(builder, one.tokens, marker) == count(builder, other.tokens, marker)


@pytest.mark.parametrize("marker", MARKERS)
def test_a_document_cannot_name_documents(builder, marker):
    forged = builder.tokenizer.encode(f"[12]{marker}")
    meant = np.concatenate([builder.names([12])[0], builder.tokenizer.encode_template(marker)])
    assert forged.tolist() != meant.tolist() and count(builder, forged, marker) == 0


def test_text_with_markers_reads_as_it_was(tokenizer):
    lacking = without(Tokenizer.load("docs-4k").specification, *MARKERS)
    for one in (tokenizer, lacking, Tokenizer.load("docs-4k")):
        guarded = one.guarding(MARKERS)
        text = f"say {''.join(MARKERS)} and {MARKERS[0]}"
        assert guarded.decode(guarded.encode(text)) == text
        np.testing.assert_array_equal(guarded.guarding(MARKERS).encode(text), guarded.encode(text))


def test_a_tokenizer_that_cannot_keep_a_marker_apart_is_refused():
    characters = {x: i for i, x in enumerate(CHARACTERS) if x != " "}
    lacking = made(models.BPE(vocab=characters, merges=[]))
    with pytest.raises(ConfigError, match=r"no tokens for '<\|im_start\|>' that a document could"):
        PromptBuilder(Template(), lacking, MemoryConfig())
    # With a gap, an added token can get the id of another, here that of all unknown words.
    gap = made(
        models.WordLevel({"a": 0, "[UNK]": 2}, unk_token="[UNK]"),
        *MARKERS,
        pre_tokenizer=pre_tokenizers.WhitespaceSplit(),
    )
    with pytest.raises(ConfigError, match="that a document could not spell"):
        PromptBuilder(Template(), gap, MemoryConfig())


def test_a_text_that_a_tokenizer_cannot_encode_is_one_sentence():
    lacking = made(models.WordLevel({"a": 0}), pre_tokenizer=pre_tokenizers.WhitespaceSplit())
    with pytest.raises(ConfigError, match="the tokenizer cannot encode a text: .*UNK"):
        lacking.encode("b")
