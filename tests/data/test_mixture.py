"""Batches from several sources: the shares, the neighbours, and that a run can be resumed."""

import collections
import dataclasses
import json
import random

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from msa_jax.config import ConfigError, from_mapping
from msa_jax.core.segments import PADDING
from msa_jax.data.assembly import GroupAssembler
from msa_jax.data.config import SourceConfig
from msa_jax.data.mixing import question_order
from msa_jax.data.pipeline import BatchShape, DataConfig, TextDataset, training_iterator
from msa_jax.data.queries import GivenQueries
from msa_jax.data.records import Document, Question
from msa_jax.training.curriculum import StageConfig

SHAPE = BatchShape(
    groups=2,
    queries_per_group=8,
    memory_tokens=2048,
    active_tokens=200,
    mixture={"given": 2.0, "made": 1.0, "chains": 1.0},
    cluster=4,
)


@pytest.fixture(scope="module")
def dataset(corpus, articles_path, tokenizer_path, memory_config):
    documents, questions = map(str, corpus)
    data = DataConfig(
        sources={
            "given": {"documents": documents, "questions": questions},
            "made": {"documents": [str(articles_path)], "queries": "synthetic"},
            "chains": {"documents": str(articles_path), "queries": "chains", "answers": False},
        },
        tokenizer=str(tokenizer_path),
        row_tokens=256,
        max_document_tokens=256,
        id_space=1000,
        answer_fraction=0.4,
        negatives_per_question=0,
    )
    return TextDataset.load(data, memory_config)


@pytest.fixture(scope="module")
def batches(dataset):
    iterator = training_iterator(dataset, SHAPE, seed=3)
    return [next(iterator) for _ in range(8)]


def texts(tokenizer, batch):
    """Decoded prompts, `[G][B]`."""
    return [
        [
            tokenizer.decode(tokens[doc_ids != PADDING])
            for tokens, doc_ids in zip(*group, strict=True)
        ]
        for group in zip(batch.active.tokens, batch.active.doc_ids, strict=True)
    ]


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


SIZES = {"a": 100, "b": 30, "c": 7}


def order(steps, **changes):
    """The questions of some steps, `[steps, G, B, 2]`."""
    shape = dataclasses.replace(SHAPE, **({"mixture": None, "cluster": 1} | changes))
    return np.stack([question_order(SIZES, shape, 0)[step] for step in range(steps)])


def test_sources_are_mixed_by_their_weights():
    mixture = {"a": 1.0, "c": 3.0}
    for step in order(10, mixture=mixture):
        counts = np.bincount(step[..., 0].ravel(), minlength=3)
        assert counts[1] == 0 and abs(counts[2] - 12) <= 1 and counts.sum() == 16


def test_without_weights_every_question_is_as_frequent():
    drawn = order(170).reshape(-1, 2)
    counts = np.bincount(drawn[:, 0], minlength=3) / len(drawn)
    np.testing.assert_allclose(counts, np.array([100, 30, 7]) / 137, atol=0.01)


def test_every_question_of_a_source_comes_once_in_its_epoch():
    drawn = order(60, mixture={"b": 1.0, "c": 1.0}).reshape(-1, 2)
    of_b = drawn[drawn[:, 0] == 1, 1]
    epochs = [of_b[start : start + 30] for start in range(0, 300, 30)]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_neighbours_come_together_in_one_group():
    steps = order(40, cluster=4)
    clusters = steps.reshape(-1, 4, 2)
    for cluster in clusters:
        assert len(set(cluster[:, 0])) == 1
        size = list(SIZES.values())[cluster[0, 0]]
        np.testing.assert_array_equal(cluster[:, 1], (cluster[0, 1] + np.arange(4)) % size)
    # They are shuffled.
    assert (np.diff(clusters[clusters[:, 0, 0] == 0][:, 0, 1]) != 4).mean() > 0.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixture": {"a": 1.0, "d": 1.0}}, "mixture names 'd', .* of questions: a, b, c"),
        ({"cluster": 8}, r"cluster \(8\) exceeds the 7 questions of source 'c'"),
        ({"cluster": 3}, r"queries_per_group \(8\) must be a multiple of cluster \(3\)"),
    ],
)
def test_an_order_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        order(1, **changes)


def test_batches_ask_about_what_is_in_memory(batches, tokenizer):
    asked = collections.Counter()
    for batch in batches:
        assert batch.positives.any(axis=-1).all()
        for group in texts(tokenizer, batch):
            asked["given"] += sum("What is code" in text for text in group)
            asked["all"] += len(group)
    assert abs(asked["given"] / asked["all"] - 0.5) < 0.05


def test_a_source_without_answers_trains_none(batches, dataset, tokenizer):
    assert dataset.answered == {"given", "made"}
    answers = [
        text.partition("The answer to the question is:")[2]
        for batch in batches
        for group in texts(tokenizer, batch)
        for text in group
    ]
    assert sum(bool(answer) for answer in answers) > 10
    chains = [
        text
        for batch in batches
        for group in texts(tokenizer, batch)
        for text in group
        if "What is code" not in text and text.count("<|object_ref_end|>") > 1
    ]
    # Chains are the only made queries of two steps; what they learn is the second document.
    assert any("The answer" not in text for text in chains)


def test_distractors_are_of_every_source(batches, tokenizer):
    memory = "".join(tokenizer.decode(batch.memory.tokens.ravel()) for batch in batches)
    assert "was discovered by" in memory and " opens." in memory


