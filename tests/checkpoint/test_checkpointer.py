import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from msa_jax.checkpoint.checkpointer import (
    CheckpointConfig,
    Checkpointer,
    Position,
    best_step,
    complete_steps,
    load_model_config,
    load_params,
)
from msa_jax.config import ConfigError, MemoryConfig, ModelConfig
from msa_jax.sharding.mesh import MeshConfig, make_mesh

MODEL = ModelConfig(
    vocab_size=64,
    num_layers=4,
    embed_dim=32,
    hidden_dim=48,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
)


@dataclasses.dataclass(frozen=True)
class State:
    params: dict
    moments: tuple


def state_of(value, mesh_config=None):
    sharding = NamedSharding(make_mesh(mesh_config or MeshConfig()), P("fsdp"))

    def put(x):
        return jax.device_put(jnp.asarray(x, jnp.float32), sharding)

    return State({"kernel": put(np.arange(8) + value)}, (put(np.full(8, value)),))


def abstract(state):
    def of(tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
        )

    return State(of(state.params), of(state.moments))


def open_at(directory, model=MODEL, keep=2):
    return Checkpointer(directory, CheckpointConfig(keep=keep), model)


def save(checkpointer, step, stage=0, recall=0.0):
    position = Position(step=step, stage=stage, stage_step=step, data={"next": [step, "x"]})
    checkpointer.save(position, state_of(step), recall)


@pytest.fixture
def directory(tmp_path):
    """Checkpoints of steps 2 and 4."""
    with open_at(tmp_path) as checkpointer:
        save(checkpointer, 2)
        save(checkpointer, 4)
    return tmp_path


def test_nothing_is_there_at_first(tmp_path):
    with open_at(tmp_path) as checkpointer:
        assert checkpointer.latest() is None
    with pytest.raises(ConfigError, match="holds no complete checkpoint"):
        load_model_config(tmp_path)


def test_position_and_state_come_back(directory):
    with open_at(directory) as checkpointer:
        position = checkpointer.latest()
        assert position == Position(4, 0, 4, {"next": [4, "x"]})
        restored = checkpointer.restore(4, abstract(state_of(0)))
    np.testing.assert_array_equal(restored.params["kernel"], np.arange(8) + 4)
    np.testing.assert_array_equal(restored.moments[0], np.full(8, 4))


def test_state_comes_back_on_another_mesh(directory):
    target = abstract(state_of(0, MeshConfig(fsdp=8)))
    with open_at(directory) as checkpointer:
        restored = checkpointer.restore(2, target)
    kernel = restored.params["kernel"]
    assert kernel.addressable_shards[0].data.shape == (1,)
    np.testing.assert_array_equal(kernel, np.arange(8) + 2)


def test_parameters_load_alone(directory):
    assert load_model_config(directory).num_layers == 4
    params = load_params(directory, 4, abstract(state_of(0)).params)
    np.testing.assert_array_equal(params["kernel"], np.arange(8) + 4)


def test_buffers_may_be_overwritten_while_a_save_runs(tmp_path):
    advance = jax.jit(lambda x: x + 1, donate_argnums=0)
    state = State({"kernel": jnp.zeros(2_000_000)}, ())
    target = abstract(state).params
    with open_at(tmp_path) as checkpointer:
        checkpointer.save(Position(1, 0, 1, None), state, 0.0)
        kernel = state.params["kernel"]
        for _ in range(20):
            kernel = advance(kernel)
        jax.block_until_ready(kernel)
    assert not load_params(tmp_path, 1, target)["kernel"].any()


def test_what_a_killed_save_left_is_gone_when_the_directory_is_opened_again(directory):
    unfinished = directory / "9.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (unfinished / "part").write_text("half")
    before = complete_steps(directory)
    with open_at(directory):
        assert not unfinished.exists()
    assert complete_steps(directory) == before


def test_latest_and_best_of_the_latest_stage_stay(tmp_path):
    recalls = {1: (0, 0.99), 2: (1, 0.2), 3: (1, 0.8), 4: (1, 0.3), 5: (1, 0.5), 6: (1, 0.4)}
    with open_at(tmp_path) as checkpointer:
        for step, (stage, recall) in recalls.items():
            save(checkpointer, step, stage, recall)
    assert complete_steps(tmp_path) == [3, 5, 6]
    assert best_step(tmp_path) == 3


def test_half_written_checkpoints_are_never_picked_up(directory):
    # What orbax leaves when it is killed while writing, and half a copy made by hand.
    shutil.copytree(directory / "4", directory / "6.orbax-checkpoint-tmp-123")
    shutil.copytree(directory / "4", directory / "8")
    (directory / "8" / "_CHECKPOINT_METADATA").unlink()
    (directory / "9").mkdir()
    assert complete_steps(directory) == [2, 4]
    with open_at(directory) as checkpointer:
        assert checkpointer.latest().step == 4
        save(checkpointer, 8)  # The half copy is not in the way either.
    with open_at(directory) as checkpointer:
        assert checkpointer.latest().step == 8
        restored = checkpointer.restore(8, abstract(state_of(0)))
    np.testing.assert_array_equal(restored.moments[0], np.full(8, 8))


def test_a_save_that_dies_halfway_leaves_the_one_before(directory, monkeypatch):
    def die(*_, **__):
        raise OSError("No space left on device")

    checkpointer = open_at(directory)
    monkeypatch.setattr("os.rename", die)
    with pytest.raises(OSError, match="No space left"):
        save(checkpointer, 6)
        checkpointer.close()
    monkeypatch.undo()
    with open_at(directory) as checkpointer:
        assert checkpointer.latest().step == 4


def test_another_model_is_one_sentence(directory):
    memory = MemoryConfig(top_k_docs=3)
    other = dataclasses.replace(MODEL, embed_dim=64, memory=memory)
    message = (
        r"holds checkpoints of another model, which differs in embed_dim \(32 there, 64 here\), "
        r"memory.top_k_docs \(16 there, 3 here\); use its configuration or another workdir"
    )
    with pytest.raises(ConfigError, match=message):
        open_at(directory, other)


def test_compute_settings_do_not_make_another_model(directory):
    same = dataclasses.replace(
        MODEL,
        dtype="float32",
        remat="nothing",
        unroll_layers=True,
        memory=MemoryConfig(router_layers=(2, 3)),
    )
    open_at(directory, same).close()


@pytest.mark.parametrize("values", [{"every": 0}, {"keep": 0}])
def test_an_impossible_schedule_is_refused(values):
    with pytest.raises(
        ConfigError, match=r"checkpoint\.(every|keep) must be a positive whole number"
    ):
        CheckpointConfig(**values)
