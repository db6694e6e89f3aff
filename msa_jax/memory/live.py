"""The live parts of a bank, kept between calls and brought up to date by what is new."""

from __future__ import annotations

import numpy as np

from msa_jax.memory.catalogue import Catalogue, State
from msa_jax.memory.parts import PartTable


class LiveParts:
    """The table of live parts of a catalogue."""

    def __init__(self, catalogue: Catalogue):
        self._catalogue = catalogue
        self._compactions = 0
        self._start()

    def refresh(self) -> tuple[State, PartTable, bool]:
        """The last state, its parts, and whether blocks have moved since the last call.

        Call it inside a snapshot of the catalogue.
        """
        state, compactions = self._catalogue.state(), self._catalogue.compactions()
        moved = compactions != self._compactions
        if moved:
            self._start()
            self._compactions = compactions
        if state.version != self._version:
            new, self._last_block = self._catalogue.placed(self._last_block)
            gone = self._catalogue.removed(self._version)
            self._table = _without(_joined(self._table, new), gone)
            self._version = state.version
        return state, self._table, moved

    def _start(self) -> None:
        nothing = np.zeros(0, np.int64)
        self._table = PartTable(nothing, nothing, nothing, nothing)
        self._version = self._last_block = 0


def _joined(old: PartTable, new: PartTable) -> PartTable:
    columns = (
        np.concatenate([getattr(old, name), getattr(new, name)])
        for name in ("ids", "chunks", "block", "first_chunk")
    )
    table = PartTable(*columns)
    # Only compaction writes parts later than parts with higher ids.
    ascending = (np.diff(table.ids) > 0).all()
    return table if ascending else table[np.argsort(table.ids, kind="stable")]


def _without(table: PartTable, ids: np.ndarray) -> PartTable:
    rows = table.find(ids)
    keep = np.ones(len(table), bool)
    keep[rows[rows >= 0]] = False
    return table if keep.all() else table[keep]
