"""AdamW over the trainable parameters, with a learning rate of its own for routers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from msa_jax.config import ConfigError
from msa_jax.fields import NonNegative, Positive, Within, check_fields
from msa_jax.modules.lora import is_linear
from msa_jax.training.curriculum import BaseStage, StageConfig
from msa_jax.typing import Array, PyTree


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW.

    Attributes:
        weight_decay: on matrices (kernels and the embedding), never on norms, biases and factors
            of low-rank updates.
        clip_norm: largest global norm of the gradient.
    """

    b1: Annotated[float, Within(low=0, below=1)] = 0.9
    b2: Annotated[float, Within(low=0, below=1)] = 0.95
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.01
    clip_norm: Positive = 1.0

    def __post_init__(self):
        check_fields(self, "optimizer.")


def learning_rate(stage: BaseStage, peak: float) -> Callable[[Array], Array]:
    """The learning rate at each step of a stage: linear warm-up, then cosine or constant."""

    def schedule(step: Array) -> Array:
        warmup = jnp.minimum((step + 1) / max(stage.warmup_steps, 1), 1.0)
        if stage.schedule == "constant":
            return peak * warmup
        decay_steps = max(stage.steps - stage.warmup_steps, 1)
        progress = jnp.clip((step - stage.warmup_steps) / decay_steps, 0.0, 1.0)
        return peak * warmup * 0.5 * (1 + jnp.cos(jnp.pi * progress))

    return schedule


def adamw(
    config: OptimizerConfig, rates: optax.GradientTransformation
) -> optax.GradientTransformation:
    """AdamW with clipped gradients.

    Args:
        config: its numbers.
        rates: multiplies updates by the learning rate.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=_map_paths(_is_matrix)),
        rates,
    )


def make_optimizer(config: OptimizerConfig, stage: StageConfig) -> optax.GradientTransformation:
    """AdamW for the trainable parameters of a stage (see `split_trainable`)."""
    router_peak = stage.router_learning_rate
    if router_peak is None:
        router_peak = stage.learning_rate
    peaks = {"router": router_peak, "backbone": stage.learning_rate}
    rates = {
        label: optax.scale_by_learning_rate(learning_rate(stage, peak))
        for label, peak in peaks.items()
    }
    return adamw(config, optax.multi_transform(rates, _map_paths(_label)))


def split_trainable(params: PyTree, stage: StageConfig) -> tuple[PyTree, PyTree]:
    """Parameters that train in a stage, and those that do not.

    The step differentiates and optimises the first alone: frozen parameters have no gradient,
    no update and no optimiser memory.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    chosen = {path for path in flat if _trains(path, stage)}
    return tuple(
        traverse_util.unflatten_dict(
            {path: leaf for path, leaf in flat.items() if (path in chosen) is wanted}, sep="/"
        )
        for wanted in (True, False)
    )


def join_params(trained: PyTree, frozen: PyTree) -> PyTree:
    """The inverse of `split_trainable`."""
    flat = traverse_util.flatten_dict(trained, sep="/")
    flat |= traverse_util.flatten_dict(frozen, sep="/")
    return traverse_util.unflatten_dict(flat, sep="/")


def lora_paths(params: PyTree, stage: StageConfig) -> list[str]:
    """Kernels that get a low-rank update in a stage."""
    if stage.trainable != "lora":
        return []
    return [
        path
        for path in traverse_util.flatten_dict(params, sep="/")
        if is_linear(path)
        and _is_among(path, stage.lora_targets)
        and not _is_among(path, stage.frozen)
    ]


def check_choice(params: PyTree, stage: StageConfig) -> None:
    """Sees to it that a stage freezes and updates what its configuration names.

    Raises:
        ConfigError: for a name that fits no parameter, or a stage in which nothing trains.
    """
    paths = list(traverse_util.flatten_dict(params, sep="/"))
    named = {"frozen": paths, "lora_targets": [path for path in paths if is_linear(path)]}
    for field, candidates in named.items():
        for name in getattr(stage, field):
            if not any(_is_among(path, [name]) for path in candidates):
                raise ConfigError(
                    f"stages.{stage.name}.{field} names {name!r}, which is no part of the path of "
                    f"any of {', '.join(candidates)}; correct it."
                )
    if not lora_paths(params, stage) and not any(_trains(path, stage) for path in paths):
        raise ConfigError(f"stages.{stage.name}.frozen leaves nothing to train; name less.")


def _trains(path: str, stage: StageConfig) -> bool:
    if _is_among(path, stage.frozen):
        return False
    if stage.trainable == "lora":
        return is_router(path) and not _is_among(path, stage.lora_targets)
    return stage.trainable == "all" or is_router(path)


def _is_among(path: str, names: Sequence[str]) -> bool:
    """Whether the path has one of the names in it: whole parts, one or several."""
    return any(f"/{name}/" in f"/{path}/" for name in names)


def is_router(path: str) -> bool:
    """Whether a parameter, by its path joined with "/", is one of a router."""
    return "/router/" in path


def _is_matrix(path: str) -> bool:
    return path.endswith(("/kernel", "/embedding"))


def _label(path: str) -> str:
    return "router" if is_router(path) else "backbone"


def _map_paths(of_path: Callable[[str], object]) -> Callable[[PyTree], PyTree]:
    def of_tree(tree: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: of_path(jax.tree_util.keystr(path, simple=True, separator="/")), tree
        )

    return of_tree
