"""8-bit keys stand for the keys they were made of, within what 8 bits can say."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_jax.kernels.routing import quantize_keys
from msa_jax.kernels.routing.keys import quantize_queries


@st.composite
def random_keys(draw):
    """Rows of very different size, some all zero."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = 10.0 ** rng.integers(-12, 12, (6, 1))
    return jnp.asarray(
        rng.standard_normal((6, 33)) * size * (rng.random((6, 1)) < 0.8), jnp.float32
    )


@settings(max_examples=50, deadline=None)
@given(random_keys())
def test_int8_is_within_half_a_step_of_the_key(keys):
    coded = quantize_keys(keys, "int8")
    assert (coded.values.dtype, coded.values.shape, coded.scale.shape) == ("int8", (6, 33), (6,))
    back = coded.values * coded.scale[:, None]
    assert (np.abs(back - keys) <= 0.5001 * coded.scale[:, None]).all()
    assert coded.exact is keys


@settings(max_examples=50, deadline=None)
@given(random_keys())
def test_fp8_is_within_a_sixteenth_of_the_key(keys):
    coded = quantize_keys(keys, "float8_e4m3fn", keep_exact=False)
    values = coded.values.astype(jnp.float32)
    assert np.isfinite(values).all() and coded.exact is None
    # 3 bits after the point; below 2^-6 steps no longer shrink.
    step = np.maximum(np.abs(keys) / 16, 2.0**-10 * coded.scale[:, None])
    assert (np.abs(values * coded.scale[:, None] - keys) <= 1.0001 * step).all()


@pytest.mark.parametrize(("dtype", "largest"), [("int8", 127), ("float8_e4m3fn", 448)])
def test_the_largest_component_gets_the_largest_number(dtype, largest):
    keys = jnp.array([[0.1, -0.3, 0.2], [7.0, 1.0, 3.0], [0.0, 0.0, 0.0]])
    coded = quantize_keys(keys, dtype)
    values = np.asarray(coded.values, np.float32)
    np.testing.assert_array_equal(np.abs(values).max(axis=1), [largest, largest, 0])
    assert (coded.scale > 0).all()


def test_layers_are_quantised_together_as_apart():
    keys = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 8)), jnp.bfloat16)
    together = quantize_keys(keys, "int8")
    apart = quantize_keys(keys[1], "int8")
    np.testing.assert_array_equal(together.values[1], apart.values)
    np.testing.assert_array_equal(together.scale[1], apart.scale)


def test_all_tokens_of_a_query_share_a_scale():
    """So the order of its tokens' products stays what it is."""
    queries = jnp.array([[[1.0, 0.5], [254.0, 0.0]], [[1.0, 0.5], [0.0, 127.0]]])
    values, scale = quantize_queries(queries, "int8")
    np.testing.assert_array_equal(scale, [2, 1])
    np.testing.assert_array_equal(values, [[[0, 0], [127, 0]], [[1, 0], [0, 127]]])


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="dtype must be one of .*float8_e4m3fn.*int8.* not 'int4'"):
        quantize_keys(jnp.ones((2, 2)), "int4")
