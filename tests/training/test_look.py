"""A stage of the second look: it learns, goes on where it was killed, and is the same on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.checkpoint.checkpointer import CHECKPOINTS, CheckpointConfig, best_step
from msa_jax.checkpoint.look import load_look
from msa_jax.config import ConfigError
from msa_jax.data.pipeline import DataConfig, training_iterator
from msa_jax.data.records import Document, Question, write_documents, write_questions
from msa_jax.engine.loading import load_model
from msa_jax.engine.look import Look
from msa_jax.modules.transformer import Transformer
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from msa_jax.training import trainer
from msa_jax.training.curriculum import LookStage, stages_from_config
from msa_jax.training.look import LookProgram, held_out_lists, list_metrics, training_shape
from msa_jax.training.optimizer import OptimizerConfig
from tests.training.processes import losses_of
from tests.training.test_trainer import Killed, kill_at
from tests.training.tiny import dataset_of, model_config, random_params, train_config

STAGE = {
    "name": "look",
    "steps": 4,
    "learning_rate": 1e-3,
    "groups": 2,
    "queries_per_group": 4,
    "candidates": 4,
    "row_tokens": (32,),
    "held_out": ("dev",),
    "held_out_lists": 16,
    "lora_rank": 4,
}


MODEL = model_config(vocab_size=4096, num_layers=2, memory={"router_layers": (1,)})


def look_stage(**changes):
    return LookStage(**(STAGE | changes))


def sources(directory):
    """Every second of a hundred boats has an amber sail, and is asked for; others are like it."""
    colours = ("amber", "black")
    documents = [Document(f"d{i}", f"boat {i}: {colours[i % 2]} sail") for i in range(100)]
    write_documents(directory / "documents.jsonl", documents)
    found = {}
    for name, numbers in (("train", range(0, 80, 2)), ("dev", range(80, 100, 2))):
        questions = [
            Question(
                f"{name}{i}",
                f"What of boat {i}?",
                (),
                (f"d{i}",),
                tuple(f"d{(i + offset) % 100}" for offset in (1, 3, 5)),
            )
            for i in numbers
        ]
        write_questions(directory / f"{name}.jsonl", questions)
        found[name] = {
            "documents": str(directory / "documents.jsonl"),
            "questions": str(directory / f"{name}.jsonl"),
        }
    return found


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    directory = tmp_path_factory.mktemp("look")
    data = DataConfig(sources=sources(directory), row_tokens=64, max_document_tokens=48)
    return train_config(directory, stages=(look_stage(),), data=data, model=MODEL)


@pytest.fixture(scope="module")
def dataset(config):
    return dataset_of(config)


@pytest.fixture(scope="module")
def whole_run(config, dataset):
    """The parameters, the look and the metrics of a run that nothing interrupts."""
    params = jax.device_get(trainer.initial_params(config, make_mesh(config.mesh)))
    result = trainer.train(config, dataset)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(result.params), params)
    return params, load_look(config.workdir, config.model), losses_of(config.workdir)


def program_of(held_out=(), folder=".", **stage):
    mesh = make_mesh(MeshConfig())
    arguments = Transformer(MODEL), look_stage(**stage), OptimizerConfig(), mesh
    return LookProgram(*arguments, held_out, folder)


def test_a_run_leaves_its_parameters_and_a_look_that_the_engine_uses(config, whole_run):
    params, look, lines = whole_run
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert {"first@1", "none_accuracy", "grad_norm", "learning_rate", "tokens"} <= steps[0].keys()
    measured = [line for line in lines if "held_out/first@1" in line]
    assert [line["step"] for line in measured] == [2, 4]
    assert measured[0]["stage"] == "look" and "held_out/loss" in measured[0]

    loaded = load_model(config.workdir, dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded.params), params)
    jax.tree.map(np.testing.assert_array_equal, loaded.look, look)
    assert np.any(look.weight)
    scorer = Look(loaded.model, loaded.params, loaded.look, loaded.builder)
    assert np.isfinite(scorer.logits([(loaded.tokenizer.encode("boat"), "What?")])).all()


def test_a_run_may_start_from_another(config, whole_run):
    again = dataclasses.replace(config, init_from=config.workdir, seed=9)
    params = trainer.initial_params(again, make_mesh(MeshConfig(data=2)))
    jax.tree.map(np.testing.assert_array_equal, params, whole_run[0])
    wider = dataclasses.replace(again, model=dataclasses.replace(MODEL, hidden_dim=56))
    with pytest.raises(ConfigError, match="is a run of another model, which differs in the shape"):
        trainer.initial_params(wider, make_mesh(MeshConfig()))


def test_the_look_on_disk_is_that_of_the_best_checkpoint(tmp_path, config, dataset, monkeypatch):
    """Of three checkpoints the second measures best."""
    shares = iter([0.25, 0.75, 0.5])

    def metrics_of(logits, target):
        found = list_metrics(logits, target)
        # Of steps they are traced; those of held-out lists are numbers.
        is_traced = isinstance(found["loss"], jax.core.Tracer)
        return found if is_traced else found | {"first@1": next(shares)}

    monkeypatch.setattr("msa_jax.training.look.list_metrics", metrics_of)
    saved = []
    monkeypatch.setattr(
        "msa_jax.training.look.save_look", lambda folder, look: saved.append(look.weight)
    )
    every = CheckpointConfig(every=1, keep=1)
    stage = look_stage(steps=3)
    trainer.train(
        dataclasses.replace(config, workdir=str(tmp_path), stages=(stage,), checkpoint=every),
        dataset,
    )
    assert len(saved) == 2 and best_step(tmp_path / CHECKPOINTS) == 2


def test_a_killed_run_continues_bit_for_bit(tmp_path, config, dataset, whole_run, monkeypatch):
    _, look, lines = whole_run
    config = dataclasses.replace(config, workdir=str(tmp_path))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 3)
        trainer.train(config, dataset)
    trainer.train(config, dataset)
    # What is finished has nothing left to do.
    assert trainer.train(config, dataset).metrics == {}
    assert losses_of(tmp_path) == lines
    jax.tree.map(np.testing.assert_array_equal, load_look(tmp_path, config.model), look)


def test_a_mesh_trains_the_same(tmp_path, config, dataset, whole_run):
    _, look, lines = whole_run
    mesh = MeshConfig(data=2, tensor=2)
    trainer.train(dataclasses.replace(config, workdir=str(tmp_path), mesh=mesh), dataset)
    for line, expected in zip(losses_of(tmp_path), lines, strict=True):
        for name, value in expected.items():
            assert line[name] == (value if name == "stage" else pytest.approx(value, rel=1e-3))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=2e-3),
        load_look(tmp_path, config.model),
        look,
    )


def test_it_learns(dataset, tmp_path):
    """It soon finds what is asked for, also of boats that it has not seen; chance is 1/4."""
    stage = {"steps": 25, "learning_rate": 1e-2, "warmup_steps": 5}
    held_out = held_out_lists(dataset, look_stage(**stage), 0, (0, 1))
    program = program_of(held_out=held_out, folder=tmp_path, **stage)
    state = program.start(random_params(MODEL))
    batches = training_iterator(dataset, training_shape(dataset, program.stage), 0)
    losses = []
    for _ in range(stage["steps"]):
        state, metrics = program.step(state, program.put(next(batches)))
        losses.append(float(metrics["loss"]))
    # The head starts at zero: all documents, and none, are as likely.
    assert losses[0] == pytest.approx(np.log(5), rel=1e-5)
    _, measured = program.measure(state)
    assert np.mean(losses[-5:]) < 1.0 and measured["held_out/first@1"] > 0.6


def test_documents_of_a_list_are_found_in_the_blocks(dataset, monkeypatch):
    """With the sum of its tokens in place of a row's score."""
    monkeypatch.setattr(
        "msa_jax.training.look.look_logits",
        lambda model, params, weight, bias, block: block.tokens.sum(axis=-1).astype(jnp.float32),
    )
    program = program_of(row_tokens=(24, 32))
    batch = next(training_iterator(dataset, training_shape(dataset, program.stage), 0))
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), program.abstract_state)
    absent = dataclasses.replace(batch, place=np.where(batch.place == 3, -1, batch.place))
    logits, target = program._scores(state.params, state.look, absent)
    tokens = [block.tokens for block in batch.rows]
    for at in np.ndindex(batch.place.shape):
        block, row = divmod(int(batch.place[at]), tokens[0].shape[1])
        expected = -np.inf if batch.place[at] == 3 else tokens[block][at[0], row].sum()
        assert logits[at] == expected
    np.testing.assert_array_equal(target, batch.target)


