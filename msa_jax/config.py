"""Model configuration: frozen, validated dataclasses, built from plain mappings."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

ROUTER_SIMILARITIES = ("cosine", "scaled_dot")
ROUTER_INITS = ("from_attention", "random", "shared")
REMAT = ("all", "cheap", "nothing")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the field and what to do."""


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Builds a (possibly nested) config dataclass from a mapping, refusing unknown fields.

    Args:
        cls: a dataclass whose field types are plain values or other config dataclasses.
        values: a dict or `ml_collections.ConfigDict`.
        where: dotted name of `values`, used in error messages.

    Raises:
        ConfigError: for a field that `cls` does not have, or one that is required and absent.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    kwargs = {}
    for name, value in values.items():
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(fields)}."
            raise ConfigError(f"{where}.{name} is not a field of {cls.__name__}; {hint}")
        nested = fields[name].metadata.get("config")
        if nested is not None and isinstance(value, Mapping | _config_dict_type()):
            value = from_mapping(nested, value, f"{where}.{name}")
        elif isinstance(value, list):
            value = tuple(value)
        kwargs[name] = value
    missing = [
        name
        for name, field in fields.items()
        if name not in kwargs
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}, required by {cls.__name__}.")
    return cls(**kwargs)


def _config_dict_type() -> type:
    from ml_collections import ConfigDict

    return ConfigDict


def nested(cls: type[T]) -> T:
    """A dataclass field that holds another config dataclass with its own defaults."""
    return dataclasses.field(default_factory=cls, metadata={"config": cls})


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """How a model remembers (paper, §3).

    Attributes:
        router_layers: layers that route, in ascending order; None for the upper half.
        pooling_kernel_size: P, tokens per chunk.
        top_k_docs: documents that each router layer chooses per query.
        head_len: tokens of the template head; queries start at position head_len + top_k_docs.
        router_similarity: "cosine", or "scaled_dot" (raw product times H^-0.5) for inference
            with checkpoints released under `INFONCE_DECOUPLE`. Training always uses cosine.
        router_init: projections of a router that no checkpoint provides: "from_attention" copies
            the layer's own q and k projections, "random" draws both, "shared" draws one matrix
            for both, so that an untrained model starts from lexical matching.
    """

    router_layers: tuple[int, ...] | None = None
    pooling_kernel_size: int = 64
    top_k_docs: int = 16
    head_len: int = 3
    router_similarity: str = "cosine"
    router_init: str = "from_attention"

    def __post_init__(self):
        _require_positive(self, "pooling_kernel_size", "top_k_docs")
        require_choice(self, "router_similarity", ROUTER_SIMILARITIES)
        require_choice(self, "router_init", ROUTER_INITS)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer with a memory. Axis letters as in `msa_jax.typing`.

    Attributes:
        attention_bias: biases on q, k and v (Qwen2).
        qk_norm: RMSNorm per head on q and k before RoPE (Qwen3).
        dtype: compute type; parameters, norms, softmax, pooled means and losses are float32.
        remat: what the backward pass of a layer computes again instead of keeping it: "all" (least
            memory), "cheap" (all but the products with weights, which take most of the time), or
            "nothing" (fastest where it fits). With `unroll_layers` the compiler merges much of that
            with what it computed before, and keeps it: a step of least memory is a loop.
        scan_layers: stack layers of a kind and scan them, so that many compile as fast as one.
            Without it each layer has arrays of its own, which generating a token at a time needs:
            a scan copies a layer's weights out of the stack before it uses them.
        unroll_layers: in training, compile stacked layers one after another instead of as a loop,
            which copies all that it keeps for the backward pass into stacks: a step is faster
            (docs/performance.md), compiling it slower.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    hidden_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    qk_norm: bool = False
    attention_bias: bool = False
    tie_embeddings: bool = True
    dtype: str = "bfloat16"
    remat: str = "all"
    scan_layers: bool = True
    unroll_layers: bool = False
    memory: MemoryConfig = nested(MemoryConfig)

    def __post_init__(self):
        _require_positive(
            self,
            *("vocab_size", "num_layers", "embed_dim", "hidden_dim"),
            *("num_heads", "num_kv_heads", "head_dim"),
        )
        require_choice(self, "dtype", ("bfloat16", "float32"))
        require_choice(self, "remat", REMAT)
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads "
                f"({self.num_kv_heads})."
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim ({self.head_dim}) must be even for rotary positions.")
        layers = self.memory.router_layers
        if layers is not None and (
            not layers
            or list(layers) != sorted(set(layers))
            or not 0 <= layers[0] <= layers[-1] < self.num_layers
        ):
            raise ConfigError(
                f"memory.router_layers {layers} must name distinct layers between 0 and "
                f"{self.num_layers - 1} in ascending order."
            )

    @property
    def router_layers(self) -> tuple[int, ...]:
        """Layers that route; the upper half unless the config names them."""
        if self.memory.router_layers is not None:
            return self.memory.router_layers
        return tuple(range(self.num_layers // 2, self.num_layers))

    @property
    def layer_runs(self) -> tuple[tuple[str, int, int], ...]:
        """Maximal runs of layers of one kind, `(name, start, stop)`; each run is one scan.

        A name is `plain_<start>` or `routed_<start>`; it is also the run's key in the parameters.
        Without `scan_layers` every layer is a run.
        """
        routed = set(self.router_layers)
        runs: list[tuple[str, int, int]] = []
        for layer in range(self.num_layers):
            same_kind = runs and ((layer in routed) == (layer - 1 in routed))
            if same_kind and self.scan_layers:
                runs[-1] = (runs[-1][0], runs[-1][1], layer + 1)
            else:
                kind = "routed" if layer in routed else "plain"
                runs.append((f"{kind}_{layer}", layer, layer + 1))
        return tuple(runs)


def _require_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} must be a positive whole number, not {value!r}.")


def require_choice(config: Any, name: str, choices: tuple[str, ...]) -> None:
    """Refuses a field that is none of the choices.

    Raises:
        ConfigError: naming the field and the choices.
    """
    value = getattr(config, name)
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")
