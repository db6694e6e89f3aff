"""The TPU kernel: its numbers on a simulated TPU, and what a TPU's compiler makes of it."""

import importlib.machinery
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from msa_jax.kernels.routing import pallas_tpu

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="what simulates a TPU, or compiles for it, is a CPU"
)

DTYPES = ("bfloat16", "float32", "int8", "float8_e4m3fn")


@pytest.fixture(scope="module", autouse=True)
def small_tiles():
    """Tiles so small that tiny arrays need several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pallas_tpu, "_KEY_TILE_BYTES", 1 << 17)
        patch.setattr(pallas_tpu, "_QUERY_TILE_ROWS", 96)
        patch.setattr(pallas_tpu, "_TILE_PRODUCTS", 1 << 14)
        yield


def simulated(*args):
    # What a transfer leaves unwritten is NaN there.
    return np.asarray(pallas_tpu.chunk_scores(*args, interpret=pltpu.InterpretParams()))


def random(seed, shape, dtype):
    numbers = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(np.round(numbers * 40) if dtype == "int8" else numbers).astype(dtype)


def expected(queries, keys):
    products = np.einsum("btd,cd->btc", np.asarray(queries, float), np.asarray(keys, float))
    return products.max(axis=1)


@given(
    dtype=st.sampled_from(DTYPES),
    batch=st.integers(1, 9),
    num_tokens=st.integers(1, 40),
    num_chunks=st.integers(1, 300),
    size=st.sampled_from([8, 72, 128, 256]),
)
# Every way to fill registers; several tiles of tokens, of queries and of chunks; padding beside
# scores that are negative.
@example(dtype="bfloat16", batch=1, num_tokens=150, num_chunks=257, size=128)
@example(dtype="int8", batch=2, num_tokens=70, num_chunks=5, size=72)
@example(dtype="float8_e4m3fn", batch=8, num_tokens=40, num_chunks=130, size=128)
@example(dtype="bfloat16", batch=3, num_tokens=3, num_chunks=130, size=8)
@example(dtype="float32", batch=110, num_tokens=3, num_chunks=130, size=256)
@settings(max_examples=5, deadline=None, derandomize=True)
def test_scores_of_ragged_shapes(dtype, batch, num_tokens, num_chunks, size):
    queries = random(0, (batch, num_tokens, size), dtype)
    keys = random(1, (num_chunks, size), dtype)
    scores = simulated(queries, keys)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected(queries, keys), rtol=1e-6, atol=3e-5)


@pytest.mark.parametrize("size", [128, 24])
def test_scores_of_one_of_several_memories(size):
    queries, keys = random(0, (2, 5, size), "bfloat16"), random(1, (3, 136, size), "bfloat16")
    for memory in range(3):
        scores = simulated(queries, keys, jnp.int32(memory))
        np.testing.assert_allclose(scores, expected(queries, keys[memory]), rtol=1e-6, atol=1e-5)


def test_negative_zeros_become_zeros_and_nothing_else_changes():
    def kernel(x_ref, y_ref):
        y_ref[...] = pallas_tpu._without_negative_zeros(x_ref[...])

    bits = np.random.default_rng(0).integers(0, 256, (32, 128)).astype(np.uint8)
    bits[::2, ::3] = 0x80
    x = jax.lax.bitcast_convert_type(bits, jnp.float8_e4m3fn)
    run = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        interpret=pltpu.InterpretParams(),
    )
    changed = np.asarray(jax.lax.bitcast_convert_type(run(x), jnp.uint8))
    np.testing.assert_array_equal(changed, np.where(bits == 0x80, 0, bits))


@pytest.mark.parametrize(
    "queries, keys, memory",
    [
        (((1, 8, 128), "float16"), ((256, 128), "float16"), None),
        (((1, 8, 128), "bfloat16"), ((256, 128), "int8"), None),
        (((1, 8, 1 << 14), "float32"), ((256, 1 << 14), "float32"), None),
        (((1, 8, 6), "float8_e4m3fn"), ((256, 6), "float8_e4m3fn"), None),
        (((1, 8, 128), "bfloat16"), ((2, 250, 128), "bfloat16"), 0),
    ],
)
def test_other_calls_are_left_to_another_backend(queries, keys, memory):
    with pytest.raises(NotImplementedError, match="pallas_tpu"):
        jax.eval_shape(
            pallas_tpu.chunk_scores,
            jax.ShapeDtypeStruct(*queries),
            jax.ShapeDtypeStruct(*keys),
            memory,
        )


# The rest asks the compiler of each chip about memories of 100 million tokens.
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "TPU7x": "tpu7x:2x2x1"}
CHUNKS = 1_562_500


def case(program, batch, tokens, size, dtype, chunks=CHUNKS, stack=0):
    return dict(
        program=program,
        batch=batch,
        tokens=tokens,
        size=size,
        dtype=dtype,
        chunks=chunks,
        stack=stack,
    )


def key_bytes(case):
    return max(case["stack"], 1) * case["chunks"] * case["size"] * jnp.dtype(case["dtype"]).itemsize


def find_libtpu() -> Path:
    """Where `make test` puts it, or among the packages."""
    path = [str(Path(sys.prefix, "libtpu")), *sys.path]
    found = importlib.machinery.PathFinder.find_spec("libtpu", path)
    if found is None:
        pytest.skip("libtpu, the TPU compiler, is not installed")
    return Path(found.origin).with_name("libtpu.so")


def compile_for(chip, cases):
    """Bytes of temporary memory and of arguments for each case."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "TPU_LIBRARY_PATH": str(find_libtpu()),
        # Nothing is run, so several processes may.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        # Without these it asks the network which machine this is, and complains.
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_LOG_DIR": "disabled",
    }
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.tpu_compiler", TOPOLOGIES[chip]],
        input="\n".join(map(json.dumps, cases)),
        env=inherited | environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("[")]


def check(chip, cases, temporary_bytes):
    for case, (temporary, arguments) in zip(cases, compile_for(chip, cases), strict=True):
        assert temporary < temporary_bytes, case
        # Not padded either: a pass over the keys reads this.
        assert arguments > 0.99 * key_bytes(case) / (4 if case["program"] == "sharded" else 1)
        if case["program"] == "chunk_scores":
            assert arguments < 1.01 * key_bytes(case) + (16 << 20), case


@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_compiles_without_a_copy_of_the_keys(chip):
    cases = [
        case("chunk_scores", 1, 64, 1024, "bfloat16"),
        case("chunk_scores", 1, 8, 192, "int8"),
        case("chunk_scores", 1, 64, 1024, "float8_e4m3fn", chunks=390_656, stack=4),
    ]
    check(chip, cases, temporary_bytes=4 << 20)


@pytest.mark.slow
@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_compiles_for_all_types_and_shapes(chip):
    cases = [
        case("chunk_scores", batch, tokens, size, dtype)
        for dtype in DTYPES
        for batch, tokens, size in [(1, 64, 1024), (1, 4096, 1024), (8, 512, 1024), (1, 8, 192)]
    ]
    # The most is queries put in order.
    check(chip, cases, temporary_bytes=40 << 20)


@pytest.mark.slow
@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_routing_as_a_whole_compiles_without_a_copy_of_the_keys(chip):
    cases = [
        case("route", 1, 64, 1024, "bfloat16"),
        case("route", 1, 64, 1024, "int8"),
        case("sharded", 1, 64, 192, "bfloat16"),
    ]
    check(chip, cases, temporary_bytes=64 << 20)
