"""Training low-rank updates: what moves, what stays, and what a run leaves behind."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.checkpoint.checkpointer import (
    CHECKPOINTS,
    CheckpointConfig,
    complete_steps,
    load_params,
)
from msa_jax.config import ConfigError
from msa_jax.engine.loading import load_model
from msa_jax.modules.lora import Lora, merge_lora
from msa_jax.modules.transformer import Transformer
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from msa_jax.sharding.rules import state_shardings
from msa_jax.training import trainer
from msa_jax.training.objective import training_loss
from msa_jax.training.optimizer import OptimizerConfig, lora_paths, split_trainable
from msa_jax.training.step import StageProgram
from tests.training.test_trainer import Killed, kill_at
from tests.training.tiny import (
    dataset_of,
    model_config,
    random_batch,
    random_params,
    stage_config,
    train_config,
)

LORA = {"trainable": "lora", "lora_rank": 4, "lora_alpha": 8.0}


def by_path(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def program_of(mesh=None, **stage):
    stage = stage_config(groups=4, **stage)
    return StageProgram(
        Transformer(model_config()), stage, OptimizerConfig(), make_mesh(mesh or MeshConfig())
    )


def trained(program, steps=2):
    state = program.start(random_params(model_config()))
    for seed in range(steps):
        state, metrics = program.step(state, random_batch(seed=seed))
    return state, metrics


@pytest.fixture(scope="module")
def program():
    """Compiled once for all that only look at it."""
    return program_of(**LORA)


def test_only_factors_and_routers_train(program):
    state, _ = trained(program)
    before = by_path(random_params(model_config()))
    for path, value in by_path(state.params).items():
        assert (value == before[path]).all() == ("/router/" not in path), path
    factors = by_path(state.lora.factors)
    assert len(factors) == 2 * 2 * 7  # Two runs of layers, seven linear layers in each.
    assert all(value.any() for value in factors.values())
    routers = sum(value.size for path, value in before.items() if "/router/" in path)
    in_training = routers + sum(value.size for value in factors.values())
    memory = sum(leaf.size for leaf in jax.tree.leaves(state.optimizer))
    assert memory <= 2 * in_training + 4  # Two moments and the counters.


def test_a_router_among_the_targets_trains_by_its_update():
    targets = {"lora_targets": ("router/q_proj", "mlp"), "frozen": ("plain_0",)}
    stage, params = stage_config(**(LORA | targets)), random_params(model_config())
    in_full, frozen = split_trainable(params, stage)
    assert by_path(in_full).keys() == {"routed_1/attention/router/k_proj/kernel"}
    assert by_path(in_full).keys() | by_path(frozen).keys() == by_path(params).keys()
    assert set(lora_paths(params, stage)) == {
        "routed_1/attention/router/q_proj/kernel",
        *(f"routed_1/mlp/{name}_proj/kernel" for name in ("gate", "up", "down")),
    }


def test_frozen_parameters_stay_bit_for_bit():
    frozen = ("embedder", "plain_0/mlp", "router/k_proj")
    state, _ = trained(program_of(frozen=frozen))
    before = by_path(random_params(model_config()))
    for path, value in by_path(state.params).items():
        stays = any(f"/{name}/" in f"/{path}" for name in frozen)
        assert (value == before[path]).all() == stays, path
    moments = {path for path in by_path(state.optimizer) if "embedder" in path}
    assert not moments


def test_a_stage_starts_as_the_model_and_ends_merged(program):
    params = random_params(model_config())
    start = program.start(random_params(model_config()))
    jax.tree.map(np.testing.assert_array_equal, merge_lora(start.params, start.lora), params)

    state, _ = trained(program)
    batch = random_batch(seed=7)
    merged = merge_lora(state.params, state.lora)
    kernel = by_path(state.params)["routed_1/attention/o_proj/kernel"]
    a, b = (by_path(state.lora)[f"factors/routed_1/attention/o_proj/kernel/{x}"] for x in "ab")
    update = 2.0 * np.einsum("lnhr,lrd->lnhd", a, b)  # alpha / rank = 2
    np.testing.assert_allclose(
        merged["routed_1"]["attention"]["o_proj"]["kernel"], kernel + update, rtol=1e-5, atol=1e-6
    )
    finished = program.finish(jax.tree.map(jnp.copy, state))
    jax.tree.map(np.testing.assert_array_equal, finished, merged)
    # What the next step reports of the unmerged model is what the merged one computes.
    model = Transformer(model_config())
    loss = jax.jit(lambda params, batch: training_loss(model, params, batch, program.stage))
    _, expected = loss(merged, batch)
    _, metrics = program.step(state, batch)
    np.testing.assert_allclose(metrics["lm_loss"], expected["lm_loss"], rtol=1e-6)
    np.testing.assert_allclose(metrics["aux_loss"], expected["aux_loss"], rtol=1e-6)


def test_gradients_of_factors_are_those_of_the_product():
    """Of the kernel's gradient g, `a` has g b' and `b` has a' g, times the scale."""
    a = jax.random.normal(jax.random.key(0), (2, 6, 3))
    b = jax.random.normal(jax.random.key(1), (2, 3, 4, 2))
    kernel, g = (jax.random.normal(jax.random.key(n), (2, 6, 4, 2)) for n in (2, 3))

    def loss(factors):
        lora = Lora({"q_proj": {"kernel": factors}}, jnp.float32(0.5))
        return (merge_lora({"q_proj": {"kernel": kernel}}, lora)["q_proj"]["kernel"] * g).sum()

    gradient = jax.grad(loss)({"a": a, "b": b})
    np.testing.assert_allclose(gradient["a"], 0.5 * np.einsum("linh,lrnh->lir", g, b), rtol=1e-4)
    np.testing.assert_allclose(gradient["b"], 0.5 * np.einsum("lir,linh->lrnh", a, g), rtol=1e-4)


