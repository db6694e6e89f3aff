"""The training loop: stages in sequence on any mesh, resumable at every step."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from msa_jax.checkpoint.checkpointer import CHECKPOINTS, Checkpointer, Position
from msa_jax.config import ConfigError
from msa_jax.data.pipeline import TextDataset, training_iterator
from msa_jax.data.text_format import save_text_format
from msa_jax.engine.loading import read_params
from msa_jax.modules.init import init_params
from msa_jax.modules.transformer import Transformer
from msa_jax.sharding.mesh import make_mesh
from msa_jax.sharding.rules import group_share, state_shardings
from msa_jax.terminal import note
from msa_jax.training import routers
from msa_jax.training.config import TrainConfig
from msa_jax.training.curriculum import BaseStage, LookStage
from msa_jax.training.look import LookProgram, held_out_lists, training_shape
from msa_jax.training.metrics import MetricsWriter, read_metrics
from msa_jax.training.program import Program
from msa_jax.training.step import StageProgram
from msa_jax.typing import Array, PyTree

# Metrics of a step that the bar shows, of whatever kind its stage is.
_SHOWN = ("loss", "recall@1", "first@1", "tokens_per_second")
# Drawing takes a second or so, in which no step is reported.
_SECONDS_BETWEEN_PLOTS = 60.0


class DivergenceError(FloatingPointError):
    """The loss or its gradient is no longer a number; the message names the step."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run leaves behind.

    Attributes:
        params: final parameters, on the mesh.
        metrics: those of the last logged step; empty when there was nothing left to do.
        step: steps done in all.
        interrupted: whether SIGTERM ended the run before its last step.
    """

    params: PyTree
    metrics: dict[str, float]
    step: int
    interrupted: bool


def initial_params(config: TrainConfig, mesh: Mesh) -> PyTree:
    """The parameters that a run starts from, random or from `config.init_from`, on the mesh."""
    key = jax.random.key(config.seed)
    init = partial(init_params, config.model)
    abstract = jax.eval_shape(init, key)
    shardings = state_shardings(abstract, mesh)
    if config.init_from is not None:
        abstract = jax.tree.map(lambda x, place: x.update(sharding=place), abstract, shardings)
        return read_params(config.init_from, config.model, key, abstract)
    with jax.set_mesh(mesh):
        return jax.jit(init, out_shardings=shardings)(key)


def train(config: TrainConfig, dataset: TextDataset | None = None) -> TrainResult:
    """Trains all stages, or what an earlier run in the same workdir has left of them.

    SIGTERM ends the run after the step in progress, with a checkpoint.

    Args:
        config: the run.
        dataset: what to train on; `config.data` says by default.

    Raises:
        ConfigError: for a mesh that does not fit the devices, the model or the batch, and for a
            workdir with checkpoints of another model.
        DivergenceError: when there is nothing sane to save.
    """
    mesh = make_mesh(config.mesh)
    for stage in config.stages:
        group_share(mesh, stage.groups)
    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(_stop_signal())
        directory = Path(config.workdir) / CHECKPOINTS
        checkpointer = stack.enter_context(Checkpointer(directory, config.checkpoint, config.model))
        if dataset is None:
            dataset = TextDataset.load(config.data, config.model.memory)
        _check_vocabulary(dataset, config)
        resumed = checkpointer.latest()
        writer = None
        if jax.process_index() == 0:
            save_text_format(
                config.workdir,
                dataset.builder.tokenizer,
                dataset.data.template,
                dataset.data.max_document_tokens,
            )
            restored_step = resumed.step if resumed else 0
            writer = stack.enter_context(MetricsWriter(config.workdir, restored_step))
        run = _Run(config, mesh, dataset, checkpointer, writer, stopped)
        result = run.train(resumed)
    if result.interrupted and jax.process_index() == 0:
        note(f"SIGTERM: saved step {result.step} in {directory}; the same command goes on from it.")
    return result


def _check_vocabulary(dataset: TextDataset, config: TrainConfig) -> None:
    """Refuses ids beyond the embedding, which JAX would clamp without a word."""
    tokenizer = dataset.builder.tokenizer
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size ({config.model.vocab_size}) is smaller than the "
            f"{tokenizer.vocab_size} token ids of data.tokenizer {tokenizer.name}; raise it or "
            "choose another tokenizer."
        )


class _Run:
    """The state of a run between steps: where it stands, and what the last log line said."""

    def __init__(
        self,
        config: TrainConfig,
        mesh: Mesh,
        dataset: TextDataset,
        checkpointer: Checkpointer,
        writer: MetricsWriter | None,
        stopped: Callable[[int], bool],
    ):
        self._config, self._mesh, self._dataset = config, mesh, dataset
        self._checkpointer, self._writer, self._stopped = checkpointer, writer, stopped
        self._model = Transformer(config.model)
        self._step = 0
        self._metrics: dict[str, float] = {}
        self._collapse = routers.CollapseWatch()
        self._plotted = time.monotonic()

    def train(self, resumed: Position | None) -> TrainResult:
        stages = self._config.stages
        first = resumed.stage if resumed else 0
        if first >= len(stages):
            raise ConfigError(
                f"the checkpoint in {self._config.workdir} is in stage {first + 1} of a curriculum "
                f"that now has {len(stages)}; restore the curriculum or use another workdir."
            )
        params = None if resumed else initial_params(self._config, self._mesh)
        for index in range(first, len(stages)):
            iterator = self._iterator(index)
            program = self._program(index)
            if resumed:
                state = self._restore(resumed, program, iterator)
                stage_step, resumed = resumed.stage_step, None
            else:
                state, stage_step = program.start(params), 0
            state, interrupted = self._train_stage(program, index, state, stage_step, iterator)
            params = program.finish(state)
            if interrupted:
                break
        self._plot()
        return TrainResult(params, self._metrics, self._step, interrupted)

    def _program(self, index: int) -> Program:
        config, stage = self._config, self._config.stages[index]
        if isinstance(stage, LookStage):
            share = group_share(self._mesh, stage.groups)
            held_out = held_out_lists(self._dataset, stage, config.seed + index, share)
            arguments = (self._model, stage, config.optimizer, self._mesh)
            return LookProgram(*arguments, held_out, config.workdir)
        chunk_size = config.model.memory.pooling_kernel_size
        max_document_chunks = -(-config.data.max_document_tokens // chunk_size)
        return StageProgram(self._model, stage, config.optimizer, self._mesh, max_document_chunks)

    def _iterator(self, index: int) -> Any:
        stage = self._config.stages[index]
        is_look = isinstance(stage, LookStage)
        shape = training_shape(self._dataset, stage) if is_look else stage.shape
        # Another seed per stage, so that a stage does not begin with its predecessor's examples.
        seed = self._config.seed + index
        return training_iterator(self._dataset, shape, seed, *group_share(self._mesh, stage.groups))

    def _restore(self, position: Position, program: Program, iterator: Any) -> Any:
        self._step = position.step
        iterator.set_state(position.data)
        return self._checkpointer.restore(position.step, program.abstract_state)

    def _train_stage(
        self, program: Program, index: int, state: Any, done: int, iterator: Any
    ) -> tuple[Any, bool]:
        """Trains the steps of a stage after the first `done`; also returns: interrupted?"""
        stage, config = program.stage, self._config
        last_of_all = index == len(config.stages) - 1
        with _Progress(self._writer, stage, done, config.log_every, self._collapse) as progress:
            for stage_step in range(done + 1, stage.steps + 1):
                state, metrics = program.step(state, program.put(next(iterator)))
                self._step += 1
                progress.push(self._step, stage_step, metrics)
                finished, stop = stage_step == stage.steps, self._stopped(self._step)
                if finished or stop or self._step % config.checkpoint.every == 0:
                    # The lines up to a checkpoint must be on disk before it is.
                    progress.settle()
                    _check_finite(self._step, metrics)
                    state, measured = program.measure(state)
                    progress.add(self._step, measured)
                    position = Position(self._step, index, stage_step, iterator.get_state())
                    self._checkpointer.save(position, state, float(state.recall))
                    if time.monotonic() - self._plotted > _SECONDS_BETWEEN_PLOTS:
                        self._plot()
                if stop and not (finished and last_of_all):
                    break
            else:
                stop = False
            self._metrics = progress.metrics or self._metrics
        return state, stop

    def _plot(self) -> None:
        if self._writer is not None:
            workdir = Path(self._config.workdir)
            routers.plot_routers(read_metrics(workdir), workdir / routers.FILE_NAME)
            self._plotted = time.monotonic()


def _check_finite(step: int, metrics: Mapping[str, float | Array]) -> None:
    """Ends a run that has nothing left to learn, before it spends time on more steps.

    A checkpoint of broken parameters would in time replace the good ones.
    """
    loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise DivergenceError(
            f"training diverged: after step {step} the loss is {loss} and the gradient norm "
            f"{norm}, so no checkpoint was written; lower the learning rate and start again from "
            "the one before."
        )


class _Progress:
    """Reports a step while the next one runs, so that the device never waits for a report."""

    def __init__(
        self,
        writer: MetricsWriter | None,
        stage: BaseStage,
        done: int,
        log_every: int,
        collapse: routers.CollapseWatch,
    ):
        self._writer, self._stage, self._log_every = writer, stage, log_every
        self._collapse = collapse
        self._pending: tuple[int, int, dict[str, Array]] | None = None
        self._since, self._steps = time.perf_counter(), 0
        # In a log file, a line now and then; on a terminal, a living bar.
        interval = 0.5 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(
            total=stage.steps,
            initial=done,
            desc=stage.name,
            mininterval=interval,
            disable=writer is None,
        )
        self.metrics: dict[str, float] = {}

    def push(self, step: int, stage_step: int, metrics: dict[str, Array]) -> None:
        """Takes the metrics of a step just dispatched and waits for the step before it."""
        self.settle()
        self._pending = (step, stage_step, metrics)

    def settle(self) -> None:
        """Waits for the last step that was pushed, and reports it."""
        if self._pending is None:
            return
        (step, stage_step, metrics), self._pending = self._pending, None
        jax.block_until_ready(metrics)
        self._steps += 1
        self._bar.update()
        if step % self._log_every == 0 or stage_step in (1, self._stage.steps):
            self._report(step, {name: float(x) for name, x in jax.device_get(metrics).items()})

    def add(self, step: int, measured: dict[str, float]) -> None:
        """Reports what was measured of a state between steps, if anything was."""
        if not measured:
            return
        self.metrics |= measured
        if self._writer is not None:
            self._writer.write(self._stage.name, step, measured)

    def _report(self, step: int, metrics: dict[str, float]) -> None:
        now = time.perf_counter()
        seconds = (now - self._since) / self._steps
        self._since, self._steps = now, 0
        speed = {"seconds_per_step": seconds, "tokens_per_second": metrics["tokens"] / seconds}
        self.metrics = {**metrics, **speed}
        if self._writer is not None:
            self._writer.write(self._stage.name, step, self.metrics)
            if warning := self._collapse.warning(step, self.metrics):
                tqdm.write(warning, file=sys.stderr)
        _check_finite(step, metrics)
        self._bar.set_postfix(
            {name: f"{self.metrics[name]:.3g}" for name in _SHOWN if name in self.metrics}
        )

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()


@contextlib.contextmanager
def _stop_signal() -> Iterator[Callable[[int], bool]]:
    """Turns SIGTERM into a function that says whether to stop after a given step."""
    if jax.process_count() > 1:
        # Every process must stop after the same step; JAX's coordinator agrees on one.
        yield multihost_utils.reached_preemption_sync_point
        return
    received = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread alone, so nothing can be caught here.
        yield lambda step: False
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield lambda step: received.is_set()
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)
