"""What goes into a bank and what comes out of it: documents, their parts, and where these lie."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from msa_jax.data.records import Document
from msa_jax.memory.chunks import Chunks
from msa_jax.typing import Int


class StoreError(ValueError):
    """A bank that cannot be used as asked; the message names the file and says what to do."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A document, or a piece of a long one.

    Attributes:
        id: written into the encoded text; no other part of the bank ever had or gets it.
        start: first character of the document's text; the title goes with the first part.
        stop: one past the last character.
        tokens: of the encoded part, its wrapper included.
        chunks: how many chunks these are.
    """

    id: int
    start: int
    stop: int
    tokens: int
    chunks: int

    def __post_init__(self):
        # SQLite would take NumPy's integers for bytes.
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, operator.index(getattr(self, field.name)))


@dataclasses.dataclass(frozen=True)
class EncodedDocument:
    """A document as a commit takes it.

    Attributes:
        parts: in the order of the text, with consecutive ids.
        chunks: of all parts, in order.
    """

    document: Document
    parts: tuple[Part, ...]
    chunks: Chunks


@dataclasses.dataclass(frozen=True, eq=False)
class PartTable:
    """Parts, by ascending id, and where their chunks lie.

    Attributes:
        ids: of the parts.
        chunks: how many each part has.
        block: number of the block that holds them.
        first_chunk: where they start within the block.
    """

    ids: Int[np.ndarray, " n"]
    chunks: Int[np.ndarray, " n"]
    block: Int[np.ndarray, " n"]
    first_chunk: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: slice | np.ndarray) -> PartTable:
        return PartTable(self.ids[at], self.chunks[at], self.block[at], self.first_chunk[at])

    def find(self, ids: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """Rows of these ids; -1 for an id that the table does not have."""
        rows = np.searchsorted(self.ids, ids)
        found = np.append(self.ids, 0)[rows] == ids
        return np.where(found, rows, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class Changes:
    """What happened after some version.

    Attributes:
        version: that these changes lead to.
        added: parts that came since and are still there.
        removed: ids of the parts that went since, ascending; some may have come since, too.
    """

    version: int
    added: PartTable
    removed: Int[np.ndarray, " m"]


@dataclasses.dataclass(frozen=True)
class Passage:
    """The original of a part.

    Attributes:
        key: of its document.
        text: of this part alone.
        part: its place among the document's parts, from 0.
    """

    id: int
    key: str
    title: str
    text: str
    metadata: Mapping[str, Any]
    part: int
    num_parts: int
    tokens: int


def spans(starts: Int[np.ndarray, " n"], lengths: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """The numbers of all ranges [start, start + length), one range after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())
