"""Lists of the second look: the right document once or not at all, and never among the wrong."""

import dataclasses

import jax
import numpy as np
import pytest

from msa_jax.config import MemoryConfig
from msa_jax.core.segments import PADDING
from msa_jax.data.config import DataConfig, ListShape
from msa_jax.data.dataset import TextDataset
from msa_jax.data.lists import as_typed
from msa_jax.data.pipeline import training_iterator
from msa_jax.data.records import Document, Question, write_documents, write_questions

SHAPE = ListShape(
    groups=2, queries_per_group=4, candidates=6, row_tokens=(24, 24, 48), none_fraction=0.25
)
LONG, LONGER = (
    " ".join(f"Page {i} goes on about boats." for i in pages)
    for pages in (range(10, 24), range(50, 70))
)
DOCUMENTS = [
    *(Document(f"d{i}", f"Boat {i} sails.") for i in range(30)),
    Document("long", f"{LONG} The answer is amber. {LONGER}"),
    Document("untold", f"{LONGER} {LONG}".replace("Page ", "Leaf ")),
]
QUESTIONS = [
    Question("a", "Where is BOAT 1?", (), ("d1",), ("d2", "d3")),
    Question("b", "Which colour?", ("amber",), ("long",), ("d4", "untold")),
    Question("c", "What goes on?", (), ("untold",), ("d5", "long")),
    Question("d", "Boats 7 and 8?", (), ("d7", "d8"), ("d9",)),
]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    def load(documents=DOCUMENTS, questions=QUESTIONS):
        directory = tmp_path_factory.mktemp("lists")
        write_documents(directory / "d.jsonl", documents)
        write_questions(directory / "q.jsonl", questions)
        data = DataConfig(
            documents=str(directory / "d.jsonl"),
            questions=str(directory / "q.jsonl"),
            row_tokens=64,
            max_document_tokens=64,
        )
        return TextDataset.load(data, MemoryConfig(pooling_kernel_size=4))

    return load


@pytest.fixture(scope="module")
def dataset(load):
    return load()


def lists_of(dataset, steps, **changes):
    """Of every list the texts of its rows, "" for no document, and its target."""
    batches = training_iterator(dataset, dataclasses.replace(SHAPE, **changes), 0)
    for batch in (next(batches) for _ in range(steps)):
        texts = []
        for group in range(SHAPE.groups):
            rows = [
                dataset.builder.tokenizer.decode(tokens[doc_ids != PADDING])
                for block in batch.rows
                for tokens, doc_ids in zip(block.tokens[group], block.doc_ids[group], strict=True)
            ]
            texts += [["" if x < 0 else rows[x] for x in places] for places in batch.place[group]]
        yield from zip(texts, batch.target.ravel().tolist(), strict=True)


def test_rows_lie_in_blocks_by_length(dataset):
    batch = next(training_iterator(dataset, SHAPE, 0))
    assert [block.tokens.shape for block in batch.rows] == [(2, 8, 24), (2, 8, 24), (2, 8, 48)]
    for group in range(2):
        lengths = [(block.doc_ids[group] != PADDING).sum(axis=-1) for block in batch.rows]
        assert (np.diff(np.concatenate(lengths)) >= 0).all()
        assert sorted(batch.place[group].ravel()) == list(range(24))
    assert (batch.rows[0].segment_pos == np.arange(24)).all()


def test_the_right_document_comes_first_or_not_at_all(dataset):
    found = list(lists_of(dataset, 40, row_tokens=(128,)))
    counts = dict.fromkeys(("where is", "which colour", "what goes on", "7 and 8"), 0)
    for texts, target in found:
        documents = [text for text in texts if text]
        assert target in (0, SHAPE.candidates) and len(set(documents)) == len(documents)
        wrong = texts[1:] if target == 0 else texts
        (asked,) = (name for name in counts if name in texts[0].lower())
        counts[asked] += 1
        if asked == "where is":
            assert ("Boat 1 sails." in texts[0]) == (target == 0)
            assert not any("Boat 1 sails." in x for x in wrong)
            assert all(any(f"Boat {i} " in x for x in wrong) for i in (2, 3))
        elif asked == "which colour":
            # The part with the answer, and no other part of its document.
            assert ("The answer is amber" in texts[0]) == (target == 0)
            # One part alone of a negative document.
            assert sum("goes on about" in x for x in wrong) == 1
        elif asked == "what goes on" and target == 0:
            # Nobody knows which part answers: the first one.
            (first, *_) = dataset.parts.of["untold"]
            assert dataset.builder.tokenizer.decode(dataset.parts[first]) in texts[0]
        elif asked == "7 and 8":
            rights = [x for x in texts if "Boat 7 " in x or "Boat 8 " in x]
            assert rights == ([texts[0]] if target == 0 else [])
    assert sum(counts.values()) == 320 and min(counts.values()) == 80
    assert 0.15 < np.mean([target == SHAPE.candidates for _, target in found]) < 0.35


def test_some_questions_are_as_people_type_them(dataset):
    asked = [texts[0] for texts, _ in lists_of(dataset, 20, row_tokens=(128,)) if texts[0]]
    about = [x for x in asked if "boat 1" in x.lower().split("where")[-1]]
    typed = ["where is boat 1" in x and "1?" not in x for x in about]
    assert all(y or "Where is BOAT 1?" in x for x, y in zip(about, typed, strict=True))
    assert 0.1 < np.mean(typed) < 0.6
    assert [as_typed(x) for x in ("Who is Ada?", "???", "Ünder? ")] == [
        "who is ada",
        "???",
        "ünder",
    ]


def test_a_row_that_is_too_long_keeps_its_end(dataset):
    builder = dataset.builder
    asked = [x for q in QUESTIONS for x in (q.question, as_typed(q.question))]
    endings = [builder.pair(np.zeros(0, np.int32), x)[-7:].tolist() for x in asked]
    batch = next(training_iterator(dataset, dataclasses.replace(SHAPE, row_tokens=(10, 30)), 0))
    for block in batch.rows:
        for row, doc_ids in zip(*map(np.concatenate, (block.tokens, block.doc_ids)), strict=True):
            assert row[doc_ids != PADDING][-7:].tolist() in endings
    # What is cut is the text: all blocks of 30 have room for the head.
    assert (batch.rows[1].tokens[..., :3] == builder.head).all()


def test_where_documents_are_too_few_places_stay_empty(load):
    dataset = load(DOCUMENTS[:4], [Question("a", "Where is boat 1?", (), ("d1",), ("d2",))])
    for texts, target in lists_of(dataset, 5):
        assert texts.count("") == (2 if target == 0 else 3)
        assert "" not in texts[: 6 - texts.count("")]


def test_batches_are_the_same_again_and_elsewhere(dataset):
    def equal(x, y):
        for one, other in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
            np.testing.assert_array_equal(one, other)

    iterator = training_iterator(dataset, SHAPE, 5)
    first, state, second = next(iterator), iterator.get_state(), next(iterator)
    again = training_iterator(dataset, SHAPE, 5)
    again.set_state(state)
    equal(next(again), second)
    for index in range(2):
        share = next(training_iterator(dataset, SHAPE, 5, index, 2))
        equal(share, [x[index : index + 1] for x in jax.tree.leaves(first)])
