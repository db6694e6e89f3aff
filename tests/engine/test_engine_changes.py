"""Banks that change under an engine, are closed and opened again, and belong to one model."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from msa_jax.config import ConfigError
from msa_jax.data import templates
from msa_jax.data.examples import token_block
from msa_jax.data.records import Document
from msa_jax.engine.encode import Encoder
from msa_jax.engine.engine import Engine
from msa_jax.engine.ingest import create_bank, part_text
from msa_jax.memory.store import EncodedDocument, Part, Store, StoreError
from tests.engine.banks import save_model
from tests.engine.engines import (
    QUESTIONS,
    ask_config,
    assert_same,
    documents_of,
    load,
    new_engine,
)

DOCUMENTS = documents_of(10)
NEW = Document("new", "the harbor is x99", "A new one", {"n": 99})
CREATIVE = ask_config(temperature=1.5)
EXISTING = ask_config(temperature=9.0, constrain="existing")
EVERYTHING = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(folder):
    return load(folder)


@pytest.fixture
def engine(tmp_path, loaded):
    with new_engine(tmp_path / "bank", loaded, DOCUMENTS) as engine:
        yield engine


def texts_in(engine):
    """Text by key of all that can be found."""
    return {found.key: found.text for found in engine.retrieve(QUESTIONS[0], EVERYTHING)}


def ids_heard_of(engine):
    """What answers find, name or read when they may name whatever exists."""
    answers = engine.ask_all(QUESTIONS, EXISTING)
    rounds = [one for answer in answers for one in answer.rounds]
    named = {doc_id for one in rounds for doc_id in one.named}
    found = {found.id for answer in answers for found in answer.documents}
    return named | found | {int(x) for one in rounds for x in one.ids.ravel()} - {-1}


# Changes by this engine.


def test_the_next_question_knows_what_has_changed(engine):
    texts = {document.id: document.text for document in DOCUMENTS}
    assert texts_in(engine) == texts
    first_ids = set(range(1, 1 + len(DOCUMENTS)))
    assert ids_heard_of(engine) <= first_ids

    assert engine.add([NEW]).added == 1
    assert texts_in(engine) == texts | {"new": NEW.text}
    (found,) = engine.retrieve(QUESTIONS[0], filters={"n": 99})
    assert (found.key, found.title, found.metadata) == ("new", NEW.title, NEW.metadata)
    assert found.id not in first_ids

    assert engine.add([dataclasses.replace(NEW, text="no harbor")]).updated == 1
    assert texts_in(engine) == texts | {"new": "no harbor"}
    (updated,) = engine.retrieve(QUESTIONS[0], filters={"n": 99})
    assert updated.id > found.id
    assert ids_heard_of(engine) <= first_ids | {updated.id}

    engine.delete(["new", "d3"])
    texts.pop("d3")
    assert texts_in(engine) == texts
    assert ids_heard_of(engine) <= first_ids - {4}

    engine.delete([key for key in texts if key != "d9"])
    assert ids_heard_of(engine) == {10}
    engine.delete(["d9"])
    assert ids_heard_of(engine) == set()


def test_what_is_not_there_cannot_be_deleted(engine):
    before = engine.ask_all(QUESTIONS, CREATIVE)
    with pytest.raises(StoreError, match="nobody"):
        engine.delete(["d1", "nobody"])
    assert_same(engine.ask_all(QUESTIONS, CREATIVE), before)


# Changes by others.


def test_changes_by_others_count_from_the_next_question_on(engine, loaded):
    """A reader beside the writer, which has the store for itself."""
    with Engine(loaded, Store.open(engine.store.path)) as reader:
        assert texts_in(reader) == texts_in(engine)
        engine.add([NEW])
        engine.delete(["d0"])
        assert_same(
            reader.ask_all(QUESTIONS, CREATIVE),
            engine.ask_all(QUESTIONS, CREATIVE),
        )
        assert texts_in(reader) == texts_in(engine)
        assert ids_heard_of(reader) == ids_heard_of(engine)
        engine.store.compact(0.0)
        assert texts_in(reader) == texts_in(engine)
        with pytest.raises(StoreError, match="write=True"):
            reader.add([Document("other", "text")])
        with pytest.raises(StoreError, match="write=True"):
            reader.delete(["d1"])


def test_documents_that_vanish_under_a_question_do_not_end_it(engine, loaded):
    """Compacted away after they were found, and before anyone asked for their texts."""
    with Engine(loaded, Store.open(engine.store.path)) as reader:
        start = reader.generator.start
        victims = iter([["d0", "d1", "d2", "d3"], ["d4", "d5"], ["d6", "d7", "d8"]])

        def start_and_lose(*args, **options):
            session = start(*args, **options)
            engine.delete(next(victims, []))
            engine.store.compact(0.0)
            return session

        reader.generator.start = start_and_lose
        found = reader.retrieve(QUESTIONS[0], EVERYTHING)
        assert {one.key for one in found} == {f"d{n}" for n in range(4, 10)}
        for answer in reader.ask_all(QUESTIONS, CREATIVE):
            assert answer.text
            assert {one.key for one in answer.documents} <= {"d6", "d7", "d8", "d9"}
        assert texts_in(reader).keys() == {"d9"}


# The same as a bank that never was another.

KEYS = st.sampled_from([document.id for document in DOCUMENTS])
CHANGES = st.lists(
    st.tuples(st.sets(KEYS, max_size=4), st.sets(KEYS, max_size=4)) | st.just("compact"),
    min_size=1,
    max_size=6,
)
ONE_OF_EACH = [
    ({"d0", "d1", "d2", "d3", "d4"}, set()),
    ({"d1", "d5", "d6"}, {"d0"}),
    "compact",
    ({"d7"}, {"d2", "d4"}),
]


def test_after_any_changes_an_engine_answers_like_one_over_a_new_bank(tmp_path_factory, loaded):
    """A new one of what is left, encoded anew under the same ids; and the same one reopened."""

    @settings(max_examples=3, deadline=None, derandomize=True)
    @given(CHANGES)
    @example(ONE_OF_EACH)
    def check(changes):
        path = tmp_path_factory.mktemp("banks")
        with new_engine(path / "bank", loaded) as engine:
            change_all(engine, changes)
            edited, logits = engine.ask_all(QUESTIONS, CREATIVE), logits_of(engine)
            store = create_bank(path / "new", loaded, engine.store.layout)
            encode_anew(loaded, engine.store, store)
        with Engine(loaded, store) as new:
            assert_same(new.ask_all(QUESTIONS, CREATIVE), edited)
            np.testing.assert_allclose(logits_of(new), logits, rtol=1e-5, atol=1e-5)
        with Engine(loaded, Store.open(path / "bank")) as reopened:
            assert_same(reopened.ask_all(QUESTIONS, CREATIVE), edited)
            np.testing.assert_array_equal(logits_of(reopened), logits)

    check()


def change_all(engine, changes):
    """Adds, replaces and deletes documents by key, and asks in between."""
    for number, change in enumerate(changes):
        if change == "compact":
            engine.store.compact(0.0)
            continue
        puts, deletes = change
        engine.add(
            dataclasses.replace(document, text=f"{document.text} {number}")
            for document in DOCUMENTS
            if document.id in puts
        )
        engine.delete(sorted(deletes & set(engine.store.keys())))
        assert set(texts_in(engine)) == set(engine.store.keys())


def encode_anew(loaded, old, new):
    """Commits what is live in one store to another, with the same ids."""
    encoder, builder = Encoder(loaded.model, loaded.params, new.layout), loaded.builder
    puts = []
    for passage in old.passages(old.parts().ids):
        tokens = builder.tokenizer.encode(part_text(builder, passage))
        chunks = encoder.encode([builder.document(passage.id, tokens)])
        document = Document(passage.key, passage.text, passage.title, passage.metadata)
        part = Part(passage.id, 0, len(passage.text), passage.tokens, len(chunks))
        puts.append(EncodedDocument(document, (part,), chunks))
    new.commit(puts)


def logits_of(engine):
    """After each prompt, and after each of a few more tokens."""
    builder = engine.loaded.builder
    prompts = [token_block(builder, builder.prompt(question)) for question in QUESTIONS]
    session = engine.generator.start(prompts, engine.bank.memory, room=8)
    logits = [session.logits]
    for token in (5, 77):
        session.extend([[token]] * len(prompts))
        logits.append(session.logits)
    return np.stack(logits)


def test_opened_again_a_bank_gives_the_same_bit_for_bit(engine, folder):
    engine.add([NEW])
    engine.delete(["d2", "d5"])
    answers, logits = engine.ask_all(QUESTIONS, CREATIVE), logits_of(engine)
    path = engine.store.path
    engine.close()
    for write in (False, True):
        with Engine.open(path, write=write) as again:
            np.testing.assert_array_equal(logits_of(again), logits)
            assert_same(again.ask_all(QUESTIONS, CREATIVE), answers)
    with Engine.open(path, write=True) as again:
        assert again.add([NEW]).unchanged == 1
        again.delete(["new"])
        assert "new" not in texts_in(again)


# Creating and opening.


def test_a_bank_is_created_and_remembers_its_model(tmp_path, folder, loaded):
    options = {"template": "plain", "max_document_tokens": 32, "key_dtype": "int8"}
    with Engine.create(tmp_path / "bank", folder, content_dtype="int8", **options) as engine:
        engine.add(DOCUMENTS)
        assert engine.store.layout.max_document_tokens == 32
        found = engine.retrieve(QUESTIONS[0], 3)
        assert len(found) == 3
    with pytest.raises(StoreError, match="there is a bank already"):
        Engine.create(tmp_path / "bank", folder, **options)
    moved = shutil.copytree(folder, tmp_path / "moved")
    with Engine.open(tmp_path / "bank", moved, content_tier="disk") as engine:
        assert engine.bank.plan.content_tier == "disk"
        assert (engine.store.layout.key_dtype, engine.loaded.template_name) == ("int8", "plain")
        assert engine.retrieve(QUESTIONS[0], 3) == found


@pytest.fixture(scope="module")
def bank(tmp_path_factory, loaded):
    """The directory of a closed bank."""
    path = tmp_path_factory.mktemp("banks") / "bank"
    new_engine(path, loaded, DOCUMENTS[:2]).close()
    return path


def refusal(bank, checkpoint=None):
    """The one sentence with which a bank is refused, and then it can be opened all the same."""
    with pytest.raises(StoreError) as refused:
        Engine.open(bank, checkpoint, write=True)
    Store.open(bank, write=True).close()
    message = str(refused.value)
    assert message.startswith(f"{bank}: the bank was encoded with") and "\n" not in message
    return message


def test_another_model_is_refused(bank, tmp_path, folder):
    other = shutil.copytree(folder, tmp_path / "other")
    weights = next(other.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    message = refusal(bank, other)
    assert "model" in message and "tokenizer" not in message and "template" not in message


def test_another_tokenizer_is_refused(bank, tmp_path, folder):
    other = shutil.copytree(folder, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = refusal(bank, other)
    assert "tokenizer" in message and "model" not in message and "template" not in message


def test_another_template_is_refused(bank, monkeypatch):
    changed = dataclasses.replace(templates.TEMPLATES["plain"], document_end="({id})<|im_end|>")
    monkeypatch.setitem(templates.TEMPLATES, "plain", changed)
    message = refusal(bank)
    assert "template" in message and "model" not in message and "tokenizer" not in message


def test_where_there_is_no_bank_or_no_model_one_sentence_says_so(bank, tmp_path):
    with pytest.raises(StoreError, match="there is no bank"):
        Engine.open(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="neither the workdir of a training run"):
        Engine.open(bank, tmp_path / "nothing")
    with pytest.raises(ConfigError, match="content_tier"):
        Engine.open(bank, content_tier="cloud", write=True)
    Store.open(bank, write=True).close()
