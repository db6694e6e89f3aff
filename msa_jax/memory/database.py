"""SQLite for a catalogue: rows that carry their checksums, and errors in sentences."""

from __future__ import annotations

import contextlib
import pathlib
import sqlite3
import urllib.parse
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from msa_jax.memory import filters
from msa_jax.memory.parts import StoreError

_DAMAGED = "it is damaged; restore the bank from a copy"
_ADVICE = {
    "SQLITE_FULL": "the disk is full; make room and try again",
    "SQLITE_IOERR": "the file cannot be read or written; look at the disk",
    "SQLITE_BUSY": "another process holds it; try again",
    "SQLITE_READONLY": "it cannot be written; open the bank for writing",
    "SQLITE_CANTOPEN": "it cannot be opened; look at its permissions",
    "SQLITE_CORRUPT": _DAMAGED,
    "SQLITE_NOTADB": _DAMAGED,
}


class Database:
    """An open file, whose methods must not be called by two threads at once.

    Every table that is checked ends with a checksum of the other columns.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: pathlib.Path, mode: str):
        """Opens a file to read ("r"), to change ("w"), or to make it ("x")."""
        self.path = path
        with _errors_of(path):
            self._connection = _connect_reader(path) if mode == "r" else _connect_writer(path, mode)

    def close(self) -> None:
        """Closes the file; the last one to do so leaves no log behind."""
        self._connection.close()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read inside belongs to one version; inside a transaction, to that."""
        with _errors_of(self.path):
            nested = self._connection.in_transaction
        if nested:
            yield
            return
        self.rows("BEGIN")
        try:
            yield
        finally:
            self._roll_back()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside becomes visible and durable at once, or none of it."""
        self.rows("BEGIN IMMEDIATE")
        try:
            yield
            self.rows("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def rows(self, query: str, *values: Any) -> list[tuple]:
        """What a query finds."""
        with _errors_of(self.path):
            return self._connection.execute(query, values).fetchall()

    def script(self, text: str) -> None:
        """Runs statements outside of a transaction."""
        with _errors_of(self.path):
            self._connection.executescript(text)

    def change(self, statement: str, rows: Iterable[tuple]) -> None:
        """Runs a statement once for the values of each row."""
        with _errors_of(self.path):
            self._connection.executemany(statement, rows)

    def insert(self, table: str, rows: Iterable[tuple]) -> None:
        """Adds rows and their checksums."""
        sealed = [(*row, checksum(row)) for row in rows]
        if sealed:
            marks = ", ".join("?" * len(sealed[0]))
            self.change(f"INSERT INTO {table} VALUES ({marks})", sealed)

    def checked(self, what: str, query: str, *values: Any) -> list[tuple]:
        """Whole rows without their checksums, which must be right."""
        found = self.rows(query, *values)
        if any(checksum(row[:-1]) != row[-1] for row in found):
            raise StoreError(
                f"{self.path}: the row of {what} is damaged; restore the bank from a copy."
            )
        return [row[:-1] for row in found]

    def count_damaged(self, table: str) -> int:
        """How many rows of a table do not have their checksums."""
        with _errors_of(self.path):
            found = self._connection.execute(f"SELECT * FROM {table}")
            return sum(checksum(row[:-1]) != row[-1] for row in found)

    def _roll_back(self) -> None:
        # After some errors SQLite has done so already.
        with _errors_of(self.path):
            if self._connection.in_transaction:
                self._connection.rollback()


def checksum(row: tuple) -> int:
    """CRC-32 of the values of a row and their types."""
    return zlib.crc32(ascii(row).encode())


def _connect(path: pathlib.Path, mode: str) -> sqlite3.Connection:
    uri = f"file:{urllib.parse.quote(str(path.absolute()))}?mode={mode}"
    connection = sqlite3.connect(
        uri, uri=True, timeout=30, isolation_level=None, check_same_thread=False
    )
    filters.register(connection)
    return connection


def _connect_writer(path: pathlib.Path, mode: str) -> sqlite3.Connection:
    connection = _connect(path, "rwc" if mode == "x" else "rw")
    # A commit is on disk when it returns; deleted text is overwritten and not only let go.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")
    return connection


def _connect_reader(path: pathlib.Path) -> sqlite3.Connection:
    connection = _connect(path, "ro")
    try:
        connection.execute("PRAGMA user_version").fetchall()
        return connection
    except sqlite3.OperationalError:
        # Readers meet in a file beside the catalogue; where none can be made, nobody writes
        # either, and the catalogue is all there is, unless a log is left over.
        connection.close()
        log = path.with_name(path.name + "-wal")
        if log.exists() and log.stat().st_size:
            raise
        return _connect(path, "ro&immutable=1")


@contextlib.contextmanager
def _errors_of(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", None) or ""
        advice = next((text for key, text in _ADVICE.items() if name.startswith(key)), None)
        raise StoreError(f"{path}: {advice or 'it cannot be used'} ({error}).") from error
    except UnicodeDecodeError as error:
        raise StoreError(f"{path}: {_DAMAGED} ({error}).") from error
    except (UnicodeEncodeError, OverflowError) as error:
        raise StoreError(f"{path}: no document or part is called that ({error}).") from None
