"""Who can influence whom: gradients that are exactly zero, and others that are not.

Every token of the example has a vocabulary id of its own, so that the gradient with respect to
a row of the (untied) embedding table is the gradient with respect to one token.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from msa_jax.core.losses import chunked_lm_loss, info_nce
from msa_jax.core.segments import PADDING, QUERY, TEMPLATE
from msa_jax.modules.transformer import Transformer
from tests.modules.tiny import model_config, random_params, rows_of, sequences_of

GROUPS, NUM_DOCUMENTS, TOP_K = 2, 6, 2
# Documents end in full and in partial chunks; the second sequence ends in padding.
LENGTHS = [5, 4, 3, 7, 6, 2]
LAYOUT = [[0, 1], [2, 3], [4, 5]]
CONFIG = model_config(vocab_size=128, tie_embeddings=False, remat="nothing")


def make_example():
    """Two groups of six documents and two sequences; only padding shares a token."""
    fresh = iter(range(2, 128))
    memories, actives = [], []
    for _ in range(GROUPS):
        documents = [np.array([next(fresh) for _ in range(length)]) for length in LENGTHS]
        queries = [(np.array([next(fresh) for _ in range(n)]), n - 6) for n in (9, 8)]
        memories.append(rows_of(documents, LAYOUT, row_tokens=12))
        actives.append(sequences_of(queries, 9, TOP_K))
    return [jax.tree.map(lambda *x: jnp.concatenate(x), *blocks) for blocks in (memories, actives)]


MEMORY, ACTIVE = make_example()


class Tokens:
    """Where each token of the example is, one entry per vocabulary id."""

    def __init__(self):
        self.group, self.document, self.sequence, self.offset = np.full((4, 128), -1)
        for g, r, s in np.argwhere(MEMORY.doc_ids != PADDING):
            token = MEMORY.tokens[g, r, s]
            self.group[token], self.document[token] = g, MEMORY.doc_ids[g, r, s] - 1
            self.offset[token] = MEMORY.segment_pos[g, r, s]
        for g, b, t in np.argwhere(ACTIVE.doc_ids != PADDING):
            token = ACTIVE.tokens[g, b, t]
            self.group[token], self.sequence[token], self.offset[token] = g, b, t


TOKENS = Tokens()


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


@pytest.fixture(scope="module")
def influence(params):
    """Whether each output depends on each token: boolean arrays `[*output axes, V]`."""
    model = Transformer(CONFIG)
    projection = jax.random.normal(jax.random.key(1), (CONFIG.embed_dim,))

    def outputs(table):
        changed = params | {"embedder": {"embedding": table}}
        out = model.apply({"params": changed}, MEMORY, ACTIVE, NUM_DOCUMENTS, True)
        memory, active = (x @ projection for x in out.hidden_states)
        # The inputs of layer 1 are what the lower layer, which has no router, made.
        return {
            "documents": memory[-1],
            "lower": active[1],
            "active": active[-1],
            "scores": out.doc_scores,
        }

    @jax.jit
    def depends(table):
        values, pull_back = jax.vjp(outputs, table)
        flat, unflatten = ravel_pytree(values)
        # One output after the other: nothing is batched that the model does not batch.
        rows = jax.lax.map(lambda one: pull_back(unflatten(one))[0].any(-1), jnp.eye(flat.size))
        return jax.vmap(unflatten, out_axes=-1)(rows.T.astype(jnp.float32))

    return {
        name: np.asarray(x, bool) for name, x in depends(params["embedder"]["embedding"]).items()
    }


@pytest.fixture(scope="module")
def chosen(params):
    """Documents that each query chose in each router layer: bool `[L_routed, G, B, M]`."""
    apply = jax.jit(Transformer(CONFIG).apply, static_argnums=3)
    scores = apply({"params": params}, MEMORY, ACTIVE, NUM_DOCUMENTS).doc_scores
    ranks = np.argsort(np.argsort(-np.asarray(scores), axis=-1), axis=-1)
    return ranks < TOP_K


def test_a_document_token_depends_on_earlier_tokens_of_its_document_alone(influence):
    for g, r, s in np.argwhere(MEMORY.doc_ids != PADDING):
        own = (TOKENS.group == g) & (TOKENS.document == MEMORY.doc_ids[g, r, s] - 1)
        allowed = own & (TOKENS.offset <= MEMORY.segment_pos[g, r, s])
        np.testing.assert_array_equal(influence["documents"][g, r, s], allowed)


def earlier(g, b, t):
    return (TOKENS.group == g) & (TOKENS.sequence == b) & (TOKENS.offset <= t)


def test_below_the_routers_a_sequence_depends_on_its_own_past_alone(influence):
    for g, b, t in np.argwhere(ACTIVE.doc_ids != PADDING):
        np.testing.assert_array_equal(influence["lower"][g, b, t], earlier(g, b, t))


def test_the_template_head_never_sees_memory(influence):
    for g, b, t in np.argwhere(ACTIVE.doc_ids == TEMPLATE):
        np.testing.assert_array_equal(influence["active"][g, b, t], earlier(g, b, t))


def test_query_and_response_depend_on_their_past_and_the_chosen_documents_alone(influence, chosen):
    """So nothing comes from other queries, other groups, or documents that were not chosen."""
    any_layer = chosen.any(axis=0)
    assert any_layer.any(-1).all() and not any_layer.all(-1).any()
    for g, b, t in np.argwhere((ACTIVE.doc_ids != PADDING) & (ACTIVE.doc_ids != TEMPLATE)):
        documents = np.flatnonzero(any_layer[g, b])
        of_chosen = (TOKENS.group == g) & np.isin(TOKENS.document, documents)
        np.testing.assert_array_equal(influence["active"][g, b, t], earlier(g, b, t) | of_chosen)


def test_first_scores_depend_on_the_document_and_on_the_query_but_not_on_the_response(influence):
    last_query = np.where(ACTIVE.doc_ids == QUERY, np.arange(9), 0).max(-1)
    for g, b, m in np.ndindex(GROUPS, 2, NUM_DOCUMENTS):
        depends = influence["scores"][0, g, b, m]
        document = (TOKENS.group == g) & (TOKENS.document == m)
        query = earlier(g, b, last_query[g, b])
        assert not depends[~(document | query)].any()
        assert depends[document].any() and depends[query].any()


def test_later_scores_depend_on_documents_chosen_below(influence, chosen):
    """The second router's query has read what the first one chose, and nothing else."""
    for g, b, m in np.ndindex(GROUPS, 2, NUM_DOCUMENTS):
        readable = {m, *np.flatnonzero(chosen[0, g, b])}
        depends = influence["scores"][1, g, b, m]
        seen = set(TOKENS.document[depends & (TOKENS.document >= 0)])
        assert m in seen and seen <= readable


