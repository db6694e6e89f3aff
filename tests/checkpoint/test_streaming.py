"""Large models: written in shards, and loaded straight onto a mesh without a copy on the host."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file

from msa_jax.checkpoint import tensors as tensors_module
from msa_jax.checkpoint.hf_config import to_hf_config
from msa_jax.checkpoint.huggingface import (
    CheckpointError,
    load_params,
    read_model_config,
    save_params,
    save_tensors,
)
from msa_jax.checkpoint.key_map import checkpoint_entries, parameter_shapes
from msa_jax.checkpoint.tensors import SafetensorsFolder, write_folder
from msa_jax.config import ModelConfig
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from msa_jax.sharding.rules import state_shardings
from tests.checkpoint.tiny import random_params, tiny_config

KEY = jax.random.key(0)
ROOT = Path(__file__).parents[2]


def abstract_params(config, dtype):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shapes = parameter_shapes(config).items()
    flat = {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes}
    abstract = traverse_util.unflatten_dict(flat, sep="/")
    shardings = state_shardings(abstract, mesh)
    return jax.tree.map(lambda x, place: x.update(sharding=place), abstract, shardings)


@pytest.mark.parametrize(
    ("router_init", "dtype"),
    [("from_attention", "bfloat16"), ("shared", "float32"), ("random", "bfloat16")],
)
def test_routers_made_on_a_mesh_are_those_made_on_the_host(tmp_path, router_init, dtype):
    config = tiny_config(router_layers=(0, 2), router_init=router_init)
    config = dataclasses.replace(config, vocab_size=12)
    save_params(tmp_path, config, random_params(config), backbone_only=True)
    check_on_a_mesh(tmp_path, config, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_mesh_as_on_the_host(tmp_path, dtype):
    config = dataclasses.replace(tiny_config(router_layers=(0, 2)), vocab_size=12)
    save_params(tmp_path, config, random_params(config))
    check_on_a_mesh(tmp_path, config, dtype)


def check_on_a_mesh(folder, config, dtype):
    abstract = abstract_params(config, jnp.dtype(dtype))
    expected = load_params(folder, config, KEY)
    actual = load_params(folder, config, KEY, abstract)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)

    def check(leaf, like, host):
        assert leaf.dtype == dtype and leaf.sharding == like.sharding
        # Drawn routers are compiled with the rounding, which may move their last bit.
        np.testing.assert_allclose(
            leaf.astype(np.float32), host.astype(dtype).astype(np.float32), rtol=2e-7, atol=1e-8
        )

    jax.tree.map(check, actual, abstract, expected)


def test_shards_of_a_large_model(tmp_path, monkeypatch):
    config = tiny_config(tie_embeddings=False)
    params = random_params(config)
    save_params(tmp_path / "whole", config, params)
    monkeypatch.setattr(tensors_module, "SHARD_BYTES", 3000)
    folder = tmp_path / "shards"
    save_params(folder, config, params)
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    for name in shards:
        tensors = load_file(folder / name)
        assert sum(t.nbytes for t in tensors.values()) <= 3000 or len(tensors) == 1
        for tensor_name, tensor in tensors.items():
            assert index["weight_map"][tensor_name] == name
            np.testing.assert_array_equal(tensor, whole[tensor_name])
    jax.tree.map(np.testing.assert_array_equal, load_params(folder, config, KEY), params)


def test_nothing_of_an_earlier_checkpoint_stays(tmp_path, monkeypatch):
    config = tiny_config()
    params = random_params(config)
    other = jax.tree.map(lambda leaf: leaf + 1, params)
    save_params(tmp_path, config, params)
    for shard_bytes in (3000, 1 << 30):
        monkeypatch.setattr(tensors_module, "SHARD_BYTES", shard_bytes)
        params, other = other, params
        save_params(tmp_path, config, params)
        jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path, config, KEY), params)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["config.json", "model.safetensors"]


def test_from_folder_to_folder(tmp_path):
    config = tiny_config()
    params = random_params(config)
    save_params(tmp_path / "first", config, params)
    tensors = SafetensorsFolder(tmp_path / "first")
    save_tensors(tmp_path / "second", config, tensors, dtype="bfloat16")
    values = json.loads((tmp_path / "second" / "config.json").read_text())
    assert values["torch_dtype"] == "bfloat16"
    stored = load_file(tmp_path / "second" / "model.safetensors").values()
    assert {tensor.dtype for tensor in stored} == {jnp.dtype(jnp.bfloat16)}
    copied = load_params(tmp_path / "second", read_model_config(tmp_path / "second"), KEY)
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x, y.astype(jnp.bfloat16).astype(np.float32)),
        copied,
        params,
    )
    with pytest.raises(CheckpointError, match="first does not hold this model; missing: lm_head"):
        save_tensors(tmp_path / "third", tiny_config(tie_embeddings=False), tensors)
    assert not (tmp_path / "third").exists()


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
def test_a_model_needs_little_more_than_its_size(tmp_path, monkeypatch):
    """Here the devices are of the host, so that its memory has to hold the model once."""
    config = ModelConfig(
        vocab_size=3072,
        num_layers=16,
        embed_dim=768,
        hidden_dim=2304,
        num_heads=8,
        num_kv_heads=4,
        head_dim=96,
    )
    block = np.random.default_rng(0).standard_normal(1 << 18).astype(jnp.bfloat16)
    shapes = {name: entry.layout.their_shape for name, entry in checkpoint_entries(config).items()}
    sizes = {name: 2 * int(np.prod(shape)) for name, shape in shapes.items()}
    monkeypatch.setattr(tensors_module, "SHARD_BYTES", 64 << 20)
    write_folder(tmp_path, to_hf_config(config), sizes, lambda name: np.resize(block, shapes[name]))

    # Freed memory goes back to the system, so that its peak is what was in use.
    environment = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "PYTHONPATH": str(ROOT)}
    worker = ROOT / "tests" / "checkpoint" / "memory_worker.py"
    done = subprocess.run(
        [sys.executable, worker, tmp_path, "bfloat16"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["array_bytes"] == sum(sizes.values()) > 200e6
    assert report["places"] == 4 and report["shard"] == [8, 768 // 2, 2304 // 2]
    assert report["peak_bytes"] < 1.2 * report["array_bytes"]
