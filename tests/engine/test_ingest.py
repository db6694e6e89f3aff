"""Documents into a bank: what is committed, when, and what is not done twice."""

import dataclasses

import numpy as np
import pytest

from msa_jax.config import ConfigError
from msa_jax.data.parts import PartWriter
from msa_jax.data.records import Document, RecordError
from msa_jax.engine import ingest
from msa_jax.engine.encode import Encoder
from msa_jax.engine.ingest import Counts, Ingestor, part_text
from msa_jax.engine.loading import load_model
from msa_jax.memory.chunks import Chunks
from tests.engine.banks import MAX_TOKENS, ingestor_of, make_store, numbered, save_model
from tests.training.tiny import POOLING

LONG = Document("long", " ".join(f"Sentence {n} is here." for n in range(60)), "A title")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("model"))
    return load_model(folder, template="plain", dtype="float32")


@pytest.fixture
def store(tmp_path, loaded):
    with make_store(tmp_path / "bank", loaded) as store:
        yield store


def small_slices(monkeypatch, documents_per_slice):
    monkeypatch.setattr(ingest, "_SLICE_TOKENS", documents_per_slice * POOLING)
    monkeypatch.setattr(ingest, "_CHARACTERS_PER_TOKEN", 10**6)


def committed(store):
    """Part id -> its chunks, all read back from disk."""
    table = store.parts()
    found = {}
    for rows, chunks in store.read(table):
        first = 0
        for row in rows:
            stop = first + int(table.chunks[row])
            found[int(table.ids[row])] = chunks[first:stop]
            first = stop
    return found


def test_what_is_committed_is_what_the_model_encodes(loaded, store):
    documents = [*numbered(5), LONG]
    counts = ingestor_of(loaded, store).add(documents)
    chunks = committed(store)
    encoder = Encoder(loaded.model, loaded.params, store.layout, batch_tokens=64)
    assert (counts.added, counts.parts) == (6, len(chunks)) and len(chunks) > 10
    assert store.verify() == []
    for part_id, its_chunks in chunks.items():
        passage = store.passage(part_id)
        text = loaded.tokenizer.encode(part_text(loaded.builder, passage))
        tokens = loaded.builder.document(part_id, text)
        assert len(tokens) == passage.tokens <= MAX_TOKENS
        for name, array in encoder.encode([tokens]).arrays():
            np.testing.assert_allclose(getattr(its_chunks, name), array, atol=1e-5)


def test_parts_of_a_long_document_answer_to_its_key(loaded, store):
    ingestor_of(loaded, store).add([LONG])
    passages = store.passages(store.parts().ids)
    assert {passage.key for passage in passages} == {"long"}
    assert [passage.part for passage in passages] == list(range(passages[0].num_parts))
    assert " ".join(passage.text for passage in passages) == LONG.text
    assert all(passage.text.endswith(".") for passage in passages)
    texts = [part_text(loaded.builder, passage) for passage in passages]
    assert texts[0] == f" A title\n{passages[0].text}" and texts[1] == f" {passages[1].text}"


def test_only_what_changed_is_encoded(loaded, store):
    ingestor = ingestor_of(loaded, store)
    documents = numbered(6)
    first = ingestor.add(documents)
    assert first == Counts(added=6, parts=6, tokens=store.num_tokens)
    ids = set(store.parts().ids.tolist())
    assert ingestor.add(documents) == Counts(unchanged=6)
    documents[2] = dataclasses.replace(documents[2], text="other")
    documents[4] = dataclasses.replace(documents[4], metadata={})
    documents[5] = dataclasses.replace(documents[5], text=" \n")
    counts = ingestor.add([*documents, Document("new", "new"), Document("none", "")])
    assert counts.tokens and counts == Counts(1, 2, 3, 2, parts=3, tokens=counts.tokens)
    assert set(store.keys()) == {"d0", "d1", "d2", "d3", "d4", "new"}
    new_ids = set(store.parts().ids.tolist()) - ids
    assert len(new_ids) == 3 and min(new_ids) > max(ids)


class Killed(Exception):
    """Stands for the end of the process."""


