"""`config.json` of other libraries becomes the right ModelConfig, or one clear sentence."""

import dataclasses

import pytest

from msa_jax.checkpoint.hf_config import read_model_config, to_hf_config
from msa_jax.config import ConfigError, MemoryConfig, ModelConfig
from tests.checkpoint.tiny import FAMILIES, tiny_config, write_config

SIZES = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}
READ_SIZES = {
    "vocab_size": 160,
    "embed_dim": 64,
    "hidden_dim": 96,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "norm_eps": 1e-5,
}
MSA = {
    "router_layer_idx": "2,3",
    "aux_loss_method": "INFONCE",
    "decouple_router": True,
    "top_k_docs": 2,
    "pooling_kernel_size": 8,
    "head_reduce_method": "mean",
    "query_reduce_method": "max",
    "chunk_reduce_method": "max",
}


@pytest.mark.parametrize(
    ("values", "fields"),
    [
        pytest.param(
            {
                "model_type": "qwen3",
                "head_dim": 32,
                "rope_parameters": {"rope_theta": 5e6, "rope_type": "default"},
                "sliding_window": None,
                "layer_types": ["full_attention"] * 4,
                "tie_word_embeddings": False,
            },
            {"qk_norm": True, "head_dim": 32, "rope_theta": 5e6, "tie_embeddings": False},
            id="qwen3 as transformers 5 writes it",
        ),
        pytest.param(
            {
                "model_type": "qwen2",
                "rope_theta": 1e6,
                "sliding_window": 32768,
                "use_sliding_window": False,
                "tie_word_embeddings": True,
            },
            {"attention_bias": True, "rope_theta": 1e6, "tie_embeddings": True},
            id="qwen2 with an unused sliding window",
        ),
        pytest.param(
            {
                "model_type": "llama",
                "rope_theta": 1e5,
                "rope_scaling": None,
                "rope_interleaved": False,
                "attention_bias": False,
                "mlp_bias": False,
                "tie_word_embeddings": True,
            },
            {"rope_theta": 1e5, "tie_embeddings": True},
            id="SmolLM2 as transformers 4 writes it",
        ),
        pytest.param(
            {"model_type": "llama", "rope_scaling": {"type": "default"}},
            {"rope_theta": 1e4, "tie_embeddings": False},
            id="llama with defaults left out",
        ),
        pytest.param(
            {"model_type": "llama", "num_key_value_heads": None},
            {"num_kv_heads": 4, "tie_embeddings": False},
            id="llama without grouped heads",
        ),
    ],
)
def test_backbones(tmp_path, values, fields):
    write_config(tmp_path, {**SIZES, **values})
    assert read_model_config(tmp_path) == ModelConfig(**{**READ_SIZES, **fields})


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({}, {"router_layers": (2, 3), "router_similarity": "cosine", "top_k_docs": 2}),
        ({"aux_loss_method": "INFONCE_DECOUPLE"}, {"router_similarity": "scaled_dot"}),
        ({"router_layer_idx": "all"}, {"router_layers": (0, 1, 2, 3)}),
        ({"router_layer_idx": " 3, 1"}, {"router_layers": (1, 3)}),
        ({"doc_top_k": 2}, {"top_k_docs": 2}),
    ],
)
def test_upstream_memory(tmp_path, changes, fields):
    write_config(tmp_path, {**SIZES, "model_type": "msa", "msa_config": {**MSA, **changes}})
    config = read_model_config(tmp_path)
    assert config.qk_norm and not config.attention_bias
    memory = dataclasses.asdict(config.memory)
    assert memory["pooling_kernel_size"] == 8
    assert {name: memory[name] for name in fields} == fields


def test_either_name_of_top_k(tmp_path):
    msa = {name: value for name, value in MSA.items() if name != "top_k_docs"}
    write_config(tmp_path, {**SIZES, "model_type": "msa", "msa_config": {**msa, "doc_top_k": 7}})
    assert read_model_config(tmp_path).memory.top_k_docs == 7


def test_overrides(tmp_path):
    write_config(tmp_path, {**SIZES, "model_type": "qwen3"})
    memory = MemoryConfig(router_layers=(3,), router_init="shared")
    config = read_model_config(tmp_path, memory=memory, dtype="float32")
    assert config.memory == memory and config.dtype == "float32"
    with pytest.raises(ConfigError, match="num_layer .*did you mean 'num_layers'"):
        read_model_config(tmp_path, num_layer=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gemma3"}, "'gemma3' is not supported; .* msa, qwen3, qwen2, llama"),
        ({"model_type": None}, "model_type None is not supported"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope_scaling .*yarn.* not supported",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}},
            "rope_parameters .*llama3.* not supported",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"use_sliding_window": True}, "use_sliding_window True is not supported"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types 'sliding_attention' is not supported",
        ),
        ({"attention_bias": True}, "attention_bias True is not supported"),
        ({"mlp_bias": True}, "mlp_bias True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; .* 'silu' only"),
    ],
)
def test_unsupported_backbones(tmp_path, values, message):
    write_config(tmp_path, {**SIZES, "model_type": "qwen3", **values})
    with pytest.raises(ConfigError, match=message) as error:
        read_model_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_reduce_method": "max"}, "msa_config.head_reduce_method 'max' is not supported"),
        ({"query_reduce_method": "mean"}, "msa_config.query_reduce_method 'mean' is not"),
        ({"chunk_reduce_method": "mean"}, "msa_config.chunk_reduce_method 'mean' is not"),
        ({"decouple_router": False}, "msa_config.decouple_router False is not supported"),
        ({"aux_loss_method": "BCE"}, "aux_loss_method 'BCE' .* INFONCE, INFONCE_DECOUPLE"),
        ({"doc_top_k": 5}, "top_k_docs and msa_config.doc_top_k differ"),
        ({"router_layer_idx": "upper"}, "router_layer_idx 'upper' must be 'all' or layer numbers"),
        ({"router_layer_idx": "3,4"}, "router_layers .3, 4. must name distinct layers"),
    ],
)
def test_unsupported_memories(tmp_path, changes, message):
    write_config(tmp_path, {**SIZES, "model_type": "msa", "msa_config": {**MSA, **changes}})
    with pytest.raises(ConfigError, match=message):
        read_model_config(tmp_path)


def test_incomplete_files(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read as JSON"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="must hold a JSON object"):
        read_model_config(tmp_path)
    write_config(tmp_path, {"model_type": "llama", "vocab_size": 3, "hidden_size": 4})
    with pytest.raises(ConfigError, match="intermediate_size, num_hidden_layers, num_attention"):
        read_model_config(tmp_path)
    write_config(tmp_path, {**SIZES, "model_type": "msa"})
    with pytest.raises(ConfigError, match="msa_config.router_layer_idx is missing"):
        read_model_config(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("similarity", ["cosine", "scaled_dot"])
def test_written_config_reads_back(tmp_path, family, similarity):
    memory = MemoryConfig(
        router_layers=(0, 2), top_k_docs=9, head_len=5, router_similarity=similarity
    )
    config = dataclasses.replace(tiny_config(family, rope_theta=5e6), memory=memory)
    write_config(tmp_path, to_hf_config(config))
    assert read_model_config(tmp_path) == config


def test_no_family_has_both_norm_and_bias():
    config = dataclasses.replace(tiny_config("qwen3"), attention_bias=True)
    with pytest.raises(ConfigError, match="qk_norm and attention_bias are both set"):
        to_hf_config(config)
