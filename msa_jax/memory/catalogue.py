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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from msa_jax.data.records import Document
from msa_jax.memory.chunks import Layout
from msa_jax.memory.database import Database
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
    """Makes an empty catalogue."""
    with contextlib.closing(Database(path, "x")) as database:
        database.script(_SCHEMA)
        database.insert("bank", [(json.dumps(description),)])
        database.insert("commits", [dataclasses.astuple(State(0, 0, 0, 0, 0, 0))])


class Catalogue(Database):
    """An open catalogue.

    Attributes:
        description: what it was created with.
    """

    def __init__(self, path: pathlib.Path, write: bool):
        super().__init__(path, "w" if write else "r")
        try:
            self._check_format()
            (text,) = self._one("the bank's description", "SELECT * FROM bank")
            self.description = json.loads(text)
        except BaseException:
            self.close()
            raise

    # Reading.

    def state(self) -> State:
        """The bank after its last commit."""
        query = "SELECT * FROM commits ORDER BY version DESC LIMIT 1"
        return State(*self._one("the last commit", query))

    def last_id(self, version: int) -> int:
        """The highest id that had ever been committed up to a version."""
        rows = self.checked("a commit", "SELECT * FROM commits WHERE version = ?", version)
        if not rows:
            raise StoreError(f"{self.path}: there is no version {version}; start from version 0.")
        return rows[0][1]

    def mark(self, version: int) -> int | None:
        """The checksum of a commit, by which histories are told apart; None if there is none."""
        rows = self.rows("SELECT checksum FROM commits WHERE version = ?", version)
        return rows[0][0] if rows else None

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
        for row in self.checked(f"document {key!r}", query, key):
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
        rows = self.checked("a removal", query, since)
        return np.sort(_part_ids([row[:2] for row in rows]))

    def placed(self, after: int) -> tuple[PartTable, int]:
        """Parts, removed ones too, of the blocks after number `after`; and the last number."""
        query = "SELECT * FROM blocks WHERE number > ? ORDER BY number"
        rows = self.checked("a block", query, after)
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
        for row in self.checked("a block", "SELECT * FROM blocks WHERE number = ?", number):
            return Block(*row[1:6])
        return None

    def blocks(self) -> dict[int, Block]:
        """All blocks by number."""
        rows = self.checked("a block", "SELECT * FROM blocks ORDER BY segment, start")
        return {row[0]: Block(*row[1:6]) for row in rows}

    def ends(self, layout: Layout) -> dict[int, int]:
        """How many bytes of each segment belong to blocks."""
        query = "SELECT number, max(start) FROM blocks GROUP BY segment ORDER BY segment"
        with self.snapshot():
            last = [self.block(number) for number, _ in self.rows(query)]
        return {x.segment: x.start + block_bytes(layout, x.num_chunks) for x in last}

    def passage(self, part_id: int) -> Passage:
        """The original of a part; of a removed one, too, until compaction has purged it."""
        parts = self.checked(f"part {part_id}", "SELECT * FROM parts WHERE id = ?", part_id)
        query = "SELECT * FROM documents WHERE id <= ? ORDER BY id DESC LIMIT 1"
        documents = self.checked(f"the document of part {part_id}", query, part_id)
        if not parts or not documents:
            raise StoreError(
                f"{self.path}: there is no part {part_id}; it was removed, or never was."
            )
        ((first, key, title, metadata, num_parts, *_),) = documents
        return Passage(
            id=part_id,
            key=key,
            title=title,
            text=_own_text(parts[0], part_id == first),
            metadata=json.loads(metadata),
            part=part_id - first,
            num_parts=num_parts,
            tokens=parts[0][3],
        )

    def texts(self, ids: Sequence[int]) -> list[tuple[int, str]]:
        """Parts and their texts, with the title where memory holds it: at the first part.

        Parts that were removed and purged since are left out.
        """
        query = "SELECT * FROM {} WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id"
        wanted = json.dumps(list(ids))
        with self.snapshot():
            parts = self.checked("a part", query.format("parts"), wanted)
            documents = self.checked("a document", query.format("documents"), wanted)
        titles = {row[0]: row[2] for row in documents}
        return [
            (row[0], f"{titles[row[0]]}\n{_own_text(row, True)}")
            if row[0] in titles
            else (row[0], _own_text(row, False))
            for row in parts
        ]

    def num_forgotten(self) -> int:
        """How many removed documents' texts have been purged."""
        with self.snapshot():
            counts = "(SELECT count(*) FROM removed) - (SELECT count(*) FROM documents)"
            return self.rows(f"SELECT {counts}")[0][0] + self.state().documents

    # Writing, inside a transaction.

    def add_documents(self, documents: Sequence[EncodedDocument]) -> None:
        """Adds documents and their parts."""
        self.insert("documents", map(_document_row, documents))
        self.insert("parts", itertools.chain.from_iterable(map(_part_rows, documents)))

    def remove(self, entries: Sequence[Entry], version: int) -> None:
        """Adds the tombstones of documents."""
        self.insert("removed", [(entry.id, entry.parts, version) for entry in entries])

    def add_blocks(self, blocks: Iterable[tuple[Block, Run]]) -> None:
        """Adds blocks and the parts that each holds."""
        # SQLite keeps the highest number ever, so that none is used again after compaction.
        ((last,),) = self.rows("SELECT max(seq) FROM sqlite_sequence WHERE name = 'blocks'")
        rows = (
            (number, *dataclasses.astuple(block), _blob(run.ids), _blob(run.counts))
            for number, (block, run) in enumerate(blocks, start=(last or 0) + 1)
        )
        self.insert("blocks", rows)

    def drop_segment(self, segment: int) -> None:
        """Deletes the blocks of a segment, whose number is not used again."""
        self.rows("DELETE FROM blocks WHERE segment = ?", segment)
        self.rows("INSERT INTO compacted VALUES (?)", segment)

    def purge(self) -> None:
        """Deletes the texts of removed documents; their ids remain, as tombstones."""
        found = "FROM documents JOIN removed USING (id)"
        purged = self.rows(f"SELECT id, id + removed.parts {found}")
        self.change("DELETE FROM parts WHERE id >= ? AND id < ?", purged)
        self.rows("DELETE FROM documents WHERE id IN (SELECT id FROM removed)")

    def add_commit(self, state: State) -> None:
        """Makes `state` the last one."""
        self.insert("commits", [dataclasses.astuple(state)])

    def shrink(self) -> None:
        """Gives free pages back, outside a transaction, and empties the log."""
        # A pragma that returns no rows takes one step in a query, and all of them in a script.
        self.script("PRAGMA incremental_vacuum")
        self.rows("PRAGMA wal_checkpoint(TRUNCATE)")

    def has_its_schema(self) -> bool:
        """Whether the tables are as they were made."""
        query = "SELECT type, name, tbl_name, sql FROM sqlite_master"
        with contextlib.closing(sqlite3.connect(":memory:")) as fresh:
            fresh.executescript(_SCHEMA)
            return self.rows(query) == fresh.execute(query).fetchall()

    def _one(self, what: str, query: str) -> tuple:
        for row in self.checked(what, query):
            return row
        raise StoreError(f"{self.path}: {what} is missing; restore the bank from a copy.")

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


def _blob(numbers: Sequence[int]) -> bytes:
    return np.asarray(numbers, "<i8").tobytes()


def _part_ids(rows: Sequence[tuple[int, int]]) -> Int[np.ndarray, " n"]:
    documents = np.array(rows, np.int64).reshape(-1, 2)
    return spans(documents[:, 0], documents[:, 1])


def _own_text(row: tuple, is_first: bool) -> str:
    """The text of a part without what lies before it and up to the next part."""
    _, start, stop, _, text = row
    begin = start if is_first else 0
    return text[begin : begin + stop - start]


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
