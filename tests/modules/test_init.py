import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.checkpoint.key_map import parameter_shapes
from msa_jax.modules.init import init_params, init_routers
from tests.checkpoint import tiny as checkpoint_tiny
from tests.modules.tiny import model_config

FAMILIES = ("qwen3", "qwen2", "llama")


def flat_shapes(params):
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in paths}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_model_has_the_parameters_of_its_family(family, tied):
    config = checkpoint_tiny.tiny_config(family, tie_embeddings=tied)
    params = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    assert flat_shapes(params) == parameter_shapes(config)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_a_new_model_leaves_its_embeddings_as_they_are():
    """So that the first routing is by the words themselves."""
    params = jax.jit(lambda key: init_params(model_config(), key))(jax.random.key(0))
    for run in ("plain_0", "routed_1"):
        assert not params[run]["attention"]["o_proj"]["kernel"].any()
        assert not params[run]["mlp"]["down_proj"]["kernel"].any()
    assert params["embedder"]["embedding"].std() == pytest.approx(32**-0.5, rel=0.1)


def routers(how, seed=0):
    """Parameters with new routers, in the two routed runs of three layers."""
    config = checkpoint_tiny.tiny_config(router_layers=(0, 2), router_init=how)
    params = jax.tree.map(jnp.asarray, checkpoint_tiny.random_params(config))
    params = init_routers(params, config, jax.random.key(seed))
    attention = [params[run]["attention"] for run in ("routed_0", "routed_2")]
    return params, [
        (run["router"]["q_proj"]["kernel"], run["router"]["k_proj"]["kernel"], run)
        for run in attention
    ]


def test_routers_can_start_as_the_attention_of_their_layer():
    for q, k, attention in routers("from_attention")[1]:
        np.testing.assert_array_equal(q, attention["q_proj"]["kernel"])
        np.testing.assert_array_equal(k, attention["k_proj"]["kernel"])


def test_routers_can_start_with_one_matrix_for_queries_and_keys():
    runs = routers("shared")[1]
    for q, k, _ in runs:
        for head in range(4):
            np.testing.assert_array_equal(q[:, :, head], k[:, :, head // 2])
    assert np.abs(runs[0][1] - runs[1][1]).max() > 0.1


def test_routers_can_start_at_random():
    """Neither projections nor layers nor keys share their numbers."""
    kernels = [x for seed in (0, 1) for q, k, _ in routers("random", seed)[1] for x in (q, k)]
    for kernel in kernels:
        assert kernel.std() == pytest.approx(6**-0.5, rel=0.2)
    for one, other in itertools.combinations(kernels, 2):
        assert np.abs(one[:, :, :2] - other[:, :, :2]).max() > 0.1


@pytest.mark.parametrize("how", ["from_attention", "shared", "random"])
def test_no_two_parameters_share_a_buffer(how):
    """A training step could not donate them."""
    leaves = jax.tree.leaves(routers(how)[0])
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
