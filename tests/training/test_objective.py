import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.core.segments import PADDING
from msa_jax.modules.state import Routing
from msa_jax.modules.transformer import Transformer
from msa_jax.training.objective import naming_metrics, router_metrics, training_loss
from tests.training.tiny import model_config, random_batch, random_params, stage_config


def hand_example():
    """Two router layers, one group, three queries and four documents; the last query has none."""
    first = [[0.9, 0.5, 0.1, -1.0], [0.2, 0.8, 0.6, 0.4], [1.0, 0.0, 0.0, 0.0]]
    second = [[0.1, 0.5, 0.9, -1.0], [0.9, 0.8, 0.1, 0.7], [0.0, 0.0, 0.0, 1.0]]
    positives = [[1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]
    scores = jnp.array([first, second], jnp.float32)[:, None]
    return scores, jnp.array([positives], bool)


def test_recall_by_hand():
    metrics = router_metrics(*hand_example(), model_config(), stage_config())
    # Layer 1: document 1 is first; of documents 3 and 4, the two best hold one.
    assert metrics["recall@1/layer_1"] == pytest.approx(1 / 2)
    assert metrics["recall@2/layer_1"] == pytest.approx((1 + 1 / 2) / 2)
    # Layer 2: document 1 is third; documents 3 and 4 are last and third.
    assert metrics["recall@1/layer_2"] == 0
    assert metrics["recall@2/layer_2"] == 0
    assert metrics["recall@1"] == pytest.approx(1 / 4)
    assert metrics["recall@2"] == pytest.approx(3 / 8)


@pytest.mark.parametrize("aux_loss", ["decoupled", "plain"])
def test_router_loss_by_hand(aux_loss):
    scores, positives = hand_example()
    stage = stage_config(aux_loss=aux_loss, temperature=0.5)
    losses = []
    for layer in np.exp(np.asarray(scores)[:, 0] / 0.5):
        for query, wanted in zip(layer[:2], np.asarray(positives)[0, :2], strict=True):
            rivals = query[~wanted].sum()
            terms = [
                -np.log(x / (x + rivals if aux_loss == "decoupled" else query.sum()))
                for x in query[wanted]
            ]
            losses.append(np.mean(terms))
    metrics = router_metrics(scores, positives, model_config(), stage)
    assert metrics["aux_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.fixture(scope="module")
def model_and_params():
    model = Transformer(model_config())
    return model, random_params(model.config)


def test_terms_are_weighted_means_over_their_tokens(model_and_params):
    model, params = model_and_params
    batch = jax.tree.map(jnp.asarray, random_batch(groups=2))
    stage = stage_config(lm_weight=0.7, aux_weight=0.2, answer_weight=0.4)
    loss, metrics = jax.jit(lambda p, b: training_loss(model, p, b, stage))(params, batch)

    @jax.jit
    def token_losses(params):
        variables = {"params": params}
        output = model.apply(variables, batch.memory, batch.active, batch.positives.shape[-1])
        log_probs = jax.nn.log_softmax(model.apply(variables, output.hidden, method="logits"))
        return -jnp.take_along_axis(log_probs, batch.targets[..., None], axis=-1)[..., 0]

    losses = token_losses(params)
    lm_loss, answer_loss = losses[batch.target_mask].mean(), losses[batch.answer_mask].mean()
    np.testing.assert_allclose(metrics["lm_loss"], lm_loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["answer_loss"], answer_loss, rtol=1e-5)
    expected = 0.7 * lm_loss + 0.2 * metrics["aux_loss"] + 0.4 * answer_loss
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    present = sum((x.doc_ids != PADDING).sum() for x in (batch.memory, batch.active))
    assert metrics["tokens"] == present


def test_a_batch_without_positives_or_answers_has_finite_loss(model_and_params):
    model, params = model_and_params
    batch = random_batch(groups=2)
    batch = dataclasses.replace(
        batch,
        positives=np.zeros_like(batch.positives),
        answer_mask=np.zeros_like(batch.answer_mask),
    )
    stage = stage_config(answer_weight=1.0)
    _, metrics = jax.jit(lambda p, b: training_loss(model, p, b, stage))(params, batch)
    assert metrics["aux_loss"] == metrics["answer_loss"] == metrics["recall@1"] == 0
    assert all(np.isfinite(value) for value in metrics.values())


def test_a_stage_can_attend_to_fewer_documents(model_and_params):
    """The loss is that of a model that chooses fewer; recall is of as many as ever."""
    model, params = model_and_params
    batch = random_batch(groups=2)

    def measure(model, attended_docs=None):
        stage = stage_config(attended_docs=attended_docs)
        return jax.jit(lambda p, b: training_loss(model, p, b, stage))(params, batch)

    memory = dataclasses.replace(model.config.memory, top_k_docs=1)
    choosy = Transformer(dataclasses.replace(model.config, memory=memory))
    loss, metrics = measure(model, attended_docs=1)
    assert loss == measure(choosy)[0] != measure(model)[0]
    assert measure(model, attended_docs=2)[0] == measure(model)[0]
    assert metrics["recall@2"] == measure(model)[1]["recall@2"]


def test_a_router_that_chooses_the_same_for_all_is_collapsed():
    scores, positives = hand_example()
    metrics = router_metrics(scores, positives, model_config(), stage_config())
    assert metrics["collapse"] < 0.5
    same = jnp.broadcast_to(scores[:, :, :1], scores.shape).at[0].set(scores[0])
    metrics = router_metrics(same, positives, model_config(), stage_config())
    assert metrics["collapse"] == pytest.approx(1)
    alone = router_metrics(scores[:, :, :1], positives[:, :1], model_config(), stage_config())
    assert "collapse" not in alone


def naming_example():
    """One layer, one group, three queries and three chosen documents of four."""
    attention = [[0.2, 0.7, 0.1], [0.5, 0.3, 0.2], [0.9, 0.1, 0.0]]
    top_docs = [[3, 0, 1], [2, 1, -1], [1, 2, 3]]
    positives = [[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]]
    routing = Routing(None, jnp.array([[top_docs]]), None, jnp.array([[attention]], jnp.float32))
    return routing, jnp.array([positives], bool)


def test_naming_loss_by_hand():
    routing, positives = naming_example()
    # The third query's document was not chosen.
    metrics = naming_metrics(routing, positives, jnp.ones((1, 3), bool))
    expected = (-np.log(0.7 + 0.1) - np.log(0.3)) / 2
    assert metrics["naming_loss"] == pytest.approx(expected, rel=1e-4)
    assert metrics["naming@1"] == pytest.approx(1 / 2)
    metrics = naming_metrics(routing, positives, jnp.array([[False, True, True]]))
    assert metrics["naming_loss"] == pytest.approx(-np.log(0.3), rel=1e-4)
    assert metrics["naming@1"] == 0


def naming_batch():
    """Queries that all name documents, every second of which is right."""
    batch = jax.tree.map(jnp.asarray, random_batch(groups=2))
    return dataclasses.replace(
        batch,
        answer_mask=jnp.zeros_like(batch.answer_mask),
        positives=jnp.broadcast_to(jnp.arange(8) % 2 == 0, batch.positives.shape),
    )


def test_the_naming_loss_looks_at_the_token_before_the_id(model_and_params):
    model, params = model_and_params
    batch = naming_batch()
    stage = stage_config(naming_weight=0.5)
    loss = jax.jit(lambda p, b: training_loss(model, p, b, stage))
    total, metrics = loss(params, batch)
    plain, others = jax.jit(lambda p, b: training_loss(model, p, b, stage_config()))(params, batch)
    np.testing.assert_allclose(total, plain + 0.5 * metrics["naming_loss"], rtol=1e-5)
    assert set(metrics) - set(others) == {"naming_loss", "naming@1"}
    place = jnp.argmax(batch.target_mask, axis=-1)[..., None] + 1
    tokens = jnp.arange(batch.active.tokens.shape[-1])
    for at, changes in ((place, True), (place + 1, False)):
        changed = jnp.where(tokens == at, batch.active.tokens ^ 1, batch.active.tokens)
        active = dataclasses.replace(batch.active, tokens=changed)
        _, other = loss(params, dataclasses.replace(batch, active=active))
        assert (other["naming_loss"] != metrics["naming_loss"]) == changes


def test_answers_name_nothing(model_and_params):
    model, params = model_and_params
    batch = naming_batch()
    _, metrics = training_loss(model, params, batch, stage_config(naming_weight=0.5))
    assert metrics["naming_loss"] > 0
    batch = dataclasses.replace(batch, answer_mask=batch.target_mask)
    _, metrics = training_loss(model, params, batch, stage_config(naming_weight=0.5))
    assert metrics["naming_loss"] == 0
