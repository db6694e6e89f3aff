import dataclasses

import jax
import numpy as np
import pytest

from msa_jax.checkpoint.checkpointer import best_step, complete_steps, load_model_config
from msa_jax.config import ConfigError
from msa_jax.data import pipeline
from msa_jax.sharding.mesh import MeshConfig
from msa_jax.training import trainer
from msa_jax.training.metrics import read_metrics
from tests.training.processes import losses_of
from tests.training.tiny import dataset_of, model_config, stage_config, train_config

STAGES = (
    stage_config(name="warmup", steps=4, aux_weight=1.0, warmup_steps=1),
    stage_config(name="routers", steps=3, trainable="routers"),
)
LAST_STEP = 7


class Killed(Exception):
    """Stands for the end of the process."""


def kill_at(monkeypatch, last_step):
    """Makes the data iterator fail after `last_step` steps of the run, in whatever stage."""
    steps = iter(range(last_step))

    class Mortal:
        def __init__(self, *arguments):
            self._iterator = pipeline.training_iterator(*arguments)
            self.get_state, self.set_state = self._iterator.get_state, self._iterator.set_state

        def __next__(self):
            if next(steps, None) is None:
                raise Killed
            return next(self._iterator)

    monkeypatch.setattr(trainer, "training_iterator", Mortal)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return train_config(tmp_path_factory.mktemp("train"), stages=STAGES)


@pytest.fixture(scope="module")
def dataset(config):
    return dataset_of(config)


@pytest.fixture(scope="module")
def whole_run(config, dataset):
    """The result and the metrics of a run that nothing interrupts."""
    result = trainer.train(config, dataset)
    return jax.device_get(result.params), losses_of(config.workdir)


def test_a_run_goes_through_its_stages(config, whole_run):
    _, lines = whole_run
    assert [line["step"] for line in lines] == list(range(1, LAST_STEP + 1))
    assert [line["stage"] for line in lines] == ["warmup"] * 4 + ["routers"] * 3
    assert lines[3]["learning_rate"] < lines[1]["learning_rate"]
    assert {"lm_loss", "aux_loss", "recall@1", "recall@2/layer_2", "grad_norm"} <= lines[0].keys()
    assert list((trainer.Path(config.workdir) / "tensorboard").glob("events.out.tfevents.*"))


def test_a_finished_run_has_nothing_left_to_do(config, dataset, whole_run):
    params, lines = whole_run
    again = trainer.train(config, dataset)
    assert (again.step, again.interrupted, again.metrics) == (LAST_STEP, False, {})
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again.params), params)
    assert losses_of(config.workdir) == lines


# Before the first checkpoint, after one, at a stage's end, in the second stage and again.
@pytest.mark.parametrize("kills", [[1], [3], [4], [5, 1]], ids=str)
def test_a_killed_run_continues_bit_for_bit(
    tmp_path, config, dataset, whole_run, monkeypatch, kills
):
    params, lines = whole_run
    config = dataclasses.replace(config, workdir=str(tmp_path))
    for last_step in kills:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, last_step)
            trainer.train(config, dataset)
    result = trainer.train(config, dataset)
    assert result.step == LAST_STEP
    assert losses_of(tmp_path) == lines
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(result.params), params)


def test_checkpoints_are_kept_by_the_configuration(config, whole_run):
    directory = trainer.Path(config.workdir) / trainer.CHECKPOINTS
    steps = complete_steps(directory)
    assert steps[-2:] == [6, LAST_STEP]
    assert best_step(directory) in steps
    assert load_model_config(directory) == config.model


def test_a_run_continues_on_another_mesh(tmp_path, config, dataset, whole_run, monkeypatch):
    _, lines = whole_run
    config = dataclasses.replace(config, workdir=str(tmp_path), stages=STAGES[:1])
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 2)
        trainer.train(config, dataset)
    trainer.train(dataclasses.replace(config, mesh=MeshConfig(fsdp=2, memory=2)), dataset)
    for line, expected in zip(losses_of(tmp_path), lines[:4], strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_a_checkpoint_of_another_model_is_refused(config, whole_run):
    other = dataclasses.replace(config, model=model_config(vocab_size=4096, num_heads=8))
    with pytest.raises(ConfigError, match=r"another model, which differs in num_heads \(4 there"):
        trainer.train(other)


def test_a_tokenizer_that_knows_more_tokens_than_the_model_is_refused(tmp_path, config, dataset):
    small = dataclasses.replace(config, workdir=str(tmp_path), model=model_config(vocab_size=64))
    with pytest.raises(ConfigError, match=r"model\.vocab_size \(64\) is smaller than the 4096"):
        trainer.train(small, dataset)


def test_a_curriculum_cut_short_is_refused(config, dataset, whole_run):
    shorter = dataclasses.replace(config, stages=STAGES[:1])
    with pytest.raises(ConfigError, match="in stage 2 of a curriculum that now has 1; restore"):
        trainer.train(shorter, dataset)


def test_a_mesh_that_does_not_divide_the_groups_is_refused_before_data_is_read(config):
    config = dataclasses.replace(config, mesh=MeshConfig(data=4))
    with pytest.raises(ConfigError, match="mesh.data x mesh.fsdp = 4 does not divide"):
        trainer.train(config, dataset=None)


def test_a_run_that_diverges_stops_and_saves_nothing(tmp_path, config, dataset):
    broken = dataclasses.replace(STAGES[0], learning_rate=1e30, warmup_steps=0)
    config = dataclasses.replace(config, workdir=str(tmp_path), stages=(broken,))
    with pytest.raises(trainer.DivergenceError, match="diverged: after step 2"):
        trainer.train(config, dataset)
    assert complete_steps(tmp_path / trainer.CHECKPOINTS) == []


def test_a_run_that_diverges_stops_at_the_next_line_of_metrics(tmp_path, config, dataset):
    """Not only where a checkpoint would be written: the steps until then would be wasted."""
    broken = dataclasses.replace(STAGES[0], learning_rate=1e30, warmup_steps=0, steps=50)
    rarely = dataclasses.replace(config.checkpoint, every=50)
    config = dataclasses.replace(
        config, workdir=str(tmp_path), stages=(broken,), checkpoint=rarely, log_every=3
    )
    with pytest.raises(trainer.DivergenceError, match="diverged: after step 3 "):
        trainer.train(config, dataset)
    assert read_metrics(tmp_path)[-1]["step"] == 3
