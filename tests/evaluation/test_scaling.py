"""Scaling measurement: memories are nested and complete, and the measure can say yes and no."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from msa_jax.config import ConfigError, MemoryConfig, ModelConfig
from msa_jax.data.pipeline import DataConfig
from msa_jax.data.records import Document, Question, write_documents, write_questions
from msa_jax.evaluation import scaling
from msa_jax.evaluation.report import format_table, write_report
from msa_jax.evaluation.scaling import ScalingConfig, ScalingPoint, measure_scaling
from msa_jax.modules.init import init_params, init_routers
from msa_jax.modules.transformer import Transformer
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from msa_jax.sharding.rules import state_shardings

WORDS = [
    "amber",
    "basil",
    "cedar",
    "dune",
    "ember",
    "fjord",
    "grove",
    "heron",
    "iris",
    "jade",
    "kelp",
    "lotus",
    "maple",
    "nectar",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Fourteen documents, each about one word; one question for each."""
    directory = tmp_path_factory.mktemp("corpus")
    documents = [Document(f"d{i}", f"{word} {word} {word}") for i, word in enumerate(WORDS)]
    questions = [
        Question(
            id=f"{'even' if i % 2 == 0 else 'odd'}-{i}",
            question=word,
            positive_ids=(f"d{i}",),
            negative_ids=(f"d{(i + 1) % len(WORDS)}",),
        )
        for i, word in enumerate(WORDS)
    ]
    write_documents(directory / "documents.jsonl", documents)
    write_questions(directory / "questions.jsonl", questions)
    return directory


@pytest.fixture(scope="module")
def model():
    memory = MemoryConfig(pooling_kernel_size=8, top_k_docs=2, router_init="shared")
    return Transformer(
        ModelConfig(
            vocab_size=4096,
            num_layers=2,
            embed_dim=64,
            hidden_dim=32,
            num_heads=2,
            num_kv_heads=2,
            head_dim=32,
            dtype="float32",
            memory=memory,
        )
    )


def configs(corpus, **changes):
    files = {name: str(corpus / f"{name}.jsonl") for name in ("documents", "questions")}
    data = DataConfig(**files, row_tokens=64, max_document_tokens=64, id_space=100)
    evaluation = ScalingConfig(
        **files, kinds=("even",), memory_tokens=(60, 150), batch_size=4, rows_per_batch=2
    )
    return dataclasses.replace(evaluation, **changes), data


def test_an_untrained_router_that_shares_its_projections_matches_words(corpus, model):
    """Word matching finds most documents; the same router made random does not."""
    params = init_params(model.config, jax.random.key(0))
    points = measure_scaling(*configs(corpus), model, params)
    assert [(p.kind, p.memory_tokens, p.questions) for p in points] == [
        ("even", 60, 7),
        ("question", 60, 7),
        ("even", 150, 7),
        ("question", 150, 7),
    ]
    found = np.mean([p.best_layer("recall@1")[1] for p in points])
    assert found > 0.6
    random = dataclasses.replace(model.config.memory, router_init="random")
    config = dataclasses.replace(model.config, memory=random)
    noise = init_routers(params, config, jax.random.key(1))
    lost = np.mean(
        [p.best_layer("recall@1")[1] for p in measure_scaling(*configs(corpus), model, noise)]
    )
    assert lost < found - 0.2


def test_parameters_on_a_mesh_are_measured_there_with_the_same_result(corpus, model):
    params = init_params(model.config, jax.random.key(0))
    mesh = make_mesh(MeshConfig(tensor=2, memory=2))
    placed = jax.device_put(params, state_shardings(params, mesh))
    evaluation = configs(corpus, memory_tokens=(60,))
    assert measure_scaling(*evaluation, model, placed) == measure_scaling(
        *evaluation, model, params
    )


def test_memories_are_nested_and_hold_what_the_question_needs(corpus, model):
    evaluation, data = configs(corpus)
    dataset = scaling.TextDataset.load(data, model.config.memory)
    held_out = scaling.HeldOut(dataset, evaluation)
    for question in range(len(WORDS)):
        small, large = (held_out.memory_of(question, size) for size in evaluation.memory_tokens)
        assert not (small & ~large).any()
        assert small[question] and small[(question + 1) % len(WORDS)]
        assert held_out.lengths[large].sum() <= 150


def test_a_generated_id_is_right_only_if_it_is_that_of_a_positive(corpus, model):
    evaluation, data = configs(corpus)
    held_out = scaling.HeldOut(scaling.TextDataset.load(data, model.config.memory), evaluation)
    top_docs = np.array([[3, 5]])
    right = held_out._grade(3, np.append(held_out._names[3], 7), top_docs, documents=9)
    wrong = held_out._grade(3, np.append(held_out._names[4], 7), top_docs, documents=9)
    assert right.id_is_right and not wrong.id_is_right
    assert right.recall["recall@1"].tolist() == [1.0]
    assert held_out._grade(5, top_docs[0], top_docs, 9).recall["recall@1"].tolist() == [0.0]
    assert held_out._grade(5, top_docs[0], top_docs, 9).recall["recall@2"].tolist() == [1.0]


def test_too_few_documents_for_the_largest_memory_is_an_error(corpus, model):
    evaluation, data = configs(corpus, memory_tokens=(60, 10**6))
    params = init_params(model.config, jax.random.key(0))
    with pytest.raises(ConfigError, match=r"fewer than the largest of evaluation\.memory_tokens"):
        measure_scaling(evaluation, data, model, params)


def test_ids_must_suffice_for_the_documents(corpus, model):
    evaluation, data = configs(corpus)
    data = dataclasses.replace(data, id_space=10)
    params = init_params(model.config, jax.random.key(0))
    with pytest.raises(ConfigError, match="id_space"):
        measure_scaling(evaluation, data, model, params)


def point(kind, memory_tokens, recall):
    return ScalingPoint(
        kind=kind,
        memory_tokens=memory_tokens,
        documents=40.0,
        questions=8,
        recall={"recall@1": {2: recall, 3: recall / 2}, "recall@16": {2: recall, 3: 1.0}},
        chance=0.4,
        id_accuracy=0.25,
    )


def test_report_names_the_best_layer_and_writes_json_and_a_plot(tmp_path):
    points = [point("needle", 16_384, 0.5), point("needle", 1_048_576, 0.25)]
    table = write_report(tmp_path, points, {"parameters": 12})
    assert table == format_table(points)
    lines = table.splitlines()
    assert "16K" in lines[2] and "1,024K" in lines[3]
    assert "0.500 (layer 2)" in lines[2] and "1.000 (layer 3)" in lines[2]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["parameters"] == 12 and results["points"][0]["id_accuracy"] == 0.25
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "scaling.svg").read_text(encoding="utf-8")