def test_a_killed_ingestion_repeats_nothing(loaded, store, monkeypatch):
    """The third of five slices dies in the encoder; the first two are there, and stay."""
    small_slices(monkeypatch, 4)
    encoded = []

    class Mortal(Encoder):
        lives = 2

        def encode(self, parts, on_batch):
            if self.lives == 0:
                raise Killed
            self.lives -= 1
            encoded.append(len(parts))
            return super().encode(parts, on_batch)

    documents = numbered(20)
    encoder = Mortal(loaded.model, loaded.params, store.layout, batch_tokens=64)
    with pytest.raises(Killed):
        Ingestor(loaded, encoder, store).add(iter(documents))
    assert set(store.keys()) == {document.id for document in documents[:8]}
    before = committed(store)
    encoder.lives = 100
    counts = Ingestor(loaded, encoder, store).add(iter(documents))
    assert (counts.added, counts.unchanged) == (12, 8) and sum(encoded) == 20
    after = committed(store)
    assert after.keys() >= before.keys() and len(after) == 20
    for part_id, chunks in before.items():
        np.testing.assert_array_equal(after[part_id].content, chunks.content)


def test_an_error_in_the_source_keeps_what_came_before(loaded, store, monkeypatch):
    small_slices(monkeypatch, 4)

    def documents():
        yield from numbered(10)
        raise RecordError("line 11 is bad")

    with pytest.raises(RecordError, match="line 11"):
        ingestor_of(loaded, store).add(documents())
    assert store.num_documents == 8
    with pytest.raises(RecordError, match="'d1' is given twice; give each key once"):
        ingestor_of(loaded, store).add([*numbered(9, first=1), *numbered(1, first=1)])


def test_slices_do_not_change_the_bank(loaded, tmp_path, monkeypatch):
    banks = []
    for size in (3, 1000):
        with monkeypatch.context() as patch, make_store(tmp_path / str(size), loaded) as store:
            small_slices(patch, size)
            planned, done = [], []
            counts = ingestor_of(loaded, store).add(
                [*numbered(7), LONG], planned.append, done.append
            )
            assert sum(planned) == sum(done) == counts.tokens
            assert (len(planned) == 1) == (size == 1000)
            banks.append(committed(store))
    assert banks[0].keys() == banks[1].keys()
    joined = [Chunks.concatenate([bank[part] for part in sorted(bank)]) for bank in banks]
    np.testing.assert_allclose(joined[0].content, joined[1].content, atol=1e-5)


def test_eight_bits_go_to_disk_with_their_scales(loaded, tmp_path):
    with make_store(tmp_path / "b", loaded, key_dtype="int8", content_dtype="int8") as store:
        ingestor_of(loaded, store).add(numbered(3))
        assert store.verify() == []
        for chunks in committed(store).values():
            assert chunks.keys.dtype == np.int8 and (chunks.content_scale > 0).all()


def test_ten_thousand_documents_of_one_token(loaded, store):
    letters = [Document(str(n), chr(ord("a") + n % 26)) for n in range(10_000)]
    assert ingestor_of(loaded, store).add(letters).added == 10_000
    assert store.num_parts == 10_000 and store.num_documents == 10_000


def test_nothing_to_add(loaded, store):
    assert ingestor_of(loaded, store).add([]) == Counts()
    assert ingestor_of(loaded, store).add([Document("a", "")]) == Counts(empty=1)
    assert store.num_documents == 0


def test_a_long_title_leaves_half_of_a_part_to_the_text(loaded, store):
    document = Document("t", "The text that matters.", "title words " * 100)
    ingestor_of(loaded, store).add([document])
    (passage,) = store.passages(store.parts().ids)
    assert (passage.text, passage.title) == (document.text, document.title)
    assert passage.tokens <= MAX_TOKENS


def test_a_template_that_leaves_no_room_is_refused(loaded):
    with pytest.raises(ConfigError, match=r"max_document_tokens \(9\) must exceed the \d+ tokens"):
        PartWriter(loaded.builder, 9)


def test_a_name_that_takes_more_tokens_than_others_fits(loaded):
    writer = PartWriter(loaded.builder, MAX_TOKENS)
    (parts,) = writer.split([LONG])
    assert max(len(writer.write(10**12, part.tokens)) for part in parts) == MAX_TOKENS


class Blank(Encoder):
    """Encodes to zeros, at once."""

    def encode(self, parts, on_batch):
        fields = self.layout.fields(int(self.num_chunks(parts).sum()))
        return Chunks(**{name: np.zeros(*field) for name, field in fields.items()})


@pytest.mark.slow
def test_a_document_of_fifty_megabytes(loaded, tmp_path):
    types = {"key_dtype": "int8", "content_dtype": "int8"}
    with make_store(tmp_path / "bank", loaded, max_document_tokens=2048, **types) as store:
        text = "All work and no play makes a dull document. " * 1_150_000
        encoder = Blank(loaded.model, loaded.params, store.layout)
        ingestor = Ingestor(loaded, encoder, store)
        counts = ingestor.add([Document("big", text), *numbered(2)])
        assert counts.added == 3 and store.num_documents == 3
        assert store.num_parts == counts.parts > 4000 and store.num_tokens == counts.tokens
