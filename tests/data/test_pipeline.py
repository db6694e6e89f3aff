"""Training batches: what is in them, and that they never depend on how they were asked for."""

import dataclasses
import itertools
import json
import re

import jax
import numpy as np
import pytest

from msa_jax.config import ConfigError
from msa_jax.core.segments import PADDING
from msa_jax.data.pipeline import BatchShape, DataConfig, TextDataset, training_iterator
from msa_jax.data.records import (
    Document,
    Question,
    RecordError,
    read_documents,
    read_questions,
    write_documents,
    write_questions,
)

SHAPE = BatchShape(groups=2, queries_per_group=3, memory_tokens=512, active_tokens=160)


@pytest.fixture(scope="module")
def config(corpus, tokenizer_path):
    documents, questions = map(str, corpus)
    return DataConfig(
        documents=documents,
        questions=questions,
        tokenizer=str(tokenizer_path),
        row_tokens=128,
        max_document_tokens=128,
        id_space=1000,
        answer_fraction=0.3,
        negatives_per_question=1,
    )


@pytest.fixture(scope="module")
def dataset(config, memory_config):
    return TextDataset.load(config, memory_config)


@pytest.fixture(scope="module")
def batches(dataset):
    iterator = training_iterator(dataset, SHAPE, seed=5)
    return [next(iterator) for _ in range(12)]


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_a_shape_can_have_its_own_share_of_answers(dataset, batches, fraction):
    """In place of the data's, with which some samples train the answer and some do not."""
    asked = np.concatenate([batch.answer_mask.any(axis=-1).ravel() for batch in batches])
    assert 0 < asked.mean() < 1
    shape = dataclasses.replace(SHAPE, answer_fraction=fraction)
    iterator = training_iterator(dataset, shape, seed=5)
    own = np.concatenate([next(iterator).answer_mask.any(axis=-1).ravel() for _ in range(12)])
    assert own.any() == (fraction > 0) and own.mean() >= fraction * asked.mean()


def groups_of(batch):
    return [jax.tree.map(lambda leaf, g=g: leaf[g], batch) for g in range(len(batch.targets))]


def memory_texts(tokenizer, group):
    """Decoded documents 1, 2, ... of a group."""
    flat_ids, flat_tokens = group.memory.doc_ids.ravel(), group.memory.tokens.ravel()
    return [
        tokenizer.decode(flat_tokens[flat_ids == number]) for number in range(1, flat_ids.max() + 1)
    ]


