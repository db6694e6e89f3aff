"""Where documents come from: a JSON Lines file, a folder of text files, or standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from msa_jax.data.records import Document, RecordError, decompressed, iterate_documents

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
        RecordError: if there is nothing of the kind, or a folder without text files.
    """
    if os.fspath(path) == STANDARD_INPUT:
        return _Lines(sys.stdin.buffer, "standard input", None)
    if os.path.isdir(path):
        return _Folder(Path(path))
    if os.path.isfile(path) and os.fspath(path).lower().endswith(TEXT_SUFFIXES):
        return _Folder(Path(path).parent, [Path(path)])
    if not os.path.exists(path):
        raise RecordError(f"{os.fspath(path)}: there is no such file or folder.")
    try:
        return _Lines(open(path, "rb"), os.fspath(path), os.path.getsize(path))
    except OSError as error:
        raise RecordError(f"{os.fspath(path)}: cannot be read ({error.strerror}).") from error


class _Lines(DocumentSource):
    """JSON Lines."""

    def __init__(self, file: IO[bytes], name: str, size: int | None):
        super().__init__(size)
        self._file, self._name = file, name

    def __iter__(self) -> Iterator[Document]:
        with self._file:
            yield from iterate_documents(self._lines(), self._name)

    def _lines(self) -> Iterator[bytes]:
        for line in decompressed(self._file, self._name):
            if self._size is not None:
                self._read = self._file.tell()
            yield line


class _Folder(DocumentSource):
    """Text files: the key is the path within the folder, the title the file's name.

    Files and folders whose names start with a dot are left out, and links to folders not followed.
    """

    def __init__(self, folder: Path, paths: list[Path] | None = None):
        """`paths` within the folder; None for all its text files."""
        self._folder = folder
        self._paths = sorted(self._find()) if paths is None else paths
        if not self._paths:
            raise RecordError(f"{folder}: the folder has no {', '.join(TEXT_SUFFIXES)} file.")
        super().__init__(sum(path.stat().st_size for path in self._paths))

    def _find(self) -> Iterator[Path]:
        for parent, folders, files in os.walk(self._folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                if not name.startswith(".") and name.lower().endswith(TEXT_SUFFIXES):
                    yield Path(parent, name)

    def __iter__(self) -> Iterator[Document]:
        for path in self._paths:
            yield self._document(path)

    def _document(self, path: Path) -> Document:
        key = path.relative_to(self._folder).as_posix()
        try:
            key.encode("utf-8")
        except UnicodeEncodeError:
            raise RecordError(f"{path!r}: the file's name is not UTF-8; rename it.") from None
        try:
            content = path.read_bytes()
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise RecordError(
                f"{path}: not text in UTF-8 (byte {error.start}); convert or remove it."
            ) from None
        except OSError as error:
            raise RecordError(f"{path}: cannot be read ({error.strerror}).") from error
        self._read += len(content)
        return Document(id=key, text=text, title=path.stem)
