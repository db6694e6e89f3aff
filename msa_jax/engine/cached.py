"""Banks in the cache: of documents that stay where they are and change there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh

from msa_jax.checkpoint.backbones import cache_directory
from msa_jax.config import ConfigError
from msa_jax.data.sources import DocumentSource
from msa_jax.engine.encode import Encoder
from msa_jax.engine.ingest import Ingestor, create_bank, new_layout
from msa_jax.engine.loading import LoadedModel, fingerprint
from msa_jax.memory.lock import waiting_lock
from msa_jax.memory.store import Store, StoreError
from msa_jax.terminal import note

_WAITING = "waiting for another process that encodes the same documents"


def cached_bank(
    loaded: LoadedModel,
    path: str | os.PathLike,
    source: DocumentSource,
    mesh: Mesh | None = None,
    on_planned: Callable[[int], None] = lambda tokens: None,
    on_encoded: Callable[[int], None] = lambda tokens: None,
) -> Store:
    """A bank of exactly what a source has now, made or brought up to date.

    Banks are in `banks/` of the cache, one for each model and path. Documents that have not changed
    since are not encoded again, and those that are gone are removed. One process of a machine
    brings a bank up to date, others wait for it.

    Args:
        loaded: the model, on the devices of `mesh`.
        path: where the documents are; it names the bank.
        source: the documents.
        mesh: devices to share the work; None for one.
        on_planned: see `Ingestor.add`.
        on_encoded: likewise.

    Returns:
        The bank, open for reading.

    Raises:
        RecordError: for a document that cannot be read.
        ConfigError: if no document has text.
        StoreError: if the bank cannot be written.
    """
    marks = fingerprint(loaded)
    place = f"{sorted(marks.items())} {Path(path).absolute()}"
    bank = cache_directory() / "banks" / _name_of(place)
    try:
        bank.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{bank} cannot be written ({error.strerror}); set MSA_JAX_CACHE to another folder."
        ) from error
    with waiting_lock(bank.with_suffix(".lock"), lambda: note(_WAITING)):
        if Store.exists(bank):
            store = Store.open(bank, write=True, fingerprint=marks)
        else:
            store = create_bank(bank, loaded, new_layout(loaded))
        with store:
            encoder = Encoder(loaded.model, loaded.params, store.layout, mesh)
            Ingestor(loaded, encoder, store).sync(source, on_planned, on_encoded)
            store.compact()
            if not store.num_documents:
                raise ConfigError(
                    f"{os.fspath(path)} has no text to ask about; name other documents."
                )
        return Store.open(bank)


def _name_of(place: str) -> str:
    """Paths need not be UTF-8."""
    return hashlib.blake2b(place.encode(errors="surrogateescape"), digest_size=8).hexdigest()
