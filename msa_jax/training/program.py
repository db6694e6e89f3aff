"""What the training loop knows of a stage, of whatever kind."""

from __future__ import annotations

import abc
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from msa_jax.config import ModelConfig
from msa_jax.modules.init import init_params
from msa_jax.modules.transformer import Transformer
from msa_jax.sharding.rules import replicated, state_shardings
from msa_jax.training.curriculum import BaseStage
from msa_jax.typing import Array, PyTree


class Program(abc.ABC):
    """One stage compiled for a mesh: its initial state, its step, and what is left in the end.

    A state is a dataclass with the `params` of the whole model, and `recall`, which ranks the
    checkpoints of the stage. Its buffers are donated to the next step.

    Attributes:
        stage: the configuration.
        abstract_state: shapes, types and places of a state.
        step: `(state, batch)` to the next state and metrics.
    """

    def __init__(self, model: Transformer, stage: BaseStage, mesh: Mesh, batches: PyTree):
        """Compiles nothing yet.

        Args:
            model: what is trained.
            stage: how.
            mesh: where.
            batches: shardings of a batch, or a prefix of their tree.
        """
        self.stage = stage
        self._model, self._mesh = model, mesh
        abstract = jax.eval_shape(self._start, abstract_params(model.config))
        self._shardings = state_shardings(abstract, mesh)
        self.abstract_state: Any = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            abstract,
            self._shardings,
        )
        self.step = jax.jit(
            self._step,
            donate_argnums=0,
            in_shardings=(self._shardings, batches),
            out_shardings=(self._shardings, replicated(mesh)),
            compiler_options=compiler_options(mesh, model.config),
        )

    def start(self, params: PyTree) -> Any:
        """The state before the first step, which takes over `params`."""
        params = jax.device_put(params, self._shardings.params)
        return jax.jit(self._start, donate_argnums=0, out_shardings=self._shardings)(params)

    @abc.abstractmethod
    def put(self, batch: Any) -> Any:
        """Places this process's NumPy share of a batch on the mesh."""

    @abc.abstractmethod
    def measure(self, state: Any) -> tuple[Any, dict[str, float]]:
        """Measures a state that is about to be saved.

        Returns:
            The state with its `recall`, and metrics to report, if any.
        """

    @abc.abstractmethod
    def finish(self, state: Any) -> PyTree:
        """The parameters after the last step; takes over the state."""

    @abc.abstractmethod
    def _start(self, params: PyTree) -> Any: ...

    @abc.abstractmethod
    def _step(self, state: Any, batch: Any) -> tuple[Any, dict[str, Array]]: ...


def abstract_params(config: ModelConfig) -> PyTree:
    """Shapes and types of a model's parameters in training."""
    return jax.eval_shape(partial(init_params, config), jax.random.key(0))


def compiler_options(mesh: Mesh, config: ModelConfig) -> dict[str, str] | None:
    """What XLA does better otherwise on GPUs (docs/performance.md)."""
    if mesh.devices.flat[0].platform != "gpu":
        return None
    # Products of one input are faster alone than merged and then cut up.
    options = {"xla_disable_hlo_passes": "dot-merger"}
    if config.unroll_layers:
        options["xla_gpu_enable_command_buffer"] = ""
    return options
