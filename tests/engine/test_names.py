"""Whatever the model prefers, only documents that exist are named, each once, none read before."""

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
from msa_jax.engine.decoding import choose
from msa_jax.engine.names import NameTable, Speller
from msa_jax.engine.sampling import Sampler, SamplingConfig

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


DIGITS = builder_of(TOKENIZERS[0])


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
NOT_IN_A_TABLE = 1301


def some_of(ids):
    return st.lists(st.sampled_from(ids), unique=True)


def check_a_way(speller, possible, data):
    """Goes a random way to the end; what may come next is what possible ways go on with."""
    tokens = []
    while not speller.finished:
        at = len(tokens)
        possible = [way for way in possible if way[1][:at] == tokens]
        assert speller.allowed().tolist() == sorted({way[at] for _, way in possible})
        tokens.append(data.draw(st.sampled_from(speller.allowed().tolist())))
        speller.advance(tokens[-1])
    assert (tuple(speller.named), tokens) in possible


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(ids=DOCUMENT_IDS, max_names=st.integers(0, 3), data=st.data())
def test_what_may_come_next_is_what_some_round_goes_on_with(kind, ids, max_names, data):
    """No token too many and none too few, in every state on a random way to the end."""
    builder = builder_of(kind)
    read = data.draw(some_of([*ids, NOT_IN_A_TABLE]))
    possible = all_rounds(builder, [i for i in ids if i not in read], max_names)
    speller = Speller(NameTable(builder, ids), *ends_of(builder), max_names, read=read)
    check_a_way(speller, possible, data)


def has_the_required(chosen, required, max_names):
    """Whether the names after a first one begin with the required ones, or the best of them."""
    due = [doc_id for doc_id in required if doc_id not in chosen[:1]][: max_names - 1]
    return not chosen or set(chosen[1 : 1 + len(due)]) == set(due)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(ids=DOCUMENT_IDS, max_names=st.integers(0, 4), data=st.data())
def test_a_round_that_names_any_names_the_required_ones(kind, ids, max_names, data):
    """And is otherwise as free as without them, be they in the table, read, or not."""
    builder = builder_of(kind)
    read, required = (data.draw(some_of([*ids, NOT_IN_A_TABLE])) for _ in range(2))
    left = [i for i in ids if i not in read]
    possible = [
        way
        for way in all_rounds(builder, left, max_names)
        if has_the_required(way[0], [i for i in required if i in left], max_names)
    ]
    table, ends = NameTable(builder, ids), ends_of(builder)
    speller = Speller(table, *ends, max_names, read=read, required=required)
    check_a_way(speller, possible, data)


def test_what_is_required_and_without_alternative_is_followed_to_the_end():
    end, _ = ends_of(DIGITS)
    table = NameTable(DIGITS, [12, 34, 345, 6])
    speller = Speller(table, *ends_of(DIGITS), max_names=3, required=[345, 34, 12])
    names = {i: DIGITS.names([i])[0].tolist() for i in (6, 345, 34)}
    for token in names[6]:
        speller.advance(token)
    assert speller.follow() == names[34][:-1], "34 or 345: 12 is the least and has no room"
    speller.advance(names[34][-1])
    assert speller.follow() == names[345] + end
    assert speller.named == [6, 34, 345]


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


# Weights.


def weighted(builder, log_weight_of, max_names=1, read=(), required=()):
    """A round over documents, by id, with the logarithms of their weights."""
    table = NameTable(builder, list(log_weight_of))
    log_weights = np.array([log_weight_of[doc_id] for doc_id in table.ids], np.float64)
    return Speller(table, *ends_of(builder), max_names, log_weights, read, required)


def spell(speller, tokens):
    """Adds tokens; returns the sum of their biases."""
    total = 0.0
    for token in tokens:
        total += speller.biases()[speller.allowed().tolist().index(token)]
        speller.advance(token)
    return total


def likeliest(speller, logit_of):
    """The name that taking the likeliest token at each step leads to; other logits are 0."""
    logits = np.zeros((1, DIGITS.tokenizer.vocab_size), np.float32)
    for text, logit in ({"[": 1.0} | logit_of).items():
        logits[0, DIGITS.tokenizer.encode(text)] = logit
    sampler = Sampler.create(SamplingConfig(), [0])
    while not speller.named:
        candidates, biases = speller.allowed()[None], speller.biases()[None].astype(np.float32)
        _, (token,) = choose(logits, np.zeros(1, np.int32), sampler, candidates, biases)
        speller.advance(int(token))
    return speller.named[0]


