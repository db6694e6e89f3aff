"""What a training step costs as memory grows: seconds, device memory, share of the matrix peak.

    python -m benchmarks.training_cost [--model 100m] [--memory-tokens 8192 65536]

Prints one record per memory size (`records`) and a line with the ratios of the largest to the
smallest. Attention inside documents, pooling and routing are all linear in memory tokens, so the
ratios should be at most that of the tokens. The queries stay the same. Tokens are random: what a
step costs does not depend on them. A size that does not fit has a line that says so, and ends the
run.

`--devices 2` lays the rows of the memory on two devices; each of them has all parameters and
queries. `--layers 8` shortens the model, for the rate of a geometry whose parameters do not fit.

`peak_bytes` is what the compiled step needs at once (arguments, results and temporaries);
`temporary_bytes` is the part that parameters and optimiser have no share in. Where the device
counts for itself, `device_peak_bytes` is its own maximum so far. `share_of_peak` is what the
products that the model needs would take at the rate of a large matrix product of the same run;
what is computed again in the backward pass does not count, nor does anything that is no product.
Bytes, `tflops` and `share_of_peak` are those of one device: of several, each has its part of the
products, held against the rate of a product on one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import runpy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.records import OUTPUT_HELP, Recorder, short
from benchmarks.timing import matrix_tflops
from msa_jax.config import REMAT, ModelConfig, from_mapping
from msa_jax.core.segments import QUERY, RESPONSE, TEMPLATE, TokenBlock, TrainingBatch
from msa_jax.modules.init import init_params
from msa_jax.modules.transformer import Transformer
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from msa_jax.sharding.rules import put_batch
from msa_jax.training.curriculum import StageConfig
from msa_jax.training.optimizer import OptimizerConfig
from msa_jax.training.step import StageProgram

CONFIGS = Path(__file__).parents[1] / "configs"
DOCUMENT_TOKENS = 256
WARM_UP_STEPS = 2
SMALL = ModelConfig(
    vocab_size=4096,
    num_layers=2,
    embed_dim=64,
    hidden_dim=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    dtype="float32",
)


def model_of(name: str) -> ModelConfig:
    """The model of `configs/<name>.py`, or `SMALL` for a CPU."""
    if name == "small":
        return SMALL
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
    return from_mapping(ModelConfig, config.model, "config.model")


def shortened(model: ModelConfig, num_layers: int) -> ModelConfig:
    """The same geometry with fewer layers, of which the upper half routes."""
    memory = dataclasses.replace(model.memory, router_layers=None)
    return dataclasses.replace(model, num_layers=num_layers, memory=memory)


def random_batch(
    model: ModelConfig,
    memory_tokens: int,
    row_tokens: int,
    queries: int,
    active_tokens: int,
    document_tokens: int = DOCUMENT_TOKENS,
) -> TrainingBatch:
    """One group: memory rows full of documents of one length, and its queries."""
    rng = np.random.default_rng(0)
    memory_shape = (1, memory_tokens // row_tokens, row_tokens)
    active_shape = (1, queries, active_tokens)
    head_len, half = model.memory.head_len, active_tokens // 2
    roles = np.full(active_shape, RESPONSE, np.int32)
    roles[..., :half] = QUERY
    roles[..., :head_len] = TEMPLATE
    positions = np.arange(active_tokens, dtype=np.int32)
    positions[head_len:] += model.memory.top_k_docs

    def tokens(shape: tuple[int, ...]) -> np.ndarray:
        return rng.integers(model.vocab_size, size=shape, dtype=np.int32)

    place = np.arange(memory_tokens, dtype=np.int32).reshape(memory_shape)
    # As in the data pipeline, there are columns for as many documents as could be.
    num_documents = memory_tokens // model.memory.pooling_kernel_size
    existing = memory_tokens // document_tokens
    return TrainingBatch(
        memory=TokenBlock(
            tokens(memory_shape), place // document_tokens + 1, place % document_tokens
        ),
        active=TokenBlock(tokens(active_shape), roles, np.broadcast_to(positions, active_shape)),
        targets=tokens(active_shape),
        target_mask=roles == RESPONSE,
        answer_mask=np.zeros(active_shape, bool),
        positives=np.arange(num_documents) == rng.integers(existing, size=(1, queries, 1)),
    )


def step_flops(
    model: ModelConfig,
    memory_tokens: int,
    batch: TrainingBatch,
    document_tokens: int = DOCUMENT_TOKENS,
) -> float:
    """Operations of the matrix products of a step on a full memory, forward and backward."""
    queries, active_tokens = batch.active.tokens.shape[1:]
    routed = len(model.router_layers)
    width, kv_width = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    weights = model.embed_dim * (2 * width + 2 * kv_width + 3 * model.hidden_dim)
    # Documents are not updated after the last layer, where only their keys and values are used.
    document_weights = (model.num_layers - 1) * weights + 2 * model.embed_dim * kv_width
    document_weights += routed * model.embed_dim * kv_width
    active_weights = model.num_layers * weights + routed * model.embed_dim * width
    active = queries * active_tokens
    products = memory_tokens * document_weights + active * active_weights
    products += int(batch.target_mask.sum()) * model.vocab_size * model.embed_dim
    # Scores and sums of causal attention take one product each, with half of the tokens.
    attention = (model.num_layers - 1) * memory_tokens * document_tokens
    attention += model.num_layers * active * active_tokens
    chunk_size = model.memory.pooling_kernel_size
    chosen = 2 * model.memory.top_k_docs * -(-document_tokens // chunk_size)
    products += width * (attention + routed * active * chosen)
    products += routed * active * memory_tokens // chunk_size * kv_width
    # Two operations for each multiplication; the backward pass has two products for each.
    return 2 * 3 * products


def measure(
    model: ModelConfig,
    memory_tokens: int,
    *,
    row_tokens: int = 512,
    queries: int = 8,
    active_tokens: int = 64,
    document_tokens: int = DOCUMENT_TOKENS,
    steps: int = 5,
    devices: int = 1,
    trace: str | None = None,
) -> dict[str, Any]:
    """Median seconds of a step after the warm-up, its bytes, and its rate; see the module.

    Args:
        devices: how many of them share the memory rows, which they divide.
        trace: a folder for a profile of two more steps.
    """
    stage = StageConfig(
        name="cost",
        steps=WARM_UP_STEPS + steps,
        learning_rate=1e-4,
        memory_tokens=memory_tokens,
        groups=1,
        queries_per_group=queries,
        active_tokens=active_tokens,
    )
    mesh = make_mesh(MeshConfig(memory=devices), jax.devices()[:devices])
    longest = -(-document_tokens // model.memory.pooling_kernel_size)
    program = StageProgram(Transformer(model), stage, OptimizerConfig(), mesh, longest)
    host_batch = random_batch(
        model, memory_tokens, row_tokens, queries, active_tokens, document_tokens
    )
    batch = put_batch(host_batch, mesh, 1)
    state = program.start(jax.jit(lambda key: init_params(model, key))(jax.random.key(0)))
    step = program.step.lower(state, batch).compile()
    seconds = []
    for _ in range(stage.steps):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        seconds.append(time.perf_counter() - start)
    if trace:
        with jax.profiler.trace(trace):
            for _ in range(2):
                state, _ = jax.block_until_ready(step(state, batch))
    median = statistics.median(seconds[WARM_UP_STEPS:])
    flops = step_flops(model, memory_tokens, host_batch, document_tokens) / devices
    result = {
        "memory_tokens": memory_tokens,
        "seconds_per_step": median,
        "tflops": 1e-12 * flops / median,
        **compiled_bytes(step),
    }
    counted = jax.devices()[0].memory_stats()
    if counted:
        result["device_peak_bytes"] = counted["peak_bytes_in_use"]
    return result


def compiled_bytes(step: jax.stages.Compiled) -> dict[str, int]:
    """What a compiled step needs at once, and its temporaries alone."""
    needs = step.memory_analysis()
    # The new state takes the place of the old one, its alias.
    results = needs.output_size_in_bytes - needs.alias_size_in_bytes
    peak = needs.argument_size_in_bytes + results + needs.temp_size_in_bytes
    return {"peak_bytes": peak, "temporary_bytes": needs.temp_size_in_bytes}


def measure_all(
    model: ModelConfig,
    memory_tokens: Sequence[int],
    peak: float,
    on_result: Callable[[dict[str, Any]], None] = lambda result: None,
    trace: str | None = None,
    **sizes: int,
) -> list[dict[str, Any]]:
    """Measures every size up to the first that does not fit.

    Args:
        peak: TFLOP/s that a device's share is of.
        on_result: called with what was measured of each.
        trace: a folder for a folder of each size.
        sizes: further arguments of `measure`.

    Returns:
        What was measured, smallest memory first.
    """
    results = []
    # In ascending order, since a device's own maximum is over all that ran before.
    for tokens in sorted(memory_tokens):
        try:
            result = measure(model, tokens, **sizes, trace=trace and f"{trace}/{tokens}")
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print(str(error).partition("\n")[0], file=sys.stderr)
            print(json.dumps({"memory_tokens": tokens, "error": "out of memory"}), flush=True)
            # A larger one would not fit either.
            return results
        results.append(result | {"share_of_peak": result["tflops"] / peak})
        on_result(results[-1])
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures every size that the command line names."""
    options = _parse(arguments)
    model = model_of(options.model)
    if options.layers:
        model = shortened(model, options.layers)
    chosen = {"remat": options.remat, "unroll_layers": options.unroll}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    model = dataclasses.replace(model, **chosen)
    names = ("row_tokens", "queries", "active_tokens", "document_tokens", "steps", "devices")
    sizes = {name: getattr(options, name) for name in names}
    peak = matrix_tflops(512 if jax.default_backend() == "cpu" else 8192)
    recorder = Recorder("benchmarks.training_cost", arguments, options.output)

    def show(result: dict[str, Any]) -> None:
        config = None if options.model == "small" else options.model
        result = {**sizes, "num_layers": model.num_layers, "remat": model.remat, **result}
        recorder.show(_name(options, model, result["memory_tokens"]), result, config)

    results = measure_all(model, options.memory_tokens, peak, show, options.trace, **sizes)
    ratios = {}
    if results:
        ratios = {name: round(results[-1][name] / results[0][name], 3) for name in results[0]}
    device = {"device": jax.devices()[0].device_kind, "devices": options.devices}
    print(json.dumps({"ratios": ratios, "matrix_tflops": peak, **device}))


