"""Tells the format of files by the names of their fields."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from msa_jax.data.formats.reading import head
from msa_jax.data.records import RecordError
from msa_jax.data.sources import TEXT_SUFFIXES

# Fields that are in a file, and the formats that it can then be of; the first that fits counts.
_FIELDS: Sequence[tuple[set[str], tuple[str, ...]]] = (
    ({"haystack_sessions"}, ("longmemeval",)),
    ({"haystack_dates"}, ("longmemeval",)),
    ({"paragraph_text"}, ("musique",)),
    ({"evidences"}, ("2wiki",)),
    ({"supporting_facts"}, ("hotpotqa",)),
    ({"_id", "context"}, ("hotpotqa", "2wiki")),  # Of a test set.
    ({"passage_text"}, ("msmarco",)),
    ({"answers", "0"}, ("msmarco",)),  # Its first column, which is long.
    ({"qas"}, ("squad",)),
    ({"_id", "text"}, ("beir",)),
)
_FOLDERS = {"beir": "corpus.jsonl*", "msmarco": "collection.tsv*"}
_ALSO_FOLDERS = (*_FOLDERS, "text")


def check_format(path: Path, name: str) -> None:
    """Refuses an input that is evidently of another format than said.

    Raises:
        RecordError: if it is, or there is nothing.
    """
    if not path.exists():
        raise RecordError(f"{path}: there is no such file or folder.")
    found = _folder_formats(path) if path.is_dir() else _file_formats(path)
    if found and name not in found:
        raise RecordError(f"{path}: is of format {found[0]}, not {name}; say --format={found[0]}.")
    if path.is_dir() and name not in _ALSO_FOLDERS:
        raise RecordError(f"{path}: is a folder; name a file of format {name}.")
    if path.is_file() and (name == "beir" or _is_table(path)):
        raise RecordError(f"{path}: is a file; name the folder that has all files of {name}.")


def _folder_formats(path: Path) -> Sequence[str]:
    return [name for name, pattern in _FOLDERS.items() if any(path.glob(pattern))]


def _file_formats(path: Path) -> Sequence[str]:
    """The formats that a file can be of; none if nothing tells."""
    if path.name.lower().endswith(TEXT_SUFFIXES):
        return ("text",)
    if _is_table(path):
        return ("msmarco",)
    fields = set(re.findall(r'(?<!\\)"(\w+)"\s*:', head(path)))
    return next((names for needed, names in _FIELDS if needed <= fields), ())


def _is_table(path: Path) -> bool:
    return ".tsv" in path.suffixes