LOG_WEIGHTS = st.dictionaries(st.integers(1, 1300), st.floats(-1e4, 1e4), min_size=2, max_size=12)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(log_weight_of=LOG_WEIGHTS, data=st.data())
def test_with_equal_logits_each_name_is_as_probable_as_it_weighs(kind, log_weight_of, data):
    """Of those neither named nor read yet, however far they are below those that are."""
    builder = builder_of(kind)
    earlier = data.draw(st.lists(st.sampled_from(list(log_weight_of)), max_size=3, unique=True))
    unnamed = [i for i in log_weight_of if i not in earlier]
    read = data.draw(some_of([*unnamed, NOT_IN_A_TABLE]))
    rest = {i: log_weight_of[i] for i in unnamed if i not in read}
    total = np.logaddexp.reduce(list(rest.values()) or [0.0])
    log_probabilities = []
    for doc_id, name in zip(rest, builder.names(list(rest)), strict=True):
        speller = weighted(builder, log_weight_of, max_names=4, read=read)
        spell(speller, [token for name in builder.names(earlier) for token in name])
        assert speller.named == earlier
        log_probabilities.append(spell(speller, name))
        assert log_probabilities[-1] == pytest.approx(rest[doc_id] - total, abs=1e-6)
    assert not rest or np.exp(log_probabilities).sum() == pytest.approx(1)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(log_weight_of=LOG_WEIGHTS, data=st.data())
def test_required_ones_are_as_probable_as_they_weigh_among_themselves(kind, log_weight_of, data):
    builder = builder_of(kind)
    first, *required = data.draw(st.permutations(list(log_weight_of)))
    required = required[: data.draw(st.integers(1, len(required)))]
    total = np.logaddexp.reduce([log_weight_of[doc_id] for doc_id in required])
    opening = builder.names([first])[0]
    for doc_id, name in zip(required, builder.names(required), strict=True):
        spellers = [
            weighted(builder, log_weight_of, len(log_weight_of), required=due)
            for due in (required, ())
        ]
        # The first name is weighed as if none was required.
        assert spell(spellers[0], opening) == spell(spellers[1], opening)
        ours = spell(spellers[0], name)
        assert ours == pytest.approx(log_weight_of[doc_id] - total, abs=1e-6)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(1, 1300), min_size=1, max_size=8, unique=True), data=st.data())
def test_weights_neither_end_a_round_nor_prolong_it(kind, ids, data):
    """What closes it has an average bias, in every state on a random way to the end."""
    builder = builder_of(kind)
    heavy = dict(zip(ids, data.draw(st.tuples(*(st.floats(-9, 9) for _ in ids))), strict=True))
    read = data.draw(some_of(ids))
    speller = weighted(builder, heavy, 2, read)
    plain = weighted(builder, dict.fromkeys(ids, 0.0), 2, read)
    spelled = []  # Of the name that is under way.
    while not speller.finished:
        allowed, biases = speller.allowed(), speller.biases()
        at = len(spelled)
        left = [i for i in ids if i not in (*speller.named, *read)]
        left = left if len(speller.named) < 2 else []
        names = [name.tolist() for name in builder.names(left)]
        of_names = np.isin(allowed, [name[at] for name in names if name[:at] == spelled])
        assert np.exp(biases[of_names]).sum() == pytest.approx(float(of_names.any()))
        num_names = max(of_names.sum(), 1)
        np.testing.assert_allclose(biases[~of_names], -np.log(num_names), atol=1e-12)
        np.testing.assert_array_equal(plain.biases()[~of_names], biases[~of_names])
        spelled.append(data.draw(st.sampled_from(allowed.tolist())))
        named = len(speller.named)
        speller.advance(spelled[-1])
        plain.advance(spelled[-1])
        spelled = spelled if len(speller.named) == named else []


def test_the_heaviest_is_named_when_the_model_has_no_preference():
    for heavy in (12, 34, 135, 139):
        assert likeliest(weighted(DIGITS, {12: 0, 34: 0, 135: 0, 139: 0} | {heavy: 3}), {}) == heavy


def test_the_model_wins_where_its_margin_is_the_larger():
    log_weight_of = {12: 2.0, 34: 0.0, 35: -3.0}
    margin = 2.0 - np.logaddexp(0, -3)
    for less, expected in ((-0.01, 12), (0.01, 34)):
        assert likeliest(weighted(DIGITS, log_weight_of), {"3": margin + less}) == expected
    logit_of = {"3": margin + 0.01, "5": 3.01}
    assert likeliest(weighted(DIGITS, log_weight_of), logit_of) == 35


def test_equal_weights_below_equal_branches_are_no_preference():
    speller = weighted(DIGITS, dict.fromkeys((12, 13, 34, 35), 7.0))
    for token in DIGITS.names([34])[0][:3]:
        assert len(speller.biases()) == 2 and np.ptp(speller.biases()) == 0
        speller.advance(token)


def test_without_weights_there_are_no_biases():
    assert Speller(NameTable(DIGITS, [12, 34]), *ends_of(DIGITS), 1).biases() is None


# Tables that change, and what cannot be spelled.


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("read", [(12, 34, 345), (345, NOT_IN_A_TABLE, 34, 12)])
def test_where_all_has_been_read_stopping_is_what_is_left(kind, read):
    builder = builder_of(kind)
    speller = weighted(builder, {12: 1.0, 34: -2.0, 345: 0.0}, max_names=3, read=read)
    stop = builder.stop().tokens.tolist()
    with np.errstate(all="raise"):
        assert speller.biases().tolist() == [0.0]
        assert speller.follow() == stop
    assert speller.finished and not speller.named


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
