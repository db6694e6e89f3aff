"""Safetensors folders become parameters and back, or one message lists what is wrong."""

import dataclasses
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from msa_jax.checkpoint import tensors as tensors_module
from msa_jax.checkpoint.huggingface import (
    CheckpointError,
    load_params,
    read_model_config,
    save_params,
)
from msa_jax.checkpoint.key_map import checkpoint_entries, parameter_shapes
from msa_jax.config import ConfigError
from tests.checkpoint.tiny import FAMILIES, random_params, tiny_config, write_shards

KEY = jax.random.key(0)
GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*/model.safetensors"))


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.fixture
def saved(tmp_path):
    """A saved untied Qwen3 model: its config, parameters and tensors in Hugging Face names."""
    config = tiny_config(tie_embeddings=False)
    params = random_params(config)
    save_params(tmp_path / "saved", config, params)
    return config, params, load_file(tmp_path / "saved" / "model.safetensors")


def load(folder, config, tensors):
    save_file(tensors, folder / "model.safetensors")
    return load_params(folder, config, KEY)


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_roundtrip_is_exact(tmp_path, family, tie_embeddings):
    config = tiny_config(family, tie_embeddings=tie_embeddings)
    params = random_params(config)
    save_params(tmp_path, config, params)
    assert read_model_config(tmp_path) == config
    loaded = load_params(tmp_path, config, KEY)
    assert_same(loaded, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("family", FAMILIES)
def test_key_map_covers_every_parameter(family):
    config = tiny_config(family, router_layers=(0, 1), tie_embeddings=False)
    shapes = parameter_shapes(config)
    entries = checkpoint_entries(config)
    filled = {path: np.zeros(shape, int) for path, shape in shapes.items()}
    for entry in entries.values():
        filled[entry.path][entry.index] += 1
    assert all((count == 1).all() for count in filled.values())


def test_layout_of_each_kind_of_tensor(saved):
    config, params, tensors = saved
    head_dim = config.head_dim
    # Layer 1 is the first of its run, layer 2 of the next: both have index 0 there.
    attention = params["routed_1"]["attention"]
    layer = "model.layers.1.self_attn"
    for head in range(config.num_heads):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        query = tensors[f"{layer}.q_proj.weight"][rows]
        np.testing.assert_array_equal(query.T, attention["q_proj"]["kernel"][0, :, head])
        router = tensors[f"{layer}.router_q_proj.0.weight"][rows]
        np.testing.assert_array_equal(router.T, attention["router"]["q_proj"]["kernel"][0, :, head])
        output = tensors[f"{layer}.o_proj.weight"][:, rows]
        np.testing.assert_array_equal(output.T, attention["o_proj"]["kernel"][0, head])
    gate = tensors["model.layers.2.mlp.gate_proj.weight"]
    np.testing.assert_array_equal(gate.T, params["plain_2"]["mlp"]["gate_proj"]["kernel"][0])
    np.testing.assert_array_equal(tensors["lm_head.weight"].T, params["lm_head"]["kernel"])
    norm = tensors["model.layers.0.post_attention_layernorm.weight"]
    np.testing.assert_array_equal(norm, params["plain_0"]["post_attention_norm"]["scale"][0])


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.parent.name)
def test_upstream_folders_load(path):
    config = read_model_config(path.parent)
    params = load_params(path.parent, config, KEY)
    shapes = traverse_util.flatten_dict(jax.tree.map(np.shape, params), sep="/")
    assert shapes == parameter_shapes(config)


