"""Checkpoints of a training run: parameters, optimiser, place in the data, and the model config.

A checkpoint is written beside its final place and renamed when it is complete, so that a run
killed at any moment leaves either the whole of it or nothing that is ever read.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from msa_jax.checkpoint.tensors import CheckpointError
from msa_jax.config import ConfigError, ModelConfig, from_mapping
from msa_jax.fields import Count, check_fields
from msa_jax.modules.lora import Lora, merge_lora
from msa_jax.typing import PyTree

StateT = TypeVar("StateT")

# Where a run keeps its checkpoints, within its workdir.
CHECKPOINTS = "checkpoints"

# Written with the rename that completes a checkpoint.
_COMPLETE = "_CHECKPOINT_METADATA"
# In the name of a checkpoint that is being written.
_UNFINISHED = ".orbax-checkpoint-tmp"
# Fields that change neither the parameters nor what they compute.
_FREE_FIELDS = ("dtype", "remat", "unroll_layers", "memory.router_init")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which stay.

    Attributes:
        every: steps between checkpoints; the end of a stage always has one.
        keep: how many of the latest stay, besides the best of the latest stage.
    """

    every: Count = 500
    keep: Count = 2

    def __post_init__(self):
        check_fields(self, "checkpoint.")


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes:
        step: steps done in the whole run; the name of the checkpoint.
        stage: index of the stage.
        stage_step: steps done in that stage.
        data: state of the data iterator; the same in every process, since all have taken as many
            steps.
    """

    step: int
    stage: int
    stage_step: int
    data: Any


class Checkpointer:
    """What a training run uses: saves in the background, keeps the latest and the best."""

    def __init__(self, directory: str | Path, config: CheckpointConfig, model: ModelConfig):
        """Opens a directory of checkpoints, which only one run may write to.

        Raises:
            ConfigError: when it holds checkpoints of another model.
        """
        self._directory = Path(directory).absolute()
        self._model = model
        steps = complete_steps(self._directory)
        if steps:
            self._check_model(_metadata(self._directory, steps[-1])["model"])
        _remove_unfinished(self._directory)
        policies = ocp.training.preservation_policies
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(config.keep), policies.BestN(get_metric_fn=_rank, n=1)]
            ),
        )

    def latest(self) -> Position | None:
        """The position of the latest complete checkpoint."""
        steps = complete_steps(self._directory)
        return Position(**_metadata(self._directory, steps[-1])["position"]) if steps else None

    def save(self, position: Position, state: PyTree, recall: float) -> None:
        """Starts a save; the arrays may be donated as soon as this returns.

        Args:
            position: where the run stands.
            state: a dataclass with `params`, and `lora` if these have an update beside them.
            recall: decides which checkpoint of a stage is the best.
        """
        self._checkpointer.wait()
        metrics = {"stage": position.stage, "recall": recall}
        self._checkpointer.save_checkpointables_async(
            position.step,
            _parts(state),
            force=True,
            overwrite=True,  # An incomplete copy may be in the way.
            metrics=metrics,
            custom_metadata={
                "position": dataclasses.asdict(position),
                "model": _json_fields(self._model),
                "metrics": metrics,
            },
        )

    def restore(self, step: int, abstract_state: StateT) -> StateT:
        """Loads the training state of a complete checkpoint.

        Args:
            step: its step.
            abstract_state: the saved dataclass, of `jax.ShapeDtypeStruct` with shardings of any
                mesh.
        """
        loaded = self._checkpointer.load_checkpointables(step, _parts(abstract_state))
        training = loaded.pop("training")
        return dataclasses.replace(abstract_state, **loaded, **training)

    def close(self) -> None:
        """Waits for the save in progress and closes the directory."""
        self._checkpointer.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _check_model(self, saved_model: Mapping[str, Any]) -> None:
        # Through the class, so that a field newer than the checkpoint has its default.
        saved, ours = (
            _flatten(_json_fields(model))
            for model in (from_mapping(ModelConfig, saved_model, "model"), self._model)
        )
        differing = [
            f"{name} ({saved.get(name)!r} there, {ours.get(name)!r} here)"
            for name in sorted(saved.keys() | ours.keys())
            if saved.get(name) != ours.get(name) and name not in _FREE_FIELDS
        ]
        if differing:
            raise ConfigError(
                f"{self._directory} holds checkpoints of another model, which differs in "
                f"{', '.join(differing)}; use its configuration or another workdir."
            )


def _remove_unfinished(directory: Path) -> None:
    """Deletes what killed saves left behind.

    Orbax would do it in a thread that fails, loudly, when the program ends at once for another
    reason, such as a mistake in the configuration.
    """
    if jax.process_index() == 0:
        for path in directory.glob(f"*{_UNFINISHED}*"):
            shutil.rmtree(path, ignore_errors=True)


def complete_steps(directory: str | Path) -> list[int]:
    """Steps of the complete checkpoints in a directory, ascending."""
    found = Path(directory).glob(f"*/{_COMPLETE}")
    return sorted(int(path.parent.name) for path in found if path.parent.name.isdigit())


def best_step(directory: str | Path) -> int:
    """The step with the highest recall in the latest stage that has a checkpoint."""
    directory = Path(directory).absolute()
    return max(
        complete_steps(directory), key=lambda step: _rank(_metadata(directory, step)["metrics"])
    )


def load_model_config(directory: str | Path) -> ModelConfig:
    """The configuration of the model whose checkpoints a directory holds.

    Raises:
        ConfigError: when it holds none.
    """
    directory = Path(directory).absolute()
    steps = complete_steps(directory)
    if not steps:
        raise ConfigError(f"{directory} holds no complete checkpoint; train one or correct it.")
    return from_mapping(ModelConfig, _metadata(directory, steps[-1])["model"], "model")


def load_params(directory: str | Path, step: int, abstract_params: PyTree) -> PyTree:
    """The parameters of one checkpoint, updates merged, without the optimiser's memory.

    Args:
        directory: a run's directory of checkpoints.
        step: one of `complete_steps`.
        abstract_params: `jax.ShapeDtypeStruct` tree with shardings, of any mesh.

    Raises:
        CheckpointError: if a parameter holds NaN or infinity.
    """
    params = _load_merged(directory, step, abstract_params)
    finite = jax.device_get(jax.jit(partial(jax.tree.map, lambda x: jnp.isfinite(x).all()))(params))
    for name, is_finite in traverse_util.flatten_dict(finite, sep="/").items():
        if not is_finite:
            raise CheckpointError(
                f"{Path(directory) / str(step)}: {name} holds NaN or infinity; delete this "
                "checkpoint and go on from an earlier one."
            )
    return params


def _load_merged(directory: str | Path, step: int, abstract_params: PyTree) -> PyTree:
    """Parameters, with the update beside them if they have one."""
    path = Path(directory).absolute() / str(step)
    abstract_lora = _abstract_lora(path, abstract_params)
    if abstract_lora is None:
        return ocp.load_checkpointables(path, {"params": abstract_params})["params"]
    # As they were trained; a product rounded before it is added would be another one.
    exact = jax.tree.map(lambda x: x.update(dtype=np.float32), abstract_params)
    loaded = ocp.load_checkpointables(path, {"params": exact, "lora": abstract_lora})
    shardings = jax.tree.map(lambda x: x.sharding, abstract_params)

    def merge(params: PyTree, lora: Lora) -> PyTree:
        merged = merge_lora(params, lora)
        return jax.tree.map(lambda x, like: x.astype(like.dtype), merged, abstract_params)

    return jax.jit(merge, out_shardings=shardings)(loaded["params"], loaded["lora"])


def _abstract_lora(path: Path, abstract_params: PyTree) -> Lora | None:
    """The update beside the parameters of a checkpoint, whole on every device; None without one."""
    saved = ocp.checkpointables_metadata(path).metadata.get("lora")
    if saved is None:
        return None
    place = jax.tree.leaves(abstract_params)[0].sharding
    if isinstance(place, NamedSharding):
        place = NamedSharding(place.mesh, PartitionSpec())
    as_saved = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), saved)
    return Lora(**as_saved)


def _metadata(directory: Path, step: int) -> dict[str, Any]:
    return ocp.checkpointables_metadata(directory / str(step)).custom_metadata


def _parts(state: Any) -> dict[str, PyTree]:
    # Apart, so that inference can load what it needs alone.
    training = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    parts = {name: training.pop(name, None) for name in ("params", "lora")}
    return {name: part for name, part in parts.items() if part is not None} | {"training": training}


def _rank(metrics: Mapping[str, float] | None) -> tuple[float, float]:
    # A later stage is never worse than an earlier one, whose memory was smaller and easier.
    return (metrics["stage"], metrics["recall"]) if metrics else (-1, 0.0)


def _json_fields(model: ModelConfig) -> dict[str, Any]:
    # The resolved layers, so that naming the default layers is not a difference.
    fields = dataclasses.asdict(model)
    fields["memory"]["router_layers"] = list(model.router_layers)
    return fields


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
