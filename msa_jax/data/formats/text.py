"""Text files: documents that nothing is asked about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msa_jax.data.formats.reading import Record
from msa_jax.data.sources import open_source


def text(path: Path) -> Iterator[Record]:
    """A document for each text file of a folder, or for one file; also JSON Lines of documents.

    Raises:
        RecordError: as `open_source` and its documents.
    """
    return iter(open_source(path))