def test_shards(tmp_path, saved):
    config, params, tensors = saved
    names = list(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    write_shards(tmp_path, *({name: tensors[name] for name in half} for half in halves))
    assert_same(load_params(tmp_path, config, KEY), params)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors cannot be read"):
        load_params(tmp_path, config, KEY)


def test_half_precision_is_widened(tmp_path, saved):
    config, _, tensors = saved
    for dtype in (jnp.bfloat16, np.float16):
        narrow = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
        wide = {name: tensor.astype(np.float32) for name, tensor in narrow.items()}
        assert_same(load(tmp_path, config, narrow), load(tmp_path, config, wide))


def test_everything_wrong_is_listed_at_once(tmp_path, saved):
    config, _, tensors = saved
    del tensors["model.layers.0.mlp.up_proj.weight"]
    del tensors["model.norm.weight"]
    tensors["model.layers.3.mlp.up_proj.weight"] = np.zeros((10, 6), np.float32)
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
    tensors["model.layers.1.mlp.down_proj.weight"] = np.zeros((10, 6), np.float32)
    tensors["model.embed_tokens.weight"] = np.zeros((11, 6), np.int8)
    repeated = "model.layers.2.input_layernorm.weight"
    write_shards(tmp_path, tensors, {repeated: tensors[repeated]})
    expected = (
        f"{tmp_path} does not hold this model; "
        "missing: model.layers.0.mlp.up_proj.weight, model.norm.weight; "
        "unmapped: model.layers.0.self_attn.q_proj.bias, model.layers.3.mlp.up_proj.weight; "
        "in two shards: model.layers.2.input_layernorm.weight; "
        "wrong: model.embed_tokens.weight of type I8 instead of F64 or F32 or F16 or BF16, "
        "model.layers.1.mlp.down_proj.weight (10, 6) instead of (6, 10)."
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(expected)}$"):
        load_params(tmp_path, config, KEY)


def test_known_extras_are_ignored(tmp_path, saved):
    config, params, tensors = saved
    tensors["temperature"] = np.array(0.1, np.float32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    tensors["model.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    assert_same(load(tmp_path, config, tensors), params)


def test_head_of_tied_embeddings_must_be_the_embeddings(tmp_path, saved):
    config, params, tensors = saved
    tied = dataclasses.replace(config, tie_embeddings=True)
    with pytest.raises(CheckpointError, match="not tied as the config says: lm_head.weight"):
        load(tmp_path, tied, tensors)
    expected = {name: value for name, value in params.items() if name != "lm_head"}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    assert_same(load(tmp_path, tied, tensors), expected)


def test_no_weights(tmp_path):
    config = tiny_config()
    with pytest.raises(CheckpointError, match="neither model.safetensors nor"):
        load_params(tmp_path, config, KEY)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not an index with a weight_map"):
        load_params(tmp_path, config, KEY)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read as safetensors"):
        load_params(tmp_path, config, KEY)


def test_absent_routers_copy_the_attention(tmp_path):
    config = tiny_config(router_layers=(0, 1))
    save_params(tmp_path, config, random_params(config), backbone_only=True)
    attention = load_params(tmp_path, config, KEY)["routed_0"]["attention"]
    for name in ("q_proj", "k_proj"):
        np.testing.assert_array_equal(
            attention["router"][name]["kernel"], attention[name]["kernel"]
        )


@pytest.mark.parametrize("router_init", ["random", "shared"])
def test_absent_routers_are_drawn(tmp_path, router_init):
    config = tiny_config(router_layers=(0, 2), router_init=router_init)
    save_params(tmp_path, config, random_params(config), backbone_only=True)

    def routers(key):
        params = load_params(tmp_path, config, key)
        return [
            params[run]["attention"]["router"][name]["kernel"]
            for run in ("routed_0", "routed_2")
            for name in ("q_proj", "k_proj")
        ]

    query, keys, other_query, _ = routers(KEY)
    assert isinstance(query, np.ndarray) and query.shape == (1, 6, 4, 8)
    # Query heads 0, 1 belong to key head 0, and 2, 3 to key head 1.
    of_group = keys[:, :, [0, 0, 1, 1]]
    assert np.array_equal(query, of_group) == (router_init == "shared")
    assert not np.array_equal(query, other_query)
    assert_same(routers(KEY)[0], query)
    assert not np.array_equal(routers(jax.random.key(1))[0], query)


def test_routers_must_match_the_router_layers(tmp_path, saved):
    config, _, tensors = saved
    memory = dataclasses.replace(config.memory, router_layers=(1, 2))
    with pytest.raises(
        CheckpointError,
        match="missing: model.layers.2.self_attn.router_k_proj.0.weight, "
        "model.layers.2.self_attn.router_q_proj.0.weight[.]",
    ):
        load(tmp_path, dataclasses.replace(config, memory=memory), tensors)
    memory = dataclasses.replace(config.memory, router_layers=(0,))
    with pytest.raises(CheckpointError, match="unmapped: model.layers.1.self_attn.router_k_proj"):
        load(tmp_path, dataclasses.replace(config, memory=memory), tensors)


@pytest.mark.parametrize("family", FAMILIES)
def test_backbone_export(tmp_path, family):
    config = tiny_config(family)
    params = random_params(config)
    save_params(tmp_path, config, params, backbone_only=True)
    assert not any("router" in name for name in load_file(tmp_path / "model.safetensors"))
    config = read_model_config(tmp_path, memory=config.memory)
    loaded = load_params(tmp_path, config, KEY)
    for tree in (loaded, params):
        del tree["routed_1"]["attention"]["router"]
    assert_same(loaded, params)


def test_parameters_of_another_model_are_not_saved(tmp_path):
    config = tiny_config("qwen3", tie_embeddings=False)
    params = random_params(tiny_config("qwen2", router_layers=(1,)))
    params["embedder"]["embedding"] = np.zeros((12, 6), np.float32)
    with pytest.raises(CheckpointError) as error:
        save_params(tmp_path / "new", config, params)
    for part in (
        "missing: lm_head/kernel, plain_0/attention/k_norm/scale",
        "unknown: plain_0/attention/k_proj/bias",
        "wrong: embedder/embedding (12, 6) instead of (11, 6).",
    ):
        assert part in str(error.value)
    assert not (tmp_path / "new").exists()


def test_a_failed_save_keeps_the_old_checkpoint(tmp_path, saved, monkeypatch):
    config, params, _ = saved
    save_params(tmp_path, config, params)

    def no_space(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(tensors_module, "save_file", no_space)
    with pytest.raises(OSError, match="no space"):
        save_params(tmp_path, config, jax.tree.map(np.zeros_like, params))
    assert_same(load_params(tmp_path, read_model_config(tmp_path), KEY), params)


def test_a_save_killed_between_its_files_leaves_no_checkpoint(tmp_path, saved, monkeypatch):
    config, params, _ = saved
    save_params(tmp_path, config, params)
    replace = os.replace

    def killed_before_config(source, target):
        if Path(target).name == "config.json":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed_before_config)
    with pytest.raises(KeyboardInterrupt):
        save_params(tmp_path, config, jax.tree.map(np.zeros_like, params))
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        read_model_config(tmp_path)
