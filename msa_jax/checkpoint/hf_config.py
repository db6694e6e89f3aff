"""`config.json` of Hugging Face folders, to and from `ModelConfig`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from msa_jax import lfs
from msa_jax.config import ConfigError, MemoryConfig, ModelConfig, from_mapping
from msa_jax.fields import Count, CountOrZero, OneOf, Positive, check_value, field_types


class Backbone(NamedTuple):
    """What sets a model family apart."""

    architecture: str
    qk_norm: bool
    attention_bias: bool


BACKBONES = {
    "qwen3": Backbone("Qwen3ForCausalLM", qk_norm=True, attention_bias=False),
    "qwen2": Backbone("Qwen2ForCausalLM", qk_norm=False, attention_bias=True),
    "llama": Backbone("LlamaForCausalLM", qk_norm=False, attention_bias=False),
}

_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "embed_dim",
    "intermediate_size": "hidden_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}

# What other settings must be where a file has them; null is absence for some.
_TYPES = {
    "num_key_value_heads": Count | None,
    "head_dim": Count | None,
    "rope_theta": Positive,
    "rms_norm_eps": Positive,
    "tie_word_embeddings": bool,
    "layer_types": list | None,
    "rope_scaling": dict | None,
    "rope_parameters": dict | None,
    "msa_config": dict,
    "msa_jax": dict,
}
_MSA_TYPES = {
    "top_k_docs": Count,
    "doc_top_k": Count,
    "pooling_kernel_size": Count,
    "aux_loss_method": str,
}

# Settings with one supported value, which is also what their absence means.
_FIXED = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "use_sliding_window": False,
}
_FIXED_MSA = {
    "decouple_router": True,
    "decouple_pooling_mode": "mean",
    "rewrite_position": True,
    "head_reduce_method": "mean",
    "query_reduce_method": "max",
    "chunk_reduce_method": "max",
}

_SIMILARITIES = {"INFONCE": "cosine", "INFONCE_DECOUPLE": "scaled_dot"}


def read_model_config(directory: str | Path, **overrides: Any) -> ModelConfig:
    """Reads the `config.json` of an MSA, Qwen3, Qwen2 or Llama (SmolLM2) folder.

    Args:
        directory: a folder with `config.json`.
        **overrides: fields of `ModelConfig` that replace what the file says, such as
            `memory=MemoryConfig(...)` for a backbone without a memory, or `dtype="float32"`.

    Raises:
        ConfigError: for another kind of model, or a setting that this package lacks.
    """
    path = Path(directory) / "config.json"
    return config_from_values(read_json(path), path, **overrides)


def config_from_values(values: dict[str, Any], path: Path, **overrides: Any) -> ModelConfig:
    """`read_model_config` of what a `config.json` says; messages name `path`."""
    try:
        return from_mapping(ModelConfig, {**_model_fields(values), **overrides}, "model")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def to_hf_config(config: ModelConfig, backbone_only: bool = False) -> dict[str, Any]:
    """The `config.json` of a model: of type "msa", or of its backbone's type alone.

    Raises:
        ConfigError: if no supported family has this mix of qk_norm and attention_bias.
    """
    family, backbone = _backbone_of(config)
    values = {
        "architectures": [backbone.architecture],
        "model_type": family,
        **{theirs: getattr(config, ours) for theirs, ours in _SIZES.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }
    if backbone_only:
        return values
    return {
        **values,
        "architectures": ["MSAForCausalLM"],
        "model_type": "msa",
        "msa_config": _msa_values(config),
        # Upstream knows one backbone and one prompt; this section says which are meant here.
        "msa_jax": {"backbone": family, "head_len": config.memory.head_len},
    }


def _model_fields(values: dict[str, Any]) -> dict[str, Any]:
    model_type = values.get("model_type")
    _check_types(values, _TYPES)
    own = values.get("msa_jax", {})
    if model_type not in ("msa", *BACKBONES):
        raise ConfigError(
            f"model_type {model_type!r} is not supported; supported are msa, "
            f"{', '.join(BACKBONES)}."
        )
    family = own.get("backbone", "qwen3") if model_type == "msa" else model_type
    check_value("msa_jax.backbone", family, Annotated[str, OneOf(tuple(BACKBONES))])
    missing = [name for name in _SIZES if name not in values]
    if missing:
        raise ConfigError(f"{', '.join(missing)} is missing, required for {model_type} models.")
    _check_types(values, {name: field_types(ModelConfig)[ours] for name, ours in _SIZES.items()})
    backbone = BACKBONES[family]
    _check_supported(values, backbone)
    fields = {ours: values[theirs] for theirs, ours in _SIZES.items()}
    fields |= {
        "num_kv_heads": values.get("num_key_value_heads") or fields["num_heads"],
        "head_dim": values.get("head_dim") or fields["embed_dim"] // fields["num_heads"],
        "rope_theta": _rope_theta(values),
        "norm_eps": values.get("rms_norm_eps", 1e-6),
        "qk_norm": backbone.qk_norm,
        "attention_bias": backbone.attention_bias,
        "tie_embeddings": values.get("tie_word_embeddings", False),
    }
    if model_type == "msa":
        fields["memory"] = _memory_config(values, own)
    return fields


def _check_types(values: dict[str, Any], kinds: dict[str, Any], where: str = "") -> None:
    for name, kind in kinds.items():
        if name in values:
            check_value(f"{where}{name}", values[name], kind)


def _check_supported(values: dict[str, Any], backbone: Backbone) -> None:
    _check_fixed(values, _FIXED)
    if not backbone.attention_bias:
        # These families would add a bias to the output projection too.
        _check_fixed(values, {"attention_bias": False})
    for layer_type in values.get("layer_types") or ():
        if layer_type != "full_attention":
            raise ConfigError(f"layer_types {layer_type!r} is not supported; full_attention is.")


def _check_fixed(values: dict[str, Any], fixed: dict[str, Any], where: str = "") -> None:
    for name, supported in fixed.items():
        value = values.get(name, supported)
        if value != supported:
            raise ConfigError(
                f"{where}{name} {value!r} is not supported; this package has {supported!r} only."
            )


def _rope_theta(values: dict[str, Any]) -> float:
    # transformers 5 has both in `rope_parameters`; 4 has theta beside `rope_scaling`.
    section = "rope_parameters" if values.get("rope_parameters") else "rope_scaling"
    rope = dict(values.get(section) or {})
    theta = rope.pop("rope_theta", values.get("rope_theta", 10_000.0))
    check_value("rope_theta", theta, Positive)
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    if kind != "default" or rope:
        raise ConfigError(
            f"{section} {values[section]} is not supported; rotary positions must be of type "
            "'default'."
        )
    return float(theta)


def _memory_config(values: dict[str, Any], own: dict[str, Any]) -> MemoryConfig:
    msa = values.get("msa_config")
    if msa is None or "router_layer_idx" not in msa:
        raise ConfigError("msa_config.router_layer_idx is missing, required for msa models.")
    _check_types(msa, _MSA_TYPES, where="msa_config.")
    _check_types(own, {"head_len": CountOrZero}, where="msa_jax.")
    _check_fixed(msa, _FIXED_MSA, where="msa_config.")
    method = msa.get("aux_loss_method", "INFONCE")
    if method not in _SIMILARITIES:
        raise ConfigError(
            f"msa_config.aux_loss_method {method!r} is not supported; supported are "
            f"{', '.join(_SIMILARITIES)}."
        )
    fields = {
        "router_layers": _router_layers(msa["router_layer_idx"], values["num_hidden_layers"]),
        "router_similarity": _SIMILARITIES[method],
    }
    top_k = {msa[name] for name in ("top_k_docs", "doc_top_k") if name in msa}
    if len(top_k) > 1:
        raise ConfigError("msa_config.top_k_docs and msa_config.doc_top_k differ; remove one.")
    if top_k:
        fields["top_k_docs"] = top_k.pop()
    if "pooling_kernel_size" in msa:
        fields["pooling_kernel_size"] = msa["pooling_kernel_size"]
    if "head_len" in own:
        fields["head_len"] = own["head_len"]
    return MemoryConfig(**fields)


def _router_layers(value: str | list[int], num_layers: int) -> tuple[int, ...]:
    if value == "all":
        return tuple(range(num_layers))
    layers = value.split(",") if isinstance(value, str) else value
    try:
        if not isinstance(value, str):
            check_value("router_layer_idx", layers, tuple[int, ...])
        return tuple(sorted({int(layer) for layer in layers}))
    except ValueError:
        raise ConfigError(
            f"msa_config.router_layer_idx {value!r} must be 'all' or layer numbers separated by "
            "commas."
        ) from None


def _msa_values(config: ModelConfig) -> dict[str, Any]:
    memory = config.memory
    methods = {similarity: method for method, similarity in _SIMILARITIES.items()}
    return {
        **_FIXED_MSA,
        "router_layer_idx": ",".join(map(str, config.router_layers)),
        # Upstream saves the first name and reads the second.
        "top_k_docs": memory.top_k_docs,
        "doc_top_k": memory.top_k_docs,
        "pooling_kernel_size": memory.pooling_kernel_size,
        "aux_loss_method": methods[memory.router_similarity],
    }


def _backbone_of(config: ModelConfig) -> tuple[str, Backbone]:
    for family, backbone in BACKBONES.items():
        if backbone[1:] == (config.qk_norm, config.attention_bias):
            return family, backbone
    raise ConfigError(
        "qk_norm and attention_bias are both set, which no Hugging Face family that this package "
        "writes has; unset one."
    )


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; raises `ConfigError` where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        problem = lfs.advice(path) or error
        raise ConfigError(f"{path} cannot be read as JSON: {problem}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a JSON object.")
    return values
