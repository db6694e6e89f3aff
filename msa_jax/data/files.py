"""Files that others wrote: opened, decompressed, decoded and parsed.

What cannot be read as it should is a `RecordError`, which says of which file, and where it can of
which line.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import gzip
import io
import json
import lzma
import math
import os
import pathlib
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from msa_jax import lfs
from msa_jax.errors import RecordError

_OPENERS: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {".gz": gzip.open, ".xz": lzma.open}
_MAGIC = {b"\x1f\x8b": ".gz", b"\xfd7zXZ\0": ".xz"}
_DAMAGES = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
# JSON of other depths than these is no record, and some of what reads metadata is recursive.
_MOST_LEVELS = 64
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def status_of(path: str | os.PathLike) -> os.stat_result:
    """The size and time of a regular file.

    Raises:
        RecordError: for anything else: opening a pipe, for one, would wait for a writer.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        is_link = os.path.islink(path)
        what = "is a link to a file that is not there" if is_link else "there is no such file"
        raise RecordError(f"{os.fspath(path)}: {what}.") from None
    except (OSError, ValueError) as error:
        raise RecordError(_unreadable(path, error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise RecordError(f"{os.fspath(path)}: is {kind_of_file(status)}, not a file.")
    return status


def kind_of_file(status: os.stat_result) -> str:
    """What messages call what is at a path."""
    return _KINDS.get(stat.S_IFMT(status.st_mode), "a file")


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """What is in a file, which is compressed if its name ends in `.gz` or `.xz`.

    Raises:
        RecordError: if it is no file or cannot be read, also while it is read.
    """
    status_of(path)
    with reading(path), open(path, "rb") as file:
        yield decompressed(file, path)


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Turns what goes wrong while a file is read into a `RecordError` that names it."""
    try:
        yield
    except _DAMAGES as error:
        raise RecordError(
            f"{os.fspath(path)}: cannot be read ({error}); it is cut short, damaged, or not "
            "compressed as its name says."
        ) from None
    except OSError as error:
        raise RecordError(_unreadable(path, error)) from None


def decompressed(file: IO[bytes], name: str | os.PathLike) -> IO[bytes]:
    """What is in an open file, which is compressed if its name ends in `.gz` or `.xz`."""
    opener = _OPENERS.get(pathlib.Path(name).suffix.lower())
    if opener is None:
        return file
    buffered = file if hasattr(file, "peek") else io.BufferedReader(file)
    if not buffered.peek(1):
        raise EOFError("it is empty")  # What gzip takes for the compressed form of nothing.
    return opener(buffered)


def decoded(content: bytes, where: str, is_start: bool = True) -> str:
    """Text in UTF-8, without a byte order mark.

    Args:
        content: of a file, or a part of one.
        where: what error messages call it.
        is_start: whether it is the beginning of the file.

    Raises:
        RecordError: for another encoding, UTF-16 without a mark included, or a binary file.
    """
    if is_start:
        if content.startswith(lfs.POINTER):
            raise RecordError(f"{where}: {lfs.ADVICE}.")
        for magic, suffix in _MAGIC.items():
            if content.startswith(magic):
                raise RecordError(f"{where}: is compressed; give it a name that ends in {suffix}.")
        content = content.removeprefix(codecs.BOM_UTF8)
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    # UTF-8 knows the zero byte, but no text has it.
    if b"\0" in content or (is_start and content.startswith(marks)):
        raise RecordError(f"{where}: is UTF-16 or no text; convert it to UTF-8, or remove it.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{where}: not text in UTF-8 (byte {error.start}); convert or remove it."
        ) from None


def read_rows(lines: Iterable[bytes], name: str) -> Iterator[tuple[str, dict]]:
    """Yields `file:line` and the object of every JSON line that is not blank."""
    # Bytes split at b"\n" only: str.splitlines would also split at U+2028 inside a text.
    for number, line in enumerate(lines, start=1):
        where = f"{name}:{number}"
        text = decoded(line, where, is_start=number == 1)
        if not text.strip():
            continue
        row = parse_json(text, where, "a line of JSON")
        if not isinstance(row, dict):
            raise RecordError(f"{where}: a record must be an object, not {kind_of(row)}.")
        yield where, row


def parse_json(text: str, where: str, what: str = "JSON") -> Any:
    """The value that a text in JSON is.

    Args:
        text: all of it.
        where: what error messages call it.
        what: what it should be, likewise.

    Raises:
        RecordError: if it is not (`json_decoder`).
    """
    try:
        return json_decoder().decode(text)
    except RecursionError:
        raise RecordError(f"{where}: JSON in more levels than can be read.") from None
    except ValueError as error:
        raise RecordError(f"{where}: not {what} ({error}).") from None


@functools.cache
def json_decoder() -> json.JSONDecoder:
    """Refuses, with a `ValueError`, an object with a field twice, and what Python calls NaN."""
    return json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)


def check_json(value: Any, field: str, where: str) -> None:
    """Refuses what JSON can spell and nothing can keep: endless depth and numbers, half characters.

    Raises:
        RecordError: if there is such a thing in a value.
    """
    level = [value]
    for _ in range(_MOST_LEVELS):
        inner = []
        for item in level:
            if isinstance(item, dict):
                inner += [*item, *item.values()]
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str):
                checked_string(item, field, where)
            elif isinstance(item, float) and not math.isfinite(item):
                raise RecordError(f"{where}: {field} holds {item}, which is no number of JSON.")
        level = inner
        if not level:
            return
    raise RecordError(f"{where}: {field} has more than {_MOST_LEVELS} levels.")


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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice in one object")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _unreadable(path: str | os.PathLike, error: Exception) -> str:
    return f"{os.fspath(path)}: cannot be read ({getattr(error, 'strerror', None) or error})."
