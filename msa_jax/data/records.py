"""Documents and questions as JSON Lines, checked while they are read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from msa_jax.data.files import (
    RecordError,
    check_json,
    checked_string,
    kind_of,
    opened,
    read_rows,
)

T = TypeVar("T")

_DATE = "date"


@dataclasses.dataclass(frozen=True)
class Document:
    """A text that a memory can hold.

    Attributes:
        id: unique and stable key.
        text: what it says; of a document that has a title only, the title.
        title: goes before the text, on a line of its own, unless it is the text; "" for none.
        metadata: anything else that the file says about the document.
    """

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.text.strip() and self.title.strip():
            object.__setattr__(self, "text", self.title)

    @property
    def shown(self) -> tuple[str, str, str]:
        """All that is shown of a document; those of which it is the same are copies."""
        return self.title.strip(), self.text.strip(), str(self.metadata.get(_DATE, ""))


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


def _read(path: str | os.PathLike, parse: Callable[[dict, str], T]) -> Iterator[tuple[str, T]]:
    with opened(path) as lines:
        yield from _records(lines, os.fspath(path), parse)


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


def _parse_document(row: dict, where: str) -> Document:
    return Document(
        id=_string(row, "id", where),
        text=_string(row, "text", where),
        title=checked_string(_optional(row, "title", ""), "title", where),
        metadata=_metadata(row, Document, where),
    )


def _parse_question(row: dict, where: str) -> Question:
    hops = _optional(row, "hops", [])
    if not isinstance(hops, list):
        raise RecordError(f"{where}: hops must be a list of lists, not {kind_of(hops)}.")
    question = Question(
        id=_string(row, "id", where),
        question=_string(row, "question", where),
        answers=_strings(_optional(row, "answers", []), "answers", where),
        positive_ids=_strings(_required(row, "positive_ids", where), "positive_ids", where),
        negative_ids=_strings(_optional(row, "negative_ids", []), "negative_ids", where),
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
    metadata = _optional(row, "metadata", {})
    if not isinstance(metadata, dict):
        raise RecordError(f"{where}: metadata must be an object, not {kind_of(metadata)}.")
    fields = {field.name for field in dataclasses.fields(cls)} - {"where"}
    others = {key: row[key] for key in row if key not in fields}
    twice = next((key for key in others if metadata.get(key, others[key]) != others[key]), None)
    if twice is not None:
        raise RecordError(f"{where}: {twice} is a field and, with another value, in metadata.")
    for key, value in (others | metadata).items():
        check_json({key: value}, f"{key!r}" if key in others else f"metadata {key!r}", where)
    return others | metadata


def _required(row: dict, field: str, where: str) -> Any:
    if field not in row:
        raise RecordError(f"{where}: {field} is missing.")
    return row[field]


def _optional(row: dict, field: str, default: Any) -> Any:
    """The value of a field that may be left out, or be null."""
    value = row.get(field)
    return default if value is None else value


def _string(row: dict, field: str, where: str) -> str:
    return checked_string(_required(row, field, where), field, where)


def _strings(value: Any, field: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise RecordError(f"{where}: {field} must be a list of strings, not {kind_of(value)}.")
    strings = tuple(checked_string(item, field, where) for item in value)
    if field != "answers" and len(set(strings)) < len(strings):
        raise RecordError(f"{where}: {field} names a document twice.")
    return strings


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
