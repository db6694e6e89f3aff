"""Products of float32 are what they say on every device, or nothing could be compared with them."""

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def exact_products():
    # By default GPUs and TPUs round the factors first.
    with jax.default_matmul_precision("highest"):
        yield