def _name(options: argparse.Namespace, model: ModelConfig, memory_tokens: int) -> str:
    """Of a record."""
    asked = f"{options.queries}x{options.active_tokens}"
    way = "unrolled" if model.unroll_layers else "loop"
    parts = [f"training/{options.model}/{short(memory_tokens)}", asked, model.remat, way]
    return "/".join(parts + [f"{options.devices}-devices"] * (options.devices > 1))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="small", help="small, or the name of a file of configs/")
    parser.add_argument("--layers", type=int, help="the model with so many layers instead")
    parser.add_argument(
        "--memory-tokens", type=int, nargs="+", default=[8_192, 16_384, 32_768, 65_536]
    )
    parser.add_argument("--devices", type=int, default=1, help="devices that share the memory")
    parser.add_argument("--queries", type=int, default=8, help="queries of the memory")
    parser.add_argument("--row-tokens", type=int, default=512, help="tokens of a memory row")
    parser.add_argument("--active-tokens", type=int, default=64, help="tokens of a query")
    parser.add_argument(
        "--document-tokens", type=int, default=DOCUMENT_TOKENS, help="tokens of a document"
    )
    parser.add_argument("--remat", choices=REMAT, help="the model's own by default")
    parser.add_argument(
        "--unroll",
        action=argparse.BooleanOptionalAction,
        help="compile layers one after another, or as a loop; the model's own by default",
    )
    parser.add_argument("--steps", type=int, default=5, help="steps to take the median of")
    parser.add_argument("--output", help=OUTPUT_HELP)
    parser.add_argument("--trace", help="folder for a profile of each size")
    options = parser.parse_args(arguments)
    _check_sizes(parser, options)
    return options


def _check_sizes(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses memories that are not whole rows of whole documents, as many on every device."""
    row_tokens, document_tokens = options.row_tokens, options.document_tokens
    step = row_tokens * options.devices
    if row_tokens % document_tokens or any(size % step for size in options.memory_tokens):
        parser.error(
            f"--memory-tokens must be multiples of --row-tokens ({row_tokens}) times --devices "
            f"({options.devices}), and --row-tokens one of --document-tokens ({document_tokens})"
        )


if __name__ == "__main__":
    main()
