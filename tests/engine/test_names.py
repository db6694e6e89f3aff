"""Whatever the model prefers, only documents that exist are named, each once."""

import dataclasses
import functools
import itertools
import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_jax.config import ConfigError, MemoryConfig
from msa_jax.data.templates import TEMPLATES, PromptBuilder
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.engine.names import NameTable, Speller

TOKENIZERS = ("digit by digit", "several digits a token")


def several_digits_a_token():
    """Its stop word is several tokens too, and begins as a name does."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([f"[{number}]" for number in range(1, 2000)], trainer)
    return Tokenizer(json.dumps(json.loads(backend.to_str())))


@functools.cache
def builder_of(kind, **changes):
    tokenizer = Tokenizer.load("docs-4k") if kind == TOKENIZERS[0] else several_digits_a_token()
    if kind == TOKENIZERS[1]:
        changes = {"stop": "[enough", "retrieved_end": "[]"} | changes
    template = dataclasses.replace(TEMPLATES["plain"], **changes)
    head_len = len(tokenizer.encode_template(template.head))
    return PromptBuilder(template, tokenizer, MemoryConfig(head_len=head_len))


def ends_of(builder):
    return builder.retrieved([]).tokens.tolist(), builder.stop().tokens.tolist()


def all_rounds(builder, ids, max_names):
    """Every token sequence that a round may be."""
    end, stop = ends_of(builder)
    names = {doc_id: name.tolist() for doc_id, name in zip(ids, builder.names(ids), strict=True)}
    rounds = [((), stop)]
    for count in range(1, max_names + 1):
        for chosen in itertools.permutations(ids, count):
            rounds.append((chosen, sum((names[doc_id] for doc_id in chosen), []) + end))
    return rounds


DOCUMENT_IDS = st.lists(st.integers(1, 1300), max_size=4, unique=True)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(ids=DOCUMENT_IDS, max_names=st.integers(0, 3), data=st.data())
def test_what_may_come_next_is_what_some_round_goes_on_with(kind, ids, max_names, data):
    """No token too many and none too few, in every state on a random way to the end."""
    builder = builder_of(kind)
    possible = all_rounds(builder, ids, max_names)
    speller = Speller(NameTable(builder, ids), *ends_of(builder), max_names)
    tokens = []
    while not speller.finished:
        at = len(tokens)
        possible = [way for way in possible if way[1][:at] == tokens]
        assert speller.allowed().tolist() == sorted({way[at] for _, way in possible})
        tokens.append(data.draw(st.sampled_from(speller.allowed().tolist())))
        speller.advance(tokens[-1])
    assert (tuple(speller.named), tokens) in possible


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=50, deadline=None)
@given(
    changes=st.lists(st.tuples(st.booleans(), st.lists(st.integers(1, 1300), max_size=8))),
)
def test_a_changed_table_is_that_of_its_documents(kind, changes):
    builder = builder_of(kind)
    table, ids = NameTable(builder), set()
    for added, some in changes:
        (table.add if added else table.remove)(some)
        ids = ids | set(some) if added else ids - set(some)
        fresh = NameTable(builder, sorted(ids))
        np.testing.assert_array_equal(table.ids, fresh.ids)
        width = len(fresh.columns)
        np.testing.assert_array_equal(table.columns[:width], fresh.columns)
        assert (table.columns[width:] == -1).all()


def test_a_round_is_not_disturbed_by_changes_of_the_table():
    builder = builder_of(TOKENIZERS[0])
    table = NameTable(builder, [12, 34])
    speller = Speller(table, *ends_of(builder), max_names=2)
    table.remove([12, 34])
    table.add([5])
    for token in builder.retrieved([34, 12]).tokens:
        speller.advance(token)
    assert speller.named == [34, 12] and speller.finished


def test_tokens_without_alternative_are_found_at_once():
    builder = builder_of(TOKENIZERS[0])
    end, stop = ends_of(builder)
    speller = Speller(NameTable(builder, [123, 145]), end, stop, max_names=1)
    name = builder.names([145])[0].tolist()
    assert speller.follow() == []  # A name or `stop`.
    speller.advance(name[0])
    assert speller.follow() == name[1:2]
    speller.advance(name[2])
    assert speller.follow() == name[3:] + end
    assert speller.finished and speller.named == [145]


def test_a_token_that_continues_nothing_is_refused():
    builder = builder_of(TOKENIZERS[0])
    speller = Speller(NameTable(builder, [12]), *ends_of(builder), max_names=1)
    with pytest.raises(ValueError, match="token 0 continues no name"):
        speller.advance(0)


def test_names_that_a_reader_cannot_tell_apart_are_refused():
    builder = builder_of(TOKENIZERS[0], retrieved="{id}")
    NameTable(builder, [12, 34])
    with pytest.raises(ConfigError, match=r"template\.retrieved '\{id\}' .* not in an id"):
        NameTable(builder, [12, 124])
