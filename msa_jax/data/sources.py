"""Where documents come from: a JSON Lines file, a folder of text files, or standard input."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from msa_jax.data.files import decoded, decompressed, kind_of_file, reading, status_of
from msa_jax.data.records import Document, RecordError, iterate_documents
from msa_jax.terminal import note

STANDARD_INPUT = "-"
TEXT_SUFFIXES = (".txt", ".md", ".rst")


class DocumentSource:
    """Documents that are read one at a time, so that there may be more than memory holds.

    Bad records are a `RecordError` when they are reached.
    """

    def __init__(self, size: int | None):
        """`size` is about how many bytes there are, None if nobody knows."""
        self._size = size
        self._read = 0

    @property
    def fraction(self) -> float | None:
        """How much has been read, from 0 to 1; None if nobody knows how much there is."""
        return None if self._size is None else min(1.0, self._read / max(1, self._size))

    def __iter__(self) -> Iterator[Document]:
        raise NotImplementedError


def open_source(path: str | os.PathLike) -> DocumentSource:
    """Chooses how to read documents.

    Args:
        path: a JSON Lines file (`records.read_documents`); a folder, of which every `*.txt`,
            `*.md` and `*.rst` file at any depth is a document; one such file; or "-" for JSON
            Lines on standard input.

    Raises:
        RecordError: if there is nothing of the kind, a folder that cannot be read, or one without
            text files.
    """
    name = os.fspath(path)
    if name == STANDARD_INPUT:
        return _Lines(_standard_input, "standard input", None)
    if os.path.isdir(path):
        return _Folder(Path(path))
    if not os.path.lexists(path):
        raise RecordError(f"{name}: there is no such file or folder.")
    size = status_of(path).st_size
    if name.lower().endswith(TEXT_SUFFIXES):
        return _Folder(Path(path).parent, {Path(path): size})
    return _Lines(lambda: open(path, "rb"), name, size)


def _standard_input() -> IO[bytes]:
    if sys.stdin is None:
        raise RecordError("standard input is closed; give documents there, or name a file.")
    # With a buffer of its own: the program may end while a thread waits here for more.
    buffer = sys.stdin.buffer
    return io.BufferedReader(getattr(buffer, "raw", buffer))


class _Lines(DocumentSource):
    """JSON Lines."""

    def __init__(self, opener: Callable[[], IO[bytes]], name: str, size: int | None):
        super().__init__(size)
        self._opener, self._name = opener, name

    def __iter__(self) -> Iterator[Document]:
        with reading(self._name), self._opener() as file:
            yield from iterate_documents(self._lines(file), self._name)

    def _lines(self, file: IO[bytes]) -> Iterator[bytes]:
        for line in decompressed(file, self._name):
            if self._size is not None:
                self._read = file.tell()
            yield line


class _Folder(DocumentSource):
    """Text files: the key is the path within the folder, the title the file's name.

    Files and folders whose names start with a dot are left out. So are links to folders and what
    is no file (a pipe, a link to nothing), with a note on each.
    """

    def __init__(self, folder: Path, sizes: dict[Path, int] | None = None):
        """`sizes` by path within the folder; None for all its text files."""
        self._folder = folder
        sizes = dict(self._find()) if sizes is None else sizes
        if not sizes:
            raise RecordError(f"{folder}: the folder has no {', '.join(TEXT_SUFFIXES)} file.")
        self._paths = sorted(sizes)
        super().__init__(sum(sizes.values()))

    def _find(self) -> Iterator[tuple[Path, int]]:
        for parent, folders, files in os.walk(self._folder, onerror=_refuse_folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for path in (Path(parent, name) for name in folders):
                if path.is_symlink():
                    note(f"skipped: {path}: is a link to a folder.")
            for name in files:
                if not name.startswith(".") and name.lower().endswith(TEXT_SUFFIXES):
                    yield from _sized(Path(parent, name))

    def __iter__(self) -> Iterator[Document]:
        for path in self._paths:
            yield self._document(path)

    def _document(self, path: Path) -> Document:
        key = path.relative_to(self._folder).as_posix()
        try:
            key.encode("utf-8")
        except UnicodeEncodeError:
            raise RecordError(f"{path!r}: the file's name is not UTF-8; rename it.") from None
        with reading(path):
            content = path.read_bytes()
        self._read += len(content)
        text = decoded(content, str(path))
        # An empty file says nothing; its name is not what somebody wrote.
        return Document(id=key, text=text, title=path.stem if text.strip() else "")


def _sized(path: Path) -> Iterator[tuple[Path, int]]:
    """A path and its size; nothing, and a note, for what is no file and might never end."""
    try:
        status = os.stat(path)
    except OSError as error:
        if not path.is_symlink():
            raise RecordError(f"{path}: cannot be read ({error.strerror}).") from None
        note(f"skipped: {path}: is a link that leads to no file.")
        return
    if stat.S_ISREG(status.st_mode):
        yield path, status.st_size
    else:
        note(f"skipped: {path}: is no file but {kind_of_file(status)}.")


def _refuse_folder(error: OSError) -> None:
    raise RecordError(f"{error.filename}: the folder cannot be read ({error.strerror}).")
