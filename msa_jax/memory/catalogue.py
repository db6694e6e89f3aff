"""The catalogue of a bank: documents, parts and blocks in SQLite, in rows that never change.

A commit adds rows. A removal is a row as well, a tombstone, so every row keeps the checksum that
it was written with. Only compaction deletes rows: those of blocks that it has rewritten, and of
documents that were removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import pathlib
import sqlite3
import struct
import urllib.parse
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from msa_jax.data.records import Document
from msa_jax.memory.chunks import Layout
from msa_jax.memory.parts import EncodedDocument, PartTable, Passage, StoreError, spans
from msa_jax.memory.segments import Block, Run, block_bytes
from msa_jax.typing import Int

FORMAT = 1
_APPLICATION = 0x4D534142  # "MSAB"

_SCHEMA = f"""
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
BEGIN;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {FORMAT};
CREATE TABLE bank (description TEXT, checksum INTEGER);
CREATE TABLE commits (version INTEGER PRIMARY KEY, last_id INTEGER, documents INTEGER,
    parts INTEGER, chunks INTEGER, tokens INTEGER, checksum INTEGER);
CREATE TABLE documents (id INTEGER PRIMARY KEY, key TEXT, title TEXT, metadata TEXT,
    parts INTEGER, chunks INTEGER, tokens INTEGER, digest BLOB, checksum INTEGER);
CREATE INDEX documents_by_key ON documents (key);
CREATE TABLE parts (id INTEGER PRIMARY KEY, start INTEGER, stop INTEGER, tokens INTEGER,
    text TEXT, checksum INTEGER);
CREATE TABLE removed (id INTEGER PRIMARY KEY, parts INTEGER, version INTEGER, checksum INTEGER);
CREATE INDEX removed_by_version ON removed (version);
CREATE TABLE blocks (number INTEGER PRIMARY KEY AUTOINCREMENT, segment INTEGER, start INTEGER,
    num_chunks INTEGER, keys_crc INTEGER, content_crc INTEGER, ids BLOB, chunks BLOB,
    checksum INTEGER);
