"""The training loss: next token, router, and answer terms (paper, §4), and one for naming."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from msa_jax.core.losses import chunked_lm_loss, info_nce
from msa_jax.core.routing import collapse, recall_at
from msa_jax.core.segments import PADDING, TrainingBatch
from msa_jax.modules.state import Routing
from msa_jax.modules.transformer import Transformer
from msa_jax.training.curriculum import StageConfig
from msa_jax.typing import Array, Bool, Float, Int, PyTree

_LEAST_ATTENTION = 1e-6


def training_loss(
    model: Transformer,
    params: PyTree,
    batch: TrainingBatch,
    stage: StageConfig,
    max_document_chunks: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Loss of a batch and what is worth knowing about it.

    Every mean is over the tokens or queries of the whole batch, so the value does not depend on
    how the batch is spread over devices. `max_document_chunks` is that of the longest document,
    or more; a row's by default.

    Returns:
        The weighted loss, and float32 scalars: `loss`, `lm_loss`, `aux_loss` and `answer_loss`
        (those with a weight), `naming_loss` and `naming@1` likewise, `tokens`, and `recall@1` and
        `recall@k`: per router layer, averaged over them, and "joint", of the layers' mean score.
    """
    variables = {"params": params}
    num_documents = batch.positives.shape[-1]
    observed, names = _naming_places(batch) if stage.naming_weight else (None, None)
    output = _attending(model, stage.attended_docs).apply(
        variables,
        batch.memory,
        batch.active,
        num_documents,
        max_document_chunks=max_document_chunks,
        observed=observed,
    )
    metrics = router_metrics(output.doc_scores, batch.positives, model.config, stage)
    loss = stage.aux_weight * metrics["aux_loss"]
    if stage.naming_weight:
        metrics |= naming_metrics(output.routing, batch.positives, names)
        loss += stage.naming_weight * metrics["naming_loss"]
    masks = {
        "lm_loss": (stage.lm_weight, batch.target_mask),
        "answer_loss": (stage.answer_weight, batch.answer_mask),
    }
    for name, (weight, mask) in masks.items():
        if weight:
            unembedding = model.apply(variables, method="unembedding")
            total, count = chunked_lm_loss(output.hidden, unembedding, batch.targets, mask)
            metrics[name] = total / jnp.maximum(count, 1)
            loss += weight * metrics[name]
    tokens = [(block.doc_ids != PADDING).sum() for block in (batch.memory, batch.active)]
    metrics |= {"loss": loss, "tokens": sum(tokens)}
    return loss, {name: value.astype(jnp.float32) for name, value in metrics.items()}


def naming_metrics(
    routing: Routing, positives: Bool[Array, "G B M"], names: Bool[Array, "G B"]
) -> dict[str, Float[Array, ""]]:
    """How much the token before an id attends to the documents that are to be named.

    Of the documents that a layer chose; layers that chose no such document do not count.

    Args:
        routing: of all router layers, with `attention`.
        positives: documents to name.
        names: queries that name documents.

    Returns:
        `naming_loss`, the negative log of that attention, and `naming@1`, how often the document
        that gets most of it is one of them; means over layers and queries.
    """
    is_document = routing.top_docs >= 0
    wanted = jnp.take_along_axis(
        jnp.broadcast_to(positives, (*routing.top_docs.shape[:-1], positives.shape[-1])),
        jnp.where(is_document, routing.top_docs, 0),
        axis=-1,
    )
    wanted &= is_document
    counted = wanted.any(axis=-1) & names

    def mean(values: Float[Array, "L G B"]) -> Float[Array, ""]:
        return jnp.where(counted, values, 0.0).sum() / jnp.maximum(counted.sum(), 1)

    attention = jnp.where(wanted, routing.attention, 0.0).sum(axis=-1)
    best = jnp.argmax(routing.attention, axis=-1, keepdims=True)
    return {
        "naming_loss": mean(-jnp.log(attention + _LEAST_ATTENTION)),
        "naming@1": mean(jnp.take_along_axis(wanted, best, axis=-1)[..., 0].astype(jnp.float32)),
    }


def _naming_places(batch: TrainingBatch) -> tuple[Int[Array, "G B"], Bool[Array, "G B"]]:
    """Where each query's response has opened its first name, and which queries name documents."""
    opening = jnp.argmax(batch.target_mask, axis=-1)
    names = batch.target_mask.any(axis=-1) & ~batch.answer_mask.any(axis=-1)
    # The first target is what opens a name; the token after that is the id's own.
    return jnp.minimum(opening + 1, batch.target_mask.shape[-1] - 1), names


def _attending(model: Transformer, attended_docs: int | None) -> Transformer:
    """The model with another number of documents that its layers choose."""
    if attended_docs is None:
        return model
    memory = dataclasses.replace(model.config.memory, top_k_docs=attended_docs)
    return Transformer(dataclasses.replace(model.config, memory=memory))


def router_metrics(
    doc_scores: Float[Array, "L G B M"],
    positives: Bool[Array, "G B M"],
    config,
    stage: StageConfig,
) -> dict[str, Float[Array, ""]]:
    """Router loss and recall, over router layers and the queries that have positives.

    Also `collapse` of each layer and of the worst, if a group has several queries: 1 if its router
    chooses the same documents for all of them.
    """
    positives = jnp.broadcast_to(positives, doc_scores.shape)
    # The engine ranks by the mean over layers. A document exists in all of them or in none.
    joint_scores = doc_scores.mean(axis=0, keepdims=True)

    def loss_of(scores: Float[Array, "l G B M"]) -> Float[Array, "l G B"]:
        decoupled = stage.aux_loss == "decoupled"
        return info_nce(scores, positives[: len(scores)], stage.temperature, decoupled)[0]

    has_positives = (positives & jnp.isfinite(doc_scores)).any(axis=-1)
    queries = jnp.maximum(has_positives[0].sum(), 1)

    def layer_means(values: Float[Array, "l G B"]) -> Float[Array, " l"]:
        return jnp.where(has_positives[: len(values)], values, 0.0).sum(axis=(1, 2)) / queries

    aux_loss = layer_means(loss_of(doc_scores)).mean()
    if stage.joint_weight:
        joint_loss = layer_means(loss_of(joint_scores))[0]
        aux_loss = (1 - stage.joint_weight) * aux_loss + stage.joint_weight * joint_loss
    metrics = {"aux_loss": aux_loss}
    for top_n in sorted({1, config.memory.top_k_docs}):
        recalls = layer_means(recall_at(doc_scores, positives, top_n))
        metrics[f"recall@{top_n}"] = recalls.mean()
        metrics[f"recall@{top_n}/joint"] = layer_means(
            recall_at(joint_scores, positives[:1], top_n)
        )[0]
        for layer, recall in zip(config.router_layers, recalls, strict=True):
            metrics[f"recall@{top_n}/layer_{layer}"] = recall
    if doc_scores.shape[-2] > 1:
        collapsed = collapse(jax.lax.stop_gradient(doc_scores), config.memory.top_k_docs)
        metrics["collapse"] = collapsed.max()
        for layer, of_layer in zip(config.router_layers, collapsed, strict=True):
            metrics[f"collapse/layer_{layer}"] = of_layer
    return metrics