def test_a_source_may_keep_its_documents_out_of_memories(dataset, memory_config):
    sources = {
        name: dataclasses.replace(source, distractors=name == "given")
        for name, source in dataset.data.sources.items()
    }
    data = dataclasses.replace(dataset.data, sources=sources)
    quiet = TextDataset.load(data, memory_config)
    assert {quiet.parents[part] for part in quiet.distractors} == {f"doc-{i}" for i in range(60)}
    assert len(quiet.parts) == len(dataset.parts) == len(dataset.distractors)


@pytest.mark.parametrize("stop_at", [[1], [2, 3, 6]])
def test_resuming_gives_the_same_batches(dataset, batches, stop_at):
    iterator = training_iterator(dataset, SHAPE, seed=3)
    for step, batch in enumerate(batches):
        if step in stop_at:
            state = json.loads(json.dumps(iterator.get_state()))
            iterator = training_iterator(dataset, SHAPE, seed=3)
            iterator.set_state(state)
        assert_equal(next(iterator), batch)


def test_processes_together_get_what_one_process_gets(dataset, batches):
    shares = [training_iterator(dataset, SHAPE, 3, index, 2) for index in range(2)]
    for batch in batches[:4]:
        parts = [next(share) for share in shares]
        assert_equal(jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts), batch)


def test_a_question_without_room_gives_its_place_to_another(dataset, tokenizer):
    shape = dataclasses.replace(
        SHAPE, groups=1, queries_per_group=16, cluster=1, mixture={"made": 1.0}
    )
    roomy = dataclasses.replace(shape, memory_tokens=4096)
    chosen = question_order({"given": 24, "made": 40, "chains": 40}, shape, 0)[0][0]
    asked = []
    for size in (roomy, dataclasses.replace(shape, memory_tokens=1024)):
        assembler = GroupAssembler(dataset, size)
        group = assembler.assemble(chosen, np.random.default_rng(0))
        assert group.positives.any(axis=-1).all()
        asked.append(len({tuple(row) for row in group.positives}))
    assert asked[0] == 16 and 1 < asked[1] < 12
    with pytest.raises(ConfigError, match=r"16 questions need do not fit in memory_tokens"):
        assembler.check_room(chosen, np.random.default_rng(0))


def test_documents_and_questions_cannot_stand_beside_sources(dataset):
    with pytest.raises(ConfigError, match="must be left out beside sources"):
        dataclasses.replace(dataset.data, documents="documents.jsonl")


def test_one_of_documents_and_sources_is_needed():
    with pytest.raises(ConfigError, match="data.documents and data.questions must both name"):
        DataConfig().all_sources()


def test_sources_survive_a_config_dict_and_json(dataset):
    plain = json.loads(json.dumps(dataclasses.asdict(dataset.data)))
    assert from_mapping(DataConfig, ConfigDict(plain)) == dataset.data
    with pytest.raises(ConfigError, match="data.sources.made.query is not a field"):
        DataConfig(sources={"made": {"documents": "d", "query": "synthetic"}})


def test_labels_of_made_queries_are_not_shuffled(dataset, memory_config):
    data = dataclasses.replace(dataset.data, shuffle_labels=True)
    with pytest.raises(ConfigError, match="shuffle_labels needs given questions, .*made"):
        TextDataset.load(data, memory_config)


STAGE = {
    "name": "s",
    "steps": 1,
    "learning_rate": 0.1,
    "memory_tokens": 64,
    "groups": 1,
    "queries_per_group": 8,
    "active_tokens": 8,
}


def test_a_stage_names_its_mixture_and_cluster():
    stage = from_mapping(StageConfig, ConfigDict(STAGE | {"mixture": {"a": 1.0}, "cluster": 4}))
    assert stage.mixture == {"a": 1.0} and stage.cluster == 4
    assert json.dumps(dataclasses.asdict(stage))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixture": {"a": 0.0}}, "stages.s.mixture.a must be a positive number, not 0.0"),
        ({"mixture": {}}, "stages.s.mixture must be"),
        ({"cluster": 0}, "stages.s.cluster must be a positive whole number"),
        ({"cluster": 3}, r"stages.s.cluster must be a divisor of queries_per_group \(8\)"),
    ],
)
def test_a_stage_with_an_unusable_mixture_or_cluster_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        StageConfig(**(STAGE | changes))


def test_given_questions_lose_other_words_each_time(dataset):
    words = [f"w{i}" for i in range(1000)]
    documents = {dataset.parents[0]: Document(dataset.parents[0], "text")}
    question = Question("q", " ".join(words), (), (dataset.parents[0],))
    plain, thinned = (
        GivenQueries([question], dataset.parts, documents, dropped) for dropped in (0.0, 0.25)
    )
    assert plain.draw(0, random.Random(0)).question == question
    first, second = (thinned.draw(0, random.Random(seed)).question for seed in (0, 1))
    assert first.question != second.question and first.positive_ids == question.positive_ids
    kept = first.question.split()
    assert 700 < len(kept) < 800 and kept == [word for word in words if word in set(kept)]
    assert (
        GivenQueries([question], dataset.parts, documents, 0.999)
        .draw(0, random.Random(0))
        .question.question
    )


def test_a_share_of_dropped_words_must_leave_some():
    with pytest.raises(ConfigError, match="dropped_words must be a number at least 0 and below 1"):
        SourceConfig("d.jsonl", dropped_words=1.0)
