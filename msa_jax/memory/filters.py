"""Filters on documents as conditions in SQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COLUMNS = ("key", "title")


def conditions(filters: Mapping[str, Any]) -> tuple[list[str], list[Any]]:
    """Conditions that rows of documents must all meet, and the values of their placeholders.

    Args:
        filters: by name of a column or of a field of the metadata, a value or a list of values.
    """
    texts, values = [], []
    for name, wanted in filters.items():
        wanted = wanted if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
        marks = ", ".join("?" * len(wanted))
        if name in _COLUMNS:
            texts.append(f"{name} IN ({marks})")
        else:
            # `atom` is null for null, lists and objects; only null has the type of its name.
            null = " OR type = 'null'" if None in wanted else ""
            found = f"SELECT 1 FROM json_each(metadata) WHERE key = ? AND (atom IN ({marks}){null})"
            texts.append(f"EXISTS ({found})")
            values.append(name)
        values.extend(wanted)
    return texts, values
