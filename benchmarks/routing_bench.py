"""What routing over a memory costs, beside what the device could do at best.

    python -m benchmarks.routing_bench            # a small grid, a minute on a CPU
    python -m benchmarks.routing_bench --full     # the measured table of docs/performance.md

Prints one record per case (`records`). A call gives scores and ids of the 16 best of documents of 4
chunks; keys are random, of unit length per head, and lie on the device. Its milliseconds are the
median over rounds of many enqueued calls, nothing subtracted, for all `layers` together. Beside
them:

reduction_ms    fastest plain reduction (maximum or sum, over any axis) of one layer's keys
times_reduction milliseconds of a layer over that; share_of_bandwidth is its inverse
matrix_tflops   a large bfloat16 product; share_of_matrix_peak is of that, whatever the dtype
xla_ms          the same call with implementation="xla"; same_ids_as_xla: share of equal ids
upstream_ms     the same from per-head scores, each operation by itself as in upstream's engine
                (`upstream_routing`); upstream_fused_ms: where XLA may fuse them;
                upstream_torch_ms: in PyTorch, where it is installed and sees the GPU
one_device_ms   for several devices: the same memory on one of them
temporary_bytes device memory beside arguments

What fails is named in the line, as `<what>_error`, and the rest goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.records import OUTPUT_HELP, Recorder
from benchmarks.routing_cases import (
    CHUNK_TOKENS,
    DOCUMENT_CHUNKS,
    TOP_K_DOCS,
    Case,
    documents_of_chunks,
    random_keys,
    random_memories,
    random_queries,
    sharded_memory,
)
from benchmarks.timing import matrix_tflops, median_ms, reduction_ms, temporary_bytes
from benchmarks.upstream_routing import route_per_head
from msa_jax.core.routing import normalize
from msa_jax.kernels import parallel
from msa_jax.kernels.routing import route

# Beyond so many tokens the per-head scores of upstream's way take more memory than its keys.
UPSTREAM_TOKENS = 256
KERNELS = {"gpu": "pallas_gpu", "tpu": "pallas_tpu"}
OPTIONS = {"top_k_docs": TOP_K_DOCS, "max_document_chunks": DOCUMENT_CHUNKS}
LARGE = 100_000_000
FULL = (
    Case(LARGE, 64),
    Case(LARGE, 64, dtype="int8"),
    Case(LARGE, 64, dtype="float8_e4m3fn"),
    Case(LARGE, 16),
    Case(LARGE, 8, num_kv_heads=3, head_dim=64),
    Case(LARGE, 64, batch=64),
    Case(LARGE, 4096),
    Case(1_000_000, 64),
    Case(10_000_000, 64),
    Case(LARGE, 64, layers=18, stacked=True),
    Case(LARGE, 64, layers=18),
    Case(LARGE, 64, layers=18, dtype="int8"),
    Case(LARGE, 64, layers=18, dtype="float8_e4m3fn"),
)
FULL_TWO_DEVICES = (
    Case(LARGE, 64, layers=18, stacked=True, devices=2),
    Case(LARGE, 64, layers=6, stacked=True, devices=2, dtype="int8"),
    Case(LARGE, 64, devices=2),
)


def measure(case: Case, matrix_size: int) -> dict[str, Any]:
    """Everything about one case that can be measured, as a line to print."""
    line: dict[str, Any] = dataclasses.asdict(case)
    with _errors_in(line, "case"):
        compare = _on_one_device if case.devices == 1 else _on_devices
        for facts in compare(case, line):
            line |= facts
        line |= _against_limits(case, line["ms"], line["reduction_ms"], _peak(matrix_size))
    return {name: _rounded(value) for name, value in line.items()}


def _on_one_device(case: Case, line: dict[str, Any]) -> Iterator[dict[str, Any]]:
    per_head, grouped = random_queries(case)
    mask, chunk_doc = jnp.ones(grouped.shape[1:3], bool), documents_of_chunks(case)
    if case.stacked:
        search, turns = _route_stacked, [random_keys(case, jax.random.key(1), case.layers)]
    else:
        # Layers are routed over in one call; copies of a layer are taken in turn by many calls.
        search, memories = _route_layers, random_memories(case)
        turns = [memories] if case.layers > 1 else [[memory] for memory in memories]
    arguments = [(grouped, mask, turn, chunk_doc) for turn in turns]
    found, costs = _cost(search, arguments)
    yield {"served_by": _served_by(search, arguments[0]), **costs}
    if case.stacked:
        yield {"reduction_ms": _reduction(case, lambda: [turns[0].values[0]])}
    else:
        keys = [turn[0].values for turn in turns]
        yield {"reduction_ms": _reduction(case, lambda: keys)}
    if case.layers > 1 or case.stacked:
        return
    with _errors_in(line, "xla"):
        same, costs = _cost(partial(_route_layers, implementation="xla"), arguments)
        yield {"xla_ms": costs["ms"], "same_ids_as_xla": float(np.mean(found == same))}
    if case.dtype == "bfloat16" and case.batch * case.query_tokens <= UPSTREAM_TOKENS:
        with _errors_in(line, "upstream"):
            options = {"num_documents": case.num_documents, "top_k_docs": TOP_K_DOCS}
            arguments = [(per_head[0], mask, key, chunk_doc) for key in keys]
            for name, fuse in (("upstream", False), ("upstream_fused", True)):
                upstream = jax.jit(partial(route_per_head, **options, fuse=fuse))
                ms = median_ms(upstream, arguments)
                yield {f"{name}_ms": ms, f"times_faster_than_{name}": ms / line["ms"]}
        with _errors_in(line, "upstream_torch"):
            if _has_torch_on_gpu():
                ms = _upstream_torch_ms(case, per_head[0], mask, keys[0], chunk_doc)
                yield {"upstream_torch_ms": ms, "times_faster_than_upstream_torch": ms / line["ms"]}


def _has_torch_on_gpu() -> bool:
    return jax.default_backend() == "gpu" and importlib.util.find_spec("torch") is not None


def _upstream_torch_ms(case: Case, queries, mask, keys, chunk_doc) -> float:
    from benchmarks.upstream_torch import TorchRouter  # PyTorch is no requirement of ours.

    router = TorchRouter(keys, case.num_kv_heads, chunk_doc, case.num_documents)
    return router.median_ms(normalize(queries).astype(keys.dtype), mask, TOP_K_DOCS)


def _route_layers(queries, mask, memories, chunk_doc, implementation=None):
    """The best documents of each layer, whose keys are arrays apart."""
    return [
        route(layer, mask, keys, chunk_doc, **OPTIONS, implementation=implementation)
        for layer, keys in zip(queries, memories, strict=True)
    ]


def _route_stacked(queries, mask, memories, chunk_doc, implementation=None):
    """The best documents of each layer, in a loop over stacked keys."""

    def search(layer):
        queries, memory = layer
        options = {**OPTIONS, "memory": memory, "implementation": implementation}
        return route(queries, mask, memories, chunk_doc, **options)

    return jax.lax.map(search, (queries, jnp.arange(queries.shape[0])))


def _served_by(search, arguments: tuple) -> str:
    kernel = KERNELS.get(jax.default_backend())
    if kernel is not None:
        with contextlib.suppress(NotImplementedError):
            jax.eval_shape(partial(search, implementation=kernel), *arguments)
            return kernel
    return "xla"


def _on_devices(case: Case, line: dict[str, Any]) -> Iterator[dict[str, Any]]:
    _, grouped = random_queries(case)
    mask = jnp.ones((1, *grouped.shape[1:3]), bool)
    mesh, keys, index = sharded_memory(case)
    with jax.set_mesh(mesh):
        found, costs = _cost(_route_sharded, [(grouped, mask, keys, index)])
        yield costs
    # Each device reads its own part of the keys.
    yield {"reduction_ms": _reduction(case, lambda: [keys.values.addressable_data(0)[0, 0]])}
    one = jax.devices()[0]
    arguments = jax.device_put((grouped, mask, keys, index), one)
    same, costs = _cost(_route_sharded, [arguments])
    yield {
        "one_device_ms": costs["ms"],
        "times_faster_than_one_device": costs["ms"] / line["ms"],
        "same_ids_as_one_device": float(np.mean(found == same)),
    }


def _route_sharded(queries, mask, keys, index):
    """The best documents of each layer of a memory on a mesh, as models search it."""

    def search(layer):
        queries, number = layer
        return parallel.route(queries[None], mask, keys, index, TOP_K_DOCS, number)

    return jax.lax.map(search, (queries, jnp.arange(queries.shape[0])))


def _cost(fn, arguments: Sequence[tuple]) -> tuple[np.ndarray, dict[str, float]]:
    """Ids that a call finds, and what it costs."""
    compiled = jax.jit(fn).lower(*arguments[0]).compile()
    costs = {
        "ms": median_ms(compiled, arguments),
        "temporary_bytes": temporary_bytes(compiled),
    }
    *_, last = jax.tree.leaves(compiled(*arguments[0]))
    return np.asarray(last), costs


_REDUCTIONS: dict[tuple, float] = {}


def _reduction(case: Case, keys: Callable[[], Sequence[jax.Array]]) -> float:
    """`reduction_ms`, measured once for keys of one size and type."""
    about = (case.num_chunks, case.devices, case.key_size, case.dtype)
    if about not in _REDUCTIONS:
        _REDUCTIONS[about] = reduction_ms(keys())
    return _REDUCTIONS[about]


@cache
def _peak(matrix_size: int) -> float:
    return matrix_tflops(matrix_size)


def _against_limits(case: Case, ms: float, reduction: float, peak: float) -> dict[str, float]:
    layer_ms, parts = ms / case.layers, case.devices
    tflops = case.flops / layer_ms / 1e9 / parts
    return {
        "ms_per_layer": layer_ms,
        "key_bytes": case.key_bytes,
        "gb_per_s": case.key_bytes / layer_ms / 1e6 / parts,
        "reduction_gb_per_s": case.key_bytes / reduction / 1e6 / parts,
        "times_reduction": layer_ms / reduction,
        "share_of_bandwidth": reduction / layer_ms,
        "tflops": tflops,
        "matrix_tflops": peak,
        "share_of_matrix_peak": tflops / peak,
    }


@contextlib.contextmanager
def _errors_in(line: dict[str, Any], what: str) -> Iterator[None]:
    """A failure within becomes a field of the line."""
    try:
        yield
    except Exception as error:  # Whatever it was, other cases can still be measured.
        message = str(error).strip().partition("\n")[0]
        line[f"{what}_error"] = f"{type(error).__name__}: {message[:300]}"


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the cases that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="the table of docs/performance.md")
    parser.add_argument("--memory-tokens", type=int, nargs="+", default=[262_144])
    parser.add_argument("--query-tokens", type=int, nargs="+", default=[64])
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="queries at once")
    parser.add_argument(
        "--dtype", nargs="+", default=["bfloat16", "int8", "float8_e4m3fn"], help="of the keys"
    )
    parser.add_argument("--kv-heads", type=int, nargs="+", default=[8])
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--layers", type=int, nargs="+", default=[1])
    parser.add_argument("--stacked", action="store_true", help="layers are one array")
    parser.add_argument("--devices", type=int, nargs="+", default=[1])
    parser.add_argument("--output", help=OUTPUT_HELP)
    parser.add_argument("--matrix-size", type=int, help="of the product that measures the peak")
    options = parser.parse_args(arguments)
    if min(options.memory_tokens) < CHUNK_TOKENS:
        parser.error(f"--memory-tokens must be at least {CHUNK_TOKENS}, one chunk")
    # 18 layers of keys are more than the share of a GPU that JAX takes by itself. The rest is for
    # PyTorch.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.88")
    matrix_size = options.matrix_size or (1024 if jax.default_backend() == "cpu" else 8192)
    recorder = Recorder("benchmarks.routing_bench", arguments, options.output)
    for case in _cases(options):
        recorder.show(f"routing/{case.name}", measure(case, matrix_size))


def _cases(options: argparse.Namespace) -> list[Case]:
    if options.full:
        return [*FULL, *(FULL_TWO_DEVICES if len(jax.devices()) > 1 else ())]
    grid = itertools.product(
        options.memory_tokens,
        options.query_tokens,
        options.batch,
        options.dtype,
        options.kv_heads,
        [options.head_dim],
        options.layers,
        [options.stacked],
        options.devices,
    )
    return list(itertools.starmap(Case, grid))


if __name__ == "__main__":
    main()
