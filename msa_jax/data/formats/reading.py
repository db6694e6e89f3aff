"""Files of other projects as checked records, one at a time."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msa_jax.data.files import (
    RecordError,
    checked_string,
    decoded,
    json_decoder,
    kind_of,
    opened,
    parse_json,
    read_rows,
)
from msa_jax.data.records import Document, Question

Record = Document | Question

# Characters that are read at once.
_BLOCK = 1 << 20
# Bytes in which the fields of a record, or some of them, are found.
_HEAD = 1 << 18
_BETWEEN = re.compile(r"[\s,]*")
_SPLIT = re.compile(r"(?<![a-z])(train|dev|test|eval|validation|valid)(?![a-z])")


class Fields:
    """The fields of a record; one that is missing or of another kind is a `RecordError`.

    Attributes:
        values: all of them, unchecked.
        where: what error messages say of the record.
    """

    def __init__(self, values: Any, where: str):
        if not isinstance(values, Mapping):
            raise RecordError(f"{where}: must be an object, not {kind_of(values)}.")
        self.values, self.where = values, where

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __getitem__(self, name: str) -> Any:
        if name not in self.values:
            raise RecordError(f"{self.where}: {name} is missing.")
        return self.values[name]

    def text(self, name: str) -> str:
        """A field that must be text, without the white space around it."""
        return checked_string(self[name], name, self.where).strip()

    def label(self, name: str) -> str:
        """A field that may also be a number."""
        return str(self[name]) if isinstance(self[name], int | float) else self.text(name)

    def items(self, name: str) -> list:
        """A field that must be a list."""
        if not isinstance(self[name], list):
            raise RecordError(f"{self.where}: {name} must be a list, not {kind_of(self[name])}.")
        return self[name]

    def texts(self, name: str) -> list[str]:
        """A field that must be a list of text."""
        return [checked_string(item, name, self.where).strip() for item in self.items(name)]

    def tuples(self, name: str, parts: tuple[str, ...]) -> list[Fields]:
        """A field that must be a list of lists with these parts."""
        items = self.items(name)
        for item in items:
            if not isinstance(item, list) or len(item) != len(parts):
                raise RecordError(f"{self.where}: {name} must hold lists of [{', '.join(parts)}].")
        return [
            Fields(dict(zip(parts, item, strict=True)), f"{self.where}, {name}[{index}]")
            for index, item in enumerate(items)
        ]

    def rows(self, name: str) -> list[Fields]:
        """A field that must be a list of objects."""
        return [
            Fields(item, f"{self.where}, {name}[{index}]")
            for index, item in enumerate(self.items(name))
        ]


def paragraph(dataset: str, text: str, title: str = "", key: str = "", **metadata) -> Document:
    """A document whose id is made of what it says, so that a copy is the same document.

    Args:
        dataset: what the id begins with, and the field `source` of the metadata.
        text: of the document.
        title: of the document.
        key: more that must be the same in a copy.
        **metadata: more of it; must follow from the title, the text and the key.
    """
    said = "\0".join((title, text, key)).encode("utf-8")
    doc_id = f"{dataset}-{hashlib.sha256(said).hexdigest()[:16]}"
    return Document(doc_id, text, title, {"source": dataset, **metadata})


def question_metadata(dataset: str, split: str | None, **more: str | None) -> dict[str, str]:
    """The metadata of a question, without what is not known."""
    known = {"dataset": dataset, "split": split, **more}
    return {name: value for name, value in known.items() if value is not None}


def split_of(path: Path) -> str | None:
    """The split that the name of a file tells."""
    match = _SPLIT.search(path.name.lower())
    return match[1] if match else None


def head(path: Path) -> str:
    """The beginning of a file of text."""
    with opened(path) as file:
        return file.read(_HEAD).decode("utf-8-sig", errors="replace")


def read_whole(path: Path) -> Fields:
    """The object that a JSON file is."""
    with opened(path) as file:
        content = decoded(file.read(), str(path))
    if not content.strip():
        raise RecordError(f"{path}: the file is empty.")
    return Fields(parse_json(content, str(path)), str(path))


def read_list(path: Path) -> Iterator[Fields]:
    """The objects of the list that a JSON file is, which may be larger than memory."""
    with opened(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            for number, value in enumerate(_values(text, path), start=1):
                yield Fields(value, f"{path}, entry {number}")
        except UnicodeDecodeError as error:
            raise RecordError(f"{path}: not text in UTF-8 ({error.reason}).") from None


def read_lines(path: Path) -> Iterator[Fields]:
    """The objects of a file of JSON Lines."""
    with opened(path) as file:
        for where, row in read_rows(file, str(path)):
            yield Fields(row, where)


def read_table(path: Path, num_columns: int) -> Iterator[tuple[str, list[str]]]:
    """`file:line` and the columns of every line of a file with tabs between them."""
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            columns = decoded(line, where, is_start=number == 1).rstrip("\r\n").split("\t")
            if len(columns) != num_columns:
                raise RecordError(
                    f"{where}: must be {num_columns} columns with tabs between them, not "
                    f"{len(columns)}."
                )
            yield where, columns


def _values(file: io.TextIOWrapper, path: Path) -> Iterator[Any]:
    decoder = json_decoder()
    buffer = file.read(_BLOCK)
    if not buffer.strip():
        raise RecordError(f"{path}: the file is empty.")
    if "\0" in buffer:
        raise RecordError(f"{path}: is UTF-16 or no text; convert it to UTF-8.")
    if not buffer.lstrip().startswith("["):
        raise RecordError(f"{path}: must be one list of objects in JSON.")
    start, number = buffer.index("[") + 1, 1
    while True:
        start = _BETWEEN.match(buffer, start).end()
        if buffer.startswith("]", start):
            return
        try:
            value, start = decoder.raw_decode(buffer, start)
        except RecursionError:
            raise RecordError(
                f"{path}, entry {number}: JSON in more levels than can be read."
            ) from None
        except json.JSONDecodeError as error:
            # Twice as much each time: an entry that is long is not parsed over and over.
            more = file.read(max(_BLOCK, len(buffer) - start))
            if not more:
                raise RecordError(
                    f"{path}, entry {number}: not JSON, or cut short ({error.msg})."
                ) from None
            buffer, start = buffer[start:] + more, 0
        except ValueError as error:
            raise RecordError(f"{path}, entry {number}: not JSON ({error}).") from None
        else:
            number += 1
            yield value
