import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from msa_jax.config import ConfigError
from msa_jax.modules.transformer import Transformer
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from msa_jax.training.optimizer import (
    OptimizerConfig,
    join_params,
    learning_rate,
    make_optimizer,
    split_trainable,
)
from msa_jax.training.step import StageProgram
from tests.training.tiny import model_config, random_batch, random_params, stage_config


def by_path(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def test_cosine_warms_up_and_falls_to_zero():
    stage = stage_config(steps=12, warmup_steps=4)
    rates = [float(learning_rate(stage, 0.8)(step)) for step in range(13)]
    np.testing.assert_allclose(rates[:5], [0.2, 0.4, 0.6, 0.8, 0.8], rtol=1e-6)
    np.testing.assert_allclose(rates[8], 0.4, rtol=1e-6)  # Half way.
    np.testing.assert_allclose(rates[12], 0.0, atol=1e-6)
    assert (np.diff(rates[4:]) < 0).all()


def test_constant_warms_up_and_stays():
    stage = stage_config(steps=12, warmup_steps=2, schedule="constant")
    rates = [float(learning_rate(stage, 0.8)(step)) for step in range(12)]
    np.testing.assert_allclose(rates, [0.4] + [0.8] * 11, rtol=1e-6)


@pytest.fixture(scope="module")
def params():
    return random_params(model_config(attention_bias=True))


def updates_of(params, config, stage):
    optimizer = make_optimizer(config, stage)

    @jax.jit
    def first_update(params):
        gradients = jax.tree.map(jnp.ones_like, params)
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    return by_path(first_update(params))


def test_routers_have_their_own_learning_rate(params):
    stage = stage_config(learning_rate=1e-3, router_learning_rate=5e-3)
    updates = updates_of(params, OptimizerConfig(weight_decay=0.0), stage)
    for path, update in updates.items():
        # The first step of Adam is the sign of the gradient times the learning rate.
        rate = 5e-3 if "/router/" in path else 1e-3
        np.testing.assert_allclose(update, -rate, rtol=1e-3, err_msg=path)


def test_only_matrices_decay(params):
    stage = stage_config(learning_rate=1.0)
    with_decay = updates_of(params, OptimizerConfig(weight_decay=0.5), stage)
    without = updates_of(params, OptimizerConfig(weight_decay=0.0), stage)
    for path, value in by_path(params).items():
        decay = without[path] - with_decay[path]
        is_matrix = path.rsplit("/", 1)[-1] in ("kernel", "embedding")
        np.testing.assert_allclose(decay, 0.5 * value if is_matrix else 0.0, atol=1e-5)


def test_gradients_are_clipped_together(params):
    # Clipping cannot show in an Adam update, so it is read from the first moment.
    config = OptimizerConfig(b1=0.9, clip_norm=0.1)
    optimizer = make_optimizer(config, stage_config())

    @jax.jit
    def moment_norm(params):
        gradients = jax.tree.map(lambda x: 7 * jnp.ones_like(x), params)
        _, state = optimizer.update(gradients, optimizer.init(params), params)
        return optax.tree.norm(optax.tree.get(state, "mu"))

    np.testing.assert_allclose(moment_norm(params) / (1 - config.b1), 0.1, rtol=1e-4)


def test_split_and_join_are_inverse(params):
    trained, frozen = split_trainable(params, stage_config(trainable="routers"))
    assert all("/router/" in path for path in by_path(trained))
    assert not any("/router/" in path for path in by_path(frozen))
    jax.tree.map(np.testing.assert_array_equal, join_params(trained, frozen), params)


def test_training_routers_leaves_the_rest_untouched():
    model = Transformer(model_config())
    stage = stage_config(trainable="routers", groups=4)
    program = StageProgram(model, stage, OptimizerConfig(), make_mesh(MeshConfig()))
    before = by_path(random_params(model.config))
    state = program.start(random_params(model.config))
    for seed in range(2):
        state, _ = program.step(state, random_batch(seed=seed))
    for path, value in by_path(state.params).items():
        assert (value == before[path]).all() == ("/router/" not in path), path
    trained = [value for path, value in before.items() if "/router/" in path]
    memory = sum(leaf.size for leaf in jax.tree.leaves(state.optimizer))
    assert memory <= 2 * sum(value.size for value in trained) + 4  # Two moments and the counters.


@pytest.mark.parametrize("values", [{"b1": 1.0}, {"clip_norm": 0.0}, {"weight_decay": -1.0}])
def test_an_impossible_optimizer_is_refused(values):
    with pytest.raises(ConfigError, match="optimizer."):
        OptimizerConfig(**values)
