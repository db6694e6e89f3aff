"""One training step over memories, compiled for a stage and a mesh."""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from msa_jax.core.segments import TrainingBatch
from msa_jax.modules.lora import Lora, init_lora, merge_lora
from msa_jax.modules.transformer import Transformer
from msa_jax.sharding.rules import batch_shardings, put_batch
from msa_jax.training.curriculum import StageConfig
from msa_jax.training.objective import training_loss
from msa_jax.training.optimizer import (
    OptimizerConfig,
    check_choice,
    join_params,
    learning_rate,
    lora_paths,
    make_optimizer,
    split_trainable,
)
from msa_jax.training.program import Program, abstract_params
from msa_jax.typing import Array, Float, Int, PyTree, pytree

_RECALL_DECAY = 0.98


@pytree
class TrainState:
    """Everything a step reads and writes; its buffers are donated to the next step.

    Attributes:
        params: float32 parameters.
        lora: low-rank update of `params`, which it is not yet part of; None without one.
        optimizer: state of the optimiser for the trainable parameters.
        step: steps done in this stage.
        recall: running average of recall@1 in this stage; ranks its checkpoints.
    """

    params: PyTree
    lora: Lora | None
    optimizer: PyTree
    step: Int[Array, ""]
    recall: Float[Array, ""]


class StageProgram(Program):
    """A stage of memories, compiled for a mesh."""

    def __init__(
        self,
        model: Transformer,
        stage: StageConfig,
        optimizer: OptimizerConfig,
        mesh: Mesh,
        max_document_chunks: int | None = None,
    ):
        self._max_document_chunks = max_document_chunks
        self._optimizer = make_optimizer(optimizer, stage)
        check_choice(abstract_params(model.config), stage)
        super().__init__(model, stage, mesh, batch_shardings(mesh))

    def put(self, batch: TrainingBatch) -> TrainingBatch:
        return put_batch(batch, self._mesh, self.stage.groups)

    def measure(self, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        # The running recall is in the state already.
        return state, {}

    def finish(self, state: TrainState) -> PyTree:
        # With low-rank updates merged.
        if state.lora is None:
            return state.params
        merge = jax.jit(merge_lora, donate_argnums=0, out_shardings=self._shardings.params)
        return merge(state.params, state.lora)

    def _start(self, params: PyTree) -> TrainState:
        lora = self._init_lora(params)
        trained, _ = self._split(params, lora)
        optimizer = self._optimizer.init(trained)
        return TrainState(params, lora, optimizer, jnp.zeros((), jnp.int32), jnp.zeros(()))

    def _init_lora(self, params: PyTree) -> Lora | None:
        stage, paths = self.stage, lora_paths(params, self.stage)
        if not paths:
            return None
        alpha = stage.lora_rank if stage.lora_alpha is None else stage.lora_alpha
        # Another key per stage, so that two in a row do not update the same directions.
        key = jax.random.key(zlib.crc32(stage.name.encode()))
        return init_lora(params, paths, stage.lora_rank, alpha / stage.lora_rank, key)

    def _split(self, params: PyTree, lora: Lora | None) -> tuple[PyTree, PyTree]:
        """What the optimiser sees, parameters and factors, and the parameters that are frozen."""
        trained, frozen = split_trainable(params, self.stage)
        return {"params": trained, "lora": lora and lora.factors}, frozen

    def _step(self, state: TrainState, batch: TrainingBatch) -> tuple[TrainState, dict[str, Array]]:
        trained, frozen = self._split(state.params, state.lora)

        def loss(trained):
            params = join_params(trained["params"], frozen)
            if state.lora is not None:
                params = merge_lora(params, Lora(trained["lora"], state.lora.scale))
            return training_loss(self._model, params, batch, self.stage, self._max_document_chunks)

        # So that routing is spread over the mesh by us: the compiler cannot cut its kernels.
        with jax.sharding.use_abstract_mesh(self._mesh.abstract_mesh):
            (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
        updates, optimizer = self._optimizer.update(gradients, state.optimizer, trained)
        trained = optax.apply_updates(trained, updates)
        params = join_params(trained["params"], frozen)
        lora = state.lora and Lora(trained["lora"], state.lora.scale)
        metrics["grad_norm"] = optax.tree.norm(gradients)
        metrics["learning_rate"] = learning_rate(self.stage, self.stage.learning_rate)(state.step)
        recall = _RECALL_DECAY * state.recall + (1 - _RECALL_DECAY) * metrics["recall@1"]
        return TrainState(params, lora, optimizer, state.step + 1, recall), metrics
