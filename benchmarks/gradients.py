"""Whether a training step's gradients are right on this device, however its layers are compiled.

    python -m benchmarks.gradients [--model 100m] [--layers 6] [--memory-tokens 8448]

takes the gradients of one batch, with all losses, in the model's own type, with layers in a loop
and one after another (`ModelConfig.unroll_layers`), with the products kept that take most of the
time and with everything computed again (`ModelConfig.remat`), compiled as the trainer compiles
them. All are held against the same in float32 with exact products. Prints a JSON line for each: the
losses, the norm of the gradient, and the groups of parameters with the smallest cosines, with their
relative errors. In bfloat16 some percent of error is rounding; a cosine far from 1 is not. Run it
on a new kind of device and after a new JAX.

Attention of trained models is sharper than that of random weights, and some errors show only there:
`--sharpness 16` multiplies queries and keys by 16, which makes scores 256 times as large, and
`--checkpoint` takes a trained model. Rounding then decides more; what is computed again must still
come out as what was kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.records import OUTPUT_HELP, Recorder
from benchmarks.training_cost import model_of, random_batch, shortened
from msa_jax.config import ModelConfig
from msa_jax.core.segments import TrainingBatch
from msa_jax.engine.loading import load_model
from msa_jax.modules.init import init_params
from msa_jax.modules.transformer import Transformer
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from msa_jax.training.curriculum import StageConfig
from msa_jax.training.objective import training_loss
from msa_jax.training.program import compiler_options
from msa_jax.typing import PyTree

_LOSSES = ("loss", "lm_loss", "aux_loss", "answer_loss", "naming_loss")
# Where queries and keys are normed, it is the scale of the norm that counts.
_ATTENDING = tuple(
    f"attention/{name}"
    for name in ("q_proj/kernel", "k_proj/kernel", "q_norm/scale", "k_norm/scale")
)
# Groups whose errors are printed.
_WORST = 5
_ROW_TOKENS = 384


def stage_of(memory_tokens: int, queries: int, active_tokens: int) -> StageConfig:
    """A stage with every loss."""
    return StageConfig(
        name="gradients",
        steps=1,
        learning_rate=0.0,
        memory_tokens=memory_tokens,
        groups=1,
        queries_per_group=queries,
        active_tokens=active_tokens,
        aux_weight=1.0,
        answer_weight=1.0,
        naming_weight=0.2,
        joint_weight=0.5,
        temperature=0.03,
    )


def gradients(
    model: ModelConfig, params: PyTree, batch: TrainingBatch, stage: StageConfig, exact: bool
) -> tuple[dict[str, float], PyTree]:
    """The losses of a batch and their gradient, on the first device.

    Args:
        exact: compute in float32, with exact products.
    """
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    if exact:
        model = dataclasses.replace(model, dtype="float32")

    def loss(params):
        return training_loss(Transformer(model), params, batch, stage)

    step = jax.jit(
        jax.value_and_grad(loss, has_aux=True), compiler_options=compiler_options(mesh, model)
    )
    with jax.default_matmul_precision("highest" if exact else "default"):
        (_, metrics), gradient = jax.device_get(step(params))
    return {name: float(metrics[name]) for name in _LOSSES}, gradient


def errors(gradient: PyTree, reference: PyTree) -> list[dict[str, Any]]:
    """Relative error and cosine of each group of parameters, the smallest cosine first."""
    return sorted(_errors(gradient, reference), key=lambda row: row["cosine"])


def _errors(gradient: PyTree, reference: PyTree) -> Iterator[dict[str, Any]]:
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(reference), strict=True
    )
    for (path, own), true in pairs:
        own, true = (np.asarray(x, np.float64).ravel() for x in (own, true))
        sizes = np.linalg.norm(own), np.linalg.norm(true)
        if sizes[1] > 0:
            yield {
                "parameters": jax.tree_util.keystr(path, simple=True, separator="/"),
                "error": float(np.linalg.norm(own - true) / sizes[1]),
                "cosine": float(own @ true / max(sizes[0] * sizes[1], 1e-300)),
            }


def sharpened(params: PyTree, factor: float) -> PyTree:
    """The same model with larger projections of attention's queries and keys; routers stay."""

    def scale(path: tuple, x: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return x * factor if name.endswith(_ATTENDING) else x

    return jax.tree_util.tree_map_with_path(scale, params)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints what the module says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="small", help="small, or the name of a file of configs/")
    parser.add_argument("--layers", type=int, help="the model with so many layers instead")
    parser.add_argument("--checkpoint", help="a trained model instead, as for msa_jax.encode")
    parser.add_argument("--memory-tokens", type=int, default=3072)
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--active-tokens", type=int, default=48)
    parser.add_argument("--sharpness", type=float, default=1.0, help="of attention, see above")
    parser.add_argument("--output", help=OUTPUT_HELP)
    options = parser.parse_args(arguments)
    recorder = Recorder("benchmarks.gradients", arguments, options.output)
    config = None if options.checkpoint or options.model == "small" else options.model
    model, params = _model_of(options)
    sizes = options.memory_tokens, options.queries, options.active_tokens
    batch, stage = _batch(model, *sizes), stage_of(*sizes)
    params = sharpened(params, options.sharpness)
    _, reference = gradients(model, params, batch, stage, exact=True)
    for remat, unrolled in itertools.product(("cheap", "all"), (False, True)):
        how = {"remat": remat, "unroll_layers": unrolled}
        losses, own = gradients(
            dataclasses.replace(model, **how), params, batch, stage, exact=False
        )
        row = how | losses | {"norm": float(optax.tree.norm(own))}
        way = "unrolled" if unrolled else "loop"
        name = f"gradients/{options.model}/sharpness-{options.sharpness:g}/{remat}/{way}"
        recorder.show(name, row | {"worst": errors(own, reference)[:_WORST]}, config)


def _model_of(options: argparse.Namespace) -> tuple[ModelConfig, PyTree]:
    """A model with stacked layers, and its parameters in float32."""
    if options.checkpoint:
        loaded = load_model(options.checkpoint, dtype="float32")
        return dataclasses.replace(loaded.config, dtype="bfloat16"), loaded.params
    model = model_of(options.model)
    if options.layers:
        model = shortened(model, options.layers)
    return model, jax.jit(lambda key: init_params(model, key))(jax.random.key(0))


def _batch(
    model: ModelConfig, memory_tokens: int, queries: int, active_tokens: int
) -> TrainingBatch:
    """Of every other query an answer, so that no loss is of nothing."""
    batch = random_batch(
        model, memory_tokens, _ROW_TOKENS, queries, active_tokens, _ROW_TOKENS // 2
    )
    answers = batch.target_mask & (np.arange(queries) % 2 == 0)[:, None]
    return dataclasses.replace(batch, answer_mask=answers)


if __name__ == "__main__":
    main()
