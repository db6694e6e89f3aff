"""What of the GPU kernel can be seen without a GPU: its plan, and that it compiles up to CUDA."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import mosaic_gpu as plgpu

from msa_jax.kernels.routing import pallas_gpu, xla
from tests.kernels.backends import interpreted, require

CHUNKS = 1_562_504  # 100M tokens
BLOCK_BYTES = 227 * 1024


@settings(max_examples=300, deadline=None)
@given(
    batch=st.integers(1, 100),
    tokens=st.integers(1, 5000),
    groups=st.integers(1, 64),
    itemsize=st.sampled_from([1, 2]),
)
def test_a_plan_holds_all_tokens_and_fits_a_multiprocessor(batch, tokens, groups, itemsize):
    plan = pallas_gpu.make_plan(batch, tokens, 64 * groups, itemsize)
    assert plan.tile_tokens % 8 == 0 and plan.tile_tokens <= 256
    assert plan.query_tokens >= tokens and plan.query_tokens % 8 == 0
    assert plan.tile_queries == 1 or plan.tiles_per_query == 1
    # Filling up costs at most 8 tokens a tile and, with several queries in each, a query a tile.
    tiles = -(-batch // plan.tile_queries) * plan.tiles_per_query
    assert tiles * plan.tile_tokens < batch * tokens + tiles * (8 * plan.tile_queries + 8 + tokens)
    assert 64 * groups * itemsize % plan.step_bytes == 0
    assert plan.step_bytes % plan.swizzle_bytes == 0
    ring = plan.stages * (128 + plan.tile_tokens) * plan.step_bytes
    assert plan.stages >= 2 and ring + 4 * 128 * plan.tile_queries < BLOCK_BYTES


@pytest.mark.parametrize(("dims", "itemsize"), [(5, 2), (24, 2), (32, 1), (96, 1)])
def test_rows_that_no_tile_divides_are_refused(dims, itemsize):
    with pytest.raises(NotImplementedError, match=f"rows of {dims * itemsize} bytes"):
        pallas_gpu.make_plan(1, 8, dims, itemsize)


@pytest.mark.parametrize(
    ("batch", "tokens", "chunks", "dims", "dtype"),
    [
        (1, 64, CHUNKS, 1024, "bfloat16"),
        (1, 64, CHUNKS, 1024, "int8"),
        (1, 64, CHUNKS, 1024, "float8_e4m3fn"),
        (1, 8, CHUNKS, 192, "bfloat16"),
        (64, 64, CHUNKS, 1024, "bfloat16"),
        (1, 4096, CHUNKS, 1024, "bfloat16"),
        (3, 100, 1001, 80, "float16"),
    ],
)
def test_it_lowers_for_cuda(monkeypatch, batch, tokens, chunks, dims, dtype):
    """Everything up to the machine code, at real sizes: layouts, shared memory, copies."""
    monkeypatch.setattr(pallas_gpu, "_num_multiprocessors", lambda: 132)
    queries = jax.ShapeDtypeStruct((batch, tokens, dims), dtype)
    keys = jax.ShapeDtypeStruct((2, chunks, dims), dtype)
    traced = jax.jit(pallas_gpu.chunk_scores).trace(queries, keys, jnp.int32(1))
    assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_many_keys_of_an_odd_number_are_left_to_others(monkeypatch):
    """To pad them would copy a memory."""
    monkeypatch.setattr(pallas_gpu, "_num_multiprocessors", lambda: 132)
    queries, keys = (
        jnp.zeros((1, 8, 64), "bfloat16"),
        jax.ShapeDtypeStruct((CHUNKS + 1, 64), "bfloat16"),
    )
    with pytest.raises(NotImplementedError, match="no multiple of 8"):
        jax.eval_shape(pallas_gpu.chunk_scores, queries, keys)


def test_a_batch_of_memories():
    """Under `vmap` memories are searched one by one."""
    require("pallas_gpu", "bfloat16")
    rng = np.random.default_rng(0)
    queries = jnp.asarray(rng.integers(-2, 3, (3, 2, 5, 64)), "bfloat16")
    keys = jnp.asarray(rng.integers(-2, 3, (3, 140, 64)), "bfloat16")
    kernel = pallas_gpu.chunk_scores
    if interpreted("pallas_gpu"):
        kernel = partial(kernel, interpret=plgpu.InterpretGPUParams())
    np.testing.assert_array_equal(
        jax.vmap(kernel)(queries, keys), jax.vmap(xla.chunk_scores)(queries, keys)
    )
    which = jnp.array([2, 0, 1])
    found = jax.vmap(kernel, in_axes=(0, None, 0))(queries, keys, which)
    np.testing.assert_array_equal(found, jax.vmap(xla.chunk_scores)(queries, keys[which]))
