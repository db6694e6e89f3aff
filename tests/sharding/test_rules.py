from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from msa_jax.config import ConfigError
from msa_jax.modules.init import init_params
from msa_jax.modules.transformer import Transformer
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from msa_jax.sharding.rules import state_shardings
from msa_jax.training.optimizer import OptimizerConfig
from msa_jax.training.step import StageProgram
from tests.training.tiny import model_config, stage_config

MESH = MeshConfig(data=1, fsdp=2, tensor=2, memory=2)


def abstract_params(**changes):
    return jax.eval_shape(partial(init_params, model_config(**changes)), jax.random.key(0))


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("attention_bias", [True, False])
def test_one_rule_places_every_parameter_of_every_architecture(
    tie_embeddings, qk_norm, attention_bias
):
    params = abstract_params(
        tie_embeddings=tie_embeddings, qk_norm=qk_norm, attention_bias=attention_bias
    )
    shardings = state_shardings(params, make_mesh(MESH))
    # Everything but norms is cut, so that no large parameter is on every device.
    for (path, leaf), sharding in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(shardings), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert sharding.is_fully_replicated == ("norm" in name), name
        assert sharding.shard_shape(leaf.shape)


def test_kernels_lie_as_documented():
    shardings = state_shardings(abstract_params(tie_embeddings=False), make_mesh(MESH))
    attention, mlp = shardings["routed_1"]["attention"], shardings["routed_1"]["mlp"]
    assert attention["q_proj"]["kernel"].spec == P(None, "fsdp", "tensor", None)
    assert attention["router"]["k_proj"]["kernel"].spec == P(None, "fsdp", "tensor", None)
    assert attention["o_proj"]["kernel"].spec == P(None, "tensor", None, "fsdp")
    assert mlp["gate_proj"]["kernel"].spec == P(None, "fsdp", "tensor")
    assert mlp["down_proj"]["kernel"].spec == P(None, "tensor", "fsdp")
    assert shardings["embedder"]["embedding"].spec == P("tensor", "fsdp")
    assert shardings["lm_head"]["kernel"].spec == P("fsdp", "tensor")


def test_moments_lie_with_their_parameters():
    model = Transformer(model_config())
    state = StageProgram(model, stage_config(), OptimizerConfig(), make_mesh(MESH)).abstract_state
    placed = {}
    for path, leaf in jax.tree.leaves_with_path(state.optimizer):
        placed[jax.tree_util.keystr(path, simple=True, separator="/")] = leaf.sharding.spec
    moments = {path: spec for path, spec in placed.items() if path.endswith("q_proj/kernel")}
    assert len(moments) == 6  # Two moments of plain, routed and router projections.
    assert set(moments.values()) == {P(None, "fsdp", "tensor", None)}


def test_parameters_without_a_rule_are_named():
    params = {"embedder": {"embedding": jnp.zeros((4, 4))}, "adapter": {"kernel": jnp.zeros(4)}}
    with pytest.raises(ConfigError, match="no single sharding rule matches adapter/kernel; add"):
        state_shardings(params, make_mesh(MESH))


@pytest.mark.parametrize(
    ("changes", "mesh", "message"),
    [
        ({}, MeshConfig(tensor=4), "mesh.tensor = 4 does not divide model.num_kv_heads = 2"),
        ({"embed_dim": 30}, MeshConfig(fsdp=4), "mesh.fsdp = 4 does not divide model.embed_dim"),
    ],
)
def test_a_mesh_that_does_not_divide_the_model_is_refused(changes, mesh, message):
    with pytest.raises(ConfigError, match=message):
        state_shardings(abstract_params(**changes), make_mesh(mesh))
