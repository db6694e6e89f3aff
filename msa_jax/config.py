"""Model configuration: frozen, validated dataclasses, built from plain mappings."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from msa_jax.fields import (
    ConfigError,
    Count,
    CountOrZero,
    OneOf,
    Positive,
    Within,
    check_fields,
    check_values,
    field_types,
    without_none,
)

__all__ = ["ConfigError", "MemoryConfig", "ModelConfig", "from_mapping", "nested"]

T = TypeVar("T")

ROUTER_SIMILARITIES = ("cosine", "scaled_dot")
ROUTER_INITS = ("from_attention", "random", "shared")
REMAT = ("all", "cheap", "nothing")
DTYPES = ("bfloat16", "float32")
# A layer more is a name more: far beyond what anybody trains, and no memory is lost on names.
_MOST_LAYERS = 10_000


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Builds a (possibly nested) config dataclass from a mapping, refusing unknown fields.

    Args:
        cls: a dataclass whose field types are plain values, other config dataclasses, or mappings
            of names to these.
        values: a dict or `ml_collections.ConfigDict`.
        where: dotted name of `values`, used in error messages.

    Raises:
        ConfigError: for a field that `cls` does not have, one that is required and absent, or a
            value that is not what the field's annotation says.
    """
    if not _is_section(values):
        raise ConfigError(f"{where} must be a section with fields, not {values!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    kwargs = {}
    for name, value in values.items():
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(fields)}."
            raise ConfigError(f"{where}.{name} is not a field of {cls.__name__}; {hint}")
        kwargs[name] = _built(field_types(cls)[name], value, f"{where}.{name}")
    missing = [
        name
        for name, field in fields.items()
        if name not in kwargs
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}, required by {cls.__name__}.")
    check_values(cls, kwargs, f"{where}.")
    return cls(**kwargs)


def _built(hint: Any, value: Any, where: str) -> Any:
    """A value as a field keeps it: sections as dataclasses, lists as tuples."""
    if isinstance(value, list):
        return tuple(value)
    if not _is_section(value):
        return value
    kind = without_none(hint)
    if dataclasses.is_dataclass(kind):
        return from_mapping(kind, value, where)
    values = dict(value.items())
    if typing.get_origin(kind) is Mapping:
        _, member = typing.get_args(kind)
        values = {name: _built(member, one, f"{where}.{name}") for name, one in values.items()}
    return values


def _is_section(value: Any) -> bool:
    """Whether it is a mapping; `ml_collections.ConfigDict` is one that does not say so."""
    return hasattr(value, "items")


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
    pooling_kernel_size: Count = 64
    top_k_docs: Count = 16
    head_len: CountOrZero = 3
    router_similarity: Annotated[str, OneOf(ROUTER_SIMILARITIES)] = "cosine"
    router_init: Annotated[str, OneOf(ROUTER_INITS)] = "from_attention"

    def __post_init__(self):
        check_fields(self)


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

    vocab_size: Count
    num_layers: Annotated[int, Within(low=1, high=_MOST_LAYERS)]
    embed_dim: Count
    hidden_dim: Count
    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    rope_theta: Positive = 10_000.0
    norm_eps: Positive = 1e-6
    qk_norm: bool = False
    attention_bias: bool = False
    tie_embeddings: bool = True
    dtype: Annotated[str, OneOf(DTYPES)] = "bfloat16"
    remat: Annotated[str, OneOf(REMAT)] = "all"
    scan_layers: bool = True
    unroll_layers: bool = False
    memory: MemoryConfig = nested(MemoryConfig)

    def __post_init__(self):
        check_fields(self)
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
