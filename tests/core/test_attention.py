import jax
import jax.numpy as jnp
import numpy as np

from msa_jax.core import attention
from msa_jax.core.attention import masked_attention, sparse_attention


def draw(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def reference(queries, keys, values, mask):
    """Softmax attention by the formula, one head and one token at a time."""
    out = np.zeros(queries.shape)
    group_size = queries.shape[1] // keys.shape[1]
    for t, n in np.ndindex(queries.shape[:2]):
        seen = np.flatnonzero(mask[t])
        logits = keys[seen, n // group_size] @ queries[t, n] / np.sqrt(queries.shape[-1])
        weights = np.exp(logits - logits.max())
        out[t, n] = weights / weights.sum() @ values[seen, n // group_size]
    return out


def test_heads_of_a_group_share_keys_and_masked_keys_do_not_count():
    queries, keys, values = draw((3, 4, 8), (5, 2, 8), (5, 2, 8))
    mask = np.array([[1, 0, 0, 0, 1], [1, 1, 0, 0, 0], [0, 1, 1, 1, 1]], bool)
    out = masked_attention(*(jnp.asarray(x)[None, None] for x in (queries, keys, values, mask)))
    assert out.shape == (1, 1, 3, 4, 8)
    np.testing.assert_allclose(out[0, 0], reference(queries, keys, values, mask), atol=1e-5)


def test_chunks_and_local_tokens_share_one_softmax():
    queries, keys, values = draw((1, 2, 2, 8), (1, 7, 1, 8), (1, 7, 1, 8))
    mask = np.array([[1, 0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 0]], bool)
    out = sparse_attention(
        queries,
        (keys[:, :3], values[:, :3]),
        mask[None, :, :3],
        (keys[:, 3:], values[:, 3:]),
        mask[None, :, 3:],
    )
    np.testing.assert_allclose(out[0], reference(queries[0], keys[0], values[0], mask), atol=1e-5)


def test_a_token_that_sees_nothing_has_finite_output_and_gradient():
    heads = draw((1, 2, 2, 4), (1, 3, 1, 4), (1, 3, 1, 4))
    mask = jnp.array([[[True, False, True], [False] * 3]])
    out, gradients = jax.value_and_grad(lambda heads: masked_attention(*heads, mask).sum())(heads)
    assert np.isfinite(out)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_long_sequences_are_attended_to_block_by_block(monkeypatch):
    rng = np.random.default_rng(3)
    queries, keys, values = (
        jnp.asarray(rng.standard_normal((2, 12, heads, 8)), jnp.float32) for heads in (4, 2, 2)
    )
    mask = jnp.asarray(rng.random((2, 12, 12)) < 0.7)

    def call():
        def total(queries, keys):
            out = masked_attention(queries, keys, values, mask)
            return (out**2).sum(), out

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(queries, keys)

    whole = call()
    monkeypatch.setattr(attention, "_MAX_SCORES", 12 * 12 - 1)
    monkeypatch.setattr(attention, "_QUERY_BLOCK", 4)
    assert "scan" in str(jax.make_jaxpr(masked_attention)(queries, keys, values, mask))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), call(), whole)


def test_shares_of_documents_are_those_of_a_softmax_over_their_chunks():
    keys = jax.random.split(jax.random.key(0), 3)
    queries = jax.random.normal(keys[0], (2, 4, 8))
    pooled = jax.random.normal(keys[1], (2, 6, 2, 8))
    mask = jnp.array([[1, 1, 0, 1, 0, 1], [0] * 6], bool)
    shares = attention.document_attention(queries, pooled, mask, 3)
    expected = np.zeros(3)
    for head in range(4):
        scores = np.asarray(pooled[0, :, head // 2]) @ np.asarray(queries[0, head]) / np.sqrt(8)
        weights = np.where(mask[0], np.exp(scores), 0)
        expected += (weights / weights.sum()).reshape(3, 2).sum(axis=-1) / 4
    np.testing.assert_allclose(shares[0], expected, rtol=1e-5)
    assert (shares[1] == 0).all()
