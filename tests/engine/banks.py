"""A loaded model with random parameters, and banks for it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from msa_jax.checkpoint import huggingface
from msa_jax.data.records import Document
from msa_jax.data.tokenizer import PACKAGED
from msa_jax.engine.encode import Encoder, bank_layout
from msa_jax.engine.ingest import Ingestor
from msa_jax.engine.loading import LoadedModel, fingerprint
from msa_jax.memory.store import Store
from tests.training.tiny import model_config, random_params

MAX_TOKENS = 48
BATCH_TOKENS = 1024


def save_model(folder: Path, **changes: Any) -> Path:
    """A Hugging Face folder of a tiny model, with a tokenizer."""
    config = model_config(vocab_size=4096, **changes)
    huggingface.save_params(folder, config, random_params(config))
    shutil.copy(PACKAGED / "docs-4k.json", folder / "tokenizer.json")
    return folder


def make_store(path: Path, loaded: LoadedModel, **layout: Any) -> Store:
    """An empty bank."""
    layout = dataclasses.replace(bank_layout(loaded.config, MAX_TOKENS), **layout)
    return Store.create(path, layout, fingerprint(loaded), {})


def ingestor_of(loaded: LoadedModel, store: Store) -> Ingestor:
    """An ingestor with small batches."""
    model, params = loaded.model, loaded.params
    return Ingestor(loaded, Encoder(model, params, store.layout, None, BATCH_TOKENS), store)


def numbered(count: int, first: int = 0) -> list[Document]:
    """Short documents."""
    return [
        Document(f"d{n}", f"value {n} is x{n}", metadata={"n": n})
        for n in range(first, first + count)
    ]
