"""The same step on one device and on eight: loss and gradients agree."""

from functools import cache, partial

import jax
import numpy as np
import pytest

from msa_jax.modules.transformer import Transformer
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from msa_jax.sharding.rules import batch_shardings, put_batch, replicated, state_shardings
from msa_jax.training.objective import training_loss
from msa_jax.training.optimizer import OptimizerConfig
from msa_jax.training.step import StageProgram
from tests.training.tiny import model_config, random_batch, random_params, stage_config

GROUPS = 8
MESHES = [
    MeshConfig(data=8),
    MeshConfig(fsdp=8),
    MeshConfig(tensor=2),
    MeshConfig(memory=2),
    MeshConfig(memory=4),
    MeshConfig(fsdp=2, tensor=2, memory=2),
]


@cache
def loss_and_gradients(mesh_config):
    model = Transformer(model_config(tie_embeddings=False))
    stage = stage_config(groups=GROUPS, answer_weight=0.3)
    mesh = make_mesh(mesh_config)
    params = random_params(model.config)
    shardings = state_shardings(params, mesh)
    step = jax.jit(
        jax.value_and_grad(partial(training_loss, model, stage=stage), has_aux=True),
        in_shardings=(shardings, batch_shardings(mesh)),
        out_shardings=((replicated(mesh), replicated(mesh)), shardings),
    )
    batch = put_batch(random_batch(groups=GROUPS), mesh, GROUPS)
    with jax.set_mesh(mesh):
        (loss, metrics), gradients = step(jax.device_put(params, shardings), batch)
    return jax.device_get((loss, metrics, gradients))


@pytest.mark.parametrize("mesh_config", MESHES, ids=str)
def test_every_axis_gives_the_loss_of_one_device(mesh_config):
    loss, metrics, gradients = loss_and_gradients(mesh_config)
    expected_loss, expected_metrics, expected_gradients = loss_and_gradients(MeshConfig())
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    for (path, gradient), expected in zip(
        jax.tree.leaves_with_path(gradients), jax.tree.leaves(expected_gradients), strict=True
    ):
        scale = np.abs(expected).max()
        assert scale > 0, path
        assert np.abs(gradient - expected).max() <= 1e-5 * scale, jax.tree_util.keystr(path)


@pytest.mark.parametrize("mesh_config", [MeshConfig(), *MESHES[2:4]], ids=str)
def test_a_training_step_calls_kernels_on_the_devices_own_parts(mesh_config):
    """On several devices always: the compiler cannot cut a kernel, whatever the axis."""
    mesh = make_mesh(mesh_config)
    model = Transformer(model_config())
    program = StageProgram(model, stage_config(groups=GROUPS), OptimizerConfig(), mesh)
    batch = put_batch(random_batch(groups=GROUPS), mesh, GROUPS)
    jaxpr = str(program.step.trace(program.abstract_state, batch).jaxpr)
    assert ("shard_map" in jaxpr) == (mesh.size > 1)
