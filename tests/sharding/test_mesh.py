from types import SimpleNamespace

import jax
import pytest

from msa_jax.config import ConfigError
from msa_jax.sharding.mesh import AXES, MeshConfig, make_mesh
from msa_jax.sharding.rules import group_share, put_batch
from tests.training.tiny import random_batch


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (1, 1, 1, 1)),
        (MeshConfig(data=-1), (8, 1, 1, 1)),
        (MeshConfig(data=-1, tensor=2, memory=2), (2, 1, 2, 2)),
        (MeshConfig(memory=-1), (1, 1, 1, 8)),
        (MeshConfig(fsdp=2, memory=-1), (1, 2, 1, 4)),
        (MeshConfig(data=2, fsdp=2), (2, 2, 1, 1)),
    ],
)
def test_axes_have_the_configured_sizes(config, shape):
    mesh = make_mesh(config)
    assert mesh.axis_names == AXES
    assert mesh.devices.shape == shape
    assert len(set(mesh.devices.flat)) == mesh.size


@pytest.mark.parametrize("config", [MeshConfig(data=3), MeshConfig(data=-1, tensor=16)])
def test_a_mesh_that_does_not_divide_the_devices_is_refused(config):
    with pytest.raises(ConfigError, match=r"tensor=\d+ x memory=1 .* the 8 devices; choose"):
        make_mesh(config)


def test_a_mesh_that_leaves_a_process_without_a_device_is_refused():
    devices = [SimpleNamespace(process_index=i // 2) for i in range(8)]
    with pytest.raises(ConfigError, match="no place for the devices of process 2; choose larger"):
        make_mesh(MeshConfig(fsdp=4), devices)


def test_an_impossible_size_is_refused():
    with pytest.raises(ConfigError, match="mesh.fsdp must be a positive whole number, .* not -2"):
        MeshConfig(fsdp=-2)


def test_two_axes_that_take_the_rest_are_refused():
    with pytest.raises(ConfigError, match="mesh.data and mesh.memory cannot both be -1"):
        MeshConfig(data=-1, memory=-1)


def test_groups_that_the_mesh_does_not_divide_are_refused():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2))
    assert group_share(mesh, 4) == (0, 1)
    with pytest.raises(ConfigError, match="mesh.data x mesh.fsdp = 4 does not divide .* = 6"):
        group_share(mesh, 6)


def test_memory_rows_that_the_mesh_does_not_divide_are_refused():
    with pytest.raises(ConfigError, match="mesh.memory = 8 does not divide memory rows .* = 4"):
        put_batch(random_batch(groups=2), make_mesh(MeshConfig(memory=8)), 2)


def test_a_batch_is_spread_over_groups_and_rows():
    batch = put_batch(random_batch(groups=4), make_mesh(MeshConfig(data=2, memory=4)), 4)
    assert batch.memory.tokens.addressable_shards[0].data.shape == (2, 1, 16)
    assert batch.positives.addressable_shards[0].data.shape == (2, 2, 8)
    for placed, original in zip(
        jax.tree.leaves(batch), jax.tree.leaves(random_batch(groups=4)), strict=True
    ):
        assert (jax.device_get(placed) == original).all()