CREATE INDEX blocks_by_segment ON blocks (segment);
CREATE TABLE compacted (segment INTEGER PRIMARY KEY);
COMMIT;
"""

_LIVE = "NOT EXISTS (SELECT 1 FROM removed WHERE removed.id = documents.id)"

_ADVICE = {
    "SQLITE_FULL": "the disk is full; make room and try again",
    "SQLITE_IOERR": "the file cannot be read or written; look at the disk",
    "SQLITE_BUSY": "another process holds it; try again",
    "SQLITE_READONLY": "it cannot be written; open the bank for writing",
    "SQLITE_CANTOPEN": "it cannot be opened; look at its permissions",
    "SQLITE_CORRUPT": "it is damaged; restore the bank from a copy",
    "SQLITE_NOTADB": "it is damaged; restore the bank from a copy",
}


@dataclasses.dataclass(frozen=True)
class State:
    """A bank after its last commit; all but `version` and `last_id` count what is live."""

    version: int
    last_id: int
    documents: int
    parts: int
    chunks: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class Entry:
    """A live document."""

    id: int
    parts: int
    chunks: int
    tokens: int
    digest: bytes


def create(path: pathlib.Path, description: Mapping[str, Any]) -> None:
    """Makes an empty catalogue, durably."""
    text = json.dumps(description)
    with contextlib.closing(_connect(path, "rwc")) as connection, _clear(path):
        connection.executescript(_SCHEMA)
        connection.execute("INSERT INTO bank VALUES (?, ?)", _sealed(text))
        connection.execute("INSERT INTO commits VALUES (?, ?, ?, ?, ?, ?, ?)", _sealed(*[0] * 6))


class Catalogue:
    """An open catalogue; its methods must not be called by two threads at once.

    Attributes:
        path: of the file.
        description: what it was created with.
    """

    def __init__(self, path: pathlib.Path, write: bool):
        self.path = path
        with _clear(path):
            self._connection = _connect_writer(path) if write else _connect_reader(path)
        try:
            self._check_format()
            (text,) = self._one("SELECT * FROM bank", "the bank's description")
            self.description = json.loads(text)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Closes the file; the last one that wrote leaves no log behind."""
        self._connection.close()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read inside belongs to one version; part of a transaction if there is one."""
        with _clear(self.path):
            nested = self._connection.in_transaction
        if nested:
            yield
            return
        self.rows("BEGIN")
        try:
            yield
        finally:
            self.rows("COMMIT")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside becomes visible and durable at once, or none of it."""
        self.rows("BEGIN IMMEDIATE")
        try:
            yield
            self.rows("COMMIT")
        except BaseException:
            # SQLite has already rolled back after some errors.
            if self._connection.in_transaction:
                self._connection.rollback()
            raise

    # Reading.

    def state(self) -> State:
        """The bank after its last commit."""
        query = "SELECT * FROM commits ORDER BY version DESC LIMIT 1"
        return State(*self._one(query, "the last commit"))

    def last_id(self, version: int) -> int:
        """The highest id that had ever been committed up to a version."""
        rows = self._checked("SELECT * FROM commits WHERE version = ?", "a commit", version)
        if not rows:
            raise StoreError(f"{self.path}: there is no version {version}; start from version 0.")
        return rows[0][1]

    def compactions(self) -> int:
        """How many segments have been compacted away."""
        return self.rows("SELECT count(*) FROM compacted")[0][0]

    def last_segment(self) -> int:
        """The highest number that a segment ever had."""
        query = "SELECT max(segment) FROM {}"
        numbers = [self.rows(query.format(table))[0][0] for table in ("blocks", "compacted")]
        return max(number or 0 for number in numbers)

    def find(self, key: str) -> Entry | None:
        """The live document of a key."""
        query = f"SELECT * FROM documents WHERE key = ? AND {_LIVE}"
        for row in self._checked(query, f"document {key!r}", key):
            return Entry(row[0], *row[4:])
        return None

    def keys(self) -> list[str]:
        """Keys of the live documents, the oldest first."""
        return [key for (key,) in self.rows(f"SELECT key FROM documents WHERE {_LIVE} ORDER BY id")]

    def select(self, conditions: Sequence[str], values: Sequence[Any]) -> Int[np.ndarray, " n"]:
        """Ids of the parts of live documents that meet all conditions on their rows."""
        where = " AND ".join([_LIVE, *conditions])
        rows = self.rows(f"SELECT id, parts FROM documents WHERE {where} ORDER BY id", *values)
        return _part_ids(rows)

    def removed(self, since: int) -> Int[np.ndarray, " n"]:
        """Ids of parts that were removed after a version, ascending."""
        query = "SELECT * FROM removed WHERE version > ?"
        rows = self._checked(query, "a removal", since)
        return np.sort(_part_ids([row[:2] for row in rows]))

    def placed(self, after: int) -> tuple[PartTable, int]:
        """Parts, removed ones too, of the blocks after number `after`; and the last number."""
        query = "SELECT * FROM blocks WHERE number > ? ORDER BY number"
        rows = self._checked(query, "a block", after)
        numbers, ids, chunks = ([row[at] for row in rows] for at in (0, 6, 7))
        parts_of = np.array([len(blob) // 8 for blob in ids], np.int64)
        ids, chunks = (np.frombuffer(b"".join(blobs), "<i8") for blobs in (ids, chunks))
        starts = np.cumsum(chunks) - chunks
        block_starts = starts[np.cumsum(parts_of) - parts_of]
        blocks = np.repeat(np.array(numbers, np.int64), parts_of)
        table = PartTable(ids, chunks, blocks, starts - np.repeat(block_starts, parts_of))
        return table, max(numbers, default=after)

    def block(self, number: int) -> Block | None:
        """A block; None if it was compacted away."""
        for row in self._checked("SELECT * FROM blocks WHERE number = ?", "a block", number):
            return Block(*row[1:6])
        return None

    def blocks(self) -> dict[int, Block]:
        """All blocks by number."""
        rows = self._checked("SELECT * FROM blocks ORDER BY segment, start", "a block")
        return {row[0]: Block(*row[1:6]) for row in rows}

    def ends(self, layout: Layout) -> dict[int, int]:
        """How many bytes of each segment belong to blocks."""
        query = "SELECT number, max(start) FROM blocks GROUP BY segment ORDER BY segment"
        last = [self.block(number) for number, _ in self.rows(query)]
        return {x.segment: x.start + block_bytes(layout, x.num_chunks) for x in last}

    def passage(self, part_id: int) -> Passage:
        """The original of a part; of a removed one, too, until compaction has purged it."""
        parts = self._checked("SELECT * FROM parts WHERE id = ?", f"part {part_id}", part_id)
        query = "SELECT * FROM documents WHERE id <= ? ORDER BY id DESC LIMIT 1"
        documents = self._checked(query, f"the document of part {part_id}", part_id)
        if not parts or not documents:
            raise StoreError(
                f"{self.path}: there is no part {part_id}; it was removed, or never was."
            )
        ((_, start, stop, tokens, text),) = parts
        ((first, key, title, metadata, num_parts, *_),) = documents
        begin = start if part_id == first else 0
        return Passage(
            id=part_id,
            key=key,
            title=title,
            text=text[begin : begin + stop - start],
            metadata=json.loads(metadata),
            part=part_id - first,
            num_parts=num_parts,
            tokens=tokens,
        )

    # Writing, inside a transaction.

    def add_documents(self, documents: Sequence[EncodedDocument]) -> None:
        """Adds documents and their parts."""
        self._insert("documents", map(_document_row, documents))
        self._insert("parts", itertools.chain.from_iterable(map(_part_rows, documents)))

    def remove(self, entries: Sequence[Entry], version: int) -> None:
        """Adds the tombstones of documents."""
        self._insert("removed", [(entry.id, entry.parts, version) for entry in entries])

    def add_blocks(self, blocks: Iterable[tuple[Block, Run]]) -> None:
        """Adds blocks and the parts that each holds."""
        # SQLite keeps the highest number ever, so that none is used again after compaction.
        ((last,),) = self.rows("SELECT max(seq) FROM sqlite_sequence WHERE name = 'blocks'")
        rows = (
            (number, *dataclasses.astuple(block), _blob(run.ids), _blob(run.counts))
            for number, (block, run) in enumerate(blocks, start=(last or 0) + 1)
        )
        self._insert("blocks", rows)

    def drop_segment(self, segment: int) -> None:
        """Deletes the blocks of a segment, whose number is not used again."""
        self.rows("DELETE FROM blocks WHERE segment = ?", segment)
        self.rows("INSERT INTO compacted VALUES (?)", segment)

    def purge(self) -> None:
        """Deletes the texts of removed documents; their ids remain, as tombstones."""
        found = "FROM documents JOIN removed USING (id)"
        with _clear(self.path):
            self._connection.executemany(
                "DELETE FROM parts WHERE id >= ? AND id < ?",
                self.rows(f"SELECT id, id + removed.parts {found}"),
            )
        self.rows("DELETE FROM documents WHERE id IN (SELECT id FROM removed)")

    def add_commit(self, state: State) -> None:
        """Makes `state` the last one."""
        self._insert("commits", [dataclasses.astuple(state)])

    def shrink(self) -> None:
        """Gives free pages back, outside a transaction, and empties the log."""
        with _clear(self.path):
            # A pragma that returns no rows does one step in `execute`, and all in a script.
            self._connection.executescript("PRAGMA incremental_vacuum")
        self.rows("PRAGMA wal_checkpoint(TRUNCATE)")

    # SQL.

    def rows(self, query: str, *values: Any) -> list[tuple]:
        """What a query finds."""
        with _clear(self.path):
            return self._connection.execute(query, values).fetchall()

    def has_its_schema(self) -> bool:
        """Whether the tables are as they were made."""
        query = "SELECT type, name, tbl_name, sql FROM sqlite_master"
        with contextlib.closing(sqlite3.connect(":memory:")) as fresh:
            fresh.executescript(_SCHEMA)
            return self.rows(query) == fresh.execute(query).fetchall()

    def count_damaged(self, table: str) -> int:
        """How many rows of a table do not have their checksum."""
        with _clear(self.path):
            rows = self._connection.execute(f"SELECT * FROM {table}")
            return sum(checksum(*row[:-1]) != row[-1] for row in rows)

    def _insert(self, table: str, rows: Iterable[tuple]) -> None:
        sealed = [_sealed(*row) for row in rows]
        if sealed:
            marks = ", ".join("?" * len(sealed[0]))
            with _clear(self.path):
                self._connection.executemany(f"INSERT INTO {table} VALUES ({marks})", sealed)

    def _checked(self, query: str, what: str, *values: Any) -> list[tuple]:
        """Rows that end with their checksum, without it."""
        return [self._check(row, what) for row in self.rows(query, *values)]

    def _one(self, query: str, what: str) -> Sequence[Any]:
        for row in self._checked(query, what):
            return row
        raise StoreError(f"{self.path}: {what} is missing; restore the bank from a copy.")

    def _check(self, row: Sequence[Any], what: str) -> Sequence[Any]:
        if checksum(*row[:-1]) != row[-1]:
            raise StoreError(
                f"{self.path}: the row of {what} is damaged; restore the bank from a copy."
            )
        return row[:-1]

    def _check_format(self) -> None:
        application = self.rows("PRAGMA application_id")[0][0]
        version = self.rows("PRAGMA user_version")[0][0]
        if application != _APPLICATION:
            raise StoreError(f"{self.path}: this is not the catalogue of a bank.")
        if version > FORMAT:
            raise StoreError(
                f"{self.path}: the bank has format {version} and this program knows formats up to "
                f"{FORMAT}; update msa_jax."
            )


def checksum(*values: Any) -> int:
    """CRC-32 of the values of a row and their types."""
    crc = 0
    for value in values:
        data = value if isinstance(value, bytes) else str(value).encode()
        crc = zlib.crc32(f"{type(value).__name__} {len(data)} ".encode(), crc)
        crc = zlib.crc32(data, crc)
    return crc


def metadata_json(document: Document) -> str:
    """Metadata as text; equal for equal metadata."""
    try:
        return json.dumps(dict(document.metadata), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"document {document.id!r}: metadata must be what JSON can say ({error})."
        ) from None


def digest(document: Document) -> bytes:
    """A fingerprint of all that a document says."""
    hashed = hashlib.blake2b(digest_size=16)
    for text in (document.id, document.title, document.text, metadata_json(document)):
        data = _utf8(document, text)
        hashed.update(struct.pack("<q", len(data)) + data)
    return hashed.digest()


def _utf8(document: Document, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise StoreError(
            f"document {document.id!r} holds an unpaired surrogate (\\ud800); remove it."
        ) from None


def _sealed(*values: Any) -> tuple:
    return *values, checksum(*values)


def _blob(numbers: Sequence[int]) -> bytes:
    return np.asarray(numbers, "<i8").tobytes()


def _part_ids(rows: Sequence[tuple[int, int]]) -> Int[np.ndarray, " n"]:
    documents = np.array(rows, np.int64).reshape(-1, 2)
    return spans(documents[:, 0], documents[:, 1])


def _document_row(encoded: EncodedDocument) -> tuple:
    document, parts = encoded.document, encoded.parts
    totals = (len(parts), sum(x.chunks for x in parts), sum(x.tokens for x in parts))
    texts = (document.id, document.title, metadata_json(document))
    return (parts[0].id, *texts, *totals, digest(document))


def _part_rows(encoded: EncodedDocument) -> Iterator[tuple]:
    """Rows of the parts; the text is cut where they start, so that nothing of it is lost."""
    text, parts = encoded.document.text, encoded.parts
    cuts = [0, *(part.start for part in parts[1:]), len(text)]
    for part, (start, stop) in zip(parts, itertools.pairwise(cuts), strict=True):
        yield part.id, part.start, part.stop, part.tokens, text[start:stop]


def _connect(path: pathlib.Path, mode: str) -> sqlite3.Connection:
    uri = f"file:{urllib.parse.quote(str(path.absolute()))}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=30, isolation_level=None, check_same_thread=False)


def _connect_writer(path: pathlib.Path) -> sqlite3.Connection:
    connection = _connect(path, "rw")
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
        # Readers share their locks in a file beside the catalogue; where none can be made, nobody
        # writes either, and the catalogue is all there is, unless a log is left over.
        connection.close()
        log = path.with_name(path.name + "-wal")
        if log.exists() and log.stat().st_size:
            raise
        return _connect(path, "ro&immutable=1")


@contextlib.contextmanager
def _clear(path: pathlib.Path) -> Iterator[None]:
    """Says what is wrong in a sentence of ours."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", None) or ""
        advice = next((text for key, text in _ADVICE.items() if name.startswith(key)), "")
        raise StoreError(f"{path}: {advice or 'it cannot be used'} ({error}).") from error
    except UnicodeDecodeError as error:
        advice = _ADVICE["SQLITE_CORRUPT"]
        raise StoreError(f"{path}: {advice} ({error}).") from error
    except (UnicodeEncodeError, OverflowError) as error:
        raise StoreError(
            f"{path}: no document has such a key, or part such an id ({error})."
        ) from None
