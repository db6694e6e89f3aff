"""Compaction beside the work, when there is enough to reclaim."""

from __future__ import annotations

import threading
import warnings

from msa_jax.memory.store import Store, StoreError

# Look for garbage when so many documents were removed: a few, and a share of those that are left.
_LEAST, _SHARE = 16, 4


class BackgroundCompaction:
    """Compacts a store in a thread of its own, at most one at a time."""

    def __init__(self, store: Store):
        """Watches a store, open for writing."""
        self._store = store
        self._num_removed = 0
        self._thread: threading.Thread | None = None

    def note_removed(self, count: int) -> None:
        """Says that so many documents were removed or replaced; starts a compaction if it is time.

        One that fails, for want of room, is a warning: nothing is lost but space.
        """
        self._num_removed += count
        running = self._thread is not None and self._thread.is_alive()
        if running or self._num_removed < _LEAST + self._store.num_documents // _SHARE:
            return
        self._num_removed = 0
        self._thread = threading.Thread(target=self._compact, name="compaction")
        self._thread.start()

    def wait(self) -> None:
        """Returns when no compaction is running."""
        if self._thread is not None:
            self._thread.join()

    def _compact(self) -> None:
        try:
            self._store.compact()
        except StoreError as error:
            warnings.warn(f"compaction failed: {error}", stacklevel=1)