@pytest.fixture(scope="module")
def gradients(params):
    """Parameter gradients of the language-model loss of one response, and of the router loss."""
    model = Transformer(CONFIG)
    targets = jnp.zeros(ACTIVE.tokens.shape, int)
    mask = jnp.zeros(targets.shape, bool).at[0, 0, -3:].set(True)
    positives = jnp.broadcast_to(jnp.arange(NUM_DOCUMENTS) == 1, (2, GROUPS, 2, NUM_DOCUMENTS))

    def losses(params):
        out = model.apply({"params": params}, MEMORY, ACTIVE, NUM_DOCUMENTS)
        unembedding = params["lm_head"]["kernel"]
        lm_loss, _ = chunked_lm_loss(out.hidden, unembedding, targets, mask)
        return {"lm": lm_loss, "aux": info_nce(out.doc_scores, positives, 0.1)[0].sum()}

    return jax.jit(jax.jacrev(losses))(params)


def attention_gradients(gradients, loss):
    attention = gradients[loss]["routed_1"]["attention"]
    router = attention["router"]
    kernels = {name: attention[name]["kernel"] for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
    return kernels | {f"router/{name}": router[name]["kernel"] for name in ("q_proj", "k_proj")}


def test_the_language_model_loss_does_not_train_routers(gradients):
    for name, gradient in attention_gradients(gradients, "lm").items():
        assert (gradient != 0).any(axis=(1, 2, 3)).all() != name.startswith("router/"), name
        assert not (name.startswith("router/") and gradient.any()), name


def test_the_router_loss_trains_routers_and_the_layers_below_them(gradients):
    """The last layer's attention comes after its routing; only the layer before it learns."""
    for name, gradient in attention_gradients(gradients, "aux").items():
        assert gradient[0].any(), name
        assert gradient[1].any() == name.startswith("router/"), name
    assert not gradients["aux"]["final_norm"]["scale"].any()
    assert not gradients["aux"]["lm_head"]["kernel"].any()


def test_the_language_model_loss_trains_chosen_documents_alone(gradients, chosen):
    trained = np.asarray(gradients["lm"]["embedder"]["embedding"]).any(axis=-1)
    documents = np.flatnonzero(chosen[:, 0, 0].any(axis=0))
    expected = (TOKENS.group == 0) & np.isin(TOKENS.document, documents)
    np.testing.assert_array_equal(trained & (TOKENS.document >= 0), expected)