def test_a_mesh_trains_the_same(program):
    mesh = MeshConfig(fsdp=2, tensor=2, memory=2)
    state, metrics = trained(program)
    spread, spread_metrics = trained(program_of(mesh, **LORA))
    np.testing.assert_allclose(spread_metrics["loss"], metrics["loss"], rtol=1e-4)
    for path, value in by_path(state.lora.factors).items():
        np.testing.assert_allclose(by_path(spread.lora.factors)[path], value, atol=2e-3)
    factor = spread.lora.factors["routed_1"]["mlp"]["down_proj"]["kernel"]["a"]
    assert factor.sharding.spec[1] == "tensor"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frozen": ("embeder",)}, r"stages\.main\.frozen names 'embeder', which is no part of"),
        ({"lora_targets": ("embedder",)}, r"stages\.main\.lora_targets names 'embedder'"),
        ({"frozen": ("attention", "mlp")}, r"stages\.main\.frozen leaves nothing to train"),
    ],
)
def test_names_that_fit_nothing_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        program_of(**(LORA | changes))


# An update, and then full training.
STAGES = (
    stage_config(name="lora", steps=3, **LORA),
    stage_config(name="last", steps=2, frozen=("embedder",)),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return train_config(tmp_path_factory.mktemp("lora"), stages=STAGES)


@pytest.fixture(scope="module")
def dataset(config):
    return dataset_of(config)


@pytest.fixture(scope="module")
def final_params(config, dataset):
    return jax.device_get(trainer.train(config, dataset).params)


def test_a_killed_run_continues_bit_for_bit(tmp_path, config, dataset, final_params, monkeypatch):
    config = dataclasses.replace(config, workdir=str(tmp_path))
    # In the stage with updates after a checkpoint, and when it has ended.
    for last_step in (2, 1):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, last_step)
            trainer.train(config, dataset)
    result = trainer.train(config, dataset)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(result.params), final_params)


def test_checkpoints_of_a_stage_with_updates_load_merged(tmp_path, config, dataset):
    at_ends = CheckpointConfig(every=100)  # So that the last step is the best.
    config = dataclasses.replace(
        config, workdir=str(tmp_path), stages=STAGES[:1], checkpoint=at_ends
    )
    result = trainer.train(config, dataset)
    expected = jax.device_get(result.params)
    loaded = load_model(tmp_path).params
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    rounded = load_model(tmp_path, dtype="bfloat16").params
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x, y.astype(x.dtype)), rounded, expected
    )
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2, memory=2))
    abstract = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        expected,
        state_shardings(expected, mesh),
    )
    directory = tmp_path / CHECKPOINTS
    spread = load_params(directory, complete_steps(directory)[-1], abstract)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-8), spread, expected
    )
