import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.core.pooling import masked_chunk_mean


def test_each_chunk_averages_its_valid_tokens():
    """A full chunk, a partial one, an empty one; padding holds values that must not count."""
    x = np.random.default_rng(0).standard_normal((2, 12, 2, 3)).astype(np.float32)
    valid = np.array([[1] * 6 + [0] * 6, [0, 1, 1, 0] + [0] * 4 + [1] * 4], bool)
    pooled = masked_chunk_mean(x, valid, 4)
    assert pooled.shape == (2, 3, 2, 3)
    expected = np.zeros((2, 3, 2, 3))
    for row in range(2):
        for chunk in range(3):
            tokens = [s for s in range(4 * chunk, 4 * chunk + 4) if valid[row, s]]
            if tokens:
                expected[row, chunk] = x[row, tokens].mean(axis=0)
    np.testing.assert_allclose(pooled, expected, atol=1e-6)


def test_bfloat16_is_summed_in_float32():
    """In bfloat16 a sum of ones stays at 256."""
    x = jnp.ones((1024, 1, 1), jnp.bfloat16).at[0].set(1025.0)
    pooled = jax.jit(masked_chunk_mean, static_argnums=2)(x, jnp.ones(1024, bool), 1024)
    assert pooled.dtype == jnp.float32
    first = float(x[0, 0, 0])
    np.testing.assert_allclose(pooled[0, 0, 0], (first + 1023) / 1024, rtol=1e-6)


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"rows of 10 tokens .* chunks of 4; .*row_tokens"):
        masked_chunk_mean(jnp.ones((10, 1, 1)), jnp.ones(10, bool), 4)
