"""One ranking of several, in a suite: what each system ranks, and that answers rest on it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

from msa_jax.checkpoint.look import save_look
from msa_jax.config import ConfigError
from msa_jax.engine.fusion import Fusion, Weights, save_fusion
from msa_jax.engine.loading import load_model
from msa_jax.evaluation.suite import Suite
from msa_jax.evaluation.suite_config import suite_config
from msa_jax.modules.look import LookParams
from msa_jax.modules.lora import init_lora, is_linear
from tests.evaluation import small_suite

# The words decide, whatever random weights see in a document.
WORDS = Weights(0.0, 0.0, 2.0, -1.0, 0.0, 1.0, -1.0, 0.0)
FUSED = ("bm25", "msa", "msa + words", "msa + words + look", "bm25 + look")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("bm25s")
    folder = tmp_path_factory.mktemp("suite")
    small_suite.write_files(folder, num_distractors=60)
    model = small_suite.write_model(folder / "model")
    loaded = load_model(model)
    paths = [x for x in traverse_util.flatten_dict(loaded.params, sep="/") if is_linear(x)]
    lora = init_lora(loaded.params, paths, 2, 1.0, jax.random.key(0))
    head = jnp.ones(loaded.config.embed_dim)
    save_look(model, LookParams(lora, head, jnp.float32(0)))
    save_fusion(model, Fusion(WORDS, dataclasses.replace(WORDS, look=1e-4)))
    return folder


def suite(folder, *systems, **changes):
    values = small_suite.suite_values(folder, checkpoint=str(folder / "model"), systems=systems)
    sizes = {"memory_tokens": (200, 400), "answer_memory_tokens": (400,)}
    return Suite(suite_config(values | sizes | changes))


def test_every_ranking_is_measured_and_answers_read_its_first_document(folder):
    one = suite(folder, *FUSED, "msa + words + look answers")
    one.run()
    for size in (200, 400):
        recall = {x: one.results.value("animals", size, x, "recall@4").value for x in FUSED}
        for system in ("msa + words", "msa + words + look", "bm25 + look"):
            assert recall[system] == recall["bm25"] > 0.9
        sure = one.results.value("animals", size, "msa + words", "probability of the first")
        assert 0 < sure.value < 1
    read = one.results.value("animals", 400, "msa + words + look answers", "documents read")
    assert read.value <= 2
    # What is there is not measured again.
    again = suite(folder, *FUSED, "msa + words + look answers")
    assert not any(again._wanted("animals", system) for system in FUSED)


def test_a_model_without_a_look_is_refused_by_name(folder, tmp_path):
    plain = small_suite.write_model(tmp_path / "plain")
    with pytest.raises(ConfigError, match=r"'msa \+ words' needs a model with look.safetensors"):
        suite(folder, "msa + words", checkpoint=plain, workdir=str(tmp_path / "other"))
