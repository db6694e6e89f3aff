"""Which Hugging Face tensor is which parameter, and how its axes are laid out."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from types import EllipsisType, MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
from flax import traverse_util

from msa_jax.config import ModelConfig
from msa_jax.modules.init import init_params


class Rule(NamedTuple):
    """One line of the map.

    Attributes:
        name: Hugging Face name.
        path: our parameter.
        axes: "theirs -> ours" in the letters of `msa_jax.typing`; letters written together are
            one axis, so "NH D -> D N H" splits the heads and transposes.
    """

    name: str
    path: str
    axes: str


# fmt: off
MODEL_RULES = (
    Rule("model.embed_tokens.weight",         "embedder/embedding",             "V D -> V D"),
    Rule("model.norm.weight",                 "final_norm/scale",               "D -> D"),
    Rule("lm_head.weight",                    "lm_head/kernel",                 "V D -> D V"),
)

# Names start with `model.layers.<layer>.`, paths with the layer's run.
LAYER_RULES = (
    Rule("input_layernorm.weight",            "input_norm/scale",               "D -> D"),
    Rule("self_attn.q_proj.weight",           "attention/q_proj/kernel",        "NH D -> D N H"),
    Rule("self_attn.k_proj.weight",           "attention/k_proj/kernel",        "KH D -> D K H"),
    Rule("self_attn.v_proj.weight",           "attention/v_proj/kernel",        "KH D -> D K H"),
    Rule("self_attn.o_proj.weight",           "attention/o_proj/kernel",        "D NH -> N H D"),
    Rule("self_attn.q_proj.bias",             "attention/q_proj/bias",          "NH -> N H"),
    Rule("self_attn.k_proj.bias",             "attention/k_proj/bias",          "KH -> K H"),
    Rule("self_attn.v_proj.bias",             "attention/v_proj/bias",          "KH -> K H"),
    Rule("self_attn.q_norm.weight",           "attention/q_norm/scale",         "H -> H"),
    Rule("self_attn.k_norm.weight",           "attention/k_norm/scale",         "H -> H"),
    Rule("self_attn.router_q_proj.0.weight",  "attention/router/q_proj/kernel", "NH D -> D N H"),
    Rule("self_attn.router_k_proj.0.weight",  "attention/router/k_proj/kernel", "KH D -> D K H"),
    Rule("post_attention_layernorm.weight",   "post_attention_norm/scale",      "D -> D"),
    Rule("mlp.gate_proj.weight",              "mlp/gate_proj/kernel",           "F D -> D F"),
    Rule("mlp.up_proj.weight",                "mlp/up_proj/kernel",             "F D -> D F"),
    Rule("mlp.down_proj.weight",              "mlp/down_proj/kernel",           "D F -> F D"),
)
# fmt: on


@dataclasses.dataclass(frozen=True)
class Layout:
    """The axes of one tensor on both sides, with their sizes."""

    axes: str
    sizes: dict[str, int]

    @property
    def their_shape(self) -> tuple[int, ...]:
        theirs = self.axes.split(" -> ")[0]
        return tuple(math.prod(self.sizes[a] for a in axis) for axis in theirs.split())

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        theirs, ours = self._letters()
        return np.einsum(f"{theirs}->{ours}", tensor.reshape([self.sizes[a] for a in theirs]))

    def to_theirs(self, tensor: np.ndarray) -> np.ndarray:
        theirs, ours = self._letters()
        return np.einsum(f"{ours}->{theirs}", tensor).reshape(self.their_shape)

    def _letters(self) -> tuple[str, str]:
        theirs, ours = self.axes.replace(" ", "").split("->")
        return theirs, ours


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where one Hugging Face tensor lives among the parameters.

    Attributes:
        path: our parameter, joined by "/".
        index: position on the parameter's layer axis, or `...` where it has none.
        layout: axes of the tensor itself, without the layer axis.
    """

    path: str
    index: int | EllipsisType
    layout: Layout

    @property
    def is_router(self) -> bool:
        return "/router/" in self.path


# Cached because tracing a model takes about a second, and a conversion asks several times.
@functools.cache
def parameter_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Shapes of all parameters of the model, by path joined with "/"; allocates nothing."""
    params = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    flat = traverse_util.flatten_dict(params, sep="/")
    return MappingProxyType({path: leaf.shape for path, leaf in flat.items()})


def checkpoint_entries(config: ModelConfig) -> dict[str, Entry]:
    """The key map of one model: every Hugging Face name it has, and where that tensor lives.

    Rules for parameters that the model lacks, such as biases, drop out.
    """
    sizes = {
        "V": config.vocab_size,
        "D": config.embed_dim,
        "F": config.hidden_dim,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
    }
    entries = {rule.name: Entry(rule.path, ..., Layout(rule.axes, sizes)) for rule in MODEL_RULES}
    for run, start, stop in config.layer_runs:
        for rule in LAYER_RULES:
            for layer in range(start, stop):
                name = f"model.layers.{layer}.{rule.name}"
                layout = Layout(rule.axes, sizes)
                entries[name] = Entry(f"{run}/{rule.path}", layer - start, layout)
    shapes = parameter_shapes(config)
    return {name: entry for name, entry in entries.items() if entry.path in shapes}