def test_metrics_of_lists():
    logits = jnp.array([[2.0, 1.0, -1.0], [-1.0, -0.5, -2.0], [0.0, 0.0, 0.0], [1.0, -1.0, -9.0]])
    metrics = list_metrics(logits, jnp.array([0, 3, 0, 3]))
    # The first is found; the third ties, which is not found.
    assert metrics["first@1"] == 0.5
    # There is one, there is none; 0 says none; 1 says that there is one.
    assert metrics["none_accuracy"] == 0.5
    assert jnp.isfinite(metrics["loss"])
    absent = list_metrics(jnp.full((1, 3), -jnp.inf), jnp.array([3]))
    assert absent == {"loss": 0.0, "first@1": 0.0, "none_accuracy": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "memory"}, r"stages\.look\.kind must be one of look, not 'memory'"),
        ({"candidates": 0}, "candidates must be a positive whole number, not 0"),
        ({"lora_rank": -1}, "lora_rank must be a positive whole number"),
        ({"row_tokens": 32}, "row_tokens must be a tuple"),
        ({"row_tokens": (64, 32)}, "row_tokens must be a tuple of .* in ascending order"),
        ({"row_tokens": (32, 32, 64)}, r"row_tokens must be as many numbers as divide .* \(16\)"),
        ({"none_fraction": 1.0}, "none_fraction must be a number at least 0 and below 1"),
        ({"held_out": ()}, "held_out must be a tuple of names of data.sources, one at the least"),
        ({"held_out": "dev"}, "held_out must be a tuple"),
        ({"held_out_lists": 0}, "held_out_lists must be a positive whole number"),
        ({"mixture": {"dev": 1.0}}, "mixture must be without dev, which held_out measures"),
        ({"warmup_steps": 9}, r"warmup_steps must be at most steps \(4\)"),
        ({"schedule": "linear"}, "schedule must be one of cosine, constant"),
    ],
)
def test_a_stage_that_cannot_train_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        look_stage(**changes)


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (("test",), "held_out names 'test', which is not a source of questions: train, dev"),
        (("train", "dev"), "held_out leaves no source of questions to train on"),
    ],
)
def test_sources_that_do_not_fit_are_refused(config, dataset, tmp_path, held_out, message):
    stages = (look_stage(held_out=held_out),)
    with pytest.raises(ConfigError, match=message):
        trainer.train(dataclasses.replace(config, workdir=str(tmp_path), stages=stages), dataset)


def test_kinds_of_stages_come_by_name():
    values = {name: STAGE[name] for name in STAGE if name != "name"}
    config = {"curriculum": ("a",), "stages": {"a": values | {"kind": "look"}}}
    assert stages_from_config(config) == (look_stage(name="a"),)
    config["stages"]["a"]["kind"] = "glance"
    with pytest.raises(ConfigError, match="stages.a.kind must be one of memory, look, not 'glance"):
        stages_from_config(config)
