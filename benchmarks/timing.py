"""Clocks: how long a call takes, and the limits of the device that it can be held against."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from msa_jax.typing import Array

# Several times the last-level cache of any accelerator: what is read once in so many bytes
# comes from device memory.
BEYOND_CACHES = 256 << 20
_ROUNDS, _ROUND_SECONDS, _MAX_CALLS = 5, 0.1, 200


def median_ms(call: Callable[..., Any], arguments: Sequence[tuple]) -> float:
    """Milliseconds per call, the median over rounds of many calls enqueued at once.

    Nothing is subtracted: what the host takes to enqueue is in it wherever it shows.

    Args:
        call: compiled before, or at its first call.
        arguments: sets of arguments to take in turn.
    """
    jax.block_until_ready([call(*x) for x in arguments])
    start = time.perf_counter()
    jax.block_until_ready(call(*arguments[0]))
    calls = round(_ROUND_SECONDS / (time.perf_counter() - start))
    calls = min(max(calls, 1), _MAX_CALLS)
    in_turn = itertools.cycle(arguments)
    rounds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready([call(*next(in_turn)) for _ in range(calls)])
        rounds.append((time.perf_counter() - start) / calls)
    return 1e3 * statistics.median(rounds)


def reduction_ms(arrays: Sequence[Array]) -> float:
    """Milliseconds of the fastest plain reduction of one of equal arrays.

    Each result depends on every element, so none of them can read less than the array.
    """
    wide = jnp.int32 if jnp.issubdtype(arrays[0].dtype, jnp.integer) else jnp.float32
    reductions = [
        reduce
        for axis in (None, 0, 1)
        for reduce in (
            lambda x, axis=axis: jnp.max(x, axis=axis),
            lambda x, axis=axis: jnp.sum(x, axis=axis, dtype=wide),
        )
    ]
    arguments = [(array,) for array in arrays]
    return min(median_ms(jax.jit(reduce), arguments) for reduce in reductions)


def matrix_tflops(size: int) -> float:
    """TFLOP/s of a square bfloat16 product, accumulated in float32."""
    left, right = (
        jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2)
    )
    return 2e-9 * size**3 / median_ms(jax.jit(jnp.dot), [(left, right)])


def temporary_bytes(compiled: jax.stages.Compiled) -> int:
    """Device memory that a compiled call needs beside its arguments."""
    needs = compiled.memory_analysis()
    return needs.temp_size_in_bytes + needs.output_size_in_bytes
