"""Engines over small banks, and what must be equal in their answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from msa_jax.data.records import Document
from msa_jax.engine.decoding import STEPS_PER_CALL
from msa_jax.engine.engine import Answer, AskConfig, Engine
from msa_jax.engine.ingest import create_bank, new_layout
from msa_jax.engine.interleave import InterleaveConfig
from msa_jax.engine.loading import LoadedModel, load_model
from msa_jax.engine.sampling import SamplingConfig
from tests.engine.banks import MAX_TOKENS

NUM_DOCUMENTS = 5
# Of different lengths.
QUESTIONS = ("Stone?", "which is value 3?")


def load(folder: Path, mesh: Mesh | None = None) -> LoadedModel:
    """A model in 32 bits, so that batches and meshes change next to nothing."""
    return load_model(folder, template="plain", dtype="float32", mesh=mesh)


def new_engine(
    path: Path,
    loaded: LoadedModel,
    documents: Iterable[Document] = (),
    mesh: Mesh | None = None,
    content_tier: str | None = None,
) -> Engine:
    """An engine over a new bank of these documents."""
    store = create_bank(path, loaded, new_layout(loaded, MAX_TOKENS))
    engine = Engine(loaded, store, mesh, content_tier)
    engine.add(documents)
    return engine


def documents_of(count: int) -> list[Document]:
    """Documents of different lengths, every other one with a title, of three kinds."""
    return [
        Document(
            f"d{n}",
            f"value {n} is x{n}" + f" or {n}" * (n % 3),
            f"Title {n}" if n % 2 else "",
            {"n": n, "kind": ("red", "green", "blue")[n % 3]},
        )
        for n in range(count)
    ]


def ask_config(
    temperature: float = 0.0, seed: int = 0, constrain: str = "routed", **changes: Any
) -> AskConfig:
    """One round of one document, and an answer of two pieces."""
    return AskConfig(
        InterleaveConfig(max_rounds=1, max_documents_per_round=1, constrain=constrain),
        SamplingConfig(max_tokens=2 * STEPS_PER_CALL, temperature=temperature, seed=seed),
        num_documents=NUM_DOCUMENTS,
        **changes,
    )


def words_of(answer: Answer) -> tuple:
    """What was said, named and found."""
    return (
        answer.question,
        answer.text,
        answer.tokens,
        answer.finished,
        [one.named for one in answer.rounds],
        [(found.id, found.key, found.text, found.was_read) for found in answer.documents],
    )


def assert_same(ours: Sequence[Answer], expected: Sequence[Answer]) -> None:
    """The same answers from the same documents, with almost the same scores."""
    assert [words_of(x) for x in ours] == [words_of(x) for x in expected]
    for x, y in zip(ours, expected, strict=True):
        np.testing.assert_allclose(*([d.score for d in a.documents] for a in (x, y)), atol=1e-5)
        for one, other in zip(x.rounds, y.rounds, strict=True):
            np.testing.assert_array_equal(one.ids, other.ids)
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
