"""One training step, compiled for a stage and a mesh."""

from __future__ import annotations

import zlib
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from msa_jax.config import ModelConfig
from msa_jax.core.segments import TrainingBatch
from msa_jax.modules.init import init_params
from msa_jax.modules.lora import Lora, init_lora, merge_lora
from msa_jax.modules.transformer import Transformer
from msa_jax.sharding.rules import batch_shardings, replicated, state_shardings
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


class StageProgram:
    """One stage compiled for a mesh: its initial state and its step."""

    def __init__(
        self,
        model: Transformer,
        stage: StageConfig,
        optimizer: OptimizerConfig,
        mesh: Mesh,
        max_document_chunks: int | None = None,
    ):
        self.stage = stage
        self._max_document_chunks = max_document_chunks
        self._model = model
        self._mesh = mesh
        self._optimizer = make_optimizer(optimizer, stage)
        params = jax.eval_shape(partial(init_params, model.config), jax.random.key(0))
        check_choice(params, stage)
        abstract = jax.eval_shape(self._start, params)
        self._shardings = state_shardings(abstract, mesh)
        self.abstract_state: TrainState = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            abstract,
            self._shardings,
        )
        self.step = jax.jit(
            self._step,
            donate_argnums=0,
            in_shardings=(self._shardings, batch_shardings(mesh)),
            out_shardings=(self._shardings, replicated(mesh)),
            compiler_options=compiler_options(mesh, model.config),
        )

    def start(self, params: PyTree) -> TrainState:
        """The state before the first step, which takes over `params`."""
        params = jax.device_put(params, self._shardings.params)
        return jax.jit(self._start, donate_argnums=0, out_shardings=self._shardings)(params)

    def finish(self, state: TrainState) -> PyTree:
        """The parameters after the last step, low-rank updates merged; takes over the state."""
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


def compiler_options(mesh: Mesh, config: ModelConfig) -> dict[str, str] | None:
    """What XLA does better otherwise on GPUs (docs/performance.md)."""
    if mesh.devices.flat[0].platform != "gpu":
        return None
    # Products of one input are faster alone than merged and then cut up.
    options = {"xla_disable_hlo_passes": "dot-merger"}
    if config.unroll_layers:
        options["xla_gpu_enable_command_buffer"] = ""
    return options
