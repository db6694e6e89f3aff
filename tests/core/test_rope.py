import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.core.rope import apply_rope

THETA = 100.0


@pytest.fixture
def heads():
    return np.random.default_rng(0).standard_normal((2, 5, 3, 8)).astype(np.float32)


def test_position_zero_changes_nothing(heads):
    np.testing.assert_array_equal(apply_rope(heads, jnp.zeros((2, 5), int), THETA), heads)


def test_rotation_is_a_product_of_complex_numbers(heads):
    positions = np.array([[0, 1, 2, 3, 4], [7, 7, 0, 100, 3]])
    pairs = heads[..., :4].astype(complex) + 1j * heads[..., 4:]
    turned = pairs * np.exp(1j * positions[..., None, None] * THETA ** (-np.arange(4) / 4))
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(apply_rope(heads, positions, THETA), expected, atol=1e-4)


def test_products_depend_on_the_difference_of_positions_only(heads):
    def product(query_position, key_position):
        query, key = (
            apply_rope(heads[i, :1], jnp.array([position]), THETA)
            for i, position in enumerate((query_position, key_position))
        )
        return (query * key).sum(-1)

    np.testing.assert_allclose(product(9, 4), product(25, 20), rtol=1e-4, atol=1e-5)
    assert np.abs(product(9, 4) - product(9, 5)).max() > 0.1


def test_angles_are_float32_for_bfloat16_heads():
    """In bfloat16 the position 1,001 would be 1,000."""
    heads = jnp.ones((1, 1, 8), jnp.bfloat16)
    position = jnp.array([1001])
    rotated = apply_rope(heads, position, THETA)
    assert rotated.dtype == jnp.bfloat16
    exact = apply_rope(heads.astype(jnp.float32), position, THETA)
    np.testing.assert_allclose(rotated.astype(jnp.float32), exact, atol=0.01)


def test_lengths_are_kept(heads):
    rotated = jax.jit(apply_rope, static_argnums=2)(heads, jnp.full((2, 5), 12345), THETA)
    lengths = [np.linalg.norm(x, axis=-1) for x in (rotated, heads)]
    np.testing.assert_allclose(*lengths, rtol=1e-5)
