"""A model with a handful of parameters, and folders to read it from."""

import json

import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from msa_jax.checkpoint.key_map import parameter_shapes
from msa_jax.config import MemoryConfig, ModelConfig

FAMILIES = {
    "qwen3": {"qk_norm": True},
    "qwen2": {"attention_bias": True},
    "llama": {},
}


def tiny_config(family="qwen3", router_layers=(1,), router_init="from_attention", **fields):
    """Three layers, by default in the runs plain_0, routed_1, plain_2; all sizes differ."""
    memory = MemoryConfig(
        router_layers=router_layers, pooling_kernel_size=5, top_k_docs=3, router_init=router_init
    )
    sizes = {"vocab_size": 11, "num_layers": 3, "embed_dim": 6, "hidden_dim": 10}
    heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
    return ModelConfig(**sizes, **heads, **FAMILIES[family], memory=memory, **fields)


def random_params(config):
    """Random values for every parameter, norms included, without running the model."""
    rng = np.random.default_rng(0)
    flat = {
        path: rng.standard_normal(shape, np.float32)
        for path, shape in parameter_shapes(config).items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def write_config(folder, values):
    (folder / "config.json").write_text(json.dumps(values))


def write_shards(folder, *shards):
    """Writes each dict of tensors as one shard, with an index."""
    weight_map = {}
    for number, tensors in enumerate(shards):
        file = f"model-{number}.safetensors"
        save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    index = {"weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
