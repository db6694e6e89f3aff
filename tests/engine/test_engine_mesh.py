"""Memory Parallel: engines on meshes of simulated devices answer like one device."""

import pytest

from msa_jax.kernels.content import DEVICE, DISK
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from tests.engine.banks import save_model
from tests.engine.engines import (
    QUESTIONS,
    ask_config,
    assert_same,
    documents_of,
    load,
    new_engine,
)

DOCUMENTS = documents_of(12)
MESHES = [
    ({"memory": 4}, DEVICE),
    ({"memory": 4}, DISK),
    ({"data": 2, "memory": 2}, DEVICE),
    ({"tensor": 2}, DEVICE),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def observed(engine):
    """Greedy answers from some of the documents that a few changes leave."""
    engine.add(documents_of(15)[12:])
    engine.delete(["d1", "d7"])
    return engine.ask_all(QUESTIONS, ask_config(filters={"kind": ["red", "green"]}))


@pytest.fixture(scope="module")
def expected(tmp_path_factory, folder):
    path = tmp_path_factory.mktemp("banks") / "bank"
    with new_engine(path, load(folder), DOCUMENTS) as engine:
        return observed(engine)


@pytest.mark.parametrize(("axes", "tier"), MESHES, ids=str)
def test_a_mesh_answers_like_one_device(tmp_path, folder, expected, axes, tier):
    mesh = make_mesh(MeshConfig(**axes))
    loaded = load(folder, mesh)
    with new_engine(tmp_path / "bank", loaded, DOCUMENTS, mesh, tier) as engine:
        keys = engine.bank.memory.layers.router_keys.values
        assert len(keys.sharding.device_set) == mesh.size
        shards = {shard.data.shape[2] for shard in keys.addressable_shards}
        assert shards == {keys.shape[2] // mesh.shape["memory"]}
        assert engine.bank.plan.content_tier == tier
        assert_same(observed(engine), expected)
