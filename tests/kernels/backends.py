"""Which backends can run here, and on what: Pallas kernels also in interpret mode."""

import contextlib
from collections.abc import Iterator
from functools import cache, partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, settings
from jax.experimental.pallas import mosaic_gpu as plgpu

from msa_jax.kernels.routing import api, pallas_gpu

IMPLEMENTATIONS = ("xla", "pallas_gpu", "pallas_tpu")
DTYPES = ("float32", "bfloat16", "int8", "float8_e4m3fn")


def interpreted(implementation: str) -> bool:
    return implementation == "pallas_gpu" and jax.default_backend() != "gpu"


def examples(implementation: str, count: int) -> settings:
    """The interpreter takes seconds for what a compiled kernel takes microseconds for."""
    count = max(count // 8, 2) if interpreted(implementation) else count
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, suppress_health_check=checks)


def on_cpu(tree: Any) -> Any:
    """Arrays where the reference computes: in float32 as it is, and quickly compiled."""
    return jax.device_put(tree, jax.devices("cpu")[0])


@contextlib.contextmanager
def running(implementation: str) -> Iterator[None]:
    """Within it, `implementation` runs on this machine's accelerator or is interpreted."""
    if not interpreted(implementation):
        yield
        return
    kernel = partial(pallas_gpu.chunk_scores, interpret=plgpu.InterpretGPUParams())
    with mock.patch.dict(api._BACKENDS, {implementation: kernel}):
        yield


def require(implementation: str, dtype: str) -> None:
    """Skips the test if the backend refuses this machine or this type."""
    refusal = _refusal(implementation, dtype)
    if refusal is not None:
        pytest.skip(f"{implementation} does not serve {dtype} here: {refusal}")


@cache
def _refusal(implementation: str, dtype: str) -> str | None:
    if implementation == "pallas_tpu" and jax.default_backend() != "tpu":
        return "no TPU; test_pallas_tpu.py compiles and interprets it"
    if interpreted(implementation) and not hasattr(plgpu, "InterpretGPUParams"):
        return "no GPU, and this JAX cannot interpret its kernels"
    queries, keys = jnp.ones((1, 8, 64), dtype), jnp.ones((128, 64), dtype)
    try:
        with running(implementation):
            mask = jnp.ones((1, 8), bool)
            jax.block_until_ready(api.chunk_scores(queries, mask, keys, implementation))
    except NotImplementedError as error:
        return str(error)
    return None
