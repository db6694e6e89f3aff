"""The training loss: next token, router, and answer terms (paper, §4)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from msa_jax.core.losses import chunked_lm_loss, info_nce
from msa_jax.core.routing import recall_at
from msa_jax.core.segments import PADDING, TrainingBatch
from msa_jax.modules.transformer import Transformer
from msa_jax.training.curriculum import StageConfig
from msa_jax.typing import Array, Bool, Float, PyTree


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
        (those with a weight), `tokens`, and `recall@1` and `recall@k`: per router layer, averaged
        over them, and "joint", of the layers' mean score.
    """
    variables = {"params": params}
    num_documents = batch.positives.shape[-1]
    output = _attending(model, stage.attended_docs).apply(
        variables,
        batch.memory,
        batch.active,
        num_documents,
        max_document_chunks=max_document_chunks,
    )
    metrics = router_metrics(output.doc_scores, batch.positives, model.config, stage)
    loss = stage.aux_weight * metrics["aux_loss"]
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
    """Router loss and recall, over router layers and the queries that have positives."""
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
    return metrics