def prompts(tokenizer, group):
    return [
        tokenizer.decode(tokens[doc_ids != PADDING])
        for tokens, doc_ids in zip(group.active.tokens, group.active.doc_ids, strict=True)
    ]


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_shapes_and_types(batches):
    groups, queries, rows, active = 2, 3, 4, 160
    for batch in batches:
        assert {leaf.dtype for leaf in jax.tree.leaves(batch)} == {
            np.dtype(np.int32),
            np.dtype(np.bool_),
        }
        assert {leaf.shape for leaf in jax.tree.leaves(batch.memory)} == {(groups, rows, 128)}
        assert {leaf.shape for leaf in jax.tree.leaves(batch.active)} == {(groups, queries, active)}
        assert batch.targets.shape == batch.target_mask.shape == batch.answer_mask.shape
        assert batch.positives.shape == (groups, queries, 512 // 8)


def test_memory_holds_whole_documents_under_unique_ids(batches, tokenizer, corpus):
    known = {
        (f" {d.title}\n" if d.title else " ") + d.text: d.id for d in read_documents(corpus[0])
    }
    for group in (group for batch in batches for group in groups_of(batch)):
        ids, texts = [], []
        for written in memory_texts(tokenizer, group):
            name, _, rest = written.removeprefix("<|im_start|>[").partition("].")
            assert rest.endswith(f"[{name}]<|im_end|>")
            ids.append(int(name))
            texts.append(known[rest.removesuffix(f"[{name}]<|im_end|>")])
        assert len(set(ids)) == len(ids) and min(ids) >= 1 and max(ids) < 1000
        assert len(set(texts)) == len(texts)
        assert (group.memory.doc_ids != PADDING).mean() > 0.6


def test_targets_and_positives_name_the_documents_of_the_question(batches, tokenizer, corpus):
    questions = {q.question: q for q in read_questions(corpus[1])}
    hop_counts = set()
    for group in (group for batch in batches for group in groups_of(batch)):
        texts = memory_texts(tokenizer, group)
        for row, prompt in enumerate(prompts(tokenizer, group)):
            question = questions[prompt.partition("user\n")[2].partition("<|im_end|>")[0]]
            positive = [texts[column] for column in np.flatnonzero(group.positives[row])]
            target = tokenizer.decode(group.targets[row][group.target_mask[row]])
            if "The answer" in target:
                sought = list(question.positive_ids)
                assert target.endswith(f"is: {question.answers[0]}<|im_end|>")
            else:
                hops = question.hops or (question.positive_ids,)
                hop = prompt.count("<|object_ref_end|>") // 2
                hop_counts.add((len(hops), hop))
                sought = list(hops[hop])
                names = [text.partition("[")[2].partition("]")[0] for text in positive]
                assert target == f"[{names[0]}]<|object_ref_end|>" and len(names) == 1
            codes = {f" code {doc_id.removeprefix('doc-')} opens" for doc_id in sought}
            found = {code for code in codes for t in positive if code in t.replace("\n", " ")}
            assert found == codes and len(positive) == len(sought)
    assert hop_counts == {(1, 0), (2, 0), (2, 1)}


def test_every_question_comes_once_an_epoch(batches, tokenizer):
    asked = [
        prompt.partition("user\n")[2].partition("<|im_end|>")[0]
        for batch in batches
        for group in groups_of(batch)
        for prompt in prompts(tokenizer, group)
    ]
    epochs = [asked[:24], asked[24:48], asked[48:]]
    assert all(len(set(epoch)) == 24 for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_every_group_draws_its_own_ids(batches, tokenizer):
    ids = [
        {text.partition("[")[2].partition("]")[0] for text in memory_texts(tokenizer, group)}
        for batch in batches
        for group in groups_of(batch)
    ]
    # Some 15 of 999 ids each: by chance, two groups share hardly any.
    assert all(len(one & other) < 5 for one, other in itertools.combinations(ids, 2))


def test_given_negatives_come_into_memory(config, memory_config, tokenizer, corpus):
    questions = {q.question: q for q in read_questions(corpus[1])}
    shape = dataclasses.replace(SHAPE, queries_per_group=1, memory_tokens=256)
    present = {}
    for limit in (0, 2):
        data = dataclasses.replace(config, negatives_per_question=limit)
        iterator = training_iterator(TextDataset.load(data, memory_config), shape, seed=1)
        count = total = 0
        for group in (group for _ in range(12) for group in groups_of(next(iterator))):
            (prompt,) = prompts(tokenizer, group)
            question = questions[prompt.partition("user\n")[2].partition("<|im_end|>")[0]]
            text = " ".join(memory_texts(tokenizer, group)).replace("\n", " ")
            codes = [f" code {i.removeprefix('doc-')} opens" for i in question.negative_ids]
            count += sum(code in text for code in codes)
            total += len(codes)
        present[limit] = count / total
    assert present[2] == 1.0
    assert present[0] < 0.5


def test_conversations_may_have_read_negatives(config, memory_config, tokenizer, corpus):
    """Beside what they need, or in a first round of their own; what is sought stays the same."""
    questions = {q.question: q for q in read_questions(corpus[1])}
    data = dataclasses.replace(config, negatives_per_question=2, answer_fraction=0.5)
    shape = dataclasses.replace(SHAPE, active_tokens=320, read_negatives=2)
    iterator = training_iterator(TextDataset.load(data, memory_config), shape, seed=2)
    seen = set()
    for group in (group for _ in range(30) for group in groups_of(next(iterator))):
        texts = memory_texts(tokenizer, group)
        for row, prompt in enumerate(prompts(tokenizer, group)):
            asked, _, conversation = prompt.partition("user\n")[2].partition("<|im_end|>")
            question = questions[asked]
            read = re.findall(r"code (\d+) opens", conversation)
            wrong = {f"doc-{code}" for code in read} - set(question.positive_ids)
            assert len(wrong) <= 2 and wrong <= set(question.negative_ids)
            sought = [texts[column] for column in np.flatnonzero(group.positives[row])]
            found = {f"doc-{re.search(r'code ([0-9]+) opens', text)[1]}" for text in sought}
            answers = group.answer_mask[row].any()
            if answers:
                assert found == set(question.positive_ids)
                assert found <= {f"doc-{code}" for code in read}, "all that is right was read"
            else:
                assert found in [set(hop) for hop in question.hops or (question.positive_ids,)]
            before = set(read) != set() and not answers and found == {question.positive_ids[0]}
            seen.add((answers, before, len(wrong)))
    assert seen >= {(True, False, n) for n in range(3)}
    assert {(False, True, 1), (False, True, 2), (False, False, 0)} <= seen


def test_parts_are_a_sequence(dataset):
    parts = dataset.parts
    assert len(list(parts)) == len(parts) == len(parts.lengths)
    np.testing.assert_array_equal(np.concatenate(list(parts)[-2:]), np.append(parts[-2], parts[-1]))
    with pytest.raises(IndexError):
        parts[len(parts)]


def test_same_seed_same_batches_another_seed_others(dataset, batches):
    again = training_iterator(dataset, SHAPE, seed=5)
    for batch in batches[:3]:
        assert_equal(next(again), batch)
    other = next(training_iterator(dataset, SHAPE, seed=6))
    assert (other.memory.tokens != batches[0].memory.tokens).any()


@pytest.mark.parametrize("stop_at", [[1], [3, 6], [2, 3, 9]])
def test_resuming_within_an_epoch_gives_the_same_batches(dataset, batches, stop_at):
    iterator = training_iterator(dataset, SHAPE, seed=5)
    for step, batch in enumerate(batches):
        if step in stop_at:
            state = json.loads(json.dumps(iterator.get_state()))
            iterator = training_iterator(dataset, SHAPE, seed=5)
            iterator.set_state(state)
        assert_equal(next(iterator), batch)


def test_processes_together_get_what_one_process_gets(dataset, batches):
    shares = [training_iterator(dataset, SHAPE, 5, index, 2) for index in range(2)]
    for batch in batches[:4]:
        parts = [next(share) for share in shares]
        assert_equal(jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts), batch)


def test_shuffled_labels_are_a_permutation_of_the_documents(config, memory_config, dataset):
    shuffled_config = dataclasses.replace(config, shuffle_labels=True)
    shuffled = TextDataset.load(shuffled_config, memory_config)
    moved = {}
    for true, label in zip(dataset.hops, shuffled.hops, strict=True):
        assert [len(hop) for hop in true] == [len(hop) for hop in label]
        for part, other in zip(sum(true, []), sum(label, []), strict=True):
            assert moved.setdefault(part, other) == other
    assert len(set(moved.values())) == len(moved)
    assert np.mean([part == other for part, other in moved.items()]) < 0.5
    assert shuffled.hops == TextDataset.load(shuffled_config, memory_config).hops


def test_only_the_part_with_the_answer_is_positive(tmp_path, config, memory_config, tokenizer):
    filler = " amber stone" * 20 + "."
    documents = [
        Document("short", "Seven."),
        Document("long", f"one{filler} two{filler} Seven{filler} nine{filler}"),
    ]
    questions = [
        Question("answered", "?", ("seven",), ("long",)),
        Question("unanswered", "?", ("absent",), ("long",)),
    ]
    write_documents(tmp_path / "d.jsonl", documents)
    write_questions(tmp_path / "q.jsonl", questions)
    data = dataclasses.replace(
        config,
        documents=str(tmp_path / "d.jsonl"),
        questions=str(tmp_path / "q.jsonl"),
        max_document_tokens=64,
    )
    dataset = TextDataset.load(data, memory_config)
    assert len(dataset.parts) == len(dataset.parents) > 3
    assert dataset.parents == ["short"] + ["long"] * (len(dataset.parts) - 1)
    (((part,),), (everything,)) = dataset.hops
    assert "Seven" in tokenizer.decode(dataset.parts[part])
    assert everything == list(range(1, len(dataset.parts)))
    batch = next(training_iterator(dataset, SHAPE, 0))
    assert all(len(dataset.builder.document(999, part)) <= 64 for part in dataset.parts)
    assert batch.positives.any(axis=-1).all()


def test_an_answer_in_the_title_is_in_the_first_part(tmp_path, config, memory_config):
    documents = [Document("long", "amber stone. " * 60, "Seven")]
    write_documents(tmp_path / "d.jsonl", documents)
    write_questions(tmp_path / "q.jsonl", [Question("q", "?", ("seven",), ("long",))])
    paths = {"documents": str(tmp_path / "d.jsonl"), "questions": str(tmp_path / "q.jsonl")}
    dataset = TextDataset.load(dataclasses.replace(config, **paths), memory_config)
    assert len(dataset.parts) > 1 and dataset.hops == [[[0]]]


def test_a_document_to_retrieve_must_have_text(tmp_path, config, memory_config):
    write_documents(tmp_path / "d.jsonl", [Document("blank", " ")])
    write_questions(tmp_path / "q.jsonl", [Question("q", "?", (), ("blank",))])
    paths = {"documents": str(tmp_path / "d.jsonl"), "questions": str(tmp_path / "q.jsonl")}
    with pytest.raises(RecordError, match=r"q.jsonl:1: positive_ids names 'blank', which has no"):
        TextDataset.load(dataclasses.replace(config, **paths), memory_config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": "plane"}, "template must be one of plain, msa_4b, not 'plane'"),
        ({"answer_fraction": 1.5}, "answer_fraction must be a number from 0 to 1"),
        ({"row_tokens": 64}, r"max_document_tokens \(128\) must not exceed row_tokens \(64\)"),
        ({"id_space": 1}, "id_space must be a whole number from 2 to"),
        (
            {"id_space": 10**9},
            "id_space must be a whole number from 2 to 100000000",
        ),
        ({"negatives_per_question": -1}, "negatives_per_question must be a whole number"),
    ],
)
def test_unusable_settings_are_named(config, change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config, **change)


