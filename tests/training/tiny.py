"""A model, a dataset and a run of toy size, for tests of the training loop."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from msa_jax.checkpoint.checkpointer import CheckpointConfig
from msa_jax.config import MemoryConfig, ModelConfig
from msa_jax.core.segments import PADDING, QUERY, RESPONSE, TEMPLATE, TokenBlock, TrainingBatch
from msa_jax.data.pipeline import DataConfig, TextDataset
from msa_jax.data.records import Document, Question, write_documents, write_questions
from msa_jax.modules.init import init_params
from msa_jax.training.config import TrainConfig
from msa_jax.training.curriculum import StageConfig
from msa_jax.typing import PRNGKey, PyTree

POOLING = 4


def model_config(**changes: Any) -> ModelConfig:
    """Three layers, two of which route."""
    memory = {"pooling_kernel_size": POOLING, "top_k_docs": 2, "router_layers": (1, 2)}
    memory |= changes.pop("memory", {})
    fields = {
        "vocab_size": 64,
        "num_layers": 3,
        "embed_dim": 32,
        "hidden_dim": 48,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "qk_norm": True,
        "dtype": "float32",
        "memory": MemoryConfig(**memory),
    }
    return ModelConfig(**(fields | changes))


def stage_config(**changes: Any) -> StageConfig:
    """A stage of four steps over two small memories."""
    fields = {
        "name": "main",
        "steps": 4,
        "learning_rate": 1e-3,
        "memory_tokens": 256,
        "groups": 2,
        "queries_per_group": 2,
        "active_tokens": 48,
        "aux_weight": 0.5,
    }
    return StageConfig(**(fields | changes))


def random_params(config: ModelConfig) -> PyTree:
    """Parameters of which none is zero, so that every gradient is alive.

    New parameters are not: the projections into the residual stream start at zero.
    """

    @jax.jit
    def draw(key: PRNGKey) -> PyTree:
        params = init_params(config, key)
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        noisy = [
            leaf + 0.1 * jax.random.normal(key, leaf.shape)
            for leaf, key in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(treedef, noisy)

    return draw(jax.random.key(0))


def random_batch(groups: int = 4, queries: int = 2, seed: int = 0) -> TrainingBatch:
    """Four rows of two documents; queries with one, two and no positives."""
    rng = np.random.default_rng(seed)
    rows, row_tokens, active_tokens, documents = 4, 16, 12, 8
    doc_ids = np.repeat(np.arange(1, documents + 1), row_tokens // 2).reshape(rows, row_tokens)
    doc_ids[:, -2:] = PADDING
    roles = [TEMPLATE] * 3 + [QUERY] * 4 + [RESPONSE] * 5
    positions = [0, 1, 2, *range(5, 14)]
    shape = (groups, queries, active_tokens)

    def block(values: Any, shape: tuple[int, ...]) -> np.ndarray:
        return np.broadcast_to(np.asarray(values, np.int32), shape).copy()

    memory_shape = (groups, rows, row_tokens)
    mask = block(roles, shape) == RESPONSE
    mask[:, 0, -2:] = False
    positives = np.zeros((groups, queries, documents), bool)
    for group, query in np.ndindex(groups, queries):
        positives[group, query, rng.choice(documents, (group + query) % 3, replace=False)] = True
    return TrainingBatch(
        memory=TokenBlock(
            tokens=rng.integers(64, size=memory_shape, dtype=np.int32),
            doc_ids=block(doc_ids, memory_shape),
            segment_pos=block(np.arange(row_tokens) % (row_tokens // 2), memory_shape),
        ),
        active=TokenBlock(
            tokens=rng.integers(64, size=shape, dtype=np.int32),
            doc_ids=block(roles, shape),
            segment_pos=block(positions, shape),
        ),
        targets=rng.integers(64, size=shape, dtype=np.int32),
        target_mask=mask,
        answer_mask=mask & (rng.random(shape) < 0.5),
        positives=positives,
    )


def train_config(directory: Any, **changes: Any) -> TrainConfig:
    """A run of one small stage on a written dataset, with a checkpoint every second step."""
    documents, questions = directory / "documents.jsonl", directory / "questions.jsonl"
    if not documents.exists():
        write_documents(documents, [Document(f"d{i}", f"value {i} is x{i}") for i in range(40)])
        write_questions(
            questions,
            [Question(f"q{i}", f"value {i}?", (f"x{i}",), (f"d{i}",)) for i in range(40)],
        )
    fields = {
        "workdir": str(directory / "run"),
        "stages": (stage_config(),),
        "model": model_config(vocab_size=4096),
        "data": DataConfig(
            documents=str(documents),
            questions=str(questions),
            row_tokens=64,
            max_document_tokens=48,
        ),
        "checkpoint": CheckpointConfig(every=2),
        "log_every": 1,
    }
    return TrainConfig(**(fields | changes))


def dataset_of(config: TrainConfig) -> TextDataset:
    """Loads the dataset of a run."""
    return TextDataset.load(config.data, config.model.memory)
