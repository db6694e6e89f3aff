"""The index of words of a bank, kept in step with its catalogue.

    BANK/words/       the index, which can always be made again
    BANK/words.lock   held while it is changed

It is made from the catalogue and stamped with the version that it was made from. Whoever finds it
behind, reader or writer, brings it up to date; where it is lost, damaged or of another history, it
is made anew. Where it cannot be written, it is made in memory.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from msa_jax.memory.catalogue import Catalogue
from msa_jax.memory.lock import waiting_lock
from msa_jax.memory.parts import Changes
from msa_jax.memory.words.index import (
    Ranking,
    UnusableIndex,
    WordsIndex,
    damage,
    index_exists,
    is_installed,
    remove_index,
)
from msa_jax.typing import Int

# Texts that are read while the catalogue is held.
_TEXTS_AT_ONCE = 1024


class BankWords:
    """Search by words in the parts of a bank, each with its title as memory holds it."""

    def __init__(
        self,
        path: pathlib.Path,
        catalogue: Catalogue,
        changes: Callable[[int], Changes],
        lock: threading.RLock,
    ):
        """Opens nothing yet.

        Args:
            path: of the bank.
            catalogue: of the bank.
            changes: see `Store.changes`.
            lock: held while the catalogue is used.
        """
        self._folder, self._lock_path = path / "words", path / "words.lock"
        self._catalogue, self._changes, self._lock = catalogue, changes, lock
        self._refreshing = threading.Lock()
        self._index: WordsIndex | None = None
        self._version = -1
        self._background = ThreadPoolExecutor(1, "words")

    def search(
        self, questions: Sequence[str], count: int, allowed: Int[np.ndarray, " n"] | None = None
    ) -> list[Ranking]:
        """Ranks the live parts of the present version by BM25.

        Args:
            questions: any texts.
            count: parts of a ranking; fewer if no others share a word with the question.
            allowed: ids of the parts to choose from, ascending, as `Store.select` gives them.

        Returns:
            For each question ids of parts, best first, and their scores.

        Raises:
            StoreError: if tantivy is not installed.
        """
        try:
            return self.refresh().search(questions, count, allowed)
        except UnusableIndex:
            # Bytes have changed since it was opened.
            with self._refreshing:
                self._index = None
            return self.refresh().search(questions, count, allowed)

    def refresh(self) -> WordsIndex:
        """The index of the present version.

        Raises:
            StoreError: if tantivy is not installed.
        """
        with self._refreshing:
            if self._index is None or self._version != self._last_version():
                self._index = self._brought_up_to_date(self._index)
                self._version = _version(self._index)
            return self._index

    def follow(self) -> None:
        """Takes over a commit in the background; if that fails, whoever searches hears of it."""
        if is_installed():
            self._background.submit(self.refresh)

    def forget(self) -> None:
        """After a compaction: nothing is left in the index of what the catalogue has forgotten."""
        if not is_installed():
            remove_index(self._folder)
            return
        # Searches of the present version go on with the old one meanwhile.
        index = self._brought_up_to_date(None)
        with self._refreshing:
            self._index, self._version = index, _version(index)

    def problems(self) -> list[str]:
        """Where the index on disk is not what its stamp says; one that is behind is no problem."""
        if not is_installed() or not index_exists(self._folder):
            return []
        try:
            with waiting_lock(self._lock_path):
                problem = self._disagreement()
        except (OSError, UnusableIndex) as error:
            # The library cannot open what cannot be written; its bytes can be read.
            problem = next(damage(self._folder), None)
            if problem is None and isinstance(error, UnusableIndex):
                problem = str(error)
        if problem is None:
            return []
        return [
            f"{self._folder}: the index of words is wrong ({problem}); delete the folder, which is "
            "then made anew."
        ]

    def _disagreement(self) -> str | None:
        """How an index differs from the bank at the version of its stamp."""
        index = WordsIndex.open(self._folder)
        if not self._is_of_this_bank(index):
            return "it is not of this bank"
        since = _version(index)
        with self._lock, self._catalogue.snapshot():
            last_id, removed = self._catalogue.last_id(since), self._changes(since).removed
            now = self._changes(0).added.ids
        # What is live now, without what came since, and with what went since.
        then = np.union1d(now[now <= last_id], removed[removed <= last_id])
        return None if np.array_equal(index.ids(), then) else "its parts are not those of the bank"

    def close(self) -> None:
        """Waits for what runs in the background."""
        self._background.shutdown()
        self._index = None

    def _last_version(self) -> int:
        with self._lock:
            return self._catalogue.state().version

    def _brought_up_to_date(self, index: WordsIndex | None) -> WordsIndex:
        if index is not None and index.is_in_memory:
            return self._followed(index)
        index = self._opened(index)
        if index is not None and _version(index) == self._last_version():
            return index
        try:
            with waiting_lock(self._lock_path):
                return self._changed_on_disk(index)
        except (OSError, UnusableIndex):
            return self._made(None)

    def _changed_on_disk(self, index: WordsIndex | None) -> WordsIndex:
        new = self._folder.with_name("words.new")
        shutil.rmtree(new, ignore_errors=True)
        index = self._opened(index)  # Another process may have been here first.
        if index is not None:
            with contextlib.suppress(UnusableIndex):
                return self._followed(index)
        # Beside the old one, which others may search meanwhile.
        self._made(new)
        remove_index(self._folder)
        new.rename(self._folder)
        return WordsIndex.open(self._folder)

    def _opened(self, index: WordsIndex | None) -> WordsIndex | None:
        """The index on disk as it is now; None if it must be made anew."""
        try:
            if index is not None:
                index.reload()
            else:
                index = WordsIndex.open(self._folder)
                with self._lock:
                    if self._catalogue.num_forgotten() != _forgotten(index):
                        return None
        except UnusableIndex:
            return None
        return index if self._is_of_this_bank(index) else None

    def _is_of_this_bank(self, index: WordsIndex) -> bool:
        version, mark, _ = json.loads(index.stamp)
        with self._lock:
            return self._catalogue.mark(version) == mark

    def _followed(self, index: WordsIndex) -> WordsIndex:
        """Replays what has happened since the version of an index."""
        changes = self._changes(_version(index))
        if changes.version != _version(index):
            stamp = self._stamp(changes.version, _forgotten(index))
            index.update(stamp, self._texts(changes.added.ids), changes.removed.tolist())
        return index

    def _made(self, folder: pathlib.Path | None) -> WordsIndex:
        with self._lock:
            # First: what is forgotten meanwhile may be among the texts.
            forgotten = self._catalogue.num_forgotten()
        changes = self._changes(0)
        stamp = self._stamp(changes.version, forgotten)
        return WordsIndex.build(folder, stamp, self._texts(changes.added.ids))

    def _stamp(self, version: int, forgotten: int) -> str:
        with self._lock:
            return json.dumps([version, self._catalogue.mark(version), forgotten])

    def _texts(self, ids: Int[np.ndarray, " n"]) -> Iterator[tuple[int, str]]:
        for start in range(0, len(ids), _TEXTS_AT_ONCE):
            with self._lock:
                texts = self._catalogue.texts(ids[start : start + _TEXTS_AT_ONCE].tolist())
            yield from texts


def _version(index: WordsIndex) -> int:
    return json.loads(index.stamp)[0]


def _forgotten(index: WordsIndex) -> int:
    return json.loads(index.stamp)[2]
