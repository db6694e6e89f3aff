from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_jax.core.losses import chunked_lm_loss, info_nce, listwise

TEMPERATURE = 0.1
# Two positives; one; none; one of two does not exist; the only positive does not exist; a
# positive without rivals.
SCORES = np.array(
    [
        [0.9, -0.2, 0.4, 0.1],
        [-1.0, 0.3, 0.2, 0.0],
        [0.5, 0.5, 0.5, 0.5],
        [0.1, -np.inf, 0.3, -np.inf],
        [0.1, 0.2, 0.3, -np.inf],
        [0.7, -np.inf, -np.inf, -np.inf],
    ],
    np.float32,
)
POSITIVES = np.array(
    [[1, 0, 1, 0], [1, 0, 0, 0], [0] * 4, [0, 1, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]], bool
)


def reference(scores, positives, decoupled):
    """The formula of the paper (eq. 6) for one query, in float64."""
    powers = np.exp(scores.astype(np.float64) / TEMPERATURE)
    positives = positives & np.isfinite(scores)
    negatives = powers[~positives].sum()
    terms = [
        -np.log(power / (power + negatives if decoupled else powers.sum()))
        for power in powers[positives]
    ]
    return np.mean(terms) if terms else 0.0


@pytest.mark.parametrize("decoupled", [True, False])
def test_info_nce_is_the_formula(decoupled):
    loss, counted = info_nce(SCORES, POSITIVES, TEMPERATURE, decoupled)
    expected = [reference(s, p, decoupled) for s, p in zip(SCORES, POSITIVES, strict=True)]
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(counted, [True, True, False, True, False, True])


def test_only_the_plain_form_makes_positives_compete():
    decoupled, plain = (info_nce(SCORES[0], POSITIVES[0], TEMPERATURE, d)[0] for d in (True, False))
    assert plain > decoupled + 1.0


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_info_nce_gradient(decoupled, dtype):
    """Finite everywhere, zero for absent documents, up for positives and down for negatives."""

    def loss(scores):
        return info_nce(scores, POSITIVES, TEMPERATURE, decoupled)[0].sum()

    gradient = np.asarray(jax.grad(loss)(jnp.asarray(SCORES, dtype)), np.float32)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[~np.isfinite(SCORES)], 0)
    np.testing.assert_array_equal(gradient[[2, 4]], 0)
    assert (gradient[1] * np.where(POSITIVES[1], -1, 1) > 0).all()


# Right first, right last, none, none of a list without documents.
LOGITS = np.array(
    [[1.5, -0.5, 0.2], [0.3, -np.inf, -1.0], [2.0, -np.inf, -3.0], [-np.inf] * 3], np.float32
)
TARGET = np.array([0, 2, 3, 3])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_listwise_is_a_softmax_with_an_option_of_logit_zero(dtype):
    logits = jnp.asarray(LOGITS, dtype)
    options = np.concatenate([np.asarray(logits, np.float64), np.zeros((4, 1))], axis=1)
    chances = np.exp(options) / np.exp(options).sum(axis=1, keepdims=True)
    expected = -np.log(chances[np.arange(4), TARGET])
    loss = listwise(logits, TARGET)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
    folded = listwise(logits.reshape(2, 2, 3), TARGET.reshape(2, 2))
    np.testing.assert_array_equal(folded.ravel(), loss)


def test_the_gradient_of_a_list_is_chance_minus_truth():
    gradient = np.asarray(jax.grad(lambda x: listwise(x, TARGET).sum())(jnp.asarray(LOGITS)))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[~np.isfinite(LOGITS)], 0)
    chances = np.exp(LOGITS) / (1 + np.exp(LOGITS).sum(axis=1, keepdims=True))
    truth = np.eye(4)[TARGET][:, :3]
    np.testing.assert_allclose(gradient, chances - truth, rtol=1e-5, atol=1e-6)


TOKENS, VOCAB = 7, 5
RNG = np.random.default_rng(0)
HIDDEN = RNG.standard_normal((TOKENS, 4)).astype(np.float32)
UNEMBEDDING = RNG.standard_normal((4, VOCAB)).astype(np.float32)


@jax.jit
@partial(jax.value_and_grad, argnums=(0, 1))
def dense_loss(hidden, unembedding, targets, mask):
    """Cross-entropy from all logits at once."""
    log_probs = jax.nn.log_softmax(hidden @ unembedding)
    picked = jnp.take_along_axis(log_probs, targets[:, None], axis=-1)[:, 0]
    return -jnp.where(mask, picked, 0.0).sum()


blockwise_loss = jax.jit(
    jax.value_and_grad(chunked_lm_loss, argnums=(0, 1), has_aux=True), static_argnums=4
)


@settings(max_examples=20, deadline=None)
@given(
    block_size=st.integers(1, TOKENS + 2),
    targets=st.lists(st.integers(0, VOCAB - 1), min_size=TOKENS, max_size=TOKENS),
    mask=st.lists(st.booleans(), min_size=TOKENS, max_size=TOKENS),
)
def test_blocks_of_any_size_give_the_dense_loss_and_gradients(block_size, targets, mask):
    targets, mask = np.array(targets), np.array(mask)
    (total, count), ours = blockwise_loss(HIDDEN, UNEMBEDDING, targets, mask, block_size)
    expected, dense = dense_loss(HIDDEN, UNEMBEDDING, targets, mask)
    assert count == mask.sum()
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    for gradient, expected in zip(ours, dense, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_leading_axes_are_flattened():
    targets, mask = np.arange(6) % VOCAB, np.array([1, 1, 0, 1, 0, 1], bool)
    flat = chunked_lm_loss(HIDDEN[:6], UNEMBEDDING, targets, mask, 4)
    folded = (HIDDEN[:6].reshape(2, 3, 4), UNEMBEDDING, targets.reshape(2, 3), mask.reshape(2, 3))
    np.testing.assert_allclose(chunked_lm_loss(*folded, 4), flat, rtol=1e-6)


def test_logits_are_float32_for_bfloat16_states():
    """Two near-equal logits of size 256 are told apart only in float32."""
    hidden = jnp.array([[256.0, 0.5]], jnp.bfloat16)
    unembedding = jnp.array([[1.0, 1.0], [0.0, 1.0]])
    total, _ = chunked_lm_loss(hidden, unembedding, jnp.array([1]), jnp.array([True]))
    np.testing.assert_allclose(total, np.log1p(np.exp(-0.5)), rtol=1e-3)
