"""Documents and questions as JSON Lines, checked while they are read."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import lzma
import os
import pathlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any, TypeVar

T = TypeVar("T")

_OPENERS: dict[str, Callable] = {".gz": gzip.open, ".xz": lzma.open}


class RecordError(ValueError):
    """A record that cannot be used; the message names the file, the line and the field."""


@dataclasses.dataclass(frozen=True)
class Document:
    """A text that a memory can hold.

    Attributes:
        id: unique and stable key.
        title: goes before the text, on a line of its own; "" for none.
        metadata: anything else that the file says about the document.
    """

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Question:
    """A question on a set of documents.

    Attributes:
        answers: accepted answers, the preferred one first; may be empty.
        positive_ids: documents that are needed to answer.
        negative_ids: documents that look relevant and are not.
        hops: `positive_ids` in the order in which they are needed, one tuple per retrieval step;
            empty when one step finds them all.
        metadata: anything else that the file says about the question.
        where: `file:line` that the question was read from, for error messages.
    """

    id: str
    question: str
    answers: tuple[str, ...] = ()
    positive_ids: tuple[str, ...] = ()
    negative_ids: tuple[str, ...] = ()
    hops: tuple[tuple[str, ...], ...] = ()
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    where: str = dataclasses.field(default="", compare=False, repr=False)


def read_documents(path: str | os.PathLike) -> list[Document]:
    """Reads `{"id", "text", "title"?, "metadata"?}` lines; other fields join the metadata.

    Args:
        path: a JSON Lines file in UTF-8, plain or compressed (`.gz`, `.xz`).

    Raises:
        RecordError: for a line that is not such a record, or an id that occurs twice.
    """
    return list(_refuse_repeated_ids(_read(path, _parse_document)))


def read_questions(path: str | os.PathLike) -> list[Question]:
    """Reads `{"id", "question", "positive_ids", "answers"?, "negative_ids"?, "hops"?}` lines.

    Other fields join the metadata. An id that occurs again becomes `id#2`, `id#3`, and so on:
    nothing refers to a question, so that its id only has to tell it from the others.

    Args:
        path: a JSON Lines file in UTF-8, plain or compressed (`.gz`, `.xz`).

    Raises:
        RecordError: for a line that is not such a record, an empty question, a document that is
            both positive and negative, or hops that are not the positives.
    """
    return list(_with_distinct_ids(_read(path, _parse_question)))


def write_documents(path: str | os.PathLike, documents: Iterable[Document]) -> None:
    """Writes documents so that `path` holds either the old file or the whole new one."""
    _write(path, (dataclasses.asdict(document) for document in documents))


def write_questions(path: str | os.PathLike, questions: Iterable[Question]) -> None:
    """Writes questions so that `path` holds either the old file or the whole new one."""
    rows = (dataclasses.asdict(question) for question in questions)
    _write(path, ({key: row[key] for key in row if key != "where"} for row in rows))


def check_references(documents: Iterable[Document], questions: Iterable[Question]) -> None:
    """Checks that every document that a question names exists.

    Raises:
        RecordError: for the first id that no document has.
    """
    known = {document.id for document in documents}
    for question in questions:
        named = {
            "positive_ids": question.positive_ids,
            "negative_ids": question.negative_ids,
            "hops": tuple(doc_id for hop in question.hops for doc_id in hop),
        }
        for field, ids in named.items():
            unknown = next((doc_id for doc_id in ids if doc_id not in known), None)
            if unknown is not None:
                where = question.where or f"question {question.id!r}"
                raise RecordError(f"{where}: {field} names {unknown!r}, which is no document's id.")


def iterate_documents(lines: Iterable[bytes], name: str) -> Iterator[Document]:
    """Yields the documents of JSON Lines one by one, as `read_documents` reads them.

    Args:
        lines: of a file or a pipe.
        name: what error messages call it.

    Raises:
        RecordError: as `read_documents`, when the line is reached.
    """
    return _refuse_repeated_ids(_records(lines, name, _parse_document))


def decompressed(file: IO[bytes], name: str | os.PathLike) -> IO[bytes]:
    """What is in an open file, which is compressed if its name ends in `.gz` or `.xz`."""
    opener = _OPENERS.get(pathlib.Path(name).suffix)
    return file if opener is None else opener(file)


def _read(path: str | os.PathLike, parse: Callable[[dict, str], T]) -> Iterator[tuple[str, T]]:
    if not os.path.isfile(path):
        raise RecordError(f"{os.fspath(path)}: there is no such file.")
    with open(path, "rb") as file:
        yield from _records(decompressed(file, path), os.fspath(path), parse)


def _records(
    lines: Iterable[bytes], name: str, parse: Callable[[dict, str], T]
) -> Iterator[tuple[str, T]]:
    for where, row in read_rows(lines, name):
        yield where, parse(row, where)


def _refuse_repeated_ids(found: Iterable[tuple[str, Document]]) -> Iterator[Document]:
    first_seen: dict[str, str] = {}
    for where, record in found:
        if record.id in first_seen:
            raise RecordError(
                f"{where}: id {record.id!r} is already used at {first_seen[record.id]}."
            )
        first_seen[record.id] = where
        yield record


def _with_distinct_ids(found: Iterable[tuple[str, Question]]) -> Iterator[Question]:
    seen: Counter[str] = Counter()
    for _, question in found:
        seen[question.id] += 1
        count = seen[question.id]
        yield question if count == 1 else dataclasses.replace(question, id=f"{question.id}#{count}")


def read_rows(lines: Iterable[bytes], name: str) -> Iterator[tuple[str, dict]]:
    """Yields `file:line` and the object of every JSON line that is not blank."""
    # Bytes split at b"\n" only: str.splitlines would also split at U+2028 inside a text.
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError as error:
            raise RecordError(f"{where}: not a line of JSON in UTF-8 ({error}).") from None
        if not isinstance(row, dict):
            raise RecordError(f"{where}: a record must be an object, not {kind_of(row)}.")
        yield where, row


def _parse_document(row: dict, where: str) -> Document:
    return Document(
        id=_string(row, "id", where),
        text=_string(row, "text", where),
        title=_string(row, "title", where, default=""),
        metadata=_metadata(row, Document, where),
    )


def _parse_question(row: dict, where: str) -> Question:
    hops = row.get("hops", [])
    if not isinstance(hops, list):
        raise RecordError(f"{where}: hops must be a list of lists, not {kind_of(hops)}.")
    question = Question(
        id=_string(row, "id", where),
        question=_string(row, "question", where),
        answers=_strings(row.get("answers", []), "answers", where),
        positive_ids=_strings(_required(row, "positive_ids", where), "positive_ids", where),
        negative_ids=_strings(row.get("negative_ids", []), "negative_ids", where),
        hops=tuple(_strings(hop, "hops", where) for hop in hops),
        metadata=_metadata(row, Question, where),
        where=where,
    )
    if not question.question.strip():
        raise RecordError(f"{where}: question is empty.")
    both = set(question.positive_ids) & set(question.negative_ids)
    if both:
        raise RecordError(f"{where}: negative_ids names {min(both)!r}, which is also a positive.")
    named = sorted(doc_id for hop in question.hops for doc_id in hop)
    if question.hops and (named != sorted(question.positive_ids) or not all(question.hops)):
        raise RecordError(f"{where}: hops must name each document of positive_ids exactly once.")
    return question


def _metadata(row: dict, cls: type, where: str) -> dict:
    """What `metadata` holds, and the fields that records of a class do not have."""
    metadata = row.get("metadata", {})
    if not isinstance(metadata, dict):
        raise RecordError(f"{where}: metadata must be an object, not {kind_of(metadata)}.")
    fields = {field.name for field in dataclasses.fields(cls)}
    return {key: row[key] for key in row if key not in fields} | metadata


def _required(row: dict, field: str, where: str) -> Any:
    if field not in row:
        raise RecordError(f"{where}: {field} is missing.")
    return row[field]


def _string(row: dict, field: str, where: str, default: str | None = None) -> str:
    value = row.get(field, default) if default is not None else _required(row, field, where)
    return checked_string(value, field, where)


def _strings(value: Any, field: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise RecordError(f"{where}: {field} must be a list of strings, not {kind_of(value)}.")
    strings = tuple(checked_string(item, field, where) for item in value)
    if field != "answers" and len(set(strings)) < len(strings):
        raise RecordError(f"{where}: {field} names a document twice.")
    return strings


def checked_string(value: Any, field: str, where: str) -> str:
    """A value that must be text which can be encoded."""
    if not isinstance(value, str):
        raise RecordError(f"{where}: {field} must be text, not {kind_of(value)}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        # JSON can escape half of a surrogate pair; no tokenizer can encode it.
        raise RecordError(f"{where}: {field} holds an unpaired surrogate (\\ud800).") from None
    return value


def kind_of(value: Any) -> str:
    """What error messages call a value of JSON."""
    kinds = {type(None): "null", list: "a list", dict: "an object", str: "text", bool: "a boolean"}
    return kinds.get(type(value), "a number")


def _write(path: str | os.PathLike, rows: Iterable[dict]) -> None:
    path = pathlib.Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