@pytest.mark.parametrize(
    ("data", "shape", "message"),
    [
        ({}, {"memory_tokens": 500}, r"memory_tokens \(500\) must be a multiple of row_tokens"),
        ({"row_tokens": 132}, {}, r"row_tokens \(132\) must be a multiple of memory.pooling"),
        ({"id_space": 5}, {}, r"id_space \(5\) is too small for the documents of a memory of 512"),
        (
            {},
            {"memory_tokens": 128, "queries_per_group": 8},
            r"8 questions need do not fit in memory_tokens \(128\)",
        ),
        ({"max_document_tokens": 8}, {}, r"max_document_tokens \(8\) must exceed the"),
    ],
)
def test_settings_that_cannot_work_together_are_named(config, memory_config, data, shape, message):
    with pytest.raises(ConfigError, match=message):
        dataset = TextDataset.load(dataclasses.replace(config, **data), memory_config)
        next(training_iterator(dataset, dataclasses.replace(SHAPE, **shape), 0))


@pytest.mark.parametrize("needy", ["answer", "documents"])
def test_a_question_that_can_never_fit_is_refused_before_the_first_step(
    tmp_path, config, memory_config, corpus, needy
):
    longest = {
        "answer": Question("needy", "?", ("candle " * 200,), ("doc-0",)),
        "documents": Question("needy", "?", (), tuple(f"doc-{index}" for index in range(40))),
    }[needy]
    write_questions(tmp_path / "q.jsonl", [*read_questions(corpus[1]), longest])
    data = dataclasses.replace(config, questions=str(tmp_path / "q.jsonl"))
    dataset = TextDataset.load(data, memory_config)
    with pytest.raises(ConfigError, match="question 'needy' needs .*; raise active_tokens"):
        training_iterator(dataset, SHAPE, 0)


def test_groups_must_divide_by_processes(dataset):
    with pytest.raises(ConfigError, match=r"groups \(2\) must be a multiple of the processes"):
        training_iterator(dataset, SHAPE, 0, 0, 3)


def test_a_question_without_positives_cannot_train(tmp_path, config, memory_config):
    write_questions(tmp_path / "q.jsonl", [Question("q", "?")])
    data = dataclasses.replace(config, questions=str(tmp_path / "q.jsonl"))
    with pytest.raises(RecordError, match="q.jsonl:1: positive_ids is empty"):
        TextDataset.load(data, memory_config)
    write_questions(tmp_path / "q.jsonl", [])
    with pytest.raises(ConfigError, match="q.jsonl holds no question"):
        TextDataset.load(data, memory_config)
