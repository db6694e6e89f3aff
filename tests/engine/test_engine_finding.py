"""An engine whose model ranks routers, words and look together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from msa_jax.config import ConfigError
from msa_jax.data.records import Document
from msa_jax.engine.engine import AskConfig
from msa_jax.engine.fusion import Fusion, Weights
from msa_jax.engine.interleave import InterleaveConfig
from msa_jax.modules.look import LookParams
from msa_jax.modules.lora import init_lora, is_linear
from tests.engine.banks import save_model
from tests.engine.engines import ask_config, documents_of, load, new_engine

# The words decide; the random look of a random model changes little.
WORDS = Weights(0.01, 0.0, 2.0, -1.0, 0.0, 1.0, -1.0, 0.0)
FUSION = Fusion(WORDS, dataclasses.replace(WORDS, look=1e-3))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    layers = {"num_layers": 2, "memory": {"router_layers": (0, 1)}}
    loaded = load(save_model(tmp_path_factory.mktemp("model"), **layers))
    paths = [x for x in traverse_util.flatten_dict(loaded.params, sep="/") if is_linear(x)]
    lora = init_lora(loaded.params, paths, 2, 1.0, jax.random.key(0))
    head = jax.random.normal(jax.random.key(1), (loaded.config.embed_dim,))
    look = LookParams(lora, head, jnp.float32(0))
    return dataclasses.replace(loaded, look=look, fusion=FUSION)


@pytest.fixture
def engine(tmp_path, loaded):
    with new_engine(tmp_path / "bank", loaded, documents_of(14)) as engine:
        yield engine


def test_a_word_that_one_document_has_finds_it(engine):
    engine.add([Document("z", "the zebra sleeps"), Document("a", "the ant works")])
    found = engine.retrieve("Where is the zebra?", num_documents=3)
    assert found[0].key == "z"
    assert 0 <= found[1].score <= found[0].score <= 1


def test_the_first_that_is_found_is_read_first(engine):
    engine.add([Document("z", "the zebra sleeps")])
    config = ask_config(temperature=1.5)
    read = set()
    for seed in range(6):
        sampling = dataclasses.replace(config.sampling, seed=seed)
        answer = engine.ask("zebra?", dataclasses.replace(config, sampling=sampling, looks=2))
        for one in answer.rounds:
            assert len(one.named) <= 1
        if answer.rounds[0].named:
            first = answer.documents[0]
            assert first.was_read and first.id == answer.rounds[0].named[0]
            read.add(first.key)
    assert read == {"z"}


def test_what_was_deleted_or_filtered_out_is_not_found(engine):
    engine.add([Document("z", "the zebra sleeps", metadata={"kind": "mauve"})])
    assert {x.key for x in engine.retrieve("zebra", filters={"kind": "red"})}.isdisjoint({"z"})
    assert [x.key for x in engine.retrieve("zebra", filters={"kind": "mauve"})] == ["z"]
    engine.delete(["z"])
    assert "z" not in {x.key for x in engine.retrieve("zebra")}


def test_batches_find_what_questions_find_alone(engine):
    engine.add([Document("z", "the zebra sleeps"), Document("a", "the ant works")])
    questions = ["zebra?", "Which ant?", "value 3?"]
    together = engine.ask_all(questions)
    for question, answer in zip(questions, together, strict=True):
        alone = engine.ask(question)
        assert [x.key for x in alone.documents] == [x.key for x in answer.documents]
        np.testing.assert_allclose(
            [x.score for x in alone.documents], [x.score for x in answer.documents], atol=1e-3
        )


def test_abstaining_is_by_probability(engine):
    engine.add([Document("z", "the zebra sleeps")])
    config = AskConfig(InterleaveConfig(max_rounds=1), abstain_below=1.0)
    answer = engine.ask("zebra?", config)
    assert answer.abstained and answer.documents[0].key == "z"
    assert not engine.ask("zebra?", dataclasses.replace(config, abstain_below=0.0)).abstained


@pytest.mark.parametrize("looks", [-1, 1.5, True, "many"])
def test_looks_are_a_number(looks):
    with pytest.raises(ConfigError, match="looks must be a whole number"):
        AskConfig(looks=looks)
