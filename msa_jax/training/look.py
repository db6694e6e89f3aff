"""One step of the second look, compiled for a stage and a mesh, and its measurement."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import Mesh

from msa_jax.checkpoint.look import save_look
from msa_jax.config import ConfigError
from msa_jax.core.losses import listwise
from msa_jax.core.segments import PADDING, LookBatch
from msa_jax.data.config import ListShape
from msa_jax.data.dataset import TextDataset
from msa_jax.data.pipeline import training_iterator
from msa_jax.modules.look import LookParams, look_logits
from msa_jax.modules.lora import Lora, init_lora, is_linear, merge_lora
from msa_jax.modules.transformer import Transformer
from msa_jax.sharding.rules import group_sharding, put_lists, replicated
from msa_jax.training.curriculum import LookStage
from msa_jax.training.optimizer import OptimizerConfig, adamw, is_router, learning_rate
from msa_jax.training.program import Program
from msa_jax.typing import Array, Float, Int, PyTree, pytree


@pytree
class LookState:
    """Everything a step reads and writes.

    Attributes:
        params: float32 parameters of the model, which stay as they are.
        look: what trains.
        optimizer: state of the optimiser for the look.
        step: steps done in this stage.
        recall: share of the held-out lists whose right document scored best, as last measured.
        best: the highest `recall` of this stage; -1 before the first.
    """

    params: PyTree
    look: LookParams
    optimizer: PyTree
    step: Int[Array, ""]
    recall: Float[Array, ""]
    best: Float[Array, ""]


class LookProgram(Program):
    """A stage of the second look, compiled for a mesh."""

    def __init__(
        self,
        model: Transformer,
        stage: LookStage,
        optimizer: OptimizerConfig,
        mesh: Mesh,
        held_out: Sequence[LookBatch],
        folder: str | Path,
    ):
        """Compiles nothing yet.

        Args:
            model: what the look is of.
            stage: how it is trained.
            optimizer: likewise.
            mesh: where.
            held_out: this process's share of the lists that are measured.
            folder: gets the look that has measured best so far.
        """
        rate = learning_rate(stage, stage.learning_rate)
        self._optimizer = adamw(optimizer, optax.scale_by_learning_rate(rate))
        self._held_out, self._folder = held_out, folder
        super().__init__(model, stage, mesh, group_sharding(mesh))
        self._measured = jax.jit(self._scores, out_shardings=replicated(mesh))
        self._gathered = jax.jit(lambda look: look, out_shardings=replicated(mesh))

    def put(self, batch: LookBatch) -> LookBatch:
        return put_lists(batch, self._mesh, self.stage.groups)

    def measure(self, state: LookState) -> tuple[LookState, dict[str, float]]:
        scored = [
            self._measured(state.params, state.look, self.put(batch)) for batch in self._held_out
        ]
        logits, target = (jnp.concatenate(x) for x in zip(*jax.device_get(scored), strict=True))
        metrics = {f"held_out/{x}": float(y) for x, y in list_metrics(logits, target).items()}
        recall, best = metrics["held_out/first@1"], float(state.best)
        if recall >= best:
            look = self._gathered(state.look)
            if jax.process_index() == 0:
                save_look(self._folder, jax.device_get(look))
        numbers = {"recall": recall, "best": max(recall, best)}
        placed = jax.device_put(
            {name: jnp.float32(x) for name, x in numbers.items()}, replicated(self._mesh)
        )
        return dataclasses.replace(state, **placed), metrics

    def finish(self, state: LookState) -> PyTree:
        return state.params

    def _start(self, params: PyTree) -> LookState:
        paths = [
            path
            for path in traverse_util.flatten_dict(params, sep="/")
            if is_linear(path) and not is_router(path)
        ]
        key = jax.random.key(zlib.crc32(self.stage.name.encode()))
        head = jnp.zeros(self._model.config.embed_dim), jnp.zeros(())
        look = LookParams(init_lora(params, paths, self.stage.lora_rank, 1.0, key), *head)
        optimizer = self._optimizer.init(_trained(look))
        return LookState(params, look, optimizer, jnp.int32(0), jnp.float32(0), jnp.float32(-1))

    def _step(self, state: LookState, batch: LookBatch) -> tuple[LookState, dict[str, Array]]:
        trained = _trained(state.look)

        def loss(trained):
            look = _with_trained(state.look, trained)
            metrics = list_metrics(*self._scores(state.params, look, batch))
            return metrics["loss"], metrics

        (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
        updates, optimizer = self._optimizer.update(gradients, state.optimizer, trained)
        look = _with_trained(state.look, optax.apply_updates(trained, updates))
        rate = learning_rate(self.stage, self.stage.learning_rate)(state.step)
        metrics |= {
            "tokens": jnp.float32(sum((x.doc_ids != PADDING).sum() for x in batch.rows)),
            "grad_norm": optax.tree.norm(gradients),
            "learning_rate": rate,
        }
        new = {"look": look, "optimizer": optimizer, "step": state.step + 1}
        return dataclasses.replace(state, **new), metrics

    def _scores(
        self, params: PyTree, look: LookParams, batch: LookBatch
    ) -> tuple[Float[Array, "G B C"], Int[Array, "G B"]]:
        """Logits of all documents, -inf where a list has none, and the column of the right one."""
        merged = merge_lora(params, look.lora)
        rows = jnp.concatenate(
            [
                look_logits(self._model, merged, look.weight, look.bias, block)
                for block in batch.rows
            ],
            axis=1,
        )
        place = batch.place.reshape(len(batch.place), -1)
        logits = jnp.take_along_axis(rows, jnp.maximum(place, 0), axis=1)
        logits = jnp.where(place >= 0, logits, -jnp.inf)
        return logits.reshape(batch.place.shape), batch.target


def list_metrics(
    logits: Float[Array, "*batch C"], target: Int[Array, "*batch"]
) -> dict[str, Float[Array, ""]]:
    """What is worth knowing about the scores of lists, with arguments as of `losses.listwise`.

    Returns:
        `loss`; `first@1`, the share of the lists with a right document in which it scores above
        all others; `none_accuracy`, the share of all lists of which the best logit says truly, by
        being above zero, whether the right document is there.
    """
    size = logits.shape[-1]
    has_right = target < size
    is_right = jnp.arange(size) == target[..., None]
    right = jnp.where(is_right, logits, -jnp.inf).max(axis=-1)
    others = jnp.where(is_right, -jnp.inf, logits).max(axis=-1)
    first = (has_right & (right > others)).sum() / jnp.maximum(has_right.sum(), 1)
    none_accuracy = ((logits.max(axis=-1) > 0) == has_right).mean()
    loss = listwise(logits, target).mean()
    return {"loss": loss, "first@1": first, "none_accuracy": none_accuracy}


def training_shape(dataset: TextDataset, stage: LookStage) -> ListShape:
    """What makes up a step: without a mixture, the questions of all sources that are not held out.

    Raises:
        ConfigError: if a source that is held out is not there, or no other is.
    """
    known = ", ".join(dataset.sources)
    for name in stage.held_out:
        if name not in dataset.sources:
            raise ConfigError(
                f"stages.{stage.name}.held_out names {name!r}, which is not a source of questions: "
                f"{known}."
            )
    if stage.mixture is not None:
        return stage.shape
    mixture = {
        name: float(len(queries))
        for name, queries in dataset.sources.items()
        if name not in stage.held_out
    }
    if not mixture:
        raise ConfigError(
            f"stages.{stage.name}.held_out leaves no source of questions to train on: {known}; "
            "add one to data.sources."
        )
    return dataclasses.replace(stage.shape, mixture=mixture)


def held_out_lists(
    dataset: TextDataset, stage: LookStage, seed: int, share: tuple[int, int]
) -> list[LookBatch]:
    """The lists that a stage measures: as many from each source, the same in every run of a seed.

    Args:
        dataset: has the sources.
        stage: names them.
        seed: draws the lists.
        share: of the groups, as `group_share` gives it.
    """
    mixture = dict.fromkeys(stage.held_out, 1.0)
    shape = dataclasses.replace(stage.shape, mixture=mixture)
    batches = training_iterator(dataset, shape, seed, *share)
    number = math.ceil(stage.held_out_lists / (stage.groups * stage.queries_per_group))
    return [next(batches) for _ in range(number)]


def _trained(look: LookParams) -> dict[str, PyTree]:
    """What has gradients: all but the scale of the update."""
    return {"factors": look.lora.factors, "weight": look.weight, "bias": look.bias}


def _with_trained(look: LookParams, trained: dict[str, PyTree]) -> LookParams:
    lora = Lora(trained["factors"], look.lora.scale)
    return LookParams(lora, trained["weight"], trained["bias"])
